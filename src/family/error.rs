//! What can be wrong with a model's description.

/// A `config.json` that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No family of that name.
    #[error("model family `{found}` is not supported; supported: {supported}")]
    Family {
        /// `model_type`, else the first of `architectures`.
        found: String,
        /// The families that are.
        supported: String,
    },
    /// A field that the family needs is not there.
    #[error("config field `{field}` is missing; a {family} config has it")]
    Missing {
        /// The field, with the path to it.
        field: String,
        /// The family.
        family: &'static str,
    },
    /// A field of the wrong type, or a number out of range.
    #[error("config field `{field}` is {found}; expected {expected}")]
    Invalid {
        /// The field, with the path to it.
        field: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A value that changes what the model computes, in a way that is not supported.
    #[error("config field `{field}` is {found}, which is not supported; supported: {expected}")]
    Unsupported {
        /// The field, with the path to it.
        field: String,
        /// The supported values.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Layers that do not fit one another.
    #[error("tensor `{tensor}` has shape {found:?}; expected {expected}")]
    Chain {
        /// The tensor.
        tensor: String,
        /// What its neighbours demand.
        expected: String,
        /// Its shape.
        found: Vec<usize>,
    },
}
