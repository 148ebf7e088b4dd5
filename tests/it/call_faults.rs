//! What each fault of the network does to calls, streams of answers and questions.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distribute::sim::Conditions;
use distribute::{
    AskError, CallError, ConnectError, Effect, Mailbox, Message, Method, Node, NodeEvent, NodeName, ReplyTo,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::common::{World, ip, lossy, millis, next, quiet, secs};

const ECHO: Method<u64, u64> = Method::new("echo");
const NEVER: Method<u64, u64> = Method::new("never");
const COUNT: Method<u64, u64> = Method::new("count");

/// Says so when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

fn serve_all(node: &Node) -> mpsc::UnboundedReceiver<()> {
    let (drops, dropped) = mpsc::unbounded_channel();
    node.rpc().serve(ECHO, |_, n| async move { n }).unwrap();
    node.rpc()
        .serve(NEVER, move |_, _| {
            let dropped = Dropped(drops.clone());
            async move {
                let _dropped = dropped;
                pending().await
            }
        })
        .unwrap();
    node.rpc()
        .serve_stream(COUNT, |_, to, mut sink| async move {
            for n in 0..to {
                if sink.send(n).await.is_err() {
                    return;
                }
            }
        })
        .unwrap();
    dropped
}

/// Nothing of calls is left on the node, within a virtual minute.
async fn settles(node: &Node) {
    let deadline = Instant::now() + secs(60);
    loop {
        let stats = node.rpc().stats();
        if (stats.waiting, stats.asking, stats.handlers, stats.handler_bytes) == (0, 0, 0, 0) {
            return;
        }
        assert!(Instant::now() < deadline, "{stats:?}");
        tokio::time::sleep(millis(10)).await;
    }
}

/// A callee that freezes before the request is written: calls of all kinds end at their time, and not 200 ms later.
///
#[tokio::test(start_paused = true)]
async fn a_frozen_callee_holds_nobody_beyond_the_time() {
    let world = World::new(101);
    let (a, b) = world.pair().await;
    serve_all(&b);
    let inbox: Mailbox<Question> = b.mailbox();
    let there = inbox.address().bind(&a);
    assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Ok(1));
    world.fabric.freeze(ip(2));
    for patience in [millis(1), millis(500), secs(3)] {
        let begun = Instant::now();
        let in_time = |what: &str| {
            let took = begun.elapsed();
            assert!(took >= patience && took <= patience + millis(200), "{what}: {took:?} of {patience:?}");
        };
        let rpc = a.rpc();
        let call = async {
            let error = rpc.call(b.name(), ECHO, 2).timeout(patience).await;
            assert_eq!(error, Err(CallError::Timeout(patience)));
            in_time("call");
        };
        let large = async {
            let echo = Method::<Vec<u8>, u64>::new("echo");
            let error = rpc.call(b.name(), echo, vec![0; 10 << 20]).timeout(patience).await;
            assert_eq!(error, Err(CallError::Timeout(patience)));
            in_time("large call");
        };
        let many = async {
            let answers = rpc.multicall([b.name(), a.name(), b.name()], ECHO, 2).timeout(patience).await;
            assert_eq!(answers[0], Err(CallError::Timeout(patience)));
            assert_eq!(answers[1], Err(CallError::NoSuchMethod("echo".to_owned())));
            in_time("multicall");
        };
        let stream = async {
            let mut stream = rpc.call_stream(b.name(), COUNT, 3).timeout(patience).await.unwrap();
            assert_eq!(stream.next().await, Some(Err(CallError::Timeout(patience))));
            in_time("stream");
        };
        let question = async {
            let asked = there.ask(|reply_to| Question { n: 1, reply_to }).timeout(patience).await;
            assert_eq!(asked, Err(AskError::Timeout(patience)));
            in_time("question");
        };
        let waits = async {
            let waiting = tokio::spawn({
                let (rpc, to) = (rpc.clone(), b.name().clone());
                async move { rpc.call(&to, ECHO, 2).timeout(patience).await }
            });
            assert_eq!(waiting.await.unwrap(), Err(CallError::Timeout(patience)));
            in_time("a call in a task");
        };
        tokio::join!(call, large, many, stream, question, waits);
    }
    world.fabric.thaw(ip(2));
    assert_eq!(a.rpc().call(b.name(), ECHO, 3).await, Ok(3));
    settles(&a).await;
    settles(&b).await;
}

/// A thousand calls time out, then all late answers arrive: nobody sees one, and nothing is left.
#[tokio::test(start_paused = true)]
async fn late_answers_reach_nobody() {
    let world = World::new(102);
    let (a, b) = world.pair().await;
    serve_all(&b);
    assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Ok(1));
    // The requests arrive, the answers do not, for a while.
    world.fabric.cut_one_way(ip(2), ip(1));
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..1000 {
        let (rpc, to) = (a.rpc(), b.name().clone());
        calls.spawn(async move { rpc.call(&to, ECHO, n).timeout(secs(2)).await });
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap(), Err(CallError::Timeout(secs(2))));
    }
    world.fabric.heal_all();
    for n in 5000..5100 {
        assert_eq!(a.rpc().call(b.name(), ECHO, n).await, Ok(n), "no late answer is taken for another");
    }
    settles(&a).await;
    settles(&b).await;
    let stats = a.rpc().stats();
    println!("{stats:?}");
    assert_eq!((stats.timed_out, stats.late), (1000, 1000));
}

/// The callee dies in the middle of a call: it is lost when the link is, not at its own far deadline; stopped in good order,
/// the callee lets it come to its end, and refuses what comes then.
#[tokio::test(start_paused = true)]
async fn calls_to_a_callee_that_dies_or_stops() {
    const SLOW: Method<u64, u64> = Method::new("slow");
    let world = World::new(103);
    let (a, b) = world.pair().await;
    let mut dropped = serve_all(&b);
    let begun = Instant::now();
    let (rpc, to) = (a.rpc(), b.name().clone());
    let call = tokio::spawn(async move { rpc.call(&to, NEVER, 1).timeout(secs(60)).await });
    let (rpc, to) = (a.rpc(), b.name().clone());
    let stream = tokio::spawn(async move {
        let mut stream = rpc.call_stream(&to, COUNT, 1_000_000).timeout(secs(60)).await.unwrap();
        while let Some(item) = stream.next().await {
            if let Err(error) = item {
                return error;
            }
            tokio::time::sleep(millis(1)).await;
        }
        panic!("it has no end")
    });
    tokio::time::sleep(secs(1)).await;
    world.fabric.cut(ip(1), ip(2));
    assert_eq!(call.await.unwrap(), Err(CallError::Disconnected(b.id())));
    assert_eq!(stream.await.unwrap(), CallError::Disconnected(b.id()));
    println!("a call into a dead node was lost {:?} after it began", begun.elapsed());
    assert!(begun.elapsed() <= secs(15), "{:?}", begun.elapsed());
    tokio::time::timeout(secs(14), dropped.recv()).await.expect("the handler ends as well").unwrap();
    world.fabric.heal_all();
    settles(&a).await;
    settles(&b).await;

    let c = world.node("c", 3).await;
    let (begins, mut began) = mpsc::unbounded_channel();
    c.rpc()
        .serve(SLOW, move |_, n| {
            let _ = begins.send(());
            async move {
                tokio::time::sleep(secs(2)).await;
                n
            }
        })
        .unwrap();
    let (rpc, to) = (a.rpc(), c.name().clone());
    let running = tokio::spawn(async move { rpc.call(&to, SLOW, 7).timeout(secs(60)).await });
    began.recv().await.unwrap();
    let stopping = tokio::spawn({
        let c = c.clone();
        async move { c.shutdown().await }
    });
    tokio::time::sleep(millis(100)).await;
    let refused = a.rpc().call(c.name(), SLOW, 8).timeout(secs(60)).await;
    assert_eq!(refused, Err(CallError::ShuttingDown));
    assert_eq!(running.await.unwrap(), Ok(7), "it drains");
    stopping.await.unwrap();
    settles(&a).await;
}

/// A node that does not exist, or cannot be reached, is a typed error within the set-up time.
#[tokio::test(start_paused = true)]
async fn unknown_and_unreachable_nodes_are_not_connected() {
    let world = World::new(104);
    let (a, b) = world.pair().await;
    serve_all(&b);
    let nobody: NodeName = "nobody@10.0.0.99".parse().unwrap();
    let no_host: NodeName = "nobody@no.such.host".parse().unwrap();
    world.fabric.cut(ip(1), ip(2));
    for name in [&nobody, &no_host, b.name()] {
        let begun = Instant::now();
        let error = a.rpc().call(name, ECHO, 1).timeout(secs(60)).await.unwrap_err();
        assert!(matches!(error, CallError::NotConnected(..)), "{error:?}");
        assert_eq!(error.effect(), Effect::NotDone);
        assert!(begun.elapsed() <= secs(5) + millis(10), "{:?}", begun.elapsed());
        let opened = a.rpc().call_stream(name, COUNT, 1).timeout(secs(60)).await;
        assert!(matches!(opened, Err(CallError::NotConnected(..))), "{opened:?}");
    }
    // A life that is over, at a name that answers.
    world.fabric.heal_all();
    assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Ok(1));
    let old = b.id();
    b.shutdown().await;
    drop(b);
    tokio::time::sleep(secs(1)).await;
    let b = world.node("b", 2).await;
    serve_all(&b);
    assert_eq!(a.rpc().call(b.name(), ECHO, 2).await, Ok(2));
    let error = a.rpc().call(&old, ECHO, 3).await;
    let superseded = Some(ConnectError::Superseded(old.clone()));
    assert_eq!(error, Err(CallError::NotConnected(b.name().clone(), superseded)));
    settles(&a).await;
    settles(&b).await;
}

/// A handler is dropped when its caller times out, drops the call, or dies; so is one of a stream.
#[tokio::test(start_paused = true)]
async fn handlers_end_with_their_callers() {
    const ENDLESS: Method<u64, u64> = Method::new("endless");
    let world = World::new(105);
    let (a, b) = world.pair().await;
    let mut dropped = serve_all(&b);
    let (drops, mut streams_dropped) = mpsc::unbounded_channel();
    b.rpc()
        .serve_stream(ENDLESS, move |_, _, mut sink| {
            let dropped = Dropped(drops.clone());
            async move {
                let _dropped = dropped;
                let _ = sink.send(1).await;
                pending().await
            }
        })
        .unwrap();
    let soon = secs(1);
    let _ = a.rpc().call(b.name(), NEVER, 1).timeout(soon).await;
    tokio::time::timeout(millis(200), dropped.recv()).await.expect("at the deadline").unwrap();
    let call = tokio::time::timeout(soon, a.rpc().call(b.name(), NEVER, 1).timeout(secs(60)).into_future()).await;
    assert!(call.is_err());
    tokio::time::timeout(millis(200), dropped.recv()).await.expect("when the call is dropped").unwrap();
    let mut stream = a.rpc().call_stream(b.name(), ENDLESS, 1).await.unwrap();
    assert_eq!(stream.next().await, Some(Ok(1)));
    drop(stream);
    tokio::time::timeout(millis(200), streams_dropped.recv()).await.expect("when the stream is dropped").unwrap();

    let (rpc, to) = (a.rpc(), b.name().clone());
    let _call = tokio::spawn(async move { rpc.call(&to, NEVER, 1).timeout(secs(600)).await });
    let mut stream = a.rpc().call_stream(b.name(), ENDLESS, 1).timeout(secs(600)).await.unwrap();
    assert_eq!(stream.next().await, Some(Ok(1)));
    world.fabric.cut(ip(1), ip(2));
    tokio::time::timeout(secs(14), dropped.recv()).await.expect("when the node is lost").unwrap();
    tokio::time::timeout(secs(14), streams_dropped.recv()).await.expect("when the node is lost").unwrap();
    settles(&b).await;
}

/// A callee that lacks the method says so at once, again and again, and the link stays.
#[tokio::test(start_paused = true)]
async fn a_missing_method_is_told_at_once() {
    let world = World::new(106);
    let (a, b) = world.pair().await;
    serve_all(&b);
    let mut events = a.cluster().node_events();
    for n in 0..5000 {
        let begun = Instant::now();
        let method = Method::<u64, u64>::parse(format!("missing.{n}")).unwrap();
        let error = a.rpc().call(b.name(), method, n).timeout(secs(60)).await;
        assert_eq!(error, Err(CallError::NoSuchMethod(format!("missing.{n}"))));
        assert!(begun.elapsed() < secs(1));
    }
    // More names than are numbered, and those that were go on.
    assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Ok(1));
    let named = Method::<u64, u64>::parse("late.comer").unwrap();
    b.rpc().serve(named.clone(), |_, n| async move { n + 1 }).unwrap();
    assert_eq!(a.rpc().call(b.name(), named, 1).await, Ok(2));
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert!(quiet(&mut events, secs(5)).await);
}

/// Calls, streams and questions through 5 % loss, jitter, reordering and duplicates, while the caller's address changes:
/// each is answered once, items are in order.
#[tokio::test(start_paused = true)]
async fn loss_and_rebinding_are_not_seen() {
    let world = World::new(107);
    let (a, b) = world.pair().await;
    serve_all(&b);
    let runs = Arc::new(AtomicU64::new(0));
    let counter = runs.clone();
    let large = Method::<Vec<u8>, Vec<u8>>::new("large");
    b.rpc()
        .serve(large.clone(), move |_, bytes| {
            counter.fetch_add(1, Ordering::Relaxed);
            async move { bytes }
        })
        .unwrap();
    world.fabric.conditions(lossy());
    let mut inbox: Mailbox<Question> = b.mailbox();
    let there = inbox.address().bind(&a);
    let replying = tokio::spawn(async move {
        while let Some(Question { n, reply_to }) = inbox.recv().await {
            reply_to.reply(n).await.unwrap();
        }
    });
    let patience = secs(60);
    let mut work = tokio::task::JoinSet::new();
    for n in 0..300 {
        let (rpc, to, there, large) = (a.rpc(), b.name().clone(), there.clone(), large.clone());
        work.spawn(async move {
            tokio::time::sleep(millis(30 * n)).await;
            assert_eq!(rpc.call(&to, ECHO, n).timeout(patience).await, Ok(n));
            assert_eq!(there.ask(|reply_to| Question { n, reply_to }).timeout(patience).await, Ok(n));
            if n % 30 == 0 {
                let answer = rpc.call(&to, large, vec![n as u8; 200_000]).timeout(patience).await.unwrap();
                assert!(answer.len() == 200_000 && answer[0] == n as u8);
                let mut stream = rpc.call_stream(&to, COUNT, 5000).timeout(patience).await.unwrap();
                for n in 0..5000 {
                    assert_eq!(stream.next().await, Some(Ok(n)));
                }
                assert_eq!(stream.next().await, None);
            }
        });
    }
    let fabric = world.fabric.clone();
    let rebinding = tokio::spawn(async move {
        loop {
            tokio::time::sleep(secs(2)).await;
            fabric.rebind(ip(1));
        }
    });
    while let Some(done) = work.join_next().await {
        done.unwrap();
    }
    rebinding.abort();
    replying.abort();
    assert_eq!(runs.load(Ordering::Relaxed), 10, "each ran once");
    assert_eq!(b.rpc().stats().served, 300 + 10 + 10);
    settles(&a).await;
    settles(&b).await;
}

/// Links that idle out or are dialled from both sides at once do not disturb a call, a stream or a question that is open.
#[tokio::test(start_paused = true)]
async fn links_change_under_open_calls() {
    const LATER: Method<u64, u64> = Method::new("later");
    let world = World::new(108);
    for round in 0..20 {
        let (a, b) = world.pair().await;
        world.fabric.conditions(Conditions::default().latency(millis(20)));
        for node in [&a, &b] {
            serve_all(node);
            node.rpc()
                .serve(LATER, |_, n| async move {
                    tokio::time::sleep(secs(130)).await;
                    n
                })
                .unwrap();
        }
        let later = async |from: &Node, to: &Node| {
            tokio::time::sleep(millis(round % 7)).await;
            let patience = secs(200);
            let call = from.rpc().call(to.name(), LATER, round).timeout(patience).await;
            assert_eq!(call, Ok(round), "round {round}");
        };
        let streams = async |from: &Node, to: &Node| {
            let mut stream = from.rpc().call_stream(to.name(), COUNT, 3000).timeout(secs(200)).await.unwrap();
            for n in 0..3000 {
                assert_eq!(stream.next().await, Some(Ok(n)), "round {round}");
                // A reader that pauses longer than a link would idle.
                if n % 1500 == 700 {
                    tokio::time::sleep(secs(65)).await;
                }
            }
            assert_eq!(stream.next().await, None);
        };
        tokio::join!(later(&a, &b), later(&b, &a), streams(&a, &b), streams(&b, &a));
        // Idle for long enough, then a call in the moment of the close.
        tokio::time::sleep(secs(60) + millis(7 * round)).await;
        assert_eq!(a.rpc().call(b.name(), ECHO, round).await, Ok(round));
        settles(&a).await;
        settles(&b).await;
        a.shutdown().await;
        b.shutdown().await;
        world.fabric.conditions(Conditions::default());
    }
}

/// A reply that must not overtake what was promised before it goes the way of the messages: state and reply, large and
/// small, arrive in the order of sending under loss.
#[tokio::test(start_paused = true)]
async fn a_reply_by_message_never_overtakes_state() {
    #[derive(Serialize, Deserialize)]
    enum News {
        State(u64, Vec<u8>),
        Reply(u64),
    }
    impl Message for News {
        const TAG: &'static str = "test.news";
        const VERSION: u32 = 1;
    }
    const SUBSCRIBE: Method<(u64, distribute::Address<News>), ()> = Method::new("subscribe");
    let world = World::new(109);
    let (a, b) = world.pair().await;
    world.fabric.conditions(lossy());
    b.rpc()
        .serve(SUBSCRIBE, |_, (n, to)| async move {
            to.send(News::State(n, vec![0; if n % 2 == 0 { 100_000 } else { 10 }])).await.unwrap();
            to.send(News::Reply(n)).await.unwrap();
        })
        .unwrap();
    let mut inbox = a.mailbox();
    for n in 0..100 {
        let rpc = a.rpc();
        let call = rpc.call(b.name(), SUBSCRIBE, (n, inbox.address())).timeout(secs(60)).into_future();
        // Read meanwhile: a large state takes all the credit that the reply needs.
        let (called, ()) = tokio::join!(call, async {
            assert!(matches!(inbox.recv_timeout(secs(60)).await, Ok(News::State(seen, _)) if seen == n));
            assert!(matches!(inbox.recv_timeout(secs(60)).await, Ok(News::Reply(seen)) if seen == n));
        });
        called.unwrap();
    }
}

/// A large request does not delay small calls, nor do small ones wait for a large answer.
#[tokio::test(start_paused = true)]
async fn large_calls_do_not_delay_small_ones() {
    const SINK: Method<Vec<u8>, Vec<u8>> = Method::new("sink");
    let world = World::new(110);
    let (a, b) = world.pair().await;
    serve_all(&b);
    b.rpc().serve(SINK, |_, bytes| async move { bytes }).unwrap();
    assert_eq!(a.rpc().call(b.name(), ECHO, 0).await, Ok(0));
    // 10 MB/s: each of the large ones takes more than a second for each way.
    world.fabric.conditions(Conditions::default().latency(millis(5)).bandwidth(10_000_000));
    let mut large = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (rpc, to) = (a.rpc(), b.name().clone());
        large.spawn(
            async move { rpc.call(&to, SINK, vec![7; 12 << 20]).timeout(secs(120)).await.map(|bytes| bytes.len()) },
        );
    }
    let mut worst = millis(0);
    let mut calls = 0;
    while !large.is_empty() {
        let begun = Instant::now();
        assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Ok(1));
        worst = worst.max(begun.elapsed());
        calls += 1;
        tokio::time::sleep(millis(50)).await;
        while let Some(done) = large.try_join_next() {
            assert_eq!(done.unwrap(), Ok(12 << 20));
        }
    }
    println!("{calls} small calls beside large ones; the slowest took {worst:?}");
    assert!(calls > 20 && worst < millis(500), "{calls}: {worst:?}");
}

#[derive(Serialize, Deserialize)]
struct Question {
    n: u64,
    reply_to: ReplyTo<u64>,
}

impl Message for Question {
    const TAG: &'static str = "test.question";
    const VERSION: u32 = 1;
}
