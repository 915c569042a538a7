//! This process as the kernel sees it, under the names that every Prometheus client uses.
//!
//! Read from `/proc/self` at the scrape. The `prometheus` crate's own collector would bring two more crates for these five files'
//! worth of text. What cannot be read (another system, a hardened `/proc`) is left out.

use std::fs;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};

/// Clock ticks per second in `/proc/self/stat`: `USER_HZ`, 100 wherever meridian runs (proc(5), kernel ABI).
const USER_HZ: f64 = 100.0;

const CONSTANTS: &str = "metric names are constants, and valid";

/// The families that can be read.
pub(super) fn gather() -> Vec<MetricFamily> {
    let mut families = Vec::new();
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let gauge = Gauge::new(name, help).expect(CONSTANTS);
            gauge.set(value);
            families.extend(gauge.collect());
        }
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    gauge("process_resident_memory_bytes", "Resident memory size.", kilobytes(&status, "VmRSS:"));
    gauge("process_virtual_memory_bytes", "Virtual memory size.", kilobytes(&status, "VmSize:"));
    let threads = field(&status, "Threads:");
    gauge("process_threads", "Threads of the process.", threads);
    // One of the entries is the directory being read.
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64);
    gauge("process_open_fds", "Open file descriptors.", open);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    gauge("process_max_fds", "The most file descriptors that may be open.", field(&limits, "Max open files"));
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let uptime = fs::read_to_string("/proc/stat").unwrap_or_default();
    if let Some(ticks) = start_ticks(&stat) {
        let start = field(&uptime, "btime").map(|boot| boot + ticks / USER_HZ);
        gauge("process_start_time_seconds", "When the process started.", start);
    }
    if let Some(seconds) = cpu_seconds(&stat) {
        let counter = Counter::new("process_cpu_seconds_total", "CPU time spent.").expect(CONSTANTS);
        counter.inc_by(seconds);
        families.extend(counter.collect());
    }
    families
}

/// The first number after `key` at the start of a line.
fn field(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes: the kilobytes after `key` at the start of a line, as `/proc` writes them.
pub(crate) fn kilobytes(text: &str, key: &str) -> Option<f64> {
    field(text, key).map(|kb| kb * 1024.0)
}

/// Field `number` of `/proc/self/stat` as proc(5) counts them. The second one, the name, may hold spaces and parentheses.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(number - 3)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / USER_HZ)
}

fn start_ticks(stat: &str) -> Option<f64> {
    stat_field(stat, 22)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_nothing() {
        let stat = "12 (a) b (c) S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 123456 1000 200";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(start_ticks(stat), Some(123_456.0));
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let names: Vec<String> = gather().iter().map(|family| family.name().to_owned()).collect();
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"] {
            assert!(names.iter().any(|n| n == name), "{name} is missing of {names:?}");
        }
    }
}
