//! Instruction sets: which the processor has, and how code is compiled for one.

use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::tile_registers::{self, TileRegisters};

/// Sets of instructions, each with all of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every processor of the target has.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// Tiles of bf16 (AMX), which the operating system must have granted.
    Amx,
}

impl Isa {
    const ALL: [(Self, &str); 4] = [
        (Self::Portable, "portable"),
        (Self::Avx2, "avx2"),
        (Self::Avx512, "avx512"),
        (Self::Amx, "amx"),
    ];

    /// The best that the processor has, but none above `HALFSEG_ISA`, where that is set.
    ///
    /// # Panics
    /// If `HALFSEG_ISA` is no instruction set.
    pub fn best() -> Self {
        static FOUND: LazyLock<Isa> = LazyLock::new(|| {
            let found = Isa::detect();
            let Some(wanted) = std::env::var_os("HALFSEG_ISA") else {
                return found;
            };
            let known = Isa::ALL.iter().find(|(_, name)| wanted == *name);
            let (limit, _) = known.unwrap_or_else(|| {
                panic!(
                    "HALFSEG_ISA is portable, avx2, avx512 or amx, not {}",
                    wanted.display()
                )
            });
            found.min(*limit)
        });
        *FOUND
    }

    /// All up to the best.
    #[cfg(test)]
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .map(|(isa, _)| isa)
            .filter(|isa| *isa <= Self::best())
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512) {
            (false, _) => Self::Portable,
            (true, false) => Self::Avx2,
            (true, true) if tile_registers::granted() => Self::Amx,
            (true, true) => Self::Avx512,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::Portable
    }
}

/// What [`compiled`] runs. `run` is to be `#[inline(always)]`, so that it is compiled with the
/// instructions of its caller; a closure need not be.
pub trait Work {
    /// Does it.
    ///
    /// # Safety
    /// The processor has the instructions, and whatever the implementation asks for.
    unsafe fn run(self);
}

/// Runs `work`, compiled for `isa`.
///
/// # Safety
/// The processor has `isa`; the rest is `work`'s to say.
#[inline(always)]
pub unsafe fn compiled(isa: Isa, work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2(work: impl Work) {
            // SAFETY: the caller's promises are the same.
            unsafe { work.run() }
        }
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn avx512(work: impl Work) {
            // SAFETY: the caller's promises are the same.
            unsafe { work.run() }
        }
        // SAFETY: the caller promises the instructions.
        unsafe {
            match isa {
                Isa::Portable => work.run(),
                Isa::Avx2 => avx2(work),
                Isa::Avx512 => avx512(work),
                Isa::Amx => {
                    let _tiles = TileRegisters::configure();
                    avx512(work);
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        // SAFETY: the caller's promises are the same.
        unsafe { work.run() }
    }
}

/// Runs `body`, compiled for `isa`, which the processor has. Nothing in it takes tiles. An
/// `#[inline(always)]` before the closure makes sure that it is compiled with its caller's instructions.
#[inline(always)]
pub fn dispatch<R>(isa: Isa, body: impl FnOnce() -> R) -> R {
    struct Call<'a, F, R>(F, &'a mut Option<R>);

    impl<R, F: FnOnce() -> R> Work for Call<'_, F, R> {
        #[inline(always)]
        unsafe fn run(self) {
            *self.1 = Some((self.0)());
        }
    }

    let isa = isa.min(Isa::Avx512);
    let mut result = None;
    // SAFETY: instruction sets are chosen by what the processor has; the body is safe.
    unsafe { compiled(isa, Call(body, &mut result)) };
    result.expect("the body ran")
}
