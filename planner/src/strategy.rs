//! How to plan: one pipeline, different restrictions.
//!
//! A strategy says which maps may be stored, what a stage may recompute, how it
//! may be cut and where stored maps may live. `Optimal` restricts nothing; the
//! others are what people do today, so that a comparison compares like with
//! like.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::PlanError;

/// How to plan.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Strategy {
    /// Tiling, recomputation and offload chosen together.
    #[default]
    Optimal,
    /// Every map whole on the device until its last use: what a framework does.
    StoreAll,
    /// About √n maps of the forward pass are kept, whole on the device; between
    /// them the backward pass computes anew (Chen et al., arXiv:1604.06174).
    Checkpoint,
    /// Nothing but sources and flat results is kept; everything is recomputed
    /// where it is needed.
    RecomputeAll,
    /// Every expensive map goes to the host and comes back (vDNN,
    /// arXiv:1602.08124), tile by tile.
    OffloadAll,
    /// Whole maps, one op after the other; where the device is full the map used
    /// longest ago goes to the host, as unified memory would page it out, but a
    /// map at a time.
    Paging,
    /// One fixed overlapped tile size for all stages, halos recomputed
    /// (StreamingCNN, arXiv:1911.04432), extended to norms over the image.
    Streaming,
    /// One fixed overlapped tile size, and nothing of a tile's forward pass kept
    /// for its backward pass: checkpointed tiles in a framework.
    TileCheckpoint,
    /// Which whole maps to keep on the device and which to compute again, by
    /// optimisation: no tiles, no host (Checkmate, arXiv:1910.02653).
    RematIlp,
    /// The same with the host: no tiles (POET, arXiv:2207.07697).
    RematPageIlp,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 10] = [
        Strategy::Optimal,
        Strategy::StoreAll,
        Strategy::Checkpoint,
        Strategy::RecomputeAll,
        Strategy::OffloadAll,
        Strategy::Paging,
        Strategy::Streaming,
        Strategy::TileCheckpoint,
        Strategy::RematIlp,
        Strategy::RematPageIlp,
    ];

    /// Its name, as the command line takes it.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Optimal => "optimal",
            Strategy::StoreAll => "store-all",
            Strategy::Checkpoint => "checkpoint",
            Strategy::RecomputeAll => "recompute-all",
            Strategy::OffloadAll => "offload-all",
            Strategy::Paging => "paging",
            Strategy::Streaming => "streaming",
            Strategy::TileCheckpoint => "tile-checkpoint",
            Strategy::RematIlp => "remat-ilp",
            Strategy::RematPageIlp => "remat-page-ilp",
        }
    }

    /// Whether stored maps may live on the device.
    pub fn may_keep_on_device(self) -> bool {
        !matches!(self, Strategy::OffloadAll)
    }

    /// Whether stored maps may live on the host or on disk.
    pub fn may_offload(self) -> bool {
        match self {
            Strategy::Optimal
            | Strategy::RecomputeAll
            | Strategy::OffloadAll
            | Strategy::Paging
            | Strategy::Streaming
            | Strategy::TileCheckpoint
            | Strategy::RematPageIlp => true,
            Strategy::StoreAll | Strategy::Checkpoint | Strategy::RematIlp => false,
        }
    }

    /// Whether maps may be cut into tiles.
    pub fn may_tile(self) -> bool {
        match self {
            Strategy::Optimal
            | Strategy::RecomputeAll
            | Strategy::OffloadAll
            | Strategy::Streaming
            | Strategy::TileCheckpoint => true,
            Strategy::StoreAll
            | Strategy::Checkpoint
            | Strategy::Paging
            | Strategy::RematIlp
            | Strategy::RematPageIlp => false,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Strategy {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        Strategy::ALL
            .into_iter()
            .find(|s| s.name() == text)
            .ok_or_else(|| PlanError::UnknownStrategy {
                name: text.to_owned(),
                known: Strategy::ALL.map(Strategy::name).join(", "),
            })
    }
}
