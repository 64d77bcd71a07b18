//! Checksums of ranges of files, put together from those of the pieces that were written, in whatever order they came: what is
//! written need not be read back for them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crc32fast::Hasher;

/// The CRC-32 of each piece that was written, by file and offset.
#[derive(Debug, Default)]
pub(crate) struct Checksums(Mutex<BTreeMap<(usize, u64), (u64, Hasher)>>);

impl Checksums {
    /// These bytes were written to a file from `offset` on.
    pub fn add(&self, file: usize, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.insert((file, offset), (offset + bytes.len() as u64, hasher));
    }

    /// The checksum of a range of a file. `None` if what was written of it is not these bytes, each once.
    pub fn of(&self, file: usize, range: &Range<u64>) -> Option<u32> {
        let pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut sum, mut end) = (Hasher::new(), range.start);
        for ((_, start), (next, piece)) in pieces.range((file, range.start)..(file, range.end)) {
            if *start != end {
                return None;
            }
            sum.combine(piece);
            end = *next;
        }
        (end == range.end).then(|| sum.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_make_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        let sums = Checksums::default();
        for part in [600..1000, 0..10, 350..600, 10..350] {
            sums.add(1, part.start as u64, &bytes[part]);
        }
        assert_eq!(sums.of(1, &(0..1000)), Some(crc32fast::hash(&bytes)));
        assert_eq!(sums.of(1, &(10..600)), Some(crc32fast::hash(&bytes[10..600])));
        assert_eq!(sums.of(1, &(0..0)), Some(0));
        // Not all of it, more of it, another file's, or some of it twice.
        for (file, range) in [(1, 0..1001), (1, 0..20), (1, 5..600), (0, 0..1000)] {
            assert_eq!(sums.of(file, &range), None, "{range:?}");
        }
        sums.add(1, 5, &bytes[5..20]);
        assert_eq!(sums.of(1, &(0..1000)), None);
    }
}
