//! Windows that add up on the device.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use super::call::{word, words};
use super::context::{Context, Memory};
use super::shader::{Permutation, Shader, ValueType};
use super::submit::{Bound, Dispatch, Encoder, map};
use super::weights::{decode, upload, write};
use crate::control::Control;
use crate::engine::{Canvas, CanvasPlace, CanvasShape};
use crate::{Error, Result};

/// Values that are handed out at a time.
const MOST_VALUES: usize = 1 << 20;

/// Windows that a dispatch adds; the shader's `MOST_PLACES` is the same.
const MOST_PLACES: usize = 16;

pub(crate) struct GpuCanvas {
    context: Arc<Context>,
    shape: CanvasShape,
    sums: Memory,
    bell: Memory,
    /// Finished rows on the device and on their way to the host.
    rows: Memory,
    staging: Memory,
    rows_at_a_time: usize,
}

impl GpuCanvas {
    pub(crate) fn new(context: Arc<Context>, shape: CanvasShape) -> Result<Self> {
        let size = shape.values()? as u64 * 4;
        let most = context.limits.max_storage_buffer_binding_size.min(context.limits.max_buffer_size);
        if size > most {
            return Err(Error::OutOfMemory(format!("a band of {} MiB on the device", size >> 20)));
        }
        let plain = |shader| Permutation::plain(shader, ValueType::F32);
        context.pipelines.compile(&context.device, &[plain(Shader::Blend), plain(Shader::BlendRows)])?;
        let row = shape.width * shape.channels;
        let rows_at_a_time = (MOST_VALUES / row.max(1)).clamp(1, shape.held.max(1));
        let rows_size = (4 * row * rows_at_a_time) as u64;
        use wgpu::BufferUsages as Usage;
        let sums = context.buffer("blended windows", size, Usage::STORAGE | Usage::COPY_DST)?;
        let bell = upload(&context, "weights of a window", &shape.bell, ValueType::F32)?;
        let rows = context.buffer("blended rows", rows_size, Usage::STORAGE | Usage::COPY_SRC)?;
        let staging = context.buffer("blended rows", rows_size, Usage::COPY_DST | Usage::MAP_READ)?;
        Ok(Self { context, shape, sums, bell, rows, staging, rows_at_a_time })
    }

    pub(crate) fn is_on(&self, context: &Context) -> bool {
        self.context.id == context.id
    }

    /// Dispatches that add the windows `[samples][window][window][channels]` in `values`.
    pub(crate) fn blend(
        &self,
        values: (&Memory, Range<usize>),
        places: &[CanvasPlace],
    ) -> Result<Vec<Dispatch>> {
        let CanvasShape { height, width, channels, held, ref bell, least_weight } = self.shape;
        let window = bell.len();
        let (memory, range) = values;
        if range.len() != 4 * places.len() * window * window * channels {
            return Err(Error::invalid("windows", format!("{} places for a batch", places.len())));
        }
        let corner = |at: isize| i32::try_from(at).map_err(|_| Error::invalid("window", "is too far away"));
        let mut dispatches = Vec::with_capacity(places.len().div_ceil(MOST_PLACES));
        for (index, places) in places.chunks(MOST_PLACES).enumerate() {
            let rows = rectangle(places.iter().map(|place| place.top), window, height);
            let columns = rectangle(places.iter().map(|place| place.left), window, width);
            let pixels = rows.len() * columns.len();
            if pixels == 0 {
                continue;
            }
            let mut params = words([width, held, channels, window])?;
            params.push(least_weight.to_bits());
            params.extend(words([rows.start, columns.start, rows.len(), columns.len()])?);
            params.extend(words([places.len(), index * MOST_PLACES, 0])?);
            for place in places {
                let corners = [corner(place.top)?, corner(place.left)?];
                params.extend(corners.map(i32::cast_unsigned));
                params.extend([0, 0]);
            }
            params.resize(12 + 4 * MOST_PLACES, 0);
            let params = self.params(params)?;
            let work = (pixels * places.len() + 4 * places.len() * window * window * channels) as f64;
            let permutation = Permutation::plain(Shader::Blend, ValueType::F32);
            let groups = word(pixels.div_ceil(256))?;
            dispatches.push(Dispatch::new(
                &self.context,
                permutation,
                groups,
                work,
                |binding, _| match binding {
                    0 => Bound::whole(&params),
                    1 => Bound::part(memory, range.start, range.len()),
                    2 => Bound::whole(&self.bell),
                    _ => Bound::whole(&self.sums),
                },
            )?);
        }
        Ok(dispatches)
    }

    fn params(&self, mut words: Vec<u32>) -> Result<Memory> {
        use wgpu::BufferUsages as Usage;
        words.resize(words.len().next_multiple_of(4), 0);
        let size = 4 * words.len() as u64;
        let params = self.context.buffer("parameters", size, Usage::UNIFORM | Usage::COPY_DST)?;
        self.context.queue.write_buffer(&params.buffer, 0, bytemuck::cast_slice(&words));
        Ok(params)
    }

    /// The weighted means of some rows; they are empty afterwards.
    fn take_rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let context = &self.context;
        let CanvasShape { width, channels, held, .. } = self.shape;
        let params = self.params(words([width, held, channels, rows.start, rows.len()])?)?;
        let pixels = rows.len() * width;
        let permutation = Permutation::plain(Shader::BlendRows, ValueType::F32);
        let groups = word(pixels.div_ceil(256))?;
        let work = 4.0 * (pixels * channels) as f64;
        let dispatch = Dispatch::new(context, permutation, groups, work, |binding, _| match binding {
            0 => Bound::whole(&params),
            1 => Bound::whole(&self.sums),
            _ => Bound::whole(&self.rows),
        })?;
        let control = Control::none();
        let mut encoder = Encoder::new(context, &control, None);
        encoder.operation([&dispatch].into_iter(), None)?;
        let count = pixels * channels;
        encoder.submit(|commands| {
            let (from, to) = (&self.rows.buffer, &self.staging.buffer);
            commands.copy_buffer_to_buffer(from, 0, to, 0, Some(4 * count as u64));
        })?;
        encoder.wait()?;
        let bytes = map(context, &self.staging.buffer)?;
        let values = decode(&bytes, count, ValueType::F32);
        drop(bytes);
        self.staging.buffer.unmap();
        Ok(values)
    }
}

/// What windows that begin at `starts` cover of a side of `size` pixels, with what lies between them.
fn rectangle(starts: impl Iterator<Item = isize> + Clone, window: usize, size: usize) -> Range<usize> {
    let first = starts.clone().min().unwrap_or(0).max(0).unsigned_abs();
    let end = starts.max().unwrap_or(0).saturating_add_unsigned(window).max(0).unsigned_abs();
    first.min(size)..end.min(size).max(first.min(size))
}

impl Canvas for GpuCanvas {
    fn add(&mut self, values: &[f32], place: CanvasPlace) -> Result<()> {
        let context = self.context.clone();
        context.checked(|| {
            use wgpu::BufferUsages as Usage;
            let size = 4 * values.len() as u64;
            let window = context.buffer("a window", size, Usage::STORAGE | Usage::COPY_DST)?;
            write(&context, &window.buffer, 0, values, ValueType::F32);
            let dispatches = self.blend((&window, 0..4 * values.len()), &[place])?;
            let control = Control::none();
            let mut encoder = Encoder::new(&context, &control, None);
            encoder.operation(dispatches.iter(), None)?;
            encoder.submit(|_| ())?;
            encoder.wait()
        })
    }

    fn take(&mut self, rows: Range<usize>, read: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let context = self.context.clone();
        for first in rows.clone().step_by(self.rows_at_a_time) {
            let rows = first..rows.end.min(first + self.rows_at_a_time);
            // Whatever the caller does with the rows is none of the device's business.
            let values = context.checked(|| self.take_rows(rows))?;
            read(&values)?;
        }
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
