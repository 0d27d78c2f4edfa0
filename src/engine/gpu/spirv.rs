//! Shaders for matrix units as SPIR-V, with what WGSL cannot say.
//!
//! WGSL loads a matrix only from values of its own type, at most four halves together. Drivers want 16 bytes: the instructions that
//! fill a matrix from workgroup memory, and those that fill workgroup memory, move so many at a time. SPIR-V leaves the types of a
//! matrix and of the memory that it is loaded from apart (SPV_KHR_cooperative_matrix), so shaders keep the bits of eight halves in
//! a `vec4<f32>`, load matrices of f32 from them, and here those become matrices of f16. Their loads and stores also say that they are
//! aligned, and that other threads see what is there (`NonPrivatePointer`), without which barriers would not order them in Vulkan's
//! memory model.

use super::shader::{BindingKind, Permutation};
use crate::{Error, Result};

const MAGIC_WORDS: usize = 5;
const TYPE_FLOAT: u32 = 22;
const CONSTANT: u32 = 43;
const TYPE_COOPERATIVE_MATRIX: u32 = 4456;
const COOPERATIVE_MATRIX_LOAD: u32 = 4457;
const COOPERATIVE_MATRIX_STORE: u32 = 4458;

/// Memory operands: aligned (with the bytes that follow), and not private.
const ALIGNED: u32 = 0x2;
const NON_PRIVATE: u32 = 0x20;
const ALIGNMENT: u32 = 16;

/// Words of the instructions without memory operands.
const LOAD_WORDS: usize = 6;
const STORE_WORDS: usize = 5;

/// The module of a shader that uses matrix units on Vulkan; `bindings` are all of its bindings in order.
///
/// # Errors
/// [`Error::Device`] with what naga says of the shader.
pub fn module(permutation: &Permutation, source: &str, bindings: &[(u32, BindingKind)]) -> Result<Vec<u32>> {
    let failed =
        |reason: String| Error::Device(format!("shader {} does not compile: {reason}", permutation.label()));
    let module =
        naga::front::wgsl::parse_str(source).map_err(|error| failed(error.emit_to_string(source)))?;
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    let capabilities = Capabilities::IMMEDIATES
        | Capabilities::SHADER_FLOAT16
        | Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | Capabilities::SUBGROUP
        | Capabilities::COOPERATIVE_MATRIX;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|error| failed(error.emit_to_string(source)))?;
    let unchecked = naga::proc::BoundsCheckPolicy::Unchecked;
    use naga::back::spv;
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        // wgpu numbers a layout's bindings in their order.
        binding_map: (0..)
            .zip(bindings)
            .map(|(place, (binding, _))| {
                let resource = naga::ResourceBinding { group: 0, binding: *binding };
                (resource, spv::BindingInfo { descriptor_set: 0, binding: place, binding_array_size: None })
            })
            .collect(),
        capabilities: None,
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..spv::Options::default()
    };
    let entry = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".into() };
    let words =
        spv::write_vec(&module, &info, &options, Some(&entry)).map_err(|error| failed(error.to_string()))?;
    with_matrices_of_halves(&words).ok_or_else(|| failed("its SPIR-V is not as expected".into()))
}

/// The module with matrices of factors in f16, whatever they were; nothing where it is no SPIR-V or has no f16.
fn with_matrices_of_halves(words: &[u32]) -> Option<Vec<u32>> {
    let half = find(words, TYPE_FLOAT, |operands| operands.get(1) == Some(&16))?;
    let half_id = *half.get(1)?;
    let mut result = words.get(..MAGIC_WORDS)?.to_vec();
    let mut half_is_there = false;
    for instruction in instructions(words) {
        let (code, len) = head(instruction)?;
        match code {
            TYPE_FLOAT if instruction.get(1) == Some(&half_id) => {
                // It may have been moved up already.
                if !std::mem::replace(&mut half_is_there, true) {
                    result.extend(instruction);
                }
            }
            TYPE_COOPERATIVE_MATRIX if is_factor(words, *instruction.get(6)?)? => {
                if !std::mem::replace(&mut half_is_there, true) {
                    result.extend(half.iter());
                }
                result.extend(&instruction[..2]);
                result.push(half_id);
                result.extend(&instruction[3..]);
            }
            COOPERATIVE_MATRIX_LOAD if len == LOAD_WORDS => {
                result.extend(aligned(instruction));
            }
            COOPERATIVE_MATRIX_STORE if len == STORE_WORDS => {
                result.extend(aligned(instruction));
            }
            _ => result.extend(instruction),
        }
    }
    Some(result)
}

/// The instruction with memory operands.
fn aligned(instruction: &[u32]) -> Vec<u32> {
    let code = instruction[0] & 0xFFFF;
    let mut longer = vec![((instruction.len() as u32 + 2) << 16) | code];
    longer.extend(&instruction[1..]);
    longer.extend([ALIGNED | NON_PRIVATE, ALIGNMENT]);
    longer
}

/// Whether the constant says that a matrix is a factor (0 and 1), not sums (2).
fn is_factor(words: &[u32], id: u32) -> Option<bool> {
    let constant = find(words, CONSTANT, |operands| operands.get(1) == Some(&id))?;
    Some(*constant.get(3)? < 2)
}

/// The first instruction of a kind whose operands are as wanted.
fn find(words: &[u32], code: u32, wanted: impl Fn(&[u32]) -> bool) -> Option<&[u32]> {
    instructions(words).find(|instruction| instruction[0] & 0xFFFF == code && wanted(&instruction[1..]))
}

/// All instructions; ends early where a length is wrong.
fn instructions(words: &[u32]) -> impl Iterator<Item = &[u32]> {
    let mut rest = words.get(MAGIC_WORDS..).unwrap_or(&[]);
    std::iter::from_fn(move || {
        let (_, len) = head(rest)?;
        let (instruction, after) = rest.split_at_checked(len)?;
        rest = after;
        Some(instruction)
    })
}

/// Kind and length of the instruction at the start.
fn head(words: &[u32]) -> Option<(u32, usize)> {
    let first = words.first()?;
    let len = (first >> 16) as usize;
    (len > 0).then_some((first & 0xFFFF, len))
}
