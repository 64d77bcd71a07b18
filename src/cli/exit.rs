//! From errors to exit codes.

use formats::Kind;

use crate::{bench, calibration, check, fit, loader, pipeline, recipe, runtime};

/// Whatever ends the program other than success.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each is one stage's error.
pub enum Failure {
    #[error(transparent)]
    Format(#[from] formats::Error),
    #[error(transparent)]
    Loader(#[from] loader::Error),
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Calibration(#[from] calibration::Error),
    #[error(transparent)]
    Check(#[from] check::Error),
    #[error(transparent)]
    Fit(#[from] fit::Error),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error(transparent)]
    Bench(#[from] bench::Error),
    /// A process of this program failed, and said why.
    #[error("{said}")]
    Elsewhere { said: String, code: u8 },
    /// A model that cannot do what is asked.
    #[error("{0}")]
    Model(String),
    /// A combination of options that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The check failed, and its findings were printed.
    #[error("{0}")]
    Refused(String),
    /// Standard output cannot be written.
    #[error("cannot print: {0}")]
    Output(std::io::Error),
}

/// The exit code that a failure stands for.
pub fn code(failure: &Failure) -> u8 {
    let kind = match failure {
        Failure::Format(e) => e.kind(),
        Failure::Loader(e) => e.kind(),
        Failure::Recipe(e) => e.kind(),
        Failure::Pipeline(e) => e.kind(),
        Failure::Calibration(e) => e.kind(),
        Failure::Check(e) => e.kind(),
        Failure::Fit(e) => e.kind(),
        Failure::Runtime(e) => e.kind(),
        Failure::Bench(e) => e.kind(),
        Failure::Elsewhere { code, .. } => return *code,
        Failure::Model(_) => Kind::Input,
        Failure::Usage(_) => Kind::Usage,
        Failure::Refused(_) => Kind::Check,
        Failure::Output(_) => Kind::Io,
    };
    match kind {
        Kind::Check => 1,
        Kind::Usage => 2,
        Kind::Input => 3,
        Kind::Io => 4,
        Kind::Interrupted => 130,
    }
}
