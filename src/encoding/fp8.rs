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
pub fn encode(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    let size = x.abs().min(MAX);
    let code = if size < 1.0 / 64.0 {
        // Steps of 2⁻⁹; eight of them are the smallest number with an exponent, whose code follows.
        (size * 512.0).round_ties_even() as u8
    } else {
        let bits = size.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        ((rounded >> 20) - (120 << 3)) as u8
    };
    sign | code
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
