//! Which device a command computes on.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mdm::engine::{DeviceInfo, DeviceKind, Precision};
use mdm::{Device, DeviceOptions};
use serde::Serialize;

use crate::arguments::positive;
use crate::error::{Result, warn};

/// Where the work is done.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Computing")]
pub(crate) struct DeviceArguments {
    /// Device to compute on: auto (a GPU where there is one), gpu, cpu, or a number or a part of a name from `mdm devices`
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: String,

    /// Number format: on a GPU, f16 takes half the memory and is faster, with errors of 1e-3 instead of 1e-6; on a CPU with
    /// AVX512-BF16, bf16 is faster, with errors below 1e-2; auto is f16 where a GPU has it, otherwise f32
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "auto")]
    pub(crate) precision: PrecisionArgument,

    /// Device memory that may be used on a GPU, such as 4GB or 800MB [default: all there is]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,

    /// Processor threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) threads: Option<usize>,
}

/// Number formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArgument {
    Auto,
    F32,
    F16,
    Bf16,
}

/// What `--help` says of the folder for compiled shaders.
pub(crate) const CACHE_HELP: &str = "\
A GPU's compiled shaders are kept between runs in MDM_CACHE, by default a folder \"mdm\" among the user's caches ($XDG_CACHE_HOME or ~/.cache on Linux, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows). With MDM_CACHE set to nothing, none are kept.";

impl DeviceArguments {
    /// Opens the device, and says what the user would want to know of the choice.
    pub(crate) fn open(&self) -> Result<Device> {
        let options = DeviceOptions {
            threads: self.threads,
            precision: match self.precision {
                PrecisionArgument::Auto => Precision::Auto,
                PrecisionArgument::F32 => Precision::F32,
                PrecisionArgument::F16 => Precision::F16,
                PrecisionArgument::Bf16 => Precision::Bf16,
            },
            memory: self.memory,
            pipeline_cache: pipeline_cache(),
        };
        let device = Device::select(&self.device, &options)?;
        if let Some(reason) = device.fallback()
            && Device::list()?.iter().any(|info| is_real_gpu(info.kind))
        {
            warn(format!("the CPU is used, not a GPU: {reason}"));
        }
        if self.precision == PrecisionArgument::F16 && device.info().kind == DeviceKind::Cpu {
            warn("--precision f16 is for GPUs; the CPU computes in f32");
        }
        if let Some(warning) = &device.info().warning {
            warn(format!("{}: {warning}", device.info().name));
        }
        if self.precision == PrecisionArgument::Bf16 && device.info().precision != "bf16" {
            warn("this processor has no bf16; it computes in f32");
        }
        Ok(device)
    }
}

/// A GPU that people bought as one.
pub(crate) fn is_real_gpu(kind: DeviceKind) -> bool {
    !matches!(kind, DeviceKind::Cpu | DeviceKind::SoftwareGpu)
}

/// What JSON tells of the device that was used.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct UsedDevice {
    pub(crate) device: DeviceReport,
    /// Why `--device auto` took the CPU, where it did.
    pub(crate) fallback: Option<String>,
}

/// A device in JSON.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DeviceReport {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) backend: &'static str,
    /// Of activations and weights; of a device that is only listed, that of `--precision auto`.
    pub(crate) precision: &'static str,
    pub(crate) driver: String,
    /// Of the CPU.
    pub(crate) threads: Option<usize>,
    pub(crate) instruction_set: &'static str,
}

impl UsedDevice {
    pub(crate) fn of(device: &Device) -> Self {
        Self { device: DeviceReport::of(device.info()), fallback: device.fallback().map(ToOwned::to_owned) }
    }
}

impl DeviceReport {
    pub(crate) fn of(info: &DeviceInfo) -> Self {
        Self {
            name: info.name.clone(),
            kind: info.kind.name(),
            backend: info.backend,
            precision: info.precision,
            driver: info.driver.clone(),
            threads: (info.kind == DeviceKind::Cpu).then_some(info.threads),
            instruction_set: info.instruction_set,
        }
    }
}

/// Where compiled shaders are kept; nowhere if the user wants none kept or the system does not say where its caches are.
pub(crate) fn pipeline_cache() -> Option<PathBuf> {
    Some(cache_folder(|name| std::env::var_os(name))?.join("pipelines"))
}

fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(folder) = variable("MDM_CACHE") {
        return Some(PathBuf::from(folder)).filter(|folder| !folder.as_os_str().is_empty());
    }
    // Relative paths are to be ignored, says the XDG base directory specification.
    let absolute = |name| variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let caches = if cfg!(windows) {
        absolute("LOCALAPPDATA")?
    } else if cfg!(target_os = "macos") {
        absolute("HOME")?.join("Library/Caches")
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?
    };
    Some(caches.join("mdm"))
}

/// Bytes, such as `4GB`, `1.5 GiB` or `800MB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 12] = [
        ("", 1),
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("K", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
    ];
    let upper = text.trim().to_uppercase();
    let digits = upper.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(upper.len());
    let (number, unit) = upper.split_at(digits);
    let factor = UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, factor)| *factor);
    let bytes = number.parse::<f64>().ok().zip(factor).map(|(number, factor)| number * factor as f64);
    match bytes {
        Some(bytes) if bytes >= 1.0 && bytes < u64::MAX as f64 => Ok(bytes as u64),
        _ => Err("must be a number of bytes with a unit, for example 4GB, 800MB or 1.5GiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("4GB", 4_000_000_000),
            ("800 mb", 800_000_000),
            ("1.5GiB", 3 << 29),
            ("2g", 2_000_000_000),
            ("512", 512),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GB", "-1GB", "0", "4XB", "1e99GB", "1.2.3MB", "99999999999999999999999GB"] {
            assert!(size(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_cache_lies_where_the_user_says() {
        let folder = |known: &[(&str, &str)]| {
            cache_folder(|name| known.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        assert_eq!(folder(&[("MDM_CACHE", "here"), ("HOME", "/home/a")]).as_deref(), Some(Path::new("here")));
        assert_eq!(folder(&[("MDM_CACHE", ""), ("HOME", "/home/a")]), None);
        assert_eq!(folder(&[]), None);
        if cfg!(target_os = "linux") {
            let home = [("HOME", "/home/a"), ("XDG_CACHE_HOME", "/caches")];
            assert_eq!(folder(&home).as_deref(), Some(Path::new("/caches/mdm")));
            assert_eq!(folder(&home[..1]).as_deref(), Some(Path::new("/home/a/.cache/mdm")));
            let relative = [("HOME", "/home/a"), ("XDG_CACHE_HOME", "caches")];
            assert_eq!(folder(&relative).as_deref(), Some(Path::new("/home/a/.cache/mdm")));
        }
    }
}
