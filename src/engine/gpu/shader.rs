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
    /// Both.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    pub(crate) fn name(self) -> &'static str {
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

/// Matrix units as a shader uses them: every subgroup multiplies `size` x `size` matrices of f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cooperative {
    /// Rows and columns of a matrix.
    pub size: u32,
    /// Values that are loaded at a time; channels are multiples of it.
    pub pack: u32,
    /// Threads of a subgroup.
    pub subgroup: u32,
    /// Terms that are held in workgroup memory.
    pub terms: u32,
    /// Bytes of workgroup memory that the largest tile needs.
    pub storage: u32,
}

impl Cooperative {
    /// What Vulkan's drivers have. Factors lie in workgroup memory as vectors of 16 bytes, which SPIR-V allows.
    pub const VULKAN: Self = Self { size: 16, pack: 8, subgroup: 32, terms: 32, storage: 46_080 };
    /// Metal's SIMD-group matrices, which are loaded from scalars.
    pub const METAL: Self = Self { size: 8, pack: 1, subgroup: 32, terms: 32, storage: 16_384 };

    /// Attention to heads of up to 64 channels. Its `terms` are channels.
    pub const ATTENTION: Self = Self { terms: 64, ..Self::VULKAN };
    /// The same up to 128.
    pub const WIDE_ATTENTION: Self = Self { terms: 128, ..Self::VULKAN };
    /// The second layer of heads.
    pub const HEAD: Self = Self { terms: 64, ..Self::VULKAN };

    /// Whether it is made for the units that a device has.
    pub fn is_for(self, device: Option<Self>) -> bool {
        device.is_some_and(|unit| (unit.size, unit.subgroup) == (self.size, self.subgroup))
    }

    /// Whether factors are moved as the bits of f32, and their matrices' type is set by the host: see `spirv`.
    pub fn moves_bits(self) -> bool {
        self.size == Self::VULKAN.size
    }
}

/// How a workgroup's product is divided among subgroups, and a subgroup's among its matrices of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fragments {
    /// Subgroups along the rows and along the columns.
    pub subgroups: (u32, u32),
    /// Matrices of a subgroup along the rows and along the columns.
    pub own: (u32, u32),
    /// Terms that are held in workgroup memory at a time.
    pub terms: u32,
}

impl Fragments {
    /// What Metal's shader has.
    pub const METAL: Self = Self { subgroups: (2, 4), own: (4, 2), terms: 32 };
    /// Those of `conv_cooperative`.
    pub const ALL: [Self; 5] = [
        Self { subgroups: (2, 4), own: (4, 3), terms: 32 },
        Self { subgroups: (2, 4), own: (4, 2), terms: 16 },
        Self { subgroups: (2, 2), own: (2, 2), terms: 32 },
        Self { subgroups: (4, 1), own: (2, 2), terms: 32 },
        Self { subgroups: (4, 4), own: (2, 3), terms: 32 },
    ];

    /// Rows and columns of a workgroup's tile.
    pub fn tile(self, unit: Cooperative) -> (u32, u32) {
        (unit.size * self.subgroups.0 * self.own.0, unit.size * self.subgroups.1 * self.own.1)
    }

    /// Threads of a workgroup.
    pub fn threads(self, unit: Cooperative) -> u32 {
        unit.subgroup * self.subgroups.0 * self.subgroups.1
    }

    /// Whether a device with these limits has as many threads in a workgroup.
    pub fn fits(self, unit: Cooperative, limits: &wgpu::Limits) -> bool {
        let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        self.threads(unit) <= most
    }

    /// Matrices side by side whose sums a subgroup of `conv_cooperative` writes at a time: as many as there is room for, for all
    /// subgroups, where the tiles of factors were. A divisor of its own.
    fn strip(self, unit: Cooperative) -> u32 {
        let (rows, columns) = self.tile(unit);
        // Lines of factors are a load longer than what they hold, lines of sums four columns.
        let stage = rows * (self.terms / unit.pack + 1) + self.terms * (columns / unit.pack + 1);
        let strip = |matrices: u32| unit.size * (matrices * unit.size / 4 + 1);
        let fits = |matrices: &u32| self.subgroups.0 * self.subgroups.1 * strip(*matrices) <= 2 * stage;
        let divides = |matrices: &u32| self.own.1.is_multiple_of(*matrices);
        (1..=self.own.1).rev().filter(divides).find(fits).unwrap_or(1)
    }
}

/// A shader that is kept elsewhere.
#[doc(hidden)]
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShaderFile {
    /// The file's name without its ending.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
    /// Names and texts of what it imports beside this crate's own.
    pub shared: &'static [(&'static str, &'static str)],
}

macro_rules! shaders {
    ($($variant:ident $file:literal),* $(,)?) => {
        /// A file in `shaders/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each is named like its file, which says what it does")]
        pub enum Shader {
            $($variant,)*
            /// One of another crate.
            #[doc(hidden)]
            Foreign(&'static ShaderFile),
        }

        impl Shader {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The file's name without its ending.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $file,)*
                    Self::Foreign(file) => file.name,
                }
            }

            fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => include_str!(concat!("../../../shaders/", $file, ".wgsl")),)*
                    Self::Foreign(file) => file.text,
                }
            }
        }
    };
}

shaders! {
    AddNoise "add_noise",
    Attention "attention",
    AttentionCooperative "attention_cooperative",
    Blend "blend",
    BlendRows "blend_rows",
    Conv "conv",
    ConvCooperative "conv_cooperative",
    ConvPacked "conv_packed",
    ConvSimdgroup "conv_simdgroup",
    ConvSum "conv_sum",
    FeatureNorm "feature_norm",
    FeatureNormSum "feature_norm_sum",
    GroupNorm "group_norm",
    HeadCombine "head_combine",
    HeadCooperative "head_cooperative",
    HeadLogits "head_logits",
    HeadPatches "head_patches",
    HidePatches "hide_patches",
    Linear "linear",
    Mask "mask",
    Moments "moments",
    MomentsScalars "moments_scalars",
    MomentsSum "moments_sum",
    NormCoefficients "norm_coefficients",
    Normalise "normalise",
    NormaliseScalars "normalise_scalars",
    PatchNoise "patch_noise",
    Unfold "unfold",
    WinogradInput "winograd_input",
    WinogradOutput "winograd_output",
    WinogradProduct "winograd_product",
}

impl Shader {
    /// The formats that it is used with.
    fn values(self) -> &'static [ValueType] {
        match self {
            Self::Blend
            | Self::BlendRows
            | Self::HidePatches
            | Self::PatchNoise
            | Self::WinogradInput
            | Self::WinogradOutput
            | Self::WinogradProduct => &[ValueType::F32],
            Self::AttentionCooperative
            | Self::ConvCooperative
            | Self::ConvSimdgroup
            | Self::HeadCooperative => &[ValueType::F16],
            _ => &ValueType::ALL,
        }
    }
}

const SHARED: &[(&str, &str)] = &[
    ("activation", include_str!("../../../shaders/shared/activation.wgsl")),
    ("conv_params", include_str!("../../../shaders/shared/conv_params.wgsl")),
    ("block_moments", include_str!("../../../shaders/shared/block_moments.wgsl")),
    ("bilinear", include_str!("../../../shaders/shared/bilinear.wgsl")),
    ("epilogue4", include_str!("../../../shaders/shared/epilogue4.wgsl")),
    ("epilogue", include_str!("../../../shaders/shared/epilogue.wgsl")),
    ("finite", include_str!("../../../shaders/shared/finite.wgsl")),
    ("gather", include_str!("../../../shaders/shared/gather.wgsl")),
    ("head", include_str!("../../../shaders/shared/head.wgsl")),
    ("philox", include_str!("../../../shaders/shared/philox.wgsl")),
    ("rows", include_str!("../../../shaders/shared/rows.wgsl")),
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
    /// The matrix units that it uses.
    pub cooperative: Option<Cooperative>,
    /// How it uses them; the smallest where it uses none.
    pub fragments: Fragments,
}

impl Permutation {
    /// A shader without a tile that writes what it reads.
    pub fn plain(shader: Shader, value: ValueType) -> Self {
        let fragments = Fragments::METAL;
        Self { shader, value, result: value, tile: Tile::SMALL, cooperative: None, fragments }
    }

    /// Every permutation that an engine may compile.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for &shader in Shader::ALL {
            for &value in shader.values() {
                let results: &[ValueType] = match shader {
                    Shader::Conv
                    | Shader::ConvCooperative
                    | Shader::ConvPacked
                    | Shader::ConvSimdgroup
                    | Shader::ConvSum
                        if value == ValueType::F16 =>
                    {
                        &ValueType::ALL
                    }
                    _ => &[value],
                };
                let tiles: &[Tile] = match shader {
                    Shader::Conv | Shader::ConvPacked | Shader::WinogradProduct => &Tile::ALL,
                    _ => &[Tile::SMALL],
                };
                let units: (&[Option<Cooperative>], &[Fragments]) = match shader {
                    Shader::AttentionCooperative => (
                        &[Some(Cooperative::ATTENTION), Some(Cooperative::WIDE_ATTENTION)],
                        &[Fragments::METAL],
                    ),
                    Shader::ConvCooperative => (&[Some(Cooperative::VULKAN)], &Fragments::ALL),
                    Shader::HeadCooperative => (&[Some(Cooperative::HEAD)], &[Fragments::METAL]),
                    Shader::ConvSimdgroup => (&[Some(Cooperative::METAL)], &[Fragments::METAL]),
                    _ => (&[None], &[Fragments::METAL]),
                };
                for &result in results {
                    for &tile in tiles {
                        for &cooperative in units.0 {
                            all.extend(units.1.iter().map(|&fragments| {
                                let plain = Self { result, tile, ..Self::plain(shader, value) };
                                Self { cooperative, fragments, ..plain }.with_own_terms()
                            }));
                        }
                    }
                }
            }
        }
        all
    }

    /// With as many terms as the fragments of a convolution say.
    pub fn with_own_terms(self) -> Self {
        let terms = self.fragments.terms;
        match (self.shader, self.cooperative) {
            (Shader::ConvCooperative, Some(unit)) => {
                Self { cooperative: Some(Cooperative { terms, ..unit }), ..self }
            }
            _ => self,
        }
    }

    /// Its name in error messages and debuggers.
    pub fn label(&self) -> String {
        let Self { shader, value, result, tile, cooperative, fragments } = self;
        let (rows, columns) =
            cooperative.map_or((8 * tile.rows, 8 * tile.columns), |unit| fragments.tile(unit));
        let threads = cooperative.map_or(tile.rows * tile.columns, |unit| fragments.threads(unit));
        let terms = cooperative.map_or(tile.terms, |unit| unit.terms);
        let (name, value, result) = (shader.name(), value.name(), result.name());
        format!("{name} {value} {result} {rows}x{columns}x{terms} by {threads}")
    }

    /// The numbers that the shader is told.
    fn constants(&self) -> Vec<(&'static str, u32)> {
        let Some(unit) = self.cooperative else {
            let Tile { rows, columns, terms } = self.tile;
            return vec![
                ("ROWS", rows),
                ("COLUMNS", columns),
                ("TERMS", terms),
                ("LEFT_LOADS", 2 * terms / columns),
                ("RIGHT_LOADS", 2 * terms / rows),
            ];
        };
        let Fragments { subgroups, own, .. } = self.fragments;
        let ((rows, columns), threads) = (self.fragments.tile(unit), self.fragments.threads(unit));
        let Cooperative { size, pack, subgroup, terms, .. } = unit;
        let strip = self.fragments.strip(unit);
        vec![
            ("PACK", pack),
            ("SIZE", size),
            ("SUBGROUP", subgroup),
            ("TERMS", terms),
            ("TERM_FRAGMENTS", terms / size),
            ("SUBGROUP_ROWS", subgroups.0),
            ("SUBGROUP_COLUMNS", subgroups.1),
            ("FRAGMENT_ROWS", own.0),
            ("FRAGMENT_COLUMNS", own.1),
            ("STRIPS", own.1 / strip),
            ("STRIP_FRAGMENTS", strip),
            ("LEFT_LOADS", rows * terms / pack / threads),
            ("RIGHT_LOADS", (columns * terms / pack).div_ceil(threads)),
        ]
    }

    /// The whole WGSL module.
    pub fn source(&self) -> String {
        let mut source = String::new();
        if [self.value, self.result].contains(&ValueType::F16) {
            source += "enable f16;\n";
        }
        if self.cooperative.is_some() {
            source += "enable wgpu_cooperative_matrix;\n";
        }
        source += &format!("alias Value = {};\nalias Result = {};\n", self.value.name(), self.result.name());
        if let Some(unit) = self.cooperative {
            let factor = if unit.moves_bits() { "f32" } else { "f16" };
            let size = unit.size;
            for (name, format, role) in [("Left", factor, 'A'), ("Right", factor, 'B'), ("Sums", "f32", 'C')]
            {
                source += &format!("alias {name} = coop_mat{size}x{size}<{format}, {role}>;\n");
            }
        }
        let constants = self.constants();
        for (name, value) in &constants {
            source += &format!("const {name}: u32 = {value}u;\n");
        }
        let foreign = match self.shader {
            Shader::Foreign(file) => file.shared,
            _ => &[],
        };
        super::template::expand(self.shader.text(), &constants, &[SHARED, foreign].concat(), &mut source);
        source
    }
}

/// What a shader declares at a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingKind {
    /// A uniform buffer.
    Uniform,
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer.
    ReadWrite,
}

/// The bindings that a module declares, read off its declarations, which are all of the form
/// `@group(0) @binding(N) var<...>`.
pub fn bindings(source: &str) -> Vec<(u32, BindingKind)> {
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
