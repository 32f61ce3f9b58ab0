//! Progress on standard error: hidden when that is no terminal, or with
//! `--json`.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sstep::Progress;

/// Parts a step is divided into.
const PARTS: u64 = 1000;

/// A bar over a number of steps.
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar over `steps` steps, of which `done` were done before.
    pub fn new(steps: u64, done: u64, json: bool) -> Self {
        let target = if json {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(steps * PARTS), target);
        let template = "{msg} [{bar:32}] {percent:>3} %, {elapsed_precise}, ETA {eta_precise}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        // Steps of another run tell nothing about how long this one takes.
        let bar = bar.with_position(done * PARTS);
        bar.reset_eta();
        Bar { bar }
    }

    /// Says what goes on.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Step `step`, counted from 0, is so far.
    pub fn at(&self, step: u64, progress: Progress) {
        let part = progress.done_secs / progress.total_secs.max(f64::MIN_POSITIVE);
        let part = (part.clamp(0.0, 1.0) * PARTS as f64) as u64;
        self.bar.set_position(step * PARTS + part);
    }

    /// Prints between two drawings of the bar.
    pub fn print(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Removes it.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Runs `work` behind a spinner that says what it is.
pub fn spin<R>(what: &str, json: bool, work: impl FnOnce() -> R) -> R {
    let target = if json {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let spinner = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed_precise}") {
        spinner.set_style(style);
    }
    spinner.set_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(200));
    let result = work();
    spinner.finish_and_clear();
    result
}
