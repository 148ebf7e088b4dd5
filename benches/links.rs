//! Links beside raw quinn, in one run: how long from the dial until both sides are up, and what an idle link holds.
//!
//! `cargo bench --bench links`. The baseline is quinn with the same TLS provider, mutual certificates of the same kind,
//! and no more: no greeting, no session. Rounds alternate; medians are printed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distribute::{Cookie, Node, NodeEvent, NodeEvents};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
    let raw = Raw::new();
    let (raw_a, raw_b) = (raw.endpoint(), raw.endpoint());
    let cookie = Cookie::generate();
    let (a, b) = (node(&cookie, 0).await, node(&cookie, 1).await);
    let mut events = b.cluster().node_events();
    let (mut raws, mut ours) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (mut raw_times, mut our_times) = (Vec::new(), Vec::new());
        for _ in 0..DIALS {
            raw_times.push(raw_dial(&raw, &raw_a, &raw_b).await);
            our_times.push(dial(&a, &b, &mut events).await);
        }
        raws.push(median(raw_times));
        ours.push(median(our_times));
        let (raw, ours) = (raws[round - 1], ours[round - 1]);
        println!("  round {round}: raw {:>6.0} us  distribute {:>6.0} us  {:.2}x", us(raw), us(ours), ratio(ours, raw));
    }
    let ratios = ours.iter().zip(&raws).map(|(ours, raw)| ratio(*ours, *raw)).collect();
    let (raw, ours) = (median(raws), median(ours));
    println!("\n{:<34}{:>10} {:>10} {:>8}", "", "raw quinn", "distribute", "ratio");
    let (raw, ours, name) = (us(raw), us(ours), "dial until both sides are up, p50");
    println!("{name:<34}{raw:>7.0} us {ours:>7.0} us {:>7.2}x", median_of(ratios));
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
    let raw = Raw::new();
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

fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn ratio(ours: Duration, raw: Duration) -> f64 {
    ours.as_secs_f64() / raw.as_secs_f64()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Quinn with mutual TLS, and nothing else.
struct Raw {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    roots: Arc<rustls::RootCertStore>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl Raw {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let certificate = certificate.der().clone();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Self { certificate, key: key.serialize_der(), roots: Arc::new(roots), provider }
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone().into())
    }

    fn endpoint(&self) -> quinn::Endpoint {
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone());
        let mut tls = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![self.certificate.clone()], self.key())
            .unwrap();
        tls.send_tls13_tickets = 0;
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        quinn::Endpoint::server(server, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
    }

    fn client(&self) -> quinn::ClientConfig {
        let mut tls = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![self.certificate.clone()], self.key())
            .unwrap();
        tls.resumption = rustls::client::Resumption::disabled();
        quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap()))
    }
}
