//! What names cost: to look one up, to register one, to know many.
//!
//! `cargo bench --bench registry [-- lookup | claims | many | monitors]`; all of them unless one is named.
//!
//! - `lookup`: nanoseconds of one lookup among 100,000 names, alone and while a writer changes names without a pause.
//! - `claims`: in clusters of 2, 5 and 20 nodes over loopback, in this process: the latency of one registration, how long
//!   until every node finds it, and how many a second 64 registering tasks get.
//! - `many`: 100,000 names among three nodes, in a process of its own: memory per name and node, the time until a fourth
//!   node is ready and the bytes that it took, and what an idle second costs in bytes, with the names and without.
//! - `monitors`: 10,000 watches of one mailbox of another node, from its close until the last of them is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use distribute::pieces::tell_name;
use distribute::{Cookie, Mailbox, Name, NameEvent, Names, Node};
use tokio::task::JoinSet;

use crate::measure::{median, resident_kib};

mod measure;

const NUMBERS: Names<u64> = Names::new("number");
const MANY: usize = 100_000;
/// Tasks that register at one time.
const PARALLEL: usize = 64;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let part = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if part.as_deref() == Some("many-child") {
        return runtime.block_on(many());
    }
    let is_wanted = |name| part.as_deref().is_none_or(|part| part == name);
    if is_wanted("lookup") {
        runtime.block_on(lookup());
    }
    if is_wanted("claims") {
        println!("\nclaims: default settings, one process, loopback");
        println!("{:>6} {:>12} {:>12} {:>16} {:>16}", "nodes", "p50", "p99", "everywhere p50", "registrations/s");
        for size in [2, 5, 20] {
            runtime.block_on(claims(size));
        }
    }
    if is_wanted("monitors") {
        runtime.block_on(monitors());
    }
    if is_wanted("many") {
        println!("\nmany: {MANY} names among three nodes");
        let status = std::process::Command::new(std::env::current_exe().unwrap()).arg("many-child").status();
        assert!(status.unwrap().success());
    }
}

fn name(n: usize) -> Name<u64> {
    NUMBERS.name(n).unwrap()
}

async fn monitors() {
    const WATCHES: usize = 10_000;
    let cookie = Cookie::generate();
    let there = Node::builder("there@127.0.0.1:0").cookie(cookie.clone()).start().await.unwrap();
    let here = Node::builder("here@127.0.0.1:0").cookie(cookie).join(there.name()).start().await.unwrap();
    here.ready().await.unwrap();
    let mut rounds = Vec::new();
    for _ in 0..5 {
        let watched = there.mailbox::<u64>();
        let pid = watched.pid();
        let mut notices: JoinSet<Instant> = (0..WATCHES)
            .map(|_| {
                let monitor = here.monitor(&pid);
                async move {
                    assert_eq!(monitor.await.fate, distribute::Fate::Closed);
                    Instant::now()
                }
            })
            .collect();
        // What is asked for now is behind the watch.
        let end = here.registry().unregister(name(0), &pid).await;
        assert!(end.is_err(), "nobody has it");
        let began = Instant::now();
        drop(watched);
        let mut last = began;
        while let Some(told) = notices.join_next().await {
            last = last.max(told.unwrap());
        }
        rounds.push((last - began).as_secs_f64() * 1e3);
    }
    println!(
        "\nmonitors: {WATCHES} watches of one mailbox: all told {:.1} ms after it closed (median of 5)",
        median(rounds)
    );
    here.shutdown().await;
    there.shutdown().await;
}

async fn lookup() {
    // So short that most rounds run without another process in between.
    const ROUNDS: u64 = 1_001;
    const LOOKUPS: u32 = 1_000;
    /// Of which everything is in the processor's cache.
    const FEW: usize = 100;
    println!("lookup: among {MANY} names, median of {ROUNDS} rounds of {LOOKUPS}");
    let node = Node::builder("n@127.0.0.1:0").cookie(Cookie::generate()).start().await.unwrap();
    let names: Vec<_> = (0..MANY).map(name).collect();
    for (n, name) in names.iter().enumerate() {
        tell_name(&node, name.name(), Some(n as u64 + 1));
    }
    let measured = |among: usize| {
        let rounds = (0..ROUNDS).map(|round| {
            let mut rng = fastrand::Rng::with_seed(round);
            let registry = node.registry();
            // Who looks a name up has it at hand.
            let wanted: Vec<_> = (0..LOOKUPS).map(|_| NUMBERS.name(rng.usize(..among)).unwrap()).collect();
            let began = Instant::now();
            for name in wanted {
                assert!(std::hint::black_box(registry.lookup(name)).is_ok());
            }
            began.elapsed().as_secs_f64() * 1e9 / f64::from(LOOKUPS)
        });
        median(rounds.collect())
    };
    let alone = [FEW, MANY].map(&measured);
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (node, is_over, names) = (node.clone(), is_over.clone(), names.clone());
        move || {
            let mut changes = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                // Another owner each time, so that each is a change.
                tell_name(&node, names[changes as usize % MANY].name(), Some(changes + (1 << 20)));
                changes += 1;
            }
            changes
        }
    });
    let began = Instant::now();
    let beside = [FEW, MANY].map(&measured);
    let time = began.elapsed().as_secs_f64();
    is_over.store(true, Ordering::Relaxed);
    let changes = writer.join().unwrap() as f64 / time;
    println!("{:<24}{:>10} {:>16} {:>8}", "", "alone", "beside a writer", "ratio");
    for (what, alone, beside) in [("100 of them", alone[0], beside[0]), ("any of them", alone[1], beside[1])] {
        println!("{what:<24}{alone:>7.0} ns {beside:>13.0} ns {:>7.2}x", beside / alone);
    }
    println!("{:<24}{:>10.2} M changes/s", "the writer", changes / 1e6);
    node.shutdown().await;
}

/// Nodes that all know each other and are ready.
async fn cluster(cookie: &Cookie, size: usize) -> Vec<Node> {
    let mut nodes = vec![Node::builder("n0@127.0.0.1:0").cookie(cookie.clone()).start().await.unwrap()];
    for n in 1..size {
        let builder = Node::builder(format!("n{n}@127.0.0.1:0")).cookie(cookie.clone()).join(nodes[0].name());
        nodes.push(builder.start().await.unwrap());
    }
    for node in &nodes {
        tokio::time::timeout(PATIENCE, node.ready()).await.expect("ready in time").unwrap();
        tokio::time::timeout(PATIENCE, node.membership().wait_for_alive(size)).await.expect("a full view in time");
    }
    nodes
}

async fn claims(size: usize) {
    const ALONE: usize = 300;
    const TOGETHER: usize = 6_400;
    let nodes = cluster(&Cookie::generate(), size).await;
    let mailboxes: Vec<_> = nodes.iter().map(|node| node.mailbox::<u64>()).collect();
    let mut watches: Vec<_> = nodes.iter().map(|node| node.registry().watch_all()).collect();
    for watch in &mut watches {
        assert!(matches!(watch.next().await, Some(NameEvent::Snapshot(_))));
    }
    let (mut latencies, mut everywhere) = (Vec::new(), Vec::new());
    for n in 0..ALONE {
        let (name, at) = (name(n), n % size);
        let began = Instant::now();
        nodes[at].registry().register(name.clone(), &mailboxes[at]).await.unwrap();
        latencies.push(began.elapsed().as_secs_f64() * 1e6);
        for watch in &mut watches {
            loop {
                match watch.next().await {
                    Some(NameEvent::Changed(change)) if *change.name == *name.name() => break,
                    Some(_) => {}
                    None => panic!("a node is gone"),
                }
            }
        }
        everywhere.push(began.elapsed().as_secs_f64() * 1e6);
    }
    drop(watches);
    let began = Instant::now();
    register_all(&nodes, &mailboxes, ALONE..ALONE + TOGETHER).await;
    let rate = TOGETHER as f64 / began.elapsed().as_secs_f64();
    let worst = percentile(latencies.clone(), 99);
    println!("{size:>6} {:>9.0} us {worst:>9.0} us {:>13.0} us {rate:>16.0}", median(latencies), median(everywhere));
    end(nodes).await;
}

/// Registers names, so many at one time, each at the next node in turn.
async fn register_all(nodes: &[Node], mailboxes: &[Mailbox<u64>], numbers: std::ops::Range<usize>) {
    let mut claims = JoinSet::new();
    for n in numbers {
        if claims.len() >= PARALLEL {
            claims.join_next().await.unwrap().unwrap();
        }
        let at = n % nodes.len();
        let claim = nodes[at].registry().register(name(n), &mailboxes[at]).timeout(PATIENCE);
        claims.spawn(async move { drop(claim.await.unwrap()) });
    }
    claims.join_all().await;
}

async fn many() {
    const IDLE: Duration = Duration::from_secs(20);
    let cookie = Cookie::generate();
    let nodes = cluster(&cookie, 3).await;
    let mailboxes: Vec<_> = nodes.iter().map(|node| node.mailbox::<u64>()).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (bytes, memory) = (loopback(), resident_kib());
    tokio::time::sleep(IDLE).await;
    let idle = loopback() - bytes;
    let began = Instant::now();
    register_all(&nodes, &mailboxes, 0..MANY).await;
    for node in &nodes {
        let mut watch = node.registry().watch_all();
        while node.registry().count() < MANY {
            tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time");
        }
    }
    println!("  registered, and known to all, in        {:>10.1} s", began.elapsed().as_secs_f64());
    let per_name = (resident_kib() - memory) * 1024.0 / (MANY * nodes.len()) as f64;
    println!("  memory per name and node                {per_name:>10.0} B");

    tokio::time::sleep(Duration::from_secs(5)).await;
    let bytes = loopback();
    tokio::time::sleep(IDLE).await;
    let idle_with = loopback() - bytes;
    let per_second = |bytes: u64| bytes as f64 / IDLE.as_secs_f64() / nodes.len() as f64;
    println!(
        "  an idle second of one node              {:>10.0} B, {:.0} B without names",
        per_second(idle_with),
        per_second(idle)
    );

    let bytes = loopback();
    let began = Instant::now();
    let late = Node::builder("late@127.0.0.1:0").cookie(cookie).join(nodes[0].name()).start().await.unwrap();
    tokio::time::timeout(PATIENCE, late.ready()).await.expect("ready in time").unwrap();
    println!("  a new node is ready after               {:>10.2} s", began.elapsed().as_secs_f64());
    assert_eq!(late.registry().count(), MANY);
    let per_name = (loopback() - bytes) as f64 / MANY as f64;
    println!("  bytes per name that it took             {per_name:>10.0} B");
    late.shutdown().await;
    end(nodes).await;
}

async fn end(nodes: Vec<Node>) {
    let ends: JoinSet<_> = nodes.into_iter().map(|node| async move { node.shutdown().await }).collect();
    ends.join_all().await;
}

/// The value below which so many of a hundred are.
fn percentile(mut values: Vec<f64>, of_hundred: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * of_hundred / 100).min(values.len() - 1)]
}

/// Bytes that were sent on the loopback device so far, by anybody: the machine should be quiet.
fn loopback() -> u64 {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).expect("a loopback device");
    line.split_whitespace().nth(8).unwrap().parse().unwrap()
}
