//! What each rewrite rule is worth, on a small training step that contains its pattern.
//!
//! A rule is forced wherever it applies, whether that pays or not; then all rules
//! together are chosen from at the price of host memory, as a plan does.

use sstep::{Machine, Program, StepSpec, Tape, backward};
use sstep_planner::Kernel;
use sstep_planner::rewrite::{RULES, apply, rewrite};
use sstep_planner::segment::forward_nodes;

use crate::Outcome;
use crate::table::{Cell, Table};

/// Nets by rule: after a line `# name`, a tape without its header.
const NETS: &str = include_str!("rewrites.txt");

/// Shows what each rewrite rule saves on a step that contains its pattern.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only rules whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What a program costs.
struct Worth {
    nodes: usize,
    gflop: f64,
    /// All maps that are made.
    map_mib: f64,
    /// Maps of the forward half that the backward half reads.
    kept_mib: f64,
    millis: f64,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    let machine = Machine::default();
    let mut table = Table::new(&[
        "rule", "program", "nodes", "gflop", "maps MiB", "kept MiB", "millis",
    ]);
    let mut row = |rule: &str, program: &str, w: &Worth| {
        table.row(vec![
            rule.into(),
            program.into(),
            w.nodes.into(),
            Cell::number(w.gflop, 3),
            Cell::number(w.map_mib, 1),
            Cell::number(w.kept_mib, 1),
            Cell::number(w.millis, 2),
        ]);
    };
    for (rule, _) in RULES {
        if args
            .only
            .as_ref()
            .is_some_and(|t| !rule.contains(t.as_str()))
        {
            continue;
        }
        let before = step(rule)?;
        let forced = apply(&before, rule)?.ok_or_else(|| format!("`{rule}` does not apply"))?;
        let (chosen, _) = rewrite(&before, &machine)?;
        row(rule, "as written", &worth(&before, &machine));
        row("", "this rule", &worth(&forced, &machine));
        row("", "all rules", &worth(&chosen, &machine));
    }
    table.print(args.json);
    Ok(())
}

/// The training step of a rule's net.
fn step(rule: &str) -> Result<Program, Box<dyn std::error::Error>> {
    let mut sections = NETS.split("# ").filter_map(|s| s.split_once('\n'));
    let (_, text) = (sections.find(|(name, _)| *name == rule))
        .ok_or_else(|| format!("the rule `{rule}` has no net in rewrites.txt"))?;
    let mut tape = Tape::parse(&format!("tape v1 f32\n{text}"))?;
    let last = *tape.order().last().ok_or("an empty net")?;
    // Where gradients cannot follow, the net is a part of a backward pass itself.
    let shape = tape.ty(last).shape;
    let mut joint = tape.clone();
    let target = joint.input("target", shape.dims())?;
    let loss = joint.mse(last, target)?;
    let outputs = match backward(&mut joint, loss) {
        Ok(gradients) => {
            let outputs = std::iter::once(loss).chain(gradients.iter().map(|(_, g)| g));
            let outputs = outputs.collect();
            tape = joint;
            outputs
        }
        Err(_) => vec![last],
    };
    Ok(Program::new(
        &tape,
        &StepSpec {
            outputs,
            ..StepSpec::default()
        },
    )?)
}

fn worth(program: &Program, machine: &Machine) -> Worth {
    let forward = forward_nodes(program);
    let mut w = Worth {
        nodes: program.nodes.len(),
        gflop: 0.0,
        map_mib: 0.0,
        kept_mib: 0.0,
        millis: 0.0,
    };
    for n in program.indices() {
        let node = program.node(n);
        if node.op.is_leaf() {
            continue;
        }
        let inputs = program.input_tys(n);
        let kernel = Kernel {
            op: &node.op,
            inputs: &inputs,
            out: &node.ty,
        };
        let points = kernel.whole_points();
        w.gflop += kernel.flops(points) / 1e9;
        w.millis += machine.kernel_secs(&kernel, points, points.div_ceil(1 << 15)) * 1e3;
        if node.ty.is_map() {
            let mib = node.ty.bytes() as f64 / f64::from(1 << 20);
            w.map_mib += mib;
            let crosses = program.consumers(n).iter().any(|c| !forward[c.ix()]);
            if forward[n.ix()] && crosses {
                w.kept_mib += mib;
            }
        }
    }
    w
}
