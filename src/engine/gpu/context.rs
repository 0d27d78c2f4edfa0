//! An open device: errors, submissions, and how long they take.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::adapter::Adapter;
use super::calibrate::{Rates, UNMEASURED};
use super::call::ALIGNMENT;
use super::pipeline::Pipelines;
use super::self_test::{self, Found};
use super::shader::{Cooperative, ValueType};
use crate::{Error, Result};

/// Workgroups of a row of a dispatch's grid; `GRID_WIDTH` of the shaders is the same.
pub const GRID_WIDTH: u32 = 32_768;

/// A submission should keep the device busy for so long: display drivers reset a device that is busy for two seconds, and
/// people notice a tenth of one.
const SUBMISSION: Duration = Duration::from_millis(40);

/// Asking after what is done takes no longer than this.
const AT_ONCE: Duration = Duration::from_micros(50);

/// A device that has not finished a submission after so long never will. Tests say so before whoever runs them gives up.
pub const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 20 } else { 60 });

/// Bytes of uploads after which they are handed over.
const MOST_STAGED: u64 = 64 << 20;

/// Multiplications a second that a device is believed to do before it was measured.
const FIRST_PACE: f64 = 2e9;

pub struct Context {
    /// Differs from device to device, also between one that was lost and its successor.
    pub id: u64,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub limits: wgpu::Limits,
    /// Bytes of a buffer of an arena; what does not fit into one is divided.
    pub segment: usize,
    pub value: ValueType,
    pub timestamps: bool,
    /// Matrix units, whether they are right or not.
    cooperative: Option<Cooperative>,
    fault: Option<String>,
    rates: Rates,
    /// Bytes that may be spent on the device.
    pub memory: Option<u64>,
    pub used: Arc<AtomicU64>,
    pub pipelines: Pipelines,
    faults: Arc<Faults>,
    /// Multiplications a second.
    pace: Mutex<f64>,
    /// Bytes of uploads that were not handed over yet.
    staged: AtomicU64,
}

/// What the driver reported outside of any call.
#[derive(Default)]
struct Faults {
    lost: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Faults {
    fn note(&self, reason: String) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }
}

impl Context {
    pub(crate) fn new(
        adapter: &Adapter,
        value: ValueType,
        memory: Option<u64>,
        cache: Option<PathBuf>,
    ) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let offered = adapter.adapter.features();
        let wanted =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE | wgpu::Features::SHADER_F16;
        let mut features = wgpu::Features::IMMEDIATES | (offered & wanted);
        let cooperative = adapter.cooperative().filter(|_| value == ValueType::F16);
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if let Some(unit) = cooperative {
            if unit.moves_bits() {
                features |= wgpu::Features::PASSTHROUGH_SHADERS;
            }
            features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SUBGROUP;
            experimental = super::pipeline::experimental();
        }
        let limits = adapter.adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("mdm"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: experimental,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.adapter.request_device(&descriptor))
            .map_err(|error| Error::Device(format!("{} cannot be opened: {error}", adapter.info.name)))?;
        let faults = Arc::new(Faults::default());
        let lost = faults.clone();
        device.set_device_lost_callback(move |_, message| {
            lost.note(message);
            lost.lost.store(true, Ordering::Release);
        });
        let uncaptured = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| uncaptured.note(error.to_string())));
        let pipelines = Pipelines::new(&device, &adapter.adapter.get_info(), cache);
        let largest = usize::try_from(limits.max_buffer_size).unwrap_or(usize::MAX);
        let mut context = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            device,
            queue,
            limits,
            segment: whole_segment(largest),
            value,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            cooperative,
            memory,
            used: Arc::default(),
            pipelines,
            faults,
            pace: Mutex::new(FIRST_PACE),
            staged: AtomicU64::new(0),
            fault: None,
            rates: UNMEASURED,
        };
        if let Some(unit) = cooperative {
            match self_test::examine(&context, unit, &adapter.info.driver) {
                Found::Right(rates) => context.rates = rates,
                Found::Fault(reason) => context.fault = Some(reason),
            }
        }
        Ok(context)
    }

    /// Matrix units that products in f16 can use.
    pub fn cooperative(&self) -> Option<Cooperative> {
        self.cooperative.filter(|_| self.fault.is_none())
    }

    /// How fast the matrix units are.
    pub(super) fn rates(&self) -> &Rates {
        &self.rates
    }

    /// What is wrong with the matrix units, which are not used then.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Divides what is larger than `segment` bytes, where buffers of that size are possible.
    pub(super) fn divide(&mut self, segment: usize) {
        self.segment = self.segment.min(whole_segment(segment));
    }

    pub fn is_lost(&self) -> bool {
        self.faults.lost.load(Ordering::Acquire)
    }

    /// The device will not be used again; the engine opens another one.
    pub fn give_up(&self, reason: &str) {
        self.faults.note(reason.to_owned());
        self.faults.lost.store(true, Ordering::Release);
    }

    fn lost(&self) -> Error {
        let reason = self.faults.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Error::DeviceLost(reason.unwrap_or_else(|| "the driver gave no reason".into()))
    }

    /// Calls `work`, and turns whatever the driver or wgpu does meanwhile into an error.
    pub fn checked<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_lost() {
            return Err(self.lost());
        }
        let result = super::guard(|| {
            let scopes =
                [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory]
                    .map(|filter| self.device.push_error_scope(filter));
            let result = work();
            let mut first = None;
            // Scopes are popped in the reverse order.
            for scope in scopes.into_iter().rev() {
                first = first.or(pollster::block_on(scope.pop()));
            }
            match first {
                Some(error) => Err(of_wgpu(error)),
                None => result,
            }
        });
        if self.is_lost() {
            return Err(self.lost());
        }
        match result {
            Err(Error::DeviceLost(reason)) => {
                self.give_up(&reason);
                Err(self.lost())
            }
            other => other,
        }
    }

    /// A buffer of `size` bytes, within the memory budget.
    pub fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> Result<Memory> {
        let size = size.max(16).next_multiple_of(16);
        let used = self.used.fetch_add(size, Ordering::Relaxed) + size;
        let memory = |buffer| Memory { buffer, size, used: self.used.clone() };
        let short = |reason: String| {
            self.used.fetch_sub(size, Ordering::Relaxed);
            Error::OutOfMemory(reason)
        };
        if let Some(budget) = self.memory.filter(|&budget| used > budget) {
            return Err(short(format!(
                "{} MiB of device memory are needed, {} MiB are allowed; use smaller batches or windows",
                used >> 20,
                budget >> 20
            )));
        }
        let bindable = usage.contains(wgpu::BufferUsages::UNIFORM) || size <= self.limits.max_buffer_size;
        if !bindable {
            return Err(short(format!(
                "{label}: {} MiB in one buffer, the device takes {}; use smaller batches or windows",
                size >> 20,
                self.limits.max_buffer_size >> 20
            )));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(memory(buffer)),
            Some(_) => Err(short(format!(
                "the device has no {} MiB left for {label}; use smaller batches or windows",
                size >> 20
            ))),
        }
    }

    /// Multiplications that one submission may have.
    pub fn submission_work(&self) -> f64 {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) * SUBMISSION.as_secs_f64()
    }

    /// Waits for a submission (all of them without one) of `work` multiplications that the device began at `began`.
    pub fn wait(&self, submission: Option<wgpu::SubmissionIndex>, began: Instant, work: f64) -> Result<()> {
        // Never with a short timeout: wgpu panics where a wait ends early while another thread takes note of the submission's end.
        let poll = wgpu::PollType::Wait { submission_index: submission, timeout: Some(PATIENCE) };
        let asked = Instant::now();
        match self.device.poll(poll) {
            Ok(_) => {}
            Err(wgpu::PollError::Timeout) => {
                return Err(Error::DeviceLost(format!(
                    "did not finish its work in {} s",
                    PATIENCE.as_secs()
                )));
            }
            Err(error) => return Err(Error::DeviceLost(error.to_string())),
        }
        if work > 0.0 {
            // What was done already took less than the time until now.
            let waited = asked.elapsed() > AT_ONCE;
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            *pace = next_pace(*pace, work, began.elapsed(), waited);
        }
        Ok(())
    }

    /// Takes note of an upload of `bytes`. Uploads wait in memory of the host's until the next submission, which an empty one
    /// is when there are many of them.
    pub fn uploaded(&self, bytes: u64) {
        if self.staged.fetch_add(bytes, Ordering::Relaxed) + bytes < MOST_STAGED {
            return;
        }
        self.staged.store(0, Ordering::Relaxed);
        self.queue.submit([]);
        // Gives back the memory of those that are done; a failure shows in what comes next.
        let _ = self.device.poll(wgpu::PollType::Poll);
    }
}

/// What to make of a submission of `work` multiplications that was done after `elapsed`. Whoever did not wait for it only
/// knows that it was no slower than that.
fn next_pace(pace: f64, work: f64, elapsed: Duration, waited: bool) -> f64 {
    let measured = work / elapsed.as_secs_f64().max(1e-6);
    if measured > pace {
        // Growing in steps keeps an odd submission from misleading.
        measured.min(4.0 * pace)
    } else if waited && elapsed > SUBMISSION {
        measured.max(pace / 4.0)
    } else {
        // Small submissions are mostly overhead and tell little; as long as they are short enough, nothing is wrong.
        pace
    }
}

/// Bytes of a segment, such that maps can begin at the start of each, in buffers of at most so many.
fn whole_segment(largest: usize) -> usize {
    (largest - largest % ALIGNMENT).max(ALIGNMENT)
}

fn of_wgpu(error: wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => {
            Error::OutOfMemory("the device has no memory left; use smaller batches or windows".into())
        }
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
            Error::Device(description)
        }
    }
}

/// A buffer that counts towards the memory in use for as long as it lives.
pub struct Memory {
    pub buffer: wgpu::Buffer,
    size: u64,
    used: Arc<AtomicU64>,
}

impl Memory {
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.used.fetch_sub(self.size, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_of_a_fast_device_is_soon_known_and_kept() {
        let fast = 6e13;
        let overhead = Duration::from_micros(200);
        let run = |pace: f64, work: f64, waited| {
            next_pace(pace, work, overhead + Duration::from_secs_f64(work / fast), waited)
        };
        let mut pace = FIRST_PACE;
        let mut submissions = 0;
        while pace < fast / 10.0 {
            pace = run(pace, pace * SUBMISSION.as_secs_f64(), true);
            submissions += 1;
        }
        assert!(submissions <= 6, "{submissions}");
        // Short submissions, and long ones that nobody waited for.
        assert_eq!(run(pace, 1e6, true), pace);
        assert_eq!(next_pace(pace, 1e9, Duration::from_secs(1), false), pace);
        // One that takes too long.
        assert_eq!(next_pace(pace, 1e9, Duration::from_secs(1), true), pace / 4.0);
    }
}
