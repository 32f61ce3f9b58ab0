//! Regions between host and device.
//!
//! A region of a view is rows of rows: the driver copies three levels in one
//! call. In two dimensions these are columns, rows and channels, one call per
//! sample; in three, columns, rows and depth, one call per channel of a sample.
//!
//! From pageable memory of the host the driver has taken all that it will by the
//! time a call returns; from page-locked memory, and to it, when the stream has
//! done the copy.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::{CudaStream, result, sys};
use sstep_kernels::cuda::Placed;
use sstep_kernels::{Box4, Element, In, Layout, Out};

use crate::device::DeviceError;

use super::driver::failed;

/// A stack of rows: what one call of the driver copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stack {
    n: usize,
    /// First channel.
    c: usize,
    /// First depth.
    d: usize,
    /// Number of rows, and of planes of rows.
    height: usize,
    depth: usize,
    /// Planes are channels rather than depths.
    over_channels: bool,
}

/// The stacks that make up a region of `channels` channels.
fn stacks(region: &Box4, channels: usize) -> Vec<Stack> {
    let (depths, height) = (region.s(0), region.s(1).len());
    if region.points() == 0 {
        return Vec::new();
    }
    let flat = depths.len() == 1;
    let firsts = if flat { 0..1 } else { 0..channels };
    let of_sample = |n| {
        firsts.clone().map(move |c| Stack {
            n,
            c,
            d: region.s(0).start,
            height,
            depth: if flat { channels } else { region.s(0).len() },
            over_channels: flat,
        })
    };
    region.n().flat_map(of_sample).collect()
}

/// Bytes between rows, and rows between planes, of a view of elements of so many bytes.
fn pitch(layout: &Layout, stack: &Stack, element: usize) -> (usize, usize) {
    let [_, channel, depth, row] = layout.strides;
    let plane = if stack.over_channels { channel } else { depth };
    (row * element, plane / row)
}

/// Offset in bytes of the first element of a stack.
fn first(layout: &Layout, stack: &Stack, region: &Box4, element: usize) -> usize {
    let present = &layout.present.0;
    let [sample, channel, depth, row] = layout.strides;
    let at = (stack.n - present[0].lo) * sample
        + stack.c * channel
        + (stack.d - present[1].lo) * depth
        + (region.s(1).start - present[2].lo) * row
        + (region.s(2).start - present[3].lo);
    at * element
}

/// A copy of nothing, to be filled in.
fn blank<T>(region: &Box4, stack: &Stack) -> sys::CUDA_MEMCPY3D {
    sys::CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: null_mut(),
        srcDevice: 0,
        srcArray: null_mut(),
        reserved0: null_mut(),
        srcPitch: 0,
        srcHeight: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: null_mut(),
        dstDevice: 0,
        dstArray: null_mut(),
        reserved1: null_mut(),
        dstPitch: 0,
        dstHeight: 0,
        WidthInBytes: region.s(2).len() * size_of::<T>(),
        Height: stack.height,
        Depth: stack.depth,
    }
}

/// Address of the first element of a region's first row.
fn host_row<T: Copy>(host: &In<'_, T>, region: &Box4, stack: &Stack) -> *const T {
    let (h, w) = (region.s(1).start, region.s(2));
    host.row(stack.n, stack.c, stack.d, h, w).as_ptr()
}

/// Copies a region of all channels to the device: elements, or bytes that a kernel will
/// make elements of. These come to lie at the end of the room for every row.
pub(super) fn upload<S: Copy>(
    stream: &CudaStream,
    host: &In<'_, S>,
    region: &Box4,
    dst: &Placed,
) -> Result<(), DeviceError> {
    let layout = host.layout();
    let element = dst.layout.dtype.bytes();
    let unused = region.s(2).len() * (element - size_of::<S>());
    for stack in stacks(region, layout.dims[1]) {
        let mut copy = blank::<S>(region, &stack);
        copy.srcHost = host_row(host, region, &stack).cast::<c_void>();
        (copy.srcPitch, copy.srcHeight) = pitch(layout, &stack, size_of::<S>());
        copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.dstDevice =
            dst.address + (first(&dst.layout, &stack, region, element) + unused) as u64;
        (copy.dstPitch, copy.dstHeight) = pitch(&dst.layout, &stack, element);
        // SAFETY: both views hold the region, as their layouts say.
        unsafe { run(stream, &copy) }.map_err(failed("copying to the device"))?;
    }
    Ok(())
}

/// Copies a region of all channels from the device.
pub(super) fn download<T: Element>(
    stream: &CudaStream,
    src: &Placed,
    region: &Box4,
    host: &Out<'_, T>,
) -> Result<(), DeviceError> {
    let layout = host.layout();
    for stack in stacks(region, layout.dims[1]) {
        let mut copy = blank::<T>(region, &stack);
        copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.srcDevice = src.address + first(&src.layout, &stack, region, size_of::<T>()) as u64;
        (copy.srcPitch, copy.srcHeight) = pitch(&src.layout, &stack, size_of::<T>());
        let (h, w) = (region.s(1).start, region.s(2));
        // SAFETY: only the address is taken; the driver writes there and to the
        // rows that follow, which the view holds and nobody else uses.
        let row = unsafe { host.row_mut(stack.n, stack.c, stack.d, h, w) };
        copy.dstHost = row.as_mut_ptr().cast::<c_void>();
        (copy.dstPitch, copy.dstHeight) = pitch(layout, &stack, size_of::<T>());
        // SAFETY: as in `upload`.
        unsafe { run(stream, &copy) }.map_err(failed("copying from the device"))?;
    }
    Ok(())
}

/// # Safety
/// `copy` stays within memory that is there until the stream has done it.
unsafe fn run(
    stream: &CudaStream,
    copy: &sys::CUDA_MEMCPY3D,
) -> Result<(), cudarc::driver::DriverError> {
    stream.context().bind_to_thread()?;
    // SAFETY: as the caller promises.
    unsafe { sys::cuMemcpy3DAsync_v2(copy, stream.cu_stream()) }.result()
}

/// Copies a whole dense tensor to the device.
pub(super) fn write<T: Element>(
    stream: &CudaStream,
    address: u64,
    data: &[T],
) -> Result<(), DeviceError> {
    let bound = stream.context().bind_to_thread();
    // SAFETY: the tensor lies at `address`, with as many elements.
    bound
        .and_then(|()| unsafe { result::memcpy_htod_async(address, data, stream.cu_stream()) })
        .and_then(|()| stream.synchronize())
        .map_err(failed("writing a tensor"))
}

/// Copies a whole dense tensor from the device.
pub(super) fn read<T: Element>(
    stream: &CudaStream,
    address: u64,
    data: &mut [T],
) -> Result<(), DeviceError> {
    let bound = stream.context().bind_to_thread();
    // SAFETY: the tensor lies at `address`, with as many elements.
    bound
        .and_then(|()| unsafe { result::memcpy_dtoh_async(data, address, stream.cu_stream()) })
        .and_then(|()| stream.synchronize())
        .map_err(failed("reading a tensor"))
}
