// Windowed maxima and means, and their gradients. Padding is never a maximum;
// NaN always is. The gradient of a maximum finds it anew.

// Taps of window `j` along axis `s` that lie over elements.
__device__ inline i64 first_tap(const Args &a, int s, i64 j) {
    i64 t = a.pad[s] - j * a.stride[s];
    return t < 0 ? 0 : t < a.kernel[s] ? t : a.kernel[s];
}

__device__ inline i64 last_tap(const Args &a, int s, i64 j, i64 extent) {
    i64 t = extent + a.pad[s] - j * a.stride[s];
    return t < 0 ? 0 : t < a.kernel[s] ? t : a.kernel[s];
}

// Windows along axis `s` that element `i` is under.
__device__ inline i64 first_window(const Args &a, int s, i64 i) {
    i64 j = i + a.pad[s] - a.kernel[s] + 1;
    return j <= 0 ? 0 : (j + a.stride[s] - 1) / a.stride[s];
}

__device__ inline i64 end_window(const Args &a, int s, i64 i, i64 n_windows) {
    i64 j = (i + a.pad[s]) / a.stride[s] + 1;
    return j < n_windows ? j : n_windows;
}

// The first maximum of window (jd, jh, jw), and where it is.
__device__ inline real window_max(const Args &a, const View &x, const Pos &j, Pos *where) {
    real most = (real)-infinity();
    bool any = false;
    for (i64 td = first_tap(a, 0, j.d); td < last_tap(a, 0, j.d, x.dims[2]); ++td)
        for (i64 th = first_tap(a, 1, j.h); th < last_tap(a, 1, j.h, x.dims[3]); ++th)
            for (i64 tw = first_tap(a, 2, j.w); tw < last_tap(a, 2, j.w, x.dims[4]); ++tw) {
                Pos p = {j.n, j.c, j.d * a.stride[0] + td - a.pad[0],
                         j.h * a.stride[1] + th - a.pad[1], j.w * a.stride[2] + tw - a.pad[2]};
                real value = *at(x, p);
                if (!any || value > most || (is_nan(value) && !is_nan(most))) {
                    most = value;
                    *where = p;
                    any = true;
                }
            }
    return most;
}

KERNEL max_pool(ARGS) {
    EACH_ELEMENT(p) {
        Pos where;
        *at(a.out, p) = window_max(a, a.in[0], p, &where);
    }
}

KERNEL max_pool_grad(ARGS) {
    const View &g = a.in[1];
    EACH_ELEMENT(p) {
        real sum = 0;
        for (i64 d = first_window(a, 0, p.d); d < end_window(a, 0, p.d, g.dims[2]); ++d)
            for (i64 h = first_window(a, 1, p.h); h < end_window(a, 1, p.h, g.dims[3]); ++h)
                for (i64 w = first_window(a, 2, p.w); w < end_window(a, 2, p.w, g.dims[4]); ++w) {
                    Pos j = {p.n, p.c, d, h, w}, where = p;
                    window_max(a, a.in[0], j, &where);
                    if (where.d == p.d && where.h == p.h && where.w == p.w) sum += *at(g, j);
                }
        *at(a.out, p) = sum;
    }
}

// By how much an average over window `j` is divided along axis `s`; flag: count padding.
__device__ inline i64 divisor(const Args &a, int s, i64 j, i64 extent) {
    if (!a.flag) return last_tap(a, s, j, extent) - first_tap(a, s, j);
    i64 room = extent + a.pad[s] + a.pad_hi[s] - j * a.stride[s];
    return room < a.kernel[s] ? room : a.kernel[s];
}

KERNEL avg_pool(ARGS) {
    const View &x = a.in[0];
    EACH_ELEMENT(p) {
        real sum = 0;
        for (i64 td = first_tap(a, 0, p.d); td < last_tap(a, 0, p.d, x.dims[2]); ++td)
            for (i64 th = first_tap(a, 1, p.h); th < last_tap(a, 1, p.h, x.dims[3]); ++th)
                for (i64 tw = first_tap(a, 2, p.w); tw < last_tap(a, 2, p.w, x.dims[4]); ++tw)
                    sum += *at(x, p.n, p.c, p.d * a.stride[0] + td - a.pad[0],
                               p.h * a.stride[1] + th - a.pad[1],
                               p.w * a.stride[2] + tw - a.pad[2]);
        i64 by = divisor(a, 0, p.d, x.dims[2]) * divisor(a, 1, p.h, x.dims[3]) *
                 divisor(a, 2, p.w, x.dims[4]);
        *at(a.out, p) = sum / (real)by;
    }
}

KERNEL avg_pool_grad(ARGS) {
    const View &g = a.in[0], &x = a.out;
    EACH_ELEMENT(p) {
        real sum = 0;
        for (i64 d = first_window(a, 0, p.d); d < end_window(a, 0, p.d, g.dims[2]); ++d)
            for (i64 h = first_window(a, 1, p.h); h < end_window(a, 1, p.h, g.dims[3]); ++h)
                for (i64 w = first_window(a, 2, p.w); w < end_window(a, 2, p.w, g.dims[4]); ++w) {
                    i64 by = divisor(a, 0, d, x.dims[2]) * divisor(a, 1, h, x.dims[3]) *
                             divisor(a, 2, w, x.dims[4]);
                    sum += *at(g, p.n, p.c, d, h, w) / (real)by;
                }
        *at(a.out, p) = sum;
    }
}
