//! `mdm devices`: what this machine can compute on.

use clap::Args;
use mdm::engine::{DeviceInfo, DeviceKind};
use mdm::{Device, DeviceOptions};
use serde::Serialize;

use crate::device::{DeviceReport, is_real_gpu};
use crate::error::Result;
use crate::output::{Table, print, print_json};

const EXAMPLES: &str = "\
`--device` of other commands takes a number of this list, a name or a part of one, \"cpu\", \"gpu\" (the best GPU, or an error) or \"auto\" (the best GPU, or else the CPU). Software GPUs compute on the processor, slower than the CPU engine, and are only used by number or name.

Examples:
  mdm devices
  mdm segment --device 0 --precision f32 --model my-cells.safetensors images/ -o out/";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A device as JSON tells of it.
#[derive(Serialize)]
struct Listed {
    /// What `--device` calls it.
    number: usize,
    #[serde(flatten)]
    device: DeviceReport,
    /// Of its own, where that is known.
    memory_bytes: Option<u64>,
    /// What a GPU can do beyond the least.
    supports: Vec<&'static str>,
    /// Whether `--device auto` takes it.
    auto: bool,
    /// Why not, where it does not.
    auto_reason: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let options = DeviceOptions::default();
    let list = Device::list()?;
    let chosen = Device::select("auto", &options)?;
    let same = |info: &DeviceInfo| {
        (&info.name, info.kind, &info.driver)
            == (&chosen.info().name, chosen.info().kind, &chosen.info().driver)
    };
    // Of equal ones the first is taken.
    let place = list.iter().position(same);
    let devices: Vec<Listed> = list
        .iter()
        .enumerate()
        .map(|(number, info)| {
            let auto = place == Some(number);
            Listed {
                number,
                device: DeviceReport::of(info),
                memory_bytes: info.memory,
                supports: info.supports.clone(),
                auto,
                auto_reason: (!auto).then(|| why_not(number, info, &chosen, &options)),
            }
        })
        .collect();
    if arguments.json {
        return print_json(&serde_json::json!({ "devices": devices, "fallback": chosen.fallback() }));
    }
    print(&in_words(&devices))
}

/// Why `auto` does not take a device.
fn why_not(number: usize, info: &DeviceInfo, chosen: &Device, options: &DeviceOptions) -> String {
    if info.kind == DeviceKind::SoftwareGpu {
        return "it is software, and slower than the CPU engine".to_owned();
    }
    if is_real_gpu(info.kind)
        && let Err(error) = Device::select(&number.to_string(), options)
    {
        return error.to_string();
    }
    match chosen.fallback() {
        Some(reason) => format!("the GPU that comes first cannot be used: {reason}"),
        None => format!("{} comes first", chosen.info().name),
    }
}

fn in_words(devices: &[Listed]) -> String {
    let mut table = Table::new(&["number", "name", "kind", "backend", "memory", "precision", "driver"]);
    for Listed { number, device, memory_bytes, .. } in devices {
        let known = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        table.row(vec![
            number.to_string(),
            device.name.clone(),
            device.kind.to_owned(),
            device.backend.to_owned(),
            memory_bytes.map_or("-".to_owned(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9)),
            device.precision.to_owned(),
            known(&device.driver),
        ]);
    }
    let mut lines = vec![table.to_string(), String::new()];
    for Listed { number, device, supports, auto, auto_reason, .. } in devices {
        let can = match device.threads {
            Some(threads) => format!("{threads} threads, {}", device.instruction_set),
            None if supports.is_empty() => "nothing beyond the least".to_owned(),
            None => supports.join(", "),
        };
        let choice = match auto_reason {
            None => "auto takes it".to_owned(),
            Some(reason) => format!("auto does not take it: {reason}"),
        };
        debug_assert_eq!(*auto, auto_reason.is_none());
        lines.push(format!("{number}: {can}; {choice}"));
    }
    lines.join("\n")
}
