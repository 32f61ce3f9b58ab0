//! The predicted timeline as a trace: what Perfetto and chrome://tracing open.
//!
//! Time is in predicted microseconds. One track has the stages, two have what they
//! copy in and out, and counters follow the arena, the host and the disk. Tiles are not
//! spelled out, so a step of thousands of tiles stays a small file.

use serde_json::{Value, json};

use crate::plan::Plan;

impl Plan {
    /// The predicted timeline in the Trace Event Format.
    pub fn trace(&self) -> Value {
        let picture = self.picture();
        let name = |tid: u32, name: &str| json!({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}});
        let mut events = vec![
            json!({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "predicted step"}}),
            name(1, "stages"),
            name(2, "in: from the host, the disk and images"),
            name(3, "out: to the host and the disk"),
        ];
        let micros = |secs: f64| 1e6 * secs;
        let cap = self.budget.device_bytes;
        for s in self.explained().stages {
            let (from, to) = picture.stage_secs[s.index];
            let (ts, dur) = (micros(from), micros(to - from));
            let event = |tid: u32, name: String, args: Value| json!({"ph": "X", "pid": 1, "tid": tid, "name": name, "ts": ts, "dur": dur, "args": args});
            let title = format!("stage {}: {}", s.index, super::dot::brief(&s.makes));
            let details = json!({
                "makes": s.makes, "reads": s.reads, "grid": s.grid, "tiles": s.n_tiles,
                "why": s.why, "flops": s.cost.flops, "secs": s.cost.secs,
            });
            events.push(event(1, title, details));
            let inward = s.cost.in_bytes();
            if inward > 0 {
                let args = json!({
                    "from_host": s.cost.h2d_bytes, "from_disk": s.cost.disk_read_bytes,
                    "from_images": s.cost.source_bytes,
                });
                events.push(event(2, crate::ByteSize(inward).to_string(), args));
            }
            let outward = s.cost.out_bytes();
            if outward > 0 {
                let args = json!({"to_host": s.cost.d2h_bytes, "to_disk": s.cost.disk_write_bytes});
                events.push(event(3, crate::ByteSize(outward).to_string(), args));
            }
            let counter = |name: &str, bytes: u64| json!({"ph": "C", "pid": 1, "name": name, "ts": ts, "args": {"bytes": bytes}});
            events.push(counter("arena high-water", s.cost.high_water_bytes));
            events.push(counter("arena allowed", cap));
            events.push(counter("host memory", picture.host_bytes[s.index]));
            events.push(counter("disk", picture.disk_bytes[s.index]));
        }
        json!({"displayTimeUnit": "ms", "traceEvents": events})
    }
}
