//! How much memory the process has, and what it asks of its allocator.
//!
//! Geo data and a new atlas are built in blocks of megabytes that are given back a second later. The C library's allocator learns from the
//! first of them to take such blocks from its heap, where they leave holes that never go back to the system: 109 MiB resident
//! with the builtin data and six regions, 57 MiB without that habit (measured, x86-64, glibc 2.36). No request allocates in the long
//! run, so a faster allocator would gain nothing.
//!
//! When there is no memory left, the kernel ends the process, and with it every request. So it is looked at, four times a second: above
//! `[limits] memory`, or nine tenths of what its control group allows (`MemoryMax=`, a container's limit; cgroup v2), nothing new is begun. What others
//! have in the same group is theirs to give back: the group counts while most of what is used in it is the process's own.
//!
//! Must not know what the memory is for.

#![allow(
    unsafe_code,
    reason = "two calls of the C library, which no crate wraps: one halves the memory of an idle process, without the other no pressure ends"
)]

use std::cell::LazyCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, interval};

use crate::pressure::Pressure;
use crate::state::Reader;
use crate::telemetry::{Metrics, kilobytes};

/// Blocks of this many bytes and more go back to the system when they are freed. The C library's own first threshold.
const LARGE: i32 = 128 << 10;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Between two times that the allocator gives back what it holds in store, while memory is short: each of its parts stands still meanwhile.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// What of a control group's limit may be used: before it is reached, the kernel makes the process wait for memory.
const OF_A_GROUP: u64 = 90;

/// Percent of the bound below which there is enough again.
const ENOUGH: u64 = 95;

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

/// Large blocks go back to the system when they are freed. To be called before there are other threads. Does nothing where the C library is not
/// glibc.
pub fn give_large_blocks_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers and changes how later allocations are made; no other thread allocates meanwhile. Should it refuse,
    // everything stays as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// What was freed goes back to the system: else the process would have too much for ever once it had.
fn give_free_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes a number, may be called by any thread at any time, and gives back only what nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Says under `pressure` whether there is too little memory to begin anything, for ever.
pub async fn watch(reader: Reader, pressure: Pressure, metrics: Metrics) {
    let group = Group::of(Path::new(GROUPS), &read(Path::new("/proc/self/cgroup")));
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut given_back: Option<Instant> = None;
    loop {
        looks.tick().await;
        let most = reader.load().edge.limits.memory;
        // Where nothing bounds it, it is not looked at.
        let bytes = LazyCell::new(|| own(&read(Path::new("/proc/self/status"))));
        let own = (most > 0).then(|| Use { bytes: *bytes, most });
        let tightest = own.into_iter().chain(group.uses(|| *bytes)).max_by(Use::compare);
        let on = tightest.is_some_and(|tightest| tightest.is_short(pressure.is_on()));
        match (pressure.set(on), on, tightest) {
            (false, true, Some(Use { bytes, most })) => {
                tracing::warn!(bytes, most, "memory is short: nothing new is begun ([limits] memory, MemoryMax=)");
            }
            (true, false, Some(Use { bytes, most })) => tracing::info!(bytes, most, "there is enough memory again"),
            (true, false, None) => tracing::info!("memory has no bound any more"),
            _ => {}
        }
        metrics.memory_pressure(on);
        if on && given_back.is_none_or(|at| at.elapsed() >= GIVE_BACK) {
            given_back = Some(Instant::now());
            give_free_memory_back();
        }
    }
}

/// Memory in use, and what may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    bytes: u64,
    most: u64,
}

impl Use {
    /// Whether it is too much, when it was or was not before.
    fn is_short(self, before: bool) -> bool {
        let most = if before { share(self.most, ENOUGH) } else { self.most };
        self.bytes > most
    }

    /// By the share that is in use.
    fn compare(&self, other: &Use) -> std::cmp::Ordering {
        let (left, right) = (u128::from(self.bytes), u128::from(other.bytes));
        (left * u128::from(other.most)).cmp(&(right * u128::from(self.most)))
    }
}

/// So many percent, without overflow.
fn share(of: u64, percent: u64) -> u64 {
    of / 100 * percent + of % 100 * percent / 100
}

/// What the process has that no file backs, of `/proc/self/status`.
fn own(status: &str) -> u64 {
    ["RssAnon:", "RssShmem:"].iter().filter_map(|key| kilobytes(status, key)).sum::<f64>() as u64
}

/// The control group of the process and those around it, the innermost first. The first one with a limit counts.
#[derive(Debug)]
struct Group(Vec<PathBuf>);

impl Group {
    /// That of `/proc/self/cgroup`, which has one line for cgroup v2: `0::/system.slice/meridian.service`.
    fn of(root: &Path, lines: &str) -> Group {
        let Some(path) = lines.lines().find_map(|line| line.strip_prefix("0::/")) else { return Group(Vec::new()) };
        let inner = root.join(path);
        // Outside of what a container sees there is nothing to read.
        let inner = if path.split('/').any(|part| part == "..") { root.to_owned() } else { inner };
        Group(inner.ancestors().take_while(|path| path.starts_with(root)).map(Path::to_owned).collect())
    }

    /// What is used of its limit, if it has one, and most of it is by the process, which has `own` bytes itself.
    fn uses(&self, own: impl FnOnce() -> u64) -> Option<Use> {
        let number = |path: PathBuf| read(&path).trim().parse::<u64>().ok();
        let (group, limit) = self.0.iter().find_map(|group| Some((group, number(group.join("memory.max"))?)))?;
        let current = number(group.join("memory.current"))?;
        let stat = read(&group.join("memory.stat"));
        let sum = |keys: [&str; 2]| -> u64 {
            let value = |key| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
            keys.into_iter().filter_map(value).sum()
        };
        // What the kernel takes back by itself: copies of files.
        let bytes = current.saturating_sub(sum(["inactive_file ", "active_file "]));
        // What it has for connections.
        let own = own().saturating_add(sum(["sock ", "kernel "]));
        (own >= bytes / 2).then_some(Use { bytes, most: share(limit, OF_A_GROUP) })
    }
}

/// A small file of the kernel's; empty if there is none.
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_group_with_a_limit_counts_while_it_is_ours() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("slice/unit");
        fs::create_dir_all(&inner).unwrap();
        let group = |path: &Path, max: &str, current: &str| {
            fs::write(path.join("memory.max"), max).unwrap();
            fs::write(path.join("memory.current"), current).unwrap();
            let stat = "anon 1\nfile 900\nkernel 30\nkernel_stack 7\nsock 50\ninactive_file 20\nactive_file 10\n";
            fs::write(path.join("memory.stat"), stat).unwrap();
        };
        group(&inner, "max\n", "530\n");
        let found = Group::of(root.path(), "1:cpu:/other\n0::/slice/unit\n");
        assert_eq!(found.uses(|| 1_000), None, "there is no limit");
        group(&root.path().join("slice"), "800\n", "730\n");
        assert_eq!(found.uses(|| 1_000), Some(Use { bytes: 700, most: 720 }));
        group(&inner, "1000\n", "530\n");
        assert_eq!(found.uses(|| 1_000), Some(Use { bytes: 500, most: 900 }));
        // Others have most of it; connections count as ours.
        assert_eq!((found.uses(|| 169), found.uses(|| 170).is_some()), (None, true));
        // A container that sees only itself; one whose path leads outside; no control groups.
        group(root.path(), "100\n", "35\n");
        for lines in ["0::/\n", "0::/../../unit\n"] {
            assert_eq!(Group::of(root.path(), lines).uses(|| 9), Some(Use { bytes: 5, most: 90 }));
        }
        assert_eq!(Group::of(root.path(), "1:memory:/\n").uses(|| 9), None);
    }

    #[test]
    fn there_is_enough_again_only_a_step_below() {
        let uses = |bytes| Use { bytes, most: 1000 };
        assert!(!uses(1000).is_short(false) && uses(1001).is_short(false));
        assert!(uses(951).is_short(true) && !uses(950).is_short(true));
        assert_eq!(share(u64::MAX, 100), u64::MAX);
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        assert!(own(&read(Path::new("/proc/self/status"))) > 100_000);
        assert_eq!(own("RssAnon:\t      3 kB\nRssFile:\t 5 kB\nRssShmem:\t 4 kB\n"), 7 << 10);
    }
}
