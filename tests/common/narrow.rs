//! Nets whose maps are stored in 16 bits, and what rounding may do to them.

use sstep_autodiff::{DType, Tape, narrow};

use super::nets::{NetSpec, forward};
use super::{Net, Tensors, cast, differences, oracle};

/// Distance of neighbours at 1.
pub fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        DType::F32 | DType::F64 => panic!("{dtype} is not narrow"),
    }
}

/// A tape up to its loss, differentiated after its maps were narrowed.
pub fn narrowed(tape: &Tape, loss: &str, to: DType) -> Net {
    scaled(tape, loss, to, 1.0)
}

/// The same from so many times the loss.
pub fn scaled(tape: &Tape, loss: &str, to: DType, scale: f64) -> Net {
    let tape = narrow(tape, to).expect("a tape of f32");
    let loss = tape.by_name(loss).expect("nodes keep their names");
    Net::scaled(tape, loss, scale)
}

pub fn of_spec(spec: &NetSpec, to: DType) -> Net {
    let (tape, loss) = forward(spec, DType::F32, false);
    let name = tape.node(loss).name.clone();
    narrowed(&tape, &name, to)
}

/// A plan errs no more than the untiled run does: sums in another order move a value
/// across a rounding of the storage here and there, which is what the storage itself
/// does everywhere.
pub fn judge(spec: &NetSpec, net: &Net, values: &Tensors<f32>, got: &Tensors<f32>, to: DType) {
    let want = oracle(net, values);
    let apart = differences(got, &want);
    if apart.values().all(|e| *e <= 1e-5) {
        return;
    }
    let (tape, loss) = forward(spec, DType::F64, false);
    let exact = oracle(&Net::new(tape, loss), &cast::<f32, f64>(values));
    let untiled = differences(&want, &exact);
    let worst = untiled.values().fold(0.0f64, |m, e| m.max(*e));
    for (name, e) in apart {
        let allowed = (4.0 * untiled[&name]).max(worst).max(2.0 * unit(to));
        assert!(e <= allowed, "{name} differs by {e:e} of {allowed:e}");
    }
}
