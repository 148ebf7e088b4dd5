//! Links beside raw quinn, in one run: how long from the dial until both sides are up, and what an idle link holds.
//!
//! `cargo bench --bench links`. The baseline is quinn with the same TLS provider, mutual certificates of the same kind,
//! and no more: no greeting, no session. Rounds alternate; medians are printed.

use std::time::{Duration, Instant};

use distribute::{Cookie, Node, NodeEvent, NodeEvents};

use crate::measure::{median, resident_kib};
use crate::raw::{Identity, QUINN_MTU, Raw};

mod measure;
mod raw;

const ROUNDS: usize = 7;
const DIALS: usize = 60;
/// Nodes in a full mesh, so 496 links.
const MESH: usize = 32;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match arguments.next().as_deref() {
        Some("memory-ours") => return runtime.block_on(memory_ours()),
        Some("memory-raw") => return runtime.block_on(memory_raw()),
        _ => {}
    }
    println!("links: {ROUNDS} rounds of {DIALS} dials each, alternating; current-thread runtime, loopback");
    runtime.block_on(setup());
    println!(
        "\nmemory: {} idle links among {MESH} nodes, each in a fresh process, resident set",
        MESH * (MESH - 1) / 2
    );
    let raw = child("memory-raw");
    let ours = child("memory-ours");
    println!("{:<34}{:>10} {:>10} {:>8}", "", "raw quinn", "distribute", "ratio");
    println!("{:<34}{raw:>6.1} KiB {ours:>6.1} KiB {:>7.2}x", "per link and side", ours / raw);
}

async fn setup() {
    let raw = Raw::new(Identity::generate(), QUINN_MTU);
    let (raw_a, raw_b) = (raw.endpoint(), raw.endpoint());
    let cookie = Cookie::generate();
    let (a, b) = (node(&cookie, 0).await, node(&cookie, 1).await);
    let mut events = b.cluster().node_events();
    let (mut raws, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (mut raw_times, mut our_times) = (Vec::new(), Vec::new());
        for _ in 0..DIALS {
            raw_times.push(us(raw_dial(&raw, &raw_a, &raw_b).await));
            our_times.push(us(dial(&a, &b, &mut events).await));
        }
        let (raw, our) = (median(raw_times), median(our_times));
        println!("  round {round}: raw {raw:>6.0} us  distribute {our:>6.0} us  {:.2}x", our / raw);
        raws.push(raw);
        ours.push(our);
        ratios.push(our / raw);
    }
    let (raw, ours, ratio) = (median(raws), median(ours), median(ratios));
    println!("\n{:<34}{:>10} {:>10} {:>8}", "", "raw quinn", "distribute", "ratio");
    println!("{:<34}{raw:>7.0} us {ours:>7.0} us {ratio:>7.2}x", "dial until both sides are up, p50");
}

async fn node(cookie: &Cookie, n: usize) -> Node {
    Node::builder(format!("node-{n}@127.0.0.1:0").as_str()).cookie(cookie.clone()).start().await.unwrap()
}

async fn dial(a: &Node, b: &Node, events: &mut NodeEvents) -> Duration {
    let begun = Instant::now();
    a.cluster().connect(b.name()).await.unwrap();
    assert!(matches!(events.next().await, Some(NodeEvent::Up(_))));
    let took = begun.elapsed();
    a.cluster().disconnect(b.name()).await;
    assert!(matches!(events.next().await, Some(NodeEvent::Down(..))));
    took
}

async fn raw_dial(raw: &Raw, a: &quinn::Endpoint, b: &quinn::Endpoint) -> Duration {
    let address = b.local_addr().unwrap();
    let begun = Instant::now();
    let dialling = a.connect_with(raw.client(), address, "localhost").unwrap();
    let accepting = async { b.accept().await.unwrap().await.unwrap() };
    let (dialled, accepted) = tokio::join!(dialling, accepting);
    let took = begun.elapsed();
    dialled.unwrap().close(0u32.into(), b"");
    accepted.closed().await;
    took
}

async fn memory_ours() {
    let cookie = Cookie::generate();
    let mut nodes = Vec::new();
    for n in 0..MESH {
        nodes.push(node(&cookie, n).await);
    }
    let before = resident_kib();
    for (at, one) in nodes.iter().enumerate() {
        for other in &nodes[at + 1..] {
            one.cluster().ping(other.name(), Duration::from_secs(5)).await.unwrap();
        }
    }
    report(before);
}

async fn memory_raw() {
    let raw = Raw::new(Identity::generate(), QUINN_MTU);
    let endpoints: Vec<_> = (0..MESH).map(|_| raw.endpoint()).collect();
    let before = resident_kib();
    let mut kept = Vec::new();
    for (at, one) in endpoints.iter().enumerate() {
        for other in &endpoints[at + 1..] {
            let dialling = one.connect_with(raw.client(), other.local_addr().unwrap(), "localhost").unwrap();
            let accepting = async { other.accept().await.unwrap().await.unwrap() };
            let (dialled, accepted) = tokio::join!(dialling, accepting);
            kept.push((dialled.unwrap(), accepted));
        }
    }
    report(before);
}

fn report(before: f64) {
    let sides = (MESH * (MESH - 1)) as f64;
    println!("{}", (resident_kib() - before) / sides);
}

fn child(what: &str) -> f64 {
    let output = std::process::Command::new(std::env::current_exe().unwrap()).arg(what).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().expect("the child prints a number")
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
