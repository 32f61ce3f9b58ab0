// Maps and filters turned between planar and channels last, for a library.

// Side of the squares of columns and channels that a block turns at once, so that both
// reads and writes are of neighbours.
#define SQUARE 32

// Square `b` of the region: its first column and channel within it, and its row.
struct Square {
    i64 w, c, row;
};

__device__ inline Square square(const Args &a, i64 b) {
    i64 across = (a.len[3] + SQUARE - 1) / SQUARE, down = (a.channels + SQUARE - 1) / SQUARE;
    return {b % across * SQUARE, b / across % down * SQUARE, b / across / down};
}

__device__ inline i64 max_of(i64 x, i64 y) { return x > y ? x : y; }

__device__ inline i64 squares(const Args &a) {
    i64 across = (a.len[3] + SQUARE - 1) / SQUARE, down = (a.channels + SQUARE - 1) / SQUARE;
    return a.len[0] * a.len[1] * a.len[2] * across * down;
}

// The region of in[0] densely to `out`; zeros where it is outside the map, and the first `offset`
// depths, rows and columns.
KERNEL turn(ARGS) {
    __shared__ real turned[SQUARE][SQUARE + 1];
    const View &x = a.in[0];
    for (i64 b = blockIdx.x; b < squares(a); b += gridDim.x) {
        Square s = square(a, b);
        Pos p = position(a, s.row * a.len[3], 1);
        bool row = p.d >= max_of(a.lo[1] + a.offset[1], 0) && p.d < x.dims[2] &&
                   p.h >= max_of(a.lo[2] + a.offset[2], 0) && p.h < x.dims[3];
        for (int i = threadIdx.x; i < SQUARE * SQUARE; i += blockDim.x) {
            i64 w = s.w + i % SQUARE, c = s.c + i / SQUARE;
            if (w >= a.len[3] || c >= a.channels) continue;
            i64 col = a.lo[3] + w;
            bool inside = row && w >= a.offset[3] && col >= 0 && col < x.dims[4];
            turned[i / SQUARE][i % SQUARE] = inside ? (real)*at(x, p.n, c, p.d, p.h, col) : (real)0;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < SQUARE * SQUARE; i += blockDim.x) {
            i64 c = s.c + i % SQUARE, w = s.w + i / SQUARE;
            if (w >= a.len[3] || c >= a.channels) continue;
            *(elements(a.out) + (s.row * a.len[3] + w) * a.channels + c) = turned[i % SQUARE][i / SQUARE];
        }
        __syncthreads();
    }
}

// The region of `out` from in[0], which is dense with `kernel` depths, rows and columns and
// begins `offset` before the region, and holds its samples; with in[1] per channel (flag).
KERNEL turn_back(ARGS) {
    __shared__ real turned[SQUARE][SQUARE + 1];
    for (i64 b = blockIdx.x; b < squares(a); b += gridDim.x) {
        Square s = square(a, b);
        Pos p = position(a, s.row * a.len[3], 1);
        i64 row = ((p.n - a.lo[0]) * a.kernel[0] + p.d - a.lo[1] + a.offset[1]) * a.kernel[1] +
                  p.h - a.lo[2] + a.offset[2];
        Elements from = elements(a.in[0]) + (row * a.kernel[2] + a.offset[3]) * a.channels;
        for (int i = threadIdx.x; i < SQUARE * SQUARE; i += blockDim.x) {
            i64 c = s.c + i % SQUARE, w = s.w + i / SQUARE;
            if (w < a.len[3] && c < a.channels)
                turned[i % SQUARE][i / SQUARE] = *(from + w * a.channels + c);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < SQUARE * SQUARE; i += blockDim.x) {
            i64 w = s.w + i % SQUARE, c = s.c + i / SQUARE;
            if (w >= a.len[3] || c >= a.channels) continue;
            real x = turned[i / SQUARE][i % SQUARE];
            *at(a.out, p.n, c, p.d, p.h, a.lo[3] + w) = a.flag ? x + flat(a.in[1])[c] : x;
        }
        __syncthreads();
    }
}

// Where element e of a filter of `channels` per group and `kernel` taps lies when its channels
// come last.
__device__ inline i64 channels_last(const Args &a, i64 e) {
    i64 taps = a.kernel[0] * a.kernel[1] * a.kernel[2];
    i64 tap = e % taps, c = e / taps % a.channels, k = e / taps / a.channels;
    return (k * taps + tap) * a.channels + c;
}

KERNEL turn_filter(ARGS) {
    EACH_INDEX(i) *(elements(a.out) + channels_last(a, i)) = *(elements(a.in[0]) + i);
}

// Adds `count` elements of a filter's gradient, all the part of one region and, with flag, in the
// order of a library, to a state of doubles or, if there is none, to `out`.
KERNEL add_part(ARGS) {
    EACH_INDEX(i) {
        real part = flat(a.in[0])[a.flag ? channels_last(a, i) : i];
        if (a.state) a.state[i] += (double)part;
        else flat(a.out)[i] += part;
    }
}
