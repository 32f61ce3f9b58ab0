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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Strategy {
    /// Tiling, recomputation and offload chosen together.
    #[default]
    Optimal,
    /// Every map whole on the device until its last use: what a framework does.
    StoreAll,
    /// Nothing but sources and flat results is kept; everything is recomputed
    /// where it is needed.
    RecomputeAll,
    /// Every expensive map goes to the host and comes back (vDNN,
    /// arXiv:1602.08124), tile by tile.
    OffloadAll,
    /// One fixed overlapped tile size for all stages, halos recomputed
    /// (StreamingCNN, arXiv:1911.04432), extended to norms over the image.
    Streaming,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 5] = [
        Strategy::Optimal,
        Strategy::StoreAll,
        Strategy::RecomputeAll,
        Strategy::OffloadAll,
        Strategy::Streaming,
    ];

    /// Its name, as the command line takes it.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Optimal => "optimal",
            Strategy::StoreAll => "store-all",
            Strategy::RecomputeAll => "recompute-all",
            Strategy::OffloadAll => "offload-all",
            Strategy::Streaming => "streaming",
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
