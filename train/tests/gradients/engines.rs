//! What runs programs. An engine that is added to [`all`] goes through every test of this suite.

use std::sync::LazyLock;

use mdm::engine::cpu::CpuEngine;
use mdm::engine::cpu::buffer::Buffer;
use mdm::engine::gpu::GpuEngine;
use mdm::engine::{DeviceKind, DeviceOptions, Precision};
use mdm::plan::TensorId;
use mdm::{Control, Device, Error};
use mdm_train::differentiate::Program;
use mdm_train::engine::cpu::CpuProgram;
use mdm_train::engine::gpu::GpuProgram;
use mdm_train::engine::parameters::{Places, Values};

/// What a program is run on.
#[derive(Clone)]
pub(crate) struct Given {
    /// Values of tensors: the image, the target, the timesteps.
    pub(crate) tensors: Vec<(TensorId, Vec<f32>)>,
    /// Values of the network's parameters, in the order of [`Program::params`].
    pub(crate) params: Vec<Vec<f32>>,
}

/// What a program left.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) loss: f64,
    pub(crate) answer: Vec<f32>,
    /// Of each parameter.
    pub(crate) gradients: Vec<Vec<f32>>,
}

/// Something that runs programs.
pub(crate) trait Engine {
    /// For messages.
    fn name(&self) -> String;

    /// What `program` makes of `given`, in the mean of two runs that add to the same gradients: what the first one leaves in
    /// memory must not show.
    fn run(&self, program: Program, given: &Given) -> Outcome;

    /// Another one whose results have the same bits: with another number of threads.
    fn twin(&self) -> Option<Box<dyn Engine>> {
        None
    }
}

/// Every engine of this machine.
pub(crate) fn all() -> Vec<Box<dyn Engine>> {
    let cpus = |threads| Device::cpu_instruction_sets(Some(threads)).unwrap().into_iter();
    let cpus = cpus(1).zip(cpus(3)).map(|(one, three)| Box::new(Cpu(one, Some(three))) as Box<dyn Engine>);
    cpus.chain(GPUS.iter().map(|device| Box::new(Gpu(device.clone())) as Box<dyn Engine>)).collect()
}

/// Every GPU of this machine in f32, software ones included; each is opened once.
static GPUS: LazyLock<Vec<Device>> = LazyLock::new(open);

fn open() -> Vec<Device> {
    let options = DeviceOptions { precision: Precision::F32, ..DeviceOptions::default() };
    let devices = Device::list().unwrap();
    let numbers = (0..devices.len()).filter(|&number| devices[number].kind != DeviceKind::Cpu);
    numbers.map(|number| Device::select(&number.to_string(), &options).unwrap()).collect()
}

/// What every GPU makes of `program` with its arena in buffers as small as the largest map allows, and whole. The arena is at
/// least three of them.
pub(crate) fn divided(program: &Program, given: &Given) -> Vec<[Outcome; 2]> {
    let run = |device: &Device| {
        let whole = Gpu(device.clone()).run(program.clone(), given);
        let engine = device.engine().as_any().downcast_ref::<GpuEngine>().unwrap();
        let fits = |bits: &u32| {
            engine.reopen_with_segments(1 << bits).unwrap();
            match GpuProgram::new(engine, program.clone()) {
                Err(Error::OutOfMemory(_)) => false,
                other => other.is_ok(),
            }
        };
        let bits = (12..32).find(fits).unwrap();
        assert!(4 * program.plan.arena_len > 2 << bits, "segments of {} bytes", 1 << bits);
        [Gpu(device.clone()).run(program.clone(), given), whole]
    };
    open().iter().map(run).collect()
}

struct Cpu(Device, Option<Device>);

impl Engine for Cpu {
    fn name(&self) -> String {
        self.0.info().instruction_set.to_owned()
    }

    fn run(&self, program: Program, given: &Given) -> Outcome {
        let engine = self.0.engine().as_any().downcast_ref::<CpuEngine>().unwrap();
        let (places, answer) = (Places::new(program.params()), program.answers[0]);
        let mut gradients = Buffer::zeroed(places.len()).unwrap();
        let values = Values { places: &places, flat: &given.params.concat() };
        let tensors: Vec<(TensorId, &[f32])> =
            given.tensors.iter().map(|(id, values)| (*id, values.as_slice())).collect();
        let mut program = CpuProgram::new(engine, program).unwrap();
        let mut loss = 0.0;
        for _ in 0..2 {
            loss = program.run(&tensors, &values, &mut gradients, 0.5, &Control::none()).unwrap();
        }
        let gradient = |id| gradients.slice()[places.range(id)].to_vec();
        Outcome {
            loss,
            answer: program.tensor(answer).to_vec(),
            gradients: (0..places.params().len()).map(gradient).collect(),
        }
    }

    fn twin(&self) -> Option<Box<dyn Engine>> {
        self.1.clone().map(|device| Box::new(Cpu(device, None)) as Box<dyn Engine>)
    }
}

struct Gpu(Device);

impl Engine for Gpu {
    fn name(&self) -> String {
        self.0.info().name.clone()
    }

    fn run(&self, program: Program, given: &Given) -> Outcome {
        let engine = self.0.engine().as_any().downcast_ref::<GpuEngine>().unwrap();
        let (places, answer) = (Places::new(program.params()), program.answers[0]);
        let tensors: Vec<(TensorId, &[f32])> =
            given.tensors.iter().map(|(id, values)| (*id, values.as_slice())).collect();
        let mut program = GpuProgram::new(engine, program).unwrap();
        program.set_values(&given.params.concat()).unwrap();
        let mut loss = 0.0;
        for _ in 0..2 {
            loss = program.run(&tensors, 0.5, &Control::none()).unwrap();
        }
        let gradients = program.gradients().unwrap();
        Outcome {
            loss,
            answer: program.tensor(answer).unwrap(),
            gradients: (0..places.params().len()).map(|id| gradients[places.range(id)].to_vec()).collect(),
        }
    }
}
