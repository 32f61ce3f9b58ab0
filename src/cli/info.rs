//! `sstep info`: what a slide file holds, and which devices there are.

use std::fmt::Write;
use std::path::PathBuf;

use sstep::source::{SlideFile, SlideInfo};
use sstep::{ByteSize, DeviceInfo, Error, ExecError, devices};

/// Show a slide's levels, tiles and sizes, or the devices there are.
///
/// Reads tiled (pyramidal) TIFF and SVS files compressed with JPEG, LZW, deflate
/// or not at all.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub struct Args {
    /// Slide file.
    #[arg(required_unless_present = "devices")]
    slide: Option<PathBuf>,
    /// List the devices that --device can name.
    #[arg(long, conflicts_with = "slide")]
    devices: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let Some(slide) = &args.slide else {
        return list_devices(args.json);
    };
    let file = SlideFile::open(slide)?;
    if args.json {
        super::say_json(file.info());
    } else {
        super::say(&text(file.info()));
    }
    Ok(())
}

/// Lists CUDA devices; without any, says why and that there is the CPU.
fn list_devices(json: bool) -> Result<(), Error> {
    let found = devices();
    if json {
        match found {
            Ok(found) => super::say_json(&found),
            Err(error) => return Err(ExecError::from(error).into()),
        }
        return Ok(());
    }
    super::say("cpu     always there\n");
    match found {
        Ok(found) => found.iter().for_each(|d| super::say(&device_lines(d))),
        Err(error) => super::notice(&error.to_string()),
    }
    Ok(())
}

fn device_lines(device: &DeviceInfo) -> String {
    let (major, minor) = device.capability;
    let size = |bytes| ByteSize(bytes).to_string();
    // The driver does not tell a context's own memory from that of other programs.
    let held = (device.total_bytes - device.free_bytes).saturating_sub(device.libraries_bytes);
    let mut out = format!(
        "cuda:{}  {}, compute capability {major}.{minor}, {} of {} free\n        {} held by a \
         context and other programs, {} by libraries\n",
        device.ordinal,
        device.name,
        size(device.free_bytes),
        size(device.total_bytes),
        size(held),
        size(device.libraries_bytes),
    );
    for missing in &device.missing {
        let _ = writeln!(out, "        {missing}");
    }
    out
}

fn text(info: &SlideInfo) -> String {
    let mut out = String::new();
    let kind = if info.big_tiff { "BigTIFF" } else { "TIFF" };
    let _ = writeln!(
        out,
        "{}: {kind}, {}",
        info.path.display(),
        ByteSize(info.bytes)
    );
    if let Some(vendor) = &info.vendor {
        let _ = writeln!(out, "made by     {vendor}");
    }
    if let Some((x, y)) = info.mpp {
        let _ = writeln!(out, "pixel size  {x} x {y} µm");
    }
    if let Some(magnification) = info.magnification {
        let _ = writeln!(out, "objective   {magnification}x");
    }
    if info.n_other_images > 0 {
        let _ = writeln!(
            out,
            "besides     {} images (label, macro, thumbnail)",
            info.n_other_images
        );
    }
    let _ = writeln!(
        out,
        "level     width x height  downsample        tile   tiles  compression       bytes"
    );
    for (i, level) in info.levels.iter().enumerate() {
        let size = format!("{}x{}", level.size.0, level.size.1);
        let tile = format!("{}x{}", level.tile.0, level.tile.1);
        let _ = writeln!(
            out,
            "{i:>5}  {size:>17}  {:>10.2}  {tile:>10}  {:>6}  {:<11}  {:>10}",
            level.downsample,
            level.n_tiles,
            level.compression.to_string(),
            ByteSize(level.bytes).to_string(),
        );
    }
    out
}
