// In front of the kernels, to run them on the CPU: the threads of a block are
// fibers, shared memory is poisoned before every block, the order of threads is
// shuffled anew between barriers, and reads outside a view end the program.
#define SSTEP_HOST
#define THREADS 32 // a launch's 256 would only be slower here
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

struct Dim {
    unsigned x, y, z;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;
static const char *running = "";

static void stop(const char *why, int line) {
    std::fprintf(stderr, "kernel %s, line %d, block %u, thread %u: %s\n", running, line,
                 blockIdx.x, threadIdx.x, why);
    std::abort();
}

static void wait_at(int line);
static void check_at(bool ok, int line) {
    if (!ok) stop("a position outside the view", line);
}
static double __longlong_as_double(long long bits) {
    double x;
    std::memcpy(&x, &bits, 8);
    return x;
}
static unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
static float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
// What one instruction of a device does: half precision to single, and back to
// nearest, ties to even.
static float of_half(unsigned short x) {
    int exponent = x >> 10 & 31, fraction = x & 1023;
    float value = exponent == 31  ? (fraction ? NAN : INFINITY)
                  : exponent == 0 ? std::ldexp((float)fraction, -24)
                                  : std::ldexp((float)(fraction + 1024), exponent - 25);
    return x & 0x8000 ? -value : value;
}
static unsigned short half_of(float x) {
    unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    if (!(x == x)) return sign | 0x7e00;
    float size = std::fabs(x);
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent = std::max(size > 0 ? std::ilogb(size) : -24, -14);
    // In units of the last place; `nearbyint` rounds ties to even. A carry grows the
    // exponent by itself.
    int units = (int)std::nearbyint(std::ldexp(size, 10 - exponent));
    return sign | (units < 1024 ? units : ((exponent + 15) << 10) + (units - 1024));
}
static float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
static double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }

#define __global__
#define __device__
#define __grid_constant__
#define __shared__ static __attribute__((section("block_shared")))
#define __syncthreads() wait_at(__LINE__)
#define inline static
