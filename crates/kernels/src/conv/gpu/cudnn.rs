//! Dense convolutions by NVIDIA's cuDNN, where its library is found: one more way that tuning measures.
//!
//! CubeCL 0.11.3 does not tell in which stream its kernels are queued, so that each waits for the other on the host: for
//! what was queued before a convolution, and for the convolution. Tuning measures that along with it.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeDevice, kernel::into_contiguous};
use cubecl::cuda::CudaRuntime;
use cubecl::future::block_on;
use cubecl_runtime::runtime::Runtime;
use cudarc::cudnn::result::{self, CudnnError};
use cudarc::cudnn::sys;
use cudarc::driver::{CudaContext, CudaStream};

use super::problem::{Declined, Problem};
use super::weight::by_channel;
use crate::gpu::launch::empty;

/// Memory that an algorithm may take beside the operands.
const MOST: usize = 256 << 20;
/// As many algorithms as cuDNN has of each pass, and some.
const ALGORITHMS: usize = 16;

/// cuDNN on one device.
struct Library {
    handle: sys::cudnnHandle_t,
    stream: Arc<CudaStream>,
}

// SAFETY: cuDNN's handles belong to no thread, as long as one at a time uses them, which the mutex around this sees to.
unsafe impl Send for Library {}

type Opened = Result<&'static Mutex<Library>, Declined>;
static OPENED: Mutex<BTreeMap<usize, Opened>> = Mutex::new(BTreeMap::new());

/// cuDNN on this device, opened once; the first time that it cannot be, that is said.
fn library(ordinal: usize) -> Opened {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let library = opened.entry(ordinal).or_insert_with(|| {
        let library = Library::open(ordinal);
        if let Err(why) = &library {
            eprintln!("halfseg: cuDNN computes no convolution on cuda:{ordinal}: {why}");
        }
        library.map(|library| &*Box::leak(Box::new(Mutex::new(library))))
    });
    library.clone()
}

impl Library {
    fn open(ordinal: usize) -> Result<Self, Declined> {
        // SAFETY: loading a library runs what it does when it is loaded, which is what this feature is for.
        if !unsafe { sys::is_culib_present() } {
            return Err("libcudnn.so.9 is not where the loader looks for libraries".to_owned());
        }
        // What functions answer has other values in other versions.
        let version = result::get_version();
        if version < 90_000 {
            return Err(format!(
                "version 9 of cuDNN is needed, and {version} was found"
            ));
        }
        let context = CudaContext::new(ordinal).map_err(|error| error.to_string())?;
        let stream = context.new_stream().map_err(|error| error.to_string())?;
        let handle = result::create_handle().map_err(said)?;
        // SAFETY: both were just made, and live as long as this.
        unsafe { result::set_stream(handle, stream.cu_stream() as _) }.map_err(said)?;
        Ok(Self { handle, stream })
    }
}

fn said(error: CudnnError) -> Declined {
    format!("cuDNN: {error:?}")
}

/// What cuDNN calls by a pointer, given back in the end.
struct Descriptor<T: Copy>(T, unsafe fn(T) -> Result<(), CudnnError>);

impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: made by the library, and used by nobody else. What could be done about a failure?
        let _ = unsafe { self.1(self.0) };
    }
}

type Tensor = Descriptor<sys::cudnnTensorDescriptor_t>;
type Filter = Descriptor<sys::cudnnFilterDescriptor_t>;
type Convolution = Descriptor<sys::cudnnConvolutionDescriptor_t>;

/// The operands of a pass as cuDNN is told of them.
struct Described {
    map: Tensor,
    weight: Filter,
    output: Tensor,
    convolution: Convolution,
}

impl Described {
    /// A map and an output `[n, h, w, c]`, a weight `[c_out, kh, kw, c]` without gaps.
    fn new([map, weight, output]: [&CubeTensor; 3], problem: &Problem) -> Result<Self, Declined> {
        let data = match map.dtype {
            DType::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
            DType::BF16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            other => return Err(format!("cuDNN is asked for f16 and bf16, not {other:?}")),
        };
        let tensor = |tensor: &CubeTensor| {
            let [n, h, w, c] = integers(tensor.meta.shape().dims())?;
            let strides: &[usize] = tensor.meta.strides();
            let [to_n, to_h, to_w, to_c] =
                integers(strides.try_into().expect("a map has four dimensions"))?;
            let made = result::create_tensor_descriptor().map_err(said)?;
            let made = Descriptor(made, result::destroy_tensor_descriptor);
            let (sizes, strides) = ([n, c, h, w], [to_n, to_c, to_h, to_w]);
            // SAFETY: it was just made.
            unsafe { result::set_tensor4d_descriptor_ex(made.0, data, sizes, strides) }
                .map_err(said)?;
            Ok::<_, Declined>(made)
        };
        let [c_out, kh, kw, c] = integers(weight.meta.shape().dims())?;
        let filter = result::create_filter_descriptor().map_err(said)?;
        let filter = Descriptor(filter, result::destroy_filter_descriptor);
        let order = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        // SAFETY: as above.
        unsafe { result::set_filter4d_descriptor(filter.0, data, order, [c_out, c, kh, kw]) }
            .map_err(said)?;
        let convolution = result::create_convolution_descriptor().map_err(said)?;
        let convolution = Descriptor(convolution, result::destroy_convolution_descriptor);
        let [padding, stride, dilation] = [
            problem.options.padding,
            problem.options.stride,
            problem.options.dilation,
        ];
        let ([up, left], [down, right]) = (integers(padding)?, integers(stride)?);
        let [rows, columns] = integers(dilation)?;
        // SAFETY: as above. Sums are f32.
        unsafe {
            let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            let sums = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
            let made = convolution.0;
            result::set_convolution2d_descriptor(
                made, up, left, down, right, rows, columns, mode, sums,
            )
            .map_err(said)?;
            let units = sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH;
            result::set_convolution_math_type(made, units).map_err(said)?;
        }
        Ok(Self {
            map: tensor(map)?,
            weight: filter,
            output: tensor(output)?,
            convolution,
        })
    }

    /// Of the map, the weight, the output and the convolution, while this lives.
    fn pointers(
        &self,
    ) -> (
        sys::cudnnTensorDescriptor_t,
        sys::cudnnFilterDescriptor_t,
        sys::cudnnTensorDescriptor_t,
        sys::cudnnConvolutionDescriptor_t,
    ) {
        let (map, weight) = (self.map.0, self.weight.0);
        (map, weight, self.output.0, self.convolution.0)
    }
}

fn integers<const D: usize>(sizes: [usize; D]) -> Result<[c_int; D], Declined> {
    let mut integers = [0; D];
    for (integer, size) in integers.iter_mut().zip(sizes) {
        *integer =
            c_int::try_from(size).map_err(|_| format!("cuDNN counts to 2^31, not {size}"))?;
    }
    Ok(integers)
}

/// The first of a pass's algorithms, which are sorted by the time that they are thought to take, that gives the same bits
/// each time and does not take too much memory; and the bytes of memory that it takes. `$operands` are what both functions
/// of the library are given of the pass.
macro_rules! algorithm {
    ($algorithms:path, $room:path, $handle:expr, $convolution:expr, ($($operands:expr),*)) => {
        // SAFETY: the caller made all of these, and the results have room for as many as are asked for.
        unsafe {
            let mut found = [std::mem::zeroed(); ALGORITHMS];
            let mut count = 0;
            let asked = ALGORITHMS as c_int;
            $algorithms($handle, $($operands),*, asked, &mut count, found.as_mut_ptr()).map_err(said)?;
            let chosen = found[..usize::try_from(count).unwrap_or(0)].iter().find(|one| {
                one.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                    && one.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
                    && one.memory <= MOST
            });
            let chosen = chosen.ok_or("no algorithm of cuDNN's gives the same bits each time")?;
            result::set_convolution_math_type($convolution, chosen.mathType).map_err(said)?;
            let room = $room($handle, $($operands),*, chosen.algo).map_err(said)?;
            (chosen.algo, room)
        }
    };
}

/// Runs `body` with the addresses of the operands and of `room` bytes, nothing if that is 0, after all that was queued, and
/// waits until cuDNN is done.
fn on_device(
    operands: [&CubeTensor; 3],
    library: &Library,
    room: usize,
    body: impl FnOnce([*mut c_void; 3], *mut c_void) -> Result<(), CudnnError>,
) -> Result<(), Declined> {
    let client = &operands[0].client;
    let room = (room > 0).then(|| empty(operands[0], [room], DType::U8));
    let mut held = Vec::new();
    for tensor in operands.into_iter().chain(&room) {
        let found = client.get_resource::<<CudaRuntime as Runtime>::Server>(tensor.handle.clone());
        held.push(found.map_err(|error| format!("{error:?}"))?);
    }
    block_on(client.sync()).map_err(|error| format!("{error:?}"))?;
    let context = library.stream.context();
    context
        .bind_to_thread()
        .map_err(|error| error.to_string())?;
    let address = |index: usize| held[index].resource().ptr as *mut c_void;
    let at = room.as_ref().map_or(null_mut(), |_| address(3));
    body([0, 1, 2].map(address), at).map_err(said)?;
    let done = library.stream.synchronize();
    done.map_err(|error| error.to_string())
}

fn opened(problem: &Problem) -> Opened {
    match &problem.map.device {
        CubeDevice::Cuda(device) => library(device.index),
        other => Err(format!("cuDNN runs on NVIDIA GPUs, not on {other:?}")),
    }
}

const ONE: f32 = 1.0;
const ZERO: f32 = 0.0;

fn scalar(value: &'static f32) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

/// See [`super::dense::correlate`].
pub fn correlate(problem: Problem) -> Result<CubeTensor, Declined> {
    let library = opened(&problem)?;
    let [n, h, w, _] = problem.map.meta.shape().dims();
    let weight = into_contiguous(problem.other.clone());
    let [c_out, kh, kw, _] = weight.meta.shape().dims();
    let outputs = |axis, from, kernel| problem.options.outputs(axis, from, kernel);
    if [outputs(0, h, kh), outputs(1, w, kw)] != problem.size.map(Some) {
        return Err("the output does not end where its padding does".to_owned());
    }
    let [to_h, to_w] = problem.size;
    let output = empty(&problem.map, [n, to_h, to_w, c_out], problem.map.dtype);
    let operands = [&problem.map, &weight, &output];
    let described = Described::new(operands, &problem)?;
    let (map, filter, to, by) = described.pointers();
    let library = library.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = library.handle;
    let (algorithm, room) = algorithm!(
        result::get_convolution_forward_algorithm,
        result::get_convolution_forward_workspace_size,
        handle,
        by,
        (map, filter, by, to)
    );
    on_device(operands, &library, room, |[x, weight, output], at| {
        // SAFETY: the addresses are those of tensors that the descriptors describe, which live.
        unsafe {
            result::convolution_forward(
                handle,
                scalar(&ONE),
                map,
                x,
                filter,
                weight,
                by,
                algorithm,
                at,
                room,
                scalar(&ZERO),
                to,
                output,
            )
        }
    })?;
    Ok(output)
}

/// See [`super::dense::weight_gradient`].
pub fn weight_gradient(problem: Problem) -> Result<CubeTensor, Declined> {
    let library = opened(&problem)?;
    let [.., c_in] = problem.map.meta.shape().dims::<4>();
    let [.., c_out] = problem.other.meta.shape().dims::<4>();
    let [kh, kw] = problem.size;
    let weight = empty(&problem.map, [c_out, kh, kw, c_in], problem.map.dtype);
    let operands = [&problem.map, &weight, &problem.other];
    let described = Described::new(operands, &problem)?;
    let (map, filter, to, by) = described.pointers();
    let library = library.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = library.handle;
    let (algorithm, room) = algorithm!(
        result::get_convolution_backward_filter_algorithm,
        result::get_convolution_backward_filter_workspace_size,
        handle,
        by,
        (map, to, by, filter)
    );
    on_device(operands, &library, room, |[x, weight, gradient], at| {
        // SAFETY: as in the forward pass.
        unsafe {
            result::convolution_backward_filter(
                handle,
                scalar(&ONE),
                map,
                x,
                to,
                gradient,
                by,
                algorithm,
                at,
                room,
                scalar(&ZERO),
                filter,
                weight,
            )
        }
    })?;
    Ok(by_channel(weight, problem.dtype))
}
