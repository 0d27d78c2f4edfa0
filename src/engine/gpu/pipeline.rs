//! Compiled shaders.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::shader::{BindingKind, Cooperative, Permutation, bindings};
use crate::{Error, Result};

/// Bytes of `Split`, which every shader has.
const IMMEDIATE_SIZE: u32 = 8;

/// Threads that compile side by side.
const COMPILERS: usize = 8;

/// Leave to use what wgpu calls experimental.
pub(super) fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: only cooperative matrices are used, on adapters that report the very sizes, and as the tests translate them.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

pub struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub bindings: Vec<(u32, BindingKind)>,
}

/// The pipelines of one device, each compiled once.
pub struct Pipelines {
    compiled: Mutex<HashMap<Permutation, Arc<Pipeline>>>,
    cache: Option<wgpu::PipelineCache>,
    file: Option<PathBuf>,
}

impl Pipelines {
    /// With a cache in `folder`, where the backend can keep one.
    pub fn new(device: &wgpu::Device, info: &wgpu::AdapterInfo, folder: Option<PathBuf>) -> Self {
        let key = wgpu::util::pipeline_cache_key(info);
        let file = folder
            .filter(|_| device.features().contains(wgpu::Features::PIPELINE_CACHE))
            .and_then(|folder| Some(folder.join(format!("{}.bin", key?))));
        let cache = file.as_ref().map(|file| {
            let data = std::fs::read(file).ok();
            let descriptor =
                wgpu::PipelineCacheDescriptor { label: Some("mdm"), data: data.as_deref(), fallback: true };
            // SAFETY: the file was written by `save` from the cache's own data, under a name that stands for this adapter;
            // wgpu checks its header, and takes an empty cache where it does not fit.
            unsafe { device.create_pipeline_cache(&descriptor) }
        });
        Self { compiled: Mutex::default(), cache, file }
    }

    /// Compiles those of `wanted` that are not there yet, side by side.
    pub fn compile(&self, device: &wgpu::Device, wanted: &[Permutation]) -> Result<()> {
        let mut missing: Vec<Permutation> = {
            let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.iter().filter(|permutation| !compiled.contains_key(permutation)).copied().collect()
        };
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let next = Mutex::new(missing.iter());
        let work = || {
            let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(&permutation) = take() {
                let pipeline = Arc::new(self.compile_one(device, permutation)?);
                self.compiled.lock().unwrap_or_else(PoisonError::into_inner).insert(permutation, pipeline);
            }
            Ok(())
        };
        let threads =
            std::thread::available_parallelism().map_or(1, usize::from).min(COMPILERS).min(missing.len());
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| super::guard(work))).collect();
            let mut result = work();
            for other in others {
                let other =
                    other.join().unwrap_or_else(|_| Err(Error::Device("a compiling thread died".into())));
                result = result.and(other);
            }
            result
        })?;
        self.save();
        Ok(())
    }

    /// A compiled pipeline.
    pub fn get(&self, permutation: Permutation) -> Result<Arc<Pipeline>> {
        let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || Error::Device(format!("shader {} is not compiled", permutation.label()));
        compiled.get(&permutation).cloned().ok_or_else(missing)
    }

    fn compile_one(&self, device: &wgpu::Device, permutation: Permutation) -> Result<Pipeline> {
        // Error scopes belong to the thread.
        let scopes = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation]
            .map(|filter| device.push_error_scope(filter));
        let label = permutation.label();
        let source = permutation.source();
        let bindings = bindings(&source);
        let moves_bits = permutation.cooperative.is_some_and(Cooperative::moves_bits);
        let module = if moves_bits {
            let words = super::spirv::module(&permutation, &source, &bindings)?;
            // SAFETY: this is one of the library's own shaders, translated by naga as wgpu would; the tests validate all of them.
            unsafe {
                device.create_shader_module_passthrough(wgpu::ShaderModuleDescriptorPassthrough {
                    label: Some(&label),
                    entry_points: Cow::Borrowed(&[wgpu::PassthroughShaderEntryPoint {
                        name: Cow::Borrowed("main"),
                        workgroup_size: (0, 0, 0),
                    }]),
                    spirv: Some(Cow::Owned(words)),
                    ..Default::default()
                })
            }
        } else {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(&label),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            };
            let checks = if cfg!(debug_assertions) {
                wgpu::ShaderRuntimeChecks::checked()
            } else {
                wgpu::ShaderRuntimeChecks::unchecked()
            };
            // SAFETY: these are the library's own shaders, which check the bounds of what they are given, and which the tests
            // run with the checks on. Loops all end: their bounds are the plan's sizes.
            unsafe { device.create_shader_module_trusted(descriptor, checks) }
        };
        let entries: Vec<wgpu::BindGroupLayoutEntry> = bindings
            .iter()
            .map(|&(binding, kind)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match kind {
                        BindingKind::Uniform => wgpu::BufferBindingType::Uniform,
                        BindingKind::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        BindingKind::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&label),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: IMMEDIATE_SIZE,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every shader writes what it reads.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.cache.as_ref(),
        });
        for scope in scopes.into_iter().rev() {
            if let Some(error) = pollster::block_on(scope.pop()) {
                return Err(Error::Device(format!("shader {label} does not compile: {error}")));
            }
        }
        Ok(Pipeline { pipeline, layout, bindings })
    }

    /// What was kept by `note_known` for this adapter.
    pub fn known(&self) -> Option<String> {
        std::fs::read_to_string(self.file.as_ref()?.with_extension("known")).ok()
    }

    /// Keeps what was found out about the adapter. That it could not be written is no error: it is found out again.
    pub fn note_known(&self, text: &str) {
        if let Some(file) = &self.file {
            let _ = write(&file.with_extension("known"), text.as_bytes());
        }
    }

    /// Keeps what was compiled for the next start. That it could not be written is no error: the next start is slower.
    fn save(&self) {
        if let (Some(file), Some(data)) =
            (&self.file, self.cache.as_ref().and_then(wgpu::PipelineCache::get_data))
        {
            let _ = write(file, &data);
        }
    }
}

fn write(file: &Path, data: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut temporary, data)?;
    temporary.persist(file)?;
    Ok(())
}
