//! Mixed precision: from a recipe to autocast's policy and the gradient scaler, and back.

use std::path::Path;

use halfseg_amp::{Policy, Precision as OpPrecision, Scaling};

use super::{PrecisionRecipe, Recipe};
use crate::{Error, RunPrecision};

impl PrecisionRecipe {
    /// What autocast does in this run. Bind it to the network before use.
    pub fn policy(&self) -> Policy {
        let ops = self.ops.iter();
        let policy = ops.fold(self.dtype.policy(), |policy, (op, precision)| {
            policy.with_op(*op, *precision)
        });
        let modules = self.modules.iter();
        modules.fold(policy, |policy, (path, precision)| {
            policy.with_module(path, *precision)
        })
    }

    /// How the gradient scaler of this run is set.
    pub fn scaling(&self) -> Scaling {
        self.loss_scale.scaling(self.dtype)
    }

    /// Precision and overrides, as a line for people: `f16`, or `f16 with 2 exceptions`.
    pub fn summary(&self) -> String {
        match self.ops.len() + self.modules.len() {
            0 => self.dtype.to_string(),
            1 => format!("{} with 1 exception", self.dtype),
            exceptions => format!("{} with {exceptions} exceptions", self.dtype),
        }
    }
}

impl Recipe {
    /// Takes dtype and exceptions from a policy file, such as `halfseg audit --policy` writes, in
    /// place of the recipe's own; they are part of the recipe from then on, and the file is not
    /// needed any more.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is no policy, and one with another dtype for weights than f32
    /// or for results than that of the computation, which these networks do not have.
    pub fn read_policy(&mut self, path: &Path) -> Result<(), Error> {
        let policy = Policy::load(path)?;
        let refuse = |key: &str, expected: &str, found: OpPrecision| {
            Err(Error::Value {
                key: key.into(),
                origin: path.display().to_string(),
                expected: expected.into(),
                found: format!("`{found}`"),
            })
        };
        if policy.param() != OpPrecision::F32 {
            return refuse("param", "f32, the dtype of the weights", policy.param());
        }
        if policy.output() != OpPrecision::Input {
            let expected = "input, since logits and losses are f32 in any case";
            return refuse("output", expected, policy.output());
        }
        self.precision.dtype = match policy.compute() {
            OpPrecision::F16 => RunPrecision::F16,
            OpPrecision::Bf16 => RunPrecision::Bf16,
            OpPrecision::F32 | OpPrecision::Input => RunPrecision::F32,
            other => return refuse("compute", "f16, bf16 or f32", other),
        };
        self.precision.ops = policy.ops().clone();
        self.precision.modules = policy.modules().clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use halfseg_amp::Op;
    use halfseg_segmentor::{Depth, Method};

    use super::*;

    #[test]
    fn exceptions_are_part_of_the_recipe() {
        let mut recipe = Recipe::published(Method::Fcn, Depth::R18);
        assert_eq!(recipe.precision.policy(), Policy::f16());
        recipe.set("precision.ops.interpolate=f16").unwrap();
        recipe
            .set("precision.modules.decode_head.conv_seg=f32")
            .unwrap();
        recipe.set("precision.modules.backbone=bf16").unwrap();
        let expected = Policy::f16()
            .with_op(Op::Interpolate, OpPrecision::F16)
            .with_module("decode_head.conv_seg", OpPrecision::F32)
            .with_module("backbone", OpPrecision::Bf16);
        assert_eq!(recipe.precision.policy(), expected);
        assert_eq!(recipe.precision.summary(), "f16 with 3 exceptions");
        let text = recipe.to_toml();
        assert_eq!(Recipe::parse(&text, "copy").unwrap(), recipe);
    }

    #[test]
    fn policy_files_become_part_of_the_recipe_or_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.json");
        let mut recipe = Recipe::published(Method::Fcn, Depth::R18);
        let policy = Policy::bf16()
            .with_op(Op::Conv2d, OpPrecision::F32)
            .with_module("decode_head.conv_seg", OpPrecision::Bf16);
        policy.save(&path).unwrap();
        recipe.read_policy(&path).unwrap();
        assert_eq!(recipe.precision.dtype, RunPrecision::Bf16);
        assert_eq!(recipe.precision.policy(), policy);

        let before = recipe.clone();
        for (policy, key) in [
            (Policy::f16().with_param(OpPrecision::F16), "`param`"),
            (Policy::f16().with_output(OpPrecision::F16), "`output`"),
        ] {
            policy.save(&path).unwrap();
            let error = recipe.read_policy(&path).unwrap_err().to_string();
            assert!(
                error.contains(key) && error.contains("policy.json"),
                "{error}"
            );
            assert_eq!(recipe, before);
        }
    }
}
