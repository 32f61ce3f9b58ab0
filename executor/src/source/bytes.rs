//! Sources of bytes: what most images are before they are scaled.

use sstep_autodiff::{DType, Form, Region, Shape, Ty};
use sstep_kernels::{Box4, ByteScale, In, Layout, Out, Real};

use super::{SourceError, TileSource, check_read};

/// A source whose elements are bytes, scaled channel by channel: see
/// [`TileSource::bytes`].
pub trait ByteSource: Send + Sync {
    /// What the bytes of each channel stand for.
    fn scales(&self) -> &[ByteScale];

    /// Reads the bytes of `region` of all channels into `dst`, in absolute coordinates.
    /// Whoever calls holds `dst` alone.
    ///
    /// # Errors
    /// Those of [`TileSource::read`].
    fn read_bytes(&self, region: &Region, dst: &mut Out<'_, u8>) -> Result<(), SourceError>;
}

/// A dense array of bytes, of any number of spatial axes, outermost first: images and
/// volumes in memory at a quarter of what single precision takes.
///
/// ```
/// use sstep_autodiff::Shape;
/// use sstep_executor::source::{ByteArraySource, TileSource};
/// use sstep_kernels::ByteScale;
///
/// let scales = vec![ByteScale { mean: 0.5, std: 0.5 }];
/// let source = ByteArraySource::new(Shape::map(1, 1, &[2, 3]), vec![0, 1, 2, 3, 4, 255], scales)?;
/// assert_eq!(TileSource::<f32>::shape(&source).spatial(), [2, 3]);
/// # Ok::<(), sstep_executor::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ByteArraySource {
    layout: Layout,
    data: Vec<u8>,
    scales: Vec<ByteScale>,
}

impl ByteArraySource {
    /// An array `[N, C, spatial…]`, and what the bytes of each channel stand for.
    ///
    /// # Errors
    /// [`SourceError::BadArray`] if `shape` has not one to three spatial axes or `data`
    /// not as many elements as `shape`, [`SourceError::Scales`] if there are not as many
    /// `scales` as channels, [`SourceError::BadNormalisation`] if one will not do.
    pub fn new(shape: Shape, data: Vec<u8>, scales: Vec<ByteScale>) -> Result<Self, SourceError> {
        let elems = (shape.dims().iter()).try_fold(1usize, |n, &d| n.checked_mul(d));
        if !(3..=5).contains(&shape.rank()) || elems != Some(data.len()) {
            return Err(SourceError::BadArray {
                shape,
                found: data.len(),
            });
        }
        if scales.len() != shape.channels() {
            return Err(SourceError::Scales {
                shape,
                found: scales.len(),
            });
        }
        check_scales(&scales)?;
        let ty = Ty {
            // Of what the bytes become; it says nothing of how they lie.
            dtype: DType::F32,
            shape,
            form: Form::Map,
        };
        let layout = Layout::whole(&ty);
        Ok(ByteArraySource {
            layout,
            data,
            scales,
        })
    }

    /// Reads a region, each byte as `value` of it and its channel.
    fn read_as<E: Copy>(
        &self,
        region: &Region,
        dst: &mut Out<'_, E>,
        value: impl Fn(usize, u8) -> E,
    ) -> Result<(), SourceError> {
        check_read(&self.layout.shape, region, dst)?;
        let src = In::new(self.layout, &self.data);
        let boxed = Box4::lift(region);
        if boxed.points() == 0 {
            return Ok(());
        }
        for n in boxed.n() {
            for c in 0..self.scales.len() {
                for d in boxed.s(0) {
                    for h in boxed.s(1) {
                        // SAFETY: `dst` is borrowed mutably and the loops hold one row
                        // of it at a time.
                        let row = unsafe { dst.row_mut(n, c, d, h, boxed.s(2)) };
                        for (to, &v) in row.iter_mut().zip(src.row(n, c, d, h, boxed.s(2))) {
                            *to = value(c, v);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Checks that every scale is one: numbers, and a positive divisor.
pub(super) fn check_scales(scales: &[ByteScale]) -> Result<(), SourceError> {
    for (channel, &ByteScale { mean, std }) in scales.iter().enumerate() {
        if !(mean.is_finite() && std.is_finite() && std > 0.0) {
            return Err(SourceError::BadNormalisation { channel, mean, std });
        }
    }
    Ok(())
}

impl<T: Real> TileSource<T> for ByteArraySource {
    fn shape(&self) -> Shape {
        self.layout.shape
    }

    fn read(&self, region: &Region, dst: &mut Out<'_, T>) -> Result<(), SourceError> {
        let tables: Vec<[T; 256]> = self.scales.iter().map(ByteScale::table).collect();
        self.read_as(region, dst, |c, v| tables[c][usize::from(v)])
    }

    fn bytes(&self) -> Option<&dyn ByteSource> {
        Some(self)
    }
}

impl ByteSource for ByteArraySource {
    fn scales(&self) -> &[ByteScale] {
        &self.scales
    }

    fn read_bytes(&self, region: &Region, dst: &mut Out<'_, u8>) -> Result<(), SourceError> {
        self.read_as(region, dst, |_, v| v)
    }
}
