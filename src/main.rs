//! The program `compress`: parse, run, turn an error into an exit code.

use std::process::ExitCode;

use clap::Parser;
use modelpress::cli::{Cli, code, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("compress: {failure}");
            ExitCode::from(code(&failure))
        }
    }
}
