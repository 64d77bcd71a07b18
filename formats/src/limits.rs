//! What a reader may spend on a file from a stranger.

/// Bounds that readers charge before they allocate. The defaults fit every model file that its own ecosystem reads.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a header (safetensors allows 100 MB).
    pub header_bytes: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of metadata entries, and of elements in one metadata array.
    pub entries: u64,
    /// Bytes that may be unpacked or put in order, outside memory, beside [`Limits::unpacked_ratio`].
    pub unpacked_bytes: u64,
    /// Bytes that may be unpacked for each byte of the file: deflate makes 1000 of 1, weights some 2.
    pub unpacked_ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 100_000_000,
            tensors: 1_000_000,
            entries: 16_000_000,
            unpacked_bytes: 64 << 20,
            unpacked_ratio: 100,
        }
    }
}
