//! Lists of tensors as arguments and results of backend extensions, which Burn's macros know only
//! with a fixed number of fields.

use burn::backend::fusion::custom::{
    ExtensionMetadata, Float, FusionValueAdapter, HandleContainer, OutputTensor, TensorId,
    TensorIr, TensorSpec,
};
use burn::backend::fusion::{ExecutionError, Fusion, FusionBackend, FusionRuntime, FusionTensor};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Backend, BackendTensor, Dispatch, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind,
    ExtensionType,
};

/// Float tensors of one backend.
pub struct Tensors<B: Backend>(pub Vec<FloatTensor<B>>);

impl<B: Backend> ExtensionType<B> for Tensors<B> {
    type Target = Tensors<Dispatch>;

    fn map_to_dispatch<F>(self, map_kind: F, autodiff: DispatchAutodiffContext) -> Self::Target
    where
        F: Fn(BackendTensor<B>) -> DispatchTensorKind,
    {
        let map = |tensor| DispatchTensor {
            kind: map_kind(BackendTensor::Float(tensor)),
            autodiff,
        };
        Tensors(self.0.into_iter().map(map).collect())
    }

    fn map_from_dispatch<F>(target: Self::Target, unwrap_kind: F) -> Self
    where
        F: Fn(DispatchTensor) -> BackendTensor<B>,
    {
        let map = |tensor| unwrap_kind(tensor).float();
        Tensors(target.0.into_iter().map(map).collect())
    }

    fn routing_tensor(target: &Self::Target) -> Option<&DispatchTensor> {
        target.0.first()
    }

    fn routing_float_tensor(target: &Self::Target) -> Option<&DispatchTensor> {
        target.0.first()
    }

    fn autodiff_context(target: &Self::Target) -> DispatchAutodiffContext {
        let contexts = target.0.iter().map(|tensor| tensor.autodiff);
        contexts.fold(DispatchAutodiffContext::Disabled, |all, one| all.merge(one))
    }
}

impl<B: Backend> ExtensionMetadata for Tensors<B> {
    type Metadata = Vec<TensorSpec>;
    type Input = Vec<TensorIr>;
    type Output = Vec<OutputTensor>;
}

type Handles<B> =
    HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;

impl<B: FusionBackend> FusionValueAdapter<B> for Tensors<B> {
    type Metadata = Vec<TensorSpec>;
    type Input = Vec<TensorIr>;
    type Output = Vec<OutputTensor>;
    type Inner = Self;
    type Fused = Tensors<Fusion<B>>;

    fn to_metadata(value: &Self::Fused) -> Self::Metadata {
        value
            .0
            .iter()
            .map(<Float as FusionValueAdapter<B>>::to_metadata)
            .collect()
    }

    fn visit_fused_tensors(
        value: &Self::Fused,
        visit: &mut impl FnMut(&FusionTensor<B::FusionRuntime>),
    ) {
        for tensor in &value.0 {
            visit(tensor);
        }
    }

    fn tensor_count(meta: &Self::Metadata) -> usize {
        meta.len()
    }

    fn append_input_ir(value: Self::Fused, inputs: &mut Vec<TensorIr>) -> Self::Input {
        let append = |tensor| <Float as FusionValueAdapter<B>>::append_input_ir(tensor, inputs);
        value.0.into_iter().map(append).collect()
    }

    fn resolve_inputs(input: &Self::Input, handles: &mut Handles<B>) -> Self {
        let resolve = |input| <Float as FusionValueAdapter<B>>::resolve_inputs(input, handles);
        Tensors(input.iter().map(resolve).collect())
    }

    fn append_output_ir(
        meta: &Self::Metadata,
        out: &mut Vec<TensorIr>,
        create: &mut impl FnMut() -> TensorId,
    ) -> Self::Output {
        let append = |spec| <Float as FusionValueAdapter<B>>::append_output_ir(spec, out, create);
        meta.iter().map(append).collect()
    }

    fn validate_outputs(
        value: &Self,
        output: &Self::Output,
        device: Option<&B::Device>,
    ) -> Result<(), ExecutionError> {
        for (value, output) in value.0.iter().zip(output) {
            <Float as FusionValueAdapter<B>>::validate_outputs(value, output, device)?;
        }
        Ok(())
    }

    fn register_output_handles(value: Self, output: &Self::Output, handles: &mut Handles<B>) {
        for (value, output) in value.0.into_iter().zip(output) {
            <Float as FusionValueAdapter<B>>::register_output_handles(value, output, handles);
        }
    }

    fn build_fused_output(
        meta: &Self::Metadata,
        tensors: &mut std::vec::IntoIter<FusionTensor<B::FusionRuntime>>,
    ) -> Self::Fused {
        let build = |spec| <Float as FusionValueAdapter<B>>::build_fused_output(spec, tensors);
        Tensors(meta.iter().map(build).collect())
    }
}
