//! Heads infer without moving running statistics, or not at all.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use halfseg_heads::{
    AsppConfig, DeepLabV3HeadConfig, DeepLabV3PlusHeadConfig, FcnHeadConfig, PspHeadConfig,
};

/// Runs `forward` on an autodiff device, where it must refuse, and then on one without.
fn check<M: Module>(name: &str, head: M, mean: fn(&M) -> Tensor<1>, forward: fn(&M, Tensor<4>)) {
    let x = |device: &Device| Tensor::random([2, 8, 5, 7], Distribution::Normal(1.0, 2.0), device);
    let autodiff = Device::flex().autodiff();
    let before = mean(&head.valid()).into_data();
    let refused = catch_unwind(AssertUnwindSafe(|| forward(&head, x(&autodiff))));
    let message = *refused
        .expect_err(name)
        .downcast::<&str>()
        .expect("a message");
    assert!(message.contains("forward_train"), "{name}: {message}");
    let head = head.valid();
    assert_eq!(mean(&head).into_data(), before, "{name}");
    forward(&head, x(&Device::flex()));
    assert_eq!(mean(&head).into_data(), before, "{name}");
}

#[test]
fn forward_leaves_running_statistics_alone() {
    let device = Device::flex().autodiff();
    check(
        "fcn",
        FcnHeadConfig::new(8, 4, 3).init(&device),
        |head| head.convs[0].bn.running_mean.value(),
        |head, x| drop(head.forward(x)),
    );
    check(
        "pspnet",
        PspHeadConfig::new(8, 4, 3).init(&device),
        |head| head.psp_modules[0].bn.running_mean.value(),
        |head, x| drop(head.forward(x)),
    );
    check(
        "deeplabv3",
        DeepLabV3HeadConfig::new(AsppConfig::new(8, 4), 3).init(&device),
        |head| head.aspp.image_pool.bn.running_mean.value(),
        |head, x| drop(head.forward(x)),
    );
    let aspp = AsppConfig::new(8, 4).with_separable(true);
    check(
        "deeplabv3plus",
        DeepLabV3PlusHeadConfig::new(aspp, 8, 2, 3).init(&device),
        |head| head.aspp.image_pool.bn.running_mean.value(),
        |head, x| drop(head.forward(x.clone(), x)),
    );
}
