//! Options that several commands share.

use std::path::PathBuf;

use clap::Args;
use sstep::config::Size;
use sstep::nn::{Head, Loss, ModelSpec, Norm, Upsample};
use sstep::{
    Budget, ByteSize, DType, Device, DeviceInfo, DeviceOptions, Error, ExecError, LossScale,
    Objective, Precision, Profile, Strategy, check_spill_dir,
};

/// Options of a built-in network.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct ModelArgs {
    /// Built-in network: resnet10, resnet18, resnet34, resnet50, unet2d, unet3d
    /// or streaming-cnn.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Number of classes [default: 2].
    #[arg(long, value_name = "N")]
    classes: Option<usize>,
    /// Channels of the image [default: 3].
    #[arg(long, value_name = "N")]
    in_channels: Option<usize>,
    /// Channels of the first layer [default: 64; unet3d 32, streaming-cnn 16].
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// group, frozen-batch or none [default: frozen-batch; U-Nets group].
    #[arg(long)]
    norm: Option<Norm>,
    /// Groups of group norm [default: 8].
    #[arg(long, value_name = "N")]
    groups: Option<usize>,
    /// Pooling of a classifier: mean, max or attention [default: mean].
    #[arg(long)]
    head: Option<Head>,
    /// How often a U-Net halves the image [default: 4].
    #[arg(long, value_name = "N")]
    levels: Option<usize>,
    /// How a U-Net doubles it: transposed or linear [default: transposed].
    #[arg(long, value_name = "HOW")]
    upsample: Option<Upsample>,
    /// Loss of a U-Net: cross-entropy or dice-cross-entropy
    /// [default: cross-entropy].
    #[arg(long)]
    loss: Option<Loss>,
    /// Compute in double precision.
    #[arg(long)]
    f64: bool,
}

impl ModelArgs {
    /// The network, if one is named.
    pub fn spec(&self) -> Option<ModelSpec> {
        let mut spec = ModelSpec::new(self.model.as_deref()?);
        self.apply(&mut spec);
        Some(spec)
    }

    /// Overrides what is given.
    pub fn apply(&self, spec: &mut ModelSpec) {
        fn over<V: Clone>(slot: &mut V, given: &Option<V>) {
            if let Some(value) = given {
                *slot = value.clone();
            }
        }
        fn over_option<V: Clone>(slot: &mut Option<V>, given: &Option<V>) {
            if given.is_some() {
                slot.clone_from(given);
            }
        }
        over(&mut spec.name, &self.model);
        over(&mut spec.classes, &self.classes);
        over(&mut spec.in_channels, &self.in_channels);
        over_option(&mut spec.width, &self.width);
        over_option(&mut spec.norm, &self.norm);
        over_option(&mut spec.groups, &self.groups);
        over_option(&mut spec.head, &self.head);
        over_option(&mut spec.levels, &self.levels);
        over_option(&mut spec.upsample, &self.upsample);
        over_option(&mut spec.loss, &self.loss);
        if self.f64 {
            spec.dtype = DType::F64;
        }
    }
}

/// Size of a built-in network's image.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct SizeArgs {
    /// Image size, width x height (x depth): 65536x65536.
    #[arg(long, value_name = "WxH")]
    pub size: Option<Size>,
    /// Images per step.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
}

/// What maps are stored as.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct PrecisionArgs {
    /// What maps are stored as: f32, bf16 or f16. In 16 bits they take half the memory;
    /// sums, parameters and their gradients stay f32 [default: f32].
    #[arg(long, value_name = "TYPE")]
    pub precision: Option<Precision>,
    /// Scale the loss by this before the reverse sweep, and gradients back, so that those
    /// of maps do not vanish in f16. `dynamic` starts at 65536, halves it at a step whose
    /// gradients overflow, which then updates nothing, and doubles it after 2000 steps
    /// without [default: 1; f16 1024].
    #[arg(long, value_name = "FACTOR")]
    pub loss_scale: Option<LossScale>,
}

/// How convolutions are computed.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct ConvArgs {
    /// Sum every convolution tap by tap, as an untiled run does, even where
    /// Winograd's algorithm is faster: it rounds differently, by about 1e-6.
    #[arg(long)]
    pub no_winograd: bool,
}

/// What the planner is told of the machine.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Profile of the machine, as `sstep calibrate --out` writes it, or a built-in one:
    /// cpu, h200 [default: the one that `sstep calibrate` keeps in the user's cache for
    /// the device, or else a built-in one].
    #[arg(long, value_name = "FILE.json|NAME")]
    machine: Option<String>,
}

impl MachineArgs {
    /// The profile of the CPU or of a CUDA device, and where it comes from.
    ///
    /// # Errors
    /// As [`Profile::find`].
    pub fn profile(&self, winograd: bool, device: Option<&DeviceInfo>) -> Result<Profile, Error> {
        let mut profile = Profile::find(self.machine.as_deref(), device)?;
        // CUDA devices have no kernels of their own for it.
        profile.machine.winograd = winograd && device.is_none();
        Ok(profile)
    }
}

/// What runs the steps.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// cpu, cuda:N, or auto: the CUDA device with the most free memory if there
    /// is one. `sstep info --devices` lists them.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    device: Device,
    /// Replay the small kernels of a tile loop as CUDA graphs from the third step on.
    /// Off unless asked for: no device has run them yet.
    #[arg(long)]
    graphs: bool,
}

impl DeviceArgs {
    /// How it is used.
    pub fn options(self) -> DeviceOptions {
        DeviceOptions {
            graphs: self.graphs,
            ..DeviceOptions::default()
        }
    }

    /// The CUDA device, `None` for the CPU: before minutes of planning for it. Says which
    /// libraries it will have to do without.
    ///
    /// # Errors
    /// As [`Device::find`].
    pub fn find(self) -> Result<Option<DeviceInfo>, Error> {
        let found = self.device.find().map_err(ExecError::from)?;
        for missing in found.iter().flat_map(|d| &d.missing) {
            super::notice(&missing.to_string());
        }
        Ok(found)
    }
}

/// What runs the steps, once [`DeviceArgs::find`] has found it.
pub fn on(found: Option<&DeviceInfo>) -> Device {
    found.map_or(Device::Cpu, |d| Device::Cuda(d.ordinal))
}

/// Memory of a plan.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Device memory that a step may use, parameters and optimiser state
    /// included.
    #[arg(long, value_name = "BYTES")]
    budget: Option<ByteSize>,
    /// Host memory for tensors moved off the device; 0 forbids it.
    #[arg(long, value_name = "BYTES", default_value = "0")]
    host: ByteSize,
    /// Disk space for tensors that the host has no room for; 0 forbids it.
    #[arg(long, value_name = "BYTES", default_value = "0")]
    disk: ByteSize,
    #[command(flatten)]
    spill: SpillArgs,
    /// How to plan: optimal, or what others do: store-all, checkpoint,
    /// recompute-all, offload-all, paging, streaming, tile-checkpoint, remat-ilp,
    /// remat-page-ilp.
    #[arg(long, default_value_t = Strategy::Optimal)]
    pub strategy: Strategy,
    /// What to be best at: predicted seconds, or bytes moved to the device and from
    /// it.
    #[arg(long, default_value_t = Objective::Seconds)]
    pub objective: Objective,
}

impl MemoryArgs {
    /// As the planner takes it.
    ///
    /// # Errors
    /// [`Error::Usage`] if no device budget was given.
    pub fn budget(&self) -> Result<Budget, Error> {
        let Some(budget) = self.budget else {
            let reason = "give the memory that a step may use, for example --budget 512MiB";
            return Err(Error::Usage {
                reason: reason.to_owned(),
            });
        };
        Ok(Budget {
            device_bytes: budget.0,
            host_bytes: self.host.0,
            disk_bytes: self.disk.0,
        })
    }

    /// Folder of the spill file.
    ///
    /// # Errors
    /// As [`spill_dir`].
    pub fn disk_dir(&self, budget: &Budget) -> Result<PathBuf, Error> {
        spill_dir(self.spill.disk_dir.clone(), budget)
    }
}

/// Where a step's disk space is.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Memory")]
pub struct SpillArgs {
    /// Folder of the spill file, of --disk bytes at most; the file has no name and
    /// is gone with the process [default: the system's folder for temporary files].
    #[arg(long, value_name = "DIR")]
    pub disk_dir: Option<PathBuf>,
}

/// The folder, or the system's, if it can hold a file where a budget may need one:
/// before minutes of planning.
///
/// # Errors
/// As [`check_spill_dir`].
pub fn spill_dir(dir: Option<PathBuf>, budget: &Budget) -> Result<PathBuf, Error> {
    let dir = dir.unwrap_or_else(std::env::temp_dir);
    if budget.disk_bytes > 0 {
        check_spill_dir(&dir)?;
    }
    Ok(dir)
}
