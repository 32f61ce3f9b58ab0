// The streams of the driver's stand-in, driver.cpp, which follows this text.
// What a stream is given is done as late as possible and in a random order of all that
// is legal: a wait that is missing shows in the results. Beside that order there is a
// clock: when each task would begin and end if streams ran side by side, at rates that
// a test sets.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// A point that a stream has reached, and when.
struct Mark {
    bool done;
    double secs;
    struct Stream *of;
};

// What a stream has yet to do, or to wait for.
struct Task {
    std::function<void()> run;
    std::shared_ptr<Mark> until;
    double given_secs, secs;
    // Of a copy, what `run` copies.
    char *to;
    const char *from;
    size_t bytes;
};
struct Stream {
    // As the backend makes them: kernels, copies to the device, copies to the host.
    size_t lane;
    std::deque<Task> tasks;
    double clock_secs = 0;
    // Where what it is given goes while it is captured.
    struct Graph *capture = nullptr;
};
// What a stream was given while it was captured, with the kind and amount of each.
struct Graph {
    struct Node {
        std::function<void()> run;
        int kind;
        double n;
    };
    std::vector<Node> nodes;
};
struct Event {
    std::shared_ptr<Mark> mark = std::make_shared<Mark>(Mark{true, 0, nullptr});
};
static std::vector<Stream *> streams;

// Seconds of a block of a kernel or a call of a library, of a byte to the device and of
// one to the host; what each has taken, and when the host has come how far.
enum Kind { KERNEL, TO_DEVICE, TO_HOST, NOTHING };
static double rates[4], busy_secs[4], host_secs, end_secs;
// Whether by the clock one task runs at a time, as on a device without copy engines.
static bool is_in_turn;

// Waits from some point on, as three times who waits, and for whom; the number of the
// one that is not made, from 1, or 0 for none.
static std::vector<size_t> waits;
static size_t dropped;
static std::shared_ptr<Mark> unheeded;
static Stream *hasty;
// Copies that ought to have waited, with what they found to copy.
struct Early {
    char *to;
    std::string found;
};
static std::vector<Early> early;
// The lane that does nothing while another can go on; 3 for none.
static size_t slow_lane = 3;

static size_t below(size_t n) {
    static uint64_t state = 1;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (size_t)(state >> 33) % n;
}

// What ought to have waited copies early: until what it ought to have waited for is
// done, and beyond if that writes there too, the bytes are of no value.
static void copy_early(const Task &task) {
    early.push_back({task.to, std::string(task.from, task.bytes)});
    memset(task.to, 0xff, task.bytes);
}
static void end_early() {
    for (const Early &copy : early) {
        std::string spoilt(copy.found.size(), (char)0xff);
        bool is_spoilt = !memcmp(copy.to, spoilt.data(), spoilt.size());
        memcpy(copy.to, is_spoilt ? copy.found.data() : spoilt.data(), spoilt.size());
    }
    early.clear();
}

// Does one task of any stream that may go on.
static void step() {
    std::vector<Stream *> ready;
    for (Stream *s : streams)
        if (!s->tasks.empty() && (!s->tasks.front().until || s->tasks.front().until->done))
            ready.push_back(s);
    if (ready.empty()) {
        fprintf(stderr, "every stream waits for another\n");
        abort();
    }
    Stream *s = ready[below(ready.size())];
    for (Stream *other : ready)
        if (s->lane == slow_lane) s = other;
    // What ought to have waited runs first, what it ought to have waited for last.
    if (unheeded && !unheeded->done)
        for (Stream *other : ready)
            if (other == hasty || s == unheeded->of) s = other;
    Task task = s->tasks.front();
    s->tasks.pop_front();
    double from = task.until ? task.until->secs : task.given_secs;
    if (from > s->clock_secs) s->clock_secs = from;
    if (is_in_turn && task.secs && end_secs > s->clock_secs) s->clock_secs = end_secs;
    s->clock_secs += task.secs;
    if (s->clock_secs > end_secs) end_secs = s->clock_secs;
    bool is_early = unheeded && !unheeded->done && s == hasty;
    if (is_early && task.to) copy_early(task);
    else if (task.run) task.run();
    if (unheeded && unheeded->done) end_early();
}

// The host waits until a stream has done all.
static void drain(Stream *s) {
    while (!s->tasks.empty()) step();
    if (s->clock_secs > host_secs) host_secs = s->clock_secs;
}

static void give(void *stream, std::function<void()> run, Kind kind = NOTHING, double n = 0) {
    if (Graph *graph = ((Stream *)stream)->capture) {
        graph->nodes.push_back({run, kind, n});
        return;
    }
    double secs = n * rates[kind];
    busy_secs[kind] += secs;
    ((Stream *)stream)->tasks.push_back({run, nullptr, host_secs, secs, nullptr, nullptr, 0});
}
