//! `compress bench`: models side by side, each measurement in a process of its own, the models in turn.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use formats::Access;

use super::args::BenchArgs;
use super::{Failure, print, print_json, progress};
use crate::bench::{self, Clock, Machine, Options, Peaks, Round, Subject, Usage};
use crate::job::Job;
use crate::report::{BenchReport, bench_table};

pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    let options = Options {
        prompt_tokens: args.prompt_tokens.map(|n| n as usize),
        tokens: args.tokens.map(|n| n as usize),
        access: if args.common.no_mmap { Access::Read } else { Access::Mapped },
    };
    let job = progress::job(&args.common)?;
    if let (true, Some(model)) = (args.one_round, args.models.first()) {
        return print_json(&bench::round(model, &options, &job)?);
    }
    let subjects = args.models.iter().map(|path| Subject::open(path, &options)).collect::<Result<Vec<_>, _>>()?;
    let repeat = args.repeat as usize;
    job.progress.begin("bench", (1 + subjects.len() * repeat) as u64);
    let measured = measure(args, &subjects, repeat, &job);
    job.progress.end();
    let (peaks, usage, rounds) = measured?;
    let models = subjects.iter().zip(&rounds).map(|(subject, rounds)| bench::Result::new(subject, rounds, &peaks));
    let report = BenchReport::new(Machine::new(&peaks, job.pool.threads()), usage, repeat, models.collect());
    if args.common.json { print_json(&report) } else { print(&bench_table(&report, args.machine)) }
}

/// The roof, and for each model its rounds. The roof is measured again with every turn, since a machine is not always the same.
fn measure(
    args: &BenchArgs,
    subjects: &[Subject],
    repeat: usize,
    job: &Job,
) -> Result<(Peaks, Usage, Vec<Vec<Round>>), Failure> {
    let (mut peaks, mut usage) = (Peaks::default(), Usage::default());
    let mut rounds = vec![Vec::with_capacity(repeat); subjects.len()];
    for _ in 0..repeat {
        job.cancel.check().map_err(bench::Error::from)?;
        let clock = Clock::start();
        peaks = peaks.or_higher(Peaks::measure(&job.pool));
        usage = usage.and(clock.stop().unwrap_or_default());
        job.progress.advance(1);
        for (subject, rounds) in subjects.iter().zip(&mut rounds) {
            rounds.push(round_elsewhere(args, &subject.path, job)?);
            job.progress.advance(1);
        }
    }
    Ok((peaks, usage, rounds))
}

/// Measures a model once in a process of its own, whose memory is the model's and nothing else's.
fn round_elsewhere(args: &BenchArgs, model: &Path, job: &Job) -> Result<Round, Failure> {
    let failed =
        |what: &str, e: std::io::Error| Failure::Model(format!("{}: cannot be measured: {what}: {e}", model.display()));
    let program = std::env::current_exe().map_err(|e| failed("this program's own path", e))?;
    let mut all: Vec<OsString> = vec!["bench".into(), "--one-round".into(), "--quiet".into()];
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            all.extend([name.into(), value.into()]);
        }
    };
    flag("--prompt-tokens", args.prompt_tokens.map(|n| n.to_string()));
    flag("--tokens", args.tokens.map(|n| n.to_string()));
    flag("--threads", Some(job.pool.threads().to_string()));
    flag("--memory", Some(job.memory.to_string()));
    if args.common.no_mmap {
        all.push("--no-mmap".into());
    }
    all.extend(["--".into(), model.as_os_str().to_owned()]);
    let mut command = Command::new(program);
    command.args(all).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| failed("starting", e))?;
    wait(&mut child, job)?;
    let output = child.wait_with_output().map_err(|e| failed("waiting", e))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let said = text.trim().strip_prefix("compress: ").unwrap_or(text.trim()).to_owned();
    match output.status.code() {
        Some(0) => serde_json::from_slice(&output.stdout)
            .map_err(|e| Failure::Model(format!("{}: the measurement makes no sense: {e}", model.display()))),
        Some(code) => Err(Failure::Elsewhere { said, code: u8::try_from(code).unwrap_or(1) }),
        None => Err(Failure::Model(format!("{}: the measurement was killed ({})", model.display(), output.status))),
    }
}

/// Waits for a process, and ends it when the job is interrupted.
fn wait(child: &mut Child, job: &Job) -> Result<(), Failure> {
    while let Ok(None) = child.try_wait() {
        if let Err(interrupted) = job.cancel.check() {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            let _ = child.wait();
            return Err(bench::Error::from(interrupted).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
