//! How parameters start.
//!
//! Values are drawn from a generator keyed by the seed and the parameter's
//! name, so adding a layer or changing the order of layers leaves the others'
//! start as it was.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use sstep_autodiff::{NodeId, Op, Shape, Tape};
use sstep_kernels::Real;

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with variance `2 / fan` (He et al., arXiv:1502.01852).
    Kaiming {
        /// Terms summed per output, or outputs reached per input.
        fan: usize,
    },
    /// Uniform in `±bound`.
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// All of one value.
    Constant(f64),
}

/// The values that the parameter `name` of the given shape starts from.
pub fn init_values<T: Real>(init: Init, name: &str, shape: Shape, seed: u64) -> Vec<T> {
    let n = shape.elems();
    let constant = |value: f64| vec![T::from_f64(value); n];
    match init {
        Init::Zeros => constant(0.0),
        Init::Ones => constant(1.0),
        Init::Constant(value) => constant(value),
        Init::Kaiming { fan } => {
            let std = (2.0 / fan.max(1) as f64).sqrt();
            let draws = Distribution::<f64>::sample_iter(StandardNormal, generator(name, seed));
            draws.take(n).map(|v| T::from_f64(std * v)).collect()
        }
        Init::Uniform { bound } => match Uniform::new_inclusive(-bound, bound) {
            Ok(uniform) => {
                let draws = uniform.sample_iter(generator(name, seed));
                draws.take(n).map(T::from_f64).collect()
            }
            // A bound that is not a number: not of our own making.
            Err(_) => constant(0.0),
        },
    }
}

/// A generator of its own for each name.
fn generator(name: &str, seed: u64) -> ChaCha8Rng {
    // FNV-1a: stable across platforms and releases, unlike the standard hasher.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// A start for every parameter of a tape, from how it is used: weights of
/// convolutions Kaiming by fan-out, of linear layers uniform in `±1/√fan-in` (as
/// PyTorch does), factors of norms and variances one, everything else zero.
pub fn inits_of(tape: &Tape) -> BTreeMap<String, Init> {
    let mut inits = BTreeMap::new();
    for &id in tape.order() {
        if matches!(tape.node(id).op, Op::Param { .. }) {
            inits.insert(tape.node(id).name.clone(), Init::Zeros);
        }
    }
    let mut uses: Vec<(NodeId, Init)> = Vec::new();
    for &id in tape.order() {
        let node = tape.node(id);
        let dims = |input: usize| tape.ty(node.inputs[input]).shape;
        // A weight may be stored in 16 bits where it is used.
        let weight = || match tape.node(node.inputs[1]) {
            cast if matches!(cast.op, Op::Cast { .. }) => cast.inputs[0],
            _ => node.inputs[1],
        };
        if let Op::Conv(_) = node.op {
            let w = dims(1);
            let fan = w.batch() * w.spatial().iter().product::<usize>();
            uses.push((weight(), Init::Kaiming { fan }));
        } else if let Op::ConvTranspose(a) = node.op {
            let w = dims(1);
            // Each output is reached by about one tap per stride.
            let taps = w
                .spatial()
                .iter()
                .zip(&a.conv.stride)
                .map(|(k, s)| k.div_ceil(*s));
            let fan = w.batch() * taps.product::<usize>();
            uses.push((weight(), Init::Kaiming { fan }));
        } else if let Op::Linear = node.op {
            let bound = 1.0 / (dims(1).channels() as f64).sqrt();
            for &input in &node.inputs[1..] {
                uses.push((input, Init::Uniform { bound }));
            }
        } else if let Op::Normalise(_) = node.op {
            uses.push((node.inputs[2], Init::Ones));
        } else if let Op::PackMoments = node.op {
            uses.push((node.inputs[1], Init::Ones));
        }
    }
    // The first use of a shared parameter decides.
    for (param, init) in uses.into_iter().rev() {
        if let Some(slot) = inits.get_mut(&tape.node(param).name) {
            *slot = init;
        }
    }
    inits
}

#[cfg(test)]
mod tests {
    use super::*;
    use sstep_autodiff::{ConvSpec, DType};

    #[test]
    fn kaiming_has_its_variance_and_repeats() {
        let shape = Shape::new(&[64, 64, 3, 3]);
        let init = Init::Kaiming { fan: 576 };
        let a: Vec<f64> = init_values(init, "w", shape, 1);
        let variance = a.iter().map(|v| v * v).sum::<f64>() / a.len() as f64;
        assert!((variance * 576.0 / 2.0 - 1.0).abs() < 0.03, "{variance}");
        assert_eq!(a, init_values::<f64>(init, "w", shape, 1));
        assert_ne!(a, init_values::<f64>(init, "v", shape, 1));
        assert_ne!(a, init_values::<f64>(init, "w", shape, 2));
    }

    #[test]
    fn starts_follow_use() -> Result<(), sstep_autodiff::TapeError> {
        let mut tape = Tape::new(DType::F32);
        let x = tape.input("x", &[1, 3, 8, 8])?;
        let w = tape.param("w", &[4, 3, 3, 3])?;
        let b = tape.param("b", &[4])?;
        let [gamma, beta] = [tape.param("gamma", &[4])?, tape.param("beta", &[4])?];
        let y = tape.conv(x, w, Some(b), ConvSpec::padded(1))?;
        let y = tape.group_norm(y, 2, gamma, beta, 1e-5)?;
        let y = tape.global_mean(y)?;
        let fc = tape.param("fc", &[2, 4])?;
        tape.linear(y, fc, None)?;
        let inits = inits_of(&tape);
        assert_eq!(inits["w"], Init::Kaiming { fan: 36 });
        assert_eq!((inits["b"], inits["beta"]), (Init::Zeros, Init::Zeros));
        assert_eq!(inits["gamma"], Init::Ones);
        assert_eq!(inits["fc"], Init::Uniform { bound: 0.5 });
        Ok(())
    }
}
