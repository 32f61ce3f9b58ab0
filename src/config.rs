//! A training run as a TOML file: `docs/train.md` explains every key.
//!
//! Unknown keys are errors, because a mistyped key would otherwise silently
//! train something else. Amounts of memory and image sizes are written as
//! people write them: `"512MiB"`, `"65536x65536"`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sstep_planner::{Budget, ByteSize, Objective, Strategy};

use crate::data::{SlideView, Slides};
use crate::error::Error;
use crate::loss_scale::LossScale;
use crate::nn::ModelSpec;
use crate::optim::{self, Schedule, UpdateRule};
use crate::precision::Precision;

/// Extents of an image as people write them: width × height (× depth).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size(Vec<usize>);

impl Size {
    /// Extents in the order of a tensor: outermost first, the width last.
    pub fn spatial(&self) -> Vec<usize> {
        self.0.iter().rev().copied().collect()
    }

    /// Width and height of a two-dimensional image.
    pub fn width_height(&self) -> Option<(usize, usize)> {
        match self.0[..] {
            [w, h] => Some((w, h)),
            _ => None,
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is no image size; write width x height (x depth), for example \
                 65536x65536 or 256x256x64"
            )
        };
        let extent = |part: &str| part.trim().parse().ok().filter(|n| *n > 0).ok_or_else(bad);
        let extents = text
            .split(['x', 'X', '×'])
            .map(extent)
            .collect::<Result<Vec<usize>, _>>()?;
        if extents.len() > 3 {
            Err(bad())
        } else {
            Ok(Size(extents))
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&parts.join("x"))
    }
}

/// Reads and prints a type as the string it is written as.
macro_rules! as_text {
    ($module:ident, $ty:ty, $parse:expr, $show:expr) => {
        mod $module {
            use super::*;

            pub(super) fn serialize<S: Serializer>(v: &$ty, s: S) -> Result<S::Ok, S::Error> {
                let show: fn(&$ty) -> String = $show;
                s.serialize_str(&show(v))
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<$ty, D::Error> {
                let parse: fn(&str) -> Result<$ty, String> = $parse;
                parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(
    bytes,
    u64,
    |t| t
        .parse::<ByteSize>()
        .map(|b| b.0)
        .map_err(|e| e.to_string()),
    // In plain bytes: a rounded amount would not read back as the same one.
    |b| b.to_string()
);
as_text!(
    strategy,
    Strategy,
    |t| t
        .parse()
        .map_err(|e: sstep_planner::PlanError| e.to_string()),
    |s| s.to_string()
);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// A slide, or a folder with a `labels.csv`.
    pub data: PathBuf,
    /// Class of a single slide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<usize>,
    /// Folder for checkpoints and the final model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Steps in all.
    #[serde(default = "ten")]
    pub steps: u64,
    /// Slides per step; they must have one size.
    #[serde(default = "one")]
    pub batch: usize,
    /// Seed of parameters, order and dropout.
    #[serde(default)]
    pub seed: u64,
    /// Steps between checkpoints.
    #[serde(default = "ten")]
    pub checkpoint_every: u64,
    /// Weights to start from: a safetensors file with names of the network's
    /// parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Whether 3 × 3 convolutions may be computed by Winograd's algorithm where
    /// that is faster; it rounds differently, by about 1e-6.
    #[serde(default = "yes")]
    pub winograd: bool,
    /// What maps are stored as: `f32`, `bf16` or `f16`.
    #[serde(default)]
    pub precision: Precision,
    /// By what the loss is scaled before the reverse sweep: a number, or `"dynamic"`; 1 by
    /// default, with `f16` 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// The network.
    pub model: ModelSpec,
    /// Memory.
    pub memory: Memory,
    /// Which part of a slide to see, and how.
    #[serde(default)]
    pub image: ImageConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    #[serde(default)]
    pub schedule: Schedule,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn ten() -> u64 {
    10
}

/// Memory of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Device cap, as `"512MiB"`.
    #[serde(with = "bytes")]
    pub budget: u64,
    /// Host memory for tensors moved off the device; none by default.
    #[serde(with = "bytes", default)]
    pub host: u64,
    /// Disk space for those that the host has no room for; none by default.
    #[serde(with = "bytes", default)]
    pub disk: u64,
    /// Folder of the file that holds them; without, the system's folder for
    /// temporary files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_dir: Option<PathBuf>,
    /// How to plan.
    #[serde(with = "strategy", default)]
    pub strategy: Strategy,
    /// What to be best at: seconds or bytes.
    #[serde(default)]
    pub objective: Objective,
}

impl Memory {
    /// As the planner takes it.
    pub fn budget(&self) -> Budget {
        Budget {
            device_bytes: self.budget,
            host_bytes: self.host,
            disk_bytes: self.disk,
        }
    }
}

/// How a slide becomes an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// The middle of the slide, of this size; all of it without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Level of the pyramid.
    pub level: usize,
    /// Subtracted from red, green and blue in 0…1.
    pub mean: [f64; 3],
    /// What the difference is divided by.
    pub std: [f64; 3],
    /// Most bytes of decoded tiles to keep, outside the budgets.
    #[serde(with = "bytes")]
    pub cache: u64,
}

impl Default for ImageConfig {
    fn default() -> Self {
        let SlideView {
            level,
            size: _,
            mean,
            std,
            cache_bytes,
        } = SlideView::default();
        ImageConfig {
            size: None,
            level,
            mean,
            std,
            cache: cache_bytes,
        }
    }
}

impl ImageConfig {
    /// As slides are opened.
    ///
    /// # Errors
    /// [`Error::Usage`] if the size is not that of a slide.
    pub fn view(&self) -> Result<SlideView, Error> {
        let size = match &self.size {
            None => None,
            Some(size) => Some(size.width_height().ok_or_else(|| {
                Error::usage(format!("a slide has width and height, {size} does not"))
            })?),
        };
        let &ImageConfig {
            level,
            mean,
            std,
            cache,
            ..
        } = self;
        Ok(SlideView {
            level,
            size,
            mean,
            std,
            cache_bytes: cache,
        })
    }
}

/// Names of the optimisers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Stochastic gradient descent.
    Sgd,
    /// Adam.
    Adam,
    /// Adam with decay of the parameters.
    AdamW,
}

impl FromStr for OptimizerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sgd" => Ok(OptimizerName::Sgd),
            "adam" => Ok(OptimizerName::Adam),
            "adamw" => Ok(OptimizerName::AdamW),
            _ => Err(format!(
                "`{text}` is no optimizer; there are sgd, adam and adamw"
            )),
        }
    }
}

/// The optimiser. What it has no use for is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Which.
    #[serde(default = "adamw_name")]
    pub name: OptimizerName,
    /// Base learning rate.
    #[serde(default = "thousandth")]
    pub lr: f64,
    /// Momentum of SGD; 0.9 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Nesterov's momentum, of SGD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
    /// Weight decay; 0 by default, of AdamW 0.01.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Decay of Adam's means; 0.9 and 0.999 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Added to Adam's root; 1e-8 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
}

fn adamw_name() -> OptimizerName {
    OptimizerName::AdamW
}

fn thousandth() -> f64 {
    1e-3
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            name: adamw_name(),
            lr: thousandth(),
            momentum: None,
            nesterov: None,
            weight_decay: None,
            betas: None,
            eps: None,
        }
    }
}

impl OptimizerConfig {
    /// The rule it describes.
    ///
    /// # Errors
    /// [`Error::Usage`] if an option is not the optimiser's or out of range.
    pub fn rule(&self) -> Result<UpdateRule, Error> {
        let fractions = [
            self.momentum,
            self.betas.map(|b| b[0]),
            self.betas.map(|b| b[1]),
        ];
        if let Some(bad) = fractions
            .into_iter()
            .flatten()
            .find(|f| !(0.0..1.0).contains(f))
        {
            return Err(Error::usage(format!(
                "momentum and betas lie in [0, 1), {bad} does not"
            )));
        }
        let positive = [self.weight_decay, self.eps, Some(self.lr)];
        if let Some(bad) = positive
            .into_iter()
            .flatten()
            .find(|v| !(v.is_finite() && *v >= 0.0))
        {
            return Err(Error::usage(format!(
                "lr, weight_decay and eps are not below 0, {bad} is no such number"
            )));
        }
        let refuse = |given: bool, option: &str| {
            if given {
                let reason = format!("optimizer {:?} has no option `{option}`", self.name);
                return Err(Error::usage(reason.to_lowercase()));
            }
            Ok(())
        };
        let adam = |default: UpdateRule| {
            refuse(self.momentum.is_some(), "momentum")?;
            refuse(self.nesterov.is_some(), "nesterov")?;
            Ok::<_, Error>(default)
        };
        let set = |slot: &mut f64, value: Option<f64>| *slot = value.unwrap_or(*slot);
        let mut rule = match self.name {
            OptimizerName::Sgd => {
                refuse(self.betas.is_some(), "betas")?;
                refuse(self.eps.is_some(), "eps")?;
                optim::sgd()
            }
            OptimizerName::Adam => adam(optim::adam())?,
            OptimizerName::AdamW => adam(optim::adamw())?,
        };
        match &mut rule {
            UpdateRule::Sgd {
                momentum,
                nesterov,
                weight_decay,
            } => {
                set(momentum, self.momentum);
                set(weight_decay, self.weight_decay);
                *nesterov = self.nesterov.unwrap_or(*nesterov);
            }
            UpdateRule::Adam {
                beta1,
                beta2,
                eps,
                weight_decay,
            }
            | UpdateRule::AdamW {
                beta1,
                beta2,
                eps,
                weight_decay,
            } => {
                set(beta1, self.betas.map(|b| b[0]));
                set(beta2, self.betas.map(|b| b[1]));
                set(eps, self.eps);
                set(weight_decay, self.weight_decay);
            }
        }
        Ok(rule)
    }
}

impl TrainConfig {
    /// Reads a file; paths in it are relative to its folder.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::File`] with line and column
    /// if a key is unknown, missing or malformed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "reading", &e))?;
        let mut config: TrainConfig =
            toml::from_str(&text).map_err(|e| Error::file(path, e.to_string().trim_end()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        config.data = dir.join(&config.data);
        config.out = config.out.map(|out| dir.join(out));
        config.init = config.init.map(|init| dir.join(init));
        config.memory.disk_dir = config.memory.disk_dir.map(|disk| dir.join(disk));
        Ok(config)
    }

    /// The slides to train on.
    ///
    /// # Errors
    /// [`Error::Usage`] if a single slide lacks a label, or a folder has one;
    /// otherwise as [`Slides::folder`].
    pub fn slides(&self) -> Result<Slides, Error> {
        let view = self.image.view()?;
        match (self.data.is_dir(), self.label) {
            (true, None) => Slides::folder(&self.data, self.model.classes, view),
            (true, Some(_)) => Err(Error::usage(
                "a label is that of a single slide; a folder lists its labels in labels.csv",
            )),
            (false, Some(label)) => {
                Slides::new(vec![(self.data.clone(), label)], self.model.classes, view)
            }
            (false, None) => Err(Error::usage(format!(
                "{} is a single slide; give its class with --label",
                self.data.display()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str =
        "data = 'a.svs'\n[model]\nname = 'resnet18'\n[memory]\nbudget = '1GiB'\n";

    #[test]
    fn defaults_and_round_trip() {
        let config: TrainConfig = toml::from_str(SMALLEST).expect("it parses");
        assert_eq!(config.memory.budget().device_bytes, 1 << 30);
        assert_eq!(config.optimizer.rule().expect("a rule"), optim::adamw());
        let text = toml::to_string(&config).expect("it prints");
        assert_eq!(
            toml::from_str::<TrainConfig>(&text).expect("it parses again"),
            config
        );
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        let cases = [("modle = 3\n", "modle"), ("steps = 'many'\n", "steps")];
        for (line, wanted) in cases {
            let text = format!("{line}{SMALLEST}");
            let error = toml::from_str::<TrainConfig>(&text)
                .expect_err(wanted)
                .to_string();
            assert!(error.contains(wanted), "{error}");
        }
        for (table, wanted) in [
            ("hosts = '1GiB'\n", "hosts"),
            ("host = '1 parsec'\n", "1 parsec"),
            ("strategy = 'best'\n", "there are optimal"),
            ("[image]\nsize = '4096'\nlevels = 2\n", "levels"),
            ("[image]\nsize = '0x4096'\n", "0x4096"),
            ("[schedule]\nkind = 'cosine'\nwarm_up = 2\n", "warm_up"),
            ("[optimizer]\nname = 'adagrad'\n", "adagrad"),
        ] {
            let text = format!("{SMALLEST}{table}");
            let error = toml::from_str::<TrainConfig>(&text)
                .expect_err(wanted)
                .to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn optimizers_take_only_their_own_options() {
        let parse = |text: &str| toml::from_str::<OptimizerConfig>(text).expect(text).rule();
        let sgd = parse("name = 'sgd'\nmomentum = 0.5\nnesterov = true").expect("a rule");
        assert_eq!(
            sgd,
            UpdateRule::Sgd {
                momentum: 0.5,
                nesterov: true,
                weight_decay: 0.0
            }
        );
        for (text, wanted) in [
            ("name = 'sgd'\nbetas = [0.9, 0.99]", "no option `betas`"),
            ("name = 'adam'\nmomentum = 0.9", "no option `momentum`"),
            ("name = 'adam'\nbetas = [0.9, 1.0]", "lie in [0, 1)"),
            ("lr = -1.0", "not below 0"),
        ] {
            let error = parse(text).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn sizes_are_width_first() {
        let size: Size = "640x480".parse().expect("a size");
        assert_eq!(size.spatial(), [480, 640]);
        assert_eq!(
            "4x3x2".parse::<Size>().expect("a size").spatial(),
            [2, 3, 4]
        );
        for bad in ["", "x", "1x0", "1x2x3x4", "-1x2", "1.5x2"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
