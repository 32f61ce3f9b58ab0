// Stands in for cuDNN: as much of its interface as the backend calls. It records every
// convolution, computes it from nothing but its descriptions, and ends the program
// where a call breaks a rule: tensors and scratch within device memory, scratch as
// large as asked for and apart from the tensors, an algorithm that gives the same bits,
// no factor and no gradient of a filter rounded, packed gradients, extents that belong
// together.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

extern "C" void standin_give(void *stream, void (*run)(void *), void *with);
extern "C" bool standin_is_live(uint64_t at, size_t bytes);

enum { OK = 0, BAD_PARAM = 2000, NOT_SUPPORTED = 3000 };
enum { FORWARD, DATA, FILTER };
enum { DEFAULT_MATH = 0, TENSOR_OP_MATH = 1, FMA_MATH = 3 };
enum { FLOAT = 0, DOUBLE = 1, HALF = 2, BRAIN = 9 };
// Algorithms from which on a pass transforms its factors.
static const int FIRST_TRANSFORM[3] = {4, 2, 4};
static std::mutex lock;
static std::string record;
static size_t calls[3];

static void rule(bool kept, const char *what) {
    if (kept) return;
    std::fprintf(stderr, "cuDNN's stand-in: %s\n", what);
    std::abort();
}

struct Handle {
    void *stream = nullptr;
};
struct Tensor {
    int type = -1;
    std::vector<int> dims, strides;
    // Elements from the first to the last.
    size_t reach() const {
        size_t n = 1;
        for (size_t i = 0; i < dims.size(); ++i) n += (size_t)(dims[i] - 1) * strides[i];
        return n;
    }
    // Of a filter: whether its channels come last.
    bool channels_last = false;
    bool is_packed(bool last) const {
        size_t n = last ? dims[1] : 1;
        if (last && dims[1] != 1 && strides[1] != 1) return false;
        for (size_t i = dims.size(); i-- > (last ? 2 : 1);) {
            if (dims[i] != 1 && (size_t)strides[i] != n) return false;
            n *= dims[i];
        }
        return true;
    }
};
struct Conv {
    std::vector<int> pad, stride, dilation;
    int type = -1, groups = 1, math = 0;
};
struct Perf {
    int algo, status;
    float time;
    size_t memory;
    int determinism, math, reserved[3];
};

static std::string text(const char *name, const std::vector<int> &numbers) {
    std::string out = std::string(" ") + name + "=";
    for (size_t i = 0; i < numbers.size(); ++i)
        out += (i ? "," : "") + std::to_string(numbers[i]);
    return out;
}

static bool is_narrow(int type) { return type == HALF || type == BRAIN; }
static int wide(int type) { return is_narrow(type) ? FLOAT : type; }

static size_t element(int type) {
    rule(type == FLOAT || type == DOUBLE || is_narrow(type), "a type that there is not");
    return type == DOUBLE ? 8 : type == FLOAT ? 4 : 2;
}

static double element_at(int type, const void *from, size_t i) {
    if (type == DOUBLE) return ((const double *)from)[i];
    if (type == FLOAT) return ((const float *)from)[i];
    uint16_t bits = ((const uint16_t *)from)[i];
    if (type == BRAIN) {
        uint32_t all = (uint32_t)bits << 16;
        float x;
        std::memcpy(&x, &all, 4);
        return x;
    }
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? std::ldexp(fraction + 1024, exponent - 25)
                                 : std::ldexp(fraction, -24);
    return bits & 0x8000 ? -size : size;
}

// To single precision first, as a sum is held, then to nearest, ties to even.
static void set_element(int type, void *to, size_t i, double x) {
    if (type == DOUBLE) ((double *)to)[i] = x;
    float single = (float)x;
    if (type == FLOAT) ((float *)to)[i] = single;
    if (!is_narrow(type)) return;
    uint16_t *out = (uint16_t *)to + i;
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    uint16_t sign = bits >> 16 & 0x8000;
    if (type == BRAIN) {
        *out = single != single ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return;
    }
    double size = std::fabs((double)single);
    if (single != single) *out = sign | 0x7e00;
    else if (size >= 65520) *out = sign | 0x7c00;
    else {
        int exponent = std::max(size > 0 ? std::ilogb(size) : -24, -14);
        int units = (int)std::nearbyint(std::ldexp(size, 10 - exponent));
        *out = sign | (units < 1024 ? units : ((exponent + 15) << 10) + units - 1024);
    }
}

// Whether TF32 has all digits of a number: 10 behind the point.
static bool is_tf32(double x) {
    float single = (float)x;
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    return (bits & 0x1fff) == 0 || std::fabs(single) < 1.2e-38f;
}

// What holds for the descriptions of a convolution; whether cuDNN supports it.
static bool agree(const Tensor *x, const Tensor *w, const Conv *c, const Tensor *y) {
    size_t n = x->dims.size();
    rule(n == y->dims.size() && n == w->dims.size() && n == c->pad.size() + 2, "numbers of axes");
    rule(n == 4 || n == 5, "two or three axes slide");
    rule(x->type == y->type && x->type == w->type && wide(x->type) == c->type, "types differ");
    rule(c->math == FMA_MATH || x->type != DOUBLE, "products of doubles that may be rounded");
    for (const Tensor *t : {x, y})
        rule(w->channels_last ? t->is_packed(true) : t->strides[n - 1] == 1, "orders differ");
    rule(x->dims[0] == y->dims[0], "batches differ");
    rule(x->dims[1] == w->dims[1] * c->groups, "channels of the image");
    rule(y->dims[1] == w->dims[0] && w->dims[0] % c->groups == 0, "channels of the map");
    for (size_t i = 2; i < n; ++i) {
        int reach = (w->dims[i] - 1) * c->dilation[i - 2] + 1;
        int room = x->dims[i] + 2 * c->pad[i - 2] - reach;
        rule(room >= 0 && y->dims[i] == room / c->stride[i - 2] + 1, "extents of the map");
    }
    return true;
}

// The algorithms of a pass: some that must not be chosen, some that need scratch.
static std::vector<Perf> algorithms(int pass, const Tensor *x, const Tensor *w, const Tensor *y, int math) {
    size_t some = 64 * (size_t)(w->dims[0] + x->dims[1]);
    if (pass != FORWARD && !y->is_packed(w->channels_last)) return {};
    if (math != FMA_MATH) {
        // Fast is what transforms, or has other bits every time.
        int found = is_narrow(x->type) ? TENSOR_OP_MATH : DEFAULT_MATH;
        return {{FIRST_TRANSFORM[pass], OK, 1, 0, 1, found, {}},
                {pass == FILTER ? 3 : 0, OK, 2, 0, 0, found, {}},
                {1, OK, 3, some, 1, found, {}},
                {1, OK, 4, 0, 1, FMA_MATH, {}}};
    }
    switch (pass) {
    case FORWARD:
        return {{1, OK, 1, some, 1, TENSOR_OP_MATH, {}},
                {5, OK, 2, (size_t)1 << 40, 1, FMA_MATH, {}},
                {1, OK, 3, some, 1, FMA_MATH, {}},
                {0, OK, 4, 0, 1, FMA_MATH, {}}};
    case DATA: return {{0, OK, 1, 0, 0, FMA_MATH, {}}, {1, OK, 2, 0, 1, FMA_MATH, {}}};
    default: return {{3, OK, 1, 0, 0, FMA_MATH, {}}, {1, OK, 2, some, 1, FMA_MATH, {}}};
    }
}

static void multiply(int pass, const Tensor &xd, void *x, const Tensor &wd, void *w, const Conv &c,
                     const Tensor &yd, void *y, double beta) {
    bool is_tensor_op = c.math != FMA_MATH && xd.type == FLOAT;
    auto factor = [&](const void *of, size_t i) {
        double f = element_at(xd.type, of, i);
        rule(!is_tensor_op || is_tf32(f), "a factor that TF32 has not all digits of");
        return f;
    };
    size_t n = xd.dims.size();
    // Lifted to three axes that slide.
    auto lift = [&](const std::vector<int> &v, size_t skip, int neutral) {
        std::vector<int> out(3, neutral);
        for (size_t i = skip; i < v.size(); ++i) out[3 - (v.size() - i)] = v[i];
        return out;
    };
    auto xs = lift(xd.dims, 2, 1), ys = lift(yd.dims, 2, 1), ws = lift(wd.dims, 2, 1);
    auto xt = lift(xd.strides, 2, 0), yt = lift(yd.strides, 2, 0);
    auto pad = lift(c.pad, 0, 0), stride = lift(c.stride, 0, 1), dilation = lift(c.dilation, 0, 1);
    int in_group = wd.dims[1], out_group = wd.dims[0] / c.groups;
    size_t taps = (size_t)ws[0] * ws[1] * ws[2];
    const Tensor &out = pass == FORWARD ? yd : xd;
    std::vector<double> sums(pass == FILTER ? wd.dims[0] * in_group * taps : out.reach(), 0.0);
    std::vector<char> touched(sums.size(), pass == FILTER);
    if (pass == DATA)
        for (int b = 0; b < xd.dims[0]; ++b)
            for (int ch = 0; ch < xd.dims[1]; ++ch)
                for (int d = 0; d < xs[0]; ++d)
                    for (int h = 0; h < xs[1]; ++h)
                        for (int v = 0; v < xs[2]; ++v)
                            touched[(size_t)b * xd.strides[0] + (size_t)ch * xd.strides[1] +
                                    (size_t)d * xt[0] + (size_t)h * xt[1] + (size_t)v * xt[2]] = 1;
    for (int b = 0; b < yd.dims[0]; ++b)
        for (int k = 0; k < yd.dims[1]; ++k)
            for (int d = 0; d < ys[0]; ++d)
                for (int h = 0; h < ys[1]; ++h)
                    for (int v = 0; v < ys[2]; ++v) {
                        size_t to = (size_t)b * yd.strides[0] + (size_t)k * yd.strides[1] +
                                    (size_t)d * yt[0] + (size_t)h * yt[1] + (size_t)v * yt[2];
                        if (pass == FORWARD) touched[to] = 1;
                        for (int ch = 0; ch < in_group; ++ch)
                            for (size_t t = 0; t < taps; ++t) {
                                int at[3] = {d, h, v};
                                int tap[3] = {(int)(t / (ws[1] * ws[2])), (int)(t / ws[2] % ws[1]),
                                              (int)(t % ws[2])};
                                size_t from = (size_t)b * xd.strides[0] +
                                              (size_t)(k / out_group * in_group + ch) * xd.strides[1];
                                bool inside = true;
                                for (int i = 0; i < 3; ++i) {
                                    int p = at[i] * stride[i] + tap[i] * dilation[i] - pad[i];
                                    inside = inside && p >= 0 && p < xs[i];
                                    if (inside) from += (size_t)p * xt[i];
                                }
                                if (!inside) continue;
                                size_t weight = wd.channels_last ? ((size_t)k * taps + t) * in_group + ch
                                                                 : ((size_t)k * in_group + ch) * taps + t;
                                if (pass == FORWARD) sums[to] += factor(x, from) * factor(w, weight);
                                if (pass == DATA) sums[from] += factor(y, to) * factor(w, weight);
                                if (pass == FILTER) sums[weight] += factor(x, from) * factor(y, to);
                            }
                    }
    void *result = pass == FORWARD ? y : pass == DATA ? x : w;
    for (size_t i = 0; i < sums.size(); ++i)
        if (touched[i])
            set_element(xd.type, result, i,
                        sums[i] + (beta != 0 ? beta * element_at(xd.type, result, i) : 0.0));
    (void)n;
}

static int convolve(int pass, Handle *handle, const void *alpha, const Tensor *xd, void *x,
                    const Tensor *wd, void *w, const Conv *c, int algo, void *space, size_t bytes,
                    const void *beta, const Tensor *yd, void *y) {
    std::lock_guard<std::mutex> guard(lock);
    static const char *fault = std::getenv("SSTEP_FAULT");
    if (fault && !std::strcmp(fault, "cuDNN refuses late")) return NOT_SUPPORTED;
    agree(xd, wd, c, yd);
    rule(handle->stream, "no stream was set");
    const Perf *chosen = nullptr;
    std::vector<Perf> all = algorithms(pass, xd, wd, yd, c->math);
    if (is_narrow(xd->type) || c->math != FMA_MATH)
        for (const Perf &p : algorithms(pass, xd, wd, yd, DEFAULT_MATH)) all.push_back(p);
    for (const Perf &p : all)
        if (p.algo == algo && p.math == c->math) chosen = &p;
    rule(chosen, "an algorithm that was not offered");
    rule(chosen->determinism == 1, "an algorithm with other bits every time");
    rule(c->math == FMA_MATH || algo < FIRST_TRANSFORM[pass], "an algorithm that rounds what it transforms");
    rule(pass != FILTER || !is_narrow(xd->type), "a filter's gradient that is rounded");
    rule(bytes >= chosen->memory, "less scratch than the algorithm asks for");
    rule(bytes == 0 || standin_is_live((uint64_t)space, bytes), "scratch outside the arena");
    size_t e = element(xd->type);
    size_t sizes[3] = {xd->reach() * e, yd->reach() * e, e};
    for (int d : wd->dims) sizes[2] *= d;
    void *tensors[3] = {x, y, w};
    for (int i = 0; i < 3; ++i) {
        char *lo = (char *)tensors[i], *hi = lo + sizes[i];
        rule(standin_is_live((uint64_t)lo, sizes[i]), "a tensor outside the arena");
        rule((uint64_t)lo % e == 0, "a tensor that is not aligned");
        rule(!bytes || hi <= (char *)space || lo >= (char *)space + bytes, "scratch in a tensor");
    }
    bool is_double = xd->type == DOUBLE;
    double one = is_double ? *(const double *)alpha : *(const float *)alpha;
    double keep = is_double ? *(const double *)beta : *(const float *)beta;
    rule(one == 1 && (keep == 0 || keep == 1), "factors");
    static const char *names[] = {"forward", "data", "filter"};
    record += std::string(names[pass]) + text("x", xd->dims) + text("by", xd->strides) +
              text("y", yd->dims) + text("by", yd->strides) + text("w", wd->dims) +
              text("pad", c->pad) + text("stride", c->stride) + text("dilation", c->dilation) +
              " groups=" + std::to_string(c->groups) +
              (is_double                 ? " f64"
               : xd->type == HALF        ? " f16"
               : xd->type == BRAIN       ? " bf16"
               : c->math == DEFAULT_MATH ? " tf32"
                                         : " f32") +
              (wd->channels_last ? " last" : "") + (keep ? " adds" : "") + " scratch=" + std::to_string(bytes) + "\n";
    ++calls[pass];
    auto *task = new std::function<void()>([=, xd = *xd, wd = *wd, yd = *yd, c = *c] {
        // What lies in scratch is lost.
        if (bytes) std::memset(space, 0xff, bytes);
        multiply(pass, xd, x, wd, w, c, yd, y, keep);
    });
    standin_give(
        handle->stream,
        [](void *with) {
            auto *task = (std::function<void()> *)with;
            (*task)();
            delete task;
        },
        task);
    return OK;
}

static int ask(int pass, const Tensor *x, const Tensor *w, const Conv *c, const Tensor *y, int most,
               int *count, Perf *found) {
    agree(x, w, c, y);
    *count = 0;
    for (const Perf &p : algorithms(pass, x, w, y, c->math))
        if (*count < most) found[(*count)++] = p;
    return *count ? OK : NOT_SUPPORTED;
}

static int needs(int pass, const Tensor *x, const Tensor *w, const Conv *c, const Tensor *y, int algo,
                 size_t *bytes) {
    std::vector<Perf> all = algorithms(pass, x, w, y, c->math);
    if (is_narrow(x->type))
        for (const Perf &p : algorithms(pass, x, w, y, DEFAULT_MATH)) all.push_back(p);
    for (const Perf &p : all)
        if (p.algo == algo && p.math == c->math) {
            *bytes = p.memory;
            return OK;
        }
    return NOT_SUPPORTED;
}

static std::vector<int> numbers(const int *from, int n) { return std::vector<int>(from, from + n); }

extern "C" {
size_t standin_convolutions(int pass) { return calls[pass]; }
// What was called since last asked, a line each.
const char *standin_record() {
    std::lock_guard<std::mutex> guard(lock);
    static std::string taken;
    taken.swap(record);
    record.clear();
    return taken.c_str();
}

size_t cudnnGetVersion() { return 92100; }
int cudnnCreate(Handle **h) { *h = new Handle; return OK; }
int cudnnDestroy(Handle *h) { delete h; return OK; }
int cudnnSetStream(Handle *h, void *stream) { h->stream = stream; return OK; }
int cudnnCreateTensorDescriptor(Tensor **t) { *t = new Tensor; return OK; }
int cudnnDestroyTensorDescriptor(Tensor *t) { delete t; return OK; }
int cudnnSetTensorNdDescriptor(Tensor *t, int type, int n, const int *dims, const int *strides) {
    *t = {type, numbers(dims, n), numbers(strides, n), false};
    for (int i = 0; i < n; ++i)
        if (dims[i] < 1 || strides[i] < 1) return BAD_PARAM;
    return OK;
}
int cudnnCreateFilterDescriptor(Tensor **t) { *t = new Tensor; return OK; }
int cudnnDestroyFilterDescriptor(Tensor *t) { delete t; return OK; }
int cudnnSetFilterNdDescriptor(Tensor *t, int type, int format, int n, const int *dims) {
    *t = {type, numbers(dims, n), {}, format == 1};
    return format == 0 || format == 1 ? OK : BAD_PARAM;
}
int cudnnCreateConvolutionDescriptor(Conv **c) { *c = new Conv; return OK; }
int cudnnDestroyConvolutionDescriptor(Conv *c) { delete c; return OK; }
int cudnnSetConvolutionNdDescriptor(Conv *c, int n, const int *pad, const int *stride,
                                    const int *dilation, int mode, int type) {
    rule(mode == 1, "a filter that is turned over");
    c->pad = numbers(pad, n);
    c->stride = numbers(stride, n);
    c->dilation = numbers(dilation, n);
    c->type = type;
    return OK;
}
int cudnnSetConvolutionGroupCount(Conv *c, int groups) { c->groups = groups; return OK; }
int cudnnSetConvolutionMathType(Conv *c, int math) { c->math = math; return OK; }

int cudnnGetConvolutionForwardAlgorithm_v7(Handle *, Tensor *x, Tensor *w, Conv *c, Tensor *y, int most,
                                           int *count, Perf *found) {
    return ask(FORWARD, x, w, c, y, most, count, found);
}
int cudnnGetConvolutionBackwardDataAlgorithm_v7(Handle *, Tensor *w, Tensor *y, Conv *c, Tensor *x,
                                                int most, int *count, Perf *found) {
    return ask(DATA, x, w, c, y, most, count, found);
}
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(Handle *, Tensor *x, Tensor *y, Conv *c, Tensor *w,
                                                  int most, int *count, Perf *found) {
    return ask(FILTER, x, w, c, y, most, count, found);
}
int cudnnGetConvolutionForwardWorkspaceSize(Handle *, Tensor *x, Tensor *w, Conv *c, Tensor *y, int algo,
                                            size_t *bytes) {
    return needs(FORWARD, x, w, c, y, algo, bytes);
}
int cudnnGetConvolutionBackwardDataWorkspaceSize(Handle *, Tensor *w, Tensor *y, Conv *c, Tensor *x,
                                                 int algo, size_t *bytes) {
    return needs(DATA, x, w, c, y, algo, bytes);
}
int cudnnGetConvolutionBackwardFilterWorkspaceSize(Handle *, Tensor *x, Tensor *y, Conv *c, Tensor *w,
                                                   int algo, size_t *bytes) {
    return needs(FILTER, x, w, c, y, algo, bytes);
}
int cudnnConvolutionForward(Handle *h, const void *alpha, Tensor *xd, void *x, Tensor *wd, void *w,
                            Conv *c, int algo, void *space, size_t bytes, const void *beta, Tensor *yd,
                            void *y) {
    return convolve(FORWARD, h, alpha, xd, x, wd, w, c, algo, space, bytes, beta, yd, y);
}
int cudnnConvolutionBackwardData(Handle *h, const void *alpha, Tensor *wd, void *w, Tensor *yd, void *y,
                                 Conv *c, int algo, void *space, size_t bytes, const void *beta,
                                 Tensor *xd, void *x) {
    return convolve(DATA, h, alpha, xd, x, wd, w, c, algo, space, bytes, beta, yd, y);
}
int cudnnConvolutionBackwardFilter(Handle *h, const void *alpha, Tensor *xd, void *x, Tensor *yd, void *y,
                                   Conv *c, int algo, void *space, size_t bytes, const void *beta,
                                   Tensor *wd, void *w) {
    return convolve(FILTER, h, alpha, xd, x, wd, w, c, algo, space, bytes, beta, yd, y);
}
}
