//! The plan as one page: memory against the cap, transfers, other strategies and
//! caps, and every stage with its reasons.
//!
//! The page is complete in itself: drawings are inline SVG, styles and the script
//! that shows what the pointer is on are inline too, nothing is fetched. It is
//! well-formed XML, so that a parser can check it against the plan. Sizes stand in
//! the drawings as bytes (`data-bytes`), so nothing is lost to rounding. Of the
//! buffers only the largest few thousand are drawn; the page says what is left out.

use std::fmt::Write;

use super::drawing::{Axis, LEFT, WIDE, curve};
use super::picture::{BufferSpan, Picture};
use super::purpose;
use crate::budget::ByteSize;
use crate::plan::{Plan, Purpose, Stage};

/// Another strategy at the same caps.
#[derive(Clone, Debug, PartialEq)]
pub struct StrategyLine {
    /// Its name.
    pub name: String,
    /// Its plan's promises, or why it has none.
    pub outcome: Result<crate::plan::Predicted, String>,
}

/// The same strategy at another device cap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CapPoint {
    /// The device cap in bytes.
    pub device_bytes: u64,
    /// Predicted seconds; `None` if no plan fits.
    pub secs: Option<f64>,
}

/// What else could have been: left empty, the page leaves the sections out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// All strategies at this budget.
    pub strategies: Vec<StrategyLine>,
    /// This strategy at other device caps, ascending.
    pub caps: Vec<CapPoint>,
}

/// Buffers drawn at most.
const DRAWN: usize = 3000;
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

impl Plan {
    /// The plan as a page. `subject` is its title.
    pub fn html(&self, subject: &str, comparison: &Comparison) -> String {
        let picture = self.picture();
        let axis = Axis::new(&picture);
        let subject = escape(subject);
        let mut out = format!(
            "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\"><head>\
             <meta charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width\"/>\
             <title>sstep plan: {subject}</title><style>{STYLE}</style></head><body>\n\
             <h1>{subject}</h1>\n"
        );
        self.cards(&mut out);
        self.memory(&mut out, &picture, &axis);
        self.transfers(&mut out, &axis);
        self.compared(&mut out, comparison);
        self.table(&mut out);
        let _ = writeln!(
            out,
            "<div id=\"tip\"></div><script>{SCRIPT}</script></body></html>"
        );
        out
    }

    fn cards(&self, out: &mut String) {
        let p = &self.predicted;
        let size = |b: u64| ByteSize(b).to_string();
        let share = 100.0 * p.peak_bytes as f64 / self.budget.device_bytes.max(1) as f64;
        let mut cards = vec![
            (
                "Device memory",
                size(p.peak_bytes),
                format!(
                    "{share:.0} % of the {} allowed",
                    size(self.budget.device_bytes)
                ),
            ),
            (
                "Untiled",
                size(p.untiled_bytes),
                "what the same step takes with every map whole".to_owned(),
            ),
            (
                "Time",
                secs(p.secs),
                format!("predicted for {}", self.machine),
            ),
            (
                "Work",
                format!("{:.2} ×", p.flops / p.flops_once.max(1.0)),
                format!("of computing all once: {:.3} TFLOP", p.flops / 1e12),
            ),
            (
                "Host memory",
                size(p.host_peak_bytes),
                format!(
                    "of {} allowed; {} out, {} back",
                    size(self.budget.host_bytes),
                    size(p.d2h_bytes),
                    size(p.h2d_bytes)
                ),
            ),
            (
                "Gap",
                format!("{:.1} %", 100.0 * self.gap),
                format!("to the best of the model; strategy {}", self.strategy),
            ),
        ];
        if self.budget.disk_bytes > 0 {
            let disk = format!(
                "of {} allowed; {} written, {} read",
                size(self.budget.disk_bytes),
                size(p.disk_write_bytes),
                size(p.disk_read_bytes)
            );
            cards.insert(5, ("Disk", size(p.disk_peak_bytes), disk));
        }
        out.push_str("<div class=\"cards\">");
        for (head, value, note) in cards {
            let note = escape(&note);
            let _ = write!(
                out,
                "<div class=\"card\"><b>{head}</b><span class=\"big\">{value}</span><small>{note}</small></div>"
            );
        }
        out.push_str("</div>\n");
    }

    /// The arena: each buffer where it lies, while it is needed.
    fn memory(&self, out: &mut String, picture: &Picture, axis: &Axis) {
        const HIGH: f64 = 380.0;
        const TOP: f64 = 22.0;
        let most = self.budget.device_bytes.max(self.predicted.peak_bytes);
        let scale = (HIGH - TOP) / most.max(1) as f64;
        let y = |bytes: u64| HIGH - bytes as f64 * scale;
        let mut drawn: Vec<&BufferSpan> = picture.buffers.iter().collect();
        let area =
            |b: &&BufferSpan| (axis.tick(b.ticks.1 + 1) - axis.tick(b.ticks.0)) * b.bytes as f64;
        drawn.sort_by(|a, b| area(b).total_cmp(&area(a)));
        let left_out = drawn.split_off(drawn.len().min(DRAWN));
        out.push_str(
            "<h2>Memory over the step</h2><p>Time runs to the right, stage by stage. Each box is \
             a buffer of the arena: as long as it is needed, as high as it is large, at the \
             offset where it lies. The arena never grows past the cap.</p><p class=\"legend\">",
        );
        for kind in PURPOSES {
            if drawn.iter().any(|b| b.purpose == kind) {
                let _ = write!(
                    out,
                    "<span><i class=\"{}\"></i>{}</span> ",
                    class(kind),
                    purpose(kind)
                );
            }
        }
        let _ = write!(
            out,
            "</p><svg viewBox=\"0 0 {WIDE} {}\" role=\"img\">",
            HIGH + 24.0
        );
        for part in 0..=4 {
            let bytes = most / 4 * part;
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDE}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>\
                 <text x=\"{1}\" y=\"{2:.1}\" class=\"end\">{3}</text>",
                y(bytes),
                LEFT - 6.0,
                y(bytes) + 4.0,
                ByteSize(bytes)
            );
        }
        for b in &drawn {
            let (from, to) = (axis.tick(b.ticks.0), axis.tick(b.ticks.1 + 1));
            let _ = write!(
                out,
                "<rect class=\"buffer {}\" x=\"{from:.1}\" y=\"{:.2}\" width=\"{:.1}\" height=\"{:.2}\" \
                 data-name=\"{}\" data-what=\"{}\" data-bytes=\"{}\" data-offset=\"{}\"/>",
                class(b.purpose),
                y(b.offset + b.bytes),
                (to - from).max(0.1),
                (b.bytes as f64 * scale).max(0.05),
                escape(&b.name),
                purpose(b.purpose),
                b.bytes,
                b.offset
            );
        }
        let cap = y(self.budget.device_bytes);
        let _ = write!(
            out,
            "<line class=\"cap\" x1=\"{LEFT}\" x2=\"{WIDE}\" y1=\"{cap:.1}\" y2=\"{cap:.1}\"/>\
             <text x=\"{WIDE}\" y=\"{:.1}\" class=\"end cap\">cap {}</text>",
            cap - 6.0,
            ByteSize(self.budget.device_bytes)
        );
        axis.labels(out, HIGH);
        out.push_str("</svg>\n");
        if !left_out.is_empty() {
            let largest = left_out.iter().map(|b| b.bytes).max().unwrap_or(0);
            let _ = write!(
                out,
                "<p class=\"note\">{} smaller buffers, of {} at most, are not drawn.</p>",
                left_out.len(),
                ByteSize(largest)
            );
        }
    }

    /// Bytes in and out of the device, per stage.
    fn transfers(&self, out: &mut String, axis: &Axis) {
        let costs = || self.stages.iter().map(|s| s.cost);
        let inward = costs().map(|c| c.in_bytes()).max();
        let outward = costs().map(|c| c.out_bytes()).max();
        let (inward, outward) = (inward.unwrap_or(0), outward.unwrap_or(0));
        if inward + outward == 0 {
            return;
        }
        const HIGH: f64 = 150.0;
        let scale = (HIGH - 30.0) / (inward + outward) as f64;
        let zero = 15.0 + inward as f64 * scale;
        out.push_str(
            "<h2>Transfers</h2><p>What each stage moves: in from images, host memory and disk above \
             the line, out to host memory and disk below it.</p><p class=\"legend\">\
             <i class=\"image\"></i>from images <i class=\"h2d\"></i>from the host \
             <i class=\"d2h\"></i>to the host",
        );
        if self.budget.disk_bytes > 0 {
            out.push_str(
                " <i class=\"disk-read\"></i>from disk <i class=\"disk-write\"></i>to disk",
            );
        }
        out.push_str("</p>");
        let _ = write!(
            out,
            "<svg viewBox=\"0 0 {WIDE} {}\" role=\"img\">",
            HIGH + 24.0
        );
        for (s, cost) in costs().enumerate() {
            let (from, to) = axis.stage(s);
            let mut bar = |kind: &str, what: &str, bytes: u64, base: f64| {
                if bytes > 0 {
                    let high = bytes as f64 * scale;
                    let _ = write!(
                        out,
                        "<rect class=\"move {kind}\" x=\"{:.1}\" y=\"{:.2}\" width=\"{:.1}\" \
                         height=\"{:.2}\" data-name=\"stage {s}\" data-what=\"{what}\" \
                         data-bytes=\"{bytes}\"/>",
                        from + 0.1 * (to - from),
                        if matches!(kind, "d2h" | "disk-write") {
                            base
                        } else {
                            base - high
                        },
                        0.8 * (to - from),
                        high.max(0.2)
                    );
                }
                bytes as f64 * scale
            };
            let host = bar("h2d", "from the host", cost.h2d_bytes, zero);
            let disk = bar("disk-read", "from disk", cost.disk_read_bytes, zero - host);
            bar(
                "image",
                "from images",
                cost.source_bytes,
                zero - host - disk,
            );
            let host = bar("d2h", "to the host", cost.d2h_bytes, zero);
            bar("disk-write", "to disk", cost.disk_write_bytes, zero + host);
        }
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{WIDE}\" y1=\"{zero:.1}\" y2=\"{zero:.1}\"/>\
             <text x=\"{0}\" y=\"19\" class=\"end\">{1}</text>\
             <text x=\"{0}\" y=\"{2}\" class=\"end\">{3}</text>",
            LEFT - 6.0,
            ByteSize(inward),
            HIGH - 11.0,
            ByteSize(outward)
        );
        axis.labels(out, HIGH);
        out.push_str("</svg>\n");
    }

    fn compared(&self, out: &mut String, comparison: &Comparison) {
        if !comparison.strategies.is_empty() {
            out.push_str(
                "<h2>Other strategies at these caps</h2><table><tr><th>strategy</th><th class=\"n\">time</th>\
                 <th class=\"n\">peak</th><th class=\"n\">work</th><th class=\"n\">to and from host and disk</th></tr>",
            );
            for line in &comparison.strategies {
                let _ = match &line.outcome {
                    Ok(p) => write!(
                        out,
                        "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                         <td class=\"n\">{:.2} ×</td><td class=\"n\">{}</td></tr>",
                        line.name,
                        secs(p.secs),
                        ByteSize(p.peak_bytes),
                        p.flops / p.flops_once.max(1.0),
                        ByteSize(
                            p.h2d_bytes + p.d2h_bytes + p.disk_read_bytes + p.disk_write_bytes
                        )
                    ),
                    Err(why) => write!(
                        out,
                        "<tr><td>{}</td><td colspan=\"4\" class=\"why\">{}</td></tr>",
                        line.name,
                        escape(why)
                    ),
                };
            }
            out.push_str("</table>\n");
        }
        let points: Vec<(u64, f64)> = (comparison.caps.iter())
            .filter_map(|c| Some((c.device_bytes, c.secs?)))
            .collect();
        if let (Some(first), Some(last)) = (points.first(), points.last())
            && points.len() > 1
        {
            curve(out, &points, (first.0, last.0), self.budget.device_bytes);
        }
    }

    fn table(&self, out: &mut String) {
        out.push_str(
            "<h2>Stages</h2><p>A stage is one loop over tiles: it fetches what it reads, runs its \
             nodes on each tile, and stores what later stages need.</p><table><tr><th></th>\
             <th>makes</th><th>grid</th><th class=\"n\">tiles</th><th>reads</th><th class=\"n\">nodes (again)</th>\
             <th class=\"n\">time</th><th class=\"n\">in</th><th class=\"n\">out</th><th class=\"n\">arena</th><th>why</th></tr>",
        );
        for s in self.explained().stages {
            let list = |names: &[String]| escape(&super::dot::brief(names));
            let _ = write!(
                out,
                "<tr><td class=\"n\">{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td>\
                 <td>{}</td><td class=\"n\">{} ({})</td><td class=\"n\">{}{}</td>\
                 <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                 <td class=\"why\">{}</td></tr>",
                s.index,
                list(&s.makes),
                escape(&s.grid.join(", ")),
                s.n_tiles,
                list(&s.reads),
                s.nodes,
                s.recomputes,
                secs(s.cost.secs),
                beside(&self.stages[s.index]),
                ByteSize(s.cost.in_bytes()),
                ByteSize(s.cost.out_bytes()),
                ByteSize(s.cost.high_water_bytes),
                escape(&s.why)
            );
        }
        out.push_str("</table>\n");
    }
}

/// All purposes, in the order of the legend.
const PURPOSES: [Purpose; 8] = [
    Purpose::Leaf,
    Purpose::OptimiserState,
    Purpose::Flat,
    Purpose::Stored,
    Purpose::Window,
    Purpose::Accumulator,
    Purpose::Workspace,
    Purpose::Staging,
];

/// Class of a purpose in the style sheet.
fn class(p: Purpose) -> &'static str {
    match p {
        Purpose::Leaf => "leaf",
        Purpose::OptimiserState => "state",
        Purpose::Flat => "flat",
        Purpose::Stored => "stored",
        Purpose::Window => "window",
        Purpose::Accumulator => "sum",
        Purpose::Workspace => "scratch",
        Purpose::Staging => "staging",
    }
}

/// Seconds with three digits that count.
pub(super) fn secs(secs: f64) -> String {
    match secs {
        s if s >= 99.95 => format!("{s:.0} s"),
        s if s >= 9.995 => format!("{s:.1} s"),
        s if s >= 0.9995 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{s:.3} s"),
        s => format!("{:.3} ms", 1e3 * s),
    }
}

/// What a stage takes by channel, where they run beside each other.
fn beside(stage: &Stage) -> String {
    if !stage.overlaps() {
        return String::new();
    }
    let c = &stage.cost;
    format!(
        "<br/>{} compute, {} in, {} out",
        secs(c.compute_secs),
        secs(c.h2d_secs),
        secs(c.d2h_secs)
    )
}

/// Text inside XML.
fn escape(text: &str) -> String {
    (text.replace('&', "&amp;").replace('<', "&lt;"))
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
