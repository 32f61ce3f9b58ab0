//! Equal bodies are costed once.
//!
//! Networks repeat blocks, equal programs differ in a few nodes, and strategies
//! ask for the same intervals: what a body costs on every grid depends on what
//! its items do and how they read each other, not on which nodes they are. So
//! costs are kept under that description, exact and without hashes that could
//! collide, for all programs of one tape on one machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::candidates::{Candidate, Touch};
use crate::grids::Grids;
use crate::program::{NodeIx, Program};
use crate::stage::{Body, Item};

/// What a body is, up to the names of its nodes.
type Shape = (Grids, Vec<u32>);

/// What equal bodies cost.
struct Known {
    /// Nodes of the body that was costed.
    nodes: Vec<NodeIx>,
    candidates: Vec<Candidate>,
}

/// Costs of all bodies seen so far.
#[derive(Default)]
pub struct Memo {
    /// Numbers of what nodes do: op, types of inputs and result.
    kinds: Mutex<HashMap<String, u32>>,
    known: Mutex<HashMap<Shape, Arc<Known>>>,
}

/// Numbers of what each node of a program does.
pub struct Kinds(Vec<u32>);

impl Memo {
    /// What the nodes of a program do.
    pub fn kinds(&self, program: &Program) -> Kinds {
        let mut kinds = locked(&self.kinds);
        let of = |n: NodeIx| {
            let node = program.node(n);
            let text = format!("{:?} {:?} {:?}", node.op, node.ty, program.input_tys(n));
            let next = kinds.len() as u32;
            *kinds.entry(text).or_insert(next)
        };
        Kinds(program.indices().map(of).collect())
    }

    /// The candidates of `shell` whose body is `body`: what `cost` makes of it, or
    /// what it made of an equal one.
    pub fn candidates(
        &self,
        (kinds, body, grids): (&Kinds, &Body, Grids),
        shell: &Candidate,
        cost: impl FnOnce() -> Vec<Candidate>,
    ) -> Vec<Candidate> {
        let shape = (grids, shape(kinds, body));
        let known = locked(&self.known).get(&shape).map(Arc::clone);
        if let Some(known) = known {
            let renamed = |t: &Touch| Touch {
                node: (known.nodes.binary_search(&t.node)).map_or(t.node, |at| body.items[at].node),
                ..*t
            };
            return (known.candidates.iter())
                .map(|c| Candidate {
                    grid: c.grid.clone(),
                    secs: c.secs,
                    scratch_bytes: c.scratch_bytes,
                    touches: c.touches.iter().map(renamed).collect(),
                    ..shell.clone()
                })
                .collect();
        }
        let candidates = cost();
        let known = Known {
            nodes: body.items.iter().map(|i| i.node).collect(),
            candidates: candidates.clone(),
        };
        locked(&self.known).insert(shape, Arc::new(known));
        candidates
    }
}

/// Items, and who reads them, as numbers.
fn shape(kinds: &Kinds, body: &Body) -> Vec<u32> {
    let mut shape = Vec::with_capacity(8 * body.items.len());
    for item in &body.items {
        let Item {
            node,
            role,
            target,
            readers,
            domain,
        } = item;
        let (at, eager) = domain.map_or((u32::MAX, false), |(at, eager)| (at as u32, eager));
        let flags = *role as u32 * 4 + u32::from(*target) * 2 + u32::from(eager);
        shape.extend([kinds.0[node.ix()], flags, at, readers.len() as u32]);
        for edge in readers {
            shape.extend([edge.reader as u32, edge.input as u32]);
        }
    }
    shape
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use sstep_autodiff::Tape;

    use super::*;
    use crate::candidates::candidates;
    use crate::machine::Machine;
    use crate::program::StepSpec;
    use crate::segment::{Fineness, segment, storable};
    use crate::strategy::Strategy;

    /// The candidates of a chain of convolutions, with a memo.
    fn chain(text: &str, memo: &Memo) -> Vec<Candidate> {
        let tape = Tape::parse(text).expect("a tape");
        let spec = StepSpec {
            outputs: vec![*tape.order().last().expect("a node")],
            ..StepSpec::default()
        };
        let program = Program::new(&tape, &spec).expect("a program");
        let strategy = Strategy::Optimal;
        let storable = storable(&program, strategy, Fineness::Fine);
        let segments = segment(&program, &storable, Fineness::Fine);
        let machine = Machine::cpu_default();
        candidates(
            (&program, &machine, memo),
            strategy,
            &segments,
            &storable,
            Grids::Ladder,
        )
    }

    #[test]
    fn what_is_remembered_is_what_would_be_costed() {
        let net = "tape v1 f32\nx = input [1, 8, 200, 200]\nw = param [8, 8, 3, 3]\n\
                   a = conv(x, w) pad=1\nb = conv(a, w) pad=1\nc = conv(b, w) pad=1\n\
                   d = conv(c, w) pad=1";
        let other = net.replace("a = conv(x", "z = relu(x)\na = conv(z");
        let memo = Memo::default();
        let said = |c: &[Candidate]| format!("{c:?}");
        let first = said(&chain(net, &memo));
        let costed = locked(&memo.known).len();
        assert_eq!(said(&chain(net, &memo)), first);
        assert_eq!(locked(&memo.known).len(), costed);
        // Another net's nodes have other numbers, and some of its bodies are new.
        let alone = said(&chain(&other, &Memo::default()));
        assert_eq!(said(&chain(&other, &memo)), alone);
        let both = locked(&memo.known).len();
        assert!(costed < both && both < 2 * costed, "{costed} {both}");
    }
}
