//! PyTorch as a process that is polled in turn.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// A running server; see `benches/peers/torch_server.py`.
pub struct Torch {
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Torch {
    /// Starts the server under `python` with so many threads, and an allocator
    /// that keeps its pages: glibc's default faults every large output in anew,
    /// which makes PyTorch up to twice as slow.
    pub fn start(python: &Path, threads: usize) -> Result<Torch, Box<dyn std::error::Error>> {
        let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/torch_server.py");
        let mut child = Command::new(python)
            .arg(server)
            .env("OMP_NUM_THREADS", threads.to_string())
            .env("MALLOC_MMAP_MAX_", "0")
            .env("MALLOC_TRIM_THRESHOLD_", "60000000000")
            .env("MALLOC_TOP_PAD_", "268435456")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(requests), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the PyTorch server has no pipes".into());
        };
        Ok(Torch {
            child,
            requests,
            replies: BufReader::new(replies),
        })
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: &Value) -> Result<Value, Box<dyn std::error::Error>> {
        writeln!(self.requests, "{request}")?;
        self.requests.flush()?;
        let mut line = String::new();
        if self.replies.read_line(&mut line)? == 0 {
            return Err(format!("the PyTorch server ended at {request}").into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// The number under `key` of the answer.
    pub fn number(
        &mut self,
        request: &Value,
        key: &str,
    ) -> Result<f64, Box<dyn std::error::Error>> {
        let answer = self.ask(request)?;
        let number = answer.get(key).and_then(Value::as_f64);
        number
            .ok_or_else(|| format!("the PyTorch server answered {answer}, without `{key}`").into())
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may have ended already; nothing depends on it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
