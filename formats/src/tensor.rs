//! What a container says about a tensor.

use crate::Dtype;

/// Name, dtype and shape of a stored tensor; the shape is row-major, as PyTorch and safetensors print it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMeta {
    /// The name in the container.
    pub name: String,
    /// The dtype of the stored elements.
    pub dtype: Dtype,
    /// Dimensions, outermost first. Empty for a scalar.
    pub shape: Vec<u64>,
}

impl TensorMeta {
    /// A tensor's description.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Number of elements, or `None` if the product of the shape does not fit 64 bits.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Number of bytes, or `None` if the shape overflows or the innermost dimension does not fill whole blocks.
    pub fn bytes(&self) -> Option<u64> {
        let row = self.shape.last().copied().unwrap_or(1);
        if self.dtype.is_block() && !row.is_multiple_of(self.dtype.block_elements()) {
            return None;
        }
        self.dtype.bytes_of(self.elements()?)
    }

    /// Rows and columns of the tensor as a matrix: all dimensions but the last, and the last. A scalar is 1 × 1.
    pub fn matrix(&self) -> (u64, u64) {
        match self.shape.split_last() {
            Some((&cols, rows)) => (rows.iter().product(), cols),
            None => (1, 1),
        }
    }
}
