//! A network with all that it takes to plan a step of it.

use sstep_autodiff::{NodeId, Tape, backward, backward_scaled};
use sstep_planner::{Budget, Machine, Plan, PlanError, Program, StepSpec, Strategy, plan};

use super::AMPLE;

/// A net with its loss and gradients on one tape.
pub struct Net {
    pub tape: Tape,
    pub loss: NodeId,
    pub spec: StepSpec,
    pub machine: Machine,
}

impl Net {
    /// Appends gradients and asks for all of them.
    pub fn new(tape: Tape, loss: NodeId) -> Net {
        Net::scaled(tape, loss, 1.0)
    }

    /// The same from so many times the loss.
    pub fn scaled(mut tape: Tape, loss: NodeId, scale: f64) -> Net {
        let grads = backward_scaled(&mut tape, loss, scale).expect("differentiable");
        let mut spec = StepSpec {
            outputs: vec![loss],
            ..StepSpec::default()
        };
        spec.outputs.extend(grads.iter().map(|(_, g)| g));
        let machine = Machine::cpu_default();
        Net {
            tape,
            loss,
            spec,
            machine,
        }
    }

    /// Appends gradients and asks for updates of all parameters by a rule with
    /// `state_slots` tensors of state each. The loss comes last.
    pub fn training(mut tape: Tape, state_slots: usize) -> Net {
        let loss = *tape.order().last().expect("a tape with lines");
        let grads = backward(&mut tape, loss).expect("differentiable");
        let updates = grads.iter().collect();
        let spec = StepSpec {
            outputs: vec![loss],
            updates,
            state_slots,
        };
        let machine = Machine::cpu_default();
        Net {
            tape,
            loss,
            spec,
            machine,
        }
    }

    /// A net from the text form without its header. The last line defines the
    /// loss; if that is no single number, the mean squared difference of it and
    /// an input `target` is taken.
    pub fn parse(dtype: &str, text: &str) -> Net {
        let mut tape = Tape::parse(&format!("tape v1 {dtype}\n{text}")).expect(text);
        let mut loss = *tape.order().last().expect("a tape with lines");
        let shape = tape.ty(loss).shape;
        if shape.elems() != 1 || tape.ty(loss).is_map() {
            let target = tape.input("target", shape.dims()).unwrap();
            loss = tape.mse(loss, target).expect(text);
        }
        Net::new(tape, loss)
    }

    /// The same with another node handed back.
    pub fn and(mut self, name: &str) -> Net {
        self.spec.outputs.push(self.tape.by_name(name).expect(name));
        self
    }

    /// The same on a machine whose copies run beside its kernels.
    pub fn with_overlap(mut self) -> Net {
        self.machine.copies_overlap = true;
        self
    }

    /// A net of several stages that, in its plan, fetch maps of `rows` rows from the host
    /// tile by tile, ahead, and store them.
    pub fn ahead(rows: usize) -> (Net, Plan) {
        let text = format!(
            "x = input [1, 2, {rows}, 32]
             w1 = param [6, 2, 3, 3]
             g1 = param [6]
             b1 = param [6]
             w2 = param [6, 6, 3, 3]
             g2 = param [6]
             b2 = param [6]
             c1 = conv(x, w1) pad=1
             m1 = moments(c1) groups=2
             n1 = normalise(c1, m1, g1, b1) groups=2 eps=1e-5
             r1 = relu(n1)
             c2 = conv(r1, w2) pad=1
             m2 = moments(c2) groups=2
             n2 = normalise(c2, m2, g2, b2) groups=2 eps=1e-5
             r2 = relu(n2)
             s = sum_map(r2)"
        );
        let net = Net::parse("f64", &text).with_overlap();
        let budget = Budget {
            device_bytes: 96 << 10,
            host_bytes: AMPLE,
            disk_bytes: 0,
        };
        let plan = net.plan(budget, Strategy::OffloadAll).expect("a plan");
        (net, plan)
    }

    pub fn plan(&self, budget: Budget, strategy: Strategy) -> Result<Plan, PlanError> {
        plan(&self.tape, &self.spec, &self.machine, budget, strategy)
    }

    /// The smallest device cap found, `None` if the host is too small for any.
    pub fn least(&self, host_bytes: u64, strategy: Strategy) -> Option<u64> {
        let beyond = Budget {
            host_bytes,
            ..Budget::default()
        };
        self.least_in(beyond, strategy)
    }

    /// The same with these caps of host and disk.
    pub fn least_in(&self, beyond: Budget, strategy: Strategy) -> Option<u64> {
        let device_bytes = 1;
        match self.plan(
            Budget {
                device_bytes,
                ..beyond
            },
            strategy,
        ) {
            Err(PlanError::Infeasible { smallest_bytes, .. }) => Some(smallest_bytes),
            Err(PlanError::HostTooSmall { .. }) if beyond.host_bytes < AMPLE => None,
            other => panic!("{strategy}: a cap of one byte gave {other:?}"),
        }
    }

    /// A plan under a device cap between the least (`squeeze` 0) and all that can be used
    /// (1), with these caps of host and disk; `None` where the strategy has none.
    pub fn plan_beyond(&self, beyond: Budget, strategy: Strategy, squeeze: f64) -> Option<Plan> {
        let least = self.least_in(beyond, strategy)?;
        let room = self.all_bytes().saturating_sub(least);
        let device_bytes = least + (room as f64 * squeeze) as u64;
        match self.plan(
            Budget {
                device_bytes,
                ..beyond
            },
            strategy,
        ) {
            Ok(plan) => Some(plan),
            Err(PlanError::HostTooSmall { .. }) if beyond.host_bytes < AMPLE => None,
            Err(e) => panic!("{strategy} at {device_bytes}: {e}"),
        }
    }

    /// The program that the reference runs: as on the tape, not rewritten.
    pub fn program(&self) -> Program {
        Program::new(&self.tape, &self.spec).expect("a program")
    }

    /// Bytes of all tensors together: no plan needs more.
    pub fn all_bytes(&self) -> u64 {
        let each = self
            .program()
            .nodes
            .into_iter()
            .map(|n| n.ty.bytes().next_multiple_of(64));
        each.sum::<u64>() * 2
    }
}
