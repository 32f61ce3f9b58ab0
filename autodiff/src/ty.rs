//! What a tensor is: its element type, its shape, and whether it may be cut.
//!
//! Two forms exist. A [`Form::Map`] is image-like, `[N, C, spatial…]` with one
//! to three spatial axes; it may be larger than any memory and is therefore
//! only ever handled in regions. A [`Form::Flat`] tensor (weights, statistics,
//! pooled features, losses) is small and always held whole.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most dimensions of a tensor: a 3-D convolution weight `[K, C, D, H, W]`.
pub const MAX_RANK: usize = 5;

/// Most spatial axes of a map.
pub const MAX_SPATIAL: usize = 3;

/// Element type of a tensor.
///
/// A tape computes in one of the first two. The other two are *narrow*: maps, and
/// the weights that meet them, may be stored so, while every sum is taken in `F32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DType {
    /// IEEE single precision: what networks are trained in.
    F32,
    /// IEEE double precision: what gradients are checked in.
    F64,
    /// The upper half of an `F32`: its range, 8 bits of precision.
    Bf16,
    /// IEEE half precision: 11 bits of precision, nothing above 65 504.
    F16,
}

impl DType {
    /// Size of one element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 => 8,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// Whether values are only stored so, and computed with in [`DType::wide`].
    pub fn is_narrow(self) -> bool {
        match self {
            DType::F32 | DType::F64 => false,
            DType::Bf16 | DType::F16 => true,
        }
    }

    /// What values of this type are computed with, and sums of them are.
    pub fn wide(self) -> DType {
        match self {
            DType::F32 | DType::Bf16 | DType::F16 => DType::F32,
            DType::F64 => DType::F64,
        }
    }

    /// The type of that name, as [`DType`]'s `Display` writes it.
    pub fn by_name(name: &str) -> Option<DType> {
        [DType::F32, DType::F64, DType::Bf16, DType::F16]
            .into_iter()
            .find(|t| t.to_string() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

/// Extents of a tensor, outermost first; at most [`MAX_RANK`] of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// A shape of the given extents, or `None` above [`MAX_RANK`] dimensions.
    pub fn try_new(dims: &[usize]) -> Option<Self> {
        let mut all = [1; MAX_RANK];
        all.get_mut(..dims.len())?.copy_from_slice(dims);
        Some(Shape {
            rank: dims.len() as u8,
            dims: all,
        })
    }

    /// A shape of the given extents.
    ///
    /// # Panics
    /// Above [`MAX_RANK`] dimensions; use [`Shape::try_new`] on user input.
    pub fn new(dims: &[usize]) -> Self {
        Self::try_new(dims).expect("a shape has at most MAX_RANK dimensions")
    }

    /// `[N, C, spatial…]`.
    pub fn map(batch: usize, channels: usize, spatial: &[usize]) -> Self {
        let mut dims = [1; MAX_RANK];
        dims[0] = batch;
        dims[1] = channels;
        dims[2..2 + spatial.len()].copy_from_slice(spatial);
        Shape {
            rank: 2 + spatial.len() as u8,
            dims,
        }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// All extents.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank()]
    }

    /// Extent of dimension `i`; 1 beyond the rank.
    pub fn dim(&self, i: usize) -> usize {
        self.dims.get(i).copied().unwrap_or(1)
    }

    /// First extent, `N`.
    pub fn batch(&self) -> usize {
        self.dims[0]
    }

    /// Second extent, `C`.
    pub fn channels(&self) -> usize {
        self.dims[1]
    }

    /// Extents after `[N, C]`.
    pub fn spatial(&self) -> &[usize] {
        &self.dims[2.min(self.rank())..self.rank()]
    }

    /// Product of all extents.
    pub fn elems(&self) -> usize {
        self.dims().iter().product()
    }

    /// The same shape with other channels.
    pub fn with_channels(&self, channels: usize) -> Self {
        let mut shape = *self;
        shape.dims[1] = channels;
        shape
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.dims().iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a tensor may be cut into regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Form {
    /// Image-like `[N, C, spatial…]`, handled in regions.
    Map,
    /// Small, of any rank, always held whole on the device.
    Flat,
}

/// Type of a tensor: element type, shape, form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ty {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Shape,
    /// Whether it may be cut.
    pub form: Form,
}

impl Ty {
    /// The same tensor with elements of another type.
    pub fn with_dtype(self, dtype: DType) -> Ty {
        Ty { dtype, ..self }
    }

    /// Size of the whole tensor in bytes.
    pub fn bytes(&self) -> u64 {
        self.shape.elems() as u64 * self.dtype.bytes() as u64
    }

    /// Whether this is a [`Form::Map`].
    pub fn is_map(&self) -> bool {
        self.form == Form::Map
    }

    /// Number of axes along which a map may be cut: the batch and the spatial
    /// ones. Zero for a flat tensor.
    pub fn n_axes(&self) -> usize {
        match self.form {
            Form::Map => self.shape.rank() - 1,
            Form::Flat => 0,
        }
    }

    /// Extent of a cuttable axis: 0 is the batch, 1… are spatial.
    pub fn axis_extent(&self, axis: usize) -> usize {
        if axis == 0 {
            self.shape.batch()
        } else {
            self.shape.dim(axis + 1)
        }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}
