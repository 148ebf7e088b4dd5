//! Nodes in processes of their own: this test binary again, asked for a test that is none without its variable.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use distribute::{Node, NodeName};

/// A child process, killed at the end.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) name: NodeName,
}

impl Process {
    /// Runs one test of this binary with a variable set, until it says its node's name.
    pub(crate) fn start(test: &str, variable: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(variable, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let name = lines.find_map(|line| line.unwrap().strip_prefix("node ").map(|name| name.parse().unwrap()));
        // The rest is the test harness's own; the pipe must stay open for it.
        std::thread::spawn(move || lines.count());
        Self { child, name: name.expect("the child says its name") }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.child.id())]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child: says the node's name, and lets it live until its standard input ends.
pub(crate) async fn live(node: Node) {
    println!("\nnode {}", node.name());
    tokio::task::spawn_blocking(|| std::io::stdin().lines().count()).await.unwrap();
    node.shutdown().await;
}
