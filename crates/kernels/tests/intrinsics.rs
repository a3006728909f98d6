//! No vector intrinsic stands in the program as a function of its own: code that was not compiled for the
//! instruction set would call it for every vector, with operands through memory.

#![cfg(all(target_arch = "x86_64", feature = "flex"))]

use std::collections::BTreeSet;

use burn::tensor::{DType, Device, Tensor};
use halfseg_kernels::{Activation, Conv2dOptions, batch_norm_train, conv2d, conv2d_act, sum};

/// Names in the symbol table of this program that hold `part`. Debug sections may hold names, too, of
/// what was inlined: release builds here have none.
fn symbols(part: &str) -> BTreeSet<String> {
    let program = std::env::current_exe().expect("this program has a path");
    let program = std::fs::read(program).expect("this program can be read");
    program
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| name.starts_with("_ZN") || name.starts_with("_R"))
        .filter(|name| name.contains(part))
        .map(str::to_owned)
        .collect()
}

/// Uses all kernels, so that the linker keeps them.
fn use_all(dtype: DType) {
    let device = Device::flex().autodiff();
    let x = Tensor::<4>::ones([1, 4, 9, 9], &device).cast(dtype);
    for groups in [1, 4] {
        let weight = Tensor::<4>::ones([4, 4 / groups, 3, 3], &device).cast(dtype);
        let weight = weight.require_grad();
        let options = Conv2dOptions {
            groups,
            ..Conv2dOptions::default()
        };
        let y = conv2d(x.clone(), weight.clone(), None, options);
        let row = Tensor::<1>::ones([4], &device).require_grad();
        let skip = Some(y.clone().detach());
        let y = batch_norm_train(y, row.clone(), row, 1e-5, skip, Activation::Relu).output;
        assert!(weight.grad(&y.sum().backward()).is_some());
        let (x, weight) = (x.clone().inner(), weight.inner());
        let row = Tensor::<1>::ones([4], &Device::flex());
        let y = conv2d_act(
            x,
            weight,
            [row.clone(), row],
            None,
            Activation::Relu,
            options,
        );
        sum(y.clone(), y);
    }
}

#[test]
fn no_intrinsic_is_called_as_a_function() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        use_all(dtype);
    }
    if cfg!(debug_assertions) {
        eprintln!("not tested: only optimised programs have their intrinsics inlined");
        return;
    }
    if symbols("halfseg_kernels").is_empty() {
        eprintln!("not tested: this program has no table of symbols");
        return;
    }
    let found: BTreeSet<_> = symbols("core_arch")
        .into_iter()
        .filter(|name| name.contains("_mm256_") || name.contains("_mm512_"))
        .collect();
    assert!(
        found.is_empty(),
        "functions of their own, where `#[target_feature]` or `#[inline(always)]` is missing: {found:#?}"
    );
}
