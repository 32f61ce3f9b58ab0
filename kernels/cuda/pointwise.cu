// Ops that look at one position at a time, and softmax, which looks at its channels.

// Of the code of a unary function, `src/cuda/lower.rs` is the other half.
__device__ inline real unary_of(i64 code, real x, real slope) {
    switch (code) {
    case 0: return x <= 0 ? (real)0 : x;
    case 1: return x > 0 ? x : slope * x;
    case 2: return x * normal_below(x);
    case 3: return x * sigmoid(x);
    case 4: return sigmoid(x);
    case 5: return tanh_of(x);
    default: return exp_of(x);
    }
}

KERNEL unary(ARGS) {
    EACH_ELEMENT(p) *at(a.out, p) = unary_of(a.code, *at(a.in[0], p), (real)a.num[0]);
}

// From the argument (flag 0) or from the function's value (flag 1).
__device__ inline real unary_slope(i64 code, bool from_value, real s, real slope) {
    switch (code) {
    case 0: return s <= 0 ? (real)0 : (real)1;
    case 1: return s > 0 ? (real)1 : slope;
    case 2: {
        if (from_value) return not_a_number();
        real density = (real)0.39894228040143267794 * exp_of(-(real)0.5 * s * s);
        return normal_below(s) + s * density;
    }
    case 3: {
        if (from_value) return not_a_number();
        real y = sigmoid(s);
        return y * ((real)1 + s * ((real)1 - y));
    }
    case 4: {
        real y = from_value ? s : sigmoid(s);
        return y * ((real)1 - y);
    }
    case 5: {
        real y = from_value ? s : tanh_of(s);
        return (real)1 - y * y;
    }
    default: return from_value ? s : exp_of(s);
    }
}

KERNEL unary_grad(ARGS) {
    EACH_ELEMENT(p) {
        real s = *at(a.in[0], p), g = *at(a.in[1], p);
        // A masked gradient is zero, be it what it may.
        *at(a.out, p) = a.code == 0 ? (s <= 0 ? (real)0 : g)
                                    : g * unary_slope(a.code, a.flag != 0, s, (real)a.num[0]);
    }
}

// The value that `b` repeats at `p`: flat [N, C] with either extent perhaps one
// (flag), or a map, perhaps of one channel.
__device__ inline real repeated(const View &b, const Pos &p, bool flat) {
    i64 c = b.dims[1] == 1 ? 0 : p.c;
    return flat ? *at(b, b.dims[0] == 1 ? 0 : p.n, c, 0, 0, 0) : *at(b, p.n, c, p.d, p.h, p.w);
}

KERNEL add(ARGS) {
    EACH_ELEMENT(p) *at(a.out, p) = *at(a.in[0], p) + repeated(a.in[1], p, a.flag != 0);
}

KERNEL mul(ARGS) {
    EACH_ELEMENT(p) *at(a.out, p) = *at(a.in[0], p) * repeated(a.in[1], p, a.flag != 0);
}

KERNEL scale(ARGS) {
    EACH_ELEMENT(p) *at(a.out, p) = (real)a.num[0] * *at(a.in[0], p);
}

KERNEL softmax(ARGS) {
    EACH_POINT(p) {
        real most = (real)-infinity(), total = 0;
        for (p.c = 0; p.c < a.channels; ++p.c) most = larger(most, *at(a.in[0], p));
        for (p.c = 0; p.c < a.channels; ++p.c) {
            real e = exp_of(*at(a.in[0], p) - most);
            *at(a.out, p) = e;
            total += e;
        }
        for (p.c = 0; p.c < a.channels; ++p.c) *at(a.out, p) /= total;
    }
}

KERNEL softmax_grad(ARGS) {
    EACH_POINT(p) {
        real mean = 0;
        for (p.c = 0; p.c < a.channels; ++p.c) mean += *at(a.in[0], p) * *at(a.in[1], p);
        for (p.c = 0; p.c < a.channels; ++p.c)
            *at(a.out, p) = *at(a.in[0], p) * (*at(a.in[1], p) - mean);
    }
}

KERNEL channel_sum(ARGS) {
    EACH_POINT(p) {
        double total = 0;
        for (i64 c = 0; c < a.in[0].dims[1]; ++c) total += *at(a.in[0], p.n, c, p.d, p.h, p.w);
        *at(a.out, p) = (real)total;
    }
}

// SplitMix64's finaliser: the hash of `src/cpu/random.rs`, bit for bit.
__device__ inline u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

#define GOLDEN 0x9e3779b97f4a7c15ull

// key: seed, step, key of the op, threshold; num: factor.
KERNEL dropout(ARGS) {
    EACH_ELEMENT(p) {
        u64 names[7] = {a.key[0], a.key[1], a.key[2], (u64)p.n, (u64)p.c, (u64)p.d, (u64)p.h};
        u64 row = 0;
        for (int i = 0; i < 7; ++i) row = mix((row + GOLDEN) ^ mix(names[i]));
        u64 hash = mix(row + ((u64)p.w + 1) * GOLDEN);
        *at(a.out, p) = (hash >> 11) >= a.key[3] ? *at(a.in[0], p) * (real)a.num[0] : (real)0;
    }
}
