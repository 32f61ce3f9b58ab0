//! Sets of classes that have to be left.
//!
//! In a choice without cycles, go from a class that is taken to one that its form
//! reads, and so on: within any set `S` of classes that ends, at a form that reads
//! nothing of `S`. So for every class `c` of every set `S`
//!
//! `Σ x[forms of classes of S that read nothing of S] ≥ Σ x[forms of c]`.
//!
//! A cycle that is taken breaks this for the set of its classes. What is more, a
//! relaxation breaks it that takes every arc of a cycle by half, or that lets two
//! halves rely on one half of a class that both read: with such rows most relaxations
//! are whole. The set that is broken most is hard to find, so a good one is grown: its
//! complement starts empty and takes up, class by class, what leaves the least to be
//! read from outside.

use std::collections::{BTreeMap, BTreeSet};

use super::reduce::Reduced;

/// By how much a set must be broken.
const BROKEN: f64 = 1e-3;
/// Forms taken by less are taken as not taken.
const NOTHING: f64 = 1e-6;
/// Classes taken by less are not asked for a set.
const LITTLE: f64 = 0.02;

/// Sets that are grown in search of broken ones, times the forms that are taken.
const WORK: usize = 500_000;

/// A set, and the class of it that is taken most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Closed {
    pub class: usize,
    /// By class.
    pub inside: Vec<bool>,
}

impl Closed {
    /// The forms by which the set can be left: class, form.
    pub fn ways_out<'a>(
        &'a self,
        problem: &'a Reduced,
    ) -> impl Iterator<Item = (usize, usize)> + 'a {
        let members = (0..self.inside.len()).filter(|&c| self.inside[c]);
        members.flat_map(move |c| {
            let forms = problem.classes[c].iter().enumerate();
            let out = forms.filter(|(_, f)| !f.reads.iter().any(|&r| self.inside[r]));
            out.map(move |(form, _)| (c, form))
        })
    }
}

/// Finds sets that a relaxation breaks, at most `most`. `taken` says how much of each
/// form of each class it takes.
pub(super) fn broken(problem: &Reduced, taken: &[Vec<f64>], most: usize) -> Vec<Closed> {
    let shares: Vec<f64> = taken.iter().map(|forms| forms.iter().sum()).collect();
    let mut order: Vec<usize> = (0..shares.len()).filter(|&c| shares[c] > LITTLE).collect();
    order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
    let grown = Grown::new(problem, taken);
    let mut is_covered = vec![false; shares.len()];
    let mut found: BTreeSet<Closed> = BTreeSet::new();
    let tries = WORK / grown.forms.len().max(1) + 1;
    for class in order.into_iter().take(tries) {
        if is_covered[class] || found.len() == most {
            continue;
        }
        let Some(inside) = grown.set_around(class, shares[class]) else {
            continue;
        };
        let closed = close(problem, class, inside);
        for (covered, &inside) in is_covered.iter_mut().zip(&closed.inside) {
            *covered |= inside;
        }
        found.insert(closed);
    }
    found.into_iter().collect()
}

/// Sets that a choice breaks: none if nothing that the roots need runs in a circle.
pub(super) fn broken_by_choice(problem: &Reduced, choice: &[Option<usize>]) -> Vec<Closed> {
    let reads = |c: usize| choice[c].map_or(&[][..], |f| &problem.classes[c][f].reads);
    let mut is_needed = vec![false; choice.len()];
    let mut stack = problem.roots.clone();
    while let Some(c) = stack.pop() {
        if !std::mem::replace(&mut is_needed[c], true) {
            stack.extend(reads(c));
        }
    }
    // What is built from leaves goes, until only circles and their readers are left.
    let mut left = is_needed;
    loop {
        let built = (0..left.len()).filter(|&c| left[c] && !reads(c).iter().any(|&r| left[r]));
        let built: Vec<usize> = built.collect();
        if built.is_empty() {
            break;
        }
        for c in built {
            left[c] = false;
        }
    }
    let mut is_covered = vec![false; left.len()];
    let mut found = Vec::new();
    for class in 0..left.len() {
        if left[class] && !is_covered[class] {
            let closed = close(problem, class, left.clone());
            for (covered, &inside) in is_covered.iter_mut().zip(&closed.inside) {
                *covered |= inside;
            }
            found.push(closed);
        }
    }
    found
}

/// The strongest set near one: with whatever can only be made from within, and of
/// that what `class` leads to inside.
fn close(problem: &Reduced, class: usize, mut inside: Vec<bool>) -> Closed {
    loop {
        let mut grows = false;
        for (c, forms) in problem.classes.iter().enumerate() {
            let enters = |f: &super::reduce::Left| f.reads.iter().any(|&r| inside[r]);
            if !inside[c] && !forms.is_empty() && forms.iter().all(enters) {
                inside[c] = true;
                grows = true;
            }
        }
        if !grows {
            break;
        }
    }
    let mut reached = vec![false; inside.len()];
    let mut stack = vec![class];
    while let Some(c) = stack.pop() {
        if !std::mem::replace(&mut reached[c], true) {
            let reads = problem.classes[c].iter().flat_map(|f| &f.reads);
            stack.extend(reads.copied().filter(|&r| inside[r]));
        }
    }
    Closed {
        class,
        inside: reached,
    }
}

/// What a relaxation takes, for growing complements.
struct Grown {
    n_classes: usize,
    /// Class and share of each form that is taken, and the classes it reads of
    /// those that are.
    forms: Vec<(usize, f64, Vec<usize>)>,
    /// Forms of each class, and those that read it.
    of_class: Vec<Vec<usize>>,
    readers: Vec<Vec<usize>>,
}

/// Numbers in an order, as integers.
fn key(x: f64) -> i64 {
    let bits = x.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

impl Grown {
    fn new(problem: &Reduced, taken: &[Vec<f64>]) -> Grown {
        let n = taken.len();
        let is_taken: Vec<bool> = (taken.iter())
            .map(|forms| forms.iter().any(|&x| x > NOTHING))
            .collect();
        let mut grown = Grown {
            n_classes: n,
            forms: Vec::new(),
            of_class: vec![Vec::new(); n],
            readers: vec![Vec::new(); n],
        };
        for (c, forms) in problem.classes.iter().enumerate() {
            for (form, &share) in forms.iter().zip(&taken[c]).filter(|(_, x)| **x > NOTHING) {
                let reads = form.reads.iter().copied().filter(|&r| is_taken[r]);
                let reads: Vec<usize> = reads.collect();
                for &r in &reads {
                    grown.readers[r].push(grown.forms.len());
                }
                grown.of_class[c].push(grown.forms.len());
                grown.forms.push((c, share, reads));
            }
        }
        grown
    }

    /// A set with `class` in it that is left by less than `share`, if one is found.
    fn set_around(&self, class: usize, share: f64) -> Option<Vec<bool>> {
        let n = self.n_classes;
        // Reads that are still inside, of every form; what can be left by each class;
        // and what more could be if it went outside.
        let mut missing: Vec<usize> = self.forms.iter().map(|f| f.2.len()).collect();
        let (mut ready, mut gain) = (vec![0.0; n], vec![0.0; n]);
        for (c, share, reads) in &self.forms {
            match reads[..] {
                [] => ready[*c] += share,
                [only] => gain[only] += share,
                _ => {}
            }
        }
        let mut inside = vec![true; n];
        let mut queue: BTreeSet<(i64, usize)> = BTreeSet::new();
        let mut place: BTreeMap<usize, i64> = BTreeMap::new();
        let members = (0..n).filter(|&c| c != class && !self.of_class[c].is_empty());
        for c in members {
            let at = key(gain[c] - ready[c]);
            place.insert(c, at);
            queue.insert((at, c));
        }
        let mut total: f64 = ready.iter().sum();
        let mut order = Vec::new();
        let mut best = (total, 0);
        while let Some((_, c)) = queue.pop_first() {
            place.remove(&c);
            inside[c] = false;
            order.push(c);
            total -= ready[c];
            let mut changed = BTreeSet::new();
            for &f in &self.of_class[c] {
                // It can no longer be what leaves the set.
                if missing[f] == 1 {
                    let last = self.forms[f].2.iter().copied().find(|&r| inside[r]);
                    if let Some(r) = last {
                        gain[r] -= self.forms[f].1;
                        changed.insert(r);
                    }
                }
            }
            for &f in &self.readers[c] {
                let (reader, share, reads) = &self.forms[f];
                missing[f] -= 1;
                if !inside[*reader] {
                    continue;
                }
                match missing[f] {
                    0 => {
                        ready[*reader] += share;
                        total += share;
                        changed.insert(*reader);
                    }
                    1 => {
                        let last = reads.iter().copied().find(|&r| inside[r]);
                        if let Some(r) = last {
                            gain[r] += share;
                            changed.insert(r);
                        }
                    }
                    _ => {}
                }
            }
            for c in changed {
                if let Some(at) = place.get_mut(&c) {
                    queue.remove(&(*at, c));
                    *at = key(gain[c] - ready[c]);
                    queue.insert((*at, c));
                }
            }
            // Of equals the smallest set.
            if total < best.0 + 1e-9 {
                best = (total, order.len());
            }
        }
        if best.0 >= share - BROKEN {
            return None;
        }
        let mut set: Vec<bool> = self
            .of_class
            .iter()
            .map(|forms| !forms.is_empty())
            .collect();
        for &c in &order[..best.1] {
            set[c] = false;
        }
        Some(set)
    }
}
