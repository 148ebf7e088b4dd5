//! Batches, sending and asking by name, trying again: over the in-memory network.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distribute::{
    AskError, BatchError, Bytes, CallError, Config, Effect, HasEffect, KeyError, LookupError, Method, Name,
    NamedAskError, NamedSendError, Node, RecvError, ReplyTo, Retry, SendBatch, SendError,
};
use tokio::time::Instant;

use crate::common::{World, ip, millis, secs};

const LEFT: Name<u64> = Name::new("left");
const RIGHT: Name<u64> = Name::new("right");
const ODD: Name<String> = Name::new("odd");

/// Two nodes that are ready, the second with room for one unread message of a peer in a mailbox, and little more.
async fn two(world: &World) -> (Node, Node) {
    let a = world.node("a", 1).await;
    let mut config = Config::default();
    (config.lane_window, config.lane_window_max) = (1024, 1024);
    let b = world.builder("b", 2).config(config).join(a.name()).start().await.unwrap();
    b.ready().await.unwrap();
    a.membership().wait_for_alive(2).await.unwrap();
    (a, b)
}

/// Each item has its result in its place; what fails keeps nothing else from being sent.
#[tokio::test(start_paused = true)]
async fn a_batch_has_a_result_for_each() {
    let world = World::new(1);
    let (a, b) = two(&world).await;
    let (mut left, mut right, odd) = (a.mailbox::<u64>(), b.mailbox::<u64>(), b.mailbox::<String>());
    a.registry().register(LEFT, &left).everywhere().await.unwrap();
    b.registry().register(RIGHT, &right).everywhere().await.unwrap();
    b.registry().register(ODD, &odd).everywhere().await.unwrap();

    let sent = a.registry().send_batch([
        ("left".to_owned(), 1_u64),
        ("nobody".to_owned(), 2),
        ("right".to_owned(), 3),
        ("odd".to_owned(), 4),
        ("right".to_owned(), 5),
        (String::new(), 6),
        ("left".to_owned(), 7),
    ]);
    let results = sent.await;
    let found = &results[3];
    assert!(matches!(found, Err(NamedSendError::Lookup(LookupError::TagMismatch { .. }))), "{found:?}");
    assert_eq!(results[1], Err(NamedSendError::Lookup(LookupError::NotFound)));
    assert_eq!(results[5], Err(NamedSendError::Name(KeyError::Empty)));
    for at in [0, 2, 4, 6] {
        assert_eq!(results[at], Ok(()), "{at}");
    }
    for (mailbox, expected) in [(&mut left, [1, 7]), (&mut right, [3, 5])] {
        for number in expected {
            assert_eq!(mailbox.recv_timeout(secs(1)).await, Ok(number), "in order");
        }
        assert_eq!(mailbox.try_recv(), Err(RecvError::Empty));
    }

    // By constants, and none at all.
    assert_eq!(a.registry().send_batch([(LEFT, 8), (RIGHT, 9)]).strict().await, Ok(()));
    assert_eq!((left.recv().await, right.recv().await), (Some(8), Some(9)));
    let nothing: [(Name<u64>, u64); 0] = [];
    assert_eq!(a.registry().send_batch(nothing.clone()).await, []);
    assert_eq!(a.registry().send_batch(nothing).strict().await, Ok(()));
}

/// The strict form is an error that names the positions; what could be sent was.
#[tokio::test(start_paused = true)]
async fn a_strict_batch_says_which_were_not_accepted() {
    let world = World::new(2);
    let (a, b) = two(&world).await;
    let (mut left, closed) = (b.mailbox::<u64>(), b.mailbox::<u64>());
    let (to_left, to_closed) = (left.address().bind(&a), closed.address().bind(&a));
    to_closed.send(0).await.unwrap();
    drop(closed);
    while to_closed.try_send(0).is_ok() {
        tokio::time::sleep(millis(1)).await;
    }
    let gone = || NamedSendError::Send(SendError::MailboxClosed(to_closed.pid().clone()));
    let batch = SendBatch::new([(&to_left, 1), (&to_closed, 2), (&to_left, 3), (&to_closed, 4)]);
    let error = batch.strict().await.unwrap_err();
    let BatchError { total, position, reason, rest, .. } = error.clone();
    assert_eq!((total, position, reason, rest), (4, 1, gone(), vec![(3, gone())]));
    assert_eq!(error.failed().map(|(at, _)| at).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(error.to_string(), "2 of 4 messages were not accepted, the first at 1");
    assert_eq!((error.effect(), HasEffect::effect(&error)), (Effect::Unknown, Effect::Unknown));
    assert_eq!((left.recv().await, left.recv().await), (Some(1), Some(3)));

    let error = SendBatch::new([(&to_closed, 5)]).strict().await.unwrap_err();
    assert_eq!(error.effect(), Effect::NotDone, "nothing was accepted");
}

/// A mailbox that nobody reads holds up its own messages only; at the deadline these are not sent, then or ever.
#[tokio::test(start_paused = true)]
async fn a_full_mailbox_holds_up_its_own() {
    let world = World::new(3);
    let (a, b) = two(&world).await;
    let (mut stuck, mut read) = (b.mailbox::<Bytes>(), b.mailbox::<Bytes>());
    let (to_stuck, to_read) = (stuck.address().bind(&a), read.address().bind(&a));
    let reading = tokio::spawn(async move {
        let mut lengths = vec![];
        while lengths.len() < 10 {
            lengths.push(read.recv().await.unwrap().len());
        }
        lengths
    });
    let body = |n: usize| Bytes::from(vec![0; 800 + n]);
    // Of the stuck one's, the first is accepted.
    let items = (0..10).flat_map(|n| [(&to_stuck, body(n)), (&to_read, body(n))]);
    let begun = Instant::now();
    let results = SendBatch::new(items).timeout(secs(2)).await;
    assert!((secs(2)..secs(2) + millis(50)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(reading.await.unwrap(), (800..810).collect::<Vec<_>>());
    let (of_stuck, of_read): (Vec<_>, Vec<_>) =
        results.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
    assert!(of_read.iter().all(Result::is_ok), "{of_read:?}");
    assert_eq!(of_stuck[0], Ok(()));
    let late = Err(NamedSendError::Timeout(secs(2)));
    assert!(of_stuck[1..].iter().all(|result| *result == late), "{of_stuck:?}");

    // What was not accepted is not sent when there is room.
    assert_eq!(stuck.recv().await.map(|body| body.len()), Some(800));
    assert_eq!(stuck.recv_timeout(secs(30)).await, Err(RecvError::Timeout));
    to_stuck.send(body(99)).await.unwrap();
    assert_eq!(stuck.recv_timeout(secs(1)).await.map(|body| body.len()), Ok(899));
}

/// One deadline for the name, the session and the room, whichever it is that does not come.
#[tokio::test(start_paused = true)]
async fn a_wait_and_send_has_one_deadline() {
    let world = World::new(4);
    let (a, b) = two(&world).await;
    let took = async |patience, message| {
        let begun = Instant::now();
        let sent = a.registry().wait_for(LEFT).timeout(patience).send(message).await;
        (sent, begun.elapsed())
    };
    assert_eq!(took(secs(2), 0).await, (Err(NamedSendError::Absent(secs(2))), secs(2)));

    // Registered while it waits.
    let mut left = b.mailbox::<u64>();
    let registering = async {
        tokio::time::sleep(secs(1)).await;
        b.registry().register(LEFT, &left).await.unwrap();
    };
    let ((sent, waited), ()) = tokio::join!(took(secs(2), 1), registering);
    assert_eq!(sent, Ok(()));
    assert!((secs(1)..secs(1) + millis(100)).contains(&waited), "{waited:?}");
    assert_eq!(left.recv().await, Some(1));

    // There is a name, and no room: what was waited for the name counts too.
    let full = a.registry().lookup(LEFT).unwrap();
    while tokio::time::timeout(secs(1), full.send(0)).await.is_ok() {}
    let (sent, waited) = took(secs(2), 2).await;
    assert_eq!((sent, waited), (Err(NamedSendError::Timeout(secs(2))), secs(2)));

    // A name, and no way to its node.
    a.cluster().disconnect(b.name()).await;
    world.fabric.cut(ip(1), ip(2));
    let (sent, waited) = took(millis(500), 3).await;
    assert_eq!((sent, waited), (Err(NamedSendError::Timeout(millis(500))), millis(500)));

    // Another type: waiting does not help.
    let odd = a.registry().wait_for(Name::<String>::new("left")).timeout(secs(2)).send("x".into()).await;
    assert!(matches!(odd, Err(NamedSendError::Lookup(LookupError::TagMismatch { .. }))), "{odd:?}");
    a.shutdown().await;
    assert_eq!(took(secs(2), 4).await.0, Err(NamedSendError::Send(SendError::Shutdown)));
}

/// A question to a name goes to whoever has it, and ends as any question does.
#[tokio::test(start_paused = true)]
async fn a_name_can_be_asked() {
    const CLERK: Name<(u64, ReplyTo<u64>)> = Name::new("clerk");
    let world = World::new(5);
    let (a, b) = two(&world).await;
    let absent = a.registry().ask(CLERK, |reply_to| (1, reply_to)).await;
    assert_eq!(absent, Err(NamedAskError::Lookup(LookupError::NotFound)));
    assert_eq!(absent.unwrap_err().effect(), Effect::NotDone);
    let mut clerk = b.mailbox();
    b.registry().register(CLERK, &clerk).everywhere().await.unwrap();
    let registry = a.registry();
    let (answer, ()) = tokio::join!(registry.ask(CLERK, |reply_to| (20, reply_to)).into_future(), async {
        let (n, reply_to): (u64, ReplyTo<u64>) = clerk.recv().await.unwrap();
        reply_to.reply(n + 1).await.unwrap();
    });
    assert_eq!(answer, Ok(21));
    let silent = a.registry().ask(CLERK, |reply_to| (1, reply_to)).timeout(secs(1)).await;
    assert_eq!(silent, Err(NamedAskError::Ask(AskError::Timeout(secs(1)))));
    assert_eq!(silent.unwrap_err().effect(), Effect::Unknown);
}

/// A callee that turns calls away for a while, then fails after the work: the first is tried again, the second is not.
#[tokio::test(start_paused = true)]
async fn retries_stop_where_something_may_have_been_done() {
    const ADD: Method<u64, u64> = Method::new("add");
    let world = World::new(6);
    let (a, b) = two(&world).await;
    let total = Arc::new(AtomicU64::new(0));
    let (rpc, to) = (a.rpc(), b.name().clone());
    let retry = Retry::new().attempts(20).within(secs(20));
    let serving = async {
        tokio::time::sleep(secs(2)).await;
        let total = total.clone();
        let add = move |_, n| {
            let total = total.fetch_add(n, Ordering::Relaxed) + n;
            async move {
                assert!(total < 10, "as told");
                total
            }
        };
        b.rpc().serve(ADD, add).unwrap();
    };
    let (added, ()) = tokio::join!(retry.run(async || rpc.call(&to, ADD, 1).await), serving);
    assert_eq!(added, Ok(1));
    assert_eq!(retry.run(async || rpc.call(&to, ADD, 100).await).await, Err(CallError::Panicked));
    assert_eq!(total.load(Ordering::Relaxed), 101, "each was done once");
}
