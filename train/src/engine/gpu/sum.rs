//! Everything that flows back into a tensor.

use mdm::Result;
use mdm::engine::gpu::call::{Binding, Builder, Call, Place, word, words};
use mdm::engine::gpu::conv::stored;
use mdm::plan::{Resample, TensorId};

use super::shaders::{SUM, SUM_VECTORS, plain};
use crate::differentiate::{Contribution, NormUse};

/// Gradients that a shader reads at a time.
const READERS: usize = 4;

/// Vectors that a shader reads at a time.
const VECTORS: usize = 8;

/// One reader of the tensor.
#[derive(Clone, Copy)]
pub(super) struct Reader {
    pub(super) gradient: TensorId,
    pub(super) first_channel: usize,
    pub(super) resample: Resample,
    pub(super) norm: Option<NormUse>,
}

impl Reader {
    /// The words of the shaders' `Reader`; the gradient is the shader's number `buffer`.
    pub(super) fn words(&self, builder: &Builder<'_>, buffer: usize) -> Result<Vec<u32>> {
        let tensor = &builder.plan.tensors[self.gradient];
        let resample = match self.resample {
            Resample::None => 0,
            Resample::NearestUp => 1,
            Resample::AverageDown => 2,
        };
        let mut words = words([tensor.height, tensor.width, tensor.channels, self.first_channel, resample])?;
        words.push(self.norm.map_or(Ok(0), |norm| builder.vector(norm.coefficients).map(|at| at + 1))?);
        words.push(u32::from(self.norm.is_some_and(|norm| norm.silu)));
        words.push(word(buffer)?);
        Ok(words)
    }
}

pub(super) fn sum(
    builder: &mut Builder<'_>,
    tensor: TensorId,
    contributions: &[Contribution],
    output: TensorId,
) -> Result<()> {
    if matches!(builder.places[tensor], Place::Vector(_)) {
        return vectors(builder, contributions, output);
    }
    let (mut readers, mut moments) = (Vec::new(), Vec::new());
    for contribution in contributions {
        match *contribution {
            Contribution::Read { gradient, first_channel, resample, norm } => {
                readers.push(Reader { gradient, first_channel, resample, norm });
            }
            Contribution::Affine { coefficients } => moments.push(builder.vector(coefficients)? + 1),
        }
    }
    let info = &builder.plan.tensors[tensor];
    let rows = builder.batch() * info.height * info.width;
    let values = rows * info.channels;
    let calls = readers.len().div_ceil(READERS).max(moments.len());
    let mut readers = readers.chunks(READERS);
    for index in 0..calls {
        let readers = readers.next().unwrap_or_default();
        let mut params =
            words([rows, info.height, info.width, info.channels, readers.len(), usize::from(index > 0)])?;
        params.extend([moments.get(index).copied().unwrap_or(0), 0]);
        let mut bindings = vec![(2, Binding::Vectors), (7, stored(builder, output)?)];
        if contributions.iter().any(Contribution::reads_tensor) {
            bindings.push((1, stored(builder, tensor)?));
        }
        for (number, reader) in readers.iter().enumerate() {
            params.extend(reader.words(builder, number)?);
            bindings.push((3 + word(number)?, stored(builder, reader.gradient)?));
        }
        params.resize(8 + 8 * READERS, 0);
        builder.calls.push(Call {
            permutation: builder.plain(SUM),
            params,
            bindings,
            workgroups: word(values.div_ceil(256))?,
            work: 8.0 * (values * (readers.len() + 1)) as f64,
        });
    }
    Ok(())
}

/// Vectors are read as they are.
fn vectors(builder: &mut Builder<'_>, contributions: &[Contribution], output: TensorId) -> Result<()> {
    let values = builder.batch() * builder.plan.tensors[output].sample_len();
    let mut places = Vec::new();
    for contribution in contributions {
        match *contribution {
            Contribution::Read { gradient, first_channel: 0, resample: Resample::None, norm: None } => {
                places.push(builder.vector(gradient)?);
            }
            _ => return Err(mdm::Error::invalid("program", "reads a vector like a map")),
        }
    }
    for (index, places) in places.chunks(VECTORS).enumerate() {
        let mut params = vec![word(values)?, builder.vector(output)?];
        params.extend(words([places.len(), usize::from(index > 0)])?);
        params.extend(places);
        params.resize(4 + VECTORS, 0);
        builder.calls.push(Call {
            permutation: plain(SUM_VECTORS),
            params,
            bindings: vec![(1, Binding::Vectors)],
            workgroups: word(values.div_ceil(64))?,
            work: (values * places.len()) as f64,
        });
    }
    Ok(())
}
