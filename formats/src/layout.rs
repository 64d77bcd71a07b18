//! Where every byte of a file to be written goes, known before a weight is read.

use std::ops::Range;

/// The plan of one output file: everything but the tensors' bytes, and where those go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes known from the plan alone, each run with its offset: headers, directories, padding that must not be zero.
    pub fixed: Vec<(u64, Vec<u8>)>,
    /// The byte range of each tensor, in the order in which the tensors were given.
    pub spans: Vec<Range<u64>>,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Checksums that only the data can tell.
    pub checksums: Vec<Checksum>,
}

/// A CRC-32 (IEEE 802.3, as zip uses it) of a range of the file, little-endian, to be written when the data are in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// The bytes that are summed.
    pub of: Range<u64>,
    /// Where the sum is written: once in a zip's local header, once in its directory.
    pub at: Vec<u64>,
}
