//! `compress check`.

use std::sync::Arc;

use formats::{Access, Dtype};

use super::args::{CheckArgs, CheckOptions};
use super::{Failure, print, print_json, progress};
use crate::check;
use crate::encoding::Encoding;
use crate::loader::{Checkpoint, Options};
use crate::recipe::{Limits, Scheme};
use crate::report::check_table;

pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let job = progress::job(&args.common)?;
    let access = if args.common.no_mmap { Access::Read } else { Access::Mapped };
    let original = Arc::new(Checkpoint::open(&args.original, &Options { access, ..Options::default() })?);
    let companions = Some(original.companions().clone());
    let inputs = args.activations.map(Into::into);
    let written = Options { access, companions, inputs, ..Options::default() };
    let written = Arc::new(Checkpoint::open(&args.compressed, &written)?);
    let options = options(&args.check, limits_of(&written));
    let findings = check::compare(&original, &written, &options, &job)?;
    if args.common.json {
        print_json(&findings.outputs)?;
    } else if !args.common.quiet {
        print(&check_table(&findings))?;
    }
    if findings.outputs.passed() {
        return Ok(());
    }
    Err(Failure::Refused(format!("{}: {}", args.compressed.display(), findings.failures.join("; "))))
}

/// Flags, and where they say nothing, the scheme's limits.
pub fn options(args: &CheckOptions, limits: Limits) -> check::Options {
    check::Options {
        text: args.text.clone(),
        context: args.context.map(|n| n as usize),
        tokens: args.check_tokens as usize,
        scored: args.score.into(),
        limits: Limits {
            max_kl: args.max_kl.unwrap_or(limits.max_kl),
            min_cosine: args.min_cosine.unwrap_or(limits.min_cosine),
        },
    }
}

/// The limits of the loosest form that a file's weights have.
fn limits_of(written: &Checkpoint) -> Limits {
    let forms = written.weights().iter().map(|weight| match weight.encoding {
        Encoding::Plain(dtype) if dtype.is_float() || dtype.is_block() => Limits::of(dtype),
        Encoding::Plain(_) => Limits::of(Dtype::F32),
        _ => Scheme::Int8.limits(),
    });
    forms.fold(Limits::of(Dtype::F32), Limits::or_looser)
}
