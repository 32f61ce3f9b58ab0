//! The planted pattern: what, and only what, decides a slide's label.
//!
//! Clusters of dark-blue discs, like nuclei, lie far apart in the tissue. On a
//! slide of label 1 the discs of a cluster form a ring. On a slide of label 0
//! the very same discs, in number, size and colour, lie scattered over the same
//! area (or are left out, see [`Control`]). All else on the slide is drawn
//! without knowledge of the label: two slides of one seed differ nowhere else.

use serde::{Deserialize, Serialize};

use super::noise::Draws;
use super::tissue::Tissue;

/// What a slide of label 0 shows instead of rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// The same discs, scattered: only their arrangement tells.
    Scattered,
    /// Nothing: easier to learn.
    Absent,
}

/// What is planted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PatternSpec {
    /// Number of clusters; fewer if no more fit.
    pub n_clusters: usize,
    /// Discs per cluster.
    pub n_discs: usize,
    /// Radius of a ring, in pixels. What tells the labels apart is as large as
    /// this: choose it larger than any patch to need the whole slide.
    pub ring_radius: f64,
    /// Mean radius of a disc, in pixels.
    pub disc_radius: f64,
    /// What label 0 shows.
    pub control: Control,
}

impl Default for PatternSpec {
    /// Twelve rings of 14 discs, 80 pixels in radius, scattered for label 0.
    fn default() -> Self {
        PatternSpec {
            n_clusters: 12,
            n_discs: 14,
            ring_radius: 80.0,
            disc_radius: 11.0,
            control: Control::Scattered,
        }
    }
}

/// One disc.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disc {
    x: f64,
    y: f64,
    /// Half axes.
    a: f64,
    b: f64,
    /// Direction of the first, in radians.
    angle: f64,
    color: [f64; 3],
    grain: u64,
}

/// Centres of clusters deep in the tissue and far from each other.
pub(super) fn place(
    spec: &PatternSpec,
    tissue: &Tissue,
    size: usize,
    seed: u64,
) -> Vec<(f64, f64)> {
    let mut draws = Draws::new(seed, 101);
    let reach = spec.ring_radius + 3.0 * spec.disc_radius;
    let room = size as f64 - 2.0 * reach;
    let mut centres: Vec<(f64, f64)> = Vec::new();
    if room <= 0.0 {
        return centres;
    }
    // As far apart as may be: the distance asked for shrinks until they fit.
    let mut apart = size as f64 / (spec.n_clusters.max(1) as f64).sqrt();
    while centres.len() < spec.n_clusters && apart >= 2.0 * reach {
        for _ in 0..200 {
            let x = reach + draws.unit() * room;
            let y = reach + draws.unit() * room;
            let inside = (0..8).all(|k| {
                let (sin, cos) = (f64::from(k) * std::f64::consts::FRAC_PI_4).sin_cos();
                tissue.depth(x + reach * cos, y + reach * sin) > 0.03
            });
            let free = centres.iter().all(|c| (c.0 - x).hypot(c.1 - y) >= apart);
            if inside && free {
                centres.push((x, y));
                if centres.len() == spec.n_clusters {
                    break;
                }
            }
        }
        apart *= 0.8;
    }
    centres
}

/// The discs of all clusters, from top to bottom.
pub(super) fn discs(
    spec: &PatternSpec,
    centres: &[(f64, f64)],
    ring: bool,
    seed: u64,
) -> Vec<Disc> {
    if !ring && spec.control == Control::Absent {
        return Vec::new();
    }
    let mut all = Vec::with_capacity(centres.len() * spec.n_discs);
    for (cluster, &centre) in centres.iter().enumerate() {
        // Places and looks come from different sequences, so that the looks do
        // not depend on the arrangement.
        let mut looks = Draws::new(seed ^ 51, cluster as u64);
        let mut places = Draws::new(seed ^ 61, cluster as u64);
        let places = if ring {
            around(spec, centre, &mut places)
        } else {
            scattered(spec, centre, &mut places)
        };
        for (x, y) in places {
            let radius = spec.disc_radius * looks.between(0.85, 1.15);
            let oval = looks.between(0.85, 1.15);
            let (angle, shade) = (looks.between(0.0, 3.2), looks.between(-10.0, 10.0));
            let color = [46.0 + shade, 38.0 + shade, 118.0 + shade];
            let grain = looks.bits();
            all.push(Disc {
                x,
                y,
                a: radius * oval,
                b: radius / oval,
                angle,
                color,
                grain,
            });
        }
    }
    all.sort_by(|p, q| p.y.total_cmp(&q.y));
    all
}

/// Evenly around a circle, each a little off.
fn around(spec: &PatternSpec, (x, y): (f64, f64), draws: &mut Draws) -> Vec<(f64, f64)> {
    let turn = draws.between(0.0, std::f64::consts::TAU);
    let step = std::f64::consts::TAU / spec.n_discs as f64;
    (0..spec.n_discs)
        .map(|k| {
            let angle = turn + step * (k as f64 + draws.between(-0.12, 0.12));
            let radius = spec.ring_radius * draws.between(0.96, 1.04);
            (x + radius * angle.cos(), y + radius * angle.sin())
        })
        .collect()
}

/// Anywhere within the circle, overlapping as little as may be.
fn scattered(spec: &PatternSpec, (x, y): (f64, f64), draws: &mut Draws) -> Vec<(f64, f64)> {
    let mut places: Vec<(f64, f64)> = Vec::with_capacity(spec.n_discs);
    let mut apart = 2.6 * spec.disc_radius;
    while places.len() < spec.n_discs {
        // The square root spreads the places evenly over the area.
        let radius = spec.ring_radius * draws.unit().sqrt();
        let (sin, cos) = draws.between(0.0, std::f64::consts::TAU).sin_cos();
        let place = (x + radius * cos, y + radius * sin);
        if places
            .iter()
            .all(|p| (p.0 - place.0).hypot(p.1 - place.1) >= apart)
        {
            places.push(place);
        } else {
            apart *= 0.995;
        }
    }
    places
}

/// Paints the discs that touch rows `y0…` of a slide `width` pixels wide.
pub(super) fn paint(discs: &[Disc], y0: usize, width: usize, rows: &mut [u8]) {
    let n_rows = rows.len() / (width * 3);
    for disc in discs {
        let reach = disc.a.max(disc.b) + 2.0;
        let first = (disc.y - reach).max(y0 as f64) as usize;
        let last = (disc.y + reach).min((y0 + n_rows) as f64 - 1.0);
        if last < y0 as f64 {
            continue;
        }
        let cols = (disc.x - reach).max(0.0) as usize..((disc.x + reach) as usize + 1).min(width);
        for y in first.max(y0)..=last as usize {
            for x in cols.clone() {
                let at = ((y - y0) * width + x) * 3;
                disc.paint(x, y, &mut rows[at..at + 3]);
            }
        }
    }
}

impl Disc {
    fn paint(&self, x: usize, y: usize, pixel: &mut [u8]) {
        let (dx, dy) = (x as f64 + 0.5 - self.x, y as f64 + 0.5 - self.y);
        let (sin, cos) = self.angle.sin_cos();
        let (u, v) = (
            (dx * cos + dy * sin) / self.a,
            (dy * cos - dx * sin) / self.b,
        );
        let r = u.hypot(v);
        // About one and a half pixels from full to nothing.
        let cover = ((1.0 - r) * self.a.min(self.b) / 1.5 + 0.5).clamp(0.0, 1.0);
        if cover == 0.0 {
            return;
        }
        // Chromatin: darker towards the rim, and speckled.
        let key = ((x as u64 / 2) << 32) | (y as u64 / 2);
        let speckle = Draws::new(self.grain, key).between(-12.0, 12.0);
        let shade = speckle - 16.0 * r * r + 8.0;
        for (out, color) in pixel.iter_mut().zip(self.color) {
            let value = (color + shade) * cover + f64::from(*out) * (1.0 - cover);
            *out = value.round().clamp(0.0, 255.0) as u8;
        }
    }
}
