// Stands in for the CUDA driver: as much of its interface as the backend calls.
// Device memory is memory of the process, and kernels are functions of a shared
// library whose path a module's image names; streams.h, which goes before this text,
// does what streams are given. SSTEP_FAULT names what is to go wrong.
#include <cstdint>
#include <dlfcn.h>
#include <map>
#include <mutex>

typedef int Result;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, LAUNCH_FAILED = 719 };
static const size_t TOTAL = 1ull << 33;
static std::recursive_mutex lock;
typedef std::lock_guard<std::recursive_mutex> Guard;
static std::map<uint64_t, size_t> live;
static size_t live_bytes, peak_bytes;

static std::map<uint64_t, size_t> pinned;

static bool is_fault(const char *name) {
    static const char *fault = getenv("SSTEP_FAULT");
    return fault && !strcmp(fault, name);
}
// What other programs hold of the device.
static size_t held_elsewhere() { return is_fault("memory held elsewhere") ? TOTAL - (1 << 20) : 0; }
// A device is lost with a launch that its fault counts down to, and stays so.
static bool is_lost;

static bool is_within(const std::map<uint64_t, size_t> &memory, uint64_t at, size_t bytes) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

struct Function {
    size_t args_bytes;
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

// While a stream is captured it takes kernels and nothing else.
enum { CAPTURE_UNSUPPORTED = 900 };
static bool is_captured(void *stream) { return ((Stream *)stream)->capture; }

static bool is_live(uint64_t at, size_t bytes) { return is_within(live, at, bytes); }

extern "C" {
size_t standin_live_bytes() { return live_bytes; }
size_t standin_peak_bytes() { return peak_bytes; }
static size_t bytes_to_device;
// By copies of regions.
size_t standin_bytes_to_device() { return bytes_to_device; }
size_t standin_pinned() { return pinned.size(); }
// The allocation that holds an address.
bool standin_allocation(uint64_t at, uint64_t *base, size_t *bytes) {
    Guard guard(lock);
    if (!is_live(at, 1)) return false;
    auto found = --live.upper_bound(at);
    *base = found->first;
    *bytes = found->second;
    return true;
}
// For the stand-ins of other libraries.
void standin_give(void *stream, void (*run)(void *), void *with) {
    Guard guard(lock);
    give(stream, [=] { run(with); }, KERNEL, 1);
}
bool standin_is_live(uint64_t at, size_t bytes) {
    Guard guard(lock);
    return is_live(at, bytes);
}

void standin_start_clock(double block, double byte_to_device, double byte_to_host) {
    Guard guard(lock);
    for (Stream *s : streams) {
        drain(s);
        s->clock_secs = 0;
    }
    rates[KERNEL] = block;
    rates[TO_DEVICE] = byte_to_device;
    rates[TO_HOST] = byte_to_host;
    for (double &secs : busy_secs) secs = 0;
    host_secs = end_secs = 0;
}
void standin_in_turn(bool in_turn) { is_in_turn = in_turn; }
// Of kernels (0), copies to the device (1) and to the host (2).
double standin_busy_secs(int kind) { return busy_secs[kind]; }
double standin_end_secs() { return end_secs; }

// From now on a lane is slow, and the wait of this number, from 1, is not made.
void standin_drop_wait(size_t number, size_t lane) {
    Guard guard(lock);
    waits.clear();
    dropped = number;
    slow_lane = lane;
    unheeded = nullptr;
}
size_t standin_waits() { return waits.size(); }
// Of a wait by its number: three times who is to wait, and for whom.
size_t standin_wait(size_t number) { return waits.at(number - 1); }

Result cuInit(unsigned) { return OK; }
Result cuDeviceGetCount(int *n) { *n = 1; return OK; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
Result cuDeviceGetName(char *name, int len, int) { snprintf(name, len, "stand-in"); return OK; }
Result cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = TOTAL; return OK; }
Result cuDeviceGetAttribute(int *value, int which, int) {
    // Compute capability 9.0, two multiprocessors, nothing else.
    int major = is_fault("an old device") ? 6 : 9;
    *value = which == 75 ? major : which == 16 ? 2 : 0;
    return OK;
}
Result cuDevicePrimaryCtxRetain(void **context, int) {
    *context = (void *)1;
    return is_fault("a full device") ? OUT_OF_MEMORY : OK;
}
Result cuDevicePrimaryCtxRelease_v2(int) { return OK; }
Result cuCtxSetCurrent(void *) { return OK; }
Result cuCtxGetCurrent(void **context) { *context = (void *)1; return OK; }
Result cuCtxSynchronize() {
    Guard guard(lock);
    if (is_lost) return LAUNCH_FAILED;
    for (Stream *s : streams) drain(s);
    return OK;
}
Result cuStreamCreate(void **stream, unsigned) {
    Guard guard(lock);
    static size_t made;
    streams.push_back(new Stream{made++ % 3, {}});
    *stream = streams.back();
    return OK;
}
Result cuStreamDestroy_v2(void *stream) {
    Guard guard(lock);
    drain((Stream *)stream);
    for (size_t i = 0; i < streams.size(); ++i)
        if (streams[i] == stream) streams.erase(streams.begin() + i--);
    return OK;
}
static size_t stream_waits;
size_t standin_stream_waits() { return stream_waits; }
Result cuStreamSynchronize(void *stream) {
    Guard guard(lock);
    ++stream_waits;
    if (is_captured(stream)) return CAPTURE_UNSUPPORTED;
    if (is_lost) return LAUNCH_FAILED;
    drain((Stream *)stream);
    return OK;
}
Result cuStreamWaitEvent(void *stream, void *event, unsigned) {
    Guard guard(lock);
    if (is_captured(stream)) return CAPTURE_UNSUPPORTED;
    static const char *lanes[] = {"waits of kernels that are not made",
                                  "waits of copies to the device that are not made",
                                  "waits of copies to the host that are not made"};
    if (is_fault(lanes[((Stream *)stream)->lane])) return OK;
    std::shared_ptr<Mark> mark = ((Event *)event)->mark;
    // A wait for what is done already shows nowhere.
    if (!mark->done) {
        waits.push_back(3 * ((Stream *)stream)->lane + mark->of->lane);
        if (waits.size() == dropped) {
            unheeded = mark;
            hasty = (Stream *)stream;
            return OK;
        }
    }
    ((Stream *)stream)->tasks.push_back({nullptr, mark, 0, 0, nullptr, nullptr, 0});
    return OK;
}
Result cuEventCreate(void **event, unsigned) { *event = new Event; return OK; }
Result cuEventDestroy_v2(void *event) { delete (Event *)event; return OK; }
Result cuEventRecord(void *event, void *stream) {
    Guard guard(lock);
    if (is_captured(stream)) return CAPTURE_UNSUPPORTED;
    Stream *s = (Stream *)stream;
    std::shared_ptr<Mark> mark = std::make_shared<Mark>(Mark{false, 0, s});
    ((Event *)event)->mark = mark;
    give(stream, [mark, s] { *mark = {true, s->clock_secs, s}; });
    return OK;
}
Result cuEventSynchronize(void *event) {
    Guard guard(lock);
    if (is_lost) return LAUNCH_FAILED;
    std::shared_ptr<Mark> mark = ((Event *)event)->mark;
    while (!mark->done) step();
    if (mark->secs > host_secs) host_secs = mark->secs;
    return OK;
}
static size_t graph_launches, live_graphs;
size_t standin_graph_launches() { return graph_launches; }
size_t standin_live_graphs() { return live_graphs; }
Result cuStreamBeginCapture_v2(void *stream, int mode) {
    Guard guard(lock);
    Stream *s = (Stream *)stream;
    // Of one thread, as others may have devices of their own.
    if (s->capture || mode != 1) return INVALID;
    s->capture = new Graph;
    return OK;
}
Result cuStreamEndCapture(void *stream, void **graph) {
    Guard guard(lock);
    Stream *s = (Stream *)stream;
    if (!s->capture) return INVALID;
    *graph = s->capture;
    s->capture = nullptr;
    ++live_graphs;
    if (!is_fault("a capture that fails")) return OK;
    delete (Graph *)*graph;
    --live_graphs;
    return CAPTURE_UNSUPPORTED;
}
Result cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    Guard guard(lock);
    *made = new Graph(*(Graph *)graph);
    ++live_graphs;
    return flags ? INVALID : OK;
}
Result cuGraphLaunch(void *made, void *stream) {
    Guard guard(lock);
    if (is_lost) return LAUNCH_FAILED;
    ++graph_launches;
    for (const Graph::Node &node : ((Graph *)made)->nodes) give(stream, node.run, (Kind)node.kind, node.n);
    return OK;
}
static Result destroy_graph(void *graph) {
    Guard guard(lock);
    delete (Graph *)graph;
    --live_graphs;
    return OK;
}
Result cuGraphExecDestroy(void *made) { return destroy_graph(made); }
Result cuGraphDestroy(void *graph) { return destroy_graph(graph); }
Result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    Guard guard(lock);
    // Write-combined memory is not for results.
    if (flags) return INVALID;
    if (is_fault("pages that are not locked")) return OUT_OF_MEMORY;
    *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*memory) return OUT_OF_MEMORY;
    memset(*memory, 0xff, bytes);
    pinned[(uint64_t)*memory] = bytes;
    return OK;
}
Result cuMemFreeHost(void *memory) {
    Guard guard(lock);
    pinned.erase((uint64_t)memory);
    free(memory);
    return OK;
}
Result cuGetErrorString(Result, const char **text) { *text = "refused by the stand-in"; return OK; }
Result cuGetErrorName(Result, const char **text) { *text = "CUDA_ERROR_STANDIN"; return OK; }

Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *free_bytes = TOTAL - live_bytes - held_elsewhere();
    *total = TOTAL;
    return OK;
}
Result cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    Guard guard(lock);
    if (live_bytes + bytes > TOTAL - held_elsewhere()) return OUT_OF_MEMORY;
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
    Guard guard(lock);
    for (Stream *s : streams) drain(s);
    auto found = live.find(at);
    if (found == live.end()) return INVALID;
    live_bytes -= found->second;
    live.erase(found);
    free((void *)at);
    return OK;
}
Result cuMemsetD8Async(uint64_t at, unsigned char value, size_t n, void *stream) {
    Guard guard(lock);
    if (!is_live(at, n)) return INVALID;
    give(stream, [=] { memset((void *)at, value, n); });
    return OK;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *stream) {
    Guard guard(lock);
    if (!is_live(to, n)) return INVALID;
    // Pageable memory is taken at once.
    std::string taken((const char *)from, n);
    give(stream, [=] { memcpy((void *)to, taken.data(), n); });
    return OK;
}
Result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *stream) {
    Guard guard(lock);
    if (is_captured(stream)) return CAPTURE_UNSUPPORTED;
    if (!is_live(from, n)) return INVALID;
    give(stream, [=] { memcpy(to, (const void *)from, n); });
    return OK;
}
Result cuMemcpy3DAsync_v2(const Copy3d *c, void *stream) {
    Guard guard(lock);
    if (is_captured(stream)) return CAPTURE_UNSUPPORTED;
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
            size_t width = c->width;
            if (!is_live((uint64_t)(to_device ? to : from), width)) return INVALID;
            bytes_to_device += to_device ? width : 0;
            if (to_device && !is_within(pinned, (uint64_t)from, width)) {
                std::string taken(from, width);
                give(stream, [=] { memcpy(to, taken.data(), width); }, TO_DEVICE, width);
            } else {
                Kind kind = to_device ? TO_DEVICE : TO_HOST;
                give(stream, [=] { memcpy(to, from, width); }, kind, width);
                Task &copy = ((Stream *)stream)->tasks.back();
                copy.to = to, copy.from = from, copy.bytes = width;
                // A copy to pageable memory is done when the call returns.
                if (!to_device && !is_within(pinned, (uint64_t)to, width)) drain((Stream *)stream);
            }
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
    Function f = {0, dlsym(module, name), nullptr, name};
    f.launch = (decltype(f.launch))dlsym(module, "sstep_launch");
    auto args_bytes = (size_t(*)())dlsym(module, "sstep_args_bytes");
    if (!f.kernel || !f.launch || !args_bytes) return NOT_FOUND;
    f.args_bytes = args_bytes();
    *function = new Function(f);
    return OK;
}
Result cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                      unsigned by, unsigned bz, unsigned shared, void *stream, void **params, void **) {
    // A kernel's fibers and its thread's number are one per process.
    Guard guard(lock);
    static int launches;
    if (is_fault("a lost device") && ++launches == 5) is_lost = true;
    if (is_lost) return LAUNCH_FAILED;
    const Function &f = *(const Function *)function;
    if (gx == 0 || gy * gz != 1 || bx == 0 || bx > 1024 || by * bz != 1 || shared) return INVALID;
    std::string args((const char *)params[0], f.args_bytes);
    auto run = [&f, args, gx, bx] { f.launch(f.kernel, f.name.c_str(), args.data(), gx, bx); };
    give(stream, run, KERNEL, gx);
    return OK;
}
}
