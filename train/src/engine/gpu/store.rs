//! Parameters, and what belongs to each of them, in the device's memory.
//!
//! They lie in pages: a device binds and copies only so much at a time.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use mdm::Result;
use mdm::engine::gpu::call::{ALIGNMENT, Binding};
use mdm::engine::gpu::context::{Context, Memory};
use mdm::engine::gpu::shader::ValueType;
use mdm::engine::gpu::submit::map;
use mdm::engine::gpu::weights::{decode, write};
use mdm::plan::ParamId;
use wgpu::BufferUsages as Usage;

use crate::engine::parameters::Places;

/// Bytes of a page, unless a single parameter has more.
const PAGE: usize = 128 << 20;

/// Where parameters lie: each in a page, at a place that can be bound.
pub(super) struct Layout {
    /// f32 of each page.
    pub(super) pages: Vec<usize>,
    /// Page and place of each parameter, in units of f32.
    places: Vec<(usize, Range<usize>)>,
}

impl Layout {
    pub(super) fn new(context: &Context, parameters: &Places) -> Self {
        let limits = &context.limits;
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(PAGE as u64);
        Self::with_pages(parameters, most as usize / size_of::<f32>())
    }

    /// With pages of `most` f32.
    fn with_pages(parameters: &Places, most: usize) -> Self {
        let unit = ALIGNMENT / size_of::<f32>();
        let (mut pages, mut places) = (vec![0], Vec::new());
        for id in 0..parameters.params().len() {
            let len = parameters.range(id).len();
            let mut page = pages.len() - 1;
            if pages[page] > 0 && pages[page] + len > most {
                pages.push(0);
                page += 1;
            }
            places.push((page, pages[page]..pages[page] + len));
            pages[page] = (pages[page] + len).next_multiple_of(unit);
        }
        Self { pages, places }
    }
}

/// A value for each of all parameters.
pub(super) struct Pages(Vec<Arc<Memory>>);

impl Pages {
    /// Zeros.
    pub(super) fn new(context: &Context, label: &str, layout: &Layout) -> Result<Self> {
        let usage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
        let page = |&len: &usize| context.buffer(label, 4 * len as u64, usage).map(Arc::new);
        layout.pages.iter().map(page).collect::<Result<_>>().map(Self)
    }

    /// That of one parameter.
    pub(super) fn of(&self, layout: &Layout, id: ParamId) -> Binding {
        let (page, place) = &layout.places[id];
        Binding::Memory(self.0[*page].clone(), 4 * place.start..4 * place.end)
    }

    /// All pages.
    pub(super) fn memory(&self) -> &[Arc<Memory>] {
        &self.0
    }

    /// Forgets everything; `commands` does so when it is submitted.
    pub(super) fn clear(&self, commands: &mut wgpu::CommandEncoder) {
        for page in &self.0 {
            commands.clear_buffer(&page.buffer, 0, None);
        }
    }

    /// Writes the values of all parameters, `flat` in their order.
    pub(super) fn upload(
        &self,
        context: &Context,
        layout: &Layout,
        parameters: &Places,
        flat: &[f32],
    ) -> Result<()> {
        for (index, page) in self.0.iter().enumerate() {
            let mut values = vec![0.0; layout.pages[index]];
            for (id, (_, place)) in layout.places.iter().enumerate().filter(|(_, (page, _))| *page == index) {
                values[place.clone()].copy_from_slice(&flat[parameters.range(id)]);
            }
            write(context, &page.buffer, 0, &values, ValueType::F32);
            // One page at a time: a copy of each is under way until it is submitted.
            let submission = context.queue.submit([]);
            context.wait(Some(submission), Instant::now(), 0.0)?;
        }
        Ok(())
    }

    /// Reads the values of all parameters to `flat`.
    pub(super) fn download(
        &self,
        context: &Context,
        layout: &Layout,
        parameters: &Places,
        flat: &mut [f32],
    ) -> Result<()> {
        for (index, page) in self.0.iter().enumerate() {
            let values = read(context, page, 0, layout.pages[index], ValueType::F32)?;
            for (id, (_, place)) in layout.places.iter().enumerate().filter(|(_, (page, _))| *page == index) {
                flat[parameters.range(id)].copy_from_slice(&values[place.clone()]);
            }
        }
        Ok(())
    }
}

/// `count` values in memory, `start` bytes from its beginning, once everything that was submitted is done.
pub(crate) fn read(
    context: &Context,
    memory: &Memory,
    start: usize,
    count: usize,
    format: ValueType,
) -> Result<Vec<f32>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let size = (count * format.size()).next_multiple_of(4) as u64;
    let staging = context.buffer("values on their way", size, Usage::COPY_DST | Usage::MAP_READ)?;
    let mut commands = context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    commands.copy_buffer_to_buffer(&memory.buffer, start as u64, &staging.buffer, 0, Some(size));
    context.queue.submit([commands.finish()]);
    let mapped = map(context, &staging.buffer)?;
    let values = decode(&mapped, count, format);
    drop(mapped);
    staging.buffer.unmap();
    Ok(values)
}

#[cfg(test)]
mod tests {
    use mdm::plan::Param;

    use super::*;

    #[test]
    fn parameters_share_pages_without_overlap() {
        let lens = [100, 1, 64, 3000, 5, 200];
        let params: Vec<Param> =
            lens.iter().map(|&len| Param { name: format!("of {len}"), shape: vec![len] }).collect();
        let layout = Layout::with_pages(&Places::new(&params), 400);
        let mut ends = vec![0; layout.pages.len()];
        for ((page, place), len) in layout.places.iter().zip(lens) {
            assert_eq!(place.len(), len);
            assert!(place.start.is_multiple_of(64) && place.start >= ends[*page]);
            ends[*page] = place.end;
        }
        assert_eq!(layout.pages, [256, 3008, 320]);
    }
}
