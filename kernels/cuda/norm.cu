// Batch, group, instance and layer norm. Statistics are merged after Chan, Golub
// and LeVeque; what uses them is pointwise, one block per channel of a sample
// (and per piece of it), so that statistics are read once per block.

struct Spread {
    double count, mean, squares;
};

__device__ inline Spread joined(const Spread &x, const Spread &y) {
    if (x.count == 0) return y;
    if (y.count == 0) return x;
    double count = x.count + y.count, off = y.mean - x.mean, share = y.count / count;
    return Spread{count, x.mean + off * share, x.squares + y.squares + off * off * x.count * share};
}

// groups: of a sample; 0 for batch norm, whose results run over the batch.
KERNEL moments(ARGS) {
    __shared__ Spread parts[THREADS];
    i64 group_len = a.groups ? a.channels / a.groups : 1;
    i64 results = a.groups ? a.len[0] * a.groups : a.channels;
    i64 each = a.groups ? space(a) * group_len : points(a);
    EACH_RESULT(b, results) {
        Spread mine = {0, 0, 0};
        for (i64 i = threadIdx.x; i < each; i += blockDim.x) {
            Pos p;
            if (a.groups) {
                p = in_space(a, i % space(a), a.lo[0] + b / a.groups,
                             b % a.groups * group_len + i / space(a));
            } else {
                p = position(a, i, 1);
                p.c = b;
            }
            double x = (double)*at(a.in[0], p), off = x - mine.mean;
            mine.count += 1;
            mine.mean += off / mine.count;
            mine.squares += off * (x - mine.mean);
        }
        __syncthreads();
        parts[threadIdx.x] = mine;
        __syncthreads();
        for (int half = THREADS / 2; half > 0; half /= 2) {
            if (threadIdx.x < half)
                parts[threadIdx.x] = joined(parts[threadIdx.x], parts[threadIdx.x + half]);
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            i64 e = a.groups ? a.lo[0] * a.groups + b : b;
            if (a.state) {
                double *s = a.state + 3 * e;
                Spread all = joined(Spread{s[0], s[1], s[2]}, parts[0]);
                s[0] = all.count;
                s[1] = all.mean;
                s[2] = all.squares;
            } else {
                flat(a.out)[2 * e] = (real)parts[0].mean;
                flat(a.out)[2 * e + 1] = (real)(parts[0].squares / parts[0].count);
            }
        }
    }
}

KERNEL pack_moments(ARGS) {
    EACH_INDEX(i) flat(a.out)[i] = flat(a.in[i % 2])[i / 2];
}

// Mean, and one over the standard deviation, from moments [N or 1, G, 2].
__device__ inline void statistics(const Args &a, const View &m, i64 n, i64 c, double *mean,
                                  double *rstd) {
    i64 groups = m.dims[1], i = (m.dims[0] > 1 ? n : 0) * groups + c / (a.channels / groups);
    *mean = (double)flat(m)[2 * i];
    *rstd = 1.0 / sqrt((double)flat(m)[2 * i + 1] + a.num[0]);
}

// Blocks work on piece `b / slots` of channel and sample `b % slots`.
#define EACH_PIECE(b)                                                                              \
    i64 slots_ = a.len[0] * a.channels;                                                            \
    i64 pieces_ = (space(a) + a.count - 1) / a.count;                                              \
    for (i64 b = blockIdx.x; b < slots_ * pieces_; b += gridDim.x)

#define PIECE_OF(b, n, c)                                                                          \
    i64 n = a.lo[0] + b % slots_ / a.channels, c = b % slots_ % a.channels

#define EACH_IN_PIECE(b, i)                                                                        \
    for (i64 i = b / slots_ * a.count + threadIdx.x,                                               \
             end_ = (b / slots_ + 1) * a.count < space(a) ? (b / slots_ + 1) * a.count : space(a); \
         i < end_; i += blockDim.x)

// in: x, moments, γ, β.
KERNEL normalise(ARGS) {
    EACH_PIECE(b) {
        PIECE_OF(b, n, c);
        double mean, rstd;
        statistics(a, a.in[1], n, c, &mean, &rstd);
        real centre = (real)mean, factor = (real)(rstd * (double)flat(a.in[2])[c]);
        real offset = flat(a.in[3])[c];
        EACH_IN_PIECE(b, i) {
            Pos p = in_space(a, i, n, c);
            *at(a.out, p) = (*at(a.in[0], p) - centre) * factor + offset;
        }
    }
}

// in: x, moments, ȳ; the sums of ȳ and ȳ x̂.
KERNEL norm_sums(ARGS) {
    EACH_RESULT(b, a.len[0] * a.channels) {
        i64 n = a.lo[0] + b / a.channels, c = b % a.channels;
        double mean, rstd, plain = 0, with_x = 0;
        statistics(a, a.in[1], n, c, &mean, &rstd);
        for (i64 i = threadIdx.x; i < space(a); i += blockDim.x) {
            Pos p = in_space(a, i, n, c);
            double g = (double)*at(a.in[2], p);
            plain += g;
            with_x += g * ((double)*at(a.in[0], p) - mean);
        }
        plain = block_sum(plain);
        with_x = block_sum(with_x);
        if (threadIdx.x == 0) {
            i64 e = 2 * (n * a.channels + c);
            if (a.state) {
                a.state[e] += plain;
                a.state[e + 1] += with_x * rstd;
            } else {
                flat(a.out)[e] = (real)plain;
                flat(a.out)[e + 1] = (real)(with_x * rstd);
            }
        }
    }
}

// Frozen: in are moments, ȳ, γ.
KERNEL norm_grad_frozen(ARGS) {
    EACH_PIECE(b) {
        PIECE_OF(b, n, c);
        double mean, rstd;
        statistics(a, a.in[0], n, c, &mean, &rstd);
        real factor = (real)(rstd * (double)flat(a.in[2])[c]);
        EACH_IN_PIECE(b, i) {
            Pos p = in_space(a, i, n, c);
            *at(a.out, p) = factor * *at(a.in[1], p);
        }
    }
}

// Live: in are x, moments, ȳ, γ, sums; groups as in `moments`.
KERNEL norm_grad(ARGS) {
    const i64 *dims = a.in[0].dims;
    EACH_PIECE(b) {
        PIECE_OF(b, n, c);
        double mean, rstd, s1 = 0, s2 = 0;
        statistics(a, a.in[1], n, c, &mean, &rstd);
        i64 group_len = a.groups ? a.channels / a.groups : 1;
        i64 n_shared = a.groups ? group_len : dims[0];
        for (i64 i = 0; i < n_shared; ++i) {
            i64 of_n = a.groups ? n : i, of_c = a.groups ? c / group_len * group_len + i : c;
            double gamma = (double)flat(a.in[3])[of_c];
            const real *sums = flat(a.in[4]) + 2 * (of_n * a.channels + of_c);
            s1 += gamma * (double)sums[0];
            s2 += gamma * (double)sums[1];
        }
        double each = rstd / (double)(n_shared * dims[2] * dims[3] * dims[4]);
        real centre = (real)mean, of_g = (real)(rstd * (double)flat(a.in[3])[c]);
        real constant = (real)(s1 * each), of_x = (real)(s2 * each * rstd);
        EACH_IN_PIECE(b, i) {
            Pos p = in_space(a, i, n, c);
            *at(a.out, p) =
                of_g * *at(a.in[2], p) - (constant + of_x * (*at(a.in[0], p) - centre));
        }
    }
}

// Sums over the batch of `sums`: of ȳ (flag 0, β) or ȳ x̂ (flag 1, γ).
KERNEL norm_param_grad(ARGS) {
    EACH_INDEX(c) {
        double sum = 0;
        for (i64 n = 0; n < a.in[0].dims[0]; ++n)
            sum += (double)flat(a.in[0])[2 * (n * a.count + c) + a.flag];
        flat(a.out)[c] = (real)sum;
    }
}
