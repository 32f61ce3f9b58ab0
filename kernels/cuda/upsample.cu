// Upsampling by integer factors (in `stride`) and its adjoint, which gathers.
// Code 0 repeats, 1 interpolates.

struct Sample {
    i64 lo, hi;
    double t; // (1 − t) x[lo] + t x[hi]
};

// What output `i` takes along axis `s`, `extent` being that of the small side.
__device__ inline Sample sample(const Args &a, int s, i64 i, i64 extent) {
    i64 f = a.stride[s];
    if (a.code == 0) return Sample{i / f, i / f, 0.0};
    i64 twice = 2 * i + 1 - f;
    if (twice < 0) return Sample{0, 0, 0.0};
    i64 floor = twice / (2 * f);
    if (floor >= extent - 1) return Sample{extent - 1, extent - 1, 0.0};
    return Sample{floor, floor + 1, (double)(twice % (2 * f)) / (double)(2 * f)};
}

// Columns' neighbour `w`, mixed over depth and rows.
__device__ inline real mixed(const View &x, const Pos &p, const Sample &sd, const Sample &sh, i64 w) {
    real sum = 0;
    for (int d = 0; d < 2; ++d)
        for (int h = 0; h < 2; ++h) {
            double weight = (d ? sd.t : 1.0 - sd.t) * (h ? sh.t : 1.0 - sh.t);
            if (weight != 0.0)
                sum += (real)weight * *at(x, p.n, p.c, d ? sd.hi : sd.lo, h ? sh.hi : sh.lo, w);
        }
    return sum;
}

KERNEL upsample(ARGS) {
    const View &x = a.in[0];
    EACH_ELEMENT(p) {
        Sample sd = sample(a, 0, p.d, x.dims[2]), sh = sample(a, 1, p.h, x.dims[3]),
               sw = sample(a, 2, p.w, x.dims[4]);
        real y = mixed(x, p, sd, sh, sw.lo);
        if (sw.t != 0.0)
            y = (real)(1.0 - sw.t) * y + (real)sw.t * mixed(x, p, sd, sh, sw.hi);
        *at(a.out, p) = y;
    }
}

// Weight with which output `i` took element `j`.
__device__ inline double taken(const Args &a, int s, i64 i, i64 j, i64 extent) {
    Sample v = sample(a, s, i, extent);
    return (v.lo == j ? 1.0 - v.t : 0.0) + (v.hi == j ? v.t : 0.0);
}

// Outputs that may take element `j`; a few on either side have no weight.
__device__ inline i64 first_taker(const Args &a, int s, i64 j) {
    i64 i = a.code == 0 ? j * a.stride[s] : (j - 1) * a.stride[s];
    return i > 0 ? i : 0;
}

__device__ inline i64 end_taker(const Args &a, int s, i64 j, i64 extent) {
    i64 i = (a.code == 0 ? j + 1 : j + 2) * a.stride[s];
    return i < extent * a.stride[s] ? i : extent * a.stride[s];
}

KERNEL upsample_grad(ARGS) {
    const View &x = a.out;
    EACH_ELEMENT(p) {
        real sum = 0;
        for (i64 w = first_taker(a, 2, p.w); w < end_taker(a, 2, p.w, x.dims[4]); ++w) {
            double of_w = taken(a, 2, w, p.w, x.dims[4]);
            if (of_w == 0.0) continue;
            real column = 0;
            for (i64 d = first_taker(a, 0, p.d); d < end_taker(a, 0, p.d, x.dims[2]); ++d) {
                double of_d = taken(a, 0, d, p.d, x.dims[2]);
                if (of_d == 0.0) continue;
                for (i64 h = first_taker(a, 1, p.h); h < end_taker(a, 1, p.h, x.dims[3]); ++h) {
                    double of_h = taken(a, 1, h, p.h, x.dims[3]);
                    if (of_h != 0.0)
                        column += (real)(of_d * of_h) * *at(a.in[0], p.n, p.c, d, h, w);
                }
            }
            sum += (real)of_w * column;
        }
        *at(a.out, p) = sum;
    }
}
