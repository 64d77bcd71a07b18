//! `compress check`.

use std::sync::Arc;

use formats::Access;

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
    let written = Arc::new(Checkpoint::open(&args.compressed, &Options { access, companions, ..Options::default() })?);
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
        limits: Limits {
            max_kl: args.max_kl.unwrap_or(limits.max_kl),
            min_cosine: args.min_cosine.unwrap_or(limits.min_cosine),
        },
    }
}

/// The limits of the loosest scheme that a file's weights have.
fn limits_of(written: &Checkpoint) -> Limits {
    let codes = written.weights().iter().any(|weight| match weight.encoding {
        Encoding::Plain(dtype) => dtype.is_block(),
        _ => true,
    });
    if codes { Scheme::Int8.limits() } else { Scheme::F16.limits() }
}
