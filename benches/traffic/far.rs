//! The far end: what answers and counts, in this process or in one of its own.
//!
//! A far end of its own is this program again. It gets its [`Secrets`] as the first line of its input and answers with its
//! [`Places`]; to each further line it answers with a [`Report`]. It exits when its input ends, so it never outlives the
//! near end.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use distribute::{Cookie, Node, NodeName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::measure::resident_kib;
use crate::options::RuntimeKind;
use crate::raw::{Identity, QUINN_MTU, Raw};
use crate::{JUMBO_MTU, baseline, machine, ours};

/// The argument that makes this program a far end.
pub(crate) const ARGUMENT: &str = "--far-end";

/// What both ends must know.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secrets {
    pub(crate) runtime: RuntimeKind,
    pub(crate) cookie: String,
    pub(crate) identity: Identity,
}

/// Where the far end is, with quinn's own MTU and with a larger one.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Places {
    pub(crate) raw: SocketAddr,
    pub(crate) raw_jumbo: SocketAddr,
    pub(crate) node: NodeName,
    pub(crate) node_jumbo: NodeName,
}

/// What the far end has done, by its own clock.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) at: Duration,
    pub(crate) arrived: u64,
    /// The CPU time of its process; nothing, if that is also the near end's.
    pub(crate) cpu: Duration,
    /// Likewise its resident memory.
    pub(crate) resident_kib: f64,
}

pub(crate) struct Far {
    pub(crate) places: Places,
    end: End,
}

enum End {
    Here(Server),
    There(Process),
}

impl Secrets {
    pub(crate) fn generate(runtime: RuntimeKind) -> Self {
        Self { runtime, cookie: Cookie::generate().reveal(), identity: Identity::generate() }
    }
}

impl Far {
    /// Both ends in this process, on the runtime of the caller.
    pub(crate) async fn here(secrets: &Secrets) -> Self {
        let server = Server::start(secrets).await;
        Self { places: server.places(), end: End::Here(server) }
    }

    pub(crate) fn in_a_process(secrets: &Secrets) -> Self {
        let mut process = Process::start();
        let places = process.ask(secrets);
        Self { places, end: End::There(process) }
    }

    /// The process of its own, if it has one.
    pub(crate) fn process(&self) -> Option<u32> {
        match &self.end {
            End::Here(_) => None,
            End::There(process) => Some(process.child.id()),
        }
    }

    pub(crate) fn report(&mut self) -> Report {
        match &mut self.end {
            End::Here(server) => Report { cpu: Duration::ZERO, resident_kib: 0.0, ..server.report() },
            End::There(process) => process.ask(&()),
        }
    }

    /// Waits until what was under way has arrived.
    pub(crate) async fn settle(&mut self) {
        let mut before = self.report().arrived;
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let after = self.report().arrived;
            if after == before {
                return;
            }
            before = after;
        }
    }
}

/// The far end as a process.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    fn ask<T: DeserializeOwned>(&mut self, question: &impl Serialize) -> T {
        writeln!(self.input, "{}", serde_json::to_string(question).unwrap()).expect("the far end reads");
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).expect("the far end answers")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What runs at the far end.
struct Server {
    begun: Instant,
    arrived: Arc<AtomicU64>,
    raw: [quinn::Endpoint; 2],
    nodes: [Node; 2],
    /// Ends with the server.
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(secrets: &Secrets) -> Self {
        let arrived = Arc::new(AtomicU64::new(0));
        let raw = [QUINN_MTU, JUMBO_MTU].map(|mtu| Raw::new(secrets.identity.clone(), mtu).endpoint());
        let mut tasks = JoinSet::new();
        for endpoint in &raw {
            tasks.spawn(baseline::serve(endpoint.clone(), arrived.clone()));
        }
        let nodes = [
            ours::start("far", &secrets.cookie, QUINN_MTU).await,
            ours::start("far-jumbo", &secrets.cookie, JUMBO_MTU).await,
        ];
        for node in &nodes {
            ours::serve(node, &arrived);
        }
        Self { begun: Instant::now(), arrived, raw, nodes, _tasks: tasks }
    }

    fn places(&self) -> Places {
        let [raw, raw_jumbo] = [0, 1].map(|at| self.raw[at].local_addr().unwrap());
        let [node, node_jumbo] = [0, 1].map(|at| self.nodes[at].name().clone());
        Places { raw, raw_jumbo, node, node_jumbo }
    }

    fn report(&self) -> Report {
        let arrived = self.arrived.load(Ordering::Relaxed);
        Report { at: self.begun.elapsed(), arrived, cpu: machine::cpu(), resident_kib: resident_kib() }
    }
}

/// The whole of a far end's process.
pub(crate) fn run() {
    let Some(Ok(first)) = std::io::stdin().lines().next() else { return };
    let secrets: Secrets = serde_json::from_str(&first).expect("the near end tells its secrets first");
    let runtime = secrets.runtime.build();
    let server = runtime.block_on(Server::start(&secrets));
    println!("{}", serde_json::to_string(&server.places()).unwrap());
    // The runtime works here; the near end is heard by a thread beside it.
    let (done, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            println!("{}", serde_json::to_string(&server.report()).unwrap());
        }
        drop(done);
    });
    let _ = runtime.block_on(end);
    // Not in good order: nobody is there to say goodbye to.
    std::process::exit(0);
}
