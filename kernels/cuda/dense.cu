// Fully connected layers on flat tensors, and optimisers. Sums and updates run
// in double precision and are rounded once.

// x[N, F], w[O, F], b[O] (flag) → [N, O].
KERNEL linear(ARGS) {
    i64 outputs = a.in[1].dims[0], features = a.in[1].dims[1];
    EACH_INDEX(i) {
        const real *x = a.in[0].base + i / outputs * features;
        const real *w = a.in[1].base + i % outputs * features;
        double sum = 0;
        for (i64 f = 0; f < features; ++f) sum += (double)x[f] * (double)w[f];
        a.out.base[i] = (real)(sum + (a.flag ? (double)a.in[2].base[i % outputs] : 0.0));
    }
}

// ȳ[N, O], w[O, F] → [N, F].
KERNEL linear_input_grad(ARGS) {
    i64 outputs = a.in[1].dims[0], features = a.in[1].dims[1];
    EACH_INDEX(i) {
        double sum = 0;
        for (i64 o = 0; o < outputs; ++o)
            sum += (double)a.in[0].base[i / features * outputs + o] *
                   (double)a.in[1].base[o * features + i % features];
        a.out.base[i] = (real)sum;
    }
}

// x[N, F], ȳ[N, O] → [O, F].
KERNEL linear_weight_grad(ARGS) {
    i64 batch = a.in[0].dims[0], features = a.in[0].dims[1], outputs = a.in[1].dims[1];
    EACH_INDEX(i) {
        double sum = 0;
        for (i64 n = 0; n < batch; ++n)
            sum += (double)a.in[1].base[n * outputs + i / features] *
                   (double)a.in[0].base[n * features + i % features];
        a.out.base[i] = (real)sum;
    }
}

// out: the parameter; in: gradient, momentum (flag). num: learning rate,
// momentum, weight decay; code 1: Nesterov.
KERNEL sgd(ARGS) {
    EACH_INDEX(i) {
        double theta = (double)a.out.base[i];
        double g = (double)a.in[0].base[i] + a.num[2] * theta;
        if (a.flag) {
            double next = a.num[1] * (double)a.in[1].base[i] + g;
            a.in[1].base[i] = (real)next;
            g = a.code ? g + a.num[1] * next : next;
        }
        a.out.base[i] = (real)(theta - a.num[0] * g);
    }
}

// out: the parameter; in: gradient, mean, mean square. num: learning rate, β₁,
// β₂, ε, weight decay, lr / (1 − β₁ᵗ), √(1 − β₂ᵗ); flag: decay the parameter (AdamW).
KERNEL adam(ARGS) {
    EACH_INDEX(i) {
        double theta = (double)a.out.base[i], g = (double)a.in[0].base[i];
        if (a.flag) theta *= 1.0 - a.num[0] * a.num[4];
        else g += a.num[4] * theta;
        double mean = a.num[1] * (double)a.in[1].base[i] + (1.0 - a.num[1]) * g;
        double square = a.num[2] * (double)a.in[2].base[i] + (1.0 - a.num[2]) * g * g;
        a.in[1].base[i] = (real)mean;
        a.in[2].base[i] = (real)square;
        a.out.base[i] = (real)(theta - a.num[5] * mean / (sqrt(square) / a.num[6] + a.num[3]));
    }
}
