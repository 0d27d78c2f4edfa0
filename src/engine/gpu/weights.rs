//! Parameters on the device.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::context::{Context, Memory};
use super::pack::{taps_first, winograd};
use super::shader::ValueType;
use crate::model::WeightSource;
use crate::plan::{HEAD_PREFIX, Param};
use crate::{Error, Result};

/// How a parameter lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// As in the checkpoint, f32.
    Exact,
    /// As in the checkpoint, in the device's value type.
    Plain,
    /// A kernel `[out, in, taps...]` as `[taps][in][out]`, in the device's value type, with rows of zeros up to a multiple of
    /// eight.
    Taps,
    /// A 3x3 kernel in Winograd's domain, `[36][in][out]`, f32.
    Winograd,
}

/// A parameter on a device, whose number comes first, by name and shape.
type Key = (u64, String, Vec<usize>, Layout);

/// Parameters of one model on all devices that it was used on.
#[derive(Default)]
pub struct DeviceWeights(HashMap<Key, Arc<Memory>>);

impl DeviceWeights {
    /// The parameter in the given layout, uploaded unless it is there already.
    pub fn get(
        &mut self,
        context: &Context,
        param: &Param,
        layout: Layout,
        weights: &dyn WeightSource,
    ) -> Result<Arc<Memory>> {
        let key = (context.id, param.name.clone(), param.shape.clone(), layout);
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        // What belongs to a device that was lost is of no use any more.
        self.0.retain(|(id, ..), memory| *id == context.id || Arc::strong_count(memory) > 1);
        let values = param.read(weights)?;
        let uploaded = Arc::new(match layout {
            Layout::Exact => upload(context, &param.name, &values, ValueType::F32)?,
            Layout::Plain => upload(context, &param.name, &values, context.value)?,
            Layout::Winograd => {
                upload(context, &param.name, &winograd(&values, &param.shape), ValueType::F32)?
            }
            Layout::Taps => upload(context, &param.name, &taps_first(&values, &param.shape), context.value)?,
        });
        drop(values);
        // Models with other heads share the weights of their backbone.
        if !param.name.starts_with(HEAD_PREFIX) {
            self.0.insert(key, uploaded.clone());
        }
        Ok(uploaded)
    }
}

/// A buffer with `values` in the given format.
pub fn upload(context: &Context, label: &str, values: &[f32], format: ValueType) -> Result<Memory> {
    let size = (values.len() * format.size()) as u64;
    if size > context.limits.max_storage_buffer_binding_size {
        return Err(Error::tensor(
            label,
            format!(
                "takes {} MiB, the device reads {} MiB at a time; use \"cpu\"",
                size >> 20,
                context.limits.max_storage_buffer_binding_size >> 20
            ),
        ));
    }
    let memory = context.buffer(label, size, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST)?;
    // What rounds to infinity there; not a number is none of these.
    let fits = |value: &f32| value.abs() < f32::from(f16::MAX) + 16.0;
    if let (ValueType::F16, Some(value)) = (format, values.iter().find(|value| !fits(value))) {
        return Err(Error::tensor(label, format!("has a value of {value}, which f16 cannot hold; use f32")));
    }
    write(context, &memory.buffer, 0, values, format);
    context.uploaded(size);
    Ok(memory)
}

/// Writes `values` in the given format to a buffer, `offset` bytes from its start; what is left of the last four bytes
/// becomes zero.
pub fn write(context: &Context, buffer: &wgpu::Buffer, offset: u64, values: &[f32], format: ValueType) {
    match format {
        ValueType::F32 => context.queue.write_buffer(buffer, offset, bytemuck::cast_slice(values)),
        ValueType::F16 => {
            let bytes = 2 * values.len().next_multiple_of(2) as u64;
            let view = std::num::NonZeroU64::new(bytes)
                .and_then(|bytes| context.queue.write_buffer_with(buffer, offset, bytes));
            // Without one there is nothing to write, or an error that the scope around all this has seen.
            let Some(mut view) = view else { return };
            let mut halves = [f16::ZERO; 4096];
            let mut at = 0;
            for values in values.chunks(halves.len()) {
                let count = values.len().next_multiple_of(2);
                halves[count - 1] = f16::ZERO;
                halves[..values.len()].convert_from_f32_slice(values);
                view.slice(at..at + 2 * count).copy_from_slice(bytemuck::cast_slice(&halves[..count]));
                at += 2 * count;
            }
        }
    }
}

/// The values of a buffer's content.
pub fn decode(bytes: &[u8], count: usize, format: ValueType) -> Vec<f32> {
    let mut values = vec![0.0; count];
    match format {
        ValueType::F32 => {
            let whole: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
            whole.copy_from_slice(&bytes[..count * 4]);
        }
        ValueType::F16 => {
            let halves: Vec<f16> = bytemuck::pod_collect_to_vec(&bytes[..count * 2]);
            halves.convert_to_f32_slice(&mut values);
        }
    }
    values
}
