//! The oracle: the program node by node, every map whole, no plan.
//!
//! It shares nothing with tiling, placement or the arena, and asks the kernels
//! for their straightforward loops. Tests hold every plan against it. Narrow tensors are
//! held as `f32`, rounded to what their type can hold.

use std::collections::BTreeMap;

use sstep_autodiff::Ty;
use sstep_kernels::{Box4, In, Job, Layout, Out, Real, cpu};
use sstep_planner::{NodeIx, Program};

use crate::error::ExecError;
use crate::tensor::Tensor;

/// Runs `program` untiled. `leaves` holds every input and parameter by name.
/// Returns the program's outputs and the gradients of its updates, by name.
///
/// # Errors
/// [`ExecError::MissingFeed`] or [`ExecError::Shape`] if a leaf does not fit.
pub fn reference<T: Real>(
    program: &Program,
    leaves: &BTreeMap<String, Tensor<T>>,
    step: u64,
    seed: u64,
) -> Result<BTreeMap<String, Tensor<T>>, ExecError> {
    let mut values: Vec<Option<Vec<T>>> = vec![None; program.nodes.len()];
    // Every tensor is held as what is computed with.
    let held = |ty: &Ty| Layout::whole(&ty.with_dtype(T::DTYPE));
    let kept =
        |n: NodeIx| program.outputs.contains(&n) || program.updates.iter().any(|u| u.grad == n);
    for n in program.indices() {
        let node = program.node(n);
        let leaf = matches!(
            node.op,
            sstep_autodiff::Op::Input { .. } | sstep_autodiff::Op::Param { .. }
        );
        let value = if leaf {
            let given = leaves
                .get(&node.name)
                .ok_or_else(|| ExecError::MissingFeed {
                    name: node.name.clone(),
                    shape: node.ty.shape,
                })?;
            if given.shape != node.ty.shape {
                return Err(ExecError::Shape {
                    name: node.name.clone(),
                    expected: node.ty.shape,
                    found: given.shape.to_string(),
                });
            }
            given.data.clone()
        } else {
            let mut out = vec![T::ZERO; node.ty.shape.elems()];
            let inputs: Vec<In<'_, T>> = (node.inputs.iter())
                .map(|i| {
                    let data = values[i.ix()].as_deref().expect("inputs come first");
                    In::new(held(&program.node(*i).ty), data)
                })
                .collect();
            let region = sstep_autodiff::Region::whole(&node.ty);
            let job = Job {
                op: &node.op,
                region: Box4::lift(&region),
                inputs: &inputs,
                step,
                seed,
                plain: true,
            };
            cpu::run(&job, &mut Out::new(held(&node.ty), &mut out), &mut []);
            if node.ty.dtype.is_narrow() {
                cpu::round_to(node.ty.dtype, bytemuck::cast_slice_mut(&mut out));
            }
            out
        };
        values[n.ix()] = Some(value);
        for i in &node.inputs {
            if program.consumers(*i).last() == Some(&n) && !kept(*i) {
                values[i.ix()] = None;
            }
        }
    }
    let wanted = program
        .outputs
        .iter()
        .chain(program.updates.iter().map(|u| &u.grad));
    Ok(wanted
        .filter_map(|n| {
            let node = program.node(*n);
            let data = values[n.ix()].clone()?;
            Some((node.name.clone(), Tensor::new(node.ty.shape, data)))
        })
        .collect())
}
