// Losses and their gradients. A label that names no class makes the loss, and
// the gradient at its position, NaN rather than read what is not there.

// The class that a label names, −1 if none.
__device__ inline i64 class_of(real label, i64 classes) {
    double l = (double)label;
    return l >= 0 && l < (double)classes && l == floor(l) ? (i64)l : -1;
}

// Sum of a loss over the region by one block: to the state, or its mean to the result.
__device__ inline void add_loss(const Args &a, double mine) {
    double sum = block_sum(mine);
    if (threadIdx.x == 0) {
        if (a.state) a.state[0] += sum;
        else flat(a.out)[0] = (real)(sum / a.num[0]);
    }
}

KERNEL cross_entropy(ARGS) {
    double loss = 0;
    for (i64 i = threadIdx.x; i < points(a); i += blockDim.x) {
        Pos p = position(a, i, 1);
        i64 named = class_of(*at(a.in[1], p), a.channels);
        real most = (real)-infinity(), total = 0;
        for (p.c = 0; p.c < a.channels; ++p.c) most = larger(most, *at(a.in[0], p));
        for (p.c = 0; p.c < a.channels; ++p.c) total += exp_of(*at(a.in[0], p) - most);
        p.c = named < 0 ? 0 : named;
        loss += named < 0 ? (double)not_a_number()
                          : log((double)total) + ((double)most - (double)*at(a.in[0], p));
    }
    add_loss(a, loss);
}

// in: logits, labels, ḡ; num[0]: count.
KERNEL cross_entropy_grad(ARGS) {
    real share = (real)((double)flat(a.in[2])[0] / a.num[0]);
    EACH_POINT(p) {
        real label = *at(a.in[1], p), most = (real)-infinity(), total = 0;
        for (p.c = 0; p.c < a.channels; ++p.c) most = larger(most, *at(a.in[0], p));
        for (p.c = 0; p.c < a.channels; ++p.c) {
            real e = exp_of(*at(a.in[0], p) - most);
            *at(a.out, p) = e;
            total += e;
        }
        real each = class_of(label, a.channels) >= 0 ? share / total : not_a_number();
        for (p.c = 0; p.c < a.channels; ++p.c) {
            real y = *at(a.out, p) * each;
            *at(a.out, p) = label == (real)p.c ? y - share : y;
        }
    }
}

KERNEL bce(ARGS) {
    double loss = 0;
    for (i64 i = threadIdx.x; i < points(a) * a.channels; i += blockDim.x) {
        Pos p = position(a, i, a.channels);
        real x = *at(a.in[0], p), t = *at(a.in[1], p);
        real positive = x <= 0 ? (real)0 : x, magnitude = x <= 0 ? -x : x;
        loss += (double)((positive - x * t) + log1p_of(exp_of(-magnitude)));
    }
    add_loss(a, loss);
}

KERNEL bce_grad(ARGS) {
    real share = (real)((double)flat(a.in[2])[0] / a.num[0]);
    EACH_ELEMENT(p) *at(a.out, p) = (sigmoid(*at(a.in[0], p)) - *at(a.in[1], p)) * share;
}

KERNEL mse(ARGS) {
    double loss = 0;
    for (i64 i = threadIdx.x; i < points(a) * a.channels; i += blockDim.x) {
        Pos p = position(a, i, a.channels);
        double off = (double)*at(a.in[0], p) - (double)*at(a.in[1], p);
        loss += off * off;
    }
    add_loss(a, loss);
}

KERNEL mse_grad(ARGS) {
    real share = (real)((double)flat(a.in[2])[0] / a.num[0]);
    EACH_ELEMENT(p) {
        real off = *at(a.in[0], p) - *at(a.in[1], p);
        *at(a.out, p) = (off + off) * share;
    }
}

KERNEL dice_sums(ARGS) {
    EACH_RESULT(b, a.len[0] * a.channels) {
        i64 n = a.lo[0] + b / a.channels, c = b % a.channels;
        double sums[3] = {0, 0, 0};
        for (i64 i = threadIdx.x; i < space(a); i += blockDim.x) {
            Pos q = in_space(a, i, n, c);
            double p = (double)*at(a.in[0], q), t = (double)*at(a.in[1], q);
            sums[0] += p * t;
            sums[1] += p;
            sums[2] += t;
        }
        for (int k = 0; k < 3; ++k) {
            double sum = block_sum(sums[k]);
            i64 e = 3 * (n * a.channels + c) + k;
            if (threadIdx.x == 0) {
                if (a.state) a.state[e] += sum;
                else flat(a.out)[e] = (real)sum;
            }
        }
    }
}

// in: t, gradient of the sums.
KERNEL dice_sums_grad(ARGS) {
    EACH_ELEMENT(p) {
        const real *g = flat(a.in[1]) + 3 * (p.n * a.channels + p.c);
        *at(a.out, p) = *at(a.in[0], p) * g[0] + g[1];
    }
}

// One thread: there are as many terms as channels. num[0]: smoothing.
KERNEL dice_loss(ARGS) {
    if (thread_index() > 0) return;
    double total = 0;
    for (i64 i = 0; i < a.count; ++i) {
        const real *s = flat(a.in[0]) + 3 * i;
        total += (2.0 * (double)s[0] + a.num[0]) / ((double)s[1] + (double)s[2] + a.num[0]);
    }
    flat(a.out)[0] = (real)(1.0 - total / (double)a.count);
}

KERNEL dice_loss_grad(ARGS) {
    double share = (double)flat(a.in[1])[0] / (double)a.count;
    EACH_INDEX(i) {
        const real *s = flat(a.in[0]) + 3 * i;
        double above = 2.0 * (double)s[0] + a.num[0],
               below = (double)s[1] + (double)s[2] + a.num[0];
        real of_sums = (real)(share * above / (below * below));
        flat(a.out)[3 * i] = (real)(-2.0 * share / below);
        flat(a.out)[3 * i + 1] = of_sums;
        flat(a.out)[3 * i + 2] = of_sums;
    }
}
