//! What this process itself takes, as procfs and the kernel's clocks say.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// This process, as every Prometheus client names it. Read at each scrape.
#[derive(Debug)]
pub(super) struct OwnProcess {
    /// Seconds since 1970.
    started: Option<f64>,
}

impl OwnProcess {
    pub(super) fn new() -> OwnProcess {
        OwnProcess { started: started() }
    }
}

impl Collector for OwnProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = ConstCounter::new(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9);
        let help = "User and system time of this process, seconds";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)?;
        // Without procfs these are left out.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let of = |name: &str| {
            let field = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            field.split_whitespace().next()?.parse::<f64>().ok()
        };
        let kilobytes = |name: &str| of(name).map(|kilobytes| kilobytes * 1024.0);
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|open| open.count().saturating_sub(1) as f64);
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) as f64;
        let gauges = [
            ("process_resident_memory_bytes", "Memory that this process has", kilobytes("VmRSS")),
            ("process_virtual_memory_bytes", "Memory that this process may address", kilobytes("VmSize")),
            ("process_threads", "Threads of this process", of("Threads")),
            ("process_open_fds", "Descriptors of this process", open),
            ("process_max_fds", "Descriptors that this process may have", Some(most)),
            ("process_start_time_seconds", "When this process started, seconds since 1970", self.started),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Seconds since 1970, as procfs counts them.
fn started() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The process's name, in parentheses, may hold anything. Its start is the 20th field after it, in hundredths since boot.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let node = std::fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = node.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some(booted + ticks / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_started_a_moment_ago() {
        let age = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - started().unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age} s");
    }

    #[test]
    fn all_of_it_is_told() {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(OwnProcess::new()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_threads",
            "process_open_fds",
            "process_max_fds",
            "process_start_time_seconds",
        ] {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            assert!(value.unwrap().parse::<f64>().unwrap() > 0.0, "{name}: {text}");
        }
    }
}
