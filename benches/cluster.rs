//! What a cluster costs that has nothing to do: real nodes over loopback, all in this process, joined through one seed.
//!
//! `cargo bench --bench cluster [-- --quick] [SIZE...]`. Sizes are 5, 10, 20, 50 and 100 unless given. For each it prints
//! how long it took until every node saw every other, and then, per node, the bytes per second on loopback (IP headers
//! included, both directions counted at the sender), the packets of membership, the links, and the CPU time.
//! Links close after 60 s without use, so the figures are taken after 75 s, over 30 s; `--quick` takes both a tenth.
//!
//! A small cluster keeps a full mesh warm by its probes; beyond about 60 members each node keeps the links of the last
//! minute's probes, its own and those of others, whatever the size.

use std::time::{Duration, Instant};

use distribute::{Cookie, MembershipCounters, Node};

const SETTLE: Duration = Duration::from_secs(75);
const MEASURE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let mut sizes: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![5, 10, 20, 50, 100];
    }
    let (settle, measure) = if is_quick { (SETTLE / 10, MEASURE / 10) } else { (SETTLE, MEASURE) };
    println!("cluster: default settings, one process, loopback; after {settle:?} without traffic, over {measure:?}\n");
    println!(
        "{:>6} {:>12} {:>14} {:>12} {:>12} {:>8} {:>10} {:>10}",
        "nodes", "full view", "bytes/s/node", "packets/s", "membership", "links", "ms CPU/s", "alarms"
    );
    for size in sizes {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(cluster(size, settle, measure));
    }
}

async fn cluster(size: usize, settle: Duration, measure: Duration) {
    let cookie = Cookie::generate();
    let began = Instant::now();
    let seed = Node::builder("n0@127.0.0.1:0").cookie(cookie.clone()).start().await.unwrap();
    let mut nodes = vec![seed];
    for n in 1..size {
        let builder = Node::builder(format!("n{n}@127.0.0.1:0")).cookie(cookie.clone()).join(nodes[0].name());
        nodes.push(builder.start().await.unwrap());
    }
    for node in &nodes {
        let full = node.membership();
        tokio::time::timeout(PATIENCE, full.wait_for_alive(size)).await.expect("a full view in time");
    }
    let full_view = began.elapsed();
    tokio::time::sleep(settle).await;
    let (before, lo, cpu, since) = (total(&nodes).await, loopback(), cpu_time(), Instant::now());
    tokio::time::sleep(measure).await;
    let time = since.elapsed().as_secs_f64() * size as f64;
    let (after, bytes, cpu) = (total(&nodes).await, loopback() - lo, cpu_time() - cpu);
    let mut links = 0;
    for node in &nodes {
        links += node.health().peers().await.iter().filter(|peer| peer.round_trip.is_some()).count();
    }
    println!(
        "{size:>6} {:>10.2} s {:>14.0} {:>12.2} {:>10.0} B {:>8.1} {:>10.2} {:>10}",
        full_view.as_secs_f64(),
        bytes as f64 / time,
        (after.packets_sent - before.packets_sent) as f64 / time,
        (after.bytes_sent - before.bytes_sent) as f64 / time,
        links as f64 / size as f64,
        cpu.as_secs_f64() * 1e3 / time,
        after.suspicions,
    );
    let ends: Vec<_> = nodes.into_iter().map(|node| tokio::spawn(async move { node.shutdown().await })).collect();
    for end in ends {
        end.await.unwrap();
    }
}

/// What all nodes have counted.
async fn total(nodes: &[Node]) -> MembershipCounters {
    let mut total = MembershipCounters::default();
    for node in nodes {
        let counters = node.membership().counters().await;
        total.packets_sent += counters.packets_sent;
        total.bytes_sent += counters.bytes_sent;
        total.suspicions += counters.suspicions;
    }
    total
}

/// Bytes that were sent on the loopback device so far, by anybody: the machine should be quiet.
fn loopback() -> u64 {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).expect("a loopback device");
    line.split_whitespace().nth(8).unwrap().parse().unwrap()
}

/// The time that this process has spent on processors.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // A tick is a hundredth of a second on Linux, whatever the kernel's own clock.
    Duration::from_millis(10 * ticks)
}
