use std::path::PathBuf;

use formats::Dtype;
use half::f16;
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

fn blocks<const B: usize, const N: usize>(unpack: impl Fn(&[u8; B], &mut [f32; N]), block: &[u8; B]) -> [f32; N] {
    let mut out = [0.0; N];
    unpack(block, &mut out);
    out
}

/// Every type as the package `gguf` dequantizes it: fixtures/ggml/make.py.
#[test]
fn values_are_those_of_gguf() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/ggml/unpack.safetensors");
    let file = std::fs::read(path).unwrap();
    let fixture = SafeTensors::deserialize(&file).unwrap();
    let mut types = 0;
    for (name, blocks) in fixture.tensors() {
        let Some(name) = name.strip_suffix(".blocks") else { continue };
        let dtype = Dtype::from_name(name).unwrap();
        assert_eq!(blocks.shape()[1] as u64 * 8, dtype.block_bits(), "{name}");
        let expected = fixture.tensor(&format!("{name}.values")).unwrap();
        let mut values = vec![0.0; expected.data().len() / 4];
        unpack(dtype, blocks.data(), &mut values);
        for (i, (value, expected)) in values.iter().zip(expected.data().as_chunks().0).enumerate() {
            let expected = f32::from_le_bytes(*expected);
            assert_eq!(value.to_bits(), expected.to_bits(), "{name}, element {i}: {value} and {expected}");
        }
        types += 1;
    }
    assert_eq!(types, 23);
}

/// Types that `gguf` does not know; the values are their definition in ggml-quants.c.
#[test]
fn values_of_the_types_that_gguf_lacks() {
    let d = f16::from_f32(-0.75);
    let mut block = [0; 36];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&[0xff, 0x7c]); // Not a number: never read.
    block[4..7].copy_from_slice(&[1, 0x80, 0x7f]);
    assert_eq!(blocks(legacy::unpack_q8_1, &block)[..4], [-0.75, 96.0, -95.25, 0.0]);

    let mut block = [0; 292];
    block[..4].copy_from_slice(&0.1f32.to_le_bytes());
    block[4..6].copy_from_slice(&[0xff, 3]);
    assert_eq!(blocks(k::unpack_q8_k, &block)[..3], [-0.1, 0.1 * 3.0, 0.0]);

    let mut block = [0; 18];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&[0b1000_0001, 0b1110_0100]);
    let bits = blocks(ternary::unpack_q1_0, &block);
    assert_eq!(bits[..9], [-0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, -0.75, 0.75]);
    let twos = blocks(ternary::unpack_q2_0, &block);
    assert_eq!(twos[..8], [0.0, 0.75, 0.75, -0.75, 0.75, 0.0, -0.75, -1.5]);
}

#[test]
fn every_block_type_is_known() {
    for id in 0..64 {
        let Some(dtype) = Dtype::from_ggml_id(id).filter(|dtype| dtype.is_block()) else { continue };
        let (bytes, elements) = (dtype.block_bits() as usize / 8, dtype.block_elements() as usize);
        let mut out = vec![f32::NAN; 3 * elements];
        unpack(dtype, &vec![0; 3 * bytes], &mut out);
        assert!(out.iter().all(|y| y.is_finite()), "{dtype}");
    }
}

#[test]
#[should_panic(expected = "not the same blocks")]
fn lengths_must_agree() {
    unpack(Dtype::Q4_0, &[0; 36], &mut [0.0; 32]);
}

fn codes<const N: usize>(below: u8) -> impl Strategy<Value = [u8; N]> {
    prop::collection::vec(0..below, N).prop_map(|codes| codes.try_into().unwrap())
}

/// Packs into a new block and unpacks it.
fn through<const B: usize, const N: usize>(
    pack: impl FnOnce(&mut [u8; B]),
    unpack: impl Fn(&[u8; B], &mut [f32; N]),
) -> [f32; N] {
    let mut block = [0xa5; B];
    pack(&mut block);
    blocks(unpack, &block)
}

const D: f32 = 0.375;
const M: f32 = -1.25;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn packed_codes_are_unpacked(
        fours in codes::<256>(16), fives in codes::<256>(32), sixes in codes::<256>(64), eights in codes::<32>(255),
        s4 in codes::<16>(16), m4 in codes::<16>(16), s6 in codes::<16>(64), m6 in codes::<16>(64),
    ) {
        let (d, m) = (f16::from_f32(D), f16::from_f32(M));
        let [f4, f5] = [*part::<32>(&fours, 0), *part::<32>(&fives, 0)];

        let y = through(|b| legacy::pack_q4_0(d, &f4, b), legacy::unpack_q4_0);
        prop_assert_eq!(y, f4.map(|q| D * (f32::from(q) - 8.0)));
        let y = through(|b| legacy::pack_q4_1(d, m, &f4, b), legacy::unpack_q4_1);
        prop_assert_eq!(y, f4.map(|q| D * f32::from(q) + M));
        let y = through(|b| legacy::pack_q5_0(d, &f5, b), legacy::unpack_q5_0);
        prop_assert_eq!(y, f5.map(|q| D * (f32::from(q) - 16.0)));
        let y = through(|b| legacy::pack_q5_1(d, m, &f5, b), legacy::unpack_q5_1);
        prop_assert_eq!(y, f5.map(|q| D * f32::from(q) + M));
        let eights = eights.map(|q| (i16::from(q) - 127) as i8);
        let y = through(|b| legacy::pack_q8_0(d, &eights, b), legacy::unpack_q8_0);
        prop_assert_eq!(y, eights.map(|q| D * f32::from(q)));

        let (s8, m8) = (*part::<8>(&s6, 0), *part::<8>(&m6, 0));
        let minus = |codes: &[u8; 256], s: &[u8], m: &[u8], size: usize| -> [f32; 256] {
            std::array::from_fn(|i| D * f32::from(s[i / size]) * f32::from(codes[i]) - M * f32::from(m[i / size]))
        };
        let twos = fours.map(|q| q & 3);
        let y = through(|b| k::pack_q2_k(d, m, &s4, &m4, &twos, b), k::unpack_q2_k);
        prop_assert_eq!(y, minus(&twos, &s4, &m4, 16));
        let y = through(|b| k::pack_q4_k(d, m, &s8, &m8, &fours, b), k::unpack_q4_k);
        prop_assert_eq!(y, minus(&fours, &s8, &m8, 32));
        let y = through(|b| k::pack_q5_k(d, m, &s8, &m8, &fives, b), k::unpack_q5_k);
        prop_assert_eq!(y, minus(&fives, &s8, &m8, 32));

        let threes = fours.map(|q| q & 7);
        let y = through(|b| k::pack_q3_k(d, &s6, &threes, b), k::unpack_q3_k);
        let expected = |i| D * (f32::from(s6[i / 16]) - 32.0) * (f32::from(threes[i]) - 4.0);
        prop_assert_eq!(y, std::array::from_fn(expected));
        let signed = s6.map(|s| s as i8 * 2 - 63);
        let y = through(|b| k::pack_q6_k(d, &signed, &sixes, b), k::unpack_q6_k);
        let expected = |i| D * f32::from(signed[i / 16]) * (f32::from(sixes[i]) - 32.0);
        prop_assert_eq!(y, std::array::from_fn(expected));

        let level = |q: u8| f32::from(nonlinear::LEVELS[usize::from(q)]);
        let y = through(|b| nonlinear::pack_iq4_nl(d, &f4, b), nonlinear::unpack_iq4_nl);
        prop_assert_eq!(y, f4.map(|q| D * level(q)));
        let y = through(|b| nonlinear::pack_iq4_xs(d, &s8, &fours, b), nonlinear::unpack_iq4_xs);
        prop_assert_eq!(y, std::array::from_fn(|i| D * (f32::from(s8[i / 32]) - 32.0) * level(fours[i])));
    }
}
