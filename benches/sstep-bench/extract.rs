//! Extracts the cheapest program from e-graphs that somebody else grew, in the
//! JSON of egraph-serialize.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use sstep_planner::rewrite::extract::{ClassIx, Extraction, Form, extract};

use crate::Outcome;
use crate::table::{Cell, Table};

/// Extract the cheapest acyclic program from an e-graph; shared nodes cost once.
///
/// The file is JSON as egraph-serialize writes it: `nodes` by id, each with its
/// `eclass`, `cost` and `children`, and `root_eclasses`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Instances.
    #[arg(required = true, value_name = "FILE.json")]
    files: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The file.
#[derive(Debug, Deserialize)]
struct Graph {
    nodes: BTreeMap<String, Node>,
    root_eclasses: Vec<String>,
}

/// A node of it.
#[derive(Debug, Deserialize)]
struct Node {
    eclass: String,
    #[serde(default)]
    children: Vec<String>,
    #[serde(default = "one")]
    cost: f64,
}

/// Cost of a node that states none.
fn one() -> f64 {
    1.0
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    let columns = [
        "file", "classes", "nodes", "cost", "bound", "optimal", "secs",
    ];
    let mut table = Table::new(&columns);
    for path in &args.files {
        let at = |reason: String| format!("{}: {reason}", path.display());
        let problem = read(path).map_err(at)?;
        let begin = Instant::now();
        let found = extract(&problem)?;
        let secs = begin.elapsed().as_secs_f64();
        let found = found.ok_or_else(|| at("a root has no acyclic form".to_owned()))?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        table.row(vec![
            name.to_string_lossy().into_owned().into(),
            problem.classes.len().into(),
            problem.classes.iter().map(Vec::len).sum::<usize>().into(),
            Cell::number(found.cost, 12),
            Cell::number(found.bound, 12),
            // The solver works in doubles, so its bound is one to a few digits less.
            (found.cost - found.bound <= 1e-9 * found.cost.abs().max(1.0)).into(),
            Cell::number(secs, 3),
        ]);
    }
    table.print(args.json);
    Ok(())
}

/// Reads an instance; the error says what is wrong with it.
fn read(path: &Path) -> Result<Extraction, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let graph: Graph = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let mut place: BTreeMap<&str, ClassIx> = BTreeMap::new();
    for node in graph.nodes.values() {
        let next = ClassIx(place.len() as u32);
        place.entry(&node.eclass).or_insert(next);
    }
    let mut classes = vec![Vec::new(); place.len()];
    for (id, node) in &graph.nodes {
        if !(node.cost >= 0.0 && node.cost.is_finite()) {
            let cost = node.cost;
            return Err(format!(
                "node {id} costs {cost}; costs are finite and at least 0"
            ));
        }
        let class_of = |child: &String| match graph.nodes.get(child) {
            Some(child) => Ok(place[child.eclass.as_str()]),
            None => Err(format!("node {id} reads {child}, which is no node")),
        };
        classes[place[node.eclass.as_str()].ix()].push(Form {
            cost: node.cost,
            reads: node
                .children
                .iter()
                .map(class_of)
                .collect::<Result<_, _>>()?,
        });
    }
    let root = |name: &String| {
        let class = place.get(name.as_str()).copied();
        class.ok_or_else(|| format!("root {name} is no class of any node"))
    };
    let roots = graph
        .root_eclasses
        .iter()
        .map(root)
        .collect::<Result<_, _>>()?;
    Ok(Extraction { classes, roots })
}
