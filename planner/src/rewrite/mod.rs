//! placeholder
use crate::error::PlanError;
use crate::program::Program;
/// Rewrites.
pub fn rewrite(program: &Program) -> Result<Program, PlanError> { Ok(program.clone()) }
