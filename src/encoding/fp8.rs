//! FP8 E4M3: a sign, four bits of exponent (bias 7), three of fraction; no infinity, and NaN at S.1111.111 (Micikevicius et
//! al., FP8 Formats for Deep Learning, 2022).

/// The largest number.
pub const MAX: f32 = 448.0;

/// The number of a code.
pub fn decode(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 512.0,
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 != 0 { -size } else { size }
}

/// The code of a number that is exactly that of one: what a quantizer rounded before. Others go to the nearest, ties to even;
/// sizes above [`MAX`] are taken for it.
#[inline(always)]
pub fn encode(x: f32) -> u8 {
    // 1.5 · 2²³: added to a small number it leaves the nearest integer, ties to even, in the last bits. Both cases are
    // computed for every number, so that a loop of these is one of vector instructions.
    const MAGIC: f32 = 12_582_912.0;
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let size = x.abs().min(MAX);
    // Steps of 2⁻⁹; eight of them are the smallest number with an exponent, whose code follows.
    let few = (size * 512.0 + MAGIC).to_bits() as u8;
    let bits = size.to_bits();
    let many = ((bits.wrapping_add(0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3)) as u8;
    sign | if size < 1.0 / 64.0 { few } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_returns_and_ties_go_to_even() {
        for code in (0..=0x7e).chain(0x80..=0xfe) {
            assert_eq!(encode(decode(code)), code, "{code:x}");
        }
        assert!(decode(0x7f).is_nan());
        for code in 0..0x7e {
            let middle = (decode(code) + decode(code + 1)) / 2.0;
            assert_eq!(encode(middle), code + (code & 1), "{code:x}");
        }
        assert_eq!((encode(1e9), encode(-449.0)), (0x7e, 0xfe));
    }
}
