//! Operations on operands of several dtypes.
//!
//! Burn does not check dtypes: some backends panic on mixed operands, and a matrix product of f16
//! and f32 reads garbage on CUDA. These functions widen explicitly, on every backend and in every
//! build, whether or not autocast is on. A policy that gives [`Op::Promote`] a precision has them run
//! in that.

use burn::module::Param;
use burn::tensor::ops::GridSampleOptions;
use burn::tensor::{DType, FloatDType, IndexingUpdateOp, Int, Tensor};

use crate::cast::convert;
use crate::precision::is_plain;
use crate::scope::promotion;
use crate::{Op, cast, cast_param};

/// The narrowest dtype that holds both: f16 and bf16 meet in f32, f64 absorbs all.
///
/// # Panics
///
/// If either is no plain floating-point dtype.
pub fn widest(a: DType, b: DType) -> FloatDType {
    let (a, b) = (FloatDType::from(a), FloatDType::from(b));
    match (a, b) {
        (a, b) if a == b => a,
        (FloatDType::F64, _) | (_, FloatDType::F64) => FloatDType::F64,
        _ => FloatDType::F32,
    }
}

pub(crate) fn widen<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    match dtype {
        // `convert` leaves f64 alone but does not refuse to make it.
        FloatDType::F64 if x.dtype() != DType::F64 => x.cast(dtype),
        _ => convert(x, dtype),
    }
}

/// Casts both operands to the widest dtype of the two. Quantized values stay as they are.
pub fn promote<const A: usize, const B: usize>(
    a: Tensor<A>,
    b: Tensor<B>,
) -> (Tensor<A>, Tensor<B>) {
    if !is_plain(a.dtype()) || !is_plain(b.dtype()) {
        return (a, b);
    }
    let dtype = widest(a.dtype(), b.dtype());
    (widen(a, dtype), widen(b, dtype))
}

/// The operands of an operation of [`Op::Promote`].
fn promoted<const A: usize, const B: usize>(a: Tensor<A>, b: Tensor<B>) -> (Tensor<A>, Tensor<B>) {
    match promotion() {
        Some(dtype) => promote(convert(a, dtype), convert(b, dtype)),
        None => promote(a, b),
    }
}

/// An input and a weight as the policy wants them for `op`, and in one dtype in any case: where
/// nothing is cast (a disabled policy inside an f16 scope, say) they are promoted.
///
/// What a layer should use for the operands of its matrix product or convolution. Beside a quantized
/// weight, which stays as it is, the input is f32, as Burn wants it.
pub fn operands<const A: usize, const B: usize>(
    op: Op,
    x: Tensor<A>,
    weight: &Param<Tensor<B>>,
) -> (Tensor<A>, Tensor<B>) {
    let weight = cast_param(op, weight);
    match is_plain(weight.dtype()) {
        true => promote(cast(op, x), weight),
        false => (convert(x, FloatDType::F32), weight),
    }
}

/// The operands of a matrix product as the policy wants them, or else promoted.
pub fn matmul_operands<const A: usize, const B: usize>(
    a: Tensor<A>,
    b: Tensor<B>,
) -> (Tensor<A>, Tensor<B>) {
    // f64 stays f64, and then draws the other operand along.
    promote(cast(Op::Matmul, a), cast(Op::Matmul, b))
}

/// `a + b` in the widest dtype of the two.
pub fn add<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let (a, b) = promoted(a, b);
    a.add(b)
}

/// `a - b` in the widest dtype of the two.
pub fn sub<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let (a, b) = promoted(a, b);
    a.sub(b)
}

/// `a * b` in the widest dtype of the two.
pub fn mul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let (a, b) = promoted(a, b);
    a.mul(b)
}

/// `a / b` in the widest dtype of the two.
pub fn div<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let (a, b) = promoted(a, b);
    a.div(b)
}

/// The angle of the point (`x`, `y`) in the widest dtype of the two.
pub fn atan2<const D: usize>(y: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
    let (y, x) = promoted(y, x);
    y.atan2(x)
}

/// The cross product along `dim`, which has length 3, in the widest dtype of the two.
///
/// # Panics
///
/// As [`Tensor::cross`].
pub fn cross<const D: usize>(a: Tensor<D>, b: Tensor<D>, dim: usize) -> Tensor<D> {
    let (a, b) = promoted(a, b);
    a.cross(b, dim)
}

/// The sum of the products of two vectors' elements, in the widest dtype of the two.
pub fn dot(a: Tensor<1>, b: Tensor<1>) -> Tensor<1> {
    let (a, b) = promoted(a, b);
    a.dot(b)
}

/// Samples maps `[n, c, h, w]` at the places that `grid` `[n, h_out, w_out, 2]` names, in the widest
/// dtype of the two.
pub fn grid_sample_2d(
    x: Tensor<4>,
    grid: Tensor<4>,
    options: impl Into<GridSampleOptions>,
) -> Tensor<4> {
    let (x, grid) = promoted(x, grid);
    x.grid_sample_2d(grid, options)
}

/// Updates elements of `x` along `dim` with `values`, in the widest dtype of the two.
///
/// # Panics
///
/// As [`Tensor::scatter`].
pub fn scatter<const D: usize>(
    x: Tensor<D>,
    dim: usize,
    indices: Tensor<D, Int>,
    values: Tensor<D>,
    update: IndexingUpdateOp,
) -> Tensor<D> {
    let (x, values) = promoted(x, values);
    x.scatter(dim, indices, values, update)
}

/// All in the widest dtype among them, as an operation on them wants them.
pub fn promote_all<const D: usize>(tensors: Vec<Tensor<D>>) -> Vec<Tensor<D>> {
    let Some(first) = tensors.first() else {
        return tensors;
    };
    let first = FloatDType::from(first.dtype());
    let dtypes = tensors.iter().map(|x| x.dtype());
    let dtype = match dtypes.fold(first, |dtype, x| widest(DType::from(dtype), x)) {
        FloatDType::F64 => FloatDType::F64,
        widest => promotion().unwrap_or(widest),
    };
    tensors.into_iter().map(|x| widen(x, dtype)).collect()
}

/// Concatenates along `dim`, in the widest dtype among the tensors.
///
/// # Panics
///
/// As [`Tensor::cat`].
pub fn cat<const D: usize>(tensors: Vec<Tensor<D>>, dim: usize) -> Tensor<D> {
    Tensor::cat(promote_all(tensors), dim)
}

/// Stacks along a new dimension `dim` (`E = D + 1`), in the widest dtype among the tensors.
///
/// # Panics
///
/// As [`Tensor::stack`].
pub fn stack<const D: usize, const E: usize>(tensors: Vec<Tensor<D>>, dim: usize) -> Tensor<E> {
    Tensor::stack(promote_all(tensors), dim)
}
