//! A whole tensor in host memory: what goes in and comes out.

use sstep_autodiff::Shape;

/// A dense tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    /// Extents.
    pub shape: Shape,
    /// `shape.elems()` elements.
    pub data: Vec<T>,
}

impl<T> Tensor<T> {
    /// A tensor of `data`.
    ///
    /// # Panics
    /// If the number of elements is not that of the shape.
    pub fn new(shape: Shape, data: Vec<T>) -> Self {
        assert_eq!(
            shape.elems(),
            data.len(),
            "a tensor holds its shape's elements"
        );
        Tensor { shape, data }
    }
}
