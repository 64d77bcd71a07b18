//! The command line: arguments, resolved into options, become calls of the library.

mod args;
mod bench;
mod bits;
mod check;
mod compress;
mod convert;
mod exit;
mod fit;
mod inspect;
mod progress;
mod run;
mod write;

use std::io::Write;
use std::ops::ControlFlow;

pub use args::Cli;
pub use exit::{Failure, code};

use args::{Command, Common};

use crate::loader::Checkpoint;
use crate::runtime::kernels::requested;

/// Runs the program.
///
/// # Errors
/// Whatever went wrong, with its exit code to be had from [`code`].
pub fn run(cli: Cli) -> Result<(), Failure> {
    requested().map_err(|e| Failure::Usage(e.to_string()))?;
    match cli.command {
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Fit(args)) => fit::run(&args),
        None => compress::run(&cli.compress),
    }
}

/// Prints a command's result. A reader that has gone is no error.
fn print(text: &str) -> Result<(), Failure> {
    stream(text).map(|_| ())
}

/// Prints a part of a command's result; breaks if the reader has gone.
fn stream(text: &str) -> Result<ControlFlow<()>, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(e) => Err(Failure::Output(e)),
    }
}

/// Says what of a model is passed over.
fn remark(checkpoint: &Checkpoint, common: &Common) {
    for remark in checkpoint.remarks().iter().filter(|_| !common.quiet) {
        eprintln!("compress: {}: {remark}", checkpoint.path().display());
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::Output(e.into()))?;
    print(&format!("{text}\n"))
}
