//! `mdm devices`: what this machine can compute on.

use clap::Args;
use serde::Serialize;

use crate::error::Result;
use crate::output::{Table, print, print_json};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A device as JSON tells of it.
#[derive(Serialize)]
struct Listed {
    /// What `--device` calls it.
    device: &'static str,
    name: String,
    threads: usize,
    instruction_set: &'static str,
    /// Whether `--device auto` chooses it.
    default: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cpu = mdm::Device::cpu(None)?;
    let info = cpu.info();
    let devices = [Listed {
        device: "cpu",
        name: info.name.clone(),
        threads: info.threads,
        instruction_set: info.instruction_set,
        default: true,
    }];
    if arguments.json {
        return print_json(&serde_json::json!({ "devices": devices }));
    }
    let mut table = Table::new(&["device", "threads", "instructions", "name"]);
    for device in &devices {
        let default = if device.default { " (default)" } else { "" };
        table.row(vec![
            format!("{}{default}", device.device),
            device.threads.to_string(),
            device.instruction_set.to_owned(),
            device.name.clone(),
        ]);
    }
    print(&table.to_string())
}
