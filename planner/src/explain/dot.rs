//! The plan as a graph: stages, and the stored maps that pass between them.
//!
//! Solid edges are maps that stay on the device, dashed ones go through host
//! memory, bold dashed ones through the disk, dotted ones are read from images. `dot -Tsvg` draws it.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::budget::ByteSize;
use crate::plan::Plan;

/// Names listed before the rest is only counted.
const SHOWN: usize = 4;

impl Plan {
    /// The plan in graphviz's language.
    pub fn dot(&self) -> String {
        let picture = self.picture();
        let mut out = String::from(
            "digraph plan {\n  rankdir=TB;\n  node [shape=box, style=rounded, fontname=Helvetica];\n  \
             edge [fontname=Helvetica, fontsize=10];\n",
        );
        for s in self.explained().stages {
            let mut lines = vec![format!("stage {}: {}", s.index, brief(&s.makes))];
            if !s.grid.is_empty() {
                lines.push(format!("{} ({} tiles)", s.grid.join(", "), s.n_tiles));
            }
            let peak = ByteSize(s.cost.high_water_bytes);
            lines.push(format!("{:.3} s, arena up to {peak}", s.cost.secs));
            if self.stages[s.index].overlaps() {
                lines.push(format!("bound by {}", s.cost.bound_by()));
            }
            let lines: Vec<String> = lines.iter().map(|l| quote(l)).collect();
            let _ = writeln!(out, "  s{} [label=\"{}\"];", s.index, lines.join("\\n"));
        }
        let images: BTreeSet<&str> = (picture.links.iter())
            .filter(|l| l.from.is_none())
            .map(|l| l.name.as_str())
            .collect();
        for name in &images {
            let name = quote(name);
            let _ = writeln!(
                out,
                "  \"image {name}\" [shape=cylinder, label=\"{name}\"];"
            );
        }
        for l in &picture.links {
            let name = quote(&l.name);
            let from = l
                .from
                .map_or_else(|| format!("\"image {name}\""), |s| format!("s{s}"));
            let style = match l.place {
                "device" => "solid",
                "host" => "dashed",
                "disk" => "\"dashed,bold\"",
                _ => "dotted",
            };
            let size = ByteSize(l.bytes);
            let label = format!("{name}, {size}");
            let _ = writeln!(
                out,
                "  {from} -> s{} [label=\"{label}\", style={style}];",
                l.to
            );
        }
        out.push_str("}\n");
        out
    }
}

/// The first few names, and how many more there are.
pub(super) fn brief(names: &[String]) -> String {
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Text inside a quoted string.
fn quote(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
