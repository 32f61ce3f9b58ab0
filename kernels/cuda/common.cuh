// What every kernel shares: views, positions, sums over a block.
//
// One module holds all kernels for one element type, REAL: `float` or `double`.
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
    real *base;
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

__device__ inline real *at(const View &v, i64 n, i64 c, i64 d, i64 h, i64 w) {
    CHECK(n >= v.lo[0] && n < v.hi[0] && c >= 0 && c < v.dims[1]);
    CHECK(d >= v.lo[1] && d < v.hi[1] && h >= v.lo[2] && h < v.hi[2]);
    CHECK(w >= v.lo[3] && w < v.hi[3]);
    return v.base + (n - v.lo[0]) * v.stride[0] + c * v.stride[1] + (d - v.lo[1]) * v.stride[2] +
           (h - v.lo[2]) * v.stride[3] + (w - v.lo[3]);
}

__device__ inline real *at(const View &v, const Pos &p) { return at(v, p.n, p.c, p.d, p.h, p.w); }

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
