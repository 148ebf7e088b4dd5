//! What Linux tells of this process and this machine.

use std::process::{Command, Stdio};
use std::time::Duration;

/// The CPU time of all threads of this process, in user and in kernel mode.
pub(crate) fn cpu() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux tells of threads in /proc");
    let nanos = threads.flatten().filter_map(|thread| {
        // A thread that ended meanwhile has no file any more.
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// The CPUs that this process may use.
pub(crate) fn allowed_cpus() -> Vec<u32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// One CPU, or some in a row: `3`, `0-7`.
fn range(text: &str) -> Option<std::ops::RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// Moves all threads of a process to these CPUs; whether that was possible.
pub(crate) fn place(process: u32, cpus: &[u32]) -> bool {
    let cpus = cpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut taskset = Command::new("taskset");
    taskset.args(["--all-tasks", "--cpu-list", "--pid", &cpus, &process.to_string()]);
    taskset.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The machine in a line.
pub(crate) fn describe() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let kernel = kernel.split('-').next().unwrap_or_default().trim().to_owned();
    format!("{cpus} CPUs ({}), Linux {kernel}, loopback", model.unwrap_or("unknown"))
}
