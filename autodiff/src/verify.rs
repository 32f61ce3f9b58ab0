//! Checks a finished tape again, from its nodes alone.

use std::collections::HashSet;

use crate::error::TapeError;
use crate::ops;
use crate::tape::{NodeId, Tape};
use crate::ty::Ty;

impl Tape {
    /// Infers every type again and checks that each node follows its inputs.
    /// [`Tape::push`] has done so already: this is for tests, and for passes
    /// that build tapes of their own.
    ///
    /// # Errors
    /// [`TapeError::Shape`] at the first node whose type or order is wrong.
    pub fn check(&self) -> Result<(), TapeError> {
        let mut seen: HashSet<NodeId> = HashSet::new();
        for &id in self.order() {
            let node = self.node(id);
            let tys: Vec<Ty> = self.input_tys(id);
            let checked = if node.op.is_leaf() {
                ops::check_leaf(&node.op, &node.ty, self.dtype())
            } else {
                ops::check_node(self, id, &seen)
            };
            checked.map_err(|reason| reason.at(&node.name, &node.op, &tys))?;
            seen.insert(id);
        }
        Ok(())
    }
}
