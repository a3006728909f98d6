//! What a convolution block keeps in memory between the forward and the backward pass.
//!
//! Alone in its program: it counts all memory that the process has allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Device, Distribution, Tensor};
use halfseg_amp::{Policy, autocast};
use halfseg_layers::{ConvBnAct, ConvBnActConfig, recomputed};

/// The system's allocator, counted.
struct Counted;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counted = Counted;

// SAFETY: every call is the system allocator's.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn allocated() -> f64 {
    ALLOCATED.load(Ordering::Relaxed) as f64
}

/// Bytes that a chain of convolution, batch norm and ReLU keeps per element of its maps.
fn saved_per_element(policy: &Policy, block: fn(&ConvBnAct, Tensor<4>) -> Tensor<4>) -> f64 {
    const BLOCKS: usize = 8;
    const SHAPE: [usize; 4] = [1, 32, 256, 256];
    let device = Device::flex().autodiff();
    let config = ConvBnActConfig::new([SHAPE[1], SHAPE[1]], 1);
    let blocks: Vec<ConvBnAct> = (0..BLOCKS).map(|_| config.init(&device)).collect();
    let forward =
        |x: Tensor<4>| autocast(policy, || blocks.iter().fold(x, |x, conv| block(conv, x)));
    let x = Tensor::<4>::random(SHAPE, Distribution::Normal(0.0, 1.0), &device);
    // Threads and buffers that come with the first pass are not the block's.
    drop(forward(x.clone()).sum().backward());

    let before = allocated();
    let y = forward(x);
    let saved = allocated() - before;
    // The graph lives until here.
    drop(y.sum().backward());
    saved / (BLOCKS * SHAPE.iter().product::<usize>()) as f64
}

/// Tests run one after the other, since each counts all memory of the process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_recomputed_block_keeps_its_input() {
    let _alone = ALONE.lock();
    for (name, policy, bytes) in [
        ("f32", Policy::disabled(), 4.0),
        ("f16", Policy::f16(), 2.0),
    ] {
        let found = saved_per_element(&policy, |block, x| recomputed(block, x, ConvBnAct::forward));
        println!("{name}: {found:.2} bytes per element");
        assert!(
            (bytes - 0.3..bytes + 0.6).contains(&found),
            "{name}: {found:.2}, expected {bytes}"
        );
    }
}

#[test]
fn a_block_keeps_two_maps_in_the_compute_dtype() {
    let _alone = ALONE.lock();
    for (name, policy, bytes) in [
        ("f32", Policy::disabled(), 4.0),
        ("f16", Policy::f16(), 2.0),
        ("bf16", Policy::bf16(), 2.0),
    ] {
        let found = saved_per_element(&policy, ConvBnAct::forward);
        println!("{name}: {found:.2} bytes per element");
        // The convolution's output, from which the normalisation and the ReLU are differentiated,
        // and the block's output, which is the next convolution's input.
        let expected = 2.0 * bytes;
        // The ends of the chain may keep an eighth of a map more or less; an f32 copy or a mask of bytes
        // would add more.
        assert!(
            (expected - 0.3..expected + 0.6).contains(&found),
            "{name}: {found:.2}, expected {expected}"
        );
    }
}
