//! Several images of one shape as a batch.

use std::sync::Arc;

use sstep_autodiff::{Region, Shape, Span};
use sstep_kernels::{ByteScale, Out, Real};

use super::{ByteSource, SourceError, TileSource, check_read};

/// Sources of one shape, one after another along the batch.
///
/// ```
/// use std::sync::Arc;
/// use sstep_autodiff::Shape;
/// use sstep_executor::source::{ArraySource, StackSource, TileSource};
///
/// let image = |v: f32| Arc::new(ArraySource::new(Shape::map(1, 1, &[2, 2]), vec![v; 4]).unwrap());
/// let batch = StackSource::new(vec![image(0.0), image(1.0)])?;
/// assert_eq!(batch.shape(), Shape::map(2, 1, &[2, 2]));
/// # Ok::<(), sstep_executor::source::SourceError>(())
/// ```
pub struct StackSource<T> {
    parts: Vec<Arc<dyn TileSource<T>>>,
    shape: Shape,
    /// Of the bytes, if all parts have bytes of the same scales; else empty.
    scales: Vec<ByteScale>,
}

impl<T: Real> StackSource<T> {
    /// A batch of `parts`, each a single image.
    ///
    /// # Errors
    /// [`SourceError::Stack`] if their shapes differ or one is a batch itself,
    /// [`SourceError::BadArray`] if there are none.
    pub fn new(parts: Vec<Arc<dyn TileSource<T>>>) -> Result<Self, SourceError> {
        let Some(part) = parts.first().map(|p| p.shape()) else {
            let shape = Shape::map(0, 0, &[0]);
            return Err(SourceError::BadArray { shape, found: 0 });
        };
        let first = Shape::map(1, part.channels(), part.spatial());
        if let Some(index) = parts.iter().position(|p| p.shape() != first) {
            let found = parts[index].shape().to_string();
            return Err(SourceError::Stack {
                first,
                index,
                found,
            });
        }
        let shape = Shape::map(parts.len(), first.channels(), first.spatial());
        let of = |part: &Arc<dyn TileSource<T>>| Some(part.bytes()?.scales().to_vec());
        let scales =
            of(&parts[0]).filter(|first| parts.iter().all(|p| of(p).as_ref() == Some(first)));
        let scales = scales.unwrap_or_default();
        Ok(StackSource {
            parts,
            shape,
            scales,
        })
    }
}

/// A region of one sample.
fn single(region: &Region) -> Region {
    let mut single = *region;
    single.set(0, Span::new(0, 1));
    single
}

impl<T: Real> TileSource<T> for StackSource<T> {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn read(&self, region: &Region, dst: &mut Out<'_, T>) -> Result<(), SourceError> {
        check_read(&self.shape, region, dst)?;
        for n in region.span(0).lo..region.span(0).hi {
            self.parts[n].read(&single(region), &mut dst.sample(n))?;
        }
        Ok(())
    }

    fn prefetch(&self, region: &Region) {
        let batch = region.span(0);
        for n in batch.lo..batch.hi.min(self.parts.len()) {
            self.parts[n].prefetch(&single(region));
        }
    }

    fn bytes(&self) -> Option<&dyn ByteSource> {
        (!self.scales.is_empty()).then_some(self)
    }

    fn cache_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.cache_bytes()).sum()
    }

    fn cache_limit_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.cache_limit_bytes()).sum()
    }
}

impl<T: Real> ByteSource for StackSource<T> {
    fn scales(&self) -> &[ByteScale] {
        &self.scales
    }

    fn read_bytes(&self, region: &Region, dst: &mut Out<'_, u8>) -> Result<(), SourceError> {
        check_read(&self.shape, region, dst)?;
        for n in region.span(0).lo..region.span(0).hi {
            let part = self.parts[n].bytes();
            let part = part.expect("a part has bytes as long as the batch has");
            part.read_bytes(&single(region), &mut dst.sample(n))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ArraySource;
    use sstep_autodiff::{DType, Form, Ty};
    use sstep_kernels::Layout;

    fn image(from: u32, spatial: &[usize]) -> Arc<dyn TileSource<f32>> {
        let shape = Shape::map(1, 2, spatial);
        let data = (from..from + shape.elems() as u32)
            .map(|v| v as f32)
            .collect();
        Arc::new(ArraySource::new(shape, data).expect("as many elements as the shape"))
    }

    #[test]
    fn a_region_of_a_batch_comes_from_its_images() {
        let batch = StackSource::new(vec![image(0, &[3, 4]), image(100, &[3, 4])]).expect("alike");
        let ty = Ty {
            dtype: DType::F32,
            shape: batch.shape(),
            form: Form::Map,
        };
        let spans = [Span::new(0, 2), Span::new(1, 2), Span::new(1, 3)];
        let region = Region::new(&spans);
        let mut data = vec![-1.0; 8];
        let layout = Layout::window(&ty, &[2, 1, 2], &region);
        batch
            .read(&region, &mut Out::new(layout, &mut data))
            .expect("it lies inside");
        assert_eq!(data, [5.0, 6.0, 17.0, 18.0, 105.0, 106.0, 117.0, 118.0]);
        // Only the second image.
        let region = Region::new(&[Span::new(1, 2), spans[1], spans[2]]);
        let layout = Layout::window(&ty, &[1, 1, 2], &region);
        batch
            .read(&region, &mut Out::new(layout, &mut data))
            .expect("it lies inside");
        assert_eq!(data[..4], [105.0, 106.0, 117.0, 118.0]);
    }

    #[test]
    fn images_of_a_batch_are_alike() {
        let error = StackSource::new(vec![image(0, &[3, 4]), image(0, &[4, 3])]).err();
        assert!(matches!(error, Some(SourceError::Stack { index: 1, .. })));
        assert!(StackSource::<f32>::new(vec![]).is_err());
    }
}
