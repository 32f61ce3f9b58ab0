// Sums, maxima and log-sum-exp over space. One block per result: its threads
// take every THREADS-th position, and what they hold is joined in a fixed tree.
// With a state, the call adds to it; without, it covers the whole domain and
// writes the result.

// Blocks of a launch take results b, b + gridDim.x, ….
#define EACH_RESULT(b, n) for (i64 b = blockIdx.x; b < (n); b += gridDim.x)

// Position i of one channel of one sample.
__device__ inline Pos in_space(const Args &a, i64 i, i64 n, i64 c) {
    Pos p = position(a, i, 1);
    p.n = n;
    p.c = c;
    return p;
}

// Positions of one channel of one sample.
__device__ inline i64 space(const Args &a) { return a.len[1] * a.len[2] * a.len[3]; }

// flag: keep the batch.
KERNEL sum_map(ARGS) {
    i64 samples = a.flag ? a.len[0] : 1, each = a.flag ? space(a) : points(a);
    EACH_RESULT(b, samples * a.channels) {
        i64 n = b / a.channels + (a.flag ? a.lo[0] : 0), c = b % a.channels;
        double sum = 0;
        for (i64 i = threadIdx.x; i < each; i += blockDim.x) {
            Pos p = position(a, i, 1);
            if (a.flag) p.n = n;
            p.c = c;
            sum += (double)*at(a.in[0], p);
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) {
            if (a.state) a.state[n * a.channels + c] += sum;
            else flat(a.out)[n * a.channels + c] = (real)sum;
        }
    }
}

// A maximum and its place among the whole map's positions; −1 if there is none.
struct Peak {
    double value;
    i64 at;
};

__device__ inline bool beats(const Peak &x, const Peak &y) {
    if (x.at < 0 || y.at < 0) return x.at >= 0;
    bool nan_x = !(x.value == x.value), nan_y = !(y.value == y.value);
    if (nan_x || nan_y) return nan_x && (!nan_y || x.at < y.at);
    return x.value > y.value || (x.value == y.value && x.at < y.at);
}

// code: number of spatial axes. Where part `part` of (n, c) stands in the state
// and in the result [N, C (1 + d)].
__device__ inline i64 packed(const Args &a, i64 n, i64 c, i64 part) {
    return (n * (1 + a.code) + part) * a.channels + c;
}

KERNEL global_max(ARGS) {
    __shared__ Peak peaks[THREADS];
    const i64 *dims = a.in[0].dims;
    EACH_RESULT(b, a.len[0] * a.channels) {
        i64 n = a.lo[0] + b / a.channels, c = b % a.channels;
        Peak best = {0, -1};
        for (i64 i = threadIdx.x; i < space(a); i += blockDim.x) {
            Pos p = in_space(a, i, n, c);
            Peak here = {(double)*at(a.in[0], p), (p.d * dims[3] + p.h) * dims[4] + p.w};
            if (beats(here, best)) best = here;
        }
        __syncthreads();
        peaks[threadIdx.x] = best;
        __syncthreads();
        for (int half = THREADS / 2; half > 0; half /= 2) {
            if (threadIdx.x < half && beats(peaks[threadIdx.x + half], peaks[threadIdx.x]))
                peaks[threadIdx.x] = peaks[threadIdx.x + half];
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            Peak found = peaks[0];
            if (a.state && a.code > 0) {
                Peak old = {a.state[packed(a, n, c, 0)], 0};
                for (i64 s = 0; s < a.code; ++s) {
                    double coordinate = a.state[packed(a, n, c, 1 + s)];
                    if (coordinate < 0 || old.at < 0) old.at = -1;
                    else old.at = old.at * dims[5 - a.code + s] + (i64)coordinate;
                }
                if (!beats(found, old)) found = old;
            }
            if (found.at >= 0) {
                i64 rest = found.at;
                for (i64 s = a.code - 1; s >= 0; --s) {
                    i64 coordinate = rest % dims[5 - a.code + s];
                    rest /= dims[5 - a.code + s];
                    if (a.state) a.state[packed(a, n, c, 1 + s)] = (double)coordinate;
                    else flat(a.out)[packed(a, n, c, 1 + s)] = (real)coordinate;
                }
                if (a.state) a.state[packed(a, n, c, 0)] = found.value;
                else flat(a.out)[packed(a, n, c, 0)] = (real)found.value;
            }
        }
    }
}

// in: packed maxima, their gradient; code: number of spatial axes.
KERNEL global_max_grad(ARGS) {
    EACH_ELEMENT(p) {
        i64 here[3] = {p.d, p.h, p.w};
        bool is_peak = true;
        for (i64 s = 0; s < a.code; ++s)
            is_peak &= here[3 - a.code + s] == (i64)flat(a.in[0])[packed(a, p.n, p.c, 1 + s)];
        *at(a.out, p) = is_peak ? flat(a.in[1])[packed(a, p.n, p.c, 0)] : (real)0;
    }
}

// A sum of exponentials, e^most · total.
struct Exponentials {
    double most, total;
};

__device__ inline double scaled(const Exponentials &x, double most) {
    return x.most == most ? x.total : x.total * exp(x.most - most);
}

__device__ inline Exponentials joined(const Exponentials &x, const Exponentials &y) {
    double most = y.most > x.most || !(y.most == y.most) ? y.most : x.most;
    return Exponentials{most, scaled(x, most) + scaled(y, most)};
}

// An infinite or missing maximum is the answer itself.
__device__ inline double log_of(const Exponentials &x) {
    bool finite = x.most - x.most == 0;
    return finite ? x.most + log(x.total) : x.most;
}

KERNEL spatial_lse(ARGS) {
    __shared__ Exponentials parts[THREADS];
    EACH_RESULT(b, a.len[0] * a.channels) {
        i64 n = a.lo[0] + b / a.channels, c = b % a.channels;
        Exponentials mine = {-infinity(), 0};
        for (i64 i = threadIdx.x; i < space(a); i += blockDim.x) {
            double x = (double)*at(a.in[0], in_space(a, i, n, c));
            // −∞ adds nothing, and would be subtracted from itself.
            if (x != -infinity()) mine = joined(mine, Exponentials{x, 1});
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
            i64 e = n * a.channels + c;
            if (a.state) {
                Exponentials all =
                    joined(Exponentials{a.state[2 * e], a.state[2 * e + 1]}, parts[0]);
                a.state[2 * e] = all.most;
                a.state[2 * e + 1] = all.total;
            } else {
                flat(a.out)[e] = (real)log_of(parts[0]);
            }
        }
    }
}

// The results of a state that is complete. Code 0: sums as they are; 1: the
// first divided by num[0]; 2: log-sum-exp; 3: mean and biased variance.
KERNEL finish(ARGS) {
    EACH_INDEX(i) {
        double y;
        switch (a.code) {
        case 0: y = a.state[i]; break;
        case 1: y = a.state[0] / a.num[0]; break;
        case 2: y = log_of(Exponentials{a.state[2 * i], a.state[2 * i + 1]}); break;
        default: {
            const double *s = a.state + i / 2 * 3;
            y = i % 2 == 0 ? s[1] : s[2] / s[0];
        }
        }
        flat(a.out)[i] = (real)y;
    }
}

// Counts the elements of in[0] that are not finite. Every block adds its own to a number of its
// own.
KERNEL not_finite(ARGS) {
    double found = 0;
    EACH_INDEX(i) {
        real x = flat(a.in[0])[i];
        if (!(x - x == (real)0)) found += 1;
    }
    found = block_sum(found);
    if (threadIdx.x == 0) a.state[blockIdx.x] += found;
}
