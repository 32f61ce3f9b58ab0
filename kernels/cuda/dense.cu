// Fully connected layers on flat tensors, and optimisers. Sums and updates run
// in double precision and are rounded once.

// x[N, F], w[O, F], b[O] (flag) → [N, O].
KERNEL linear(ARGS) {
    i64 outputs = a.in[1].dims[0], features = a.in[1].dims[1];
    EACH_INDEX(i) {
        const real *x = flat(a.in[0]) + i / outputs * features;
        const real *w = flat(a.in[1]) + i % outputs * features;
        double sum = 0;
        for (i64 f = 0; f < features; ++f) sum += (double)x[f] * (double)w[f];
        flat(a.out)[i] = (real)(sum + (a.flag ? (double)flat(a.in[2])[i % outputs] : 0.0));
    }
}

// ȳ[N, O], w[O, F] → [N, F].
KERNEL linear_input_grad(ARGS) {
    i64 outputs = a.in[1].dims[0], features = a.in[1].dims[1];
    EACH_INDEX(i) {
        double sum = 0;
        for (i64 o = 0; o < outputs; ++o)
            sum += (double)flat(a.in[0])[i / features * outputs + o] *
                   (double)flat(a.in[1])[o * features + i % features];
        flat(a.out)[i] = (real)sum;
    }
}

// x[N, F], ȳ[N, O] → [O, F].
KERNEL linear_weight_grad(ARGS) {
    i64 batch = a.in[0].dims[0], features = a.in[0].dims[1], outputs = a.in[1].dims[1];
    EACH_INDEX(i) {
        double sum = 0;
        for (i64 n = 0; n < batch; ++n)
            sum += (double)flat(a.in[1])[n * outputs + i / features] *
                   (double)flat(a.in[0])[n * features + i % features];
        flat(a.out)[i] = (real)sum;
    }
}

// out: the parameter; in: gradient, momentum (flag). num: learning rate,
// momentum, weight decay, and last what the loss was scaled by; code 1: Nesterov.
KERNEL sgd(ARGS) {
    EACH_INDEX(i) {
        double theta = (double)flat(a.out)[i];
        double g = (double)flat(a.in[0])[i] / a.num[7] + a.num[2] * theta;
        if (a.flag) {
            double next = a.num[1] * (double)flat(a.in[1])[i] + g;
            flat(a.in[1])[i] = (real)next;
            g = a.code ? g + a.num[1] * next : next;
        }
        flat(a.out)[i] = (real)(theta - a.num[0] * g);
    }
}

// out: the parameter; in: gradient, mean, mean square. num: learning rate, β₁,
// β₂, ε, weight decay, lr / (1 − β₁ᵗ), √(1 − β₂ᵗ), the loss's scale; flag: decay the parameter
// (AdamW).
KERNEL adam(ARGS) {
    EACH_INDEX(i) {
        double theta = (double)flat(a.out)[i], g = (double)flat(a.in[0])[i] / a.num[7];
        if (a.flag) theta *= 1.0 - a.num[0] * a.num[4];
        else g += a.num[4] * theta;
        double mean = a.num[1] * (double)flat(a.in[1])[i] + (1.0 - a.num[1]) * g;
        double square = a.num[2] * (double)flat(a.in[2])[i] + (1.0 - a.num[2]) * g * g;
        flat(a.in[1])[i] = (real)mean;
        flat(a.in[2])[i] = (real)square;
        flat(a.out)[i] = (real)(theta - a.num[5] * mean / (sqrt(square) / a.num[6] + a.num[3]));
    }
}
