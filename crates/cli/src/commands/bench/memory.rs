//! What a measurement takes of memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burn::tensor::Device;
use halfseg_devices::{Bytes, DeviceChoice};

/// What the program has allocated, and the most that it had, where allocations are counted.
pub fn allocated() -> Option<(u64, Bytes)> {
    #[cfg(any(feature = "count-allocations", test))]
    return Some((
        super::allocator::allocated(),
        Bytes(super::allocator::peak()),
    ));
    #[cfg(not(any(feature = "count-allocations", test)))]
    None
}

/// Bytes in use on the device; on the CPU only where allocations are counted.
pub fn in_use(choice: DeviceChoice, device: &Device) -> Option<u64> {
    match choice {
        DeviceChoice::Flex => allocated().map(|(now, _)| now),
        _ => {
            // Kernels allocate when they are started, which lags behind.
            device.sync().ok()?;
            Some(device.memory_pool_usage()?.bytes_in_use)
        }
    }
}

/// The most bytes seen in use on a GPU while `body` runs, by asking all the time. More may have been: what is asked waits
/// behind all that was started before, which peaks fall between (PSPNet's step had 4.1 GiB where 3.4 were seen).
pub fn seen_in_use<R>(device: &Device, body: impl FnOnce() -> R) -> Option<Bytes> {
    /// Ends the asking even where `body` panics.
    struct Ended<'a>(&'a AtomicBool);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ended = Ended(&done);
        let asking = scope.spawn(|| {
            let mut most = None;
            while !done.load(Ordering::Relaxed) {
                let usage = device.memory_pool_usage()?;
                most = most.max(Some(usage.bytes_in_use));
                std::thread::sleep(Duration::from_micros(200));
            }
            most
        });
        body();
        let synced = device.sync();
        drop(ended);
        let most = asking.join().ok().flatten();
        synced.ok().and(most).map(Bytes)
    })
}
