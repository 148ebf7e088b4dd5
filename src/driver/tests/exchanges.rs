//! Callers and callees that keep no rules.

use super::fake::{Fake, Frames, Joined, call, call_as, call_frame, closed, in_full, next_stream};
use super::*;
use crate::error::CallError;
use crate::rpc::CallStream;
use crate::transport::link::Sender;
use crate::wire::{CallFrame, CallHead, CallMode, Code, Status, StreamKind};

const CALLS: &[u8] = &[3];
const LARGE: &[u8] = &[5];

/// The largest varint.
const MOST: u64 = (1 << 62) - 1;

fn item(id: u64, number: u64, body: &[u8]) -> Vec<u8> {
    call_frame(&CallHead::Item { id, number, term: in_full("") }, body)
}

fn end(id: u64, items: u64) -> Vec<u8> {
    call_frame(&CallHead::End { id, status: Status::Answered, items }, &[])
}

fn answer(id: u64) -> Vec<u8> {
    call_frame(&CallHead::Answer { id, term: in_full("") }, &[1])
}

fn cancel(id: u64) -> Vec<u8> {
    call_frame(&CallHead::Cancel { id }, &[])
}

/// Waits for the call that the node makes. A stream that nobody keeps is given up, which ends a session too.
async fn asked(joined: &Joined) -> (u64, CallMode, Frames) {
    loop {
        let mut frames = next_stream(&joined.link).await.unwrap();
        let frame = frames.next_call().await;
        if let Some(CallFrame { head: CallHead::Call { id, mode, .. }, .. }) = frame {
            assert_eq!(frames.kind(), Some(StreamKind::Calls));
            return (id, mode, frames);
        }
    }
}

/// The node opens a stream at the attacker.
async fn stream(world: &World, fake: &Fake, joined: &Joined) -> (CallStream<u64>, u64, Frames) {
    let stream = world.a.rpc().call_stream(fake.name(), DOUBLE, 1).timeout(secs(60)).await.unwrap();
    let (id, mode, frames) = asked(joined).await;
    assert_eq!(mode, CallMode::Items { limit: Config::default().call_window as u64 });
    (stream, id, frames)
}

async fn ends(world: &mut World, fake: &Fake, joined: Joined, what: &str, code: Code, down: DownReason) {
    assert_eq!(closed(&joined.link).await.code, code, "{what}");
    world.up_and_down(&fake.id, down, what).await;
    world.talk().await;
}

/// Items without credit, twice, after the end, or where one answer was asked for: it costs the callee its session, and its
/// caller is told.
#[tokio::test(start_paused = true)]
async fn a_callee_that_breaks_the_rules_of_streams_ends_its_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let large = vec![0; 60_000];
    type Attack<'a> = (&'a str, Box<dyn Fn(u64) -> Vec<u8> + 'a>);
    let attacks: Vec<Attack<'_>> = vec![
        ("an item twice", Box::new(|id| [item(id, 0, &[1]), item(id, 0, &[1])].concat())),
        ("an early item twice", Box::new(|id| [item(id, 7, &[1]), item(id, 7, &[1])].concat())),
        ("items beyond the credit", Box::new(|id| (0..6).flat_map(|n| item(id, n, &large)).collect())),
        ("early items beyond the credit", Box::new(|id| (1..7).flat_map(|n| item(id, n, &large)).collect())),
        ("empty items beyond the credit", Box::new(|id| (1..5000).flat_map(|n| item(id, n, &[])).collect())),
        ("an item after the end", Box::new(|id| [end(id, 1), item(id, 1, &[1])].concat())),
        ("an end before its items", Box::new(|id| [item(id, 5, &[1]), end(id, 5)].concat())),
        ("two ends", Box::new(|id| [end(id, 3), end(id, 3)].concat())),
        ("one answer for many", Box::new(answer)),
        ("the last number of all, and its end", Box::new(|id| [item(id, MOST, &[1]), end(id, MOST)].concat())),
    ];
    for (what, attack) in attacks {
        let joined = fake.join(&world.a).await;
        let (mut stream, id, _frames) = stream(&world, &fake, &joined).await;
        let _calls = joined.open(&[CALLS, &attack(id)].concat()).await;
        ends(&mut world, &fake, joined, what, Code::PROTOCOL, DownReason::Protocol).await;
        let mut last = stream.next().await;
        while let Some(Ok(_) | Err(CallError::BadAnswer(_))) = last {
            last = stream.next().await;
        }
        assert!(matches!(last, Some(Err(CallError::Disconnected(_))) | None), "{what}: {last:?}");
    }
    let joined = fake.join(&world.a).await;
    let (rpc, to) = (world.a.rpc(), fake.name().clone());
    let calling = tokio::spawn(async move { rpc.call(&to, DOUBLE, 1).timeout(secs(60)).await });
    let (id, mode, _frames) = asked(&joined).await;
    assert_eq!(mode, CallMode::Answer);
    let _calls = joined.open(&[CALLS, &item(id, 0, &[1])].concat()).await;
    ends(&mut world, &fake, joined, "many answers for one", Code::PROTOCOL, DownReason::Protocol).await;
    assert_eq!(calling.await.unwrap(), Err(CallError::Disconnected(fake.id.clone())));
    world.is_unharmed().await;
}

/// What keeps the rules, whatever else it does: items that come in the wrong order, an end that comes first, a body that is
/// none.
#[tokio::test(start_paused = true)]
async fn an_odd_callee_is_borne_with() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    let (mut first, id, _frames) = stream(&world, &fake, &joined).await;
    let mut calls = joined.open(&[CALLS, &end(id, 3), &item(id, 2, &[12]), &item(id, 1, &[11])].concat()).await;
    let _own = joined.open(&[LARGE, &item(id, 0, &[10])].concat()).await;
    for n in 10..13 {
        assert_eq!(first.next().await, Some(Ok(n)));
    }
    assert_eq!(first.next().await, None);

    let rpc = world.a.rpc();
    let odd: [(Vec<u8>, CallError); 4] = [
        (call_frame(&CallHead::Answer { id: 0, term: in_full("") }, b"no number"), CallError::BadAnswer(String::new())),
        (call_frame(&CallHead::End { id: 0, status: Status::Answered, items: 7 }, &[]), CallError::Cancelled),
        (call_frame(&CallHead::End { id: 0, status: Status::Overloaded, items: 0 }, &[]), CallError::Overloaded),
        (call_frame(&CallHead::End { id: 0, status: Status::Expired, items: 0 }, &[]), CallError::Timeout(secs(60))),
    ];
    for (at, (bytes, expected)) in odd.into_iter().enumerate() {
        // Ids go up by one, and take one byte; the id follows the type and the length.
        let mut bytes = bytes;
        bytes[2] = (id + 1) as u8 + at as u8;
        let answering = calls.write(&bytes);
        let (answer, _) = tokio::join!(rpc.call(fake.name(), DOUBLE, 1).timeout(secs(60)).into_future(), async {
            sleep(Duration::from_millis(100)).await;
            answering.await.unwrap();
        });
        match expected {
            CallError::BadAnswer(_) => assert!(matches!(answer, Err(CallError::BadAnswer(_))), "{answer:?}"),
            expected => assert_eq!(answer, Err(expected)),
        }
    }
    assert!(joined.answers(1).await);
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    world.is_unharmed().await;
}

/// A cancel that overtakes its large request cancels it all the same, but a bounded number of them is remembered.
#[tokio::test(start_paused = true)]
async fn a_cancel_may_overtake_a_large_request() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let mut calls = joined.open(&[CALLS, &cancel(5), &cancel(7)].concat()).await;
    sleep(Duration::from_millis(100)).await;
    let _five = joined.open(&[LARGE, &call(5, "double", 1000)].concat()).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(world.runs.load(Ordering::Relaxed), 0);
    let many: Vec<u8> = (1000..2100).flat_map(cancel).collect();
    calls.write(&many).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let _seven = joined.open(&[LARGE, &call(7, "double", 1000)].concat()).await;
    let mut frames = next_stream(&joined.link).await.unwrap();
    let CallFrame { head, body } = frames.next_call().await.unwrap();
    assert!(matches!(head, CallHead::Answer { id: 7, .. }) && body[..] == [42], "{head:?}: it was forgotten");
    assert_eq!(world.runs.swap(0, Ordering::Relaxed), 1);
    assert!(joined.answers(1).await);
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    world.is_unharmed().await;
}

/// A large call that is taken back half-way is none; one that ends half-way is a broken one.
#[tokio::test(start_paused = true)]
async fn a_large_call_may_be_taken_back() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    let whole = [LARGE, &call_as(9, "double", 1000, CallMode::Answer, &[0; 100_000])].concat();
    for length in [1, 2, 20, 50_000, whole.len() - 1] {
        let stream: Sender = joined.open(&whole[..length]).await;
        sleep(Duration::from_millis(50)).await;
        drop(stream);
    }
    assert!(joined.answers(1).await);
    sleep(secs(1)).await;
    assert!(joined.answers(2).await);
    joined.open(&whole[..50_000]).await.finish();
    ends(&mut world, &fake, joined, "half a large call", Code::PROTOCOL, DownReason::Protocol).await;
    world.is_unharmed().await;
}

/// Floods of what means nothing are dropped and counted; they fill nothing, and other calls of the same peer go on.
#[tokio::test(start_paused = true)]
async fn floods_of_nothing_fill_nothing() {
    const FLOOD: u64 = 50_000;
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let mut calls = joined.open(CALLS).await;
    let term = || in_full("");
    let kinds: [&dyn Fn(u64) -> Vec<u8>; 6] = [
        &cancel,
        &|id| call_frame(&CallHead::Credit { id, limit: MOST }, &[]),
        &answer,
        &|id| item(id, id, &[1]),
        &|id| end(id, id),
        &|serial| call_frame(&CallHead::Reply { serial, secret: serial.to_be_bytes(), term: term() }, &[1]),
    ];
    let before = world.a.rpc().stats().late;
    for kind in kinds {
        for from in (0..FLOOD).step_by(1000) {
            let frames: Vec<u8> = (from + 1..from + 1001).flat_map(kind).collect();
            calls.write(&frames).await.unwrap();
        }
    }
    calls.write(&call(MOST, "double", 1000)).await.unwrap();
    let mut frames = next_stream(&joined.link).await.unwrap();
    let CallFrame { head, .. } = frames.next_call().await.unwrap();
    assert!(matches!(head, CallHead::Answer { id: MOST, .. }), "{head:?}");
    assert_eq!(world.a.rpc().stats().late - before, 4 * FLOOD);
    assert_eq!(world.runs.swap(0, Ordering::Relaxed), 1);
    assert!(joined.answers(1).await);
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    world.is_unharmed().await;
}

/// Streams that are asked for and not read: each holds its window at most, and the places of one peer end them all.
#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_holds_a_window() {
    const FLOOD: Method<u64, Vec<u8>> = Method::new("flood");
    let config = Config { handlers_per_peer: 16, ..Config::default() };
    let mut world = World::with(config).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let _ = world.a.rpc().serve_stream(FLOOD, move |_, _, mut sink| {
        let counter = counter.clone();
        async move {
            while sink.send(vec![0; 1000]).await.is_ok() {
                counter.fetch_add(1000, Ordering::Relaxed);
            }
        }
    });
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let ask = |id, limit| call_as(id, "flood", MOST, CallMode::Items { limit }, &[1]);
    let frames: Vec<u8> = (0..100).flat_map(|id| ask(id, if id < 8 { 10_000 } else { MOST })).collect();
    let _calls = joined.open(&[CALLS, &frames].concat()).await;
    sleep(secs(5)).await;
    let stats = world.a.rpc().stats();
    assert_eq!((stats.handlers, stats.overloaded), (16, 84));
    // Unread bytes are bounded by the buffers of the way, however much credit there is.
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 8 * 11_000 + 12_000_000, "{sent}");
    assert!(joined.answers(1).await);
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    for _ in 0..1000 {
        if world.a.rpc().stats().handlers == 0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.a.rpc().stats().handlers, 0, "they end with the session");
    world.is_unharmed().await;
}

/// Ten thousand calls at once, of 32 KiB each, against the caps: what they hold is bounded. In a process of its own, because
/// other tests take memory too.
#[test]
fn ten_thousand_calls_are_bounded() {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "driver::tests::exchanges::ten_thousand_calls", "--nocapture"])
        .env(ALONE, "1")
        .status();
    assert!(status.unwrap().success());
}

/// Set in the process that [`ten_thousand_calls_are_bounded`] starts.
const ALONE: &str = "DISTRIBUTE_TEST_ALONE";

#[tokio::test(start_paused = true)]
async fn ten_thousand_calls() {
    const HOLD: Method<Vec<u8>, ()> = Method::new("hold");
    const CROWD: u64 = 10_000;
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let mut world = World::new().await;
    let _ = world.a.rpc().serve(HOLD, |_, bytes: Vec<u8>| async move {
        std::future::pending::<()>().await;
        drop(bytes);
    });
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let schema = crate::message::schema::<Vec<u8>>();
    let term = crate::wire::Term { method: "hold".to_owned(), schema };
    let mut body = Vec::new();
    crate::Message::encode(&vec![7u8; 32 << 10], &mut body).unwrap();
    let mut calls = joined.open(&[CALLS, &call_frame(&CallHead::Term { number: 1, term }, &[])].concat()).await;
    let before = flood::resident_kib();
    for id in 0..CROWD {
        let term = crate::wire::TermRef::Number(1);
        let head = CallHead::Call { id, term, timeout_ms: MOST, mode: CallMode::Answer, trace: None };
        calls.write(&call_frame(&head, &body)).await.unwrap();
    }
    sleep(secs(1)).await;
    let stats = world.a.rpc().stats();
    let grown = flood::resident_kib() - before;
    println!("{CROWD} calls of 32 KiB at once: {} KiB more, both ends in this process; {stats:?}", grown);
    assert_eq!(stats.handlers as u64 + stats.overloaded, CROWD);
    assert!(stats.handler_bytes <= Config::default().calls_budget_per_peer, "{stats:?}");
    assert!(grown < 80 << 10, "memory grows with the number of calls: {grown} KiB");
    world.talk().await;
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    sleep(secs(1)).await;
    assert_eq!(world.a.rpc().stats().handler_bytes, 0);
    world.is_unharmed().await;
}
