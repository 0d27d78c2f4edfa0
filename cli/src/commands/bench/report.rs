//! What a benchmark found, for people and programs.

use serde::Serialize;

use super::ceilings::Ceilings;
use crate::device::UsedDevice;
use crate::operations::OperationReport;
use crate::output::Table;

/// Kinds of operations that are listed by themselves.
const LONGEST_TABLE: usize = 20;

#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) used: UsedDevice,
    pub(super) width: usize,
    pub(super) window: usize,
    pub(super) batch: usize,
    pub(super) blocks: Vec<usize>,
    pub(super) runs: usize,
    /// Of one batch, from windows on the host to features on the device.
    pub(super) median_ms: f64,
    pub(super) min_ms: f64,
    pub(super) windows_per_second: f64,
    /// Median of one batch with all its features brought to the host; absent where they are there anyway.
    pub(super) with_results_ms: Option<f64>,
    /// Calls of shaders for one batch; absent on the CPU.
    pub(super) dispatches: Option<usize>,
    /// Times that they were handed over.
    pub(super) submissions: Option<usize>,
    /// Of one batch, what the host takes to upload, encode and hand over, in the median; absent on the CPU.
    pub(super) host_ms: Option<f64>,
    /// Of one batch.
    pub(super) gflop: f64,
    pub(super) gflop_per_second: f64,
    /// Largest resident memory of the process while the network ran; absent where the system does not tell.
    pub(super) peak_memory_mb: Option<f64>,
    /// Memory of the network's activations.
    pub(super) arena_mb: f64,
    /// Memory of weights, activations and everything else on a GPU.
    pub(super) device_memory_mb: Option<f64>,
    /// Opening the device, once for all batches.
    pub(super) open_ms: f64,
    /// Making the weights and bringing them into the device's layout, and compiling shaders; little more than the latter
    /// where an earlier batch left the weights there.
    pub(super) prepare_ms: f64,
    /// Part of it that only random weights cost.
    pub(super) random_weights_ms: f64,
    /// The first run, results brought to the host.
    pub(super) first_run_ms: f64,
    /// Whether compiled shaders of an earlier start were there: off, cold or warm; absent where the device keeps none.
    pub(super) pipeline_cache: Option<&'static str>,
    pub(super) operations: Vec<OperationReport>,
    /// With the last of several batches; absent on the CPU, where the device has no clock for operations, and where they
    /// are not wanted.
    pub(super) ceilings: Option<Ceilings>,
}

impl Report {
    /// As text, with a line for `every` operation or for each kind.
    pub(super) fn in_words(&self, every: bool) -> String {
        let mut lines = self.head();
        let timed: f64 = self.operations.iter().filter_map(|operation| operation.ms).sum();
        if timed == 0.0 {
            lines.push("The device has no clock for single operations.".to_owned());
        } else if self.on_gpu() {
            lines.push(format!(
                "Operations by the device's clock, in runs of their own ({timed:.1} ms each):"
            ));
        }
        let mut table =
            Table::new(&["operation", "shape", "count", "ms", "share", "GFLOP", "GFLOP/s", "GB", "GB/s"]);
        let grouped;
        let rows = if every {
            &self.operations
        } else {
            grouped = by_kind(&self.operations);
            &grouped
        };
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        for row in rows {
            let rate = |work: f64| row.ms.filter(|ms| *ms > 0.0).map(|ms| work / (ms / 1e3));
            table.row(vec![
                row.kind.clone(),
                row.shape.clone(),
                row.count.to_string(),
                number(row.ms, 2),
                number(row.ms.map(|ms| 100.0 * ms / timed.max(1e-9)), 1) + "%",
                number(row.gflop, 3),
                number(row.gflop.and_then(rate), 1),
                number(Some(row.gigabytes), 4),
                number(rate(row.gigabytes), 1),
            ]);
        }
        if let Some(ceilings) = &self.ceilings {
            let [rows, columns, terms] = ceilings.product;
            let mut ceiling = |name: &str, shape: String, gflop: Option<f64>, gigabytes: Option<f64>| {
                let mut cells = vec![name.to_owned(), shape];
                cells.extend(vec![String::new(); 4]);
                cells.extend([number(gflop, 1), String::new(), number(gigabytes, 1)]);
                table.row(cells);
            };
            let product = Some(ceilings.product_gflop_per_second);
            ceiling("ceiling: matrix product", format!("{rows}x{terms}->{columns}"), product, None);
            let copy = Some(ceilings.copy_gb_per_second);
            ceiling("ceiling: copy", format!("{:.0} MB", ceilings.copy_mb), None, copy);
        }
        lines.push(table.to_string());
        lines.join("\n")
    }

    pub(super) fn on_gpu(&self) -> bool {
        self.used.device.threads.is_none()
    }

    fn head(&self) -> Vec<String> {
        let device = &self.used.device;
        let peak = self.peak_memory_mb.map_or("unknown".to_owned(), |peak| format!("{peak:.0} MB"));
        let mut lines = vec![match device.threads {
            Some(threads) => {
                format!(
                    "{}, {threads} threads, {}, {}",
                    device.name, device.instruction_set, device.precision
                )
            }
            None => {
                format!("{}, {} through {}, {}", device.name, device.kind, device.backend, device.precision)
            }
        }];
        lines.extend(self.used.fallback.iter().map(|reason| format!("no GPU: {reason}")));
        lines.push(format!(
            "width {}, window {} x {}, batch {}, blocks {:?}, {} runs",
            self.width, self.window, self.window, self.batch, self.blocks, self.runs
        ));
        lines.push(format!(
            "median {:.1} ms, best {:.1} ms, {:.3} windows/s, {:.1} GFLOP/s of direct products",
            self.median_ms, self.min_ms, self.windows_per_second, self.gflop_per_second
        ));
        if let (Some(dispatches), Some(submissions), Some(host)) =
            (self.dispatches, self.submissions, self.host_ms)
        {
            lines.push(format!(
                "{dispatches} dispatches a batch in {submissions} submissions, which take the host {host:.2} ms"
            ));
        }
        if let Some(milliseconds) = self.with_results_ms {
            lines.push(format!(
                "median {milliseconds:.1} ms with all features brought to the host, which segmenting does not need"
            ));
        }
        match self.device_memory_mb {
            Some(memory) => lines.push(format!(
                "device memory {memory:.0} MB, of it activations {:.0} MB; peak memory of the host {peak}",
                self.arena_mb
            )),
            None => lines.push(format!("peak memory {peak}, of it activations {:.0} MB", self.arena_mb)),
        }
        let cache = match self.pipeline_cache {
            Some(state) => format!("; cache of compiled shaders {state}"),
            None => String::new(),
        };
        lines.push(format!(
            "first result after {:.0} ms: device opened {:.0}, weights prepared {:.0} (random ones made {:.0}), first run {:.0}{cache}",
            self.open_ms + self.prepare_ms + self.first_run_ms,
            self.open_ms,
            self.prepare_ms,
            self.random_weights_ms,
            self.first_run_ms
        ));
        lines.push(String::new());
        lines
    }
}

/// Adds up operations of the same kind and shape, the slowest first, and what is beyond a readable table.
fn by_kind(operations: &[OperationReport]) -> Vec<OperationReport> {
    let add = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a + b);
    let mut grouped: Vec<OperationReport> = Vec::new();
    for operation in operations {
        let same =
            |other: &&mut OperationReport| other.kind == operation.kind && other.shape == operation.shape;
        match grouped.iter_mut().find(same) {
            Some(group) => {
                group.count += 1;
                group.ms = add(group.ms, operation.ms);
                group.gflop = add(group.gflop, operation.gflop);
                group.gigabytes += operation.gigabytes;
            }
            None => grouped.push(operation.clone()),
        }
    }
    // Without a clock by what is known.
    let cost = |group: &OperationReport| group.ms.or(group.gflop).unwrap_or(0.0);
    grouped.sort_by(|a, b| cost(b).total_cmp(&cost(a)));
    let rest = grouped.split_off(LONGEST_TABLE.min(grouped.len()));
    if !rest.is_empty() {
        grouped.push(OperationReport {
            kind: "everything else".to_owned(),
            shape: String::new(),
            count: rest.iter().map(|group| group.count).sum(),
            ms: rest.iter().map(|group| group.ms).sum(),
            gflop: Some(rest.iter().filter_map(|group| group.gflop).sum()),
            gigabytes: rest.iter().map(|group| group.gigabytes).sum(),
        });
    }
    grouped
}
