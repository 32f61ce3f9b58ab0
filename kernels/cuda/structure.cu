// Ops and copies that move elements and compute nothing.

// `offset` shifts where the input is read; of `concat`, where the output is written.
KERNEL concat(ARGS) {
    EACH_ELEMENT(p) *at(a.out, p.n, p.c + a.offset[0], p.d, p.h, p.w) = *at(a.in[0], p);
}

KERNEL slice(ARGS) {
    EACH_ELEMENT(p)
    *at(a.out, p) = *at(a.in[0], p.n, p.c + a.offset[0], p.d + a.offset[1], p.h + a.offset[2],
                        p.w + a.offset[3]);
}

KERNEL pad(ARGS) {
    EACH_ELEMENT(p) {
        const View &x = a.in[0];
        i64 c = p.c - a.offset[0], d = p.d - a.offset[1], h = p.h - a.offset[2],
            w = p.w - a.offset[3];
        bool inside = c >= 0 && c < x.dims[1] && d >= 0 && d < x.dims[2] && h >= 0 &&
                      h < x.dims[3] && w >= 0 && w < x.dims[4];
        *at(a.out, p) = inside ? *at(x, p.n, c, d, h, w) : (real)0;
    }
}

KERNEL broadcast(ARGS) {
    EACH_ELEMENT(p) *at(a.out, p) = repeated(a.in[0], p, true);
}

KERNEL constant(ARGS) {
    EACH_ELEMENT(p) *at(a.out, p) = (real)a.num[0];
}

KERNEL copy(ARGS) {
    EACH_ELEMENT(p) *at(a.out, p) = *at(a.in[0], p);
}

// Moves the region to the front of its own buffer, one block per channel. Both
// addresses grow with the position and none moves back, so what a chunk writes
// is never an element that a later chunk has yet to read.
KERNEL slide(ARGS) {
    for (i64 c = blockIdx.x; c < a.channels; c += gridDim.x) {
        i64 n = points(a);
        for (i64 first = 0; first < n; first += blockDim.x) {
            i64 i = first + threadIdx.x;
            Pos p = position(a, i < n ? i : 0, 1);
            real x = *at(a.in[0], p.n, c, p.d, p.h, p.w);
            __syncthreads();
            if (i < n) *at(a.out, p.n, c, p.d, p.h, p.w) = x;
            __syncthreads();
        }
    }
}

// `count` doubles of a state in pairs: `num[0]` first, `num[1]` second.
KERNEL fill_state(ARGS) {
    EACH_INDEX(i) a.state[i] = a.num[i % 2];
}

// Adds `count` elements, all the part of one tile, to a state of doubles.
KERNEL add_part(ARGS) {
    EACH_INDEX(i) a.state[i] += (double)flat(a.in[0])[i];
}
