//! A chart of predicted seconds over caps, both logarithmic, as SVG.

use std::fmt::Write;

use sstep::ByteSize;

/// One strategy's points: cap in bytes, seconds.
pub struct Line {
    /// Shown beside its last point.
    pub name: String,
    /// In the order of the caps.
    pub points: Vec<(f64, f64)>,
}

const COLOURS: [&str; 10] = [
    "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
    "#17becf", "#ff7f0e",
];
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Draws `lines`; empty if there is no point.
pub fn chart(title: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|l| l.points.iter().copied());
    let range = |pick: fn((f64, f64)) -> f64| {
        let lo = all().map(pick).fold(f64::INFINITY, f64::min);
        let hi = all().map(pick).fold(0.0, f64::max);
        (lo.ln(), hi.ln().max(lo.ln() + 1e-6))
    };
    if all().next().is_none() {
        return String::new();
    }
    let (caps, secs) = (range(|p| p.0), range(|p| p.1));
    let x = |cap: f64| LEFT + (cap.ln() - caps.0) / (caps.1 - caps.0) * (WIDTH - LEFT - RIGHT);
    let y =
        |s: f64| HEIGHT - BOTTOM - (s.ln() - secs.0) / (secs.1 - secs.0) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title}: predicted seconds of a step over the \
         device cap</text>\n"
    );
    let mut ticks: Vec<f64> = all().map(|p| p.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for cap in ticks {
        let (at, low) = (x(cap), HEIGHT - BOTTOM);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{low}\" stroke=\"#eee\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            low + 18.0,
            ByteSize(cap as u64)
        );
    }
    for step in 0..=4 {
        let s = (secs.0 + (secs.1 - secs.0) * f64::from(step) / 4.0).exp();
        // Three or four digits in all, so that there is room for them.
        let digits = (2.0 - s.log10().floor()).clamp(0.0, 6.0) as usize;
        let (at, end) = (y(s), WIDTH - RIGHT);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{end}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#eee\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{s:.digits$} s</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (i, line) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<String> = (line.points.iter())
            .map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for p in &line.points {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x(p.0),
                y(p.1)
            );
        }
        let at = TOP + 16.0 * i as f64;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{at:.1}\" fill=\"{colour}\">{}</text>",
            WIDTH - RIGHT + 12.0,
            line.name
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_drawn_inside_the_frame() {
        let lines = [Line {
            name: "a".to_owned(),
            points: vec![(1e9, 1.0), (2e9, 0.5)],
        }];
        let svg = chart("t", &lines);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("cx=\"70.0\"") && svg.contains("cx=\"690.0\""));
        assert!(chart("t", &[]).is_empty());
    }
}
