//! Instruction sets: which the processor has, and how code is compiled for one.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::tile_registers::{self, TileRegisters};

/// Sets of instructions, each with all of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the target has.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// Dot products of bf16, where they are faster than widening.
    Avx512Bf16,
    /// Tiles of bf16 (AMX), which the operating system must have granted.
    Amx,
    /// Tiles of f16, too (Intel's Xeon 6).
    AmxFp16,
}

/// `HALFSEG_ISA` names no instruction set, or `HALFSEG_F32` no way to multiply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstructionSetError {
    variable: &'static str,
    expected: &'static str,
    found: OsString,
}

impl fmt::Display for InstructionSetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            variable,
            expected,
            found,
        } = self;
        write!(
            f,
            "{variable}: expected {expected}, found `{}`",
            found.display()
        )
    }
}

impl std::error::Error for InstructionSetError {}

/// What the kernels on the CPU are compiled for in this process: the best that the processor has, but none
/// above `HALFSEG_ISA`, where that is set. One of `portable`, `avx2`, `avx512`, `avx512bf16`, `amx` and `amxfp16`. The last one
/// is taken at its word where there are tiles: where it is wrong, the first product of f16 ends the process (SIGILL).
///
/// # Errors
/// A `HALFSEG_ISA` that is none of these, with which the kernels panic.
pub fn instruction_set() -> Result<&'static str, InstructionSetError> {
    let isa = Isa::chosen()?;
    let known = Isa::NAMES.iter().find(|(level, _)| *level == isa.0);
    Ok(known.map_or("portable", |(_, name)| name))
}

/// What multiplies f32 in convolutions on the CPU in this process: `tiles` of bf16, where the kernels are compiled for
/// AMX, or `vector` registers of f32, which `HALFSEG_F32=vector` asks for. Weight gradients, and 3x3 kernels over large
/// maps where no gradient follows, always use vectors.
///
/// # Errors
/// A `HALFSEG_F32` that is neither, or a wrong `HALFSEG_ISA`: the kernels panic with it.
pub fn f32_products() -> Result<&'static str, InstructionSetError> {
    Ok(if f32_by_tiles()? { "tiles" } else { "vector" })
}

fn f32_by_tiles() -> Result<bool, InstructionSetError> {
    static WANTED: LazyLock<Result<bool, InstructionSetError>> = LazyLock::new(|| {
        let wanted = std::env::var_os("HALFSEG_F32").unwrap_or_default();
        tiles_wanted(&wanted)
    });
    Ok(WANTED.clone()? && Isa::chosen()?.has(Level::Amx))
}

/// Whether this value of `HALFSEG_F32` allows tiles.
fn tiles_wanted(value: &OsStr) -> Result<bool, InstructionSetError> {
    match value.to_str() {
        Some("" | "tiles") => Ok(true),
        Some("vector") => Ok(false),
        _ => Err(InstructionSetError {
            variable: "HALFSEG_F32",
            expected: "tiles or vector",
            found: value.into(),
        }),
    }
}

/// As [`f32_products`] says.
///
/// # Panics
/// If `HALFSEG_F32` or `HALFSEG_ISA` is wrong.
pub fn multiplies_f32_with_tiles() -> bool {
    f32_by_tiles().unwrap_or_else(|error| panic!("{error}"))
}

/// A set of instructions that the processor has: safe code has one only from where they are detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

impl Isa {
    const NAMES: [(Level, &str); 6] = [
        (Level::Portable, "portable"),
        (Level::Avx2, "avx2"),
        (Level::Avx512, "avx512"),
        (Level::Avx512Bf16, "avx512bf16"),
        (Level::Amx, "amx"),
        (Level::AmxFp16, "amxfp16"),
    ];

    /// What every processor of the target has.
    pub const PORTABLE: Self = Self(Level::Portable);

    /// Without looking.
    ///
    /// # Safety
    /// Whoever uses it has found that the processor has these instructions.
    pub const unsafe fn assume(level: Level) -> Self {
        Self(level)
    }

    /// Which set it is.
    #[inline(always)]
    pub fn level(self) -> Level {
        self.0
    }

    /// Whether `level` is among its instructions.
    #[inline(always)]
    pub fn has(self, level: Level) -> bool {
        self.0 >= level
    }

    /// This set, but none above `level`.
    #[inline(always)]
    pub fn at_most(self, level: Level) -> Self {
        Self(self.0.min(level))
    }

    /// The best that the processor has, but none above `HALFSEG_ISA`, where that is set.
    ///
    /// # Panics
    /// If `HALFSEG_ISA` is no instruction set.
    pub fn best() -> Self {
        Self::chosen().unwrap_or_else(|error| panic!("{error}"))
    }

    fn chosen() -> Result<Self, InstructionSetError> {
        static CHOSEN: LazyLock<Result<Isa, InstructionSetError>> = LazyLock::new(|| {
            let limit = Isa::named(&std::env::var_os("HALFSEG_ISA").unwrap_or_default())?;
            Ok(Isa::detect().limited(limit))
        });
        CHOSEN.clone()
    }

    /// This set, but none above `limit`. Who names tiles of f16 answers for them where there are tiles: virtual
    /// machines hide what some of their hosts lack.
    fn limited(self, limit: Option<Level>) -> Self {
        match limit {
            Some(Level::AmxFp16) if self.has(Level::Amx) => Self(Level::AmxFp16),
            Some(limit) => self.at_most(limit),
            None => self,
        }
    }

    /// The set of this name; none for no name.
    fn named(name: &OsStr) -> Result<Option<Level>, InstructionSetError> {
        let known = Self::NAMES.iter().find(|(_, known)| name == *known);
        match known {
            Some((level, _)) => Ok(Some(*level)),
            None if name.is_empty() => Ok(None),
            None => Err(InstructionSetError {
                variable: "HALFSEG_ISA",
                expected: "portable, avx2, avx512, avx512bf16, amx or amxfp16",
                found: name.into(),
            }),
        }
    }

    /// All up to the best.
    #[cfg(test)]
    pub fn available() -> impl Iterator<Item = Self> {
        let best = Self::best();
        let levels = Self::NAMES.into_iter().map(|(level, _)| level);
        levels.filter(move |level| best.has(*level)).map(Self)
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
        Self(match (avx2, avx512) {
            (false, _) => Level::Portable,
            (true, false) => Level::Avx2,
            (true, true) if has_dots() && tile_registers::granted() => {
                if tile_registers::multiply_f16() {
                    Level::AmxFp16
                } else {
                    Level::Amx
                }
            }
            (true, true) if has_fast_dots() => Level::Avx512Bf16,
            (true, true) => Level::Avx512,
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::PORTABLE
    }
}

/// Whether the processor has dot products of bf16, and rounds to it.
#[cfg(target_arch = "x86_64")]
fn has_dots() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// Whether the processor has dot products of bf16 that beat widening to f32. AMD's (Zen 4 and later) make twice as
/// many products in the same time; Intel's as many (one such instruction a cycle, and two of f32). By who made it, not by a
/// clock: results must not change from run to run.
#[cfg(target_arch = "x86_64")]
fn has_fast_dots() -> bool {
    use std::arch::x86_64::__cpuid;

    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"AuthenticAMD" && has_dots()
}

/// What [`compiled`] runs. `run` is to be `#[inline(always)]`, so that it is compiled with the
/// instructions of its caller.
pub trait Work {
    /// Does it.
    ///
    /// # Safety
    /// The processor has the instructions, and whatever the implementation asks for.
    unsafe fn run(self, registers: &Registers);
}

/// What this thread's registers were configured for, besides what all code finds.
pub struct Registers {
    #[cfg(target_arch = "x86_64")]
    tiles: Option<TileRegisters>,
}

impl Registers {
    /// Those that code for `isa` needs.
    #[inline(always)]
    pub fn configure(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has them.
        return Self {
            tiles: isa
                .has(Level::Amx)
                .then(|| unsafe { TileRegisters::configure() }),
        };
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = isa;
            Self {}
        }
    }

    /// The tiles.
    ///
    /// # Panics
    /// If these are the registers of code for another set of instructions.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn tiles(&self) -> &TileRegisters {
        self.tiles.as_ref().expect("compiled for tiles")
    }
}

/// Runs `work`, compiled for `isa`, with the tile registers configured where that has them.
///
/// # Safety
/// What `work` asks for.
#[inline(always)]
pub unsafe fn compiled(isa: Isa, work: impl Work) {
    let registers = Registers::configure(isa);
    dispatch(
        isa,
        #[inline(always)]
        // SAFETY: the caller's promises are the same.
        |_| unsafe { work.run(&registers) },
    );
}

/// Runs `body`, compiled for `isa`, and gives it that set, or the one below tiles.
///
/// The closure is to be `#[inline(always)]`: else it may be compiled for every processor, and call each of
/// its intrinsics as a function. It should ask the set that it is given, which is known where it is
/// compiled.
#[inline(always)]
pub fn dispatch<R>(isa: Isa, body: impl FnOnce(Isa) -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<R>(body: impl FnOnce(Isa) -> R) -> R {
            body(Isa(Level::Avx2))
        }
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<R>(body: impl FnOnce(Isa) -> R) -> R {
            body(Isa(Level::Avx512))
        }
        match isa.level() {
            Level::Portable => body(Isa::PORTABLE),
            // SAFETY: the processor has them.
            Level::Avx2 => unsafe { avx2(body) },
            // SAFETY: as above.
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx | Level::AmxFp16 => unsafe {
                avx512(body)
            },
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        body(Isa::PORTABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_instruction_set_is_refused_with_those_that_are() {
        assert_eq!(Isa::named(OsStr::new("avx2")), Ok(Some(Level::Avx2)));
        assert_eq!(Isa::named(OsStr::new("")), Ok(None));
        let error = Isa::named(OsStr::new("AVX2")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "HALFSEG_ISA: expected portable, avx2, avx512, avx512bf16, amx or amxfp16, found `AVX2`"
        );
        let known = Isa::NAMES.map(|(_, name)| name);
        assert!(known.contains(&instruction_set().unwrap()));
    }

    #[test]
    fn tiles_of_f16_are_believed_where_there_are_tiles() {
        let named = Some(Level::AmxFp16);
        assert_eq!(Isa(Level::Amx).limited(named), Isa(Level::AmxFp16));
        assert_eq!(Isa(Level::Avx512).limited(named), Isa(Level::Avx512));
        let both = Isa(Level::AmxFp16);
        assert_eq!(both.limited(None), both);
        assert_eq!(both.limited(Some(Level::Amx)), Isa(Level::Amx));
    }

    #[test]
    fn f32_is_multiplied_by_vectors_where_that_is_asked_for() {
        assert_eq!(tiles_wanted(OsStr::new("vector")), Ok(false));
        assert_eq!(tiles_wanted(OsStr::new("tiles")), Ok(true));
        assert_eq!(tiles_wanted(OsStr::new("")), Ok(true));
        let error = tiles_wanted(OsStr::new("Vector")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "HALFSEG_F32: expected tiles or vector, found `Vector`"
        );
    }
}
