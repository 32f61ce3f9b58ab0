// What every kernel shares: views, positions, sums over a block.
//
// One module holds all kernels for one element type, REAL: `float` or `double`.
// With NARROW, maps and the weights that meet them may also be stored in 16 bits: a
// view says how, an element is widened where it is read and rounded where it is
// written, and kernels do not know. Flat tensors other than those weights are REAL.
// A kernel takes one parameter block, `Args`, whose layout `src/cuda/args.rs`
// repeats. Positions are absolute coordinates of the whole tensor, as on the
// CPU, and all index arithmetic is in 64 bits. Sums run in double precision and
// in an order that depends on the call alone: no atomics.
//
// The same text compiles as C++ for the tests, with SSTEP_HOST defined and a
// header in front that runs a block's threads as fibers.

#ifndef REAL
#define REAL float
#endif

typedef long long i64;
typedef unsigned long long u64;
typedef REAL real;

// A box of a tensor, lifted to [N, C, D, H, W].
struct View {
    void *address; // of the first element
    i64 stored;    // how elements are stored: a code of `src/cuda/args.rs`
    i64 dims[5];   // extents of the whole tensor
    i64 lo[4];     // first position present along N, D, H, W
    i64 hi[4];     // first position beyond
    i64 stride[4]; // elements between neighbours along N, C, D, H
};

struct Args {
    View out;
    View in[5];
    double *state;    // partial result of a reduction; null to finish at once
    i64 lo[4];        // region along N, D, H, W
    i64 len[4];
    i64 channels;     // channels of the region
    i64 kernel[3];
    i64 stride[3];
    i64 dilation[3];
    i64 pad[3];
    i64 pad_hi[3];
    i64 offset[4];    // along C, D, H, W
    i64 groups;
    i64 code;         // variant of the kernel
    i64 flag;
    i64 count;        // elements of a flat call
    u64 key[4];
    double num[8];
};

#ifdef SSTEP_HOST
#define CHECK(ok) check_at(ok, __LINE__)
#else
#define CHECK(ok)
#endif

#define KERNEL extern "C" __global__ void
#define ARGS const __grid_constant__ Args a

struct Pos {
    i64 n, c, d, h, w;
};

// A flat tensor of REAL, or a map that is never stored otherwise.
__device__ inline real *flat(const View &v) { return (real *)v.address; }

#ifndef NARROW
typedef real *Elements;
__device__ inline Elements elements(const View &v) { return flat(v); }
#else
typedef unsigned short bits16;

#ifndef SSTEP_HOST
__device__ inline bits16 half_of(float x) {
    bits16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
__device__ inline float of_half(bits16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
#endif

// To nearest, ties to even, as `src/cpu/stored.rs` does.
__device__ inline bits16 brain_of(float x) {
    unsigned bits = __float_as_uint(x);
    if (!(x == x)) return (bits16)(bits >> 16 | 0x40);
    return (bits16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
__device__ inline float of_brain(bits16 x) { return __uint_as_float((unsigned)x << 16); }

// One element, wherever and however it is stored.
struct Element {
    void *place;
    i64 stored;

    __device__ operator real() const {
        if (stored == 0) return *(real *)place;
        bits16 bits = *(bits16 *)place;
        return stored == 1 ? of_brain(bits) : of_half(bits);
    }
    __device__ Element &operator=(real x) {
        if (stored == 0) *(real *)place = x;
        else *(bits16 *)place = stored == 1 ? brain_of(x) : half_of(x);
        return *this;
    }
    __device__ Element &operator=(const Element &x) { return *this = (real)x; }
    __device__ Element &operator/=(real x) { return *this = (real)*this / x; }
};

// Elements one after another.
struct Elements {
    char *first;
    i64 stored;

    __device__ i64 size() const { return stored == 0 ? sizeof(real) : sizeof(bits16); }
    __device__ Element operator*() const { return Element{first, stored}; }
    __device__ Elements operator+(i64 n) const { return Elements{first + n * size(), stored}; }
    __device__ Elements &operator++() {
        first += size();
        return *this;
    }
};

__device__ inline Elements elements(const View &v) { return Elements{(char *)v.address, v.stored}; }
#endif

// Which element of a view is at a position.
__device__ inline i64 index(const View &v, i64 n, i64 c, i64 d, i64 h, i64 w) {
    CHECK(n >= v.lo[0] && n < v.hi[0] && c >= 0 && c < v.dims[1]);
    CHECK(d >= v.lo[1] && d < v.hi[1] && h >= v.lo[2] && h < v.hi[2]);
    CHECK(w >= v.lo[3] && w < v.hi[3]);
    return (n - v.lo[0]) * v.stride[0] + c * v.stride[1] + (d - v.lo[1]) * v.stride[2] +
           (h - v.lo[2]) * v.stride[3] + (w - v.lo[3]);
}

__device__ inline Elements at(const View &v, i64 n, i64 c, i64 d, i64 h, i64 w) {
    return elements(v) + index(v, n, c, d, h, w);
}

__device__ inline Elements at(const View &v, const Pos &p) { return at(v, p.n, p.c, p.d, p.h, p.w); }

__device__ inline i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline i64 thread_count() { return (i64)gridDim.x * blockDim.x; }

// Positions of the region, channels counted in or not.
__device__ inline i64 points(const Args &a) { return a.len[0] * a.len[1] * a.len[2] * a.len[3]; }

// Element i of the region, columns fastest, then rows, depth, channels, samples.
__device__ inline Pos position(const Args &a, i64 i, i64 channels) {
    Pos p;
    p.w = a.lo[3] + i % a.len[3];
    i /= a.len[3];
    p.h = a.lo[2] + i % a.len[2];
    i /= a.len[2];
    p.d = a.lo[1] + i % a.len[1];
    i /= a.len[1];
    p.c = i % channels;
    p.n = a.lo[0] + i / channels;
    return p;
}

#define EACH_ELEMENT(p)                                                                            \
    for (i64 i_ = thread_index(), n_ = points(a) * a.channels; i_ < n_; i_ += thread_count())      \
        if (Pos p = position(a, i_, a.channels); true)

#define EACH_POINT(p)                                                                              \
    for (i64 i_ = thread_index(), n_ = points(a); i_ < n_; i_ += thread_count())                   \
        if (Pos p = position(a, i_, 1); true)

#define EACH_INDEX(i) for (i64 i = thread_index(); i < a.count; i += thread_count())

#ifndef THREADS
#define THREADS 256
#endif

// Sum of `x` over the threads of a block, for all of them.
__device__ inline double block_sum(double x) {
    __shared__ double sums[THREADS];
    __syncthreads();
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

__device__ inline float fused(float x, float y, float z) { return fmaf(x, y, z); }
__device__ inline double fused(double x, double y, double z) { return fma(x, y, z); }
__device__ inline bool is_nan(real x) { return !(x == x); }
// The larger; a NaN is larger than everything.
__device__ inline real larger(real x, real y) { return x > y || is_nan(x) ? x : y; }
__device__ inline real exp_of(float x) { return expf(x); }
__device__ inline real exp_of(double x) { return exp(x); }
__device__ inline real tanh_of(float x) { return tanhf(x); }
__device__ inline real tanh_of(double x) { return tanh(x); }
__device__ inline real log1p_of(float x) { return log1pf(x); }
__device__ inline real log1p_of(double x) { return log1p(x); }
__device__ inline real normal_below(float x) { return normcdff(x); }
__device__ inline real normal_below(double x) { return normcdf(x); }
__device__ inline real sigmoid(real x) { return (real)1 / ((real)1 + exp_of(-x)); }
__device__ inline double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ inline real not_a_number() { return (real)(infinity() - infinity()); }
