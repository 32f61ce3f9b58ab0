//! What to build, as people write it in a config file or on the command line.
//!
//! Options that a network does not have are refused instead of ignored, so an
//! option either has an effect or an error. That is why they are `Option`s:
//! not given means the network's own default.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sstep_autodiff::DType;

use crate::error::Error;

/// Defines an enum of plain names that reads and prints them.
macro_rules! names {
    ($(#[$doc:meta])* $ty:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $ty {
            $($(#[$vdoc])* #[serde(rename = $name)] $variant),+
        }

        impl $ty {
            /// All of them.
            pub const ALL: &'static [$ty] = &[$($ty::$variant),+];

            /// The name, as the command line takes it.
            pub fn name(self) -> &'static str {
                match self {
                    $($ty::$variant => $name),+
                }
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $ty {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or_else(|| {
                    let known: Vec<&str> = Self::ALL.iter().map(|v| v.name()).collect();
                    format!("`{text}` is not known; there are {}", known.join(", "))
                })
            }
        }
    };
}

names! {
    /// How a network normalises.
    Norm {
        /// Group norm, statistics over the whole image: exact, however it is tiled.
        Group = "group",
        /// Batch norm with given running statistics, as in fine-tuning.
        FrozenBatch = "frozen-batch",
        /// Not at all; convolutions get biases.
        None = "none",
    }
}

names! {
    /// How a classifier turns the last feature map into one vector.
    Head {
        /// Mean over space.
        Mean = "mean",
        /// Maximum over space.
        Max = "max",
        /// Gated attention pooling (Ilse et al., arXiv:1802.04712).
        Attention = "attention",
    }
}

names! {
    /// What a segmentation network minimises.
    Loss {
        /// Per-pixel cross-entropy; labels `[N, 1, spatial…]` hold class indices.
        CrossEntropy = "cross-entropy",
        /// Soft Dice plus cross-entropy; labels `[N, classes, spatial…]` are one-hot.
        DiceCrossEntropy = "dice-cross-entropy",
    }
}

names! {
    /// How a U-Net returns to the size it came from.
    Upsample {
        /// Transposed convolution 2×2, stride 2.
        Transposed = "transposed",
        /// Linear interpolation, then a 1×1 convolution.
        Linear = "linear",
    }
}

/// A network without its image size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// One of [`crate::nn::MODELS`].
    pub name: String,
    /// Channels of the image.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Number of classes.
    #[serde(default = "two")]
    pub classes: usize,
    /// Channels of the first layer; the others follow in proportion. Default:
    /// 64, of a 3-D U-Net 32, of the StreamingCNN net 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Norm. Default: frozen batch norm for ResNets, group norm for U-Nets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<Norm>,
    /// Groups of group norm; 8 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// Pooling of a classifier; mean by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// How many times a U-Net halves the image; 4 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<usize>,
    /// How a U-Net doubles it again; transposed convolution by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upsample: Option<Upsample>,
    /// Loss of a U-Net; cross-entropy by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// Element type; `F32` by default, `F64` for checking.
    #[serde(default = "f32_dtype")]
    pub dtype: DType,
}

fn two() -> usize {
    2
}

fn three() -> usize {
    3
}

fn f32_dtype() -> DType {
    DType::F32
}

impl ModelSpec {
    /// A network with the defaults of its name.
    pub fn new(name: &str) -> Self {
        ModelSpec {
            name: name.to_owned(),
            in_channels: 3,
            classes: 2,
            width: None,
            norm: None,
            groups: None,
            head: None,
            levels: None,
            upsample: None,
            loss: None,
            dtype: DType::F32,
        }
    }

    /// An error about this network.
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Model {
            model: self.name.clone(),
            reason: reason.into(),
        }
    }

    /// Refuses what is given of the named options, and numbers out of range.
    pub(super) fn check(&self, without: &[&str]) -> Result<(), Error> {
        let given = [
            ("width", self.width.is_some()),
            ("norm", self.norm.is_some()),
            ("groups", self.groups.is_some()),
            ("head", self.head.is_some()),
            ("levels", self.levels.is_some()),
            ("upsample", self.upsample.is_some()),
            ("loss", self.loss.is_some()),
        ];
        if let Some((name, _)) = given
            .iter()
            .find(|(name, set)| *set && without.contains(name))
        {
            return Err(self.error(format!("it has no option `{name}`")));
        }
        let counts = [
            ("in_channels", Some(self.in_channels)),
            ("classes", Some(self.classes)),
            ("width", self.width),
            ("groups", self.groups),
        ];
        for (name, value) in counts {
            if let Some(value) = value.filter(|v| !(1..=1 << 16).contains(v)) {
                return Err(self.error(format!("{name} = {value}; it goes from 1 to 65536")));
            }
        }
        if let Some(levels) = self.levels.filter(|l| !(1..=8).contains(l)) {
            return Err(self.error(format!("levels = {levels}; it goes from 1 to 8")));
        }
        Ok(())
    }

    /// Refuses an image with other than `wanted` extents, or an empty one.
    pub(super) fn check_size(
        &self,
        wanted: std::ops::RangeInclusive<usize>,
        batch: usize,
        size: &[usize],
    ) -> Result<(), Error> {
        if !wanted.contains(&size.len()) {
            let (lo, hi) = (wanted.start(), wanted.end());
            let wanted = if lo == hi {
                lo.to_string()
            } else {
                format!("{lo} to {hi}")
            };
            let found = size.len();
            return Err(self.error(format!("it takes images of {wanted} axes, not {found}")));
        }
        if batch == 0 || size.contains(&0) {
            return Err(self.error(format!("a batch of {batch} images of {size:?} is empty")));
        }
        Ok(())
    }
}
