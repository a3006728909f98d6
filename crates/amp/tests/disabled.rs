//! What a policy that casts nothing costs: allocations, against the same model without this crate. The
//! time is in `benches/autocast_overhead`.

#[path = "models/resnet18_amp.rs"]
mod adapted;
#[path = "models/resnet18.rs"]
mod plain;

use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor};
use halfseg_amp::{GradScaler, Policy, autocast};

/// Allocations of `body`: the least of some runs, since the first ones set things up. On a pool of one
/// thread, as only one thread's are counted, and how many of them another one takes over varies.
fn allocations(mut body: impl FnMut() + Send) -> u64 {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("it starts").install(|| {
        let counts = (0..5).map(|_| allocation_counter::measure(&mut body).count_total);
        counts.min().expect("there are runs")
    })
}

fn images(device: &Device) -> Tensor<4> {
    Tensor::ones([1, 3, 32, 32], device)
}

#[test]
fn layers_allocate_as_those_of_burn_nn() {
    for device in [Device::flex(), Device::flex().autodiff()] {
        let (plain, adapted) = (
            plain::ResNet18::new(5, 4, &device),
            adapted::ResNet18::new(5, 4, &device),
        );
        let expected = allocations(|| drop(plain.forward(images(&device))));
        // When maps of the graph grow goes by the numbers of its nodes: some 7 of 5,560 allocations.
        let vary = if device.is_autodiff() {
            expected / 200
        } else {
            0
        };
        let found = allocations(|| drop(adapted.forward(images(&device))));
        assert!(
            found <= expected + vary,
            "without a scope: {found} {expected}"
        );
        let policy = Policy::disabled();
        let found = allocations(|| autocast(&policy, || drop(adapted.forward(images(&device)))));
        // The scope itself: its policy, and room for it.
        assert!(found <= expected + vary + 2, "{found} {expected}");
    }
}

#[test]
fn a_disabled_step_allocates_little_for_each_parameter() {
    let device = Device::flex().autodiff();
    let (mut plain, mut adapted) = (
        Some(plain::ResNet18::new(5, 4, &device)),
        Some(adapted::ResNet18::new(5, 4, &device)),
    );
    let mut optimizer = SgdConfig::new().init();
    let expected = allocations(|| {
        let model = plain.take().expect("it is put back");
        let loss = model.forward(images(&device)).mean();
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        plain = Some(optimizer.step(0.1, model, grads));
    });
    let (mut optimizer, mut scaler) = (SgdConfig::new().init(), GradScaler::disabled());
    let found = allocations(|| {
        let model = adapted.take().expect("it is put back");
        let (policy, optimizer) = (Policy::disabled(), &mut optimizer);
        let (model, _) = scaler.train_step(&policy, model, optimizer, 0.1, |model| {
            model.forward(images(&device)).mean()
        });
        adapted = Some(model);
    });
    println!("{expected} allocations without the crate, {found} with it");
    // Paths, by which a step names parameters, and lists of gradients.
    assert!(found < expected + expected / 10, "{found} {expected}");
}
