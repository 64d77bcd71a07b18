//! What benches share: random numbers, and matrices of them in every encoding.

use formats::Dtype;
use modelpress::encoding::{Form, Inputs, Rows, Scales, Stored};
use modelpress::quantizer::{Band, Blocks, Cast, Fp8Rows, Int8Rows, Numbers, PackedInt, Quantizer};
use modelpress::runtime::kernels::float;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// Columns that share a scale where integers are packed.
const GROUP: usize = 128;

/// Reproducible normal numbers of the size of weights.
pub fn normal(count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    (0..count).map(|_| 0.02 * Distribution::<f32>::sample(&StandardNormal, &mut rng)).collect()
}

/// Quantizers of each encoding that is written, by name.
pub fn quantizers() -> Vec<(String, Box<dyn Quantizer>)> {
    let mut all: Vec<(String, Box<dyn Quantizer>)> = vec![
        ("f16".into(), Box::new(Cast(Dtype::F16))),
        ("bf16".into(), Box::new(Cast(Dtype::BF16))),
        ("int8".into(), Box::new(Int8Rows)),
        ("w8a16".into(), Box::new(PackedInt { bits: 8, group: GROUP as u64 })),
        ("w4a16".into(), Box::new(PackedInt { bits: 4, group: GROUP as u64 })),
        ("fp8".into(), Box::new(Fp8Rows)),
    ];
    for dtype in [
        Dtype::Q8_0,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::Q2_K,
        Dtype::Q3_K,
        Dtype::Q4_K,
        Dtype::Q5_K,
        Dtype::Q6_K,
        Dtype::IQ4_NL,
    ] {
        let blocks = Blocks { dtype, search: false, importance: None };
        all.push((dtype.name().to_lowercase(), Box::new(blocks)));
    }
    all
}

/// A matrix that is encoded band by band.
pub struct Source {
    numbers: Vec<f32>,
    cols: usize,
}

impl Source {
    /// Random numbers.
    pub fn new(rows: usize, cols: usize) -> Self {
        Self { numbers: normal(rows * cols), cols }
    }

    /// Buffers for all physical tensors of an encoding.
    pub fn buffers(&self, quantizer: &dyn Quantizer) -> Vec<Vec<u8>> {
        let (rows, cols) = ((self.numbers.len() / self.cols) as u64, self.cols as u64);
        let parts = quantizer.encoding(Dtype::F32).parts("w", &[rows, cols], rows, cols).expect("rows fill blocks");
        let bytes = |range: std::ops::Range<u64>| (range.end - range.start) as usize;
        parts.iter().map(|part| vec![0; bytes(part.bytes_of(&(0..rows)))]).collect()
    }

    /// Encodes all rows.
    pub fn encode(&self, quantizer: &dyn Quantizer, parts: &mut [Vec<u8>]) {
        let numbers = Numbers::F32(&self.numbers);
        quantizer.encode(Band { numbers, first_row: 0, cols: self.cols, dtype: Dtype::F32 }, parts);
    }
}

/// An encoded matrix, as a loaded model holds it.
pub struct Encoded {
    name: String,
    /// Bytes of each physical tensor.
    pub parts: Vec<Vec<u8>>,
    rows: usize,
    cols: usize,
}

impl Encoded {
    /// Random numbers in this encoding; `None` if there is no such.
    pub fn new(name: &str, rows: usize, cols: usize) -> Option<Self> {
        let source = Source::new(rows, cols);
        let parts = match name {
            "f32" => vec![bytemuck::cast_slice(&source.numbers).to_vec()],
            _ => {
                let (_, quantizer) = quantizers().into_iter().find(|(known, _)| known == name)?;
                let mut parts = source.buffers(&*quantizer);
                source.encode(&*quantizer, &mut parts);
                parts
            }
        };
        Some(Self { name: name.to_owned(), parts, rows, cols })
    }

    fn scales(&self, per_row: usize) -> Scales<'_> {
        Scales { dtype: Dtype::F32, bytes: &self.parts[1], per_row }
    }
}

impl Rows for Encoded {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read(&self, first: usize, out: &mut [f32]) {
        if let Some(stored) = self.stored() {
            float::unpack(&stored, first, self.cols, out);
        }
    }

    fn stored(&self) -> Option<Stored<'_>> {
        let (form, inputs) = match self.name.as_str() {
            "f32" => (Form::Plain(Dtype::F32), Inputs::Float),
            "f16" => (Form::Plain(Dtype::F16), Inputs::Float),
            "bf16" => (Form::Plain(Dtype::BF16), Inputs::Float),
            "int8" => (Form::Int8(self.scales(1)), Inputs::Int8),
            "fp8" => (Form::Fp8(self.scales(1)), Inputs::Float),
            "w8a16" | "w4a16" => {
                let bits = if self.name == "w4a16" { 4 } else { 8 };
                (Form::Packed { bits, group: GROUP, scales: self.scales(self.cols / GROUP) }, Inputs::Float)
            }
            block => (Form::Blocks(Dtype::from_name(&block.to_uppercase())?), Inputs::Int8),
        };
        let bytes = &self.parts[0];
        Some(Stored { form, bytes, row_bytes: bytes.len() / self.rows, order: None, inputs })
    }
}
