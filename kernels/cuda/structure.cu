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

// Bytes to elements, in place and one block per row: a byte v of channel `offset[0]` is
// (v / 255 - num[0]) / num[1], of REAL. A row's bytes lie at its end, where element i reaches no
// byte beyond the i-th, so that what a chunk writes is no byte that a later one reads.
#define BYTES_PER_THREAD 8
KERNEL from_bytes(ARGS) {
    __shared__ real value[256];
    for (int v = threadIdx.x; v < 256; v += blockDim.x)
        value[v] = (real)(((double)v / 255.0 - a.num[0]) / a.num[1]);
    i64 n = a.len[3], rows = points(a) / n;
    for (i64 r = blockIdx.x; r < rows; r += gridDim.x) {
        Pos p = position(a, r * n, 1);
        real *row = flat(a.out) + index(a.out, p.n, a.offset[0], p.d, p.h, p.w);
        CHECK(p.w + n <= a.out.hi[3]);
        const unsigned char *bytes = (const unsigned char *)(row + n) - n;
        for (i64 first = 0; first < n; first += BYTES_PER_THREAD * blockDim.x) {
            unsigned char v[BYTES_PER_THREAD];
            for (int k = 0; k < BYTES_PER_THREAD; ++k) {
                i64 i = first + k * blockDim.x + threadIdx.x;
                v[k] = i < n ? bytes[i] : 0;
            }
            __syncthreads();
            for (int k = 0; k < BYTES_PER_THREAD; ++k) {
                i64 i = first + k * blockDim.x + threadIdx.x;
                if (i < n) row[i] = value[v[k]];
            }
            __syncthreads();
        }
    }
}

// `count` doubles of a state in pairs: `num[0]` first, `num[1]` second.
KERNEL fill_state(ARGS) {
    EACH_INDEX(i) a.state[i] = a.num[i % 2];
}
