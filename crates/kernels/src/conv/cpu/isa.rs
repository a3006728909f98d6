//! Instruction sets: which the processor has, and how code is compiled for one.

use std::sync::LazyLock;

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
            (true, true) if tiles_granted() => Self::Amx,
            (true, true) => Self::Avx512,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::Portable
    }
}

/// Asks Linux for the tile registers, which a process has to do once before it uses them
/// (`ARCH_REQ_XCOMP_PERM` of arch_prctl(2)).
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
fn tiles_granted() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const LEAF: u32 = 7;
    if std::arch::x86_64::__cpuid(0).eax < LEAF {
        return false;
    }
    let found = std::arch::x86_64::__cpuid_count(LEAF, 0).edx;
    if found & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE {
        return false;
    }
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call changes nothing but what this process may use; where the kernel does not know
    // it, it returns an error. The kernel overwrites rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(all(target_arch = "x86_64", not(all(target_os = "linux", not(miri)))))]
fn tiles_granted() -> bool {
    false
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
                    let _tiles = super::micro::Tiles::configure();
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
