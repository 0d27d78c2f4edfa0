//! The shaders, and every permutation of them that is ever compiled.

/// Number formats of stored activations and weights. Sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ValueType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
}

impl ValueType {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }
}

/// Threads and terms of a product's tile: `8 rows x 8 columns` outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    /// Threads along the rows.
    pub rows: u32,
    /// Threads along the columns.
    pub columns: u32,
    /// Terms that are held in workgroup memory.
    pub terms: u32,
}

impl Tile {
    /// 128 x 128 outputs.
    pub const LARGE: Self = Self { rows: 16, columns: 16, terms: 8 };
    /// 64 x 64 outputs.
    pub const SMALL: Self = Self { rows: 8, columns: 8, terms: 16 };
    /// Those there are, largest first.
    pub const ALL: [Self; 2] = [Self::LARGE, Self::SMALL];
}

macro_rules! shaders {
    ($($variant:ident $file:literal),* $(,)?) => {
        /// A file in `shaders/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each is named like its file, which says what it does")]
        pub enum Shader { $($variant),* }

        impl Shader {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The file's name without its ending.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $file),* }
            }

            fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => include_str!(concat!("../../../shaders/", $file, ".wgsl"))),*
                }
            }
        }
    };
}

shaders! {
    Attention "attention",
    Conv "conv",
    ConvSum "conv_sum",
    FeatureNorm "feature_norm",
    FeatureNormSum "feature_norm_sum",
    HeadCombine "head_combine",
    HeadLogits "head_logits",
    Linear "linear",
    Moments "moments",
    MomentsSum "moments_sum",
    NormCoefficients "norm_coefficients",
    Normalise "normalise",
}

const SHARED: &[(&str, &str)] = &[
    ("activation", include_str!("../../../shaders/shared/activation.wgsl")),
    ("bilinear", include_str!("../../../shaders/shared/bilinear.wgsl")),
    ("epilogue", include_str!("../../../shaders/shared/epilogue.wgsl")),
    ("split", include_str!("../../../shaders/shared/split.wgsl")),
    ("tile", include_str!("../../../shaders/shared/tile.wgsl")),
];

/// A shader with everything that is decided before it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Permutation {
    /// The file.
    pub shader: Shader,
    /// What `Value` is: the format of activations and weights.
    pub value: ValueType,
    /// What `Result` is, where a shader writes one of several formats.
    pub result: ValueType,
    /// The tile of a product; the smallest where there is none.
    pub tile: Tile,
}

impl Permutation {
    /// A shader without a tile that writes what it reads.
    pub fn plain(shader: Shader, value: ValueType) -> Self {
        Self { shader, value, result: value, tile: Tile::SMALL }
    }

    /// Every permutation that an engine may compile.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for &shader in Shader::ALL {
            for value in [ValueType::F32, ValueType::F16] {
                let results: &[ValueType] = match shader {
                    Shader::Conv | Shader::ConvSum if value == ValueType::F16 => {
                        &[ValueType::F32, ValueType::F16]
                    }
                    _ => &[value],
                };
                let tiles: &[Tile] = if shader == Shader::Conv { &Tile::ALL } else { &[Tile::SMALL] };
                for &result in results {
                    all.extend(tiles.iter().map(|&tile| Self { shader, value, result, tile }));
                }
            }
        }
        all
    }

    /// Its name in error messages and debuggers.
    pub fn label(&self) -> String {
        let Self { shader, value, result, tile } = self;
        let name = shader.name();
        format!("{name} {} {} {}x{}", value.name(), result.name(), 8 * tile.rows, 8 * tile.columns)
    }

    /// The whole WGSL module.
    pub fn source(&self) -> String {
        let mut source = String::new();
        if [self.value, self.result].contains(&ValueType::F16) {
            source += "enable f16;\n";
        }
        let Tile { rows, columns, terms } = self.tile;
        source += &format!(
            "alias Value = {};\nalias Result = {};\nconst ROWS: u32 = {rows}u;\nconst COLUMNS: u32 = {columns}u;\n\
             const TERMS: u32 = {terms}u;\n",
            self.value.name(),
            self.result.name(),
        );
        for line in self.shader.text().lines() {
            match line.strip_prefix("#import ") {
                // A name that is not there is left for the compiler to complain about; the tests compile everything.
                Some(name) => {
                    let found = SHARED.iter().find(|(known, _)| *known == name.trim());
                    source += found.map_or(line, |(_, text)| text);
                }
                None => source += line,
            }
            source.push('\n');
        }
        source
    }
}

/// What a shader declares at a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindingKind {
    Uniform,
    Read,
    ReadWrite,
}

/// The bindings that a module declares, read off its declarations, which are all of the form
/// `@group(0) @binding(N) var<...>`.
pub(crate) fn bindings(source: &str) -> Vec<(u32, BindingKind)> {
    let mut found: Vec<(u32, BindingKind)> = source
        .lines()
        .filter_map(|line| {
            let (number, declaration) = line.strip_prefix("@group(0) @binding(")?.split_once(") var<")?;
            let kind = if declaration.starts_with("uniform>") {
                BindingKind::Uniform
            } else if declaration.starts_with("storage, read>") {
                BindingKind::Read
            } else {
                BindingKind::ReadWrite
            };
            Some((number.parse().ok()?, kind))
        })
        .collect();
    found.sort_by_key(|(number, _)| *number);
    found
}
