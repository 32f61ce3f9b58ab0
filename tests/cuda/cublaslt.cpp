// Stands in for cuBLASLt: as much of its interface as the backend calls, with the rules
// that `cudnn.cpp` holds its caller to.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

extern "C" void standin_give(void *stream, void (*run)(void *), void *with);
extern "C" bool standin_is_live(uint64_t at, size_t bytes);

enum { OK = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
static const size_t SCRATCH = 96;
static size_t calls;

static void rule(bool kept, const char *what) {
    if (kept) return;
    std::fprintf(stderr, "cuBLASLt's stand-in: %s\n", what);
    std::abort();
}

struct Product {
    int precision, type, transposes[2];
};
struct Matrix {
    int type;
    uint64_t rows, columns;
    int64_t lead;
};
struct Preference {
    size_t scratch;
};
struct Algorithm {
    uint64_t data[8];
};
struct Found {
    Algorithm algo;
    size_t scratch;
    int state;
    float waves;
    int reserved[4];
};

template <class T>
static void multiply(Product p, Matrix am, const T *a, Matrix bm, const T *b, Matrix cm, T *c) {
    uint64_t terms = p.transposes[0] ? am.rows : am.columns;
    for (uint64_t j = 0; j < cm.columns; ++j)
        for (uint64_t i = 0; i < cm.rows; ++i) {
            double sum = 0;
            for (uint64_t k = 0; k < terms; ++k)
                sum += (double)(p.transposes[0] ? a[k + i * am.lead] : a[i + k * am.lead]) *
                       (double)(p.transposes[1] ? b[j + k * bm.lead] : b[k + j * bm.lead]);
            c[i + j * cm.lead] = (T)sum;
        }
}

static bool agree(const Product &p, const Matrix &a, const Matrix &b, const Matrix &c) {
    uint64_t m = p.transposes[0] ? a.columns : a.rows, k = p.transposes[0] ? a.rows : a.columns;
    uint64_t n = p.transposes[1] ? b.rows : b.columns, l = p.transposes[1] ? b.columns : b.rows;
    return m == c.rows && n == c.columns && k == l && a.type == p.type && b.type == p.type &&
           c.type == p.type && p.precision == (p.type ? 70 : 68);
}

extern "C" {
size_t standin_products() { return calls; }

int cublasLtCreate(void **h) { *h = new char; return OK; }
int cublasLtDestroy(void *h) { delete (char *)h; return OK; }
int cublasLtMatmulDescCreate(Product **p, int precision, int type) {
    *p = new Product{precision, type, {0, 0}};
    return OK;
}
int cublasLtMatmulDescDestroy(Product *p) { delete p; return OK; }
int cublasLtMatmulDescSetAttribute(Product *p, int which, const void *value, size_t bytes) {
    if ((which != 3 && which != 4) || bytes != 4) return INVALID_VALUE;
    std::memcpy(&p->transposes[which - 3], value, 4);
    return OK;
}
int cublasLtMatrixLayoutCreate(Matrix **m, int type, uint64_t rows, uint64_t columns, int64_t lead) {
    *m = new Matrix{type, rows, columns, lead};
    return lead >= (int64_t)rows ? OK : INVALID_VALUE;
}
int cublasLtMatrixLayoutDestroy(Matrix *m) { delete m; return OK; }
int cublasLtMatmulPreferenceCreate(Preference **p) { *p = new Preference{0}; return OK; }
int cublasLtMatmulPreferenceDestroy(Preference *p) { delete p; return OK; }
int cublasLtMatmulPreferenceSetAttribute(Preference *p, int which, const void *value, size_t bytes) {
    if (which != 1 || bytes != sizeof(size_t)) return INVALID_VALUE;
    std::memcpy(&p->scratch, value, bytes);
    return OK;
}
int cublasLtMatmulAlgoGetHeuristic(void *, Product *p, Matrix *a, Matrix *b, Matrix *c, Matrix *d,
                                   Preference *preference, int most, Found *found, int *count) {
    rule(agree(*p, *a, *b, *c) && agree(*p, *a, *b, *d), "matrices that do not belong together");
    *found = Found{{{17}}, preference->scratch >= SCRATCH ? SCRATCH : 0, OK, 1, {}};
    *count = most >= 1;
    return OK;
}
int cublasLtMatmul(void *, Product *p, const void *alpha, void *a, Matrix *am, void *b, Matrix *bm,
                   const void *beta, void *c, Matrix *cm, void *d, Matrix *dm, const Algorithm *algo,
                   void *space, size_t bytes, void *stream) {
    rule(agree(*p, *am, *bm, *cm) && agree(*p, *am, *bm, *dm) && c == d, "matrices that do not belong together");
    rule(algo->data[0] == 17, "an algorithm that was not offered");
    double one = p->type ? *(const double *)alpha : *(const float *)alpha;
    double keep = p->type ? *(const double *)beta : *(const float *)beta;
    rule(one == 1 && keep == 0, "factors");
    size_t e = p->type ? 8 : 4;
    const Matrix *shapes[3] = {am, bm, cm};
    void *tensors[3] = {a, b, c};
    for (int i = 0; i < 3; ++i) {
        size_t size = shapes[i]->columns * (size_t)shapes[i]->lead * e;
        rule(standin_is_live((uint64_t)tensors[i], size), "a matrix outside the arena");
        char *lo = (char *)tensors[i];
        rule(!bytes || lo + size <= (char *)space || lo >= (char *)space + bytes, "scratch in a matrix");
    }
    rule(bytes == 0 || standin_is_live((uint64_t)space, bytes), "scratch outside the arena");
    rule(stream, "no stream was given");
    ++calls;
    Product product = *p;
    Matrix as = *am, bs = *bm, cs = *cm;
    auto *task = new std::function<void()>([=] {
        if (bytes) std::memset(space, 0xff, bytes);
        if (product.type) multiply(product, as, (double *)a, bs, (double *)b, cs, (double *)c);
        else multiply(product, as, (float *)a, bs, (float *)b, cs, (float *)c);
    });
    standin_give(
        stream,
        [](void *with) {
            auto *task = (std::function<void()> *)with;
            (*task)();
            delete task;
        },
        task);
    return OK;
}
}
