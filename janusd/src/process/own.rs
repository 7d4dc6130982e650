//! What janusd itself takes, as procfs and the kernel's clocks say. Reads some files of `/proc/self`, a fraction of a
//! millisecond in all.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::facts::{Stat, field};

/// Ticks of the clock of `/proc/PID/stat` in a second: a part of the kernel's interface, 100 wherever Rust runs.
const TICKS: f64 = 100.0;

/// What this process takes now. `None`: it could not be read.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// User and system time of all its threads, ended ones included.
    pub cpu: Duration,
    /// Memory that it has, bytes.
    pub resident: Option<u64>,
    /// Memory that it may address, bytes.
    pub addressed: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Descriptors.
    pub open_files: Option<u64>,
    /// How many it may have, `u64::MAX` if nothing limits it.
    pub most_open_files: u64,
}

impl Taken {
    /// Looks.
    pub fn now() -> Taken {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or_default());
        // Without procfs there would be no guard either: what is missing is left out, and nobody has to be told.
        let status = std::fs::read("/proc/self/status").unwrap_or_default();
        let kilobytes = |name| field(&status, name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        Taken {
            cpu,
            resident: kilobytes("VmRSS").map(|kilobytes| kilobytes * 1024),
            addressed: kilobytes("VmSize").map(|kilobytes| kilobytes * 1024),
            threads: field(&status, "Threads").and_then(|threads| threads.parse().ok()),
            open_files: open_files(),
            most_open_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        }
    }
}

fn open_files() -> Option<u64> {
    // The kernel tells it as the directory's size, since 6.2.
    let directory = std::fs::metadata("/proc/self/fd").ok()?;
    match directory.len() {
        // Less the one that counts.
        0 => Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64),
        count => Some(count),
    }
}

/// When this process started, seconds since the epoch.
pub fn started() -> Option<f64> {
    let stat = Stat::parse(&std::fs::read("/proc/self/stat").ok()?)?;
    let node = std::fs::read_to_string("/proc/stat").ok()?;
    let booted: u64 = node.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some(booted as f64 + stat.start as f64 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_seen() {
        let before = Taken::now();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let memory = vec![1u8; 64 << 20];
        let after = Taken::now();
        // Other tests run beside this one.
        assert!(after.open_files.unwrap() >= before.open_files.unwrap() + 25, "{before:?} {after:?}");
        assert!(after.resident.unwrap() >= before.resident.unwrap() + (32 << 20), "{before:?} {after:?}");
        assert!(after.addressed.unwrap() > after.resident.unwrap(), "{after:?}");
        assert!(after.cpu > before.cpu && after.threads.unwrap() >= 1, "{before:?} {after:?}");
        assert!(after.most_open_files >= after.open_files.unwrap(), "{after:?}");
        drop((files, memory));
    }

    #[test]
    fn it_started_before_now_and_not_long_ago() {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let age = now - started().unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age} s");
    }
}
