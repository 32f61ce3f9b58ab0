// Stands in for the CUDA driver: as much of its interface as the backend calls.
// Device memory is memory of the process, kernels are functions of a shared
// library whose path a module's image names, and everything is done at once, in
// the order of the calls.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <string>

typedef int Result;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
static const size_t TOTAL = 1ull << 33;
static std::mutex lock;
static std::map<uint64_t, size_t> live;
static size_t live_bytes, peak_bytes;

struct Function {
    void *kernel;
    void (*launch)(void *, const char *, const void *, unsigned, unsigned);
    std::string name;
};

struct Copy3d {
    size_t src_x, src_y, src_z, src_lod;
    int src_type;
    const void *src_host;
    uint64_t src_device;
    void *src_array, *reserved0;
    size_t src_pitch, src_height;
    size_t dst_x, dst_y, dst_z, dst_lod;
    int dst_type;
    void *dst_host;
    uint64_t dst_device;
    void *dst_array, *reserved1;
    size_t dst_pitch, dst_height;
    size_t width, height, depth;
};

// Whether [at, at + bytes) lies in one live allocation.
static bool is_live(uint64_t at, size_t bytes) {
    auto next = live.upper_bound(at);
    if (next == live.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

extern "C" {
size_t standin_live_bytes() { return live_bytes; }
size_t standin_peak_bytes() { return peak_bytes; }

Result cuInit(unsigned) { return OK; }
Result cuDeviceGetCount(int *n) { *n = 1; return OK; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
Result cuDeviceGetName(char *name, int len, int) { snprintf(name, len, "stand-in"); return OK; }
Result cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = TOTAL; return OK; }
Result cuDeviceGetAttribute(int *value, int which, int) {
    // Compute capability 9.0, two multiprocessors, nothing else.
    *value = which == 75 ? 9 : which == 16 ? 2 : 0;
    return OK;
}
Result cuDevicePrimaryCtxRetain(void **context, int) { *context = (void *)1; return OK; }
Result cuDevicePrimaryCtxRelease_v2(int) { return OK; }
Result cuCtxSetCurrent(void *) { return OK; }
Result cuCtxGetCurrent(void **context) { *context = (void *)1; return OK; }
Result cuCtxSynchronize() { return OK; }
Result cuStreamCreate(void **stream, unsigned) { *stream = (void *)2; return OK; }
Result cuStreamDestroy_v2(void *) { return OK; }
Result cuStreamSynchronize(void *) { return OK; }
Result cuGetErrorString(Result, const char **text) { *text = "refused by the stand-in"; return OK; }
Result cuGetErrorName(Result, const char **text) { *text = "CUDA_ERROR_STANDIN"; return OK; }

Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *free_bytes = TOTAL - live_bytes;
    *total = TOTAL;
    return OK;
}
Result cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    std::lock_guard<std::mutex> guard(lock);
    if (live_bytes + bytes > TOTAL) return OUT_OF_MEMORY;
    void *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xff, bytes);
    *at = (uint64_t)memory;
    live[*at] = bytes;
    live_bytes += bytes;
    if (live_bytes > peak_bytes) peak_bytes = live_bytes;
    return OK;
}
Result cuMemFree_v2(uint64_t at) {
    std::lock_guard<std::mutex> guard(lock);
    auto found = live.find(at);
    if (found == live.end()) return INVALID;
    live_bytes -= found->second;
    live.erase(found);
    free((void *)at);
    return OK;
}
Result cuMemsetD8Async(uint64_t at, unsigned char value, size_t n, void *) {
    std::lock_guard<std::mutex> guard(lock);
    if (!is_live(at, n)) return INVALID;
    memset((void *)at, value, n);
    return OK;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *) {
    std::lock_guard<std::mutex> guard(lock);
    if (!is_live(to, n)) return INVALID;
    memcpy((void *)to, from, n);
    return OK;
}
Result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *) {
    std::lock_guard<std::mutex> guard(lock);
    if (!is_live(from, n)) return INVALID;
    memcpy(to, (const void *)from, n);
    return OK;
}
Result cuMemcpy3DAsync_v2(const Copy3d *c, void *) {
    std::lock_guard<std::mutex> guard(lock);
    bool to_device = c->src_type == 1 && c->dst_type == 2;
    bool to_host = c->src_type == 2 && c->dst_type == 1;
    if (to_device == to_host || !c->width || !c->height || !c->depth) return INVALID;
    if (c->src_pitch < c->width || c->dst_pitch < c->width) return INVALID;
    if (c->src_height < c->height || c->dst_height < c->height) return INVALID;
    const char *src = to_device ? (const char *)c->src_host : (const char *)c->src_device;
    char *dst = to_device ? (char *)c->dst_device : (char *)c->dst_host;
    for (size_t z = 0; z < c->depth; ++z)
        for (size_t y = 0; y < c->height; ++y) {
            const char *from = src + (z * c->src_height + y) * c->src_pitch;
            char *to = dst + (z * c->dst_height + y) * c->dst_pitch;
            if (!is_live((uint64_t)(to_device ? to : from), c->width)) return INVALID;
            memcpy(to, from, c->width);
        }
    return OK;
}

Result cuModuleLoadData(void **module, const void *image) {
    std::string text((const char *)image), prefix = "// host module ";
    if (text.compare(0, prefix.size(), prefix) != 0) return INVALID;
    *module = dlopen(text.substr(prefix.size()).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!*module) fprintf(stderr, "%s\n", dlerror());
    return *module ? OK : NOT_FOUND;
}
Result cuModuleUnload(void *) { return OK; }
Result cuModuleGetFunction(void **function, void *module, const char *name) {
    Function f = {dlsym(module, name), nullptr, name};
    f.launch = (decltype(f.launch))dlsym(module, "sstep_launch");
    if (!f.kernel || !f.launch) return NOT_FOUND;
    *function = new Function(f);
    return OK;
}
Result cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                      unsigned by, unsigned bz, unsigned shared, void *, void **params, void **) {
    // A kernel's fibers and its thread's number are one per process.
    std::lock_guard<std::mutex> guard(lock);
    const Function &f = *(const Function *)function;
    if (gx == 0 || gy * gz != 1 || bx == 0 || bx > 1024 || by * bz != 1 || shared) return INVALID;
    f.launch(f.kernel, f.name.c_str(), params[0], gx, bx);
    return OK;
}
}
