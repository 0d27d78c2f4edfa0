//! Shaders as Vulkan, Metal and DX12 get them, without any of them: naga translates as wgpu does.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use mdm::engine::gpu::shader::{BindingKind, Cooperative, Permutation, Tile, bindings};
use mdm::engine::gpu::spirv;
use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, FunctionInfo, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, Block, Expression, Function, Handle, Module, ResourceBinding, ShaderStage, Statement,
    StorageAccess, TypeInner,
};

const ENTRY: &str = "main";

/// What a shader asks of a device beyond what every device has.
struct Needs {
    half: bool,
    subgroups: bool,
    cooperative_matrices: bool,
}

impl Needs {
    fn of(source: &str) -> Self {
        let enables = |extension| source.lines().any(|line| line.trim() == format!("enable {extension};"));
        Self {
            half: enables("f16"),
            // There is no extension to enable for them.
            subgroups: source.contains("subgroup"),
            cooperative_matrices: enables("wgpu_cooperative_matrix"),
        }
    }

    /// What wgpu allows a shader to use on a device with just these features.
    fn capabilities(&self) -> Capabilities {
        // `pack2x16float` and its inverse; wgpu counts on every one of these backends for them.
        let mut capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        capabilities.set(Capabilities::SHADER_FLOAT16, self.half);
        capabilities.set(Capabilities::SUBGROUP, self.subgroups);
        capabilities.set(Capabilities::COOPERATIVE_MATRIX, self.cooperative_matrices);
        capabilities
    }

    /// What wgpu allows a SPIR-V module to use on such a device.
    fn spirv_capabilities(&self) -> naga::FastHashSet<spv::Capability> {
        use spv::Capability as C;
        let mut capabilities = vec![C::Shader, C::Matrix];
        if self.half {
            capabilities.push(C::Float16);
        }
        if self.subgroups {
            capabilities.extend([C::GroupNonUniform, C::GroupNonUniformVote, C::GroupNonUniformArithmetic]);
            capabilities.extend([C::GroupNonUniformBallot, C::GroupNonUniformShuffle]);
            capabilities.extend([C::GroupNonUniformShuffleRelative, C::GroupNonUniformQuad]);
        }
        if self.cooperative_matrices {
            capabilities.extend([C::CooperativeMatrixKHR, C::VulkanMemoryModel]);
        }
        capabilities.into_iter().collect()
    }
}

/// A language that a backend takes, in the oldest and the newest version that wgpu would give it.
#[derive(Clone, Copy, Debug)]
enum Target {
    Spirv {
        version: (u8, u8),
        environment: &'static str,
    },
    Msl {
        version: (u8, u8),
    },
    /// 5.1 is what FXC compiles, the others need DXC.
    Hlsl(hlsl::ShaderModel),
}

impl Target {
    const ALL: [Self; 7] = [
        Self::Spirv { version: (1, 3), environment: "vulkan1.1" },
        Self::Spirv { version: (1, 6), environment: "vulkan1.3" },
        Self::Msl { version: (2, 4) },
        Self::Msl { version: (4, 0) },
        Self::Hlsl(hlsl::ShaderModel::V5_1),
        Self::Hlsl(hlsl::ShaderModel::V6_0),
        Self::Hlsl(hlsl::ShaderModel::V6_2),
    ];

    fn name(self) -> String {
        match self {
            Self::Spirv { version: (major, minor), .. } => format!("SPIR-V {major}.{minor}"),
            Self::Msl { version: (major, minor) } => format!("MSL {major}.{minor}"),
            Self::Hlsl(model) => format!("HLSL {}", model.to_str()),
        }
    }

    /// Whether the engine would ever give it this shader.
    fn takes(self, source: &str, needs: &Needs) -> bool {
        match self {
            Self::Spirv { .. } => true,
            // naga writes other sizes of cooperative matrices too, as types that Metal does not have.
            Self::Msl { .. } => source.split("coop_mat").skip(1).all(|size| size.starts_with("8x8")),
            Self::Hlsl(model) => {
                !needs.cooperative_matrices
                    && (!needs.half || model >= hlsl::ShaderModel::V6_2)
                    && (!needs.subgroups || model >= hlsl::ShaderModel::V6_0)
            }
        }
    }

    fn supported(self) -> Capabilities {
        match self {
            Self::Spirv { .. } => spv::supported_capabilities(),
            Self::Msl { .. } => msl::supported_capabilities(),
            Self::Hlsl(_) => hlsl::supported_capabilities(),
        }
    }

    /// Translates with the options that wgpu's backends choose; `checked` like `ShaderRuntimeChecks`.
    fn translate(self, source: &str, needs: &Needs, checked: bool) -> Result<Translation, String> {
        let module = parse(source)?;
        let info = validate(&module, source, needs.capabilities() & self.supported())?;
        let stage = Some((ShaderStage::Compute, ENTRY));
        let (module, info) = process_overrides(&module, &info, stage, &Default::default())
            .map_err(|error| error.to_string())?;
        match self {
            Self::Spirv { version, environment } => {
                let options = spirv_options(version, source, needs, checked);
                let pipeline = spv::PipelineOptions {
                    shader_stage: ShaderStage::Compute,
                    entry_point: ENTRY.to_owned(),
                };
                let words = spv::write_vec(&module, &info, &options, Some(&pipeline))
                    .map_err(|error| error.to_string())?;
                Ok(Translation::Spirv { words, environment })
            }
            Self::Msl { version } => {
                let options = msl_options(version, source, checked);
                let pipeline = msl::PipelineOptions {
                    entry_point: stage.map(|(stage, name)| (stage, name.to_owned())),
                    vertex_pulling_transform: true,
                    ..Default::default()
                };
                let (text, reflection) = msl::write_string(&module, &info, &options, &pipeline)
                    .map_err(|error| error.to_string())?;
                written(&text, reflection.entry_point_names)?;
                Ok(Translation::Msl)
            }
            Self::Hlsl(model) => {
                let options = hlsl_options(model, source, checked);
                let pipeline = hlsl::PipelineOptions {
                    entry_point: stage.map(|(stage, name)| (stage, name.to_owned())),
                };
                let mut text = String::new();
                let reflection = hlsl::Writer::new(&mut text, &options, &pipeline)
                    .write(&module, &info, None)
                    .map_err(|error| error.to_string())?;
                let entry = written(&text, reflection.entry_point_names)?;
                Ok(Translation::Hlsl { text, entry, model })
            }
        }
    }
}

enum Translation {
    Spirv { words: Vec<u32>, environment: &'static str },
    Msl,
    Hlsl { text: String, entry: String, model: hlsl::ShaderModel },
}

/// The name of a text's only entry point.
fn written<E: std::fmt::Display>(text: &str, entries: Vec<Result<String, E>>) -> Result<String, String> {
    let [entry] = <[_; 1]>::try_from(entries).map_err(|entries| format!("{} entry points", entries.len()))?;
    let entry = entry.map_err(|error| error.to_string())?;
    if !text.contains(&format!("void {entry}(")) {
        return Err(format!("its entry point {entry} is not there"));
    }
    Ok(entry)
}

fn parse(source: &str) -> Result<Module, String> {
    naga::front::wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))
}

fn validate(module: &Module, source: &str, capabilities: Capabilities) -> Result<ModuleInfo, String> {
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(module)
        .map_err(|error| error.emit_to_string(source))
}

fn resource(binding: u32) -> ResourceBinding {
    ResourceBinding { group: 0, binding }
}

fn spirv_options(version: (u8, u8), source: &str, needs: &Needs, checked: bool) -> spv::Options<'static> {
    // Vulkan gets the bindings of a group numbered without gaps.
    let binding_map = bindings(source)
        .into_iter()
        .zip(0..)
        .map(|((binding, _), place)| {
            let info = spv::BindingInfo { descriptor_set: 0, binding: place, binding_array_size: None };
            (resource(binding), info)
        })
        .collect();
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    spv::Options {
        lang_version: version,
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        fake_missing_bindings: false,
        binding_map,
        capabilities: Some(needs.spirv_capabilities()),
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        ..Default::default()
    }
}

fn msl_options(version: (u8, u8), source: &str, checked: bool) -> msl::Options {
    let declared = bindings(source);
    // Immediates come first, then the bindings, then the sizes of the storage buffers.
    let resources = declared
        .iter()
        .zip(1..)
        .map(|(&(binding, kind), slot)| {
            let mutable = kind == BindingKind::ReadWrite;
            (resource(binding), msl::BindTarget { buffer: Some(slot), mutable, ..Default::default() })
        })
        .collect();
    let sizes = u8::try_from(1 + declared.len()).unwrap();
    let resources =
        msl::EntryPointResources { resources, immediates_buffer: Some(0), sizes_buffer: Some(sizes) };
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    msl::Options {
        lang_version: version,
        per_entry_point_map: [(ENTRY.to_owned(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        ..Default::default()
    }
}

fn hlsl_options(model: hlsl::ShaderModel, source: &str, checked: bool) -> hlsl::Options {
    // Immediates are root constants in a space of their own; each kind of buffer counts its registers.
    let (mut uniforms, mut read, mut written) = (1..2, 0..9, 0..9);
    let binding_map = bindings(source)
        .into_iter()
        .map(|(binding, kind)| {
            let (space, register) = match kind {
                BindingKind::Uniform => (1, uniforms.next()),
                BindingKind::Read => (0, read.next()),
                BindingKind::ReadWrite => (0, written.next()),
            };
            let register = register.unwrap();
            (
                resource(binding),
                hlsl::BindTarget { space, register, restrict_indexing: true, ..Default::default() },
            )
        })
        .collect();
    hlsl::Options {
        shader_model: model,
        binding_map,
        fake_missing_bindings: false,
        immediates_target: Some(hlsl::BindTarget::default()),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: checked,
        force_loop_bounding: checked,
        ..Default::default()
    }
}

/// Validates a module; gives a reason where that was not possible.
fn spirv_val(words: &[u32], environment: &str, needs: &Needs) -> Result<Option<&'static str>, String> {
    let child = Command::new("spirv-val")
        .args(["--target-env", environment, "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some("there is no spirv-val")),
        other => other.map_err(|error| format!("spirv-val: {error}"))?,
    };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    // It may have refused the module before it was read to the end.
    let _ = child.stdin.take().unwrap().write_all(&bytes);
    let output = child.wait_with_output().map_err(|error| format!("spirv-val: {error}"))?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(None);
    }
    // Releases before 2023.4 have no name for the capability.
    let unknown = format!("Invalid capability operand: {}", spv::Capability::CooperativeMatrixKHR as u32);
    if needs.cooperative_matrices && said.contains(&unknown) {
        return Ok(Some("this spirv-val does not know cooperative matrices"));
    }
    // naga gives strides to arrays in workgroup memory too, which newer releases refuse. wgpu keeps that message of Vulkan's
    // validation to itself as well.
    if said.contains("VUID-StandaloneSpirv-None-10684") {
        return Ok(Some("this spirv-val refuses strides of arrays in workgroup memory"));
    }
    Err(format!("spirv-val for {environment}: {said}"))
}

/// Compiles a shader as wgpu does with DXC; gives a reason where that was not possible.
fn dxc(
    text: &str,
    entry: &str,
    model: hlsl::ShaderModel,
    needs: &Needs,
) -> Result<Option<&'static str>, String> {
    if model < hlsl::ShaderModel::V6_0 {
        return Ok(None);
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let source = folder.path().join("shader.hlsl");
    std::fs::write(&source, text).map_err(|error| error.to_string())?;
    let mut command = Command::new("dxc");
    command.args([
        "-E",
        entry,
        "-T",
        &format!("cs_{}", model.to_str()),
        "-HV",
        "2018",
        "-no-warnings",
        "-Ges",
    ]);
    if needs.half {
        command.arg("-enable-16bit-types");
    }
    match command.arg("-Fo").arg(folder.path().join("shader.dxil")).arg(&source).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some("there is no dxc")),
        Err(error) => Err(format!("dxc: {error}")),
        Ok(output) if output.status.success() => Ok(None),
        Ok(output) => Err(format!("dxc: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Fails with everything that is in `failures`, not just with the first.
fn report(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// naga panics at some of what it cannot translate; that is a failure of one permutation like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!(
            "panics: {}",
            reason.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
        ))
    })
}

/// Every permutation becomes SPIR-V, MSL and HLSL.
pub(crate) fn every_permutation_translates_for_every_backend(permutations: &[Permutation]) {
    let (mut failures, mut skipped) = (Vec::new(), BTreeMap::new());
    for permutation in permutations {
        let source = permutation.source();
        let needs = Needs::of(&source);
        let targets = Target::ALL.into_iter().filter(|target| target.takes(&source, &needs));
        for (target, checked) in targets.flat_map(|target| [(target, true), (target, false)]) {
            let checks = if checked { "with" } else { "without" };
            let what = format!("{} as {} {checks} checks", permutation.label(), target.name());
            let translate = || match target {
                Target::Spirv { environment, .. }
                    if permutation.cooperative.is_some_and(Cooperative::moves_bits) =>
                {
                    let words = spirv::module(permutation, &source, &bindings(&source))
                        .map_err(|error| error.to_string())?;
                    Ok(Translation::Spirv { words, environment })
                }
                _ => target.translate(&source, &needs, checked),
            };
            let result = guarded(|| {
                let reason = match translate()? {
                    Translation::Msl => None,
                    Translation::Hlsl { text, entry, model } => dxc(&text, &entry, model, &needs)?,
                    Translation::Spirv { words, environment } => spirv_val(&words, environment, &needs)?,
                };
                if let Some(reason) = reason {
                    *skipped.entry(reason).or_insert(0) += 1;
                }
                Ok(())
            });
            failures.extend(result.err().map(|error| format!("{what}: {error}")));
        }
    }
    for (reason, count) in skipped {
        eprintln!("skipped: {count} translations are not validated: {reason}");
    }
    report(&failures);
}

/// Whether a pointer is to a component, or to a column, that is only known when the shader runs, of a variable in registers.
fn is_unaddressable(
    module: &Module,
    function: &Function,
    info: &FunctionInfo,
    pointer: Handle<Expression>,
) -> bool {
    match function.expressions[pointer] {
        Expression::Access { base, .. } => {
            let (inner, space) = match *info[base].ty.inner_with(&module.types) {
                TypeInner::Pointer { base, space } => (&module.types[base].inner, space),
                TypeInner::ValuePointer { size: Some(_), space, .. } => return in_registers(space),
                _ => return false,
            };
            let is_register = matches!(inner, TypeInner::Vector { .. } | TypeInner::Matrix { .. });
            (is_register && in_registers(space)) || is_unaddressable(module, function, info, base)
        }
        Expression::AccessIndex { base, .. } => is_unaddressable(module, function, info, base),
        _ => false,
    }
}

fn in_registers(space: AddressSpace) -> bool {
    matches!(space, AddressSpace::Function | AddressSpace::Private)
}

/// Where values are written to, in a block and all that is in it.
fn stores(block: &Block) -> Vec<Handle<Expression>> {
    let mut found = Vec::new();
    for statement in block {
        match statement {
            Statement::Store { pointer, .. } => found.push(*pointer),
            Statement::Block(block) => found.extend(stores(block)),
            Statement::If { accept, reject, .. } => {
                found.extend([accept, reject].into_iter().flat_map(stores));
            }
            Statement::Switch { cases, .. } => {
                found.extend(cases.iter().flat_map(|case| stores(&case.body)));
            }
            Statement::Loop { body, continuing, .. } => {
                found.extend([body, continuing].into_iter().flat_map(stores));
            }
            _ => {}
        }
    }
    found
}

/// What naga translates and FXC refuses: `v[i] = x` for a vector `v` in registers and an `i` that is not constant
/// (error X3500, unless the loop around it happens to be one that it unrolls).
pub(crate) fn vectors_in_registers_are_written_as_fxc_can(permutations: &[Permutation]) {
    let fxc = Target::Hlsl(hlsl::ShaderModel::V5_1);
    let mut failures = Vec::new();
    for permutation in permutations {
        let source = permutation.source();
        let needs = Needs::of(&source);
        if !fxc.takes(&source, &needs) {
            continue;
        }
        let module = parse(&source).unwrap();
        let info = validate(&module, &source, needs.capabilities()).unwrap();
        let functions = module.functions.iter().map(|(handle, function)| (function, &info[handle]));
        let entries = module.entry_points.iter().enumerate();
        let entries = entries.map(|(index, entry)| (&entry.function, info.get_entry_point(index)));
        for (function, info) in functions.chain(entries) {
            for pointer in stores(&function.body) {
                if is_unaddressable(&module, function, info, pointer) {
                    let span = function.expressions.get_span(pointer);
                    let text = span.to_range().map_or("", |range| &source[range]);
                    failures.push(format!("{}: {text} is written", permutation.label()));
                }
            }
        }
    }
    report(&failures);
}

/// The engine runs on devices that offer just WebGPU's limits, and relies on these.
pub(crate) fn every_permutation_keeps_the_limits(permutations: &[Permutation]) {
    let mut failures = Vec::new();
    for permutation in permutations {
        let source = permutation.source();
        let label = permutation.label();
        let module = parse(&source).unwrap();
        let info = validate(&module, &source, Needs::of(&source).capabilities()).unwrap();
        let [entry] = module.entry_points.as_slice() else {
            failures.push(format!("{label}: it has {} entry points", module.entry_points.len()));
            continue;
        };
        if entry.name != ENTRY {
            failures.push(format!("{label}: its entry point is {}, not {ENTRY}", entry.name));
        }
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let (mut buffers, mut workgroup, mut immediates) = (0, 0, 0);
        for (handle, global) in module.global_variables.iter() {
            if info.get_entry_point(0)[handle].is_empty() {
                continue;
            }
            let size = layouter[global.ty].size;
            match global.space {
                AddressSpace::Storage { .. } => buffers += 1,
                AddressSpace::WorkGroup => workgroup += size.next_multiple_of(16),
                AddressSpace::Immediate => immediates += size,
                _ => {}
            }
        }
        // Large tiles and matrix units are used where the adapter has as much as this.
        let without = if permutation.tile == Tile::SMALL { 16_384 } else { 32_768 };
        let workgroup_limit = permutation.cooperative.map_or(without, |unit| unit.storage);
        // So are workgroups of more threads.
        let threads_limit =
            permutation.cooperative.map_or(256, |unit| permutation.fragments.threads(unit).max(256));
        let limits = [
            ("storage buffers", buffers, 8),
            ("bytes of workgroup memory", workgroup, workgroup_limit),
            ("bytes of immediates", immediates, 8),
            ("threads", entry.workgroup_size.iter().product(), threads_limit),
            ("threads in z", entry.workgroup_size[2], 64),
        ];
        let exceeded = limits.iter().filter(|(_, used, limit)| used > limit);
        failures.extend(exceeded.map(|(what, used, limit)| format!("{label}: {used} {what}, not {limit}")));
    }
    report(&failures);
}

/// The engine reads a shader's declarations without a parser.
pub(crate) fn declarations_are_read_as_naga_reads_them(permutations: &[Permutation]) {
    for permutation in permutations {
        let source = permutation.source();
        let label = permutation.label();
        let module = parse(&source).unwrap();
        let mut expected: Vec<(u32, BindingKind)> = module
            .global_variables
            .iter()
            .filter_map(|(_, global)| {
                let binding = global.binding?;
                assert_eq!(binding.group, 0, "{label}: {binding:?}");
                let kind = match global.space {
                    AddressSpace::Uniform => BindingKind::Uniform,
                    AddressSpace::Storage { access } if access == StorageAccess::LOAD => BindingKind::Read,
                    AddressSpace::Storage { access }
                        if access == StorageAccess::LOAD | StorageAccess::STORE =>
                    {
                        BindingKind::ReadWrite
                    }
                    other => panic!("{label}: binding {} is {other:?}", binding.binding),
                };
                Some((binding.binding, kind))
            })
            .collect();
        expected.sort_by_key(|(binding, _)| *binding);
        assert_eq!(bindings(&source), expected, "{label}");
        let numbers: BTreeSet<u32> = expected.iter().map(|(binding, _)| *binding).collect();
        assert_eq!(numbers.len(), expected.len(), "{label}: two buffers share a binding");
    }
}

/// The shaders in a folder, as names and texts.
pub(crate) fn folder(name: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        assert_eq!(path.extension().unwrap_or_default(), "wgsl", "{} is no shader", path.display());
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        files.push((name, std::fs::read_to_string(&path).unwrap()));
    }
    files
}

/// Every file says what it does and has no stray blanks.
pub(crate) fn every_file_is_tidy(folders: &[&str]) {
    for (name, text) in folders.iter().copied().flat_map(folder) {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("// "), "{name} does not start with a comment that says what it does");
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{name} does not end with one line break");
        for (number, line) in text.lines().enumerate() {
            assert!(!line.contains('\t'), "{name}:{}: a tab", number + 1);
            assert!(line.trim_end() == line, "{name}:{}: blanks at the end of the line", number + 1);
        }
    }
}
