//! A network, a budget and its parameters: plans once per image size, runs
//! steps.
//!
//! Slides differ in size and a plan fits one size only. A [`Session`] keeps a
//! plan per size it has seen, one arena for the size at hand, and carries
//! parameters and optimiser state from one to the next.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use sstep_autodiff::{DType, Op, Shape, Tape, backward, backward_scaled};
use sstep_executor::source::TileSource;
use sstep_executor::{Device, DeviceOptions, Executor, Feed, Feeds, Progress, StepHow, StepReport};
use sstep_planner::{Aim, Budget, Machine, Objective, Plan, Program, StepSpec, Strategy, plan};

use crate::error::Error;
use crate::loss_scale::{DynamicScale, LossScale};
use crate::nn::{self, Init, ModelSpec, Net, init_values, inits_of};
use crate::optim::UpdateRule;
use crate::params::{Element, Tensors};
use crate::precision::Precision;

/// How a session plans and starts.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Memory that steps may use.
    pub budget: Budget,
    /// Folder of the spill file, if the budget has any disk.
    pub disk_dir: PathBuf,
    /// What carries the plans out.
    pub device: Device,
    /// How it is used.
    pub device_options: DeviceOptions,
    /// How to plan.
    pub strategy: Strategy,
    /// What to be best at.
    pub objective: Objective,
    /// What the machine can do.
    pub machine: Machine,
    /// What maps are stored as.
    pub precision: Precision,
    /// By what the loss is scaled before the reverse sweep; gradients are scaled back.
    /// Without, as [`Precision::loss_scale`] says.
    pub loss_scale: Option<LossScale>,
    /// Seed of parameters that are not given, and of dropout.
    pub seed: u64,
    /// Optimiser of a training session. Without one, a step hands back the
    /// gradients and changes nothing.
    pub rule: Option<UpdateRule>,
}

impl SessionOptions {
    /// A session within `budget` that hands back gradients, with a spill file in the
    /// system's folder for temporary files.
    pub fn new(budget: Budget) -> Self {
        SessionOptions {
            budget,
            disk_dir: std::env::temp_dir(),
            device: Device::Cpu,
            device_options: DeviceOptions::default(),
            strategy: Strategy::Optimal,
            objective: Objective::Seconds,
            machine: Machine::default(),
            precision: Precision::F32,
            loss_scale: None,
            seed: 0,
            rule: None,
        }
    }

    /// By what the loss is scaled before the reverse sweep.
    pub fn loss_scale(&self) -> LossScale {
        let usual = LossScale::Fixed(self.precision.loss_scale());
        self.loss_scale.unwrap_or(usual)
    }

    /// The same for training by `rule`.
    pub fn training(self, rule: UpdateRule) -> Self {
        SessionOptions {
            rule: Some(rule),
            ..self
        }
    }
}

/// Extents of the network's image, `[N, C, spatial…]`.
type Key = Vec<usize>;

/// What the session runs.
enum Model {
    /// A built-in network, built for any size.
    Spec(ModelSpec),
    /// One tape, of one size, with what it declares as outputs.
    Tape(Box<Tape>),
}

/// A network for one image size, with its gradients.
struct Prepared {
    plan: Arc<Plan>,
    loss: String,
    logits: Option<String>,
    image: String,
    labels: String,
    /// Input that a dynamic scale of the loss is fed to.
    loss_scale: Option<String>,
    inits: BTreeMap<String, Init>,
}

/// The arena of the size at hand.
struct Live<T: Element> {
    key: Key,
    executor: Executor<T>,
}

/// Optimiser state by parameter and slot.
pub type OptimiserState<T> = BTreeMap<(String, usize), sstep_executor::Tensor<T>>;

/// A network under a budget.
///
/// ```
/// use std::sync::Arc;
/// use sstep::nn::ModelSpec;
/// use sstep::source::ArraySource;
/// use sstep::{Budget, Feed, Session, SessionOptions, Shape, optim};
///
/// let budget = Budget { device_bytes: 4 << 20, host_bytes: 16 << 20, disk_bytes: 0 };
/// let options = SessionOptions::new(budget).training(optim::adamw());
/// let model = ModelSpec { width: Some(4), ..ModelSpec::new("streaming-cnn") };
/// let mut session = Session::<f32>::new(model, options)?;
///
/// let image = ArraySource::new(Shape::map(1, 3, &[64, 64]), vec![0.5; 3 * 64 * 64])?;
/// let label = Feed::Flat(vec![1.0]);
/// let step = session.step(Arc::new(image), label, 1e-3, &mut |_| {})?;
/// assert!(step.loss.is_finite());
/// assert!(step.report.measured.peak_bytes <= step.plan.predicted.peak_bytes);
/// # Ok::<(), sstep::Error>(())
/// ```
pub struct Session<T: Element> {
    model: Model,
    options: SessionOptions,
    prepared: BTreeMap<Key, Prepared>,
    live: Option<Live<T>>,
    /// Parameters while no arena holds them, and those of other sizes' plans.
    params: Tensors<T>,
    /// Optimiser state, likewise.
    state: OptimiserState<T>,
    n_steps: u64,
    /// Of a dynamic scale of the loss.
    scale: DynamicScale,
}

/// What a step gave.
#[derive(Clone, Debug)]
pub struct Step<T> {
    /// The loss.
    pub loss: f64,
    /// Logits of a classifier, `[N, classes]`.
    pub logits: Option<sstep_executor::Tensor<T>>,
    /// What the loss was multiplied by for the gradients.
    pub loss_scale: f64,
    /// All outputs and what the step took. If the scale is dynamic and a gradient was not
    /// finite, it says that no parameter was updated.
    pub report: StepReport<T>,
    /// The plan that was carried out.
    pub plan: Arc<Plan>,
}

impl<T: Element> Session<T> {
    /// A session of a built-in network, for images of any size.
    ///
    /// # Errors
    /// [`Error::DType`] if the network computes in another type.
    pub fn new(model: ModelSpec, options: SessionOptions) -> Result<Self, Error> {
        check_dtype::<T>(model.dtype)?;
        Ok(Self::of(Model::Spec(model), options))
    }

    /// A session of any tape. Its first output is the loss; gradients are added
    /// unless the tape has them already.
    ///
    /// # Errors
    /// [`Error::DType`] if the tape computes in another type.
    pub fn from_tape(tape: Tape, options: SessionOptions) -> Result<Self, Error> {
        check_dtype::<T>(tape.dtype())?;
        Ok(Self::of(Model::Tape(Box::new(tape)), options))
    }

    fn of(model: Model, options: SessionOptions) -> Self {
        Session {
            model,
            options,
            prepared: BTreeMap::new(),
            live: None,
            params: Tensors::new(),
            state: BTreeMap::new(),
            n_steps: 0,
            scale: DynamicScale::default(),
        }
    }

    /// How it plans and starts.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Steps carried out so far.
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Continues the count of steps, as after loading a checkpoint: it keys
    /// dropout and Adam's correction.
    pub fn set_n_steps(&mut self, n_steps: u64) {
        self.n_steps = n_steps;
    }

    /// State of a dynamic scale of the loss; `None` if the scale is fixed.
    pub fn dynamic_scale(&self) -> Option<DynamicScale> {
        match self.options.loss_scale() {
            LossScale::Fixed(_) => None,
            LossScale::Dynamic => Some(self.scale),
        }
    }

    /// Continues with a dynamic scale, as after loading a checkpoint.
    pub fn set_dynamic_scale(&mut self, scale: DynamicScale) {
        self.scale = scale;
    }

    /// The plan for an image of shape `[N, C, spatial…]`, made at the first
    /// call. A session of a tape ignores the shape.
    ///
    /// # Errors
    /// [`Error::Plan`] if none fits, [`Error::Model`] or [`Error::Tape`] if the
    /// network cannot take such an image.
    pub fn plan(&mut self, image: &[usize]) -> Result<Arc<Plan>, Error> {
        let key = self.prepare(image)?;
        Ok(Arc::clone(&self.prepared[&key].plan))
    }

    /// One step on an image and its label: backward, and an update if the
    /// session trains. `lr` is the learning rate of this step.
    ///
    /// # Errors
    /// Those of [`Session::plan`], and [`Error::Exec`] if a feed does not fit or
    /// the image cannot be read. A loss that is not a number is no error here.
    pub fn step(
        &mut self,
        image: Arc<dyn TileSource<T>>,
        label: Feed<T>,
        lr: f64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Step<T>, Error> {
        let shape = image.shape();
        let key = self.prepare(shape.dims())?;
        let prepared = &self.prepared[&key];
        let feeds = Feeds::from([
            (prepared.image.clone(), Feed::Source(image)),
            (prepared.labels.clone(), label),
        ]);
        self.run(shape.dims(), &feeds, lr, progress)
    }

    /// One step on values for all inputs by name.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn run(
        &mut self,
        image: &[usize],
        feeds: &Feeds<T>,
        lr: f64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Step<T>, Error> {
        let key = self.prepare(image)?;
        self.enliven(&key)?;
        let prepared = &self.prepared[&key];
        let how = StepHow {
            step: self.n_steps,
            seed: self.options.seed,
            update: self.options.rule.map(|rule| (rule, lr)),
            scaled: prepared.loss_scale.as_ref().map(|_| self.scale.scaled()),
        };
        let mut feeds = Cow::Borrowed(feeds);
        if let Some(name) = &prepared.loss_scale {
            let factor = Feed::Flat(vec![T::from_f64(self.scale.factor)]);
            feeds.to_mut().insert(name.clone(), factor);
        }
        let live = self.live.as_mut().expect("it has been made live");
        let report = live.executor.step(&feeds, &how, progress)?;
        self.n_steps += 1;
        let loss_scale = match (how.scaled, self.options.loss_scale()) {
            (Some(scaled), _) => {
                self.scale = self.scale.after(report.measured.update_skipped);
                scaled.by
            }
            (None, LossScale::Fixed(factor)) => factor,
            // A program that has its gradients already.
            (None, LossScale::Dynamic) => 1.0,
        };
        let loss = report
            .outputs
            .get(&prepared.loss)
            .map_or(f64::NAN, |t| t.data[0].to_f64());
        let logits = prepared
            .logits
            .as_ref()
            .and_then(|name| report.outputs.get(name))
            .cloned();
        Ok(Step {
            loss,
            logits,
            loss_scale,
            report,
            plan: Arc::clone(&prepared.plan),
        })
    }

    /// Names and shapes of the parameters for an image of this shape; plans if
    /// need be.
    ///
    /// # Errors
    /// As [`Session::plan`].
    pub fn param_shapes(&mut self, image: &[usize]) -> Result<Vec<(String, Shape)>, Error> {
        let key = self.prepare(image)?;
        Ok(params_of(&self.prepared[&key].plan.program))
    }

    /// All parameters that were given, drawn or trained so far, frozen ones too.
    ///
    /// # Errors
    /// [`Error::Exec`] if the arena cannot be read.
    pub fn params(&mut self) -> Result<&Tensors<T>, Error> {
        self.gather()?;
        Ok(&self.params)
    }

    /// Optimiser state so far; what is missing is zero.
    ///
    /// # Errors
    /// [`Error::Exec`] if the arena cannot be read.
    pub fn optimiser_state(&mut self) -> Result<&OptimiserState<T>, Error> {
        self.gather()?;
        Ok(&self.state)
    }

    /// Gives parameters; those of other names stay. Shapes are checked when the
    /// network is next run.
    ///
    /// # Errors
    /// [`Error::Exec`] if the arena cannot be read.
    pub fn set_params(&mut self, params: Tensors<T>) -> Result<(), Error> {
        self.gather()?;
        self.live = None;
        self.params.extend(params);
        Ok(())
    }

    /// Gives optimiser state, as [`Session::set_params`].
    ///
    /// # Errors
    /// [`Error::Exec`] if the arena cannot be read.
    pub fn set_optimiser_state(&mut self, state: OptimiserState<T>) -> Result<(), Error> {
        self.gather()?;
        self.live = None;
        self.state.extend(state);
        Ok(())
    }

    /// Makes network and plan for an image shape, unless they are there.
    fn prepare(&mut self, image: &[usize]) -> Result<Key, Error> {
        let key = match &self.model {
            Model::Spec(_) => image.to_vec(),
            Model::Tape(_) => Vec::new(),
        };
        if self.prepared.contains_key(&key) {
            return Ok(key);
        }
        let net = match &self.model {
            Model::Tape(tape) => net_of_tape((**tape).clone())?,
            Model::Spec(spec) => {
                let channels = image.get(1).copied().unwrap_or(0);
                if channels != spec.in_channels {
                    return Err(Error::usage(format!(
                        "the network takes {} channels, the image of shape {image:?} has \
                         {channels}",
                        spec.in_channels
                    )));
                }
                nn::build(spec, image[0], &image[2..])?
            }
        };
        let prepared = prepare(net, &self.options)?;
        self.prepared.insert(key.clone(), prepared);
        Ok(key)
    }

    /// Moves parameters and state into an arena for this size.
    fn enliven(&mut self, key: &Key) -> Result<(), Error> {
        if self.live.as_ref().is_some_and(|l| l.key == *key) {
            return Ok(());
        }
        self.gather()?;
        // The old arena goes before the new one comes: never two caps at once.
        self.live = None;
        let prepared = &self.prepared[key];
        let program = &prepared.plan.program;
        let mut executor = Executor::on(
            (*prepared.plan).clone(),
            &self.options.device,
            &self.options.device_options,
        )?
        .spilling_to(&self.options.disk_dir)?;
        for (name, shape) in params_of(program) {
            let given = match self.params.get(&name) {
                Some(given) if given.shape == shape => given.data.clone(),
                Some(given) => {
                    let found = given.shape;
                    let reason = format!("has shape {found}, the network needs {shape}");
                    return Err(Error::Tensor { name, reason });
                }
                None => {
                    let init = prepared.inits.get(&name).copied().unwrap_or(Init::Zeros);
                    init_values(init, &name, shape, self.options.seed)
                }
            };
            executor.set_param(&name, &given)?;
        }
        let updated = program.updates.iter().map(|u| &program.node(u.param).name);
        for name in updated {
            for slot in 0..program.state_slots {
                if let Some(given) = self.state.get(&(name.clone(), slot)) {
                    executor.set_optimiser_state(name, slot, &given.data)?;
                }
            }
        }
        self.live = Some(Live {
            key: key.clone(),
            executor,
        });
        Ok(())
    }

    /// Copies parameters and state out of the arena.
    fn gather(&mut self) -> Result<(), Error> {
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        for (name, _) in live.executor.params() {
            let tensor = live.executor.param(&name)?;
            self.params.insert(name, tensor);
        }
        for (name, slot, tensor) in live.executor.optimiser_state()? {
            self.state.insert((name, slot), tensor);
        }
        Ok(())
    }
}

const NO_OUTPUT: &str = "the tape declares no output; end it with `output <name of the loss>`";

fn check_dtype<T: Element>(net: DType) -> Result<(), Error> {
    if net == T::DTYPE {
        Ok(())
    } else {
        Err(Error::DType {
            net,
            asked: T::DTYPE,
        })
    }
}

/// Names and shapes of a program's parameters, in order.
fn params_of(program: &Program) -> Vec<(String, Shape)> {
    let params = program
        .nodes
        .iter()
        .filter(|n| matches!(n.op, Op::Param { .. }));
    params.map(|n| (n.name.clone(), n.ty.shape)).collect()
}

/// A tape as a network: its first output is the loss, and nothing is known of
/// images and labels.
fn net_of_tape(tape: Tape) -> Result<Net, Error> {
    let Some(&loss) = tape.outputs().first() else {
        return Err(Error::usage(NO_OUTPUT));
    };
    Ok(Net {
        loss,
        logits: loss,
        image: String::new(),
        labels: String::new(),
        inits: inits_of(&tape),
        tape,
    })
}

/// Adds the gradients of the first output to a tape, unless it has them, and
/// tells what a step of it is for: to update all parameters by `rule`, or
/// without one to hand back the gradients. The loss is scaled by `loss_scale` before the
/// sweep. By a fixed number, and gradients are scaled back: see [`backward_scaled`]. By a
/// dynamic one, which an input of the name [`LOSS_SCALE`] or a similar one takes, and
/// gradients are scaled back by the update ([`StepHow::scaled`]).
///
/// # Errors
/// [`Error::Usage`] if the tape declares no output, or the scale is dynamic and there is
/// no rule; [`Error::Tape`] if the first output is no loss.
pub fn differentiate(
    tape: &mut Tape,
    rule: Option<&UpdateRule>,
    loss_scale: LossScale,
) -> Result<StepSpec, Error> {
    let Some(&loss) = tape.outputs().first() else {
        return Err(Error::usage(NO_OUTPUT));
    };
    let forward = tape.outputs().to_vec();
    let is_gradient = |tape: &Tape, id| tape.node(id).name.starts_with("grad/");
    if forward.iter().any(|&id| is_gradient(tape, id)) {
        // A joint program, as printed after a reverse sweep.
        return Ok(StepSpec {
            outputs: forward,
            updates: Vec::new(),
            state_slots: 0,
        });
    }
    let gradients = match loss_scale {
        LossScale::Fixed(factor) => backward_scaled(tape, loss, factor)?,
        LossScale::Dynamic if rule.is_none() => {
            return Err(Error::usage(
                "a dynamic scale of the loss needs an update that it can leave out",
            ));
        }
        LossScale::Dynamic => {
            let name = scale_name(tape);
            let dims = tape.ty(loss).shape;
            let scale = tape.input(&name, dims.dims())?;
            let scaled = tape.mul(loss, scale)?;
            backward(tape, scaled)?
        }
    };
    let Some(rule) = rule else {
        let outputs = tape.outputs().to_vec();
        return Ok(StepSpec {
            outputs,
            updates: Vec::new(),
            state_slots: 0,
        });
    };
    let is_param = |id| matches!(tape.node(id).op, Op::Param { .. });
    Ok(StepSpec {
        outputs: forward,
        updates: gradients
            .iter()
            .filter(|(leaf, _)| is_param(*leaf))
            .collect(),
        state_slots: rule.n_slots(),
    })
}

/// Name of the input that takes a dynamic scale of the loss.
pub const LOSS_SCALE: &str = "loss_scale";

/// That name, or one that is like it and not taken.
fn scale_name(tape: &Tape) -> String {
    let mut name = LOSS_SCALE.to_owned();
    while tape.by_name(&name).is_some() {
        name.push('_');
    }
    name
}

/// Adds gradients to a network and plans it.
fn prepare(net: Net, options: &SessionOptions) -> Result<Prepared, Error> {
    let Net {
        tape,
        loss,
        logits,
        image,
        labels,
        inits,
    } = net;
    let name = |id| tape.node(id).name.clone();
    let (loss_name, logits_name) = (name(loss), name(logits));
    let mut tape = options.precision.apply(tape)?;
    let named = |name: &str| tape.by_name(name).expect("nodes keep their names");
    let (loss, logits) = (named(&loss_name), named(&logits_name));
    let flat_logits = logits != loss && !tape.ty(logits).is_map();
    if flat_logits {
        tape.output(logits);
    }
    let scale = scale_name(&tape);
    let spec = differentiate(&mut tape, options.rule.as_ref(), options.loss_scale())?;
    let loss_scale = tape.by_name(&scale).map(|_| scale);
    let plan = plan(
        &tape,
        &spec,
        &options.machine,
        options.budget,
        Aim {
            strategy: options.strategy,
            objective: options.objective,
        },
    )?;
    Ok(Prepared {
        plan: Arc::new(plan),
        loss: loss_name,
        logits: flat_logits.then_some(logits_name),
        image,
        labels,
        loss_scale,
        inits,
    })
}
