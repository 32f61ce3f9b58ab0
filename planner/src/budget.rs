//! How much memory a plan may use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::PlanError;

/// Memory that a step may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Device cap in bytes: one arena for parameters, gradients, optimiser
    /// state, activations and workspace. Never passed.
    pub device_bytes: u64,
    /// Host memory in bytes for tensors moved off the device; 0 forbids it.
    pub host_bytes: u64,
    /// Disk space in bytes for those that the host has no room for; 0 forbids it.
    pub disk_bytes: u64,
}

/// An amount of memory, written `512MiB`, `8GiB`, `1.5 GB` or in plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let bad = || PlanError::BadSize {
            text: text.to_owned(),
        };
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| c.is_ascii_alphabetic())
            .unwrap_or(trimmed.len());
        let number: f64 = trimmed[..split].trim().parse().map_err(|_| bad())?;
        let unit: f64 = match trimmed[split..].to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kib" | "k" => 1024.0,
            "mib" | "m" => 1024.0 * 1024.0,
            "gib" | "g" => 1024.0 * 1024.0 * 1024.0,
            "tib" | "t" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            _ => return Err(bad()),
        };
        let bytes = number * unit;
        if !(0.0..=1e18).contains(&bytes) {
            return Err(bad());
        }
        Ok(ByteSize(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|(_, shift)| self.0 >= 1 << shift) {
            Some((unit, shift)) => {
                let value = bytes / (1u64 << shift) as f64;
                let digits = if value < 9.995 {
                    2
                } else {
                    usize::from(value < 99.95)
                };
                write!(f, "{value:.digits$} {unit}")
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print() {
        let cases = [
            ("512MiB", 512 << 20, "512 MiB"),
            ("8GiB", 8 << 30, "8.00 GiB"),
            ("1.5 GB", 1_500_000_000, "1.40 GiB"),
            ("100", 100, "100 B"),
            ("0", 0, "0 B"),
        ];
        for (text, bytes, shown) in cases {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
        }
        for text in ["", "MiB", "12 parsecs", "-3MiB", "1e400"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
