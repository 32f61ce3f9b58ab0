//! The predicted timeline as a trace: what Perfetto and chrome://tracing open.
//!
//! Time is in predicted microseconds. One track has the stages, one each has their
//! kernels (reading images included), their copies in and out, and the disk, as long as
//! those take: one after the other, or side by side where they overlap. Counters follow
//! the arena, the host and the disk. Tiles are not spelled out, so a step of thousands
//! of tiles stays a small file.

use serde_json::{Value, json};

use crate::plan::{Plan, Stage};

impl Plan {
    /// The predicted timeline in the Trace Event Format.
    pub fn trace(&self) -> Value {
        let picture = self.picture();
        let name = |tid: u32, name: &str| json!({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}});
        let mut events = vec![
            json!({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "predicted step"}}),
            name(1, "stages"),
            name(2, "kernels and images"),
            name(3, "in: from the host"),
            name(4, "out: to the host"),
            name(5, "disk"),
        ];
        let micros = |secs: f64| 1e6 * secs;
        let cap = self.budget.device_bytes;
        for s in self.explained().stages {
            let (from, to) = picture.stage_secs[s.index];
            let ts = micros(from);
            let slice = |tid: u32, (from, to): (f64, f64), name: String, args: Value| json!({"ph": "X", "pid": 1, "tid": tid, "name": name, "ts": micros(from), "dur": micros(to - from), "args": args});
            let Slices {
                compute,
                inward,
                outward,
                disk,
            } = slices(&self.stages[s.index], (from, to));
            let title = format!("stage {}: {}", s.index, super::dot::brief(&s.makes));
            let details = json!({
                "makes": s.makes, "reads": s.reads, "grid": s.grid, "tiles": s.n_tiles,
                "why": s.why, "flops": s.cost.flops, "secs": s.cost.secs,
            });
            events.push(slice(1, (from, to), title, details));
            let args = json!({"from_images": s.cost.source_bytes});
            events.push(slice(2, compute, format!("stage {}", s.index), args));
            let mut copies = |tid: u32, when: (f64, f64), bytes: u64, args: Value| {
                if bytes > 0 {
                    events.push(slice(tid, when, crate::ByteSize(bytes).to_string(), args));
                }
            };
            let c = &s.cost;
            copies(3, inward, c.h2d_bytes, json!({"from_host": c.h2d_bytes}));
            copies(4, outward, c.d2h_bytes, json!({"to_host": c.d2h_bytes}));
            let both = c.disk_read_bytes + c.disk_write_bytes;
            let args = json!({"from_disk": c.disk_read_bytes, "to_disk": c.disk_write_bytes});
            copies(5, disk, both, args);
            let counter = |name: &str, bytes: u64| json!({"ph": "C", "pid": 1, "name": name, "ts": ts, "args": {"bytes": bytes}});
            events.push(counter("arena high-water", s.cost.high_water_bytes));
            events.push(counter("arena allowed", cap));
            events.push(counter("host memory", picture.host_bytes[s.index]));
            events.push(counter("disk", picture.disk_bytes[s.index]));
        }
        json!({"displayTimeUnit": "ms", "traceEvents": events})
    }
}

/// When each channel of a stage is at work: begin and end in seconds.
struct Slices {
    compute: (f64, f64),
    inward: (f64, f64),
    outward: (f64, f64),
    disk: (f64, f64),
}

/// Copies in from the stage's beginning, copies out up to its end, kernels between
/// them or, where they overlap, from about the second tile's copy on; then the disk,
/// beside which nothing runs.
fn slices(stage: &Stage, (from, to): (f64, f64)) -> Slices {
    let c = &stage.cost;
    let (disk, to) = ((to - c.disk_secs, to), to - c.disk_secs);
    let latest = (to - c.compute_secs).max(from);
    let start = if stage.overlaps() {
        from + c.h2d_secs / stage.n_tiles() as f64
    } else {
        from + c.h2d_secs
    };
    let start = start.min(latest);
    Slices {
        compute: (start, start + c.compute_secs),
        inward: (from, from + c.h2d_secs),
        outward: (to - c.d2h_secs, to),
        disk,
    }
}
