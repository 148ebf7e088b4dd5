//! What each fault of the network does to messages, large and small.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use distribute::sim::Conditions;
use distribute::{Address, Bytes, Config, DownReason, Mailbox, Method, Node, NodeEvent, RecvError, SendError};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::{World, ip, lossy, millis, next, quiet, secs, unprobing};

const MIB: usize = 1 << 20;
const ECHO: Method<u64, u64> = Method::new("echo");

/// A body that says its number at both ends.
fn numbered(n: u64, size: usize) -> Bytes {
    let mut body = vec![n as u8; size];
    body[..8].copy_from_slice(&n.to_le_bytes());
    body[size - 8..].copy_from_slice(&n.to_le_bytes());
    body.into()
}

fn is_numbered(body: &Bytes, n: u64, size: usize) -> bool {
    let is_whole = body.iter().skip(8).step_by(4093).take_while(|byte| **byte == n as u8).count();
    body.len() == size
        && body[..8] == n.to_le_bytes()
        && body[size - 8..] == n.to_le_bytes()
        && is_whole + 1 >= (size - 8).div_ceil(4093)
}

/// Sends so many numbered bodies, from the task that it returns.
fn send_numbered(there: &Address<Bytes>, count: u64, size: usize) -> tokio::task::JoinHandle<()> {
    let there = there.clone();
    tokio::spawn(async move { there.send_all((0..count).map(|n| numbered(n, size))).await.unwrap() })
}

/// A mailbox of one node, and its address for another.
fn inbox(at: &Node, from: &Node) -> (Mailbox<Bytes>, Address<Bytes>) {
    let inbox = at.mailbox();
    let there = inbox.address().bind(from);
    (inbox, there)
}

/// Half a gigabyte crosses a link of 100 Mbit/s whose queue holds a tenth of a second: nothing is lost, the session lasts,
/// and a small call waits for the queue and little more. `BULK_MIB=512` for all of it; a part by default, which has the
/// same queue from its second second on.
#[tokio::test(start_paused = true)]
async fn bulk_fills_a_link_and_calls_pass_beside_it() {
    let messages = std::env::var("BULK_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(64);
    let world = World::new(201);
    let (a, b) = world.pair().await;
    b.rpc().serve(ECHO, |_, n| async move { n }).unwrap();
    let mut events = a.cluster().node_events();
    assert_eq!(a.rpc().call(b.name(), ECHO, 0).await, Ok(0));
    world.fabric.conditions(Conditions::default().latency(millis(10)).bandwidth(12_500_000).queue(1_250_000));
    let (mut inbox, there) = inbox(&b, &a);
    let began = Instant::now();
    let sending = send_numbered(&there, messages, MIB);
    let reading = tokio::spawn(async move {
        for n in 0..messages {
            let body = inbox.recv_timeout(secs(10)).await.unwrap();
            assert!(is_numbered(&body, n, MIB), "message {n}");
        }
        began.elapsed()
    });
    let mut took = Vec::new();
    while !reading.is_finished() {
        let asked = Instant::now();
        assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Ok(1));
        took.push(asked.elapsed());
        tokio::time::sleep(millis(50)).await;
    }
    sending.await.unwrap();
    let whole = reading.await.unwrap();
    took.sort_unstable();
    let [p50, p99, most] = [took.len() / 2, took.len() * 99 / 100, took.len() - 1].map(|at| took[at]);
    let rate = messages as f64 * MIB as f64 * 8.0 / whole.as_secs_f64() / 1e6;
    println!(
        "{messages} MiB in {whole:?}, {rate:.1} Mbit/s; {} calls beside it: p50 {p50:?}, p99 {p99:?}, most {most:?}; {:?}",
        took.len(),
        world.fabric.counters()
    );
    assert!(rate > 80.0, "{rate} Mbit/s");
    // The queue is 100 ms, the way there and back 20 ms.
    assert!(p99 <= millis(150), "{p99:?}");
    assert!(most <= millis(500), "a call that was dropped is repeated soon: {most:?}");
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert!(quiet(&mut events, secs(5)).await, "one session all along");
    for node in [&a, &b] {
        let counters = node.membership().counters().await;
        assert!(counters.probes >= whole.as_secs(), "{counters:?}");
        assert_eq!((counters.failures, counters.suspicions), (0, 0), "probes pass beside bulk: {counters:?}");
    }
}

/// 1 B and 8 MiB in turn, to one mailbox, arrive in the order of sending although packets are lost.
#[tokio::test(start_paused = true)]
async fn least_and_largest_keep_their_order_under_loss() {
    let world = World::new(202);
    let (a, b) = world.pair().await;
    let (mut inbox, there) = inbox(&b, &a);
    world.fabric.conditions(lossy());
    let body = |n: u8| if n.is_multiple_of(2) { Bytes::from(vec![n]) } else { numbered(n.into(), 8 * MIB) };
    let sending = tokio::spawn(async move { there.send_all((0..8).map(body)).await });
    for n in 0..8 {
        assert!(inbox.recv_timeout(secs(300)).await.unwrap() == body(n), "message {n}");
    }
    sending.await.unwrap().unwrap();
    assert!(world.fabric.counters().lost > 100);
}

/// The sender's address changes every second while large messages pass: none is lost, changed or repeated.
#[tokio::test(start_paused = true)]
async fn rebinding_under_large_messages_is_not_seen() {
    let world = World::new(203);
    let (a, b) = world.pair().await;
    let mut events = b.cluster().node_events();
    let (mut inbox, there) = inbox(&b, &a);
    world.fabric.conditions(Conditions::default().latency(millis(5)).bandwidth(2_000_000));
    let sending = send_numbered(&there, 20, MIB);
    let (fabric, rebinds) = (world.fabric.clone(), Arc::new(AtomicU64::new(0)));
    let count = rebinds.clone();
    let rebinding = tokio::spawn(async move {
        loop {
            tokio::time::sleep(secs(1)).await;
            fabric.rebind(ip(1));
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    for n in 0..20 {
        assert!(is_numbered(&inbox.recv_timeout(secs(60)).await.unwrap(), n, MIB), "message {n}");
    }
    sending.await.unwrap();
    rebinding.abort();
    assert!(rebinds.load(Ordering::Relaxed) >= 8, "{rebinds:?}");
    assert_eq!(next(&mut events).await, NodeEvent::Up(a.id()));
    assert!(quiet(&mut events, secs(5)).await);
}

/// A thousand sends that begin during the handshake arrive each once, in the order in which they began, after the session
/// was told.
#[tokio::test(start_paused = true)]
async fn sends_during_the_handshake_arrive_in_order() {
    let world = World::new(204);
    let (a, b) = world.pair().await;
    world.fabric.conditions(Conditions::default().latency(millis(50)));
    let mut inbox = b.mailbox::<u64>();
    let there = inbox.address().bind(&a);
    let mut events = b.cluster().node_events();
    let mut sends = JoinSet::new();
    for n in 0..1000 {
        let there = there.clone();
        sends.spawn(async move { there.send(n).await });
        // The handshake takes some 300 ms.
        if n % 20 == 0 {
            tokio::time::sleep(millis(1)).await;
        }
    }
    assert_eq!(a.cluster().peers(), [], "the handshake goes on");
    assert!(sends.try_join_next().is_none());
    assert_eq!(inbox.recv().await, Some(0));
    let event = tokio::time::timeout(Duration::ZERO, events.next()).await;
    assert_eq!(event, Ok(Some(NodeEvent::Up(a.id()))), "told before the first message");
    for n in 1..1000 {
        assert_eq!(inbox.recv_timeout(secs(5)).await, Ok(n));
    }
    while let Some(sent) = sends.join_next().await {
        assert_eq!(sent.unwrap(), Ok(()));
    }
    assert!(quiet(&mut events, secs(5)).await);
    assert_eq!(inbox.try_recv(), Err(RecvError::Empty));
}

/// With one mailbox stuffed, small and large, others of the same session have all of the path, and calls are as quick as
/// before.
#[tokio::test(start_paused = true)]
async fn a_stuffed_mailbox_takes_nothing_from_others() {
    let world = World::new(205);
    let (a, b) = world.pair().await;
    b.rpc().serve(ECHO, |_, n| async move { n }).unwrap();
    world.fabric.conditions(Conditions::default().latency(millis(10)).bandwidth(12_500_000).queue(1_250_000));
    // As many mailboxes as lanes, so that one of them shares its lane with the stuffed one.
    let transfer = async |size: usize| {
        let began = Instant::now();
        let mut readers = JoinSet::new();
        let mut senders = Vec::new();
        for _ in 0..Config::default().lanes {
            let (mut inbox, there) = inbox(&b, &a);
            let count = (2 * MIB / size) as u64;
            senders.push(send_numbered(&there, count, size));
            readers.spawn(async move {
                for n in 0..count {
                    assert!(is_numbered(&inbox.recv_timeout(secs(60)).await.unwrap(), n, size), "message {n}");
                }
            });
        }
        while let Some(read) = readers.join_next().await {
            read.unwrap();
        }
        began.elapsed()
    };
    let call = async || {
        let asked = Instant::now();
        assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Ok(1));
        asked.elapsed()
    };
    transfer(10_000).await;
    let alone = [transfer(10_000).await, transfer(256 << 10).await, call().await];
    let stuffed = [inbox(&b, &a), inbox(&b, &a)];
    let mut stuffing = JoinSet::new();
    for ((_, there), size) in stuffed.iter().zip([1000, MIB]) {
        for _ in 0..100 {
            let there = there.clone();
            stuffing.spawn(async move { there.send(numbered(7, size)).await });
        }
    }
    tokio::time::sleep(secs(5)).await;
    let beside = [transfer(10_000).await, transfer(256 << 10).await, call().await];
    println!(
        "16 MiB in small messages, in large ones, and a call: {alone:?} alone, {beside:?} beside stuffed mailboxes"
    );
    for (alone, beside) in alone.into_iter().zip(beside) {
        assert!(beside <= alone + alone / 10 + millis(2), "{alone:?} became {beside:?}");
    }
    assert!(stuffing.len() > 100, "the sends wait");
}

/// With the peer frozen and all buffers full, nothing that need not wait does: a send that would returns `Full` at once,
/// one that may wait waits and can be given up, and casts, mailboxes and methods are what they were. After the thaw all
/// that was accepted arrives in order, and nothing that was given up.
#[tokio::test(start_paused = true)]
async fn a_frozen_peer_and_full_buffers_hold_nobody() {
    const NOTE: Method<u64, ()> = Method::new("note");
    let mut config = unprobing();
    // Little buffers, and all messages on one stream: they are full before the credit of the mailboxes is used up.
    (config.lanes, config.stream_window, config.send_buffer) = (1, 64 << 10, 64 << 10);
    let world = World::new(206);
    let a = world.builder("a", 1).config(config.clone()).start().await.unwrap();
    let b = world.builder("b", 2).config(config).start().await.unwrap();
    let mut events = a.cluster().node_events();
    let (notes, mut noted) = tokio::sync::mpsc::unbounded_channel();
    b.rpc()
        .serve(NOTE, move |_, n| {
            let _ = notes.send(n);
            async {}
        })
        .unwrap();
    a.cluster().connect(b.name()).await.unwrap();
    tokio::time::sleep(secs(10)).await;
    world.fabric.freeze(ip(2));
    let frozen = Instant::now();
    let mut boxes: Vec<_> = (0..20).map(|_| inbox(&b, &a)).collect();
    let mut accepted = vec![0; boxes.len()];
    for round in 0..3 {
        for ((_, there), accepted) in boxes.iter().zip(&mut accepted) {
            while there.try_send(numbered(*accepted, 1000)).is_ok() {
                *accepted += 1;
            }
        }
        assert!(round == 2 || frozen.elapsed() <= millis(2 * round));
        tokio::time::sleep(millis(1)).await;
    }
    let (held, fresh) = (accepted.iter().sum::<u64>(), boxes.last().unwrap());
    assert!((100..=300).contains(&held), "{held}");
    assert!(accepted.ends_with(&[0]), "the buffers are full before all have their credit: {accepted:?}");
    assert_eq!(fresh.1.try_send(numbered(0, 8)).unwrap_err().reason(), &SendError::Full);
    let mut waiting = JoinSet::new();
    for n in 0..100 {
        let there = fresh.1.clone();
        waiting.spawn(async move { there.send(numbered(1_000_000 + n, 8)).await });
    }
    let begun = Instant::now();
    for n in 0..100 {
        a.rpc().cast(b.name(), NOTE, n).await.unwrap();
    }
    let (own, to_own) = inbox(&a, &a);
    to_own.send(numbered(0, 8)).await.unwrap();
    a.rpc().serve(ECHO, |_, n| async move { n }).unwrap();
    let watching = a.cluster().node_events();
    assert_eq!(a.cluster().peers(), [b.id()]);
    assert_eq!(begun.elapsed(), Duration::ZERO, "nothing of this waits");
    drop((own, watching));
    tokio::time::sleep(secs(2)).await;
    assert!(waiting.try_join_next().is_none(), "these wait");
    waiting.shutdown().await;

    world.fabric.thaw(ip(2));
    let last = tokio::spawn({
        let there = fresh.1.clone();
        async move { there.send(numbered(0, 8)).await }
    });
    for ((inbox, _), accepted) in boxes.iter_mut().zip(&accepted) {
        for n in 0..*accepted {
            assert!(is_numbered(&inbox.recv_timeout(secs(20)).await.unwrap(), n, 1000));
        }
    }
    let (inbox, _) = boxes.last_mut().unwrap();
    assert_eq!(inbox.recv_timeout(secs(5)).await, Ok(numbered(0, 8)), "what was given up is not sent");
    last.await.unwrap().unwrap();
    let mut seen = Vec::new();
    for _ in 0..100 {
        seen.extend(noted.recv().await);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..100), "each cast ran once");
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert!(quiet(&mut events, secs(20)).await);
}

/// Sends that wait for credit end with the session when the peer vanishes although nothing else is under way: when the
/// link, idle by then, is to be closed and is not answered.
#[tokio::test(start_paused = true)]
async fn sends_that_wait_end_when_the_peer_vanishes() {
    let world = World::new(207);
    let (a, b) = world.unprobing_pair().await;
    let mut events = a.cluster().node_events();
    let (_inbox, there) = inbox(&b, &a);
    a.cluster().connect(b.name()).await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    while there.try_send(numbered(0, 1000)).is_ok() {}
    let mut waiting = JoinSet::new();
    for size in [8, 1000, MIB] {
        let there = there.clone();
        waiting.spawn(async move { there.send(numbered(0, size)).await });
    }
    tokio::time::sleep(secs(5)).await;
    world.fabric.cut(ip(1), ip(2));
    let cut = Instant::now();
    while let Some(sent) = waiting.join_next().await {
        assert_eq!(sent.unwrap(), Err(SendError::SessionEnded(b.id())));
    }
    println!("sends that wait were told of a peer that vanished after {:?}", cut.elapsed());
    assert!(cut.elapsed() <= secs(75), "{:?}", cut.elapsed());
    assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::Lost));
}

/// A peer takes messages to so many mailboxes and no more: one beyond is refused before it is sent, waits for nothing, and
/// goes when one of them has closed. Those that are open are not disturbed.
#[tokio::test(start_paused = true)]
async fn a_mailbox_too_many_is_refused_until_one_closes() {
    let world = World::new(209);
    let (a, b) = world.unprobing_pair().await;
    let c = world.unprobing("c", 3).await;
    let mut events = a.cluster().node_events();
    let lanes = Config::default().lanes_max as u64;
    let mut boxes: Vec<_> = (0..lanes + 10).map(|_| b.mailbox::<u64>()).collect();
    let there: Vec<_> = boxes.iter().map(|inbox| inbox.address().bind(&a)).collect();
    let too_many = SendError::TooManyMailboxes(b.name().clone());
    for n in 0..lanes {
        there[n as usize].send(n).await.unwrap();
    }
    for n in lanes..lanes + 10 {
        assert_eq!(there[n as usize].send(n).await, Err(too_many.clone()));
        assert_eq!(there[n as usize].try_send(n).unwrap_err().reason(), &too_many);
        // Another peer has its own.
        boxes[n as usize].address().bind(&c).send(n).await.unwrap();
        assert_eq!(boxes[n as usize].recv_timeout(secs(5)).await, Ok(n));
    }
    // One that closes makes room for one.
    drop(boxes.remove(0));
    let last = (lanes + 9) as usize;
    a.cluster().ping(b.name(), secs(5)).await.unwrap();
    there[last].send(7).await.unwrap();
    assert_eq!(there[last - 1].send(7).await, Err(too_many.clone()));
    assert_eq!(boxes[last - 1].recv_timeout(secs(5)).await, Ok(7));
    for (n, inbox) in (1..lanes).zip(&mut boxes) {
        assert_eq!(inbox.recv_timeout(secs(5)).await, Ok(n));
    }
    drop(boxes);
    a.cluster().ping(b.name(), secs(5)).await.unwrap();
    let mut again = b.mailbox::<u64>();
    again.address().bind(&a).send(8).await.unwrap();
    assert_eq!(again.recv_timeout(secs(5)).await, Ok(8));
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert!(quiet(&mut events, secs(5)).await);
}

/// A send that waits for credit keeps asking for signs of life, however long it waits: when the peer vanishes, it is told.
#[tokio::test(start_paused = true)]
async fn a_send_that_waits_for_hours_is_told_of_the_end() {
    let world = World::new(131);
    let (a, b) = world.pair().await;
    let inbox = b.mailbox::<Vec<u8>>();
    let there = inbox.address().bind(&a);
    a.cluster().connect(b.name()).await.unwrap();
    while there.try_send(vec![0; 1000]).is_ok() {}
    let waiting = tokio::spawn(async move { there.send(vec![0; 1000]).await });
    tokio::time::sleep(secs(3600)).await;
    assert!(!waiting.is_finished());
    world.fabric.cut(ip(1), ip(2));
    let cut = Instant::now();
    assert!(matches!(waiting.await.unwrap(), Err(SendError::SessionEnded(_))));
    assert!(cut.elapsed() < secs(15), "{:?}", cut.elapsed());
}
