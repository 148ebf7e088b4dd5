//! Calls of every kind, over real sockets.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use distribute::{
    AskError, CallError, Caller, CastError, Config, Cookie, Effect, Mailbox, Message, Method, Node, NodeName, ReplyTo,
    SinkError, Trace,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

const DOUBLE: Method<u64, u64> = Method::new("double");
const NEVER: Method<u64, u64> = Method::new("never");
const PANIC: Method<u64, u64> = Method::new("panic");
const COUNT: Method<u64, u64> = Method::new("count");

async fn node(name: &str, cookie: &Cookie) -> Node {
    node_with(name, cookie, Config::default()).await
}

async fn node_with(name: &str, cookie: &Cookie, config: Config) -> Node {
    let node = Node::builder(format!("{name}@127.0.0.1:0")).cookie(cookie.clone()).config(config);
    node.start().await.unwrap()
}

async fn pair() -> (Node, Node) {
    let cookie = Cookie::generate();
    (node("a", &cookie).await, node("b", &cookie).await)
}

fn serve_all(node: &Node) {
    node.rpc().serve(DOUBLE, |_, n| async move { n.wrapping_mul(2) }).unwrap();
    node.rpc().serve(NEVER, |_, _| pending()).unwrap();
    node.rpc().serve(PANIC, |_, _| async { panic!("as told") }).unwrap();
    node.rpc()
        .serve_stream(COUNT, |_, to, mut sink| async move {
            for n in 0..to {
                sink.send(n).await.unwrap();
            }
        })
        .unwrap();
}

/// Waits until nothing of calls is left on a node.
async fn settles(node: &Node) {
    let settling = async {
        loop {
            let stats = node.rpc().stats();
            if (stats.waiting, stats.asking, stats.handlers, stats.handler_bytes) == (0, 0, 0, 0) {
                return;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(10), settling).await;
    assert!(settled.is_ok(), "{:?}", node.rpc().stats());
}

/// Here and there the same happens: an answer, an application's own error, a panic, a time-out, a method that is missing.
///
#[tokio::test]
async fn here_and_there_calls_end_alike() {
    const HALF: Method<u64, Result<u64, String>> = Method::new("half");
    const WRONG: Method<String, u64> = Method::new("double");
    const COUNT_ONE: Method<u64, u64> = Method::new("count");
    const DOUBLES: Method<u64, u64> = Method::new("double");
    let (a, b) = pair().await;
    let soon = Duration::from_millis(30);
    for callee in [&a, &b] {
        serve_all(callee);
        let half = |_, n: u64| async move { if n.is_multiple_of(2) { Ok(n / 2) } else { Err(format!("{n} is odd")) } };
        callee.rpc().serve(HALF, half).unwrap();
        let rpc = a.rpc();
        for patience in [Duration::from_secs(5), Duration::MAX] {
            assert_eq!(rpc.call(callee.name(), DOUBLE, 4).timeout(patience).await, Ok(8));
            assert_eq!(rpc.call(&callee.id(), DOUBLE, 4).timeout(patience).await, Ok(8));
        }
        assert_eq!(rpc.call(callee.name(), HALF, 4).await, Ok(Ok(2)));
        assert_eq!(rpc.call(callee.name(), HALF, 5).await, Ok(Err("5 is odd".to_owned())));
        let errors = [
            (rpc.call(callee.name(), PANIC, 1).await, CallError::Panicked, Effect::Unknown),
            (rpc.call(callee.name(), NEVER, 1).timeout(soon).await, CallError::Timeout(soon), Effect::Unknown),
            (
                rpc.call(callee.name(), Method::new("missing"), 1).await,
                CallError::NoSuchMethod("missing".to_owned()),
                Effect::NotDone,
            ),
            (
                rpc.call(callee.name(), WRONG, "text".to_owned()).await,
                CallError::Mismatch("double".to_owned()),
                Effect::NotDone,
            ),
            (rpc.call(callee.name(), COUNT_ONE, 1).await, CallError::Mismatch("count".to_owned()), Effect::NotDone),
        ];
        for (outcome, error, effect) in errors {
            assert_eq!((outcome.as_ref(), error.effect()), (Err(&error), effect));
        }
        let mut stream = rpc.call_stream(callee.name(), DOUBLES, 1).await.unwrap();
        assert_eq!(stream.next().await, Some(Err(CallError::Mismatch("double".to_owned()))));
        assert_eq!(stream.next().await, None);
        settles(callee).await;
    }
    settles(&a).await;
}

/// A handler whose helper dies, or that is dropped with its runtime, answers so at once, not at the deadline.
#[tokio::test]
async fn handlers_that_die_say_so_at_once() {
    const HELPER: Method<bool, u64> = Method::new("helper");
    let (a, b) = pair().await;
    b.rpc()
        .serve(HELPER, |_, aborts| async move {
            let helper = tokio::spawn(async move { if aborts { pending().await } else { panic!("the helper") } });
            if aborts {
                helper.abort();
            }
            helper.await.expect("the helper's end")
        })
        .unwrap();
    for aborts in [true, false] {
        let begun = std::time::Instant::now();
        let patience = Duration::from_secs(60);
        assert_eq!(a.rpc().call(b.name(), HELPER, aborts).timeout(patience).await, Err(CallError::Panicked));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    settles(&a).await;
    settles(&b).await;
}

/// A handler sees its caller give up, and so does a task that it spawned.
#[tokio::test]
async fn helpers_see_that_a_call_is_over() {
    const HELPED: Method<bool, ()> = Method::new("helped");
    let (a, b) = pair().await;
    let (ends, mut ended) = mpsc::unbounded_channel();
    b.rpc()
        .serve(HELPED, move |call, returns| {
            let ends = ends.clone();
            async move {
                assert!(!call.is_cancelled());
                let helper = call.clone();
                tokio::spawn(async move {
                    helper.cancelled().await;
                    let _ = ends.send(helper.is_cancelled());
                });
                if !returns {
                    pending::<()>().await;
                }
            }
        })
        .unwrap();
    a.rpc().call(b.name(), HELPED, true).await.unwrap();
    assert_eq!(ended.recv().await, Some(true), "the handler returned");
    let soon = Duration::from_millis(20);
    let error = a.rpc().call(b.name(), HELPED, false).timeout(soon).await.unwrap_err();
    assert_eq!(error, CallError::Timeout(soon));
    assert_eq!(ended.recv().await, Some(true), "the caller gave up");
    settles(&b).await;
}

/// What a handler knows of its call; and what it calls inherits the trace and the time that is left.
#[tokio::test]
async fn deadlines_and_traces_go_from_call_to_call() {
    const OUTER: Method<(), (u64, u64)> = Method::new("outer");
    const INNER: Method<(), (u64, String)> = Method::new("inner");
    let cookie = Cookie::generate();
    let (a, b, c) = (node("a", &cookie).await, node("b", &cookie).await, node("c", &cookie).await);
    let trace: Trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    c.rpc()
        .serve(INNER, move |call, ()| async move {
            let left = call.deadline().saturating_duration_since(tokio::time::Instant::now());
            (left.as_millis() as u64, call.trace().map_or_else(String::new, |trace| trace.to_string()))
        })
        .unwrap();
    let (rpc, to, caller) = (b.rpc(), c.name().clone(), a.id());
    b.rpc()
        .serve(OUTER, move |call, ()| {
            let (rpc, to) = (rpc.clone(), to.clone());
            assert_eq!((call.caller(), call.trace()), (&caller, Some(trace)));
            assert_eq!(call.identity(), Caller::Node(caller.name().clone()));
            async move {
                let hour = Duration::from_secs(3600);
                let (inherited, seen) = rpc.call(&to, INNER, ()).timeout(hour).await.unwrap();
                assert_eq!(seen, trace.to_string());
                let (apart, within) = (rpc.clone(), rpc.clone());
                let (there, to) = (to.clone(), to);
                let alone = tokio::spawn(async move { apart.call(&there, INNER, ()).timeout(hour).await });
                let (alone, seen) = alone.await.unwrap().unwrap();
                assert_eq!(seen, "", "a spawned task belongs to no call");
                assert!(alone > 3_000_000, "nor has it its deadline");
                let scoped = call.scope(async move { within.call(&to, INNER, ()).timeout(hour).await });
                let (scoped, seen) = tokio::spawn(scoped).await.unwrap().unwrap();
                assert_eq!(seen, trace.to_string());
                (inherited, scoped)
            }
        })
        .unwrap();
    let patience = Duration::from_secs(20);
    let (inherited, scoped) = a.rpc().call(b.name(), OUTER, ()).timeout(patience).trace(trace).await.unwrap();
    assert!((10_000..=20_000).contains(&inherited), "{inherited} ms of 20 s");
    assert!((10_000..=inherited).contains(&scoped), "{scoped} ms");

    a.rpc().serve(INNER, |call, ()| async move { (0, format!("{:?}", call.identity())) }).unwrap();
    assert_eq!(a.rpc().call(a.name(), INNER, ()).await, Ok((0, "Here".to_owned())));
}

/// Positional results for seven nodes, of which one is this, one is dead, one does not serve, one is named twice; it takes
/// as long as the slowest.
#[tokio::test]
async fn a_multicall_answers_by_position() {
    const WORK: Method<u64, u64> = Method::new("work");
    let cookie = Cookie::generate();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        nodes.push(node(name, &cookie).await);
    }
    let [a, b, c, d, e] = &nodes[..] else { unreachable!() };
    let gate = Arc::new(tokio::sync::Barrier::new(4));
    for node in [a, b] {
        let gate = gate.clone();
        node.rpc()
            .serve(WORK, move |_, n| {
                let gate = gate.clone();
                // Nobody passes before all four are here: they run at the same time.
                async move {
                    gate.wait().await;
                    n + 1
                }
            })
            .unwrap();
    }
    c.rpc().serve(WORK, |_, _| async { panic!("as told") }).unwrap();
    let dead = e.name().clone();
    e.shutdown().await;
    let names: Vec<&NodeName> = vec![a.name(), b.name(), &dead, c.name(), d.name(), b.name(), a.name()];
    let answers = a.rpc().multicall(names, WORK, 7).timeout(Duration::from_secs(10)).await;
    assert_eq!(answers.len(), 7);
    for at in [0, 1, 5, 6] {
        assert_eq!(answers[at], Ok(8), "position {at}");
    }
    assert!(matches!(answers[2], Err(CallError::NotConnected(..))), "{:?}", answers[2]);
    assert_eq!(answers[3], Err(CallError::Panicked));
    assert_eq!(answers[4], Err(CallError::NoSuchMethod("work".to_owned())));
    assert_eq!(a.rpc().multicall(Vec::<&NodeName>::new(), WORK, 7).await, []);
    for node in [a, b, c, d] {
        settles(node).await;
    }
}

/// A cast runs once and says nothing: a missing method and a panic are counted at the callee, bad arguments are errors here.
///
#[tokio::test]
async fn casts_run_once_and_fail_in_silence() {
    const TELL: Method<u64, ()> = Method::new("tell");
    let (a, b) = pair().await;
    let (tells, mut told) = mpsc::unbounded_channel();
    b.rpc()
        .serve(TELL, move |_, n| {
            let _ = tells.send(n);
            async {}
        })
        .unwrap();
    serve_all(&b);
    let rpc = a.rpc();
    for n in 0..1000 {
        rpc.cast(b.name(), TELL, n).await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..1000 {
        seen.extend(told.recv().await);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..1000), "each once");
    rpc.cast(b.name(), PANIC, 1).await.unwrap();
    rpc.cast(b.name(), Method::<u64, u64>::new("missing"), 1).await.unwrap();
    rpc.cast(b.name(), COUNT, 3).await.unwrap();
    while b.rpc().stats().casts_failed < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    settles(&b).await;
    assert_eq!((b.rpc().stats().casts_failed, a.rpc().stats().casts), (2, 1003));
    assert!(told.try_recv().is_err());

    let nobody: NodeName = "nobody@127.0.0.1:1".parse().unwrap();
    let patience = Duration::from_millis(50);
    let error = rpc.cast(&nobody, TELL, 1).timeout(patience).await.unwrap_err();
    assert!(matches!(error, CastError::NotConnected(..) | CastError::Timeout(_)), "{error:?}");
    assert!(Method::<u64, u64>::parse("x".repeat(256)).is_err());
    let large = rpc.cast(b.name(), Method::<Vec<u8>, ()>::new("tell"), vec![0; 17 << 20]).await;
    assert!(matches!(large, Err(CastError::TooLarge { .. })), "{large:?}");
    // To oneself it is the same.
    b.rpc().cast(b.name(), TELL, 7).await.unwrap();
    assert_eq!(told.recv().await, Some(7));
    b.rpc().cast(b.name(), PANIC, 7).await.unwrap();
    settles(&b).await;
    assert_eq!(b.rpc().stats().casts_failed, 3);
}

/// A call is a future: not ready, again and again, then ready once; several are used out of order.
#[tokio::test]
async fn calls_are_futures_that_complete_once_and_out_of_order() {
    const WAIT: Method<u64, u64> = Method::new("wait");
    let (a, b) = pair().await;
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = release.clone();
    b.rpc()
        .serve(WAIT, move |_, n| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                n
            }
        })
        .unwrap();
    serve_all(&b);
    let rpc = a.rpc();
    let mut slow = pin!(rpc.call(b.name(), WAIT, 1).into_future());
    for n in 0..100 {
        let not_yet = poll_fn(|context| Poll::Ready(slow.as_mut().poll(context).is_pending())).await;
        assert!(not_yet);
        // Others overtake it meanwhile.
        assert_eq!(rpc.call(b.name(), DOUBLE, n).await, Ok(2 * n));
    }
    release.add_permits(1);
    assert_eq!(slow.await, Ok(1));
    let mut calls: Vec<_> = (0..10).map(|n| Box::pin(rpc.call(b.name(), DOUBLE, n).into_future())).collect();
    while let Some(call) = calls.pop() {
        let n = calls.len() as u64;
        assert_eq!(call.await, Ok(2 * n), "the last is asked first");
    }
    settles(&a).await;
}

/// Streams of answers: in order, to their end, with large items among small ones, and from many callers at once.
#[tokio::test]
async fn streams_bring_all_items_in_order() {
    const SIZES: Method<u64, Vec<u8>> = Method::new("sizes");
    let (a, b) = pair().await;
    for callee in [&a, &b] {
        serve_all(callee);
        callee
            .rpc()
            .serve_stream(SIZES, |_, items, mut sink| async move {
                for n in 0..items {
                    let size = if n % 3 == 0 { 300_000 } else { n as usize };
                    sink.send(vec![n as u8; size]).await.unwrap();
                }
            })
            .unwrap();
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (rpc, to) = (a.rpc(), callee.name().clone());
            streams.spawn(async move {
                let mut numbers = rpc.call_stream(&to, COUNT, 5000).await.unwrap();
                for n in 0..5000 {
                    assert_eq!(numbers.next().await, Some(Ok(n)));
                }
                assert_eq!(numbers.next().await, None);
                assert_eq!(numbers.next().await, None);
                let mut sizes = rpc.call_stream(&to, SIZES, 12).await.unwrap();
                for n in 0..12u8 {
                    let item = sizes.next().await.unwrap().unwrap();
                    let size = if n % 3 == 0 { 300_000 } else { usize::from(n) };
                    assert!(item.len() == size && item.iter().all(|byte| *byte == n));
                }
                assert_eq!(sizes.next().await, None);
            });
        }
        while let Some(done) = streams.join_next().await {
            done.unwrap();
        }
        settles(callee).await;
    }
    settles(&a).await;
}

/// A reader that does not read stops the handler within a window; dropping the stream drops the handler.
#[tokio::test]
async fn streams_wait_for_their_reader() {
    const FLOOD: Method<(), Vec<u8>> = Method::new("flood");
    struct Dropped(mpsc::UnboundedSender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (a, b) = pair().await;
    let sent = Arc::new(AtomicU64::new(0));
    let (drops, mut dropped) = mpsc::unbounded_channel();
    let counter = sent.clone();
    let flood = move |_, (), mut sink: distribute::Sink<Vec<u8>>| {
        let (counter, dropped) = (counter.clone(), Dropped(drops.clone()));
        async move {
            let _dropped = dropped;
            loop {
                sink.send(vec![1; 1000]).await.unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    b.rpc().serve_stream(FLOOD, flood).unwrap();
    serve_all(&b);
    for callee in [&b] {
        let mut stream = a.rpc().call_stream(callee.name(), FLOOD, ()).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        // Until it stands still: other calls go on all the while.
        let mut before = u64::MAX;
        while before != sent.load(Ordering::Relaxed) {
            before = sent.load(Ordering::Relaxed);
            for n in 0..50 {
                assert_eq!(a.rpc().call(callee.name(), DOUBLE, n).await, Ok(2 * n));
            }
        }
        let window = 256 * 1024 / 1000;
        assert!((200..window + 10).contains(&before), "{before} items of 1000 bytes unread");
        for _ in 0..1000 {
            assert!(stream.next().await.unwrap().is_ok());
        }
        drop(stream);
        dropped.recv().await.unwrap();
    }
    settles(&a).await;
    settles(&b).await;
    assert_eq!(a.rpc().stats().given_up, 1);
}

/// A stream whose handler panics, is silent, or returns while its sink lives on: what was sent is read, then its end.
#[tokio::test]
async fn streams_end_in_a_typed_way() {
    const ENDS: Method<u64, u64> = Method::new("ends");
    let (a, b) = pair().await;
    let (lost, mut outlived) = mpsc::unbounded_channel();
    b.rpc()
        .serve_stream(ENDS, move |_, how, mut sink| {
            let lost = lost.clone();
            async move {
                sink.send(1).await.unwrap();
                sink.send(2).await.unwrap();
                match how {
                    0 => panic!("as told"),
                    1 => pending().await,
                    _ => {
                        let over = sink;
                        tokio::spawn(async move {
                            let mut over = over;
                            while over.send(3).await.is_ok() {
                                tokio::task::yield_now().await;
                            }
                            let _ = lost.send(over.send(4).await);
                        });
                    }
                }
            }
        })
        .unwrap();
    let soon = Duration::from_millis(50);
    let ends = [Some(Err(CallError::Panicked)), Some(Err(CallError::Timeout(soon))), None];
    for (how, end) in (0..).zip(ends) {
        let mut stream = a.rpc().call_stream(b.name(), ENDS, how).timeout(soon).await.unwrap();
        assert_eq!(stream.next().await, Some(Ok(1)));
        assert_eq!(stream.next().await, Some(Ok(2)));
        let mut last = stream.next().await;
        while last == Some(Ok(3)) {
            last = stream.next().await;
        }
        assert_eq!(last, end);
        assert_eq!(stream.next().await, None);
    }
    assert_eq!(outlived.recv().await, Some(Err(SinkError::Ended)));
    let mut stream = a.rpc().call_stream(b.name(), ENDS, 1).deadline(soon).await.unwrap();
    while let Some(Ok(_)) = stream.next().await {}
    drop(stream);
    settles(&a).await;
    settles(&b).await;
    assert_eq!(a.rpc().stats().waiting, 0);
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Question {
    n: u64,
    reply_to: ReplyTo<u64>,
}

impl Message for Question {
    const TAG: &'static str = "test.question";
    const VERSION: u32 = 1;
}

/// A question is replied to by the mailbox's node, by a third node that it travelled to, and at home; only the first reply
/// counts.
#[tokio::test]
async fn questions_are_replied_to_from_anywhere() {
    let cookie = Cookie::generate();
    let (a, b, c) = (node("a", &cookie).await, node("b", &cookie).await, node("c", &cookie).await);
    let mut at_b: Mailbox<Question> = b.mailbox();
    let mut at_c: Mailbox<Question> = c.mailbox();
    let there = at_b.address().bind(&a);
    let further = at_c.address().bind(&b);
    let working = tokio::spawn(async move {
        while let Some(question) = at_b.recv().await {
            if question.n % 2 == 0 {
                question.reply_to.reply(question.n).await.unwrap();
            } else {
                further.send(question).await.unwrap();
            }
        }
    });
    let helping = tokio::spawn(async move {
        while let Some(Question { n, reply_to }) = at_c.recv().await {
            let again = reply_to.clone();
            reply_to.reply(n).await.unwrap();
            again.try_reply(n + 1).unwrap();
        }
    });
    for n in 0..50 {
        assert_eq!(there.ask(|reply_to| Question { n, reply_to }).await, Ok(n));
    }
    while a.rpc().stats().late < 25 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(a.rpc().stats().late, 25, "each second reply is dropped, and counted");

    let mut own: Mailbox<Question> = a.mailbox();
    let here = own.address();
    let asking = here.ask(|reply_to| Question { n: 5, reply_to });
    let (reply, ()) = tokio::join!(asking.into_future(), async {
        let Question { n, reply_to } = own.recv().await.unwrap();
        reply_to.reply(n + 1).await.unwrap();
    });
    assert_eq!(reply, Ok(6));
    settles(&a).await;
    working.abort();
    helping.abort();
}

/// A question to a mailbox that is closed, closes, or whose node goes away fails at once; a late reply reaches nothing,
/// least of all a mailbox.
#[tokio::test]
async fn questions_that_cannot_be_replied_to_fail_at_once() {
    let (a, b) = pair().await;
    let patience = Duration::from_secs(60);
    let begun = std::time::Instant::now();

    let closed = b.mailbox::<Question>().address();
    for address in [closed.bind(&a), closed] {
        let asked = address.ask(|reply_to: ReplyTo<u64>| Question { n: 1, reply_to }).timeout(patience).await;
        assert!(matches!(asked, Err(AskError::MailboxClosed(_) | AskError::NotSent(_))), "{asked:?}");
    }
    for node in [&b, &a] {
        let mut inbox: Mailbox<Question> = node.mailbox();
        let there = inbox.address().bind(&a);
        let asking = there.ask(|reply_to| Question { n: 1, reply_to }).timeout(patience).into_future();
        let (asked, ()) = tokio::join!(asking, async {
            assert!(inbox.recv().await.is_some());
            drop(inbox);
        });
        let error = asked.unwrap_err();
        assert_eq!((&error, error.effect()), (&AskError::MailboxClosed(there.pid().clone()), Effect::Unknown));
    }
    // A reply that comes too late is dropped at the node: the mailbox that asked next never sees it.
    let mut inbox: Mailbox<Question> = b.mailbox();
    let there = inbox.address().bind(&a);
    let soon = Duration::from_millis(30);
    let mut late = Vec::new();
    for n in 0..10 {
        let asked = there.ask(|reply_to| Question { n, reply_to }).timeout(soon).await;
        assert_eq!(asked, Err(AskError::Timeout(soon)));
        late.push(inbox.recv().await.unwrap());
    }
    let mut other: Mailbox<u64> = a.mailbox();
    for Question { n, reply_to } in late {
        reply_to.reply(n).await.unwrap();
    }
    while a.rpc().stats().late < 10 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(other.try_recv().is_err());

    let asking = there.ask(|reply_to| Question { n: 1, reply_to }).timeout(patience).into_future();
    let (asked, ()) = tokio::join!(asking, async {
        assert!(inbox.recv().await.is_some());
        a.cluster().disconnect(b.name()).await;
    });
    assert_eq!(asked, Err(AskError::Disconnected(b.id())));
    assert!(begun.elapsed() < patience / 2);
    settles(&a).await;
}

/// Large requests, answers and items travel beside small ones; one that is dropped half-way is taken back.
#[tokio::test]
async fn large_calls_come_through_and_can_be_taken_back() {
    const MIRROR: Method<Vec<u8>, Vec<u8>> = Method::new("mirror");
    let (a, b) = pair().await;
    let runs = Arc::new(AtomicU64::new(0));
    let counter = runs.clone();
    b.rpc()
        .serve(MIRROR, move |_, bytes| {
            counter.fetch_add(1, Ordering::Relaxed);
            async move { bytes }
        })
        .unwrap();
    serve_all(&b);
    for size in [65_500, 65_536, 65_600, 3 << 20] {
        let answer = a.rpc().call(b.name(), MIRROR, vec![size as u8; size]).await.unwrap();
        assert!(answer.len() == size && answer.iter().all(|byte| *byte == size as u8), "{size}");
    }
    let large = a.rpc().call(b.name(), MIRROR, vec![0; 16 << 20]).await;
    assert!(matches!(large, Err(CallError::TooLarge { .. })), "{large:?}");
    for _ in 0..10 {
        // Polled until its first bytes are away, then dropped.
        let rpc = a.rpc();
        let mut call = Box::pin(rpc.call(b.name(), MIRROR, vec![1; 8 << 20]).into_future());
        assert!(poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_pending())).await);
        assert_eq!(a.rpc().call(b.name(), DOUBLE, 4).await, Ok(8));
        drop(call);
        assert_eq!(a.rpc().call(b.name(), DOUBLE, 5).await, Ok(10));
    }
    settles(&a).await;
    settles(&b).await;
    assert!(runs.load(Ordering::Relaxed) <= 14, "{runs:?}");
    assert_eq!(a.cluster().peers(), [b.id()], "and the session goes on");
}

/// One peer cannot take all places, nor all room for requests; a burst beyond is refused at once and nothing is queued.
#[tokio::test]
async fn one_peer_cannot_take_all_places() {
    const HOLD: Method<Vec<u8>, ()> = Method::new("hold");
    let cookie = Cookie::generate();
    let mut config = Config::default();
    (config.handlers_max, config.handlers_per_peer) = (8, 4);
    (config.calls_budget, config.calls_budget_per_peer) = (1_500_000, 1_000_000);
    let b = node_with("b", &cookie, config).await;
    let (a, c) = (node("a", &cookie).await, node("c", &cookie).await);
    b.rpc().serve(HOLD, |_, _| pending()).unwrap();
    serve_all(&b);
    let hold = |from: &Node, size: usize| {
        let (rpc, to) = (from.rpc(), b.name().clone());
        tokio::spawn(async move { rpc.call(&to, HOLD, vec![0; size]).timeout(Duration::from_secs(60)).await })
    };
    let handlers = async |count| {
        while b.rpc().stats().handlers != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let held: Vec<_> = (0..4).map(|_| hold(&a, 10)).collect();
    handlers(4).await;
    assert_eq!(a.rpc().call(b.name(), DOUBLE, 1).await, Err(CallError::Overloaded));
    assert_eq!(c.rpc().call(b.name(), DOUBLE, 1).await, Ok(2), "another peer has its share");
    held.iter().for_each(tokio::task::JoinHandle::abort);
    handlers(0).await;

    // One request always may, whatever its size; then the share of a peer, then that of the node.
    let first = hold(&a, 1_200_000);
    handlers(1).await;
    assert_eq!(hold(&a, 1).await.unwrap(), Err(CallError::Overloaded));
    let second = hold(&c, 250_000);
    handlers(2).await;
    assert_eq!(hold(&c, 250_000).await.unwrap(), Err(CallError::Overloaded));
    assert!(b.rpc().stats().handler_bytes > 1_450_000);
    first.abort();
    second.abort();
    settles(&b).await;
    assert_eq!(b.rpc().stats().overloaded, 3);
}

/// Ten thousand slow calls do not delay a fast one; beyond the cap they are refused, not queued.
#[tokio::test]
async fn slow_calls_do_not_delay_fast_ones() {
    const CROWD: usize = 10_000;
    let cookie = Cookie::generate();
    let mut roomy = Config::default();
    (roomy.handlers_max, roomy.handlers_per_peer) = (20_000, 20_000);
    let (a, b, c) = (node("a", &cookie).await, node_with("b", &cookie, roomy).await, node("c", &cookie).await);
    serve_all(&b);
    serve_all(&c);
    let p99 = async |rounds: u64| {
        let mut took = Vec::new();
        for n in 0..rounds {
            let begun = std::time::Instant::now();
            assert_eq!(a.rpc().call(b.name(), DOUBLE, n).await, Ok(2 * n));
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        took[took.len() * 99 / 100]
    };
    p99(100).await;
    let idle = p99(1000).await;
    let crowd = |to: &Node| {
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..CROWD as u64 {
            let (rpc, to) = (a.rpc(), to.name().clone());
            calls.spawn(async move { rpc.call(&to, NEVER, n).timeout(Duration::from_secs(600)).await });
        }
        calls
    };
    let slow = crowd(&b);
    while b.rpc().stats().handlers < CROWD {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let busy = p99(1000).await;
    println!("a fast call, p99: {idle:?} idle, {busy:?} beside {CROWD} slow ones");
    assert!(busy <= 10 * idle.max(Duration::from_millis(2)), "{idle:?} became {busy:?}");
    drop(slow);
    settles(&b).await;

    let mut slow = crowd(&c);
    let cap = Config::default().handlers_per_peer;
    let mut refused = 0;
    while refused < CROWD - cap {
        assert_eq!(slow.join_next().await.unwrap().unwrap(), Err(CallError::Overloaded));
        refused += 1;
    }
    assert_eq!(c.rpc().stats().handlers, cap);
    drop(slow);
    settles(&c).await;
    settles(&a).await;
}

/// A handler that answers where its request arrives: small and large answers, a panic, a request of another type, casts, and
/// calls from the node itself.
#[tokio::test]
async fn inline_handlers_answer_at_once() {
    const DOUBLE: Method<u64, u64> = Method::new("inline.double");
    const FILL: Method<u64, Vec<u8>> = Method::new("inline.fill");
    let (a, b) = pair().await;
    let (told, mut tells) = mpsc::unbounded_channel();
    let double = move |call: distribute::CallContext, n: u64| {
        let _ = told.send((call.caller().clone(), n));
        if n == 13 {
            panic!("as told");
        }
        2 * n
    };
    b.rpc().serve_inline(DOUBLE, double).unwrap();
    b.rpc().serve_inline(FILL, |_, size| vec![7; size as usize]).unwrap();
    assert!(matches!(b.rpc().serve_inline(FILL, |_, _| Vec::new()), Err(distribute::ServeError::Taken(_))));

    assert_eq!(a.rpc().call(b.name(), DOUBLE, 4).await, Ok(8));
    assert_eq!(tells.recv().await, Some((a.id(), 4)));
    assert_eq!(b.rpc().call(b.name(), DOUBLE, 5).await, Ok(10));
    assert_eq!(a.rpc().call(b.name(), DOUBLE, 13).await, Err(CallError::Panicked));
    assert_eq!(a.rpc().call(b.name(), FILL, 1 << 20).await, Ok(vec![7; 1 << 20]));
    let too_large = a.rpc().call(b.name(), FILL, 17 << 20).await;
    assert_eq!(too_large, Err(CallError::AnswerTooLarge));
    let other = Method::<String, u64>::new("inline.double");
    assert!(matches!(a.rpc().call(b.name(), other, "4".into()).await, Err(CallError::Mismatch(_))));
    a.rpc().cast(b.name(), DOUBLE, 6).await.unwrap();
    while tells.recv().await != Some((a.id(), 6)) {}
    settles(&a).await;
    settles(&b).await;
}

/// Small bodies that are kept do not keep the packet that they came in.
#[tokio::test]
async fn small_bodies_hold_only_themselves() {
    const ECHO: Method<Bytes, Bytes> = Method::new("echo");
    const ECHOES: Method<Bytes, Bytes> = Method::new("echoes");
    let (a, b) = pair().await;
    let sizes = Arc::new(std::sync::Mutex::new(Vec::new()));
    let size = {
        let sizes = sizes.clone();
        move |what: &str, body: Bytes| {
            let size = body.try_into_mut().map_or(usize::MAX, |body| body.capacity());
            sizes.lock().unwrap().push((what.to_owned(), size));
        }
    };
    let at_callee = size.clone();
    b.rpc()
        .serve(ECHO, move |_, body| {
            at_callee("request", body);
            async { Bytes::from_static(b"0123456789") }
        })
        .unwrap();
    b.rpc()
        .serve_stream(ECHOES, |_, body, mut sink| async move {
            for _ in 0..3 {
                sink.send(body.clone()).await.unwrap();
            }
        })
        .unwrap();
    let body = Bytes::from_static(b"0123456789");
    for _ in 0..3 {
        size("answer", a.rpc().call(b.name(), ECHO, body.clone()).await.unwrap());
    }
    let mut stream = a.rpc().call_stream(b.name(), ECHOES, body).await.unwrap();
    while let Some(item) = stream.next().await {
        size("item", item.unwrap());
    }
    let sizes = std::mem::take(&mut *sizes.lock().unwrap());
    assert_eq!(sizes.len(), 9);
    assert!(sizes.iter().all(|(_, size)| *size < 64), "{sizes:?}");
    a.shutdown().await;
    b.shutdown().await;
}
