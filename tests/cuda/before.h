// In front of the kernels, to run them on the CPU: the threads of a block are
// fibers, shared memory is poisoned before every block, the order of threads is
// shuffled anew between barriers, and reads outside a view end the program.
#define SSTEP_HOST
#define THREADS 32 // a launch's 256 would only be slower here
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
static float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
static double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }

#define __global__
#define __device__
#define __grid_constant__
#define __shared__ static __attribute__((section("block_shared")))
#define __syncthreads() wait_at(__LINE__)
#define inline static
