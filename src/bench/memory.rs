//! How much memory a process had at most.

use serde::{Deserialize, Serialize};

/// The most memory that a process had in use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Everything that was resident.
    pub peak: u64,
    /// Of it, pages of files that are mapped: the weights where they lie, and the program. The system can take them back at any
    /// time, and processes that map the same file share them.
    pub mapped: u64,
}

impl Memory {
    /// The most that this process had so far; `None` where the system does not tell. Mapped pages are those of now: a process
    /// that gave pages back had more.
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    /// What no file stands behind: heap and stacks.
    pub fn anonymous(&self) -> u64 {
        self.peak - self.mapped
    }

    fn parse(status: &str) -> Option<Self> {
        let kilobytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let peak = 1024 * kilobytes("VmHWM:")?;
        Some(Self { peak, mapped: (1024 * kilobytes("RssFile:")?).min(peak) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_as_proc_5_says() {
        let status = "Name:\tx\nVmHWM:\t    2000 kB\nVmRSS:\t 1500 kB\nRssAnon:\t 300 kB\nRssFile:\t 1200 kB\n";
        let memory = Memory::parse(status).unwrap();
        assert_eq!((memory.peak, memory.mapped, memory.anonymous()), (2_048_000, 1_228_800, 819_200));
        assert_eq!(Memory::parse("VmHWM: 1 kB"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_was_used_and_given_back_counts() {
        let before = Memory::now().unwrap();
        std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(Memory::now().unwrap().peak >= before.peak.max(64 << 20));
    }
}
