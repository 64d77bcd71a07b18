//! ggml's block types.

use formats::Dtype;
use half::f16;

/// Unpacks whole blocks.
pub fn unpack(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype, Dtype::Q8_0);
    for (block, to) in bytes.as_chunks::<34>().0.iter().zip(out.chunks_exact_mut(32)) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (x, &code) in to.iter_mut().zip(&block[2..]) {
            *x = f32::from(code as i8) * d;
        }
    }
}
