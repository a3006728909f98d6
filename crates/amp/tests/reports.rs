//! The precision audit and the underflow report.

mod common;

use burn::nn::LinearConfig;
use burn::tensor::{FloatDType, Tensor, activation};
use common::{Net, Weights, bits, device, plain_device, values, vec};
use halfseg_amp::{AuditReport, GradScaler, Op, Policy, Precision};
use halfseg_amp::{audit, autocast, nn, observe, ops};

fn report(scale: f32) -> (Tensor<2>, AuditReport, Net) {
    let model = Net::new(&device());
    let x = values([2, 3, 6, 6], 1, &device()).mul_scalar(scale);
    let (y, report) = audit(&model, &Policy::f16(), || model.forward(x));
    (y, report, model)
}

#[test]
fn an_audit_sees_each_operation_of_a_model() {
    let (y, report, model) = report(1.0);
    // The result is the one in f32, and the statistics are as before.
    let x = values([2, 3, 6, 6], 1, &device());
    assert_eq!(vec(y), vec(Net::new(&device()).forward(x.clone())));
    assert_eq!(bits(&model), bits(&Net::new(&device())));

    let mut rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            (
                row.site.as_str(),
                row.op,
                row.policy,
                row.calls,
                row.elements,
            )
        })
        .collect();
    rows.sort_by_key(|row| row.0);
    let expected = [
        ("bn", Op::BatchNorm, Precision::Input, 1, 2 * 8 * 36),
        ("conv", Op::Conv2d, Precision::F16, 1, 2 * 8 * 36),
        ("head", Op::Linear, Precision::F16, 1, 2 * 4),
        ("mean_dim", Op::Mean, Precision::F32, 1, 2 * 8),
    ];
    assert_eq!(rows, expected);

    // Worst first, and each error is of the size of f16's rounding.
    let errors: Vec<f64> = report.rows.iter().map(|row| row.relative_error).collect();
    assert!(errors.is_sorted_by(|a, b| a >= b), "{errors:?}");
    assert!(
        errors.iter().all(|error| (1e-5..5e-3).contains(error)),
        "{errors:?}"
    );

    // The error of one operation, by hand.
    let conv = report.rows.iter().find(|row| row.site == "conv").unwrap();
    let exact = model.conv.forward(x.clone());
    let half = autocast(&Policy::f16(), || nn::conv2d(&model.conv, x)).cast(FloatDType::F32);
    let (exact, half) = (vec(exact), vec(half));
    let error: f64 = exact
        .iter()
        .zip(&half)
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum();
    let norm: f64 = exact.iter().map(|a| f64::from(*a).powi(2)).sum();
    let expected = (error / norm).sqrt();
    assert!((conv.relative_error - expected).abs() < 1e-3 * expected);

    let text = report.to_string();
    assert_eq!(text.lines().count(), 5);
    assert!(
        text.lines()
            .nth(1)
            .unwrap()
            .starts_with(&report.rows[0].site),
        "{text}"
    );
}

#[test]
fn an_audit_finds_what_overflows_and_writes_a_policy_without_it() {
    let (_, report, model) = report(1e5);
    let worst = &report.rows[0];
    assert_eq!((worst.site.as_str(), worst.op), ("conv", Op::Conv2d));
    assert_eq!(worst.non_finite, worst.elements);

    let mut policy = report.policy(0.01);
    assert!(policy.modules().contains_key("conv"), "{policy:?}");
    assert!(!policy.modules().contains_key("head"), "{policy:?}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    policy.save(&path).unwrap();
    policy = Policy::load(&path).unwrap();
    assert_eq!(policy.bind(&model), []);
    let finite = |policy: &Policy| {
        let x = values([2, 3, 6, 6], 1, &device()).mul_scalar(1e5);
        vec(autocast(policy, || ops::mean(model.forward(x))))[0].is_finite()
    };
    assert!(!finite(&Policy::f16()));
    assert!(finite(&policy));

    // Nothing is exempt if nothing may err, and f32 operations need no exemption.
    let strict = report.policy(0.0);
    assert_eq!(
        strict.modules().keys().collect::<Vec<_>>(),
        ["bn", "conv", "head"]
    );
    assert!(strict.ops().is_empty());
}

#[test]
fn an_audit_tells_which_modules_are_exempt() {
    let model = Net::new(&device());
    let mut policy = Policy::f16()
        .with_module("conv", Precision::F32)
        .with_module("bn", Precision::F32);
    assert_eq!(policy.bind(&model), []);
    let x = values([2, 3, 6, 6], 1, &device());
    let (_, report) = audit(&model, &policy, || model.forward(x));
    let of = |site: &str| report.rows.iter().find(|row| row.site == site);
    let precision = |site| of(site).expect("the operation was audited").policy;
    assert_eq!(precision("conv"), Precision::F32);
    assert_eq!(precision("bn"), Precision::F32);
    assert_eq!(precision("head"), Precision::F16);
    // What is exempt already is not proposed again, and stays.
    assert_eq!(
        report.policy(0.0).modules().keys().collect::<Vec<_>>(),
        ["bn", "conv", "head"]
    );
}

#[test]
fn an_audit_covers_what_the_policy_runs_in_f32() {
    let device = plain_device();
    let model = LinearConfig::new(4, 4).init(&device);
    let x = values([3, 4], 1, &device).add_scalar(12.0);
    let (_, report) = audit(&model, &Policy::f16(), || ops::exp(x));
    let row = &report.rows[0];
    assert_eq!(
        (row.site.as_str(), row.policy, row.is_module),
        ("exp", Precision::F32, false)
    );
    // e^11.09 is the largest that f16 holds.
    assert!(row.non_finite > 0);
    assert_eq!(report.policy(0.01), Policy::f16());
}

#[test]
fn own_operations_are_audited_once_with_all_that_is_in_them() {
    let device = plain_device();
    let model = LinearConfig::new(4, 4).init(&device);
    let x = values([3, 4], 1, &device);
    let (_, report) = audit(&model, &Policy::f16(), || {
        for _ in 0..3 {
            observe(Op::Linear, &model.weight, x.clone(), |x| {
                activation::relu(nn::linear(&model, x))
            });
        }
        observe(Op::Softmax, "attention weights", x, |x| ops::softmax(x, 1))
    });
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| (row.site.as_str(), row.op, row.calls))
        .collect();
    assert_eq!(rows.len(), 2);
    assert!(rows.contains(&("attention weights", Op::Softmax, 1)));
    // The parameter belongs to the root, which has no name.
    assert!(rows.contains(&("linear", Op::Linear, 3)));
}

#[test]
fn an_audit_ends_with_a_panic() {
    let model = Net::new(&device());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        audit(&model, &Policy::f16(), || panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    let (_, report) = audit(&model, &Policy::f16(), || ());
    assert!(report.rows.is_empty());
}

#[test]
fn the_underflow_report_counts_what_f16_loses() {
    let device = device();
    // The smallest normal f16 is 6.1e-5, the smallest subnormal 6.0e-8, the largest value 65504.
    let gradient = [0.0, 1e-9, 2e-8, 1e-6, -1e-6, 1e-3, -2.0, 300.0];
    let model = Weights::new([1.0; 8], &device);
    let mut scaler = GradScaler::fixed(1.0);
    scaler.begin(&model);
    let loss = model.loss(Tensor::from_floats(gradient, &device));
    let grads = scaler.scale(loss).backward(&model);
    let grads = scaler.unscale(grads);
    let scales = [1.0, 512.0, 65536.0];
    let report = grads.underflow(Precision::F16, &scales);
    let row = &report.rows[0];
    assert_eq!(
        (row.path.as_str(), row.elements, row.non_zero),
        ("weight", 8, 7)
    );
    let counts: Vec<[f64; 3]> = row
        .at
        .iter()
        .map(|at| [at.flushed, at.subnormal, at.overflowed].map(|part| (part * 7.0).round()))
        .collect();
    // At 512: 5.1e-7 and 1.0e-5 are subnormal, 153600 is infinite.
    assert_eq!(counts, [[2.0, 2.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 2.0]]);
    assert_eq!(report.best_scale(), Some(1.0));
    assert_eq!(report.total(), row.at);

    // bf16 has the range of f32.
    let report = grads.underflow(Precision::Bf16, &scales);
    assert!(
        report
            .total()
            .iter()
            .all(|at| at.flushed + at.subnormal + at.overflowed == 0.0)
    );
    let (_, outcome) = scaler.step_with(model, grads, |model, _| model);
    assert!(outcome.stepped());
}

#[test]
fn the_underflow_report_rounds_as_f16_does() {
    let device = device();
    let tie = 2.0f32.powi(-25);
    let normal = 2.0f32.powi(-14);
    // On either side of where a value rounds to zero, to the smallest normal number and to infinity.
    let edges = [tie, tie.next_up(), (normal - tie).next_down(), normal - tie];
    let edges = [edges, [65519.996, 65520.0, f32::MIN_POSITIVE, -normal]].concat();
    let expected = edges.iter().map(|value| half::f16::from_f32(*value));
    let expected = expected.fold([0.0; 3], |[zero, subnormal, infinite], value| {
        let is = |what: bool| f64::from(u8::from(what));
        [
            zero + is(value.to_f32() == 0.0),
            subnormal + is(!value.is_normal() && value.is_finite() && value.to_f32() != 0.0),
            infinite + is(value.is_infinite()),
        ]
    });
    assert_eq!(expected, [2.0, 2.0, 1.0]);
    let model = Weights::new([1.0; 8], &device);
    let mut scaler = GradScaler::fixed(1.0);
    scaler.begin(&model);
    let loss = model.loss(Tensor::from_floats(edges.as_slice(), &device));
    let grads = scaler.scale(loss).backward(&model);
    let report = scaler.unscale(grads).underflow(Precision::F16, &[1.0]);
    let at = report.total()[0];
    let found = [at.flushed, at.subnormal, at.overflowed].map(|part| (part * 8.0).round());
    assert_eq!(found, expected);
}

#[test]
fn the_best_scale_flushes_least_without_overflow() {
    let model = Net::new(&device());
    let mut scaler = GradScaler::fixed(1.0);
    scaler.begin(&model);
    let grads = scaler
        .scale(model.loss(1).mul_scalar(1e-6))
        .backward(&model);
    let grads = scaler.unscale(grads);
    let report = grads.underflow(Precision::F16, &[1.0, 1024.0, 1048576.0, 1e30]);
    assert_eq!(report.rows.len(), 6);
    let total = report.total();
    assert!(total[0].flushed > total[1].flushed && total[1].flushed >= total[2].flushed);
    assert!(total[3].overflowed > 0.5);
    let best = report.best_scale().unwrap();
    assert!(best == 1024.0 || best == 1048576.0);
    assert_eq!(report.to_string().lines().count(), 1 + 6 + 1);
    let (_, outcome) = scaler.step_with(model, grads, |model, _| model);
    assert!(outcome.stepped());
}
