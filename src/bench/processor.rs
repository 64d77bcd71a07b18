//! Who had the processor while something was measured: this process, other programs, or the hypervisor's other guests.

use serde::{Deserialize, Serialize};

/// Processor time of all cores together over some while, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// All there was.
    pub total: u64,
    /// What this process used.
    pub own: u64,
    /// What nobody used.
    pub idle: u64,
    /// What the hypervisor gave to others.
    pub stolen: u64,
}

/// More than this share of the processor for others than us, and the machine is busy.
const BUSY: f64 = 0.05;

/// More than this share for other guests, and the machine is busy.
const STOLEN: f64 = 0.02;

/// Fewer ticks than this say nothing.
const FEW: u64 = 50;

impl Usage {
    /// The share of all processor time that other programs on this machine used.
    pub fn others(&self) -> f64 {
        let used = self.total.saturating_sub(self.own + self.idle + self.stolen);
        used as f64 / self.total.max(1) as f64
    }

    /// The share of all processor time that the hypervisor gave to others.
    pub fn stolen(&self) -> f64 {
        self.stolen as f64 / self.total.max(1) as f64
    }

    /// Whether others used so much that times are too long.
    pub fn is_busy(&self) -> bool {
        self.total >= FEW && (self.others() > BUSY || self.stolen() > STOLEN)
    }

    /// Both whiles together.
    #[must_use]
    pub fn and(self, other: Usage) -> Usage {
        Usage {
            total: self.total + other.total,
            own: self.own + other.own,
            idle: self.idle + other.idle,
            stolen: self.stolen + other.stolen,
        }
    }
}

/// Counts processor time from its making on.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Option<Usage>);

impl Clock {
    /// Starts to count.
    pub fn start() -> Self {
        Self(now())
    }

    /// The time since the start; `None` where the system does not tell.
    pub fn stop(self) -> Option<Usage> {
        let (from, to) = (self.0?, now()?);
        Some(Usage {
            total: to.total.saturating_sub(from.total),
            own: to.own.saturating_sub(from.own),
            idle: to.idle.saturating_sub(from.idle),
            stolen: to.stolen.saturating_sub(from.stolen),
        })
    }
}

/// The counters of Linux, in ticks since the machine and the process began.
fn now() -> Option<Usage> {
    let machine = parse_machine(&std::fs::read_to_string("/proc/stat").ok()?)?;
    Some(Usage { own: parse_process(&std::fs::read_to_string("/proc/self/stat").ok()?)?, ..machine })
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's.
fn parse_machine(text: &str) -> Option<Usage> {
    let fields: Vec<u64> =
        text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let &[user, nice, system, idle, waiting, irq, soft, stolen, ..] = fields.as_slice() else { return None };
    let idle = idle + waiting;
    Some(Usage { total: user + nice + system + idle + irq + soft + stolen, own: 0, idle, stolen })
}

/// `/proc/self/stat`: user and system time are fields 14 and 15; the second, the name, may hold blanks and parentheses.
fn parse_process(text: &str) -> Option<u64> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_proc_5_says() {
        let usage = parse_machine("cpu  100 1 20 800 5 2 3 40 7 0\ncpu0 …").unwrap();
        assert_eq!(usage, Usage { total: 971, own: 0, idle: 805, stolen: 40 });
        let process = "12 (a) b) R 1 2 3 4 5 6 7 8 9 10 310 20 0 0 20 0";
        assert_eq!(parse_process(process), Some(330));
        assert_eq!((parse_machine("cpu0 1 2"), parse_process("12 a")), (None, None));
    }

    #[test]
    fn a_busy_machine_is_one_whose_time_others_use() {
        let usage = |own, idle, stolen| Usage { total: 1000, own, idle, stolen };
        assert!(!usage(980, 0, 0).is_busy() && !usage(0, 1000, 0).is_busy());
        assert!(usage(500, 0, 0).is_busy() && usage(970, 0, 25).is_busy());
        assert!((usage(500, 200, 100).others() - 0.2).abs() < 1e-9);
        // Ticks are coarse: of a short while nothing can be said.
        assert!(!Usage { total: 10, own: 5, idle: 0, stolen: 0 }.is_busy());
        let both = usage(1, 2, 3).and(usage(4, 5, 6));
        assert_eq!(both, Usage { total: 2000, own: 5, idle: 7, stolen: 9 });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn own_time_is_counted() {
        // The counters of the machine and of the process are sampled apart, and a loaded machine runs us late.
        let clock = Clock::start();
        let start = std::time::Instant::now();
        let mut x = 1u64;
        while start.elapsed().as_secs() < 30 && clock.stop().unwrap().own < 5 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let usage = clock.stop().unwrap();
        assert!(usage.own >= 5 && usage.total >= 4, "{usage:?} {x}");
    }
}
