//! The rows of the integer program, and the columns of stored maps.

use std::collections::{BTreeMap, BTreeSet};

use crate::candidates::Touch;
use crate::place::{Problem, fixed_bytes};
use crate::plan::Tier;
use crate::program::NodeIx;
use crate::search::{ChannelPrices, Prices};
use crate::solve::{Model, Relaxed, Row, Var};

use super::columns::Columns;
use super::cuts::CutRow;

/// One use of a stored map.
pub struct Use {
    /// Segment in which stages that use it end.
    pub segment: usize,
    /// Whether it is on the device until then.
    pub device: Var,
    /// Whether its copy on a tier beyond is needed until then, where it may be;
    /// by [`Tier::ix`].
    pub beyond: [Option<Var>; Tier::COUNT],
    /// `Σ r ≤ D`: who finds it on the device.
    pub residency: Row,
    /// `Σ (x − r − q) ≤ H`: who reads it from the host.
    pub supply: Row,
    /// `Σ q ≤ S`: who reads it from disk, if it may be there.
    pub spilled: Option<Row>,
}

/// Columns of one use of a stored map: whether it is there until then.
#[derive(Clone, Copy)]
struct Homes {
    segment: usize,
    device: Var,
    host: Var,
    disk: Option<Var>,
}

impl Homes {
    fn all(self) -> impl Iterator<Item = Var> {
        [self.device, self.host].into_iter().chain(self.disk)
    }

    fn of(self, tier: Tier) -> Option<Var> {
        match tier {
            Tier::Host => Some(self.host),
            Tier::Disk => self.disk,
        }
    }
}

/// A map that some candidate reads, or that is an output.
pub struct MapRows {
    /// Bytes.
    pub bytes: f64,
    /// Segment that makes it.
    pub made: usize,
    /// Whether it may be stored on the device.
    pub on_device: bool,
    /// Whether it may be stored on the host or on disk.
    pub may_leave: bool,
    /// Uses by segment.
    pub uses: Vec<Use>,
    /// `D ≤ Σ x`, `H ≤ Σ x` and `S ≤ Σ x` over who stores it, where not all who
    /// compute it do.
    pub stored: Vec<Row>,
}

impl MapRows {
    /// The uses in the segments `from..to`.
    pub fn used_in(&self, from: usize, to: usize) -> &[Use] {
        let before = |segment: usize| self.uses.partition_point(|u| u.segment < segment);
        &self.uses[before(from)..before(to)]
    }
}

/// The integer program, with the columns that it has so far.
pub struct Master<'a> {
    /// What it is about.
    pub p: &'a Problem<'a>,
    /// The program.
    pub model: Model,
    /// The cap that it was made for.
    device_bytes: u64,
    /// Bytes per unit of device memory rows.
    pub unit: f64,
    /// Seconds per unit of the objective.
    pub tick: f64,
    /// Flow of the path into each segment.
    pub flow: Vec<Row>,
    /// Device memory per segment.
    pub device: Vec<Row>,
    /// Where copies run beside kernels: seconds of kernels, of copies from the host
    /// and of copies to it are each at most the step's.
    pub(super) channels: Option<[Row; 3]>,
    /// Memory of each tier per segment, where there may be too little.
    beyond: [Vec<Option<Row>>; Tier::COUNT],
    /// Rows that only mixtures break.
    pub(super) cuts: Vec<CutRow>,
    /// Stored maps.
    pub maps: BTreeMap<NodeIx, MapRows>,
    /// What each candidate's columns are: every pricing asks.
    pub(super) columns: Vec<Columns>,
    /// Units of every device row that are taken away.
    reserved: Var,
    /// Scratch bytes of each candidate, by what is known now.
    pub(super) scratch: Vec<f64>,
    /// Columns of candidates that are in the program.
    pub(super) runs: Vec<Option<Var>>,
    /// Candidates that fit beside what is always there, each alone.
    pub(super) fits: Vec<bool>,
    /// Candidates that may run: the others' columns are kept at 0.
    pub(super) may_run: Vec<bool>,
}

/// What a path that is no path costs, in units of the objective: it makes every
/// relaxation solvable.
const NO_PATH: f64 = 1e6;
/// Least price of a byte throughout, as a share of the step's seconds per byte of
/// the cap.
const NEARLY_FREE: f64 = 0.01;
/// Memory rows of a tier count in hundredths of its cap.
const TIER_UNITS: f64 = 100.0;

impl<'a> Master<'a> {
    /// The rows of a problem with a device cap, no candidate in it yet.
    pub fn new(p: &'a Problem<'a>, device_bytes: u64) -> Master<'a> {
        let n = p.segments.pieces.len();
        let mut least = vec![f64::INFINITY; n];
        for c in p.candidates {
            for b in &mut least[c.from..c.to] {
                *b = b.min(c.secs / (c.to - c.from) as f64);
            }
        }
        let secs: f64 = least.into_iter().filter(|b| b.is_finite()).sum();
        let mut model = Model::default();
        let reserved = model.real(0.0, 0.0, 0.0);
        let mut master = Master {
            p,
            model,
            reserved,
            scratch: (p.candidates.iter())
                .map(|c| c.scratch_bytes as f64)
                .collect(),
            device_bytes,
            unit: (device_bytes as f64 / 1000.0).max(1.0),
            tick: (secs / 1000.0).max(1e-12),
            flow: Vec::new(),
            device: Vec::new(),
            channels: None,
            beyond: [Vec::new(), Vec::new()],
            cuts: Vec::new(),
            maps: BTreeMap::new(),
            columns: Vec::new(),
            runs: vec![None; p.candidates.len()],
            fits: Vec::new(),
            may_run: Vec::new(),
        };
        if p.machine.copies_overlap {
            let step = master.model.real(0.0, f64::INFINITY, 1.0);
            master.channels = Some([(); 3].map(|()| master.model.at_most(vec![(step, -1.0)], 0.0)));
        }
        for k in 0..n {
            let source = if k == 0 { 1.0 } else { 0.0 };
            let row = master.model.equal(Vec::new(), source);
            master.flow.push(row);
        }
        if let Some(&first) = master.flow.first() {
            let escape = master.model.real(0.0, f64::INFINITY, NO_PATH);
            master.model.extend(first, escape, 1.0);
        }
        let homes = master.store();
        master.memory(device_bytes, &homes);
        master.fits = (0..p.candidates.len()).map(|c| master.may_fit(c)).collect();
        master.may_run = master.fits.clone();
        master.columns = (0..p.candidates.len())
            .map(|c| master.columns_of(c))
            .collect();
        master
    }

    /// Whether a candidate fits alone: a mixture would run a part of it that does.
    pub(super) fn may_fit(&self, c: usize) -> bool {
        let scratch = self.scratch[c];
        let c = &self.p.candidates[c];
        let saved = |t: &Touch| {
            let map = self.maps.get(&t.node).filter(|map| map.on_device);
            map.map_or(0.0, |map| (t.credit_bytes as f64 - map.bytes).max(0.0))
        };
        let least = scratch - c.touches.iter().map(saved).sum::<f64>();
        let mut rows = self.device[c.from..c.to].iter();
        rows.all(|&row| least <= self.model.most(row) * self.unit * (1.0 + 1e-9))
    }

    /// Lowers the device cap to so many bytes.
    pub fn lower(&mut self, device_bytes: u64) {
        let less = self.device_bytes.saturating_sub(device_bytes) as f64 / self.unit;
        self.model.restrict(self.reserved, less, less);
    }

    /// Use segments of every map that some candidate reads, or that is an output.
    fn uses(&self) -> BTreeMap<NodeIx, BTreeSet<usize>> {
        let mut uses: BTreeMap<NodeIx, BTreeSet<usize>> = BTreeMap::new();
        for c in self.p.candidates {
            for t in c.touches.iter().filter(|t| t.reads) {
                uses.entry(t.node).or_default().insert(c.to - 1);
            }
        }
        let end = self.p.segments.pieces.len().saturating_sub(1);
        for &o in &self.p.program.outputs {
            if self.p.program.node(o).ty.is_map() && self.p.segments.of[o.ix()].is_some() {
                uses.entry(o).or_default().insert(end);
            }
        }
        for c in self.p.candidates {
            for t in c.touches.iter().filter(|t| !t.reads) {
                if let Some(uses) = uses.get_mut(&t.node) {
                    uses.insert(c.to - 1);
                }
            }
        }
        uses
    }

    /// Columns of every stored map, and the rows that tie them to who uses it.
    fn store(&mut self) -> BTreeMap<NodeIx, Vec<Homes>> {
        let mut homes = BTreeMap::new();
        for (t, uses) in self.uses() {
            let bytes = self.p.program.node(t).ty.bytes();
            let on_device = self.p.strategy.may_keep_on_device();
            let [on_host, on_disk] = Tier::ALL.map(|tier| self.p.may_store(tier, bytes));
            let most = |allowed: bool| if allowed { 1.0 } else { 0.0 };
            let vars: Vec<Homes> = (uses.into_iter().enumerate())
                .map(|(i, segment)| {
                    // Who has it anywhere beyond until some use has stored it there.
                    let cost = |tier| match i {
                        0 => self.p.machine.store_secs(tier, bytes) / self.tick,
                        _ => 0.0,
                    };
                    let (host_cost, disk) = (cost(Tier::Host), cost(Tier::Disk));
                    let device = self.model.real(0.0, most(on_device), 0.0);
                    let host = match self.channels {
                        None => self.model.real(0.0, most(on_host), host_cost),
                        Some([_, _, d2h]) => {
                            let host = self.model.real(0.0, most(on_host), 0.0);
                            self.model.extend(d2h, host, host_cost);
                            host
                        }
                    };
                    Homes {
                        segment,
                        device,
                        host,
                        disk: on_disk.then(|| self.model.real(0.0, 1.0, disk)),
                    }
                })
                .collect();
            for pair in vars.windows(2) {
                for (early, late) in pair[0].all().zip(pair[1].all()) {
                    self.model.at_least(vec![(early, 1.0), (late, -1.0)], 0.0);
                }
            }
            if let (true, Some(last)) = (self.p.program.outputs.contains(&t), vars.last()) {
                let anywhere = last.all().map(|v| (v, 1.0)).collect();
                self.model.at_least(anywhere, 1.0);
            }
            let uses = (vars.iter())
                .map(|h| Use {
                    segment: h.segment,
                    device: h.device,
                    beyond: [on_host.then_some(h.host), h.disk],
                    residency: self.model.at_most(vec![(h.device, -1.0)], 0.0),
                    supply: self.model.at_most(vec![(h.host, -1.0)], 0.0),
                    spilled: (h.disk).map(|s| self.model.at_most(vec![(s, -1.0)], 0.0)),
                })
                .collect();
            let made = self.p.segments.of[t.ix()].unwrap_or(0);
            let mut makers = (self.p.candidates.iter()).filter(|c| (c.from..c.to).contains(&made));
            let is_sure = makers.all(|c| c.targets.contains(&t));
            let first = vars.first().filter(|_| !is_sure);
            let stored = (first.into_iter())
                .flat_map(|h| h.all())
                .map(|v| self.model.at_most(vec![(v, 1.0)], 0.0))
                .collect();
            self.maps.insert(
                t,
                MapRows {
                    bytes: bytes as f64,
                    made,
                    on_device,
                    may_leave: on_host || on_disk,
                    uses,
                    stored,
                },
            );
            homes.insert(t, vars);
        }
        homes
    }

    /// Rows of device memory and of each tier, one per segment.
    fn memory(&mut self, device_bytes: u64, homes: &BTreeMap<NodeIx, Vec<Homes>>) {
        let fixed = fixed_bytes(self.p);
        let cap = device_bytes as f64 / self.unit;
        for k in 0..self.p.segments.pieces.len() {
            let mut device = vec![(self.reserved, 1.0)];
            let mut beyond = [Vec::new(), Vec::new()];
            for (t, vars) in homes {
                let map = &self.maps[t];
                let at = vars.partition_point(|h| h.segment < k);
                if let Some(&h) = vars.get(at).filter(|_| k >= map.made) {
                    device.push((h.device, map.bytes / self.unit));
                    for tier in Tier::ALL {
                        beyond[tier.ix()].extend(h.of(tier).map(|v| (v, map.bytes)));
                    }
                }
            }
            let held = fixed[self.p.segments.pieces[k].level as usize] as f64 / self.unit;
            let row = self.model.at_most(device, cap - held);
            self.device.push(row);
            for (tier, held) in Tier::ALL.into_iter().zip(beyond) {
                let row = self.tier_row(tier, held);
                self.beyond[tier.ix()].push(row);
            }
        }
    }

    /// A row that keeps a tier within its cap, unless it is anyway.
    fn tier_row(&mut self, tier: Tier, held: Vec<(Var, f64)>) -> Option<Row> {
        let cap = self.p.tier_bytes(tier);
        let total: f64 = held.iter().map(|(_, size)| size).sum();
        (total > cap as f64).then(|| {
            let share = |(v, size): (Var, f64)| (v, size / cap.max(1) as f64 * TIER_UNITS);
            let most = if cap == 0 { 0.0 } else { TIER_UNITS };
            self.model
                .at_most(held.into_iter().map(share).collect(), most)
        })
    }

    /// Whether a relaxation found no path at all.
    pub fn is_lost(relaxed: &Relaxed) -> bool {
        relaxed.value >= NO_PATH / 2.0
    }

    /// Price of each device row, in units of the objective.
    pub fn device_worth(&self, relaxed: &Relaxed) -> Vec<f64> {
        let worth = self.device.iter().map(|&r| (-relaxed.dual(r)).max(0.0));
        let mut worth: Vec<f64> = worth.collect();
        self.add_worth(None, self.unit, relaxed, &mut worth);
        worth
    }

    /// What rows that only mixtures break say of the worth of a unit of memory.
    fn add_worth(&self, tier: Option<Tier>, unit: f64, relaxed: &Relaxed, worth: &mut [f64]) {
        for cut in self.cuts.iter().filter(|cut| cut.tier == tier) {
            worth[cut.segment] += (-relaxed.dual(cut.row)).max(0.0) * cut.weight_per_byte * unit;
        }
    }

    /// Whether a tier may be full in a segment.
    pub fn is_scarce(&self, tier: Tier, segment: usize) -> bool {
        self.beyond[tier.ix()][segment].is_some()
    }

    /// Price of each row of a tier, in units of the objective.
    pub fn beyond_worth(&self, tier: Tier, relaxed: &Relaxed) -> Vec<f64> {
        let worth = |row: &Option<Row>| row.map_or(0.0, |r| (-relaxed.dual(r)).max(0.0));
        let mut worth: Vec<f64> = self.beyond[tier.ix()].iter().map(worth).collect();
        self.add_worth(Some(tier), self.tier_unit(tier), relaxed, &mut worth);
        worth
    }

    /// Bytes per unit of a tier's memory rows.
    pub fn tier_unit(&self, tier: Tier) -> f64 {
        self.p.tier_bytes(tier).max(1) as f64 / TIER_UNITS
    }

    /// What memory is worth.
    pub fn prices(&self, relaxed: &Relaxed) -> Prices {
        // Of two ways that take equally long the smaller one: what is free in the
        // relaxation is not where its mix is made whole.
        let whole = relaxed.value * self.tick / (1000.0 * self.unit);
        let floor = NEARLY_FREE * whole / self.device.len().max(1) as f64;
        let price = |worth: f64, unit: f64| worth * self.tick / unit;
        let device = self.device_worth(relaxed).into_iter();
        let device = device.map(|w| price(w, self.unit).max(floor)).collect();
        let beyond = Tier::ALL.map(|tier| {
            let worth = self.beyond_worth(tier, relaxed).into_iter();
            worth.map(|w| price(w, self.tier_unit(tier))).collect()
        });
        let channels = match self.channels {
            None => ChannelPrices::IN_TURN,
            Some(rows) => {
                let [compute, h2d, d2h] = rows.map(|r| (-relaxed.dual(r)).max(0.0));
                ChannelPrices { compute, h2d, d2h }
            }
        };
        Prices::new(device, beyond, channels)
    }
}
