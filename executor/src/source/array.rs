//! An input that lies in memory: digits, test data, small volumes.

use sstep_autodiff::{Form, Region, Shape, Ty};
use sstep_kernels::{Box4, In, Layout, Out, Real};

use super::{SourceError, TileSource, check_read};

/// A dense array of any number of spatial axes, outermost first.
///
/// ```
/// use sstep_autodiff::{Region, Shape, Span};
/// use sstep_executor::source::{ArraySource, TileSource};
///
/// let source = ArraySource::new(Shape::map(1, 1, &[2, 3]), vec![0f32, 1., 2., 3., 4., 5.])?;
/// assert_eq!(source.shape().spatial(), [2, 3]);
/// # Ok::<(), sstep_executor::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ArraySource<T> {
    ty: Ty,
    data: Vec<T>,
}

impl<T: Real> ArraySource<T> {
    /// An array `[N, C, spatial…]`.
    ///
    /// # Errors
    /// [`SourceError::BadArray`] if `shape` has not one to three spatial axes
    /// or `data` not as many elements as `shape`.
    pub fn new(shape: Shape, data: Vec<T>) -> Result<Self, SourceError> {
        let ty = Ty {
            dtype: T::DTYPE,
            shape,
            form: Form::Map,
        };
        let elems = shape
            .dims()
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d));
        if !(3..=5).contains(&shape.rank()) || elems != Some(data.len()) {
            return Err(SourceError::BadArray {
                shape,
                found: data.len(),
            });
        }
        Ok(ArraySource { ty, data })
    }

    /// All elements, outermost axis first.
    pub fn data(&self) -> &[T] {
        &self.data
    }
}

impl<T: Real> TileSource<T> for ArraySource<T> {
    fn shape(&self) -> Shape {
        self.ty.shape
    }

    fn read(&self, region: &Region, dst: &mut Out<'_, T>) -> Result<(), SourceError> {
        check_read(&self.ty.shape, region, dst)?;
        let src = In::new(Layout::whole(&self.ty), &self.data);
        let boxed = Box4::lift(region);
        if boxed.points() == 0 {
            return Ok(());
        }
        for n in boxed.n() {
            for c in 0..self.ty.shape.channels() {
                for d in boxed.s(0) {
                    for h in boxed.s(1) {
                        // SAFETY: `dst` is borrowed mutably and the loops hold
                        // one row of it at a time.
                        let row = unsafe { dst.row_mut(n, c, d, h, boxed.s(2)) };
                        row.copy_from_slice(src.row(n, c, d, h, boxed.s(2)));
                    }
                }
            }
        }
        Ok(())
    }
}
