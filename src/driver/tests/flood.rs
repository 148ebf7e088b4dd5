//! Crowds: datagrams, handshakes and greetings in numbers.

use tokio::time::Instant;

use super::fake::{Fake, encode, say};
use super::*;
use crate::identity::Role;
use crate::transport::link::End;
use crate::transport::rogue::spray;
use crate::transport::tls::ALPN;
use crate::transport::tls::tests::rogue_client;

/// Datagrams of every length and first byte, at the port of a node.
#[tokio::test(start_paused = true)]
async fn garbage_at_the_socket_is_dropped() {
    let mut world = World::new().await;
    let host = world.fabric.host([10, 0, 0, 66]);
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..100 {
        let datagrams = (0..100).map(|_| {
            let mut bytes = vec![0; rng.usize(0..1400)];
            rng.fill(&mut bytes);
            bytes
        });
        spray(&host, world.a.local_addr(), datagrams);
        sleep(Duration::from_millis(5)).await;
    }
    // And what looks like first packets of QUIC.
    for version in [0u32, 1, 2, 0x0a0a_0a0a] {
        let datagrams = (0..250).map(|_| {
            let mut bytes = vec![0; 1200];
            rng.fill(&mut bytes);
            bytes[0] = 0xc0 | rng.u8(0..64);
            bytes[1..5].copy_from_slice(&version.to_be_bytes());
            bytes[5] = 8;
            bytes[14] = 8;
            bytes
        });
        spray(&host, world.a.local_addr(), datagrams);
        sleep(Duration::from_millis(5)).await;
    }
    world.talk().await;
    world.welcomes_a_newcomer().await;
    world.is_unharmed().await;
}

/// A hundred thousand first packets from addresses that never answer: nothing is left of them, and memory stays flat.
#[test]
fn half_open_handshakes_are_bounded() {
    alone("driver::tests::flood::half_open_handshakes");
}

/// Handshakes of strangers that have another cookie, all the way to their refusal: memory stays flat, who fails too often is
/// ignored, and a good node is let in.
#[test]
fn handshakes_of_strangers_are_bounded() {
    alone("driver::tests::flood::handshakes_of_strangers");
}

/// Runs a test in a process of its own, because other tests take memory too.
fn alone(test: &str) {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .status();
    assert!(status.unwrap().success());
}

/// Set in the process that [`alone`] starts.
const ALONE: &str = "DISTRIBUTE_TEST_ALONE";

#[tokio::test(start_paused = true)]
async fn half_open_handshakes() {
    const WAVES: usize = 100;
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let (a, attacker) = (world.a.local_addr(), fake.host.ip());
    world.fabric.cut_one_way(a.ip(), attacker);
    let mut knocks = Vec::new();
    let mut resident = Vec::new();
    for wave in 0..WAVES {
        // The attacker's own side forgets what it gave up, so that what is measured is the node's.
        knocks.clear();
        sleep(secs(4)).await;
        for _ in 0..20 {
            knocks.extend((0..50).map(|_| fake.endpoint.knock(&fake.tls, a, world.a.name())));
            sleep(Duration::from_millis(5)).await;
        }
        if wave % 10 == 9 {
            world.talk().await;
            resident.push(resident_kib());
        }
    }
    println!("resident after each 10,000 half-open handshakes, both ends in this process: {resident:?} KiB");
    let (first, last) = (resident[0], resident[resident.len() - 1]);
    assert!(last < first + 8 * 1024, "memory grows with the number of strangers");
    let most = world.held().handshakes_most;
    // From a quarter on, whoever does not answer is not even remembered.
    assert!((1..=Config::default().handshakes_max / 4).contains(&most), "{most}");
    // In the middle of it a good node is let in: it answers.
    let begun = Instant::now();
    world.welcomes_a_newcomer().await;
    let counters = world.a.cluster().admission();
    println!("a good node came and went beside them in {:?}; {counters:?}", begun.elapsed());
    assert!(begun.elapsed() < secs(2), "{:?}", begun.elapsed());
    assert_eq!(counters.failed, 0, "who does not answer has not failed");
    drop(knocks);
    world.fabric.heal_all();
    sleep(secs(10)).await;
    world.welcomes_a_newcomer_again().await;
    world.is_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn handshakes_of_strangers() {
    const STRANGERS: u8 = 8;
    const WAVES: usize = 10;
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let mut world = World::new().await;
    let cookie = Cookie::generate();
    let strangers = (0..STRANGERS).map(|n| Fake::new(&world.fabric, &cookie, "default", &format!("s@10.0.2.{n}:4370")));
    let strangers: Vec<_> = strangers.map(Arc::new).collect();
    let mut resident = Vec::new();
    for wave in 0..WAVES {
        let mut crowd = tokio::task::JoinSet::new();
        for stranger in &strangers {
            for _ in 0..32 {
                let (stranger, to) = (stranger.clone(), world.a.local_addr());
                crowd.spawn(async move {
                    // It checks nothing itself, so the whole handshake is made.
                    let link = stranger.endpoint.dial_as(rogue_client(Some(&stranger.tls), &[ALPN]), to).await.ok()?;
                    Some(link.closed().await)
                });
            }
        }
        if wave == WAVES / 2 {
            let begun = Instant::now();
            world.welcomes_a_newcomer().await;
            println!("a good node came and went beside {} strangers in {:?}", crowd.len(), begun.elapsed());
            assert!(begun.elapsed() < secs(2), "{:?}", begun.elapsed());
        }
        while let Some(end) = crowd.join_next().await {
            assert!(!matches!(end.unwrap(), Some(End::Closed { .. })), "no stranger gets as far as a greeting");
        }
        world.talk().await;
        resident.push(resident_kib());
    }
    let counters = world.a.cluster().admission();
    println!("resident after each wave of strangers, both ends in this process: {resident:?} KiB; {counters:?}");
    assert!(resident[WAVES - 1] < resident[1] + 8 * 1024, "memory grows with the number of strangers");
    let census = world.held();
    assert!(census.handshakes_most <= Config::default().handshakes_max, "{census:?}");
    assert!(counters.sources_ignored >= u64::from(STRANGERS), "{counters:?}");
    assert!(counters.ignored_failing > counters.failed, "{counters:?}");
    world.welcomes_a_newcomer_again().await;
    world.is_unharmed().await;
}

/// Members that get through TLS and then say nothing.
#[tokio::test(start_paused = true)]
async fn silent_links_are_bounded() {
    let config = Config { handshakes_max: 32, ..Config::default() };
    let mut world = World::with(config).await;
    let fake = Arc::new(world.member("x@10.0.0.9:4370"));
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (fake, address, name) = (fake.clone(), world.a.local_addr(), world.a.name().clone());
        crowd.spawn(async move {
            let link = fake.endpoint.dial(&fake.tls, address, &name).await.ok()?;
            Some(link.closed().await)
        });
    }
    sleep(secs(1)).await;
    assert_eq!(world.held().handshakes, 32);
    world.talk().await;
    let ends = timeout(secs(30), crowd.join_all()).await.expect("all are cut off");
    assert_eq!(ends.iter().flatten().count(), 32, "the rest was turned away");
    assert_eq!(world.held().handshakes_most, 32);
    world.welcomes_a_newcomer().await;
    world.is_unharmed().await;
}

/// Members that greet halfway, again and again: nothing piles up.
#[tokio::test(start_paused = true)]
async fn greetings_that_are_given_up_do_not_pile_up() {
    let mut world = World::new().await;
    for n in 0..100u8 {
        let fake = Fake::new(&world.fabric, &world.cookie, "default", &format!("x{n}@10.0.1.{n}:4370"));
        let link = fake.dial(&world.a).await;
        let _greeting = say(&link, &encode(&fake.hello(&link, Role::Dialler))).await;
        sleep(Duration::from_millis(u64::from(n) % 5)).await;
    }
    sleep(secs(6)).await;
    world.is_unharmed().await;
}

impl World {
    async fn welcomes_a_newcomer_again(&mut self) {
        let d = node(&self.fabric, &self.cookie, "d@10.0.0.4:4370", Config::default()).await;
        assert_eq!(d.cluster().connect(self.a.name()).await, Ok(self.a.id()));
        assert_eq!(self.next_event().await, NodeEvent::Up(d.id()));
        d.shutdown().await;
        assert_eq!(self.next_event().await, NodeEvent::Down(d.id(), DownReason::Left));
    }
}

pub(super) fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
