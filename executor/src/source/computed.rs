//! An input that is computed where it is read: benchmarks, tests, synthetic data.

use sstep_autodiff::{Region, Shape};
use sstep_kernels::{Box4, Out, Real};

use super::{SourceError, TileSource, check_read};

/// A position of a map: sample, channel and spatial coordinates, outermost
/// first. With fewer than three spatial axes the leading ones are 0.
pub type Position = [usize; 5];

/// A map whose elements are a function of their position, so that an image of
/// any size takes no memory. Whatever the regions it is read by, an element is
/// the same, as long as the function is pure.
///
/// ```
/// use sstep_autodiff::Shape;
/// use sstep_executor::source::{ComputedSource, TileSource};
///
/// let shape = Shape::map(1, 3, &[1 << 20, 1 << 20]);
/// let source = ComputedSource::new(shape, |[_, c, _, y, x]| (c + y + x) as f32)?;
/// assert_eq!(TileSource::<f32>::shape(&source), shape);
/// # Ok::<(), sstep_executor::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ComputedSource<F> {
    shape: Shape,
    value: F,
}

impl<F> ComputedSource<F> {
    /// A map `[N, C, spatial…]` of `value` at every position.
    ///
    /// # Errors
    /// [`SourceError::BadArray`] if `shape` has not one to three spatial axes.
    pub fn new<T>(shape: Shape, value: F) -> Result<Self, SourceError>
    where
        F: Fn(Position) -> T,
    {
        if !(3..=5).contains(&shape.rank()) {
            return Err(SourceError::BadArray { shape, found: 0 });
        }
        Ok(ComputedSource { shape, value })
    }
}

impl<T: Real, F: Fn(Position) -> T + Send + Sync> TileSource<T> for ComputedSource<F> {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn read(&self, region: &Region, dst: &mut Out<'_, T>) -> Result<(), SourceError> {
        check_read(&self.shape, region, dst)?;
        let boxed = Box4::lift(region);
        if boxed.points() == 0 {
            return Ok(());
        }
        for n in boxed.n() {
            for c in 0..self.shape.channels() {
                for d in boxed.s(0) {
                    for h in boxed.s(1) {
                        // SAFETY: `dst` is borrowed mutably and the loops hold
                        // one row of it at a time.
                        let row = unsafe { dst.row_mut(n, c, d, h, boxed.s(2)) };
                        for (w, v) in boxed.s(2).zip(row) {
                            *v = (self.value)([n, c, d, h, w]);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ArraySource;
    use proptest::prelude::*;
    use sstep_autodiff::{DType, Form, Span, Ty};
    use sstep_kernels::Layout;

    fn code([n, c, d, h, w]: Position) -> f32 {
        ((((n * 3 + c) * 7 + d) * 11 + h) * 13 + w) as f32
    }

    /// A shape of one to three spatial axes, and a region of it.
    fn cases() -> impl Strategy<Value = (Shape, Region)> {
        let axes = proptest::collection::vec((1usize..7, 0usize..7, 0usize..7), 1..=3);
        (1usize..3, 1usize..4, axes).prop_map(|(batch, channels, axes)| {
            let extents: Vec<usize> = axes.iter().map(|a| a.0).collect();
            let mut spans = vec![Span::new(0, batch)];
            spans.extend(axes.iter().map(|&(extent, a, b)| {
                let (a, b) = (a % (extent + 1), b % (extent + 1));
                Span::new(a.min(b), a.max(b))
            }));
            (Shape::map(batch, channels, &extents), Region::new(&spans))
        })
    }

    proptest! {
        #[test]
        fn any_region_is_that_of_the_array((shape, region) in cases()) {
            let spatial = shape.spatial();
            let extent = |axis: usize| {
                (axis + spatial.len()).checked_sub(3).map_or(1, |i| spatial[i])
            };
            let mut all = Vec::new();
            for n in 0..shape.batch() {
                for c in 0..shape.channels() {
                    for d in 0..extent(0) {
                        for h in 0..extent(1) {
                            all.extend((0..extent(2)).map(|w| code([n, c, d, h, w])));
                        }
                    }
                }
            }
            let array = ArraySource::new(shape, all).expect("as many elements as the shape");
            let computed = ComputedSource::new(shape, code).expect("a map");
            let ty = Ty { dtype: DType::F32, shape, form: Form::Map };
            let layout = Layout::whole(&ty);
            let mut wanted = vec![-1.0; layout.len];
            let mut found = wanted.clone();
            array.read(&region, &mut Out::new(layout, &mut wanted)).expect("it lies inside");
            computed.read(&region, &mut Out::new(layout, &mut found)).expect("it lies inside");
            prop_assert_eq!(wanted, found);
        }
    }

    #[test]
    fn a_region_outside_is_refused() {
        let computed = ComputedSource::new(Shape::map(1, 1, &[2, 3]), code).expect("a map");
        let ty = Ty {
            dtype: DType::F32,
            shape: Shape::map(1, 1, &[2, 3]),
            form: Form::Map,
        };
        let mut data = [0.0; 6];
        let mut dst = Out::new(Layout::whole(&ty), &mut data);
        let region = Region::new(&[Span::new(0, 1), Span::new(0, 2), Span::new(1, 4)]);
        let error = computed.read(&region, &mut dst);
        assert!(matches!(error, Err(SourceError::Outside { .. })));
        assert!(ComputedSource::new(Shape::new(&[6]), code).is_err());
    }
}
