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

/// The CPUs that this process may use, as `taskset -c` takes them.
pub(crate) fn allowed_cpus() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.map_or_else(|| "0".to_owned(), |cpus| cpus.trim().to_owned())
}

/// Moves all threads of these processes to these CPUs; whether that was possible.
pub(crate) fn place(processes: &[u32], cpus: &str) -> bool {
    processes.iter().all(|process| {
        let mut taskset = Command::new("taskset");
        taskset.args(["--all-tasks", "--cpu-list", "--pid", cpus, &process.to_string()]);
        taskset.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    })
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
