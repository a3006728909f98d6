//! The tile registers of AMX: whether there are any, and their configuration.

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

/// Asks Linux for the tile registers, which a process has to do once before it uses them
/// (`ARCH_REQ_XCOMP_PERM` of arch_prctl(2)).
#[cfg(all(target_os = "linux", not(miri)))]
pub fn granted() -> bool {
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
        asm!(
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

/// No other system is asked.
#[cfg(not(all(target_os = "linux", not(miri))))]
pub fn granted() -> bool {
    false
}

/// Whether the processor reports that tiles multiply f16, as Intel's Xeon 6 (Granite Rapids) does.
pub fn multiply_f16() -> bool {
    const AMX_FP16: u32 = 1 << 21;
    const LEAF: u32 = 7;
    let subleaves = std::arch::x86_64::__cpuid_count(LEAF, 0).eax;
    subleaves >= 1 && std::arch::x86_64::__cpuid_count(LEAF, 1).eax & AMX_FP16 != 0
}

/// This thread's tile registers, configured as eight tiles of 16 rows of 64 bytes. Whoever is given one
/// may use tiles, but must not expect to find in them what another `asm!` block left. Released when
/// dropped, so that a switch of threads need not save them.
pub struct TileRegisters(PhantomData<*const ()>);

thread_local! {
    /// Whether this thread has its [`TileRegisters`].
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

impl TileRegisters {
    /// The only way to come by one.
    ///
    /// # Safety
    /// The processor has AMX, and the operating system granted it.
    ///
    /// # Panics
    /// If the thread has one already: the end of either would take the tiles from the other.
    pub unsafe fn configure() -> Self {
        assert!(!TAKEN.replace(true), "tile registers are configured twice");
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            reserved: [u8; 15],
            bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut configuration = Configuration {
            palette: 1,
            reserved: [0; 15],
            bytes: [0; 16],
            rows: [0; 16],
        };
        configuration.bytes[..8].fill(64);
        configuration.rows[..8].fill(16);
        debug_assert!(configuration.reserved == [0; 15]);
        // SAFETY: the caller promises AMX; the configuration is valid.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &configuration,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
        Self(PhantomData)
    }
}

impl Drop for TileRegisters {
    fn drop(&mut self) {
        // SAFETY: there is one only where AMX is.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem, preserves_flags),
            );
        }
        TAKEN.set(false);
    }
}
