//! A better placement among what the relaxation mixes, by the integer program.
//!
//! What the relaxation runs in part, together with the best path known, is a small part
//! of all candidates, and holds most of what is good (relaxation-induced neighbourhoods:
//! Danna, Rothberg, Le Pape 2005). With that few columns HiGHS finds a good path soon.
//! Homes need not be whole in it: along a fixed path they nearly are by themselves, and
//! whoever asks finds them anew.
//!
//! Windows of segments that are open while all else stays were tried after it, and found
//! nothing more.

use crate::solve::{Effort, Outcome, Relaxed, Var};

use super::rows::Master;

/// What the relaxation runs less of is left out.
const LEAST_SHARE: f64 = 0.02;
/// What HiGHS may take: the first good path will do. Seconds only where it does not
/// come back.
const EFFORT: Effort = Effort {
    gap: 0.01,
    nodes: 1,
    secs: 60.0,
};

impl Master<'_> {
    /// A good path among the candidates of `path` and those that `relaxed` runs in part,
    /// if HiGHS finds any.
    pub fn near(&mut self, path: &[usize], relaxed: &Relaxed) -> Option<Vec<usize>> {
        let share = |x: Option<Var>| x.map_or(0.0, |x| relaxed.value_of(x));
        let mut open: Vec<bool> = self.runs.iter().map(|&x| share(x) > LEAST_SHARE).collect();
        for &c in path {
            self.add(c);
            open[c] = true;
        }
        let mut model = self.model.clone();
        for (&x, open) in self.runs.iter().zip(open) {
            match x {
                Some(x) if open => model.make_binary(x),
                Some(x) => model.restrict(x, 0.0, 0.0),
                None => {}
            }
        }
        let Ok(Outcome::Found(found)) = model.solve(EFFORT) else {
            return None;
        };
        let runs = |c: &usize| self.runs[*c].is_some_and(|x| found.is_set(x));
        let taken: Vec<usize> = (0..self.runs.len()).filter(runs).collect();
        self.is_path(&taken).then_some(taken)
    }

    /// Whether candidates, in the order of their first segment, follow one another from
    /// the first segment to the last.
    fn is_path(&self, taken: &[usize]) -> bool {
        let mut at = 0;
        for &c in taken {
            let c = &self.p.candidates[c];
            if c.from != at {
                return false;
            }
            at = c.to;
        }
        at == self.p.segments.pieces.len()
    }
}
