//! Progress on a terminal as a bar, elsewhere as plain lines.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::Common;
use super::exit::Failure;
use crate::job::{Cancel, Job, Progress, Silent};
use crate::threads::Pool;

/// The surroundings that a command's flags ask for. From here on an interrupt asks the work to stop and clean up.
pub fn job(common: &Common) -> Result<Job, Failure> {
    let cancel = Cancel::default();
    let on_signal = cancel.clone();
    ctrlc::set_handler(move || on_signal.cancel())
        .map_err(|e| Failure::Usage(format!("cannot listen for interrupts: {e}")))?;
    let progress: Arc<dyn Progress> = match (common.quiet, std::io::stderr().is_terminal()) {
        (true, _) => Arc::new(Silent),
        (false, true) => Arc::new(Bar::default()),
        (false, false) => Arc::new(Lines),
    };
    let memory = common.memory.map_or(Job::DEFAULT_MEMORY, |memory| memory.0);
    Ok(Job { pool: Arc::new(Pool::new(common.threads)), memory, cancel, progress })
}

/// [`job`] where a text chooses codes, which takes sums over the inputs of a matrix: without `--memory` a quarter of the
/// machine's, between the default and 3 GiB.
pub fn job_with_sums(common: &Common) -> Result<Job, Failure> {
    const MOST: u64 = 3 << 30;
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().trim_end_matches("kB").trim().parse().ok());
    let room = (total.unwrap_or(0u64).saturating_mul(1024) / 4).clamp(Job::DEFAULT_MEMORY, MOST);
    let job = job(common)?;
    Ok(Job { memory: if common.memory.is_none() { room } else { job.memory }, ..job })
}

/// A bar by bytes.
#[derive(Default)]
struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Bar {
    fn begin(&self, stage: &str, total: u64) {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let template = "{msg:16} {wide_bar} {percent:>3}% {elapsed} (left {eta})";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(stage.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.with(|now| *now = Some(bar));
    }
    fn advance(&self, amount: u64) {
        self.with(|now| now.iter().for_each(|bar| bar.inc(amount)));
    }
    fn end(&self) {
        self.with(|now| now.take().iter().for_each(ProgressBar::finish_and_clear));
    }
}

/// A line when a stage begins.
struct Lines;

impl Progress for Lines {
    fn begin(&self, stage: &str, _: u64) {
        eprintln!("{stage} …");
    }
    fn advance(&self, _: u64) {}
    fn end(&self) {}
}
