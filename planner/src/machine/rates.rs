//! Work per second of a family, as a table.
//!
//! Rates are measured on a coarse grid of widths and sizes and change smoothly
//! between: they are interpolated in the logarithms of all three. Beyond the grid the
//! outermost rate holds, except for calls smaller than the smallest measured, which
//! take as long as that: what they cost is being called.

use serde::{Deserialize, Serialize};

/// Work per second by width and size of a call, in the [`Unit`](super::Unit) of its
/// family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateTable {
    /// Channels of the rows, ascending.
    pub widths: Vec<f64>,
    /// Size of a call of the columns, ascending: positions or bytes.
    pub sizes: Vec<f64>,
    /// Work per second, a row for every width.
    pub per_sec: Vec<Vec<f64>>,
}

impl RateTable {
    /// What is wrong with it, if anything is.
    pub fn fault(&self) -> Option<String> {
        let rising = |values: &[f64]| {
            !values.is_empty()
                && values.iter().all(|v| v.is_finite() && *v > 0.0)
                && values.windows(2).all(|pair| pair[0] < pair[1])
        };
        if !rising(&self.widths) || !rising(&self.sizes) {
            return Some("widths and sizes must be positive and ascending".to_owned());
        }
        let expected = (self.widths.len(), self.sizes.len());
        let full = self.per_sec.iter().all(|row| row.len() == expected.1);
        if self.per_sec.len() != expected.0 || !full {
            let (rows, columns) = expected;
            return Some(format!("it must have {rows} rows of {columns} rates"));
        }
        let mut rates = self.per_sec.iter().flatten();
        let bad = rates.find(|r| !(r.is_finite() && **r > 0.0))?;
        Some(format!("a rate of {bad} per second is none"))
    }

    /// Work per second in calls of this width and size.
    pub fn per_sec(&self, width: f64, size: f64) -> f64 {
        self.at(width).per_sec(size)
    }

    /// The rates of calls of one width: who asks often asks this.
    pub fn at(&self, width: f64) -> SizeRates {
        let (row, next_row, down) = between(&self.widths, width);
        let rates = self.per_sec[row].iter().zip(&self.per_sec[next_row]);
        SizeRates {
            sizes: self.sizes.clone(),
            ln_sizes: self.sizes.iter().map(|s| s.ln()).collect(),
            ln_rates: rates.map(|(a, b)| mix(a.ln(), b.ln(), down)).collect(),
        }
    }
}

/// Work per second of calls of one width, by size.
#[derive(Clone, Debug)]
pub struct SizeRates {
    sizes: Vec<f64>,
    ln_sizes: Vec<f64>,
    ln_rates: Vec<f64>,
}

impl SizeRates {
    /// Most work per second in calls of any size.
    pub fn most_per_sec(&self) -> f64 {
        let most = self
            .ln_rates
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        most.exp()
    }

    /// Work per second in calls of this size.
    pub fn per_sec(&self, size: f64) -> f64 {
        let above = self.sizes.partition_point(|&s| s <= size);
        let last = self.sizes.len() - 1;
        if above == 0 {
            return self.ln_rates[0].exp() * size / self.sizes[0];
        }
        if above > last {
            return self.ln_rates[last].exp();
        }
        let (lo, hi) = (self.ln_sizes[above - 1], self.ln_sizes[above]);
        let along = (size.ln() - lo) / (hi - lo);
        mix(self.ln_rates[above - 1], self.ln_rates[above], along).exp()
    }
}

fn mix(a: f64, b: f64, part: f64) -> f64 {
    a + (b - a) * part
}

/// The two neighbours of `value` on an ascending grid, and how far it is from the
/// first to the second, in logarithms.
fn between(grid: &[f64], value: f64) -> (usize, usize, f64) {
    let above = grid.partition_point(|&g| g <= value);
    if above == 0 {
        return (0, 0, 0.0);
    }
    if above == grid.len() {
        return (above - 1, above - 1, 0.0);
    }
    let (lo, hi) = (grid[above - 1], grid[above]);
    (above - 1, above, (value / lo).ln() / (hi / lo).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_interpolated_and_continued() {
        let table = RateTable {
            widths: vec![16.0, 64.0],
            sizes: vec![100.0, 10_000.0],
            per_sec: vec![vec![1e9, 4e9], vec![4e9, 16e9]],
        };
        assert_eq!(table.fault(), None);
        let near = |width, size, expected: f64| {
            let found = table.per_sec(width, size);
            assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
        };
        near(16.0, 100.0, 1e9);
        near(64.0, 10_000.0, 16e9);
        near(32.0, 1000.0, 4e9);
        near(1000.0, 1e9, 16e9);
        // Half the smallest call takes as long as the whole.
        near(16.0, 50.0, 0.5e9);
        let mut wrong = table.clone();
        wrong.per_sec[1][0] = 0.0;
        assert!(wrong.fault().is_some_and(|f| f.contains("a rate of 0")));
        wrong.per_sec.pop();
        assert!(wrong.fault().is_some_and(|f| f.contains("2 rows of 2")));
        wrong.sizes.reverse();
        assert!(wrong.fault().is_some_and(|f| f.contains("ascending")));
    }
}
