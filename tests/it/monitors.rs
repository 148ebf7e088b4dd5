//! Who is told of the end of what, and when: whole nodes over the network in memory.

use std::future::Future;

use distribute::sim::Conditions;
use distribute::{
    Address, Config, DownReason, Fate, Mailbox, Message, Monitored, Name, Node, NodeEvent, NodeId, NodeName, Notice,
    Pid, RecvError, SendError,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::common::{World, ip, lossy, millis, next, secs};

/// What a mailbox that watches receives.
#[derive(Debug, Serialize, Deserialize)]
enum Event {
    Said(u64),
    #[serde(skip)]
    Down(Notice),
}

impl Message for Event {
    const TAG: &'static str = "test.event";
    const VERSION: u32 = 1;
}

/// What became of the target, told in time.
async fn fate(monitor: impl Future<Output = Notice>) -> Fate {
    timeout(secs(120), monitor).await.expect("a notice").fate
}

/// Whether the watch is still on a while later.
async fn is_armed(monitor: &mut (impl Future<Output = Notice> + Unpin)) -> bool {
    timeout(secs(30), monitor).await.is_err()
}

async fn reads(inbox: &mut Mailbox<Event>, numbers: std::ops::Range<u64>) {
    for number in numbers {
        match inbox.recv_timeout(secs(300)).await {
            Ok(Event::Said(said)) => assert_eq!(said, number),
            other => panic!("{other:?} in place of {number}"),
        }
    }
}

async fn is_told(inbox: &mut Mailbox<Event>) -> Fate {
    match inbox.recv_timeout(secs(300)).await {
        Ok(Event::Down(notice)) => notice.fate,
        other => panic!("{other:?} in place of a notice"),
    }
}

/// Nodes `n` on hosts 1 to `size`, who all see each other.
async fn cluster(world: &World, size: u8) -> Vec<Node> {
    let mut nodes = vec![world.node("n", 1).await];
    for host in 2..=size {
        nodes.push(world.builder("n", host).join(nodes[0].name()).start().await.unwrap());
    }
    for node in &nodes {
        node.membership().wait_for_alive(size.into()).await.unwrap();
    }
    nodes
}

/// The same number on another life of the node.
fn in_life_of(pid: &Pid, node: &NodeId) -> Pid {
    let mut value = serde_json::to_value(pid).unwrap();
    value["node"] = serde_json::to_value(node).unwrap();
    serde_json::from_value(value).unwrap()
}

/// A watch on a mailbox of another node, and of the node itself, ends when it does, and says how. Nothing ends it sooner,
/// not even a link that was closed because nobody used it.
#[tokio::test(start_paused = true)]
async fn the_end_is_told_with_its_reason() {
    let world = World::new(501);
    let (a, b) = world.unprobing_pair().await;
    for at in [&a, &b] {
        let (closes, panics, stays) = (b.mailbox::<u64>(), b.mailbox::<u64>(), b.mailbox::<u64>());
        let (mut closed, mut panicked, mut other) = (at.monitor(&closes), at.monitor(&panics), at.monitor(&stays));
        let name = Monitored::Mailbox(closes.pid());
        assert!(is_armed(&mut closed).await && is_armed(&mut panicked).await);
        tokio::time::sleep(secs(300)).await;
        drop(closes);
        assert_eq!(timeout(secs(1), &mut closed).await.expect("soon").target, name);
        let task = tokio::spawn(async move {
            let _held = panics;
            panic!("as it should");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(fate(&mut panicked).await, Fate::Panicked);
        assert!(is_armed(&mut other).await);
    }
    let last = b.mailbox::<u64>();
    let (of_node, of_mailbox) = (a.monitor(b.id()), a.monitor(&last));
    // A good-bye needs a link, and the last one was closed as unused.
    a.cluster().ping(b.name(), secs(5)).await.unwrap();
    b.cluster().ping(a.name(), secs(5)).await.unwrap();
    b.shutdown().await;
    assert_eq!(fate(of_node).await, Fate::NodeLeft);
    assert_eq!(fate(of_mailbox).await, Fate::NodeLeft);
}

/// Who watches what is gone already is told so, soon; so is who watches a name that nobody has.
#[tokio::test(start_paused = true)]
async fn what_is_gone_already_is_told() {
    let world = World::new(502);
    let (a, b) = world.pair().await;
    for (at, there) in [(&a, &b), (&a, &a)] {
        let gone = there.mailbox::<u64>().pid();
        let began = Instant::now();
        assert_eq!(fate(at.monitor(&gone)).await, Fate::NoSuchMailbox);
        assert_eq!(fate(at.monitor_until_dead(&gone)).await, Fate::NoSuchMailbox);
        let mut inbox = at.mailbox::<Event>();
        inbox.monitor(&gone, Event::Down);
        assert_eq!(is_told(&mut inbox).await, Fate::NoSuchMailbox);
        assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
    }
    let nobody = Monitored::Name { scope: String::new(), name: "nobody".into() };
    let notice = a.monitor(nobody.clone()).await;
    assert_eq!((notice.target, notice.fate), (nobody.clone(), Fate::NoSuchMailbox));
    let mut inbox = a.mailbox::<Event>();
    inbox.monitor(nobody, Event::Down);
    assert_eq!(is_told(&mut inbox).await, Fate::NoSuchMailbox);
    let stranger: NodeName = "x@10.0.0.9:4370".parse().unwrap();
    assert_eq!(fate(a.monitor(&stranger)).await, Fate::Disconnected);
}

/// A node falls silent. Whoever watches is told that the session is lost when its link is, and whoever waits until it is
/// dead when the members agree; the two are told apart from a node that left.
#[tokio::test(start_paused = true)]
async fn a_silent_node_is_told_by_session_and_by_membership() {
    let world = World::new(503);
    let mut nodes = cluster(&world, 4).await;
    let target = nodes[3].mailbox::<u64>();
    let id = nodes[3].id();
    let mut inbox = nodes[0].mailbox::<Event>();
    inbox.monitor(&target, Event::Down);
    let until_dead = nodes[0].monitor_until_dead(&target);
    let node_until_dead = nodes[1].monitor_until_dead(&id);
    let node = nodes[1].monitor(&id);
    tokio::time::sleep(secs(5)).await;
    world.fabric.freeze(ip(4));
    let began = Instant::now();
    assert!(matches!(fate(node).await, Fate::Disconnected | Fate::NodeDown));
    assert!(matches!(is_told(&mut inbox).await, Fate::Disconnected | Fate::NodeDown));
    assert_eq!(fate(until_dead).await, Fate::NodeDown);
    assert_eq!(fate(node_until_dead).await, Fate::NodeDown);
    println!("told of a silent node after {:?}", began.elapsed());
    assert!(began.elapsed() < secs(30), "{:?}", began.elapsed());
    assert_eq!(fate(nodes[0].monitor(&id)).await, Fate::NodeDown, "it is known");

    let leaves = nodes.remove(2);
    let (prompt, until_dead) = (nodes[0].monitor(leaves.id()), nodes[0].monitor_until_dead(leaves.id()));
    tokio::time::sleep(secs(1)).await;
    leaves.shutdown().await;
    assert_eq!(fate(prompt).await, Fate::NodeLeft);
    assert_eq!(fate(until_dead).await, Fate::NodeLeft);
}

/// A session that a user ends is the end for who watches it. Who waits until the target is dead has another session, and
/// hears in it what the target's end was.
#[tokio::test(start_paused = true)]
async fn a_watch_until_dead_outlives_its_session() {
    let world = World::new(504);
    let (a, b) = world.pair().await;
    let target = b.mailbox::<u64>();
    let mut inbox = a.mailbox::<Event>();
    let prompt = a.monitor(&target);
    let mut until_dead = a.monitor_until_dead(&target);
    inbox.monitor_until_dead(&target, Event::Down);
    let node = a.monitor(b.id());
    a.cluster().connect(b.name()).await.unwrap();
    let mut events = a.cluster().node_events();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    a.cluster().disconnect(b.name()).await;
    assert_eq!(fate(prompt).await, Fate::Disconnected);
    assert_eq!(fate(node).await, Fate::Disconnected);
    assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::Disconnected));
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert!(is_armed(&mut until_dead).await);
    drop(target);
    assert_eq!(fate(until_dead).await, Fate::Closed);
    assert_eq!(is_told(&mut inbox).await, Fate::Closed);
}

/// The target is closed while there is a cut: who waits until it is dead is told after the cut, with the true reason.
#[tokio::test(start_paused = true)]
async fn a_close_behind_a_cut_is_told_after_it() {
    let world = World::new(505);
    let (a, b) = world.unprobing_pair().await;
    let target = b.mailbox::<u64>();
    let mut until_dead = a.monitor_until_dead(&target);
    a.cluster().connect(b.name()).await.unwrap();
    // Both know each other as members, so it is not for the session alone to say who is dead.
    a.membership().wait_for_alive(2).await.unwrap();
    assert!(is_armed(&mut until_dead).await);
    let lost = a.monitor(&target);
    let mut events = a.cluster().node_events();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    world.fabric.cut(ip(1), ip(2));
    drop(target);
    assert!(matches!(next(&mut events).await, NodeEvent::Down(..)));
    assert_eq!(fate(lost).await, Fate::Disconnected);
    world.fabric.heal_all();
    assert_eq!(fate(until_dead).await, Fate::NoSuchMailbox);
}

/// A node that nobody can reach has its notice within the deadline of a connect.
#[tokio::test(start_paused = true)]
async fn a_node_out_of_reach_has_its_notice() {
    let world = World::new(506);
    let (a, b) = world.unprobing_pair().await;
    let target = b.mailbox::<u64>();
    world.fabric.cut(ip(1), ip(2));
    let began = Instant::now();
    let (prompt, until_dead) = (a.monitor(&target), a.monitor_until_dead(&target));
    assert_eq!(fate(prompt).await, Fate::Disconnected);
    assert_eq!(fate(until_dead).await, Fate::NodeDown);
    let limit = Config::default().connect_timeout + secs(1);
    assert!(began.elapsed() <= limit, "{:?}", began.elapsed());
}

/// An address of an earlier life means nobody: neither a watch nor a message comes to a mailbox of the same number.
#[tokio::test(start_paused = true)]
async fn an_earlier_life_is_superseded() {
    let world = World::new(507);
    let a = world.node("a", 1).await;
    let b = world.node("b", 2).await;
    let (old_inbox, old) = (b.mailbox::<u64>(), b.id());
    let (kept, serial) = (old_inbox.address().bind(&a), old_inbox.pid().serial());
    kept.send(1).await.unwrap();
    b.shutdown().await;
    let b = world.node("b", 2).await;
    a.cluster().connect(b.name()).await.unwrap();
    let mut inbox = b.mailbox::<u64>();
    assert_eq!(inbox.pid().serial(), serial);
    let mut present = a.monitor(&inbox);
    for _ in 0..2 {
        assert_eq!(fate(a.monitor(&kept)).await, Fate::Superseded);
        assert_eq!(fate(a.monitor_until_dead(&old)).await, Fate::Superseded);
    }
    let mut events = a.mailbox::<Event>();
    events.monitor(kept.pid(), Event::Down);
    assert_eq!(is_told(&mut events).await, Fate::Superseded);
    assert!(matches!(kept.send(2).await, Err(SendError::SessionEnded(_))));
    assert!(matches!(kept.send(3).await, Err(SendError::NotConnected(..))));
    assert!(is_armed(&mut present).await);
    assert_eq!(inbox.try_recv(), Err(RecvError::Empty));
}

/// The owner of a name is watched, and goes on to be when the name is somebody else's.
#[tokio::test(start_paused = true)]
async fn a_name_that_moves_takes_no_watch_along() {
    const NAME: Name<u64> = Name::new("counter");
    let world = World::new(518);
    let nodes = cluster(&world, 3).await;
    let (p, q) = (nodes[1].mailbox::<u64>(), nodes[1].mailbox::<u64>());
    let registry = nodes[1].registry();
    let first = registry.register(NAME, &p).await.unwrap();
    nodes[0].registry().wait_for(NAME).await.unwrap();
    let of_p = nodes[0].monitor(&NAME);
    assert_eq!(*of_p.target(), Monitored::Mailbox(p.pid()));
    let second = registry.replace(NAME, p.pid(), &q).everywhere().await.unwrap();
    let mut of_q = nodes[0].monitor(&NAME);
    assert_eq!(*of_q.target(), Monitored::Mailbox(q.pid()));
    drop(p);
    assert_eq!(timeout(secs(5), of_p).await.expect("a notice").fate, Fate::Closed);
    assert!(is_armed(&mut of_q).await);
    drop(q);
    assert_eq!(fate(of_q).await, Fate::Closed);
    // Whoever is told finds the name free.
    let r = nodes[0].mailbox::<u64>();
    nodes[0].registry().register(NAME, &r).await.unwrap();
    drop((first, second));
}

/// Four watch; one gives up before the end and one after it, though its notice waits in its mailbox.
#[tokio::test(start_paused = true)]
async fn who_gives_up_is_not_told() {
    let world = World::new(508);
    let (a, b) = world.pair().await;
    for there in [&a, &b] {
        let target = there.mailbox::<u64>();
        let mut inboxes: Vec<_> = (0..4).map(|_| a.mailbox::<Event>()).collect();
        let watching: Vec<_> = inboxes.iter().map(|inbox| inbox.monitor(&target, Event::Down)).collect();
        let mut seen = a.monitor(&target);
        drop(a.monitor(&target));
        watching[0].cancel();
        assert!(is_armed(&mut seen).await);
        drop(target);
        assert_eq!(fate(seen).await, Fate::Closed);
        tokio::time::sleep(secs(1)).await;
        watching[2].cancel();
        watching[2].cancel();
        for (n, inbox) in inboxes.iter_mut().enumerate() {
            if n % 2 == 0 {
                assert!(matches!(inbox.try_recv(), Err(RecvError::Empty)), "{n}");
            } else {
                assert_eq!(is_told(inbox).await, Fate::Closed);
                assert!(matches!(inbox.try_recv(), Err(RecvError::Empty)), "{n} is told once");
            }
        }
        watching.iter().for_each(distribute::Watching::cancel);
    }
}

/// A thousand messages come by two addresses and then the sender is gone: whoever watched reads all, in order, and then
/// the notice. So on a good day and on a bad one, and within one node.
#[tokio::test(start_paused = true)]
async fn a_notice_comes_after_all_messages() {
    for (seed, conditions, is_own) in
        [(509, Conditions::default(), false), (510, lossy(), false), (511, Conditions::default(), true)]
    {
        let world = World::new(seed);
        let (a, b) = world.pair().await;
        world.fabric.conditions(conditions);
        let sender = if is_own { &a } else { &b };
        let mut inbox = a.mailbox::<Event>();
        let target = sender.mailbox::<u64>();
        inbox.monitor(&target, Event::Down);
        let prompt = a.monitor(&target);
        let addresses: [Address<Event>; 2] = [inbox.address().bind(sender), inbox.address().bind(sender)];
        let sending = tokio::spawn(async move {
            for n in 0..1000 {
                addresses[n as usize % 2].send(Event::Said(n)).await.unwrap();
            }
            drop(target);
        });
        reads(&mut inbox, 0..1000).await;
        assert_eq!(is_told(&mut inbox).await, Fate::Closed);
        sending.await.unwrap();
        assert_eq!(fate(prompt).await, Fate::Closed);
    }
}

/// The mailbox that watches is read late: its lane is full, and the notice waits behind what waits for room.
#[tokio::test(start_paused = true)]
async fn a_notice_waits_behind_a_full_lane() {
    let world = World::new(512);
    let (a, b) = world.pair().await;
    let mut inbox = a.mailbox::<Event>();
    let here = inbox.address().bind(&b);
    let target = b.mailbox::<u64>();
    inbox.monitor(&target, Event::Down);
    let mut prompt = a.monitor(&target);
    assert!(is_armed(&mut prompt).await);
    let mut sent = 0;
    here.send(Event::Said(0)).await.unwrap();
    while here.try_send(Event::Said(sent + 1)).is_ok() {
        sent += 1;
    }
    drop(target);
    assert_eq!(fate(prompt).await, Fate::Closed);
    reads(&mut inbox, 0..sent + 1).await;
    assert_eq!(is_told(&mut inbox).await, Fate::Closed);
}

/// The link is full of large messages and the watching node is frozen when the target is closed, and another watch is
/// given up: after the thaw the reason is the true one, not a lost session, and who gave up is not told.
#[tokio::test(start_paused = true)]
async fn a_full_link_keeps_the_reason() {
    let world = World::new(513);
    let (a, b) = world.pair().await;
    let bulk = a.mailbox::<Vec<u8>>();
    let (target, other) = (b.mailbox::<u64>(), b.mailbox::<u64>());
    let told = a.monitor(&target);
    let mut inbox = a.mailbox::<Event>();
    inbox.monitor(&target, Event::Down);
    let given_up = inbox.monitor(&other, Event::Down);
    tokio::time::sleep(secs(1)).await;
    let there = bulk.address().bind(&b);
    let flood = tokio::spawn(async move { while there.send(vec![7; 1 << 20]).await.is_ok() {} });
    world.fabric.freeze(ip(1));
    tokio::time::sleep(millis(500)).await;
    drop(target);
    given_up.cancel();
    tokio::time::sleep(secs(1)).await;
    world.fabric.thaw(ip(1));
    assert_eq!(fate(told).await, Fate::Closed);
    assert_eq!(is_told(&mut inbox).await, Fate::Closed);
    drop(other);
    tokio::time::sleep(secs(5)).await;
    assert!(matches!(inbox.try_recv(), Err(RecvError::Empty)));
    flood.abort();
    assert_eq!(a.cluster().peers(), [b.id()]);
}

/// Ten thousand watch one mailbox from one node: all are told, in less than a second, by a handful of datagrams. So it is
/// when the node leaves.
#[tokio::test(start_paused = true)]
async fn ten_thousand_are_told_by_one_frame() {
    let world = World::new(514);
    let (a, b) = world.unprobing_pair().await;
    a.cluster().connect(b.name()).await.unwrap();
    for leaves in [false, true] {
        let target = b.mailbox::<u64>();
        let before = world.fabric.counters().bytes_delivered;
        let monitors: Vec<_> = (0..10_000).map(|_| a.monitor(&target)).collect();
        let mut last = a.monitor(&target);
        assert!(is_armed(&mut last).await);
        let began = Instant::now();
        let expected = if leaves { Fate::NodeLeft } else { Fate::Closed };
        if leaves {
            b.shutdown().await;
        } else {
            drop(target);
        }
        for monitor in monitors {
            assert_eq!(fate(monitor).await, expected);
        }
        assert_eq!(fate(last).await, expected);
        assert!(began.elapsed() < secs(3), "{:?}", began.elapsed());
        let bytes = world.fabric.counters().bytes_delivered - before;
        assert!(bytes < 100_000, "{bytes} B");
    }
}

/// The members declare a node dead that runs on behind a cut: whoever watches it is told, whoever watches it later at
/// once, and whoever had given up never.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_declared_dead_is_gone() {
    let world = World::new(515);
    let nodes = cluster(&world, 4).await;
    let (a, x) = (&nodes[0], &nodes[3]);
    let runs_on = x.mailbox::<u64>();
    let mut inbox = a.mailbox::<Event>();
    let given_up = inbox.monitor_until_dead(x.id(), Event::Down);
    let (of_node, of_mailbox) = (a.monitor_until_dead(x.id()), a.monitor_until_dead(&runs_on));
    given_up.cancel();
    world.fabric.partition(&[ip(1), ip(2), ip(3)], &[ip(4)]);
    assert_eq!(fate(of_node).await, Fate::NodeDown);
    assert_eq!(fate(of_mailbox).await, Fate::NodeDown);
    let began = Instant::now();
    assert_eq!(fate(a.monitor(x.id())).await, Fate::NodeDown);
    assert_eq!(fate(a.monitor_until_dead(&runs_on)).await, Fate::NodeDown);
    assert!(began.elapsed() < millis(1), "{:?}", began.elapsed());
    assert!(matches!(inbox.try_recv(), Err(RecvError::Empty)));
    // It is back, and can be watched again.
    world.fabric.heal_all();
    for node in &nodes {
        node.membership().wait_for_alive(4).await.unwrap();
    }
    let mut again = a.monitor(&runs_on);
    assert!(is_armed(&mut again).await);
    drop(runs_on);
    assert_eq!(fate(again).await, Fate::Closed);
}

/// Addresses of ever so many lives that never were are watched, and each has its notice.
#[tokio::test(start_paused = true)]
async fn lives_that_never_were_have_their_notices() {
    let world = World::new(516);
    let (a, b) = world.unprobing_pair().await;
    a.cluster().connect(b.name()).await.unwrap();
    let pid = b.mailbox::<u64>().pid();
    let id = serde_json::to_value(b.id()).unwrap();
    let live = b.id().incarnation();
    for n in (1..=1000).flat_map(|n| [live - n, live + n]) {
        let mut other = id.clone();
        other["incarnation"] = n.into();
        let other: NodeId = serde_json::from_value(other).unwrap();
        let expected = if n < live { Fate::Superseded } else { Fate::Disconnected };
        assert_eq!(fate(a.monitor(in_life_of(&pid, &other))).await, expected);
        assert_eq!(fate(a.monitor(other)).await, expected);
    }
}

/// When the node that watches stops, all its watches are over.
#[tokio::test(start_paused = true)]
async fn a_node_that_stops_watches_no_more() {
    let world = World::new(517);
    let (a, b) = world.pair().await;
    let (there, here) = (b.mailbox::<u64>(), a.mailbox::<u64>());
    let monitors = [a.monitor(&there), a.monitor(&here), a.monitor_until_dead(b.id())];
    let mut inbox = a.mailbox::<Event>();
    inbox.monitor(&there, Event::Down);
    tokio::time::sleep(secs(1)).await;
    a.shutdown().await;
    for monitor in monitors {
        assert_eq!(fate(monitor).await, Fate::Disconnected);
    }
    assert_eq!(is_told(&mut inbox).await, Fate::Disconnected);
    assert!(inbox.recv().await.is_none());
    assert_eq!(fate(a.monitor(&there)).await, Fate::Disconnected);
}
