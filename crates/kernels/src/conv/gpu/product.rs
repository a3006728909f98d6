//! Products of matrices, summed in f32, by whatever of cubek's kernels is fastest. Those of f32 matrices take no matrix
//! units, whose operands would be TF32, of which cubek rounds some towards zero.
//!
//! Not through Burn's own choice, which panics where the kernel that was fastest for some sizes cannot be launched
//! for others that round alike, as where it needs more shared memory than a device has. It also tries more kernels
//! than pay for the time to compile them, and makes a copy of the output for each.

use std::sync::Once;

use burn::tensor::DType;
use burn_cubecl::CubeTuneId;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::tune::{LocalTuner, Tunable, TunableSet, TuneGroup, local_tuner};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::matmul::multi_level::components::tile::TileMatmulKind;
use cubek::matmul::multi_level::routines::TileSizeSelection;
use cubek::matmul::multi_level::routines::batch::ordered_double_buffering::OrderedSelectionArgs;
use cubek::matmul::multi_level::routines::batch::simple::SimpleArgs;
use cubek::matmul::multi_level::routines::batch::simple_unit::SimpleUnitSelectionArgs;
use cubek::matmul::routine::BlueprintStrategy;
use cubek::std::InputBinding;

use super::dense::rounded;
use super::problem::Declined;
use super::tried::{is_asked_for, is_tried};
use crate::gpu::launch::element;

static TUNER: LocalTuner<String, CubeTuneId> = local_tuner!("product");

/// `left` `[.., m, k]` by `right` `[.., k, n]` into `output` `[.., m, n]`, which has no gaps. Those before the last two
/// dimensions may be 1 in one operand.
#[derive(Clone, Debug)]
struct Operands {
    left: CubeTensor,
    right: CubeTensor,
    output: CubeTensor,
    /// Whether a candidate only shows how fast it is, and may decline.
    trial: bool,
}

/// How much a kind of kernel is worth trying: kernels of less are measured where all others decline.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Instructions for matrix units whose registers the kernel fills by itself.
    Mma,
    /// Matrix units through the compiler's interface, on whatever has no `Mma`.
    Cmma,
    /// No matrix units.
    Unit,
}

/// The names of all kernels.
pub fn names() -> Vec<&'static str> {
    all_ways().into_iter().map(|(name, ..)| name).collect()
}

/// The kernels that are tried.
fn ways() -> Vec<(&'static str, Kind, Strategy)> {
    let mut ways = all_ways();
    ways.retain(|(name, ..)| is_tried(name));
    ways
}

/// All kernels, the most likely to be launched first of their kind.
fn all_ways() -> Vec<(&'static str, Kind, Strategy)> {
    use TileMatmulKind::{Cmma, Mma};

    let simple = |tile_matmul, multi_rows| {
        BlueprintStrategy::Inferred(SimpleArgs {
            tile_matmul,
            multi_rows,
        })
    };
    let tma = |multi_rows| {
        BlueprintStrategy::Inferred(SimpleArgs {
            tile_matmul: Mma,
            multi_rows,
        })
    };
    let ordered = |tile_matmul| {
        BlueprintStrategy::Inferred(OrderedSelectionArgs {
            partition_k: Some(2),
            row_count: Some(8),
            rows_per_plane: Some(2),
            tile_matmul,
        })
    };
    let unit = |tile_size| BlueprintStrategy::Inferred(SimpleUnitSelectionArgs { tile_size });
    let (largest, smallest) = (
        TileSizeSelection::MaxTileSize,
        TileSizeSelection::MinTileSize,
    );
    vec![
        (
            "mma",
            Kind::Mma,
            Strategy::SimpleCyclicMma(simple(Mma, false)),
        ),
        (
            "mma_rows",
            Kind::Mma,
            Strategy::SimpleCyclicMma(simple(Mma, true)),
        ),
        (
            "mma_ordered",
            Kind::Mma,
            Strategy::OrderedDoubleMma(ordered(Mma)),
        ),
        ("mma_tma", Kind::Mma, Strategy::SimpleTmaMma(tma(true))),
        (
            "mma_tma_specialized",
            Kind::Mma,
            Strategy::SpecializedTmaMma(BlueprintStrategy::Inferred(().into())),
        ),
        (
            "cmma",
            Kind::Cmma,
            Strategy::SimpleCyclicCmma(simple(Cmma, false)),
        ),
        (
            "cmma_rows",
            Kind::Cmma,
            Strategy::SimpleCyclicCmma(simple(Cmma, true)),
        ),
        (
            "cmma_ordered",
            Kind::Cmma,
            Strategy::OrderedDoubleCmma(ordered(Cmma)),
        ),
        ("unit", Kind::Unit, Strategy::SimpleUnit(unit(largest))),
        (
            "unit_small",
            Kind::Unit,
            Strategy::SimpleUnit(unit(smallest)),
        ),
        // One value a unit, of any size.
        ("naive", Kind::Unit, Strategy::Naive),
    ]
}

/// Products of matrices, and of as many matrices as there are before the last two dimensions.
///
/// # Errors
/// Without tuning, why no kernel can be launched.
pub fn multiply(
    left: CubeTensor,
    right: CubeTensor,
    output: CubeTensor,
) -> Result<CubeTensor, Declined> {
    let operands = Operands {
        left,
        right,
        output: output.clone(),
        trial: false,
    };
    if cfg!(not(feature = "tune")) {
        operands.by_first()?;
        return Ok(output);
    }
    // One of them declines nothing.
    let id = CubeTuneId::new(&output.client, &output.device);
    let set = TUNER.init(&id, set);
    TUNER.execute(&id, &output.client, set, operands);
    Ok(output)
}

/// What the keys of products begin with that are to be exact.
const EXACT: &str = "F32";
/// What the keys of products end with whose outputs have many rows and columns.
const LARGE: &str = "large";
/// As many are many: some tiles of the kernels that take several rows of tiles at a time.
const MANY: usize = 256;

/// All that decides which kernels can be launched, and, with sizes rounded, which is fastest.
fn key(operands: &Operands) -> String {
    let Operands {
        left,
        right,
        output,
        ..
    } = operands;
    let describe = |tensor: &CubeTensor| {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let sizes: Vec<_> = shape.iter().map(|size| rounded(*size)).collect();
        let rank = sizes.len();
        // Values that can be read at a time, along the last dimension or the one before.
        let aligned = |axis: usize| 1 << shape[axis].trailing_zeros().min(3);
        let (row, column) = (strides[rank - 2], strides[rank - 1]);
        let order = if column == 1 { "rows" } else { "columns" };
        let step = row.max(column);
        let step = 1 << step.trailing_zeros().min(3);
        let alignment: [usize; 2] = [aligned(rank - 2), aligned(rank - 1)];
        format!("{sizes:?} {alignment:?} {order} {step}")
    };
    let (dtype, result) = (left.dtype, output.dtype);
    let shape = output.meta.shape();
    let [rows, columns] = [2, 1].map(|end| shape[shape.num_dims() - end]);
    let size = match rows.min(columns) >= MANY {
        true => LARGE,
        false => "small",
    };
    format!(
        "{dtype:?} {} by {} to {result:?} {size}",
        describe(left),
        describe(right)
    )
}

/// Whether a kernel is one that NVRTC compiles for half a minute to nine minutes where it reads eight values of half
/// precision at a time (CUDA 12.9), and nobody asks for it.
fn takes_minutes_to_compile(name: &str, exact: bool) -> bool {
    matches!(name, "unit" | "unit_small") && !exact && !is_asked_for(name)
}

/// Says once that products of half precision have no matrix units.
fn say_that_it_is_slow() {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        eprintln!(
            "halfseg: matrix products in half precision run in the kernel \"naive\", one value a unit, which is slow: \
             all that use matrix units declined"
        );
    });
}

impl Operands {
    fn by(&self, name: &str, strategy: &Strategy) -> Result<(), Declined> {
        let input =
            |tensor: &CubeTensor| InputBinding::new(tensor.clone().binding(), element(tensor));
        let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: element(&self.left),
            rhs: element(&self.right),
            out: element(&self.output),
        });
        let launched = launch_ref(
            &strategy.clone().into(),
            &self.output.client,
            input(&self.left),
            input(&self.right),
            self.output.clone().binding(),
            &mut dtypes,
        );
        launched.map_err(|error| format!("{error:?}"))?;
        if name == "naive" && !self.trial && self.left.dtype != DType::F32 {
            say_that_it_is_slow();
        }
        Ok(())
    }

    /// By the first kernel that does not decline.
    fn by_first(&self) -> Result<(), Declined> {
        let mut declined = String::new();
        let exact = self.left.dtype == DType::F32;
        for (name, kind, strategy) in ways() {
            if exact && kind != Kind::Unit || takes_minutes_to_compile(name, exact) {
                continue;
            }
            match self.by(name, &strategy) {
                Ok(()) => return Ok(()),
                Err(why) => declined += &format!("\n  {name}: {why}"),
            }
        }
        Err(format!("all kernels decline:{declined}"))
    }
}

/// The candidates for a tuner, which measures them once for each key. They all write the same, so that trials need no
/// memory of their own.
fn set() -> TunableSet<String, Operands, ()> {
    let trial = |_: &String, operands: &Operands| Operands {
        trial: true,
        ..operands.clone()
    };
    // Below 0 a group is left out.
    let units = |name, priority| {
        let all = move |key: &String| if key.starts_with(EXACT) { -1 } else { priority };
        TuneGroup::new(name, all)
    };
    let groups = [
        (Kind::Mma, units("mma", 2)),
        (Kind::Cmma, units("cmma", 1)),
        (Kind::Unit, TuneGroup::new("unit", |_: &String| 0)),
    ];
    let mut set = TunableSet::new(key, trial);
    for (name, kind, strategy) in ways() {
        let candidate = move |operands: Operands| match operands.by(name, &strategy) {
            // The key rounds sizes: what was fastest for one may decline another.
            Err(_) if !operands.trial => operands.by_first(),
            found => found,
        };
        let (_, group) = groups
            .iter()
            .find(|(of, _)| *of == kind)
            .expect("each kind has a group");
        // Large tiles for large outputs, small ones for others: the ones of lower priority are compiled and measured
        // where the others decline.
        let priority = move |key: &String| match name {
            _ if takes_minutes_to_compile(name, key.starts_with(EXACT)) => -1,
            "mma_rows" | "cmma_rows" => i8::from(key.ends_with(LARGE)),
            "mma" | "cmma" => i8::from(!key.ends_with(LARGE)),
            _ => 1,
        };
        set = set.with(Tunable::new(name, candidate).group(group, priority));
    }
    set
}
