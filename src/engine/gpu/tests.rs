//! What a host may rely on when things go wrong; on every adapter that is found, software ones too.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::call::{Binding, Builder, Call, Parameters};
use super::context::Context;
use super::prepare::{place_vectors, places};
use super::weights::Layout;
use super::{GpuEngine, adapters};
use crate::engine::{DeviceOptions, Engine, Inputs, Network, Precision, WeightCache};
use crate::model::{MapWeights, UnetConfig};
use crate::plan::{Combine, HeadShape, Op, Param, Plan, PlanOptions, TensorInfo};
use crate::{CancelToken, Control, Error};

const SIDE: usize = 64;

fn engines(options: &DeviceOptions) -> Vec<GpuEngine> {
    let found: Vec<GpuEngine> =
        adapters().into_iter().map(|adapter| GpuEngine::new(adapter, options).unwrap()).collect();
    if found.is_empty() {
        eprintln!("skipped: no GPU");
    }
    found
}

/// A small network with weights of no meaning.
fn plan_and_weights() -> (Plan, MapWeights) {
    let config = UnetConfig {
        model_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_ds: vec![2],
        ..UnetConfig::mdm_paper()
    };
    let options = PlanOptions {
        batch: 1,
        height: SIDE,
        width: SIDE,
        timestep_slots: 1,
        corruption: None,
        blocks: vec![2, 3],
        image: false,
        head: None,
    };
    let plan = Plan::new(&config, options).unwrap();
    let weights = weights_of(&plan);
    (plan, weights)
}

fn weights_of(plan: &Plan) -> MapWeights {
    let mut weights = MapWeights::default();
    for param in &plan.params {
        let len = param.shape.iter().product::<usize>();
        let fan = param.shape[1..].iter().product::<usize>() as f32;
        let values = (0..len).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) / fan.sqrt()).collect();
        weights.insert(&param.name, &param.shape, values);
    }
    weights
}

fn run(network: &mut dyn Network, control: &Control<'_>) -> crate::Result<Vec<f32>> {
    run_at(network, 50.0, control)
}

fn run_at(network: &mut dyn Network, timestep: f32, control: &Control<'_>) -> crate::Result<Vec<f32>> {
    let image: Vec<f32> = (0..SIDE * SIDE * 3).map(|i| (i as f32 * 0.37).sin()).collect();
    let inputs = Inputs { images: &[&image], timesteps: &[&[timestep]], classes: &[], noise: &[] };
    let mut all = Vec::new();
    network.run(&inputs, control, &mut |_, values| {
        all.extend_from_slice(values);
        Ok(())
    })?;
    assert!(all.iter().all(|value| value.is_finite()));
    Ok(all)
}

#[test]
fn a_lost_device_is_an_error_and_the_next_call_opens_another() {
    let (plan, weights) = plan_and_weights();
    for engine in engines(&DeviceOptions::default()) {
        let cache = WeightCache::default();
        let mut network = engine.prepare(plan.clone(), &weights, &cache).unwrap();
        let before = run(&mut *network, &Control::none()).unwrap();
        engine.context().unwrap().device.destroy();
        for _ in 0..2 {
            assert!(matches!(run(&mut *network, &Control::none()), Err(Error::DeviceLost(_))));
        }
        // The same cache still refers to the weights of the device that is gone.
        let mut network = engine.prepare(plan.clone(), &weights, &cache).unwrap();
        assert_eq!(run(&mut *network, &Control::none()).unwrap(), before);
    }
}

#[test]
fn a_panic_in_the_driver_is_a_lost_device() {
    for engine in engines(&DeviceOptions::default()) {
        let context = engine.context().unwrap();
        let result: crate::Result<()> = context.checked(|| panic!("as drivers do"));
        let Err(Error::DeviceLost(reason)) = result else { panic!("{result:?}") };
        assert!(reason.contains("as drivers do"), "{reason}");
        assert!(context.is_lost());
        assert!(!engine.context().unwrap().is_lost());
    }
}

#[test]
fn mistakes_of_the_engine_are_errors_of_the_device() {
    for engine in engines(&DeviceOptions::default()) {
        let context = engine.context().unwrap();
        let result = context.checked(|| {
            let buffer = context.buffer("test", 16, wgpu::BufferUsages::STORAGE)?;
            // Not made to be mapped.
            super::submit::map(&context, &buffer.buffer).map(|_| ())
        });
        assert!(matches!(result, Err(Error::Device(_))), "{result:?}");
    }
}

#[test]
fn a_budget_is_kept() {
    let (plan, weights) = plan_and_weights();
    let options = DeviceOptions { memory: Some(1 << 20), ..DeviceOptions::default() };
    for engine in engines(&options) {
        let result = engine.prepare(plan.clone(), &weights, &WeightCache::default());
        assert!(matches!(result, Err(Error::OutOfMemory(_))));
        // All that was taken before it failed is given back.
        assert_eq!(engine.context().unwrap().used.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
}

#[test]
fn an_arena_in_several_buffers_changes_no_bit() {
    // Many maps wait for the decoder at a time.
    let (plan, _) = plan_and_weights();
    let config = UnetConfig { num_res_blocks: 9, ..plan.config };
    let plan = Plan::new(&config, PlanOptions { blocks: vec![18, 19], ..plan.options }).unwrap();
    let weights = weights_of(&plan);
    for precision in [Precision::F32, Precision::F16] {
        for engine in engines(&DeviceOptions { precision, ..DeviceOptions::default() }) {
            let size = engine.value.size();
            let prepare = || engine.prepare(plan.clone(), &weights, &WeightCache::default());
            let whole = run(&mut *prepare().unwrap(), &Control::none()).unwrap();
            let largest = plan.tensors.iter().map(|tensor| size * tensor.range.len()).max().unwrap();
            // A map that is larger than a buffer has no place.
            engine.reopen_with_segments(largest / 2).unwrap();
            assert!(matches!(prepare(), Err(Error::OutOfMemory(_))));
            // Copies in scratch memory may be larger than any map.
            let mut segments = (largest..).step_by(largest / 4);
            let (segment, mut divided) = segments
                .find_map(|segment| {
                    engine.reopen_with_segments(segment).unwrap();
                    match prepare() {
                        Err(Error::OutOfMemory(_)) => None,
                        other => Some((segment, other.unwrap())),
                    }
                })
                .unwrap();
            let arena = size * plan.arena_len;
            assert!(arena > 2 * segment, "{arena} bytes are less than three segments of {segment}");
            assert_eq!(run(&mut *divided, &Control::none()).unwrap(), whole);
        }
    }
}

#[test]
fn runs_stop_between_submissions_and_can_be_repeated() {
    let (plan, weights) = plan_and_weights();
    for engine in engines(&DeviceOptions::default()) {
        let mut network = engine.prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
        let whole = run(&mut *network, &Control::none()).unwrap();
        let token = CancelToken::new();
        let control = Control::none().with_cancel(&token);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                token.cancel();
            });
            // A device may be done before it is told.
            match run(&mut *network, &control) {
                Ok(values) => assert_eq!(values, whole),
                Err(error) => assert!(matches!(error, Error::Cancelled), "{error}"),
            }
        });
        assert!(matches!(run(&mut *network, &control), Err(Error::Cancelled)));
        assert_eq!(run(&mut *network, &Control::none()).unwrap(), whole);
    }
}

#[test]
fn embeddings_follow_the_timesteps() {
    let (plan, weights) = plan_and_weights();
    for engine in engines(&DeviceOptions::default()) {
        let prepare = || engine.prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
        let fresh = |timestep| run_at(&mut *prepare(), timestep, &Control::none()).unwrap();
        let expected = [fresh(50.0), fresh(900.0)];
        assert_ne!(expected[0], expected[1]);
        let mut network = prepare();
        for (index, timestep) in [(0, 50.0), (0, 50.0), (1, 900.0), (0, 50.0)] {
            assert_eq!(run_at(&mut *network, timestep, &Control::none()).unwrap(), expected[index]);
        }
    }
}

#[test]
fn classes_are_part_of_the_embedding() {
    let (mut plan, mut weights) = plan_and_weights();
    let config = UnetConfig { num_classes: Some(3), ..plan.config };
    plan = Plan::new(&config, plan.options).unwrap();
    let table = plan.params.iter().find(|param| param.name == "label_emb.weight").unwrap();
    let values = (0..table.shape.iter().product()).map(|i: usize| (i as f32 * 0.7).sin()).collect();
    weights.insert(&table.name, &table.shape, values);
    let image: Vec<f32> = (0..SIDE * SIDE * 3).map(|i| (i as f32 * 0.37).sin()).collect();
    for engine in engines(&DeviceOptions::default()) {
        let mut network = engine.prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
        let mut of_class = |class| {
            let inputs = Inputs { images: &[&image], timesteps: &[&[50.0]], classes: &[class], noise: &[] };
            let mut all = Vec::new();
            let mut read = |_: usize, values: &[f32]| {
                all.extend_from_slice(values);
                Ok(())
            };
            network.run(&inputs, &Control::none(), &mut read).unwrap();
            all
        };
        let first = of_class(0);
        assert_ne!(of_class(2), first);
        assert_eq!(of_class(0), first);
    }
}

#[test]
fn more_operations_than_a_query_set_holds() {
    const COUNT: usize = 2100;
    let mut tensors = vec![TensorInfo::new(1, 1, 1)];
    let mut ops = Vec::new();
    for input in 0..COUNT {
        tensors.push(TensorInfo::new(1, 1, 1));
        let (weight, bias, output) = (0, 1, input + 1);
        ops.push(Op::Linear { input, silu: false, weight, bias, label_embedding: None, output });
    }
    let param = |name: &str, shape: &[usize]| Param { name: name.into(), shape: shape.to_vec() };
    let params = vec![param("weight", &[1, 1]), param("bias", &[1])];
    let mut weights = MapWeights::default();
    weights.insert("weight", &[1, 1], vec![1.0]);
    weights.insert("bias", &[1], vec![0.5]);
    let config = UnetConfig::mdm_paper();
    let plan = Plan::assemble(config, 1, tensors, params, ops, vec![0], vec![COUNT]).unwrap();
    for engine in engines(&DeviceOptions { precision: Precision::F32, ..DeviceOptions::default() }) {
        let mut network = engine.prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
        let timed = network.time_operations();
        let inputs = Inputs { images: &[&[1.0]], timesteps: &[], classes: &[], noise: &[] };
        let mut read = |_: usize, values: &[f32]| {
            assert_eq!(values, [1.0 + 0.5 * COUNT as f32]);
            Ok(())
        };
        network.run(&inputs, &Control::none(), &mut read).unwrap();
        assert_eq!(network.op_seconds().len(), COUNT);
        assert!(!timed || network.op_seconds()[0] > 0.0);
        assert_eq!(network.run_cost().unwrap().dispatches, COUNT);
    }
}

#[test]
fn a_cache_keeps_models_of_other_sizes_apart() {
    let (plan, weights) = plan_and_weights();
    let config = UnetConfig { model_channels: 64, ..plan.config.clone() };
    let wide = Plan::new(&config, plan.options.clone()).unwrap();
    for engine in engines(&DeviceOptions::default()) {
        let cache = WeightCache::default();
        let fresh = || WeightCache::default();
        let one = |plan: &Plan, weights: &MapWeights, cache: &WeightCache| {
            run(&mut *engine.prepare(plan.clone(), weights, cache).unwrap(), &Control::none()).unwrap()
        };
        let wide_weights = weights_of(&wide);
        for (plan, weights) in [(&plan, &weights), (&wide, &wide_weights), (&plan, &weights)] {
            assert_eq!(one(plan, weights, &cache), one(plan, weights, &fresh()));
        }
    }
}

/// Parameters that are never read.
struct Nothing;

impl Parameters for Nothing {
    fn weight(
        &mut self,
        _context: &Context,
        _param: &Param,
        _layout: Layout,
        _calls: &mut Vec<Call>,
    ) -> crate::Result<Binding> {
        Ok(Binding::Vectors)
    }

    fn values(&self, _param: &Param) -> crate::Result<Vec<f32>> {
        Ok(vec![0.0])
    }
}

#[test]
fn a_norm_takes_few_calls_and_the_embedding_none() {
    let shape = HeadShape {
        heads: 10,
        hidden: (128, 32),
        classes: 3,
        normalise: false,
        combine: Combine::Mean,
        uncertainty: false,
    };
    let options = PlanOptions {
        batch: 1,
        height: 256,
        width: 256,
        timestep_slots: 1,
        corruption: None,
        blocks: vec![8, 9, 10, 11, 12],
        image: false,
        head: Some(shape),
    };
    let plan = Plan::new(&UnetConfig::mdm_paper(), options).unwrap();
    let (places, classes) = place_vectors(&plan, places(plan.tensors.len(), &plan.ops), 1).unwrap();
    for precision in [Precision::F32, Precision::F16] {
        for engine in engines(&DeviceOptions { precision, ..DeviceOptions::default() }) {
            let context = engine.context().unwrap();
            let mut nothing = Nothing;
            let mut builder = Builder::new(&plan, &context, &places, classes, &mut nothing);
            let (steps, _) = builder.operations().unwrap();
            let embedding = super::network::embeds(&plan);
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            let calls = || steps.iter().zip(&embedding).filter(|(_, embeds)| !**embeds).flat_map(|own| own.0);
            for call in calls() {
                *counts.entry(call.permutation.shader.name()).or_default() += 1;
            }
            let norms = plan.ops.iter().filter(|op| matches!(op, Op::NormCoefficients { .. })).count();
            let at_once = counts["group_norm"];
            assert_eq!(counts["norm_coefficients"], norms - at_once);
            let mut others = vec!["linear", "normalise_scalars"];
            if precision == Precision::F16 {
                let small = |op: &&Op| match op {
                    Op::Conv(conv) if conv.source.norm.is_some() => {
                        plan.tensors[conv.source.parts[0]].height <= 32
                    }
                    _ => false,
                };
                assert_eq!(at_once, plan.ops.iter().filter(small).count());
                assert_eq!(counts["moments"], norms - at_once);
                others.push("moments_sum");
            }
            assert!(!others.iter().any(|name| counts.contains_key(name)), "{counts:?}");
            eprintln!("{precision:?}: {} calls, {counts:?}", calls().count());
        }
    }
}

#[test]
fn threads_share_a_device() {
    let (plan, weights) = plan_and_weights();
    for engine in engines(&DeviceOptions::default()) {
        let (engine, cache) = (Arc::new(engine), WeightCache::default());
        let results: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut network = engine.prepare(plan.clone(), &weights, &cache).unwrap();
                        run(&mut *network, &Control::none()).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn compiled_shaders_are_kept_for_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        DeviceOptions { pipeline_cache: Some(folder.path().join("new")), ..DeviceOptions::default() };
    let (plan, weights) = plan_and_weights();
    for engine in engines(&options) {
        let mut results = Vec::new();
        for _ in 0..2 {
            engine.context().unwrap().give_up("the next one reads what this one kept");
            let mut network = engine.prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
            results.push(run(&mut *network, &Control::none()).unwrap());
        }
        assert_eq!(results[0], results[1]);
        if engine.info.supports.contains(&"pipeline cache") {
            let kept = std::fs::read_dir(folder.path().join("new")).unwrap().count();
            assert!(kept > 0, "nothing is kept");
            // A damaged file is as good as none.
            for file in std::fs::read_dir(folder.path().join("new")).unwrap() {
                std::fs::write(file.unwrap().path(), b"damaged").unwrap();
            }
            engine.context().unwrap().give_up("the next one reads what is damaged");
            let mut network = engine.prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
            assert_eq!(run(&mut *network, &Control::none()).unwrap(), results[0]);
        }
    }
}
