//! Augmentations of a recipe, and whether they make sense.

use halfseg_data::Augment;
use halfseg_segmentor::{Depth, Method};

use super::{DataRecipe, Recipe};

impl DataRecipe {
    /// What is done to training samples besides scale, crop, mirror image and colours.
    pub fn augment(&self) -> Augment {
        Augment {
            class_crop: self.class_crop,
            vertical_flip: self.vertical_flip,
            rotation: self.rotation,
            rotation_degrees: self.rotation_degrees,
            blur: self.blur,
            blur_sigma: self.blur_sigma,
            noise: self.noise,
            noise_std: self.noise_std,
            cutout: self.cutout,
            cutout_holes: self.cutout_holes,
            cutout_share: self.cutout_share,
        }
    }

    /// The first value that makes no sense or has no effect: its key, what it may be, and what it is.
    pub(super) fn wrong_augment(&self) -> Option<[String; 3]> {
        let wrong = |key: &str, expected: &str, found: String| {
            Some([format!("data.{key}"), expected.to_owned(), found])
        };
        if let Some((key, expected, found)) = self.augment().wrong() {
            return wrong(key, expected, found.to_string());
        }
        let published = Recipe::published(Method::Fcn, Depth::R101).data;
        let holes = |data: &Self| data.cutout_holes as f64;
        for (key, probability, value, default) in [
            (
                "rotation_degrees",
                self.rotation,
                self.rotation_degrees,
                published.rotation_degrees,
            ),
            (
                "blur_sigma",
                self.blur,
                self.blur_sigma,
                published.blur_sigma,
            ),
            ("noise_std", self.noise, self.noise_std, published.noise_std),
            ("cutout_holes", self.cutout, holes(self), holes(&published)),
            (
                "cutout_share",
                self.cutout,
                self.cutout_share,
                published.cutout_share,
            ),
        ] {
            let (name, _) = key.split_once('_').unwrap_or((key, ""));
            if probability == 0.0 && value != default {
                let expected =
                    format!("{default} unless data.{name} is above 0, to which it belongs");
                return wrong(key, &expected, value.to_string());
            }
            if probability > 0.0 && value == 0.0 {
                let expected = format!("above 0 where data.{name} is");
                return wrong(key, &expected, "0".into());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_without_sense_or_effect_are_refused_by_their_keys() {
        for (assignments, refused) in [
            (&["data.rotation=1.5"][..], "data.rotation`"),
            (
                &["data.rotation=0.5", "data.rotation_degrees=270"],
                "data.rotation_degrees",
            ),
            (&["data.rotation_degrees=20"], "data.rotation_degrees"),
            (&["data.blur=0.5", "data.blur_sigma=0"], "data.blur_sigma"),
            (&["data.noise_std=3"], "data.noise_std"),
            (&["data.cutout_holes=3"], "data.cutout_holes"),
            (
                &["data.cutout=1", "data.cutout_share=2"],
                "data.cutout_share",
            ),
            (&["data.class_crop=-1"], "data.class_crop"),
        ] {
            let mut recipe = Recipe::published(Method::Fcn, Depth::R18);
            let message = recipe.set_all(assignments).unwrap_err().to_string();
            assert!(message.contains(refused), "{assignments:?}: {message}");
        }
        let mut recipe = Recipe::published(Method::Fcn, Depth::R18);
        let all = [
            "data.rotation=0.5",
            "data.rotation_degrees=20",
            "data.vertical_flip=0.5",
        ];
        recipe.set_all(all).unwrap();
        assert_eq!(recipe.data.augment().rotation_degrees, 20.0);
    }
}
