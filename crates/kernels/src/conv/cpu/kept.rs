//! Packed weights that are kept while the weights do not change.

use std::any::{Any, TypeId};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// While one of these lives, convolutions on the CPU keep the weights of inference as their kernels want
/// them, instead of packing them for each pass: at small pictures that is most of a pass.
///
/// What is kept takes two bytes a value in bf16 and with tiles of f16, four in f16 without, and in f32 six with tiles and
/// four without; the transformed kernels of
/// Winograd's method, which would be larger than the weights, are not kept. A weight that is changed or
/// dropped is not used again, and what was kept of it is dropped when the next one is packed. The last of
/// these that is dropped drops all.
///
/// ```
/// use halfseg_kernels::PackedWeights;
///
/// let kept = PackedWeights::keep();
/// // Predict picture after picture.
/// println!("{} bytes", PackedWeights::bytes());
/// drop(kept);
/// assert_eq!(PackedWeights::bytes(), 0);
/// ```
#[derive(Debug)]
pub struct PackedWeights(());

impl PackedWeights {
    /// From now on.
    #[must_use = "weights are kept while this lives"]
    pub fn keep() -> Self {
        KEEPERS.fetch_add(1, Ordering::SeqCst);
        Self(())
    }

    /// Bytes that all of them hold together.
    pub fn bytes() -> usize {
        entries().iter().map(|entry| entry.bytes).sum()
    }

    /// Drops what is kept, until it is packed again.
    pub fn clear() {
        entries().clear();
    }
}

impl Drop for PackedWeights {
    fn drop(&mut self) {
        // Under the lock: nobody adds an entry between the two.
        let mut entries = entries();
        if KEEPERS.fetch_sub(1, Ordering::SeqCst) == 1 {
            *entries = Vec::new();
        }
    }
}

/// How many live.
static KEEPERS: AtomicUsize = AtomicUsize::new(0);
static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    owner: Owner,
    scale: Option<Vec<f32>>,
    /// The kernel that it is packed for.
    kernel: TypeId,
    packed: Arc<dyn Any + Send + Sync>,
    bytes: usize,
}

fn entries() -> MutexGuard<'static, Vec<Entry>> {
    // A panic while it was held leaves whole entries.
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a weight is known by.
#[derive(Clone)]
pub struct Owner {
    /// Where its memory is, which is not used for anything else while `unchanged` says so.
    pub address: usize,
    /// The part of the memory: its first value, shape and strides.
    pub first: usize,
    /// As above.
    pub shape: [usize; 4],
    /// As above.
    pub strides: [isize; 4],
    /// Groups that the convolution has.
    pub groups: usize,
    /// Whether the memory still holds the values that it held when this was made.
    pub unchanged: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Owner {
    fn is(&self, other: &Self) -> bool {
        let place = |owner: &Self| (owner.address, owner.first, owner.shape, owner.groups);
        place(self) == place(other) && self.strides == other.strides
    }
}

/// Whether packed weights are kept.
pub fn keeps() -> bool {
    KEEPERS.load(Ordering::SeqCst) > 0
}

/// What was kept of this weight, each output channel of which is multiplied by its `scale`, for `kernel`;
/// else what `pack` makes, with its bytes. `None` if that makes nothing.
pub fn packed<T: Any + Send + Sync>(
    owner: Option<&Owner>,
    scale: Option<&[f32]>,
    kernel: TypeId,
    pack: impl FnOnce() -> Option<(T, usize)>,
) -> Option<Arc<T>> {
    let Some(owner) = owner.filter(|_| keeps()) else {
        return pack().map(|(packed, _)| Arc::new(packed));
    };
    let same_scale = |entry: &Entry| match (&entry.scale, scale) {
        (Some(a), Some(b)) => a
            .iter()
            .map(|v| v.to_bits())
            .eq(b.iter().map(|v| v.to_bits())),
        (None, None) => true,
        _ => false,
    };
    let of_owner = |entry: &Entry| entry.kernel == kernel && entry.owner.is(owner);
    let found = entries()
        .iter()
        .find(|entry| of_owner(entry) && same_scale(entry) && (entry.owner.unchanged)())
        .map(|entry| entry.packed.clone());
    if let Some(Ok(found)) = found.map(|found| found.downcast::<T>()) {
        return Some(found);
    }
    let (packed, bytes) = pack()?;
    let packed = Arc::new(packed);
    let mut entries = entries();
    entries.retain(|entry| !of_owner(entry) && (entry.owner.unchanged)());
    if keeps() {
        entries.push(Entry {
            owner: owner.clone(),
            scale: scale.map(<[f32]>::to_vec),
            kernel,
            packed: packed.clone(),
            bytes,
        });
    }
    Some(packed)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_weight_is_packed_again_when_it_or_its_scale_changes() {
        let alive = Arc::new(AtomicBool::new(true));
        let owner = |first| {
            let alive = alive.clone();
            Owner {
                address: 1,
                first,
                shape: [1, 2, 3, 4],
                strides: [24, 12, 4, 1],
                groups: 1,
                unchanged: Arc::new(move || alive.load(Ordering::SeqCst)),
            }
        };
        let times = AtomicUsize::new(0);
        let pack = |owner: &Owner, scale: Option<&[f32]>| {
            let pack = || Some((times.fetch_add(1, Ordering::SeqCst), 8));
            *packed(Some(owner), scale, TypeId::of::<u8>(), pack).unwrap()
        };
        let (first, second) = (owner(0), owner(9));
        assert_eq!([pack(&first, None), pack(&first, None)], [0, 1]);
        let kept = PackedWeights::keep();
        let more = PackedWeights::keep();
        assert_eq!([pack(&first, None), pack(&first, None)], [2, 2]);
        drop(kept);
        assert_eq!([pack(&second, None), pack(&first, None)], [3, 2]);
        let scale = &[0.5, 1.0][..];
        assert_eq!(
            [pack(&first, Some(scale)), pack(&first, Some(scale))],
            [4, 4]
        );
        assert_eq!([pack(&first, Some(&[0.5, 2.0]))], [5]);
        assert_eq!(PackedWeights::bytes(), 16);
        alive.store(false, Ordering::SeqCst);
        assert_eq!([pack(&second, None), pack(&second, None)], [6, 7]);
        PackedWeights::clear();
        assert_eq!(PackedWeights::bytes(), 0);
        drop(more);
        assert!(!keeps());
    }
}
