//! From any order of elements, and any order of their bytes, to row-major and little-endian.

use crate::Result;

/// What is gathered at once.
const BAND: u64 = 4 << 20;

/// What is read at once to pick elements from.
const RUN: u64 = 1 << 20;

/// A tensor whose elements lie anywhere.
pub(crate) struct Strided {
    /// Bytes of an element.
    pub item: u64,
    /// Bytes that are reversed together where the order is the other one: an element, or half of a complex one.
    pub swap: Option<u64>,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Elements between neighbours along each dimension. The caller has checked that all of them lie within what is read.
    pub strides: Vec<u64>,
}

/// Fills the buffer with bytes from an offset on.
pub(crate) type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> Result<()> + 'a;
/// Takes the next bytes.
pub(crate) type Next<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// For each of some dimensions, the product of those before it.
fn steps<'a>(dims: impl Iterator<Item = &'a u64>) -> Vec<u64> {
    let mut step = 1u64;
    dims.map(|&d| {
        let this = step;
        step = step.saturating_mul(d);
        this
    })
    .collect()
}

impl Strided {
    /// The strides of a tensor of this shape whose elements lie in Fortran's order: the first dimension is the innermost.
    /// The shape's product fits 64 bits.
    pub fn fortran(shape: &[u64]) -> Vec<u64> {
        steps(shape.iter())
    }

    /// The strides of a tensor of this shape whose elements lie row on row.
    pub fn row_major(shape: &[u64]) -> Vec<u64> {
        let mut strides = steps(shape.iter().rev());
        strides.reverse();
        strides
    }

    /// Whether elements of this shape and these strides lie row on row without a gap.
    pub fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
        let mut step = 1u64;
        shape.iter().zip(strides).rev().all(|(&d, &stride)| {
            let fits = d <= 1 || stride == step;
            step = step.saturating_mul(d);
            fits
        }) || shape.contains(&0)
    }

    /// The number of elements from the first to the last, both included; `None` if that overflows.
    pub fn span(shape: &[u64], strides: &[u64]) -> Option<u64> {
        if shape.contains(&0) {
            return Some(0);
        }
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(0u64, |at, (&d, &stride)| at.checked_add((d - 1).checked_mul(stride)?))?;
        last.checked_add(1)
    }

    /// Reads all elements in the order of `shape` and hands them on.
    pub fn gather(&self, read_at: &mut ReadAt<'_>, next: &mut Next<'_>) -> Result<()> {
        if self.shape.contains(&0) {
            return Ok(());
        }
        // Dimensions of one element say nothing, and a scalar is a row of one.
        let dims: Vec<(u64, u64)> =
            self.shape.iter().copied().zip(self.strides.iter().copied()).filter(|&(d, _)| d > 1).collect();
        let dims = if dims.is_empty() { vec![(1, 1)] } else { dims };
        self.bands(&dims, 0, read_at, next)
    }

    /// Cuts along the outermost dimension until a band fits.
    fn bands(&self, dims: &[(u64, u64)], at: u64, read_at: &mut ReadAt<'_>, next: &mut Next<'_>) -> Result<()> {
        let (count, stride) = dims[0];
        let inner = dims[1..].iter().map(|&(d, _)| d).product::<u64>() * self.item;
        if inner > BAND {
            return (0..count).try_for_each(|i| self.bands(&dims[1..], at + i * stride, read_at, next));
        }
        let rows = (BAND / inner).clamp(1, count);
        let mut band = dims.to_vec();
        let mut bytes = vec![0; (rows * inner) as usize];
        for first in (0..count).step_by(rows as usize) {
            band[0].0 = rows.min(count - first);
            let bytes = &mut bytes[..(band[0].0 * inner) as usize];
            self.band(&band, at + first * stride, bytes, read_at)?;
            if let Some(swap) = self.swap {
                bytes.chunks_exact_mut(swap as usize).for_each(<[u8]>::reverse);
            }
            next(bytes)?;
        }
        Ok(())
    }

    /// Reads in the order of the file, and writes where each element belongs.
    fn band(&self, dims: &[(u64, u64)], at: u64, bytes: &mut [u8], read_at: &mut ReadAt<'_>) -> Result<()> {
        let mut step = 1;
        let mut order: Vec<(u64, u64, u64)> = Vec::with_capacity(dims.len());
        for &(d, stride) in dims.iter().rev() {
            order.push((d, stride, step));
            step *= d;
        }
        order.sort_by_key(|&(_, stride, _)| std::cmp::Reverse(stride));
        let mut run = Vec::new();
        self.runs(&order, at, 0, bytes, &mut run, read_at)
    }

    /// `order` holds count, distance in the file and distance in the band, largest distance in the file first.
    fn runs(
        &self,
        order: &[(u64, u64, u64)],
        from: u64,
        to: u64,
        bytes: &mut [u8],
        run: &mut Vec<u8>,
        read_at: &mut ReadAt<'_>,
    ) -> Result<()> {
        let item = self.item as usize;
        let (count, stride, step) = order[0];
        if order.len() > 1 {
            return (0..count)
                .try_for_each(|i| self.runs(&order[1..], from + i * stride, to + i * step, bytes, run, read_at));
        }
        let place = |i: u64| (to + i * step) as usize * item..(to + i * step + 1) as usize * item;
        match (stride, step) {
            (1, 1) => read_at(from * self.item, &mut bytes[place(0).start..place(count - 1).end]),
            // What lies between is read too, if that is not much.
            _ if (count - 1) * stride * self.item < RUN => {
                run.resize(((count - 1) * stride) as usize * item + item, 0);
                read_at(from * self.item, run)?;
                for i in 0..count {
                    let at = (i * stride) as usize * item;
                    bytes[place(i)].copy_from_slice(&run[at..at + item]);
                }
                Ok(())
            }
            _ => (0..count).try_for_each(|i| read_at((from + i * stride) * self.item, &mut bytes[place(i)])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(tensor: &Strided, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut read = |at: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&bytes[at as usize..at as usize + buffer.len()]);
            Ok(())
        };
        let mut next = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        tensor.gather(&mut read, &mut next).unwrap();
        out
    }

    #[test]
    fn every_order_of_three_dimensions_is_what_indices_say() {
        let bytes: Vec<u8> = (0..4 * 3 * 5 * 2u16).flat_map(u16::to_le_bytes).collect();
        for strides in [[15, 5, 1], [1, 4, 12], [5, 20, 1], [1, 20, 4], [0, 1, 3], [2, 8, 24]] {
            for swap in [None, Some(2)] {
                let shape = vec![4, 3, 5];
                assert!(Strided::span(&shape, &strides).unwrap() <= 120);
                let tensor = Strided { item: 2, swap, shape, strides: strides.to_vec() };
                let mut expected = Vec::new();
                for (i, j, k) in (0..60).map(|n| (n / 15, n / 5 % 3, n % 5)) {
                    let at = (i * strides[0] + j * strides[1] + k * strides[2]) as u16;
                    expected.extend(if swap.is_some() { at.to_be_bytes() } else { at.to_le_bytes() });
                }
                assert_eq!(gathered(&tensor, &bytes), expected, "{strides:?}");
            }
        }
    }

    #[test]
    fn tensors_larger_than_a_band_are_cut() {
        let (rows, cols) = (3000u64, 2500u64);
        let bytes: Vec<u8> = (0..rows * cols).map(|i| (i % 251) as u8).collect();
        let tensor = Strided { item: 1, swap: None, shape: vec![cols, 1, rows], strides: vec![1, 9, cols] };
        let turned = gathered(&tensor, &bytes);
        assert_eq!(turned.len(), bytes.len());
        for at in (0..turned.len()).step_by(997) {
            let (i, j) = (at as u64 / rows, at as u64 % rows);
            assert_eq!(turned[at], bytes[(j * cols + i) as usize]);
        }
    }

    #[test]
    fn scalars_and_nothing() {
        let tensor = |shape: Vec<u64>| Strided { item: 2, swap: None, strides: vec![1; shape.len()], shape };
        assert_eq!(gathered(&tensor(vec![]), &[1, 2]), [1, 2]);
        assert_eq!(gathered(&tensor(vec![1, 1]), &[1, 2]), [1, 2]);
        assert!(gathered(&tensor(vec![0, 7]), &[]).is_empty());
        assert!(Strided::is_contiguous(&[0, 7], &[1, 1]) && Strided::is_contiguous(&[2, 1, 3], &[3, 77, 1]));
        assert!(!Strided::is_contiguous(&[2, 3], &[1, 2]));
        assert_eq!(Strided::fortran(&[2, 3, 4]), [1, 2, 6]);
        assert_eq!(Strided::span(&[u64::MAX, 2], &[u64::MAX, 1]), None);
    }
}
