// Behind the kernels: the launch of one.
#undef inline
#include <utility>

extern char __start_block_shared[], __stop_block_shared[];

// Saves the registers that a call keeps, and the stack, and goes on with another.
// swapcontext would do, with two system calls each time.
#ifdef __x86_64__
extern "C" void sstep_switch(void **from, void *to);
asm(".text\n"
    ".type sstep_switch, @function\n"
    "sstep_switch:\n"
    "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
    "ret\n");
struct Context {
    void *stack = nullptr;
    void start(std::vector<char> &memory, void (*enter)()) {
        uintptr_t top = ((uintptr_t)(memory.data() + memory.size()) & ~(uintptr_t)15) - 8;
        void **slots = (void **)(top - 7 * sizeof(void *));
        std::memset(slots, 0, 6 * sizeof(void *));
        slots[6] = (void *)enter;
        stack = slots;
    }
    void to(Context &next) { sstep_switch(&stack, next.stack); }
};
#else
#include <ucontext.h>
struct Context {
    ucontext_t stack;
    void start(std::vector<char> &memory, void (*enter)()) {
        getcontext(&stack);
        stack.uc_stack.ss_sp = memory.data();
        stack.uc_stack.ss_size = memory.size();
        stack.uc_link = nullptr;
        makecontext(&stack, enter, 0);
    }
    void to(Context &next) { swapcontext(&stack, &next.stack); }
};
#endif

namespace {
struct Fiber {
    Context context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    unsigned thread = 0;
    int line = 0; // where it waits; 0 if it has ended
};
Context scheduler;
Fiber *now = nullptr;
void (*kernel_now)(const Args);
const Args *args_now;
std::vector<Fiber *> fibers;
uint64_t shuffles = 1;

void enter() {
    for (;;) {
        kernel_now(*args_now);
        now->line = 0;
        now->context.to(scheduler);
    }
}

size_t below(size_t n) {
    shuffles = shuffles * 6364136223846793005ull + 1442695040888963407ull;
    return (size_t)(shuffles >> 33) % n;
}

void resume(Fiber *fiber) {
    now = fiber;
    threadIdx.x = fiber->thread;
    scheduler.to(fiber->context);
}

Fiber *fiber_at(size_t i) {
    while (fibers.size() <= i) {
        Fiber *fiber = new Fiber;
        fiber->context.start(fiber->stack, enter);
        fibers.push_back(fiber);
    }
    return fibers[i];
}

template <class V> void shuffle(V &items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
}

void run_block(unsigned threads) {
    std::memset(__start_block_shared, 0xff, __stop_block_shared - __start_block_shared);
    std::vector<unsigned> order(threads);
    for (unsigned t = 0; t < threads; ++t) order[t] = t;
    shuffle(order);
    // A fiber whose thread ended at once serves the next thread too.
    std::vector<Fiber *> waiting;
    for (unsigned t : order) {
        Fiber *fiber = fiber_at(waiting.size());
        fiber->thread = t;
        resume(fiber);
        if (fiber->line) waiting.push_back(fiber);
    }
    while (!waiting.empty()) {
        if (waiting.size() != threads) stop("a barrier that not all threads reach", waiting[0]->line);
        std::vector<Fiber *> next;
        for (Fiber *fiber : waiting)
            if (fiber->line != waiting[0]->line)
                stop("threads wait at different barriers", fiber->line);
        std::vector<Fiber *> turn = waiting;
        shuffle(turn);
        for (Fiber *fiber : turn) {
            resume(fiber);
            if (fiber->line) next.push_back(fiber);
        }
        waiting = next;
    }
}
} // namespace

// Under the address sanitizer, of all device memory only the views of a call may be
// touched while it runs; how much of a state there is, the call does not say.
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
extern "C" __attribute__((weak)) bool standin_allocation(uint64_t at, uint64_t *base, size_t *bytes);

struct OnlyViews {
    uint64_t base = 0;
    size_t bytes = 0;
    static void open(const View &v) {
        if (!v.address) return;
        i64 last = (v.hi[0] - v.lo[0] - 1) * v.stride[0] + (v.dims[1] - 1) * v.stride[1] +
                   (v.hi[1] - v.lo[1] - 1) * v.stride[2] + (v.hi[2] - v.lo[2] - 1) * v.stride[3] +
                   v.hi[3] - v.lo[3] - 1;
        size_t size = v.stored == 0 ? sizeof(real) : 2;
        if (last >= 0) ASAN_UNPOISON_MEMORY_REGION(v.address, (size_t)(last + 1) * size);
    }
    explicit OnlyViews(const Args &a) {
        const View &any = a.out.address ? a.out : a.in[0];
        if (a.state || !standin_allocation || !standin_allocation((uint64_t)any.address, &base, &bytes)) return;
        ASAN_POISON_MEMORY_REGION((void *)base, bytes);
        open(a.out);
        for (const View &v : a.in) open(v);
    }
    ~OnlyViews() {
        if (bytes) ASAN_UNPOISON_MEMORY_REGION((void *)base, bytes);
    }
};
#else
struct OnlyViews {
    explicit OnlyViews(const Args &) {}
};
#endif

static void wait_at(int line) {
    now->line = line;
    now->context.to(scheduler);
    threadIdx.x = now->thread;
}

extern "C" void sstep_launch(void *kernel, const char *name, const void *args, unsigned grid,
                             unsigned block) {
    running = name;
    kernel_now = (void (*)(const Args))kernel;
    args_now = (const Args *)args;
    if (block != 256) stop("a launch of another block than the kernels are written for", 0);
    OnlyViews only(*args_now);
    gridDim = {grid, 1, 1};
    blockDim = {THREADS, 1, 1};
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {b, 0, 0};
        run_block(THREADS);
    }
}

extern "C" size_t sstep_args_bytes() { return sizeof(Args); }
