//! Errors that say what was found, where, what was expected, and what to do next.

use std::path::{Path, PathBuf};

/// Whose fault an error is; it fixes the exit code of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What was or would be written is worse than allowed (exit code 1).
    Check,
    /// The call asked for something that cannot be (exit code 2).
    Usage,
    /// A file's content is malformed, truncated, inconsistent or unsupported (exit code 3).
    Input,
    /// The operating system said no: missing path, permission, disk full (exit code 4).
    Io,
    /// The user asked to stop (exit code 130).
    Interrupted,
}

/// What goes wrong when containers are read and written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file's content is not what its format demands.
    #[error("{}: {}found {found}, expected {expected}. {next}", file.display(), subject(tensor))]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The tensor, if one is to blame.
        tensor: Option<String>,
        /// What the file holds.
        found: String,
        /// What it should hold.
        expected: String,
        /// What to do about it.
        next: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}{}", file.display(), advice(source))]
    Io {
        /// The path that was used.
        file: PathBuf,
        /// What was tried: "open", "write".
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file changed while it was read, so what was made of it cannot be trusted.
    #[error("{}: changed while it was read; nothing was written. Run again when nobody writes to it", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// The output is already there and was not to be replaced.
    #[error("{}: already exists. Choose another output with -o, or replace it with --force", file.display())]
    OutputExists {
        /// The output.
        file: PathBuf,
    },
    /// The output is there, was to be replaced, and is something that should not be.
    #[error("{}: --force replaces an earlier output, and this is {found}; expected {expected}. Choose another output with -o", file.display())]
    NotReplaceable {
        /// The output.
        file: PathBuf,
        /// What it is.
        found: String,
        /// What may be replaced.
        expected: String,
    },
    /// The folder in which the output would lie is missing.
    #[error("{}: the folder {} does not exist. Create it first", file.display(), folder.display())]
    FolderMissing {
        /// The output.
        file: PathBuf,
        /// The missing folder.
        folder: PathBuf,
    },
    /// The disk has too little room for the output.
    #[error("{}: needs {needed} bytes and the disk has {free} bytes free. Free some space or choose another folder with -o", file.display())]
    DiskFull {
        /// The output.
        file: PathBuf,
        /// Bytes that the output takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}

fn subject(tensor: &Option<String>) -> String {
    tensor.as_ref().map_or_else(String::new, |name| format!("tensor `{name}`: "))
}

fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull => ". Free some space or choose another folder with -o",
        std::io::ErrorKind::PermissionDenied => ". Check the permissions of the file and its folder",
        std::io::ErrorKind::NotFound => ". Check the path",
        _ => "",
    }
}

impl Error {
    /// A file whose content breaks its format's rules.
    pub fn malformed(
        file: &Path,
        tensor: Option<&str>,
        found: impl Into<String>,
        expected: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self::Malformed {
            file: file.to_owned(),
            tensor: tensor.map(str::to_owned),
            found: found.into(),
            expected: expected.into(),
            next: next.into(),
        }
    }

    /// For `map_err`: what was tried on which path.
    pub fn io(file: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { file, action, source }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Malformed { .. } => Kind::Input,
            Self::OutputExists { .. } | Self::NotReplaceable { .. } => Kind::Usage,
            Self::FolderMissing { .. } | Self::Io { .. } | Self::Changed { .. } | Self::DiskFull { .. } => Kind::Io,
        }
    }
}

/// The result of reading or writing a container.
pub type Result<T, E = Error> = std::result::Result<T, E>;
