//! Random networks: small numbers that shrink well, turned into tapes.

use proptest::prelude::*;
use sstep_autodiff::{
    Attention, ConvSpec, DType, NodeId, PoolSpec, Shape, Tape, TapeError, UpsampleMode,
};

use super::Net;

/// A network, described by small numbers that shrink well.
#[derive(Clone, Debug)]
pub struct NetSpec {
    pub batch: usize,
    pub channels: usize,
    pub spatial: Vec<usize>,
    /// `(kind, a, b)` of each layer, applied to the latest map.
    pub layers: Vec<(u8, u8, u8)>,
    pub head: u8,
    pub seed: u64,
}

pub fn net_specs() -> impl Strategy<Value = NetSpec> {
    let spatial = prop_oneof![
        1 => prop::collection::vec(9usize..48, 1),
        4 => prop::collection::vec(7usize..28, 2),
        2 => prop::collection::vec(4usize..11, 3),
    ];
    let layers = prop::collection::vec((0u8..26, 0u8..=255, 0u8..=255), 1..9);
    (1usize..4, 1usize..4, spatial, layers, 0u8..8, any::<u64>()).prop_map(
        |(batch, channels, spatial, layers, head, seed)| NetSpec {
            batch,
            channels,
            spatial,
            layers,
            head,
            seed,
        },
    )
}

struct Builder {
    tape: Tape,
    n: usize,
}

type Built = Result<NodeId, TapeError>;

impl Builder {
    fn param(&mut self, dims: &[usize]) -> Built {
        self.n += 1;
        let name = format!("p{}", self.n);
        self.tape.param(&name, dims)
    }

    fn kernel(&mut self, out: usize, inp: usize, k: &[usize]) -> Built {
        let mut dims = vec![out, inp];
        dims.extend(k);
        self.param(&dims)
    }

    fn conv1(&mut self, x: NodeId, out: usize) -> Built {
        let c = self.c(x);
        let ones = vec![1; self.nd(x)];
        let w = self.kernel(out, c, &ones)?;
        self.tape.conv(x, w, None, ConvSpec::default())
    }

    fn c(&self, x: NodeId) -> usize {
        self.tape.ty(x).shape.channels()
    }

    fn nd(&self, x: NodeId) -> usize {
        self.tape.ty(x).shape.spatial().len()
    }

    fn affine(&mut self, x: NodeId) -> Result<(NodeId, NodeId), TapeError> {
        let c = self.c(x);
        Ok((self.param(&[c])?, self.param(&[c])?))
    }

    /// One layer on `x`; `older` are maps made before, for joins.
    fn layer(&mut self, (kind, a, b): (u8, u8, u8), x: NodeId, older: &[NodeId]) -> Built {
        let (a, b) = (a as usize, b as usize);
        let (c, nd) = (self.c(x), self.nd(x));
        let same_space: Vec<NodeId> = (older.iter().copied())
            .filter(|&o| self.tape.ty(o).shape.spatial() == self.tape.ty(x).shape.spatial())
            .collect();
        match kind {
            0..=4 => {
                let k: Vec<usize> = (0..nd).map(|i| 1 + (a >> (2 * i)) % 4).collect();
                let mut spec = ConvSpec::default();
                for i in 0..nd {
                    spec.stride[i] = 1 + (b >> i) % 2 + usize::from(b > 240);
                    spec.dilation[i] = 1 + (b >> (i + 3)) % 2;
                    spec.pad_lo[i] = (a >> i) % 3;
                    spec.pad_hi[i] = (b >> i) % 3;
                }
                let each = if kind == 4 {
                    1 + a % 2
                } else {
                    1 + (a + b) % 4
                };
                spec.groups = match kind {
                    4 => c,
                    3 if c % 2 == 0 => 2,
                    _ => 1,
                };
                let out = if spec.groups > 1 {
                    spec.groups * each.min(2)
                } else {
                    each
                };
                let w = self.kernel(out, c / spec.groups, &k)?;
                let bias = if b % 3 == 0 {
                    Some(self.param(&[out])?)
                } else {
                    None
                };
                self.tape.conv(x, w, bias, spec)
            }
            5 => {
                let k: Vec<usize> = (0..nd).map(|i| 1 + (a >> i) % 3).collect();
                let out = 1 + b % 3;
                let w = self.kernel(c, out, &k)?;
                let bias = if b % 2 == 0 {
                    Some(self.param(&[out])?)
                } else {
                    None
                };
                let mut spec = ConvSpec::default().strided(1 + a % 2);
                for (i, &taps) in k.iter().enumerate() {
                    spec.dilation[i] = 1 + (b >> (i + 1)) % 2;
                    spec.pad_lo[i] = usize::from(taps > 1 && (b >> (i + 4)) % 2 == 1);
                    spec.pad_hi[i] = usize::from(taps > 2 && (a >> (i + 4)) % 2 == 1);
                }
                self.tape.conv_transpose(x, w, bias, spec)
            }
            6 | 7 => {
                let mut pool = PoolSpec::new(2 + a % 2)
                    .strided(1 + b % 4)
                    .padded((a / 2) % 2);
                pool.pad_hi[0] += usize::from(pool.pad_lo[0] == 0 && a > 200);
                pool.count_pad = b > 127;
                if kind == 6 {
                    self.tape.max_pool(x, pool)
                } else {
                    self.tape.avg_pool(x, pool)
                }
            }
            8 => self.tape.relu(x),
            9 => match a % 6 {
                0 => self.tape.leaky_relu(x, 0.1),
                1 => self.tape.gelu(x),
                2 => self.tape.silu(x),
                3 => self.tape.sigmoid(x),
                4 => self.tape.tanh(x),
                _ => self.tape.scale(x, -1.5),
            },
            10..=13 => {
                let (gamma, beta) = self.affine(x)?;
                match (kind, a % 2) {
                    (10, _) => self.tape.batch_norm(x, gamma, beta, 1e-2),
                    (11, _) => self.tape.instance_norm(x, gamma, beta, 1e-2),
                    (12, 0) => self.tape.layer_norm(x, gamma, beta, 1e-2),
                    (12, _) => {
                        let groups = if c % 2 == 0 { 2 } else { c };
                        self.tape.group_norm(x, groups, gamma, beta, 1e-2)
                    }
                    _ => {
                        self.n += 2;
                        let mean = self.tape.frozen_param(&format!("m{}", self.n), &[c])?;
                        let var = self.tape.frozen_param(&format!("v{}", self.n), &[c])?;
                        self.tape.frozen_norm(x, [mean, var], gamma, beta, 1e-2)
                    }
                }
            }
            14..=16 => {
                // Residual: a same-shape branch, added back.
                let w = self.kernel(c, c, &vec![3; nd])?;
                let branch = self.tape.conv(x, w, None, ConvSpec::padded(1))?;
                let branch = if kind == 16 {
                    let (gamma, beta) = self.affine(branch)?;
                    self.tape.group_norm(branch, 1, gamma, beta, 1e-2)?
                } else {
                    self.tape.relu(branch)?
                };
                self.tape.add(branch, x)
            }
            17 | 18 => {
                let Some(&other) = same_space.get(a % same_space.len().max(1)) else {
                    return self.tape.tanh(x);
                };
                self.tape.concat(&[x, other])
            }
            19 => {
                let Some(&other) = same_space.get(a % same_space.len().max(1)) else {
                    return self.tape.tanh(x);
                };
                if self.c(other) != c {
                    return self.conv1(x, 2);
                }
                self.tape.mul(x, other)
            }
            20 | 21 => {
                let mode = if kind == 20 {
                    UpsampleMode::Nearest
                } else {
                    UpsampleMode::Linear
                };
                let elems = self.tape.ty(x).shape.elems();
                if elems > 4000 {
                    return self.tape.tanh(x);
                }
                self.tape.upsample(x, 2 + a % 2, mode)
            }
            22 => {
                // Squeeze and excite.
                let v = self.tape.global_mean(x)?;
                let w = self.param(&[c, c])?;
                let v = self.tape.linear(v, w, None)?;
                let v = self.tape.sigmoid(v)?;
                self.tape.mul(x, v)
            }
            23 => {
                let gate = self.conv1(x, 1)?;
                let gate = self.tape.sigmoid(gate)?;
                self.tape.mul(x, gate)
            }
            24 => {
                let extents = self.tape.ty(x).shape.spatial().to_vec();
                if a % 2 == 0 {
                    let lo: Vec<usize> = (0..nd).map(|i| (b >> i) % 3).collect();
                    let mut all = vec![0];
                    all.extend(&lo);
                    self.tape.pad(x, &all, &vec![1; nd + 1])
                } else {
                    let mut start = vec![0];
                    let mut len = vec![c];
                    for e in extents {
                        let cut = (b % 3).min(e / 3);
                        start.push(cut);
                        len.push(e - cut - usize::from(e - cut > 2));
                    }
                    self.tape.slice(x, &start, &len)
                }
            }
            _ => self.tape.dropout(x, 0.3),
        }
    }

    fn head(&mut self, head: u8, x: NodeId) -> Built {
        let shape = self.tape.ty(x).shape;
        let (n, nd) = (shape.batch(), self.nd(x));
        match head {
            0..=3 => {
                let pooled = match head {
                    0 => self.tape.global_mean(x)?,
                    1 => self.tape.global_max(x)?,
                    2 => self.tape.lse_pool(x, 2.0)?,
                    _ => {
                        let c = self.c(x);
                        let ones = vec![1; nd];
                        let v = self.kernel(3, c, &ones)?;
                        let u = self.kernel(3, c, &ones)?;
                        let w = self.kernel(1, 3, &ones)?;
                        let attention = Attention {
                            v,
                            v_bias: None,
                            u,
                            u_bias: None,
                            w,
                        };
                        self.tape.attention_pool(x, attention)?
                    }
                };
                let f = self.tape.ty(pooled).shape.channels();
                let w = self.param(&[3, f])?;
                let bias = self.param(&[3])?;
                let logits = self.tape.linear(pooled, w, Some(bias))?;
                let labels = self.tape.input("labels", &[n, 1])?;
                self.tape.cross_entropy(logits, labels)
            }
            4 => {
                let mut dims = shape.with_channels(1).dims().to_vec();
                let logits = self.conv1(x, 3)?;
                dims[1] = 1;
                let labels = self.tape.input("labels", &dims)?;
                self.tape.cross_entropy(logits, labels)
            }
            5 => {
                let logits = self.conv1(x, 2)?;
                let p = self.tape.softmax(logits)?;
                let t = self.tape.input("target", self.tape.ty(p).shape.dims())?;
                self.tape.soft_dice(p, t, 1.0)
            }
            6 => {
                let t = self.tape.input("target", shape.dims())?;
                self.tape.bce(x, t)
            }
            _ => {
                let t = self.tape.input("target", shape.dims())?;
                self.tape.mse(x, t)
            }
        }
    }
}

/// Builds the net of a spec. Layers that do not fit are left out.
pub fn build(spec: &NetSpec, dtype: DType, image_grad: bool) -> Net {
    let (tape, loss) = forward(spec, dtype, image_grad);
    Net::new(tape, loss)
}

/// The same up to its loss, and that.
pub fn forward(spec: &NetSpec, dtype: DType, image_grad: bool) -> (Tape, NodeId) {
    let mut b = Builder {
        tape: Tape::new(dtype),
        n: 0,
    };
    let dims = Shape::map(spec.batch, spec.channels, &spec.spatial);
    let image = if image_grad {
        b.tape.input_with_grad("image", dims.dims())
    } else {
        b.tape.input("image", dims.dims())
    };
    let image = image.expect("an image");
    let w = b
        .kernel(2, spec.channels, &vec![1; spec.spatial.len()])
        .expect("a kernel");
    let mut x = b
        .tape
        .conv(image, w, None, ConvSpec::default())
        .expect("a 1x1 conv");
    let mut maps = vec![x];
    for &layer in &spec.layers {
        if let Ok(y) = b.layer(layer, x, &maps) {
            x = y;
            maps.push(y);
        }
    }
    let loss = b.head(spec.head, x).expect("a head fits every map");
    (b.tape, loss)
}

/// Three convolutions with norms over the whole image, the last of stride `stride`,
/// down to a class: what a level makes must be stored for the next, and again for the
/// backward pass.
pub fn normed([height, width]: [usize; 2], channels: usize, stride: usize) -> String {
    let points = height.div_ceil(stride) * width.div_ceil(stride);
    let mean = 1.0 / points as f64;
    format!(
        "x = input [1, 3, {height}, {width}]\nw1 = param [{channels}, 3, 3, 3]\n\
         g1 = param [{channels}]\nb1 = param [{channels}]\n\
         w2 = param [{channels}, {channels}, 3, 3]\ng2 = param [{channels}]\n\
         b2 = param [{channels}]\nw3 = param [{channels}, {channels}, 3, 3]\n\
         fc = param [3, {channels}]\nc1 = conv(x, w1) pad=1\nm1 = moments(c1) groups=4\n\
         n1 = normalise(c1, m1, g1, b1) groups=4 eps=1e-5\nr1 = relu(n1)\n\
         c2 = conv(r1, w2) pad=1\nm2 = moments(c2) groups=4\n\
         n2 = normalise(c2, m2, g2, b2) groups=4 eps=1e-5\nr2 = relu(n2)\n\
         c3 = conv(r2, w3) stride={stride} pad=1\nr3 = relu(c3)\ns = sum_map(r3)\n\
         h = scale(s) factor={mean:e}\ny = linear(h, fc)\nlabels = input [1, 1]\n\
         l = cross_entropy(y, labels)"
    )
}
