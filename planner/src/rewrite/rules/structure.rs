//! Values that are cut, padded, joined and repeated: moved less often, or not at all.

use egg::Id;
use sstep_autodiff::{MAX_SPATIAL, Num, Op, PadAttrs, Shape, SliceAttrs, Ty};

use super::super::lang::Expr;
use super::{Graph, Term, class, inner, over, ty};

/// Extents of channels and space, as attributes of slices have them.
fn extents(shape: &Shape) -> [usize; 1 + MAX_SPATIAL] {
    let mut out = [1; 1 + MAX_SPATIAL];
    out[..shape.rank() - 1].copy_from_slice(&shape.dims()[1..]);
    out
}

/// The box of `x`, or `x` itself if that is all of it.
fn slice_of(x: Id, shape: &Shape, slice: SliceAttrs) -> Term {
    let all = slice.start == [0; 1 + MAX_SPATIAL] && slice.len == extents(shape);
    if all {
        class(x)
    } else {
        over(Op::Slice(slice), &[x])
    }
}

/// Channels `from .. from + n` of maps like `like`, all of space.
pub fn channels(like: &Ty, from: usize, n: usize) -> SliceAttrs {
    let mut slice = SliceAttrs {
        start: [0; 1 + MAX_SPATIAL],
        len: extents(&like.shape),
    };
    slice.start[0] = from;
    slice.len[0] = n;
    slice
}

/// The slice that `e` is, with the slice's source.
fn slice(e: &Expr) -> Option<(SliceAttrs, Id)> {
    match e.head.op {
        Op::Slice(a) => Some((a, e.children[0])),
        _ => None,
    }
}

/// The padding that `e` is, with what is padded.
fn pad(e: &Expr) -> Option<(PadAttrs, Id)> {
    match e.head.op {
        Op::Pad(a) => Some((a, e.children[0])),
        _ => None,
    }
}

fn inner_slice(g: &Graph, id: Id) -> Option<(SliceAttrs, Id)> {
    slice(inner(g, id, |op| matches!(op, Op::Slice(_)))?)
}

fn inner_pad(g: &Graph, id: Id) -> Option<(PadAttrs, Id)> {
    pad(inner(g, id, |op| matches!(op, Op::Pad(_)))?)
}

/// A slice that keeps everything.
pub fn slice_of_everything(g: &Graph, e: &Expr) -> Option<Term> {
    let (a, x) = slice(e)?;
    (a.len == extents(&ty(g, x)?.shape)).then(|| class(x))
}

/// A slice of a slice is one slice.
pub fn slice_of_slice(g: &Graph, e: &Expr) -> Option<Term> {
    let (outer, y) = slice(e)?;
    let (within, x) = inner_slice(g, y)?;
    let mut both = outer;
    for (start, more) in both.start.iter_mut().zip(within.start) {
        *start += more;
    }
    Some(slice_of(x, &ty(g, x)?.shape, both))
}

/// A slice that lies in one part of a concatenation is a slice of that part.
pub fn slice_of_concat(g: &Graph, e: &Expr) -> Option<Term> {
    let (a, y) = slice(e)?;
    let parts = inner(g, y, |op| matches!(op, Op::Concat))?;
    let mut first = 0;
    for &part in &parts.children {
        let shape = ty(g, part)?.shape;
        let end = first + shape.channels();
        if a.start[0] >= first && a.start[0] + a.len[0] <= end {
            let mut of_part = a;
            of_part.start[0] -= first;
            return Some(slice_of(part, &shape, of_part));
        }
        first = end;
    }
    None
}

/// A slice that keeps none of the zeros is a slice of what was padded.
pub fn slice_of_pad(g: &Graph, e: &Expr) -> Option<Term> {
    let (a, y) = slice(e)?;
    let (zeros, x) = inner_pad(g, y)?;
    let shape = ty(g, x)?.shape;
    let mut of_x = a;
    for (i, extent) in extents(&shape).into_iter().enumerate() {
        of_x.start[i] = a.start[i].checked_sub(zeros.lo[i])?;
        if of_x.start[i] + a.len[i] > extent {
            return None;
        }
    }
    Some(slice_of(x, &shape, of_x))
}

/// A padding without zeros.
pub fn pad_of_nothing(_: &Graph, e: &Expr) -> Option<Term> {
    let (a, x) = pad(e)?;
    let none = [0; 1 + MAX_SPATIAL];
    (a.lo == none && a.hi == none).then(|| class(x))
}

/// A padding of a padding is one padding.
pub fn pad_of_pad(g: &Graph, e: &Expr) -> Option<Term> {
    let (outer, y) = pad(e)?;
    let (within, x) = inner_pad(g, y)?;
    let mut both = outer;
    for i in 0..1 + MAX_SPATIAL {
        both.lo[i] += within.lo[i];
        both.hi[i] += within.hi[i];
    }
    Some(over(Op::Pad(both), &[x]))
}

/// Joined at once, nothing is copied twice; a single part is not copied at all.
pub fn concat_of_concats(g: &Graph, e: &Expr) -> Option<Term> {
    if e.head.op != Op::Concat {
        return None;
    }
    if let [only] = *e.children.as_slice() {
        return Some(class(only));
    }
    let at = |id: &Id| inner(g, *id, |op| matches!(op, Op::Concat));
    let nested = e.children.iter().position(|id| at(id).is_some())?;
    let mut parts = e.children.clone();
    let within = at(&parts[nested])?.children.clone();
    // Something that holds itself, by way of an empty rule, would grow forever.
    let circular = within.iter().any(|&id| g.find(id) == g.find(parts[nested]));
    parts.splice(nested..=nested, within);
    (!circular).then(|| over(Op::Concat, &parts))
}

/// Slices of one map side by side are one slice of it, or all of it.
pub fn concat_of_slices(g: &Graph, e: &Expr) -> Option<Term> {
    if e.head.op != Op::Concat || e.children.len() < 2 {
        return None;
    }
    let (first, x) = inner_slice(g, e.children[0])?;
    let mut all = first;
    for &part in &e.children[1..] {
        let mut of_x = g[part].nodes.iter().filter_map(slice);
        let (next, _) = of_x.find(|(a, y)| {
            let mut beside = *a;
            beside.start[0] = all.start[0];
            beside.len[0] = all.len[0];
            g.find(*y) == g.find(x) && a.start[0] == all.start[0] + all.len[0] && beside == all
        })?;
        all.len[0] += next.len[0];
    }
    Some(slice_of(x, &ty(g, x)?.shape, all))
}

/// Channels that are padded so that they lie side by side need not be added: the
/// gradient of a map of which slices were taken.
pub fn sum_of_pads(g: &Graph, e: &Expr) -> Option<Term> {
    if e.head.op != Op::Add {
        return None;
    }
    let [a, b] = *e.children.as_slice() else {
        return None;
    };
    let (pad_a, x) = inner_pad(g, a)?;
    let (pad_b, y) = inner_pad(g, b)?;
    let join = |(below, x): (PadAttrs, Id), (above, y): (PadAttrs, Id)| {
        let channels = ty(g, x)?.shape.channels();
        if below.lo[0] + channels != above.lo[0] {
            return None;
        }
        let (mut lo, mut hi) = (below.lo, above.hi);
        // Equal zeros around space can stay zeros around both.
        let around = below.lo[1..] == above.lo[1..] && below.hi[1..] == above.hi[1..];
        if !around {
            return None;
        }
        lo[1..].copy_from_slice(&below.lo[1..]);
        hi[1..].copy_from_slice(&below.hi[1..]);
        let joined = over(Op::Concat, &[x, y]);
        let none = [0; 1 + MAX_SPATIAL];
        if lo == none && hi == none {
            return Some(joined);
        }
        Some(Term::Node(Op::Pad(PadAttrs { lo, hi }), vec![joined]))
    };
    join((pad_a, x), (pad_b, y)).or_else(|| join((pad_b, y), (pad_a, x)))
}

/// A vector is scaled before it fills a map.
pub fn scale_of_broadcast(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::Scale { .. } = e.head.op else {
        return None;
    };
    let map = inner(g, e.children[0], |op| matches!(op, Op::Broadcast { .. }))?;
    Some(Term::Node(
        map.head.op,
        vec![over(e.head.op, &map.children)],
    ))
}

/// Summing what was repeated over space is a multiplication by the positions.
pub fn sum_of_broadcast(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::SumMap { keep_batch: true } = e.head.op else {
        return None;
    };
    let map = inner(g, e.children[0], |op| matches!(op, Op::Broadcast { .. }))?;
    let points: usize = ty(g, e.children[0])?.shape.spatial().iter().product();
    let factor = Num::new(points as f64);
    Some(over(Op::Scale { factor }, &map.children))
}

/// Sums are scaled, not what is summed.
pub fn sum_of_scaled(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::SumMap { .. } = e.head.op else {
        return None;
    };
    let scaled = inner(g, e.children[0], |op| matches!(op, Op::Scale { .. }))?;
    Some(Term::Node(
        scaled.head.op,
        vec![over(e.head.op, &scaled.children)],
    ))
}

/// Each part is summed where it is, and the sums are joined.
pub fn sum_of_concat(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::SumMap { keep_batch: true } = e.head.op else {
        return None;
    };
    // Of flat tensors it is another op: the sum over the batch.
    if !ty(g, e.children[0])?.is_map() {
        return None;
    }
    let parts = inner(g, e.children[0], |op| matches!(op, Op::Concat))?;
    let sums = parts.children.iter().map(|&p| over(e.head.op, &[p]));
    Some(Term::Node(Op::Concat, sums.collect()))
}
