//! Starting, naming, pinging, stopping, again and again.

use distribute::{ConnectError, Cookie, DownReason, Node, NodeEvent, PingError, SendError, StartError};
use tokio::time::Instant;

use crate::common::{World, ip, millis, next, quiet, secs};

/// A quiet minute of five linked nodes takes well under a second, and their links close by themselves.
#[tokio::test(start_paused = true)]
async fn a_quiet_minute_is_short() {
    let world = World::new(1);
    let mut nodes = Vec::new();
    for host in 1..=5 {
        nodes.push(world.node("n", host).await);
    }
    for one in &nodes {
        for other in &nodes {
            one.cluster().connect(other.name()).await.unwrap();
        }
    }
    let real = std::time::Instant::now();
    tokio::time::sleep(secs(60)).await;
    let took = real.elapsed();
    println!("a minute of five nodes took {took:?}");
    assert!(took < secs(1), "{took:?}");
    for node in &nodes {
        assert_eq!(node.cluster().peers().len(), 4, "sessions go on");
    }
}

/// A ping measures the way there and back, or gives a typed error; it never ends anything.
#[tokio::test(start_paused = true)]
async fn pings_measure_and_disturb_nothing() {
    let world = World::new(2);
    let (a, b) = world.pair().await;
    let mut events = a.cluster().node_events();
    assert_eq!(a.cluster().ping(a.name(), secs(1)).await, Ok(secs(0)));
    a.cluster().connect(b.name()).await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    world.fabric.conditions(distribute::sim::Conditions::default().latency(millis(50)));
    let took = a.cluster().ping(b.name(), secs(1)).await.unwrap();
    assert!((100..=110).contains(&took.as_millis()), "{took:?}");
    world.fabric.cut(ip(1), ip(2));
    assert_eq!(a.cluster().ping(b.name(), secs(2)).await, Err(PingError::Timeout(secs(2))));
    world.fabric.heal_all();
    assert!(a.cluster().ping(b.name(), secs(9)).await.is_ok());
    assert!(quiet(&mut events, secs(30)).await);
    let nobody = "nobody@10.0.0.99".parse().unwrap();
    for _ in 0..1024 {
        let error = a.cluster().ping(&nobody, millis(100)).await.unwrap_err();
        assert!(matches!(error, PingError::Timeout(_) | PingError::NotConnected(_)), "{error:?}");
        assert!(a.cluster().ping(b.name(), secs(1)).await.is_ok());
    }
    assert!(quiet(&mut events, secs(30)).await);
}

/// 256 names that nobody has cannot be connected, in time, and do not keep a good one from it.
#[tokio::test(start_paused = true)]
async fn names_of_nobody_cost_nothing() {
    let world = World::new(3);
    let (a, b) = world.pair().await;
    let mut dials = tokio::task::JoinSet::new();
    for n in 0..256 {
        let cluster = a.cluster();
        let name = format!("nobody-{n}@10.0.1.{n}").parse().unwrap();
        dials.spawn(async move { cluster.connect(&name).await });
    }
    assert_eq!(a.cluster().connect(b.name()).await, Ok(b.id()));
    while let Some(dial) = dials.join_next().await {
        assert!(matches!(dial.unwrap(), Err(ConnectError::Timeout(_))));
    }
    assert_eq!(a.cluster().peers(), [b.id()]);
}

/// Connecting to oneself, or twice, changes nothing.
#[tokio::test(start_paused = true)]
async fn connecting_again_changes_nothing() {
    let world = World::new(4);
    let (a, b) = world.pair().await;
    let mut events = a.cluster().node_events();
    assert_eq!(a.cluster().connect(a.name()).await, Ok(a.id()));
    assert_eq!(a.cluster().peers(), []);
    for _ in 0..3 {
        assert_eq!(a.cluster().connect(b.name()).await, Ok(b.id()));
    }
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert!(quiet(&mut events, secs(1)).await);
}

/// Ten restarts of one node, with pauses from none to fifteen seconds: its peers have exactly its newest life.
#[tokio::test(start_paused = true)]
async fn restarts_leave_only_the_newest_life() {
    let world = World::new(5);
    let (a, c) = (world.node("a", 1).await, world.node("c", 3).await);
    let mut rng = fastrand::Rng::with_seed(5);
    let mut lives = Vec::new();
    for round in 0..10 {
        let b = world.node("b", 2).await;
        for peer in [&a, &c] {
            // Answered, so it is up on both sides.
            b.cluster().ping(peer.name(), secs(20)).await.unwrap();
            assert_eq!(peer.cluster().peers().iter().filter(|peer| peer.name() == b.name()).count(), 1);
            assert!(peer.cluster().peers().contains(&b.id()), "round {round}");
        }
        assert!(!lives.contains(&b.id()));
        lives.push(b.id());
        if rng.bool() {
            b.shutdown().await;
        }
        drop(b);
        tokio::time::sleep(millis(rng.u64(0..15_000))).await;
    }
}

/// Twenty forced ends while a spammer keeps sending: up and down alternate for every subscriber.
#[tokio::test(start_paused = true)]
async fn up_and_down_alternate() {
    let world = World::new(6);
    let (a, b) = world.pair().await;
    let mut subscribers: Vec<_> = (0..10_000).map(|_| a.cluster().node_events()).collect();
    let mut inbox = b.mailbox::<u64>();
    let there = inbox.address().bind(&a);
    let spamming = tokio::spawn(async move {
        loop {
            if there.send(0).await.is_err() {
                tokio::time::sleep(millis(1)).await;
            }
        }
    });
    let reading = tokio::spawn(async move { while inbox.recv().await.is_some() {} });
    for _ in 0..20 {
        while a.cluster().peers().is_empty() {
            tokio::time::sleep(millis(1)).await;
        }
        a.cluster().disconnect(b.name()).await;
    }
    spamming.abort();
    reading.abort();
    a.shutdown().await;
    for events in &mut subscribers {
        let (mut up, mut ends) = (false, 0);
        while let Some(event) = events.next().await {
            match event {
                NodeEvent::Up(node) => {
                    assert!(!up && node == b.id());
                    up = true;
                }
                NodeEvent::Down(..) => {
                    assert!(up);
                    (up, ends) = (false, ends + 1);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(!up && ends >= 20, "{ends}");
    }
}

/// A second life of a live name is refused, and the first is not disturbed.
#[tokio::test(start_paused = true)]
async fn a_second_life_of_a_live_name_is_refused() {
    let world = World::new(7);
    let (a, b) = world.pair().await;
    b.cluster().connect(a.name()).await.unwrap();
    let mut events = a.cluster().node_events();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    // Another host claims the name.
    let twin =
        world.builder("b", 2).network(world.fabric.host(ip(9))).bind((ip(9), 4370).into()).start().await.unwrap();
    assert_eq!(twin.name(), b.name());
    assert_eq!(twin.cluster().connect(a.name()).await, Err(ConnectError::NameConflict));
    assert_eq!(next(&mut events).await, NodeEvent::Conflict { live: b.id(), refused: twin.id() });
    assert!(quiet(&mut events, secs(20)).await);
    assert_eq!(a.cluster().peers(), [b.id()]);
    assert!(b.cluster().ping(a.name(), secs(1)).await.is_ok());
}

/// Shutting down flushes what was accepted, is told as a leave, and ends everything that waits here.
#[tokio::test(start_paused = true)]
async fn shutdown_flushes_and_says_goodbye() {
    let world = World::new(8);
    let a = world.node("a", 1).await;
    // Room for all of them unread.
    let mut config = distribute::Config::default();
    config.lane_window = 128 << 10;
    let b = world.builder("b", 2).config(config).start().await.unwrap();
    world.fabric.conditions(distribute::sim::Conditions::default().latency(millis(30)).loss(0.05));
    let mut inbox = b.mailbox::<u64>();
    let mut own = a.mailbox::<u64>();
    let mut events = b.cluster().node_events();
    let there = inbox.address().bind(&a);
    for n in 0..500 {
        there.send(n).await.unwrap();
    }
    let stopping = Instant::now();
    a.shutdown().await;
    println!("a shutdown with 500 messages to flush took {:?}", stopping.elapsed());
    for n in 0..500 {
        assert_eq!(inbox.recv_timeout(secs(1)).await, Ok(n));
    }
    assert_eq!(next(&mut events).await, NodeEvent::Up(a.id()));
    assert_eq!(next(&mut events).await, NodeEvent::Down(a.id(), DownReason::Left));
    assert_eq!(own.recv().await, None);
    assert!(matches!(there.send(1).await, Err(SendError::SessionEnded(_))));
    assert_eq!(there.send(1).await, Err(SendError::Shutdown));
    assert_eq!(a.cluster().connect(b.name()).await, Err(ConnectError::Shutdown));
    a.shutdown().await;
}

/// A shutdown ends within its deadline even when nobody answers.
#[tokio::test(start_paused = true)]
async fn shutdown_into_a_cut_keeps_its_deadline() {
    let world = World::new(9);
    let (a, b) = world.pair().await;
    let inbox = b.mailbox::<u64>();
    let there = inbox.address().bind(&a);
    there.send(0).await.unwrap();
    world.fabric.cut(ip(1), ip(2));
    there.send(1).await.unwrap();
    let begun = Instant::now();
    a.shutdown().await;
    assert!(begun.elapsed() <= secs(6) + millis(10), "{:?}", begun.elapsed());
}

/// After a shutdown nothing is left, and the same process can start again under the same or another name.
#[tokio::test(start_paused = true)]
async fn nothing_is_left_behind() {
    let world = World::new(10);
    let baseline = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    for name in ["a", "a", "other"] {
        let (a, b) = (world.node(name, 1).await, world.node("b", 2).await);
        let mut inbox = b.mailbox::<Vec<u8>>();
        let there = inbox.address().bind(&a);
        there.send(vec![1; 300_000]).await.unwrap();
        assert_eq!(inbox.recv().await.map(|message| message.len()), Some(300_000));
        a.shutdown().await;
        b.shutdown().await;
        assert!(inbox.recv().await.is_none());
        let left = || tokio::runtime::Handle::current().metrics().num_alive_tasks() - baseline;
        let deadline = Instant::now() + secs(10);
        while left() > 0 {
            assert!(Instant::now() < deadline, "{} tasks are left", left());
            tokio::time::sleep(millis(100)).await;
        }
    }
}

/// Dropping the last handle closes the links, without waiting.
#[tokio::test(start_paused = true)]
async fn dropping_the_node_ends_it() {
    let world = World::new(11);
    let (a, b) = world.pair().await;
    a.cluster().connect(b.name()).await.unwrap();
    let mut events = b.cluster().node_events();
    assert_eq!(next(&mut events).await, NodeEvent::Up(a.id()));
    let (id, mut kept) = (a.id(), a.mailbox::<u64>());
    drop(a);
    assert_eq!(next(&mut events).await, NodeEvent::Down(id, DownReason::Left));
    assert_eq!(kept.recv().await, None);
}

/// A node that nobody can dial keeps its links, and is reached over them alone.
#[tokio::test(start_paused = true)]
async fn a_node_behind_a_nat_keeps_its_links() {
    let world = World::new(12);
    let a = world.node("a", 1).await;
    let hidden = world.builder("hidden", 2).not_dialable().start().await.unwrap();
    let mut inbox = hidden.mailbox::<u64>();
    let there = inbox.address().bind(&a);
    hidden.cluster().connect(a.name()).await.unwrap();
    tokio::time::sleep(secs(300)).await;
    there.send(1).await.unwrap();
    assert_eq!(inbox.recv().await, Some(1));
    hidden.cluster().disconnect(a.name()).await;
    let mut events = a.cluster().node_events();
    while !a.cluster().peers().is_empty() {
        next(&mut events).await;
    }
    let error = a.cluster().connect(hidden.name()).await.unwrap_err();
    assert_eq!(error, ConnectError::NotDialable(hidden.name().clone()));
}

/// DNS names are resolved at every dial, so a node that moves is found again.
#[tokio::test(start_paused = true)]
async fn a_dns_name_is_resolved_at_every_dial() {
    let world = World::new(13);
    world.fabric.name("b.example", &[ip(2)]);
    // Nobody else dials: a dial to the old place that is under way would take up the time of the next.
    let a = world.unprobing("a", 1).await;
    let b = world.at("b@b.example", ip(2)).await;
    a.cluster().connect(b.name()).await.unwrap();
    b.shutdown().await;
    world.fabric.name("b.example", &[ip(3)]);
    let moved = world.at("b@b.example", ip(3)).await;
    assert_eq!(a.cluster().connect(moved.name()).await, Ok(moved.id()));
}

/// A node that moved behind another address is reached where it says, though its name leads nowhere.
#[tokio::test(start_paused = true)]
async fn an_advertised_address_is_dialled() {
    let world = World::new(15);
    let a = world.node("a", 1).await;
    let behind = world.builder("b", 2).network(world.fabric.host(ip(5))).bind((ip(5), 77).into());
    let b = behind.advertise((ip(5), 77).into()).start().await.unwrap();
    assert!(matches!(a.cluster().connect(b.name()).await, Err(ConnectError::Timeout(_))), "nobody is at its name");
    b.cluster().ping(a.name(), secs(5)).await.unwrap();
    a.cluster().disconnect(b.name()).await;
    let begun = Instant::now();
    assert_eq!(a.cluster().connect(b.name()).await, Ok(b.id()));
    assert!(begun.elapsed() < millis(300), "{:?}", begun.elapsed());
}

/// One of five leaves: the others are told that it left, and nothing else changes for them.
#[tokio::test(start_paused = true)]
async fn a_leave_is_told_and_disturbs_nobody() {
    let world = World::new(16);
    let mut nodes = Vec::new();
    for host in 1..=5 {
        nodes.push(world.node("n", host).await);
    }
    for one in &nodes {
        for other in &nodes {
            one.cluster().ping(other.name(), secs(5)).await.unwrap();
        }
    }
    let leaver = nodes.pop().unwrap();
    let mut events: Vec<_> = nodes.iter().map(|node| node.cluster().node_events()).collect();
    for events in &mut events {
        for _ in 0..4 {
            assert!(matches!(next(events).await, NodeEvent::Up(_)));
        }
    }
    let id = leaver.id();
    leaver.shutdown().await;
    assert_eq!(leaver.cluster().peers(), []);
    for events in &mut events {
        assert_eq!(next(events).await, NodeEvent::Down(id.clone(), DownReason::Left));
        assert!(quiet(events, secs(15)).await);
    }
    let again = world.node("n", 5).await;
    assert!(again.id() > id);
    assert_eq!(again.cluster().connect(nodes[0].name()).await, Ok(nodes[0].id()));
}

/// IPv6 hosts link like others.
#[tokio::test(start_paused = true)]
async fn ipv6_nodes_connect() {
    let world = World::new(14);
    let start = async |name: &str, last: u16| {
        let ip = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
        world.at(&format!("{name}@[{ip}]"), ip.into()).await
    };
    let (a, b) = (start("a", 1).await, start("b", 2).await);
    assert_eq!(a.cluster().connect(b.name()).await, Ok(b.id()));
}

/// What cannot be started says why, and leaves nothing behind.
#[tokio::test]
async fn a_bad_start_is_a_typed_error() {
    let start = |name: &'static str| Node::builder(name).cookie(Cookie::generate()).start();
    assert!(matches!(start("nameless").await, Err(StartError::Name { .. })));
    assert!(matches!(Node::builder("a@127.0.0.1:0").start().await, Err(StartError::NoIdentity)));
    let mut config = distribute::Config::default();
    config.lanes = 0;
    let bad = Node::builder("a@127.0.0.1:0").cookie(Cookie::generate()).config(config).start().await;
    assert!(matches!(bad, Err(StartError::Config(_))));
    let first = start("a@127.0.0.1:0").await.unwrap();
    let taken = Node::builder(first.name()).cookie(Cookie::generate()).start().await;
    assert!(matches!(taken, Err(StartError::Bind { .. })));
    let cluster = Node::builder("a@127.0.0.1:0").cookie(Cookie::generate()).cluster("No Such").start().await;
    assert!(matches!(cluster, Err(StartError::Name { .. })));
}

/// Two wait to send by one address when its session ends. Who hears late of that does not hide the end of the next session
/// from the other.
#[tokio::test(start_paused = true)]
async fn each_end_is_told_to_an_address_that_two_send_by() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let inbox = b.mailbox::<Vec<u8>>();
    let there = inbox.address().bind(&a);
    let ended = Err(SendError::SessionEnded(b.id()));
    there.send(vec![0; 20_000]).await.unwrap();
    let mut early = Box::pin(there.send(vec![0; 20_000]));
    let mut late = Box::pin(there.send(vec![0; 20_000]));
    assert!(tokio::time::timeout(millis(100), &mut early).await.is_err(), "no credit");
    assert!(tokio::time::timeout(millis(100), &mut late).await.is_err(), "no credit");
    a.cluster().disconnect(b.name()).await;
    assert_eq!(early.await, ended);
    there.send(vec![1]).await.unwrap();
    assert_eq!(late.await, ended);
    a.cluster().disconnect(b.name()).await;
    assert_eq!(there.send(vec![2]).await, ended, "what was sent in the second session may be lost too");
    there.send(vec![3]).await.unwrap();
}

#[derive(Debug, PartialEq, serde::Serialize)]
struct Odd(u64);

impl<'de> serde::Deserialize<'de> for Odd {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let n = u64::deserialize(deserializer)?;
        assert_ne!(n, 1, "as told");
        Ok(Self(n))
    }
}

impl distribute::Message for Odd {
    const TAG: &'static str = "odd";
    const VERSION: u32 = 1;
}

/// A decoder that panics costs its own message, and none that came with it.
#[tokio::test(start_paused = true)]
async fn a_decoder_that_panics_takes_no_other_message_along() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let mut inbox = b.mailbox::<Odd>();
    let there = inbox.address().bind(&a);
    for n in 0..4 {
        there.send(Odd(n)).await.unwrap();
    }
    assert_eq!(inbox.recv().await, Some(Odd(0)));
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| inbox.try_recv()));
    assert!(read.is_err());
    for n in 2..4 {
        assert_eq!(inbox.recv_timeout(secs(1)).await, Ok(Odd(n)));
    }
}
