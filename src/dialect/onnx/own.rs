//! Files of our own: their initializers are a model's tensors by name, and their metadata what its folder says of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use formats::{Dtype, TensorMeta};

use super::read::{BLOCK_CODES, BLOCK_SCALES, CODES, SCALES, Stored};
use crate::dialect::huggingface::{FILES, key};
use crate::encoding::{Encoding, PartLayout};
use crate::family::{Role, guess};

/// The key under which a file of ours names the family that its graph was made for. A file that has it holds the family's
/// tensors under their own names.
pub const FAMILY: &str = "modelpress.family";

/// The texts of a folder's files that a file carries, by their names.
pub fn companions(metadata: &BTreeMap<String, String>) -> Vec<(&'static str, String)> {
    FILES.iter().filter_map(|name| Some((*name, metadata.get(&key(name))?.clone()))).collect()
}

/// The weights of a file of ours, in the order of their tensors. Constants of the graph's own nodes are none.
pub fn weights(tensors: &[TensorMeta]) -> Vec<Stored> {
    let by_name: HashMap<&str, usize> = tensors.iter().enumerate().map(|(i, meta)| (meta.name.as_str(), i)).collect();
    let quantized = |at: usize| {
        let meta = &tensors[at];
        let scales = |base: &str, suffix: &str| {
            let at = *by_name.get(format!("{base}{suffix}").as_str())?;
            tensors[at].dtype.is_float().then(|| (at, tensors[at].elements().unwrap_or(0), tensors[at].dtype))
        };
        let base = match meta.dtype {
            Dtype::I8 => meta.name.strip_suffix(CODES)?,
            Dtype::F8E4M3 => meta.name.as_str(),
            _ => {
                let (bits, base) = BLOCK_CODES
                    .iter()
                    .find_map(|(bits, suffix)| Some((*bits, meta.name.strip_suffix(suffix)?)))
                    .filter(|_| meta.dtype == Dtype::U8)?;
                let &[rows, blocks, bytes] = meta.shape.as_slice() else { return None };
                let group = bytes.checked_mul(8)? / u64::from(bits);
                let (scales, count, scale) = scales(base, BLOCK_SCALES)?;
                let encoding = Encoding::Blocked { bits, group, scale };
                let shape = vec![rows, blocks.checked_mul(group)?];
                return (Some(count) == rows.checked_mul(blocks))
                    .then(|| whole(stored(base, shape, encoding, vec![at, scales]), tensors))?;
            }
        };
        let (scales, count, scale) = scales(base, SCALES)?;
        let encoding = match meta.dtype {
            Dtype::I8 => Encoding::Int8Rows { scale },
            _ => Encoding::Fp8Rows { scale },
        };
        let rows = meta.shape.split_last()?.1.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
        let fits = count == rows && meta.shape.len() > 1;
        fits.then(|| whole(stored(base, meta.shape.clone(), encoding, vec![at, scales]), tensors))?
    };
    let mut made: HashMap<usize, Stored> = (0..tensors.len()).filter_map(|at| Some((at, quantized(at)?))).collect();
    let used: HashSet<usize> = made.values().flat_map(|stored| stored.tensors.clone()).collect();
    let weight = |(at, meta): (usize, &TensorMeta)| match made.remove(&at) {
        Some(stored) => Some(stored),
        None if used.contains(&at) || meta.name.starts_with('/') => None,
        None => Some(stored(&meta.name, meta.shape.clone(), Encoding::Plain(meta.dtype), vec![at])),
    };
    tensors.iter().enumerate().filter_map(weight).collect()
}

/// The weight, if each of its tensors has the bytes that its encoding demands.
fn whole(stored: Stored, tensors: &[TensorMeta]) -> Option<Stored> {
    let (&cols, rows) = stored.shape.split_last()?;
    let rows = rows.iter().product();
    let parts = stored.encoding.parts(&stored.name, &stored.shape, rows, cols).ok()?;
    let fits = |(part, at): (&PartLayout, &usize)| {
        let meta = &tensors[*at];
        meta.dtype == part.dtype && meta.elements() == Some(part.shape.iter().product())
    };
    // A convolution's rows are others than those of its last axis.
    (stored.role != Role::Conv && parts.iter().zip(&stored.tensors).all(fits)).then_some(stored)
}

fn stored(name: &str, shape: Vec<u64>, encoding: Encoding, tensors: Vec<usize>) -> Stored {
    let role = match encoding {
        Encoding::Plain(dtype) if !dtype.is_float() => Role::Other,
        _ => guess(name, &shape),
    };
    Stored { name: name.to_owned(), role, shape, encoding, tensors, in_out: false }
}
