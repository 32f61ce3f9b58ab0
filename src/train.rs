//! Training: step after step over a dataset, with checkpoints.
//!
//! A checkpoint holds parameters, optimiser state, and what the run was: it
//! either exists whole or not at all. After a loss that is not a number nothing
//! is saved any more, so the last checkpoint is always a good one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sstep_executor::source::StackSource;
use sstep_executor::{Feed, Measured, Progress, Tensor};
use sstep_planner::Plan;

use crate::data::{Dataset, Sample, sample_of};
use crate::error::Error;
use crate::loss_scale::DynamicScale;
use crate::optim::Schedule;
use crate::params::{self, Element, TensorFile};
use crate::session::{OptimiserState, Session, Step};

/// Prefix of optimiser state in a checkpoint: `optimizer/<slot>/<parameter>`.
const STATE: &str = "optimizer/";

/// Metadata that a checkpoint has of a [`DynamicScale`]: its fields in order.
const SCALE: [&str; 3] = ["loss_scale", "loss_scale_good_steps", "skipped_steps"];

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Steps in all, those before a checkpoint included.
    pub steps: u64,
    /// Samples per step; they must have one shape.
    pub batch: usize,
    /// Base learning rate.
    pub lr: f64,
    /// What fraction of it each step gets.
    pub schedule: Schedule,
    /// Seed of the order of samples.
    pub seed: u64,
    /// Where checkpoints go; none are written without it.
    pub checkpoint: Option<PathBuf>,
    /// Steps between checkpoints; one is written at the end in any case.
    pub checkpoint_every: u64,
    /// What the run is, in words that a checkpoint must match to be resumed.
    pub about: String,
}

impl TrainOptions {
    /// `steps` steps at a constant rate, no checkpoints.
    pub fn new(steps: u64, lr: f64) -> Self {
        TrainOptions {
            steps,
            batch: 1,
            lr,
            schedule: Schedule::Constant,
            seed: 0,
            checkpoint: None,
            checkpoint_every: 100,
            about: String::new(),
        }
    }
}

/// A step as training tells of it.
#[derive(Clone, Debug)]
pub struct TrainStep {
    /// Number of the step, from 1.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Name of the sample.
    pub sample: String,
    /// Learning rate.
    pub lr: f64,
    /// Loss.
    pub loss: f64,
    /// What the loss was multiplied by for the gradients.
    pub loss_scale: f64,
    /// What it is multiplied by next, if no parameter was updated, for a gradient was not
    /// finite under a dynamic scale.
    pub lowered_to: Option<f64>,
    /// For each sample of the batch, the class that the network thought most
    /// likely before this step's update; empty if it has no such thing.
    pub classes: Vec<usize>,
    /// What the step took.
    pub measured: Measured,
    /// The plan it carried out.
    pub plan: Arc<Plan>,
}

/// What happens while training.
pub enum TrainEvent<'a> {
    /// A sample of a new shape is about to be planned.
    Planning {
        /// Its name.
        sample: &'a str,
        /// Its shape.
        shape: &'a [usize],
    },
    /// It has been planned.
    Planned(&'a Plan),
    /// A step is under way; `step` counts from 1.
    Progress {
        /// Number of the step.
        step: u64,
        /// How far it is.
        progress: Progress,
    },
    /// A step is done.
    Step(&'a TrainStep),
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// Trains a session's network on a dataset.
pub struct Trainer<T: Element> {
    session: Session<T>,
    data: Box<dyn Dataset<T>>,
    options: TrainOptions,
    saved: Option<PathBuf>,
}

impl<T: Element> Trainer<T> {
    /// A trainer of a session that was given an update rule.
    ///
    /// # Errors
    /// [`Error::Usage`] if the session has none, the dataset is empty, or the
    /// learning rate is no number.
    pub fn new(
        session: Session<T>,
        data: impl Dataset<T> + 'static,
        options: TrainOptions,
    ) -> Result<Self, Error> {
        if session.options().rule.is_none() {
            return Err(Error::usage("a session that trains needs an update rule"));
        }
        if data.is_empty() {
            return Err(Error::usage("there is nothing to train on"));
        }
        if !options.lr.is_finite() || options.lr < 0.0 {
            return Err(Error::usage(format!("{} is no learning rate", options.lr)));
        }
        Ok(Trainer {
            session,
            data: Box::new(data),
            options,
            saved: None,
        })
    }

    /// The session, with the parameters as they are.
    pub fn session(&mut self) -> &mut Session<T> {
        &mut self.session
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] if it cannot be read or belongs to
    /// another run; [`Error::TensorShape`] if its tensors do not fit.
    pub fn resume(&mut self, path: &Path) -> Result<(), Error> {
        let file = TensorFile::open(path)?;
        let meta = |key: &str| file.metadata().get(key).map(String::as_str);
        let Some(step) = meta("step").and_then(|s| s.parse().ok()) else {
            return Err(Error::file(
                path,
                "is no checkpoint of sstep: it names no step",
            ));
        };
        if meta("about") != Some(&self.options.about) {
            return Err(Error::file(
                path,
                format!(
                    "is a checkpoint of another run ({}), not of this one ({})",
                    meta("about").unwrap_or("nothing is said of it"),
                    self.options.about
                ),
            ));
        }
        let mut tensors = BTreeMap::new();
        let mut state = OptimiserState::new();
        for name in file.names() {
            let tensor = file.tensor_as_is(name)?;
            match name
                .strip_prefix(STATE)
                .and_then(|rest| rest.split_once('/'))
            {
                None => {
                    tensors.insert(name.to_owned(), tensor);
                }
                Some((slot, param)) => {
                    let slot = slot.parse().map_err(|_| Error::Tensor {
                        name: name.to_owned(),
                        reason: "is no optimiser state: no slot number".to_owned(),
                    })?;
                    state.insert((param.to_owned(), slot), tensor);
                }
            }
        }
        self.session.set_params(tensors)?;
        self.session.set_optimiser_state(state)?;
        self.session.set_n_steps(step);
        // Of a run whose scale was fixed there is none: it starts as that of a new run.
        let number = |key: &str| meta(key).and_then(|s| s.parse().ok());
        let factor = meta(SCALE[0]).and_then(|s| s.parse().ok());
        if let (Some(factor), Some(n_good), Some(n_skipped)) =
            (factor, number(SCALE[1]), number(SCALE[2]))
        {
            self.session.set_dynamic_scale(DynamicScale {
                factor,
                n_good,
                n_skipped,
            });
        }
        self.saved = Some(path.to_path_buf());
        Ok(())
    }

    /// Trains to the last step. `tell` hears of everything as it happens.
    ///
    /// # Errors
    /// [`Error::Diverged`] at a loss that is not a number; whatever keeps a
    /// sample from being read or a checkpoint from being written.
    pub fn run(&mut self, tell: &mut dyn FnMut(TrainEvent<'_>)) -> Result<(), Error> {
        let mut planned: Vec<Vec<usize>> = Vec::new();
        while self.session.n_steps() < self.options.steps {
            let step = self.session.n_steps();
            let sample = self.batch(step)?;
            let shape = sample.image.shape().dims().to_vec();
            if !planned.contains(&shape) {
                tell(TrainEvent::Planning {
                    sample: &sample.name,
                    shape: &shape,
                });
                let plan = self.session.plan(&shape)?;
                tell(TrainEvent::Planned(&plan));
                planned.push(shape);
            }
            let lr = self.options.lr * self.options.schedule.factor(step, self.options.steps);
            let Step {
                loss,
                logits,
                loss_scale,
                report,
                plan,
            } = self
                .session
                .step(sample.image, sample.label, lr, &mut |progress| {
                    tell(TrainEvent::Progress {
                        step: step + 1,
                        progress,
                    });
                })?;
            let lowered_to = (report.measured.update_skipped)
                .then(|| self.session.dynamic_scale())
                .flatten()
                .map(|scale| scale.factor);
            let done = TrainStep {
                step: step + 1,
                steps: self.options.steps,
                sample: sample.name,
                lr,
                loss,
                loss_scale,
                lowered_to,
                classes: logits.map_or(Vec::new(), |t| classes(&t)),
                measured: report.measured,
                plan,
            };
            tell(TrainEvent::Step(&done));
            let is_hopeless = lowered_to.is_some_and(|factor| factor < DynamicScale::LEAST);
            if !loss.is_finite() || is_hopeless {
                let checkpoint = self.saved.clone();
                return Err(Error::Diverged {
                    step: done.step,
                    loss,
                    checkpoint,
                });
            }
            let last = done.step == self.options.steps;
            if last
                || done
                    .step
                    .is_multiple_of(self.options.checkpoint_every.max(1))
            {
                self.save(tell)?;
            }
        }
        Ok(())
    }

    /// The samples of a step as one.
    fn batch(&self, step: u64) -> Result<Sample<T>, Error> {
        let n = self.options.batch.max(1);
        let mut samples = Vec::with_capacity(n);
        for i in 0..n as u64 {
            let at = step * n as u64 + i;
            samples.push(
                self.data
                    .open(sample_of(at, self.data.len(), self.options.seed))?,
            );
        }
        stack(samples)
    }

    fn save(&mut self, tell: &mut dyn FnMut(TrainEvent<'_>)) -> Result<(), Error> {
        let Some(path) = self.options.checkpoint.clone() else {
            return Ok(());
        };
        let step = self.session.n_steps();
        // An update can overflow although the loss before it was a number.
        let finite = |data: &[T]| data.iter().all(|v| v.to_f64().is_finite());
        if !self.session.params()?.values().all(|t| finite(&t.data)) {
            let checkpoint = self.saved.clone();
            return Err(Error::Diverged {
                step,
                loss: f64::NAN,
                checkpoint,
            });
        }
        let scale = self.session.dynamic_scale();
        let state = self.session.optimiser_state()?.clone();
        let params = self.session.params()?;
        let state = state
            .iter()
            .map(|((name, slot), t)| (format!("{STATE}{slot}/{name}"), t));
        let tensors = params
            .iter()
            .map(|(name, t)| (name.clone(), t))
            .chain(state);
        let mut metadata = BTreeMap::from([
            ("step".to_owned(), step.to_string()),
            ("about".to_owned(), self.options.about.clone()),
        ]);
        if let Some(scale) = scale {
            let values = [
                scale.factor.to_string(),
                scale.n_good.to_string(),
                scale.n_skipped.to_string(),
            ];
            let keys = SCALE.map(str::to_owned);
            metadata.extend(keys.into_iter().zip(values));
        }
        params::save(&path, tensors, &metadata)?;
        tell(TrainEvent::Saved(&path));
        self.saved = Some(path);
        Ok(())
    }
}

/// Several samples as a batch; one stays as it is.
fn stack<T: Element>(mut samples: Vec<Sample<T>>) -> Result<Sample<T>, Error> {
    if samples.len() == 1
        && let Some(only) = samples.pop()
    {
        return Ok(only);
    }
    let name = samples
        .iter()
        .map(|s| s.name.as_str())
        .collect::<Vec<_>>()
        .join(" + ");
    let images = samples.iter().map(|s| Arc::clone(&s.image)).collect();
    let (mut flat, mut maps) = (Vec::new(), Vec::new());
    for sample in samples {
        match sample.label {
            Feed::Flat(values) => flat.extend(values),
            Feed::Source(map) => maps.push(map),
        }
    }
    let label = match (flat.is_empty(), maps.is_empty()) {
        (_, true) => Feed::Flat(flat),
        (true, false) => Feed::Source(Arc::new(StackSource::new(maps)?)),
        (false, false) => {
            return Err(Error::usage(
                "a batch has labels either per image or per pixel",
            ));
        }
    };
    Ok(Sample {
        name,
        image: Arc::new(StackSource::new(images)?),
        label,
    })
}

/// Index of the largest logit of each sample.
fn classes<T: Element>(logits: &Tensor<T>) -> Vec<usize> {
    let largest = |row: &[T]| {
        let by_value = |a: &(usize, &T), b: &(usize, &T)| a.1.to_f64().total_cmp(&b.1.to_f64());
        row.iter()
            .enumerate()
            .max_by(by_value)
            .map_or(0, |(i, _)| i)
    };
    logits
        .data
        .chunks(logits.shape.channels().max(1))
        .map(largest)
        .collect()
}
