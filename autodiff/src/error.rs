//! What can be wrong with a tape, with the values that explain it.

use crate::op::Op;
use crate::ty::Ty;

/// Why an op refuses its inputs, as a sentence; [`TapeError::Shape`] adds where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeReason(pub String);

impl ShapeReason {
    /// The reason at a node.
    pub(crate) fn at(self, node: &str, op: &Op, inputs: &[Ty]) -> TapeError {
        let inputs: Vec<String> = inputs.iter().map(Ty::to_string).collect();
        TapeError::Shape {
            node: node.to_owned(),
            op: op.name().to_owned(),
            inputs: inputs.join(", "),
            reason: self.0,
        }
    }
}

/// A tape that cannot be built, differentiated or parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TapeError {
    /// An op does not accept its inputs.
    #[error("node `{node}` = {op}({inputs}): {reason}")]
    Shape {
        /// Name of the node.
        node: String,
        /// The op.
        op: String,
        /// Types of its inputs.
        inputs: String,
        /// What is wrong and what would do.
        reason: String,
    },
    /// Two nodes of one name.
    #[error("the name `{name}` is already taken on this tape; names are unique")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A name the text form could not hold.
    #[error("`{name}` is not a name: use letters, digits, `.`, `_`, `-` and `/`")]
    BadName {
        /// The name.
        name: String,
    },
    /// A gradient of something that is not one number.
    #[error("node `{node}` of shape {shape} is no loss: a loss has shape [1]")]
    NotALoss {
        /// Name of the node.
        node: String,
        /// Its shape.
        shape: String,
    },
    /// An op whose gradient is asked for but not defined.
    #[error("node `{node}`: no gradient is defined through {op} to its input {input}")]
    NoGradient {
        /// Name of the node.
        node: String,
        /// The op.
        op: String,
        /// Which input.
        input: usize,
    },
    /// A tape whose maps cannot be stored as asked.
    #[error("{reason}")]
    Precision {
        /// What is wrong and what would do.
        reason: String,
    },
    /// A line of the text form that says nothing known.
    #[error("line {line}: {reason}")]
    Parse {
        /// Line number, from 1.
        line: usize,
        /// What is wrong and what would do.
        reason: String,
    },
}
