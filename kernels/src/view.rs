//! Where a tile lies in memory.
//!
//! A view describes a box of a tensor that is present in memory: the tensor's
//! full extents, which positions are present, and the strides between them.
//! Kernels always work in absolute coordinates of the full tensor, so a tile
//! with its halo is read in place and borders are seen as what they are. One
//! and two spatial axes are lifted to three by leading axes of extent one:
//! `[N, C, W]` → `[N, C, 1, 1, W]`; there is one code path.

use std::marker::PhantomData;
use std::ops::Range;

use sstep_autodiff::{DType, Form, Region, Shape, Span, Ty};

use crate::real::Element;

/// A box over batch and three spatial axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Box4(pub [Span; 4]);

impl Box4 {
    /// Lifts a region of a map with one to three spatial axes (or of a flat
    /// tensor: one point).
    pub fn lift(region: &Region) -> Self {
        let mut spans = [Span::new(0, 1); 4];
        if let Some((batch, spatial)) = region.spans().split_first() {
            spans[0] = *batch;
            let first = 4 - spatial.len();
            spans[first..].copy_from_slice(spatial);
        }
        Box4(spans)
    }

    /// Batch indices.
    pub fn n(&self) -> Range<usize> {
        self.0[0].lo..self.0[0].hi
    }

    /// Spatial span `s` of the three lifted axes.
    pub fn s(&self, s: usize) -> Range<usize> {
        self.0[1 + s].lo..self.0[1 + s].hi
    }

    /// Number of positions.
    pub fn points(&self) -> usize {
        self.0.iter().map(|s| s.len()).product()
    }
}

/// Extents, presence and strides of a view; shared by [`In`] and [`Out`].
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Element type.
    pub dtype: DType,
    /// Shape of the whole tensor, as on the tape.
    pub shape: Shape,
    /// Whether the tensor is a map; a flat one is always present whole.
    pub form: Form,
    /// Whole extents lifted to `[N, C, D, H, W]`. A flat tensor is lifted like
    /// a map of the same shape: `[C]` → `[C, 1, 1, 1, 1]`.
    pub dims: [usize; 5],
    /// Positions present in memory.
    pub present: Box4,
    /// Elements between neighbours along `N, C, D, H`; along `W` it is 1.
    pub strides: [usize; 4],
    /// Number of elements the view may touch, from its base.
    pub len: usize,
}

impl Layout {
    /// A dense buffer that can hold `capacity` positions per axis (batch
    /// first, unlifted; at least those of `present`) and now holds `present`.
    pub fn window(ty: &Ty, capacity: &[usize], present: &Region) -> Self {
        let mut cap = [1; 3];
        cap[4 - capacity.len()..].copy_from_slice(&capacity[1..]);
        Layout::strided(ty, capacity[0], cap, Box4::lift(present))
    }

    /// A dense buffer of a region and nothing beside it.
    pub fn dense(ty: &Ty, region: &Region) -> Self {
        let present = Box4::lift(region);
        let [batch, d, h, w] = present.0.map(|s| s.len());
        Layout::strided(ty, batch, [d, h, w], present)
    }

    /// A whole tensor, dense: a map or a flat tensor of any rank.
    pub fn whole(ty: &Ty) -> Self {
        let [batch, _, d, h, w] = lift_shape(&ty.shape);
        let present = [batch, d, h, w].map(Span::full);
        Layout::strided(ty, batch, [d, h, w], Box4(present))
    }

    fn strided(ty: &Ty, batch: usize, capacity: [usize; 3], present: Box4) -> Self {
        let dims = lift_shape(&ty.shape);
        let h = capacity[2];
        let d = h * capacity[1];
        let c = d * capacity[0];
        let n = c * dims[1];
        Layout {
            dtype: ty.dtype,
            shape: ty.shape,
            form: ty.form,
            dims,
            present,
            strides: [n, c, d, h],
            len: n * batch,
        }
    }

    /// Type of the whole tensor.
    pub fn ty(&self) -> Ty {
        Ty {
            dtype: self.dtype,
            shape: self.shape,
            form: self.form,
        }
    }

    /// Every position of the whole tensor.
    pub fn everything(&self) -> Box4 {
        let [n, _, d, h, w] = self.dims;
        Box4([n, d, h, w].map(Span::full))
    }

    /// Offset of an element `(n, c, d, h, w)`, not checked: of no use but to guess.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn offset(&self, [n, c, d, h, w]: [usize; 5]) -> usize {
        let p = &self.present.0;
        let [sn, sc, sd, sh] = self.strides;
        let along = |at: usize, axis: usize, stride: usize| {
            at.wrapping_sub(p[axis].lo).wrapping_mul(stride)
        };
        (along(n, 0, sn).wrapping_add(c * sc))
            .wrapping_add(along(d, 1, sd))
            .wrapping_add(along(h, 2, sh))
            .wrapping_add(along(w, 3, 1))
    }

    /// Offset of the first element of a row and its length, checked.
    #[inline]
    fn row(&self, n: usize, c: usize, d: usize, h: usize, w: &Range<usize>) -> (usize, usize) {
        let p = &self.present.0;
        let inside = n >= p[0].lo
            && n < p[0].hi
            && c < self.dims[1]
            && d >= p[1].lo
            && d < p[1].hi
            && h >= p[2].lo
            && h < p[2].hi
            && w.start >= p[3].lo
            && w.end <= p[3].hi
            && w.start <= w.end;
        assert!(
            inside,
            "row ({n}, {c}, {d}, {h}, {w:?}) lies outside the view {:?}",
            p
        );
        let [sn, sc, sd, sh] = self.strides;
        let at = (n - p[0].lo) * sn
            + c * sc
            + (d - p[1].lo) * sd
            + (h - p[2].lo) * sh
            + (w.start - p[3].lo);
        assert!(
            at + w.len() <= self.len,
            "a view's strides stay within its buffer"
        );
        (at, w.len())
    }
}

impl Layout {
    /// Offset and number of the elements of consecutive rows, checked, if nothing lies
    /// between them.
    fn rows(
        &self,
        [n, c, d]: [usize; 3],
        h: &Range<usize>,
        w: &Range<usize>,
    ) -> Option<(usize, usize)> {
        if h.len() != 1 && self.strides[3] != w.len() {
            return None;
        }
        let (at, len) = self.row(n, c, d, h.start, w);
        self.row(n, c, d, h.end - 1, w);
        Some((at, len * h.len()))
    }
}

/// `[N, C, D, H, W]` of a shape, ones where it has no such axis.
fn lift_shape(shape: &Shape) -> [usize; 5] {
    let spatial = shape.spatial();
    let mut dims = [shape.batch(), shape.channels(), 1, 1, 1];
    dims[5 - spatial.len()..].copy_from_slice(spatial);
    dims
}

/// A readable box of a tensor.
#[derive(Clone, Copy)]
pub struct In<'a, T> {
    layout: Layout,
    base: *const T,
    lives: PhantomData<&'a [T]>,
}

// SAFETY: an `In` is a shared borrow of plain numbers.
unsafe impl<T: Copy + Sync> Send for In<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for In<'_, T> {}

impl<'a, T: Copy> In<'a, T> {
    /// A view of `data`, which holds at least `layout.len` elements.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn new(layout: Layout, data: &'a [T]) -> Self {
        assert!(
            data.len() >= layout.len,
            "a view's buffer holds its extents"
        );
        In {
            layout,
            base: data.as_ptr(),
            lives: PhantomData,
        }
    }

    /// A view from a raw base.
    ///
    /// # Safety
    /// `base` points to `layout.len` initialised elements that nobody writes
    /// during `'a`.
    pub unsafe fn from_raw(layout: Layout, base: *const T) -> Self {
        In {
            layout,
            base,
            lives: PhantomData,
        }
    }

    /// Extents and presence.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Lifted extents `[N, C, D, H, W]` of the whole tensor.
    pub fn dims(&self) -> [usize; 5] {
        self.layout.dims
    }

    /// Addresses of the bytes that the view may touch.
    pub fn addresses(&self) -> Range<u64> {
        let base = self.base as u64;
        base..base + (self.layout.len * size_of::<T>()) as u64
    }

    /// Elements `w` (absolute) of row `(n, c, d, h)`.
    pub fn row(&self, n: usize, c: usize, d: usize, h: usize, w: Range<usize>) -> &'a [T] {
        let (at, len) = self.layout.row(n, c, d, h, &w);
        // SAFETY: `row` checked that the range lies within the buffer.
        unsafe { std::slice::from_raw_parts(self.base.add(at), len) }
    }

    /// Rows `h` of `at = [n, c, d]` as one slice, if nothing lies between them.
    pub(crate) fn rows(
        &self,
        at: [usize; 3],
        h: &Range<usize>,
        w: &Range<usize>,
    ) -> Option<&'a [T]> {
        let (at, len) = self.layout.rows(at, h, w)?;
        // SAFETY: `rows` checked that the range lies within the buffer.
        Some(unsafe { std::slice::from_raw_parts(self.base.add(at), len) })
    }

    /// Where element `(n, c, d, h, w)` would lie, not checked: to prefetch it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn address(&self, at: [usize; 5]) -> *const T {
        self.base.wrapping_add(self.layout.offset(at))
    }

    /// All elements of a dense whole tensor, in order.
    pub fn flat(&self) -> &'a [T] {
        debug_assert_eq!(self.layout.len, self.layout.shape.elems());
        // SAFETY: the constructor promised `len` elements.
        unsafe { std::slice::from_raw_parts(self.base, self.layout.len) }
    }
}

/// A writable box of a tensor. Copies of it may go to several threads as long
/// as they write different rows.
#[derive(Clone, Copy)]
pub struct Out<'a, T> {
    layout: Layout,
    base: *mut T,
    lives: PhantomData<&'a mut [T]>,
}

// SAFETY: rows are handed out through `row_mut`, whose contract forbids two
// threads to hold the same row.
unsafe impl<T: Copy + Send> Send for Out<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Send> Sync for Out<'_, T> {}

impl<'a, T: Copy> Out<'a, T> {
    /// A view of `data`, which holds at least `layout.len` elements.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn new(layout: Layout, data: &'a mut [T]) -> Self {
        assert!(
            data.len() >= layout.len,
            "a view's buffer holds its extents"
        );
        Out {
            layout,
            base: data.as_mut_ptr(),
            lives: PhantomData,
        }
    }

    /// A view from a raw base.
    ///
    /// # Safety
    /// `base` points to `layout.len` elements that nobody else touches during
    /// `'a`.
    pub unsafe fn from_raw(layout: Layout, base: *mut T) -> Self {
        Out {
            layout,
            base,
            lives: PhantomData,
        }
    }

    /// Extents and presence.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Lifted extents `[N, C, D, H, W]` of the whole tensor.
    pub fn dims(&self) -> [usize; 5] {
        self.layout.dims
    }

    /// The first element, for kernels that store whole vectors: the layout
    /// says where the others lie.
    #[allow(dead_code)]
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.base
    }

    /// Where element `(n, c, d, h, w)` would lie, not checked: to prefetch it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn address(&self, at: [usize; 5]) -> *const T {
        self.base.wrapping_add(self.layout.offset(at))
    }

    /// Addresses of the bytes that the view may touch.
    pub fn addresses(&self) -> Range<u64> {
        let base = self.base as u64;
        base..base + (self.layout.len * size_of::<T>()) as u64
    }

    /// Elements `w` (absolute) of row `(n, c, d, h)`.
    ///
    /// # Safety
    /// No other live slice overlaps these elements.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut(
        &self,
        n: usize,
        c: usize,
        d: usize,
        h: usize,
        w: Range<usize>,
    ) -> &'a mut [T] {
        let (at, len) = self.layout.row(n, c, d, h, &w);
        // SAFETY: in bounds as checked; not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at), len) }
    }

    /// Rows `h` of `at = [n, c, d]` as one slice, if nothing lies between them.
    ///
    /// # Safety
    /// As [`Out::row_mut`].
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn rows_mut(
        &self,
        at: [usize; 3],
        h: &Range<usize>,
        w: &Range<usize>,
    ) -> Option<&'a mut [T]> {
        let (at, len) = self.layout.rows(at, h, w)?;
        // SAFETY: in bounds as checked; not aliased, as the caller promises.
        Some(unsafe { std::slice::from_raw_parts_mut(self.base.add(at), len) })
    }

    /// The part of sample `n`, as a batch of one.
    ///
    /// # Panics
    /// If the sample is not present.
    pub fn sample(&mut self, n: usize) -> Out<'_, T> {
        let mut layout = self.layout;
        let batch = layout.present.0[0];
        assert!(
            (batch.lo..batch.hi).contains(&n),
            "sample {n} lies outside the view's {batch:?}"
        );
        let stride = layout.strides[0];
        layout.shape = Shape::map(1, layout.shape.channels(), layout.shape.spatial());
        layout.dims[0] = 1;
        layout.present.0[0] = Span::new(0, 1);
        layout.len = stride;
        // SAFETY: a present sample's elements lie within the buffer, and they
        // are lent for as long as `self` is.
        unsafe { Out::from_raw(layout, self.base.add((n - batch.lo) * stride)) }
    }

    /// All elements of a dense whole tensor, in order.
    pub fn flat(&mut self) -> &mut [T] {
        debug_assert_eq!(self.layout.len, self.layout.shape.elems());
        // SAFETY: the constructor promised `len` elements and `&mut self`
        // forbids a second slice.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.layout.len) }
    }
}

/// A readable box of a tensor whose element type is known when it is read.
#[derive(Clone, Copy)]
pub struct AnyIn<'a> {
    layout: Layout,
    base: *const u8,
    lives: PhantomData<&'a [u8]>,
}

// SAFETY: a shared borrow of plain numbers.
unsafe impl Send for AnyIn<'_> {}
// SAFETY: as above.
unsafe impl Sync for AnyIn<'_> {}

/// That `bytes` hold what `layout` says.
fn check_bytes(layout: &Layout, bytes: &[u8]) {
    let size = layout.dtype.bytes();
    assert!(
        bytes.len() >= layout.len * size && bytes.as_ptr().addr().is_multiple_of(size),
        "a view's buffer holds its extents, aligned"
    );
}

impl<'a> AnyIn<'a> {
    /// A view of `data`, which holds at least `layout.len` elements.
    ///
    /// # Panics
    /// If `data` is shorter, or not aligned to the elements.
    pub fn new(layout: Layout, data: &'a [u8]) -> Self {
        check_bytes(&layout, data);
        AnyIn {
            layout,
            base: data.as_ptr(),
            lives: PhantomData,
        }
    }

    /// A view from a raw base.
    ///
    /// # Safety
    /// `base` points to `layout.len` initialised elements of type `layout.dtype`, aligned,
    /// that nobody writes during `'a`.
    pub unsafe fn from_raw(layout: Layout, base: *const u8) -> Self {
        AnyIn {
            layout,
            base,
            lives: PhantomData,
        }
    }

    /// Extents and presence.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The view as what it is.
    ///
    /// # Panics
    /// If the elements are of another type.
    pub fn typed<T: Element>(&self) -> In<'a, T> {
        assert_eq!(
            self.layout.dtype,
            T::DTYPE,
            "a view is read as what it holds"
        );
        // SAFETY: so many elements of this type, as the constructor was promised.
        unsafe { In::from_raw(self.layout, self.base.cast()) }
    }
}

impl<'a, T: Element> From<In<'a, T>> for AnyIn<'a> {
    fn from(view: In<'a, T>) -> Self {
        debug_assert_eq!(view.layout.dtype, T::DTYPE);
        // SAFETY: what the view was promised.
        unsafe { AnyIn::from_raw(view.layout, view.base.cast()) }
    }
}

/// A writable box of a tensor whose element type is known when it is written.
#[derive(Clone, Copy)]
pub struct AnyOut<'a> {
    layout: Layout,
    base: *mut u8,
    lives: PhantomData<&'a mut [u8]>,
}

impl<'a> AnyOut<'a> {
    /// A view of `data`, which holds at least `layout.len` elements.
    ///
    /// # Panics
    /// If `data` is shorter, or not aligned to the elements.
    pub fn new(layout: Layout, data: &'a mut [u8]) -> Self {
        check_bytes(&layout, data);
        AnyOut {
            layout,
            base: data.as_mut_ptr(),
            lives: PhantomData,
        }
    }

    /// A view from a raw base.
    ///
    /// # Safety
    /// `base` points to `layout.len` elements of type `layout.dtype`, aligned, that nobody
    /// else touches during `'a`.
    pub unsafe fn from_raw(layout: Layout, base: *mut u8) -> Self {
        AnyOut {
            layout,
            base,
            lives: PhantomData,
        }
    }

    /// Extents and presence.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The view as what it is.
    ///
    /// # Panics
    /// If the elements are of another type.
    pub fn typed<T: Element>(self) -> Out<'a, T> {
        assert_eq!(
            self.layout.dtype,
            T::DTYPE,
            "a view is written as what it holds"
        );
        // SAFETY: so many elements of this type, as the constructor was promised; the
        // view is given up for it.
        unsafe { Out::from_raw(self.layout, self.base.cast()) }
    }
}

impl<'a, T: Element> From<Out<'a, T>> for AnyOut<'a> {
    fn from(view: Out<'a, T>) -> Self {
        debug_assert_eq!(view.layout.dtype, T::DTYPE);
        // SAFETY: what the view was promised, which is given up for this one.
        unsafe { AnyOut::from_raw(view.layout, view.base.cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ty(form: Form, dims: &[usize]) -> Ty {
        Ty {
            dtype: DType::F64,
            shape: Shape::new(dims),
            form,
        }
    }

    /// A window of rows 2..4 and columns 1..4 of a 5 × 6 map of two channels,
    /// in a buffer with room for 3 × 4.
    fn window() -> Layout {
        let present = Region::new(&[Span::new(0, 1), Span::new(2, 4), Span::new(1, 4)]);
        Layout::window(&ty(Form::Map, &[1, 2, 5, 6]), &[1, 3, 4], &present)
    }

    #[test]
    fn rows_are_found_by_absolute_coordinates() {
        let data: Vec<f64> = (0..24).map(f64::from).collect();
        let view = In::new(window(), &data);
        assert_eq!(view.dims(), [1, 2, 1, 5, 6]);
        assert_eq!(view.row(0, 0, 0, 2, 1..4), [0.0, 1.0, 2.0]);
        assert_eq!(view.row(0, 1, 0, 3, 2..4), [17.0, 18.0]);
    }

    #[test]
    #[should_panic(expected = "outside the view")]
    fn a_row_that_is_not_present_is_refused() {
        In::new(window(), &[0.0; 24]).row(0, 0, 0, 4, 1..4);
    }

    #[test]
    #[should_panic(expected = "holds its extents")]
    fn a_buffer_that_is_too_short_is_refused() {
        In::new(window(), &[0.0; 23]);
    }

    #[test]
    fn a_dense_buffer_holds_its_region_alone() {
        let ty = ty(Form::Map, &[2, 3, 5, 6]);
        let region = Region::new(&[Span::new(1, 2), Span::new(2, 4), Span::new(1, 4)]);
        let layout = Layout::dense(&ty, &region);
        assert_eq!(layout.len, 3 * 2 * 3);
        assert_eq!(layout.strides, [18, 6, 6, 3]);
        let data: Vec<u8> = (0..18).collect();
        let view = In::new(layout, &data);
        assert_eq!(view.row(1, 2, 0, 3, 1..4), [15, 16, 17]);
    }

    #[test]
    fn flat_tensors_are_lifted_like_maps() {
        for (dims, lifted) in [
            (&[3][..], [3, 1, 1, 1, 1]),
            (&[2, 3], [2, 3, 1, 1, 1]),
            (&[2, 3, 4], [2, 3, 1, 1, 4]),
            (&[2, 3, 4, 5, 6], [2, 3, 4, 5, 6]),
        ] {
            let layout = Layout::whole(&ty(Form::Flat, dims));
            assert_eq!(layout.dims, lifted);
            assert_eq!(layout.len, dims.iter().product());
            assert_eq!(layout.present, layout.everything());
        }
    }
}
