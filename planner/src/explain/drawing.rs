//! What the page's drawings share: the time axis of a step, and the curve of seconds
//! over caps.

use std::fmt::Write;

use super::html::secs;
use super::picture::Picture;
use crate::budget::ByteSize;

/// Right edge of the drawings.
pub(super) const WIDE: f64 = 1200.0;
/// Their left edge, room for numbers beside it.
pub(super) const LEFT: f64 = 84.0;

/// Where ticks lie on the drawing. Stages are as wide as they are long, but none
/// so narrow that it cannot be seen.
pub(super) struct Axis {
    /// Left and right edge of each stage.
    stages: Vec<(f64, f64)>,
    ticks: Vec<(u32, u32)>,
}

impl Axis {
    pub(super) fn new(picture: &Picture) -> Axis {
        let secs: Vec<f64> = picture.stage_secs.iter().map(|s| s.1 - s.0).collect();
        let total: f64 = secs.iter().sum();
        let least = 0.2 * total / secs.len().max(1) as f64;
        let widths: Vec<f64> = secs.iter().map(|s| s.max(least).max(1e-12)).collect();
        let scale = (WIDE - LEFT) / widths.iter().sum::<f64>();
        let mut at = LEFT;
        let stages = (widths.iter())
            .map(|w| {
                let from = at;
                at += w * scale;
                (from, at)
            })
            .collect();
        Axis {
            stages,
            ticks: picture.stage_ticks.clone(),
        }
    }

    /// Left edge of a tick.
    pub(super) fn tick(&self, tick: u32) -> f64 {
        let at = self.ticks.partition_point(|t| t.1 < tick);
        let (Some(&(first, last)), Some(&(from, to))) = (self.ticks.get(at), self.stages.get(at))
        else {
            return WIDE;
        };
        let done = tick.saturating_sub(first) as f64 / f64::from(last + 1 - first);
        from + (to - from) * done
    }

    pub(super) fn stage(&self, stage: usize) -> (f64, f64) {
        self.stages[stage]
    }

    /// Stage boundaries, and numbers where there is room for them.
    pub(super) fn labels(&self, out: &mut String, high: f64) {
        let mut free = 0.0;
        for (s, &(from, to)) in self.stages.iter().enumerate() {
            let middle = (from + to) / 2.0;
            if s > 0 && to - from > 4.0 {
                let _ = write!(
                    out,
                    "<line class=\"edge\" x1=\"{from:.1}\" x2=\"{from:.1}\" y1=\"15\" y2=\"{high}\"/>"
                );
            }
            if middle > free + 14.0 {
                let label = if free == 0.0 { "stage " } else { "" };
                let _ = write!(
                    out,
                    "<text x=\"{middle:.1}\" y=\"{}\" class=\"mid\">{label}{s}</text>",
                    high + 16.0
                );
                free = middle + 8.0 + 3.0 * label.len() as f64;
            }
        }
    }
}

/// Seconds against caps, and where this plan stands.
pub(super) fn curve(out: &mut String, points: &[(u64, f64)], caps: (u64, u64), here: u64) {
    const HIGH: f64 = 220.0;
    let slowest = points.iter().map(|p| p.1).fold(f64::MIN_POSITIVE, f64::max);
    let span = (caps.1 - caps.0).max(1) as f64;
    let x = |cap: u64| LEFT + 30.0 + (WIDE - LEFT - 100.0) * (cap - caps.0) as f64 / span;
    let y = |secs: f64| HIGH - (HIGH - 30.0) * secs / slowest;
    out.push_str(
        "<h2>What more memory would buy</h2><p>Predicted seconds of a step under other device \
         caps; the ring is this plan.</p>",
    );
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDE} {}\" role=\"img\">",
        HIGH + 24.0
    );
    let path: Vec<String> = (points.iter())
        .map(|&(cap, secs)| format!("{:.1},{:.1}", x(cap), y(secs)))
        .collect();
    let _ = write!(
        out,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{WIDE}\" y1=\"{HIGH}\" y2=\"{HIGH}\"/>\
         <polyline class=\"curve\" points=\"{}\"/>",
        path.join(" ")
    );
    for &(cap, secs) in points {
        let kind = if cap == here { "point here" } else { "point" };
        let label = self::secs(secs);
        let _ = write!(
            out,
            "<circle class=\"{kind}\" cx=\"{0:.1}\" cy=\"{1:.1}\" r=\"5\"/>\
             <text x=\"{0:.1}\" y=\"{2:.1}\" class=\"mid\">{label}</text>\
             <text x=\"{0:.1}\" y=\"{3}\" class=\"mid\">{4}</text>",
            x(cap),
            y(secs),
            y(secs) - 11.0,
            HIGH + 16.0,
            ByteSize(cap)
        );
    }
    out.push_str("</svg>\n");
}
