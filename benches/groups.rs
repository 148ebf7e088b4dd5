//! Broadcasts to groups: how long until all members' nodes say that they have it, how long until the last member has read
//! it, and what goes over the wire.
//!
//! `cargo bench --bench groups [-- ROUNDS]`. Times are over loopback in one process with a current-thread runtime, with the
//! members spread evenly over other nodes than the sender's; bytes are UDP payload on the in-memory network, of one broadcast
//! with all that follows from it: acknowledgements, answers, credit.

use std::time::{Duration, Instant};

use distribute::pieces::tell_member;
use distribute::sim::Fabric;
use distribute::{Bytes, Config, Cookie, Group, Mailbox, Network, Node};

use crate::measure::median;

#[allow(dead_code, reason = "each benchmark takes what it needs")]
mod measure;

const GROUP: Group<Bytes> = Group::new("bench");
const BODY: usize = 100;
const WARM_UP: usize = 20;

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(300);
    println!("groups: broadcasts of {BODY} bytes, {rounds} rounds each; one process, current-thread runtime\n");
    println!(
        "{:>6} {:>8} {:>14} {:>14} {:>14} {:>12} {:>14}",
        "nodes", "members", "answered p50", "p99", "read p50", "bytes", "bytes/node"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for members in [10, 100, 1000] {
        for nodes in 1..=5 {
            let bytes = runtime.block_on(wire(nodes, members));
            runtime.block_on(times(nodes, members, rounds, bytes));
        }
    }
}

/// A sender, and nodes that share the members.
struct World {
    sender: Node,
    nodes: Vec<Node>,
    members: Vec<Mailbox<Bytes>>,
}

impl World {
    async fn new(nodes: usize, members: usize, network: impl Fn(usize) -> (String, Network)) -> Self {
        let cookie = Cookie::generate();
        let mut all = Vec::new();
        for n in 0..=nodes {
            let (name, network) = network(n);
            // Nothing but broadcasts is to be measured.
            let day = Duration::from_secs(24 * 60 * 60);
            let mut config = Config::default();
            (config.probe_interval, config.sync_interval, config.dead_kept) = (day, day, 200 * day);
            let builder = Node::builder(name.as_str()).cookie(cookie.clone()).network(network).config(config);
            all.push(builder.start().await.unwrap());
        }
        let sender = all.remove(0);
        for node in &all {
            sender.cluster().connect(node.name()).await.unwrap();
        }
        let members: Vec<_> = (0..members).map(|n| all[n % nodes].mailbox()).collect();
        members.iter().for_each(|member| tell_member(&sender, &GROUP, member));
        Self { sender, nodes: all, members }
    }

    /// Sends one, and returns how long the answers took, and how long the last reader.
    async fn round(&mut self) -> (f64, f64) {
        let body = Bytes::from_static(&[7; BODY]);
        let begun = Instant::now();
        let report = self.sender.groups().broadcast(GROUP, &body).await.unwrap();
        let answered = begun.elapsed();
        assert!(report.is_complete() && report.len() == self.members.len());
        for member in &mut self.members {
            assert_eq!(member.recv().await.map(|body| body.len()), Some(BODY));
        }
        (answered.as_secs_f64() * 1e6, begun.elapsed().as_secs_f64() * 1e6)
    }

    async fn end(self) {
        self.sender.shutdown().await;
        for node in self.nodes {
            node.shutdown().await;
        }
    }
}

async fn times(nodes: usize, members: usize, rounds: usize, bytes: u64) {
    let mut world = World::new(nodes, members, |n| (format!("n{n}@127.0.0.1:0"), Network::system())).await;
    for _ in 0..WARM_UP {
        world.round().await;
    }
    let (mut answered, mut read) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (one, other) = world.round().await;
        answered.push(one);
        read.push(other);
    }
    answered.sort_by(f64::total_cmp);
    let p99 = answered[answered.len() * 99 / 100];
    println!(
        "{nodes:>6} {members:>8} {:>11.0} us {p99:>11.0} us {:>11.0} us {bytes:>12} {:>14}",
        median(answered),
        median(read),
        bytes / nodes as u64,
    );
    world.end().await;
}

/// The bytes of one broadcast, on average.
async fn wire(nodes: usize, members: usize) -> u64 {
    const ROUNDS: usize = 20;
    let fabric = Fabric::new(1);
    let network = |n: usize| (format!("n{n}@10.0.0.{}:4370", n + 1), fabric.host([10, 0, 0, n as u8 + 1]).into());
    let mut world = World::new(nodes, members, network).await;
    for _ in 0..WARM_UP {
        world.round().await;
    }
    let before = fabric.counters();
    for _ in 0..ROUNDS {
        world.round().await;
    }
    let bytes = fabric.counters().bytes_delivered - before.bytes_delivered;
    world.end().await;
    bytes / ROUNDS as u64
}
