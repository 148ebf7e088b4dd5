//! What each fault of the network does to sessions, messages and calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distribute::sim::Conditions;
use distribute::{CallError, DownReason, Effect, Method, NodeEvent, SendError};
use tokio::time::Instant;

use crate::common::{World, ip, lossy, millis, next, quiet, secs};

const ECHO: Method<u64, u64> = Method::new("echo");

/// 10^5 messages through 5 % loss with jitter, reordering and duplicates arrive in order, each once. `MESSAGES=1000000` for
/// more of them.
#[tokio::test(start_paused = true)]
async fn loss_reordering_and_duplicates_are_not_seen() {
    let messages: u64 = std::env::var("MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let mut inbox = b.mailbox::<u64>();
    let mut events = b.cluster().node_events();
    world.fabric.conditions(lossy());
    let there = inbox.address().bind(&a);
    let sending = tokio::spawn(async move {
        for n in 0..messages {
            there.send(n).await.unwrap();
        }
    });
    for n in 0..messages {
        assert_eq!(inbox.recv().await, Some(n));
    }
    sending.await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Up(a.id()));
    assert!(quiet(&mut events, secs(5)).await, "one session all along");
    let counters = world.fabric.counters();
    assert!(counters.lost > 100 && counters.duplicated > 20 && counters.reordered > 50, "{counters:?}");
}

/// The dialling side's address changes every two seconds: no message is lost or repeated, and nobody notices.
#[tokio::test(start_paused = true)]
async fn rebinding_under_load_is_not_seen() {
    const MESSAGES: u64 = 100_000;
    let world = World::new(2);
    let (a, b) = world.pair().await;
    let mut inbox = b.mailbox::<u64>();
    let mut events = b.cluster().node_events();
    // 100 KB/s: the messages take long enough to be hit by many changes.
    world.fabric.conditions(Conditions::default().latency(millis(5)).bandwidth(100_000));
    let there = inbox.address().bind(&a);
    let sending = tokio::spawn(async move {
        for n in 0..MESSAGES {
            there.send(n).await.unwrap();
        }
    });
    let fabric = world.fabric.clone();
    let rebinds = Arc::new(AtomicU64::new(0));
    let count = rebinds.clone();
    let rebinding = tokio::spawn(async move {
        loop {
            tokio::time::sleep(secs(2)).await;
            fabric.rebind(ip(1));
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    for n in 0..MESSAGES {
        assert_eq!(inbox.recv().await, Some(n));
    }
    sending.await.unwrap();
    rebinding.abort();
    assert!(rebinds.load(Ordering::Relaxed) >= 3, "{rebinds:?}");
    assert_eq!(next(&mut events).await, NodeEvent::Up(a.id()));
    assert!(quiet(&mut events, secs(5)).await);
}

/// A cut shorter than the loss of a link delays what is on its way, and that is all.
#[tokio::test(start_paused = true)]
async fn a_short_cut_only_delays() {
    let world = World::new(3);
    let (a, b) = world.unprobing_pair().await;
    let mut inbox = b.mailbox::<u64>();
    let mut events = a.cluster().node_events();
    let there = inbox.address().bind(&a);
    there.send(0).await.unwrap();
    assert_eq!(inbox.recv().await, Some(0));

    world.fabric.cut(ip(1), ip(2));
    let cut = Instant::now();
    there.send(1).await.unwrap();
    tokio::time::sleep(secs(9)).await;
    world.fabric.heal_all();
    assert_eq!(inbox.recv().await, Some(1));
    println!("a message sent into a cut of 9 s arrived {:?} after the cut began", cut.elapsed());
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert!(quiet(&mut events, secs(30)).await);
}

/// A cut longer than that ends the session on the side that waits for something, within its bound; the next send says
/// so, and the one after goes through.
#[tokio::test(start_paused = true)]
async fn a_long_cut_ends_the_session_and_says_so() {
    let world = World::new(4);
    let (a, b) = world.unprobing_pair().await;
    let mut inbox = b.mailbox::<u64>();
    let mut events = a.cluster().node_events();
    let there = inbox.address().bind(&a);
    there.send(0).await.unwrap();
    assert_eq!(inbox.recv().await, Some(0));
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));

    world.fabric.cut(ip(1), ip(2));
    tokio::time::sleep(millis(1500)).await;
    let sent = Instant::now();
    there.send(1).await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::Lost));
    println!("a session with a write outstanding was lost after {:?}", sent.elapsed());
    assert!(sent.elapsed() >= secs(7) && sent.elapsed() <= secs(12), "{:?}", sent.elapsed());
    assert_eq!(there.send(2).await, Err(SendError::SessionEnded(b.id())));
    world.fabric.heal_all();
    there.send(3).await.unwrap();
    assert_eq!(inbox.recv().await, Some(3), "what was lost stays lost");
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
}

/// A cut that only one side notices: the other learns of it before the first message of the next session.
#[tokio::test(start_paused = true)]
async fn a_cut_that_one_side_notices() {
    let world = World::new(5);
    let (a, b) = world.unprobing_pair().await;
    let mut inbox = b.mailbox::<u64>();
    let (mut at_a, mut at_b) = (a.cluster().node_events(), b.cluster().node_events());
    let there = inbox.address().bind(&a);
    there.send(0).await.unwrap();
    assert_eq!(inbox.recv().await, Some(0));
    // Let what is outstanding settle at b.
    tokio::time::sleep(secs(8)).await;

    world.fabric.cut(ip(1), ip(2));
    there.send(1).await.unwrap();
    assert_eq!(next(&mut at_a).await, NodeEvent::Up(b.id()));
    assert_eq!(next(&mut at_a).await, NodeEvent::Down(b.id(), DownReason::Lost));
    assert_eq!(next(&mut at_b).await, NodeEvent::Up(a.id()));
    assert!(quiet(&mut at_b, secs(5)).await, "b has nothing outstanding and notices nothing");
    world.fabric.heal_all();
    assert_eq!(there.send(2).await, Err(SendError::SessionEnded(b.id())));
    there.send(3).await.unwrap();
    assert_eq!(inbox.recv().await, Some(3));
    assert_eq!(next(&mut at_b).await, NodeEvent::Down(a.id(), DownReason::EndedByPeer));
    assert_eq!(next(&mut at_b).await, NodeEvent::Up(a.id()));
}

/// One direction is cut: the session ends at the side that asks in vain, and both come back after the heal.
#[tokio::test(start_paused = true)]
async fn a_one_way_cut_heals() {
    let world = World::new(6);
    let (a, b) = world.unprobing_pair().await;
    let mut inbox = b.mailbox::<u64>();
    let there = inbox.address().bind(&a);
    there.send(0).await.unwrap();
    assert_eq!(inbox.recv().await, Some(0));
    world.fabric.cut_one_way(ip(2), ip(1));
    let mut events = a.cluster().node_events();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    there.send(1).await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::Lost));
    world.fabric.heal_all();
    assert_eq!(there.send(2).await, Err(SendError::SessionEnded(b.id())));
    there.send(3).await.unwrap();
    // The message into the cut arrived: its way was open. Only a could not know.
    assert_eq!(inbox.recv().await, Some(1));
    assert_eq!(inbox.recv().await, Some(3));
}

/// Both sides dial at the same moment, a thousand times, with sends queued on both: one session, nothing lost.
#[tokio::test(start_paused = true)]
async fn a_thousand_simultaneous_dials() {
    const ROUNDS: u64 = 1000;
    let world = World::new(7);
    let (a, b) = world.pair().await;
    let (mut at_a, mut at_b) = (a.mailbox::<u64>(), b.mailbox::<u64>());
    let (to_a, to_b) = (at_a.address().bind(&b), at_b.address().bind(&a));
    let mut events = a.cluster().node_events();
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..ROUNDS {
        // One of the dials may have a head start, of up to the time that both take.
        let (mut lead_a, mut lead_b) = (millis(0), millis(0));
        *(if rng.bool() { &mut lead_a } else { &mut lead_b }) = millis(rng.u64(0..6));
        let sends = async |to: &distribute::Address<u64>, lead| {
            tokio::time::sleep(lead).await;
            for n in 0..5 {
                match to.send(10 * round + n).await {
                    Ok(()) => {}
                    // The last round's session ended by request; said once, and nothing was sent.
                    Err(SendError::SessionEnded(_)) if n == 0 => to.send(10 * round).await.unwrap(),
                    Err(error) => panic!("round {round}: {error}"),
                }
            }
        };
        let receives = async |inbox: &mut distribute::Mailbox<u64>| {
            for n in 0..5 {
                assert_eq!(inbox.recv_timeout(secs(20)).await, Ok(10 * round + n), "round {round}");
            }
        };
        tokio::join!(sends(&to_b, lead_a), sends(&to_a, lead_b), receives(&mut at_b), receives(&mut at_a));
        assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()), "round {round}");
        a.cluster().disconnect(b.name()).await;
        assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::Disconnected), "round {round}");
        while !b.cluster().peers().is_empty() {
            tokio::time::sleep(millis(1)).await;
        }
    }
}

/// A node that restarts at once replaces its old life, whose end is told first; addresses of the old life reach nothing.
#[tokio::test(start_paused = true)]
async fn a_restart_within_the_detection_time() {
    let world = World::new(8);
    let (a, b) = world.unprobing_pair().await;
    let mut inbox = b.mailbox::<u64>();
    let there = inbox.address().bind(&a);
    there.send(1).await.unwrap();
    assert_eq!(inbox.recv().await, Some(1));
    let mut events = a.cluster().node_events();
    let old = b.id();
    assert_eq!(next(&mut events).await, NodeEvent::Up(old.clone()));

    // A crash: the old life says nothing any more. Its last packets reach nobody.
    world.fabric.cut(ip(1), ip(2));
    drop((inbox, b));
    // So long the old life's good-byes go unheard, and its socket is in use.
    tokio::time::sleep(secs(7)).await;
    world.fabric.heal_all();
    let b = world.unprobing("b", 2).await;
    let new = b.id();
    assert!(new > old);
    b.cluster().connect(a.name()).await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Down(old.clone(), DownReason::Superseded));
    assert_eq!(next(&mut events).await, NodeEvent::Up(new.clone()));
    assert_eq!(a.cluster().peers(), [new]);
    assert_eq!(there.send(2).await, Err(SendError::SessionEnded(old)));
    let error = there.send(3).await.unwrap_err();
    assert!(matches!(error, SendError::NotConnected(..)), "{error:?}");
}

/// An idle link closes in good order: the session, and the addresses in it, go on; a message sent in that very moment
/// arrives.
#[tokio::test(start_paused = true)]
async fn an_idle_close_loses_nothing_in_flight() {
    let mut crossed = 0;
    let mut rng = fastrand::Rng::with_seed(9);
    for seed in 0..40 {
        let world = World::new(seed);
        let (a, b) = world.unprobing_pair().await;
        world.fabric.conditions(Conditions::default().latency(millis(20)));
        let mut inbox = b.mailbox::<u64>();
        let there = inbox.address().bind(&a);
        let mut events = b.cluster().node_events();
        there.send(0).await.unwrap();
        assert_eq!(inbox.recv().await, Some(0));
        assert_eq!(next(&mut events).await, NodeEvent::Up(a.id()));
        // Until the two have told each other all that members tell.
        tokio::time::sleep(secs(20)).await;
        there.send(0).await.unwrap();
        assert_eq!(inbox.recv().await, Some(0));
        // The links were last used about now; their close takes four times 20 ms, some time after 60 s.
        tokio::time::sleep(secs(60) + millis(rng.u64(0..150))).await;
        let before = Instant::now();
        there.send(1).await.unwrap();
        assert_eq!(inbox.recv_timeout(secs(20)).await, Ok(1), "seed {seed}");
        crossed += u64::from(before.elapsed() > millis(50));
        there.send(2).await.unwrap();
        assert_eq!(inbox.recv_timeout(secs(20)).await, Ok(2), "seed {seed}");
        assert!(quiet(&mut events, secs(200)).await, "seed {seed}: the session goes on");
    }
    assert!(crossed >= 5, "only {crossed} sends met the close");
}

/// A call that is cut off fails when the session does, not at its own far deadline, and may have run.
#[tokio::test(start_paused = true)]
async fn a_call_fails_with_its_session() {
    let world = World::new(10);
    let (a, b) = world.unprobing_pair().await;
    b.rpc().serve(ECHO, |_, n| async move { n }).unwrap();
    assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Ok(1));
    world.fabric.cut(ip(1), ip(2));
    let begun = Instant::now();
    let error = a.rpc().call(b.name(), ECHO, 2).timeout(secs(60)).await.unwrap_err();
    assert_eq!(error, CallError::Disconnected(b.id()));
    assert_eq!(error.effect(), Effect::Unknown);
    assert!(begun.elapsed() <= secs(12), "{:?}", begun.elapsed());
}

/// A handler is dropped when its caller gives up, and when its caller's node is lost.
#[tokio::test(start_paused = true)]
async fn a_handler_ends_with_its_caller() {
    const WAIT: Method<(), ()> = Method::new("wait");
    struct Dropped(tokio::sync::mpsc::UnboundedSender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let world = World::new(11);
    let (a, b) = world.pair().await;
    let (dropped, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
    b.rpc()
        .serve(WAIT, move |_, ()| {
            let (dropped, started) = (Dropped(dropped.clone()), started.clone());
            async move {
                let _dropped = dropped;
                let _ = started.send(());
                std::future::pending().await
            }
        })
        .unwrap();
    let call = || {
        let (rpc, to) = (a.rpc(), b.name().clone());
        tokio::spawn(async move { rpc.call(&to, WAIT, ()).timeout(secs(600)).await })
    };
    let first = call();
    starts.recv().await.unwrap();
    first.abort();
    tokio::time::timeout(secs(1), ends.recv()).await.expect("cancelled").unwrap();

    let _second = call();
    starts.recv().await.unwrap();
    world.fabric.cut(ip(1), ip(2));
    tokio::time::timeout(secs(14), ends.recv()).await.expect("ended with the session").unwrap();
}

/// Large and small messages to one mailbox keep their order while packets are lost and a mailbox beside it is stuffed.
#[tokio::test(start_paused = true)]
async fn order_holds_across_streams_under_loss() {
    let world = World::new(12);
    let (a, b) = world.pair().await;
    world.fabric.conditions(lossy());
    let stuffed = b.mailbox::<Vec<u8>>();
    let blocked = stuffed.address().bind(&a);
    let stuffing = tokio::spawn(async move {
        loop {
            blocked.send(vec![0; 10_000]).await.unwrap();
        }
    });
    let mut inbox = b.mailbox::<Vec<u8>>();
    let there = inbox.address().bind(&a);
    let sending = tokio::spawn(async move {
        for n in 0..200u8 {
            let size = if n % 5 == 0 { 200_000 } else { 1 + usize::from(n) };
            there.send(vec![n; size]).await.unwrap();
        }
    });
    for n in 0..200u8 {
        let message = inbox.recv_timeout(secs(60)).await.unwrap();
        assert_eq!(message[0], n);
        assert!(message.iter().all(|byte| *byte == n));
    }
    sending.await.unwrap();
    stuffing.abort();
}

/// A frozen node is not lost before its time, and a thawed one goes on.
#[tokio::test(start_paused = true)]
async fn a_short_freeze_is_not_seen() {
    let world = World::new(13);
    let (a, b) = world.unprobing_pair().await;
    let mut inbox = b.mailbox::<u64>();
    let there = inbox.address().bind(&a);
    let mut events = a.cluster().node_events();
    there.send(0).await.unwrap();
    assert_eq!(inbox.recv().await, Some(0));
    world.fabric.freeze(ip(2));
    for n in 1..100 {
        there.send(n).await.unwrap();
    }
    tokio::time::sleep(secs(8)).await;
    world.fabric.thaw(ip(2));
    for n in 1..100 {
        assert_eq!(inbox.recv_timeout(secs(20)).await, Ok(n));
    }
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert!(quiet(&mut events, secs(30)).await);
}

/// A send to a host that swallows everything ends with the connect deadline.
#[tokio::test(start_paused = true)]
async fn a_black_hole_holds_nobody_beyond_the_deadline() {
    let world = World::new(14);
    let (a, b) = world.pair().await;
    let inbox = b.mailbox::<u64>();
    world.fabric.cut(ip(1), ip(2));
    let there = inbox.address().bind(&a);
    let begun = Instant::now();
    let error = there.send(1).await.unwrap_err();
    assert!(matches!(error, SendError::NotConnected(..)), "{error:?}");
    assert!(begun.elapsed() <= secs(5) + millis(2), "{:?}", begun.elapsed());
    let error = there.try_send(2).unwrap_err();
    assert!(matches!(error.reason(), SendError::NotConnected(..)), "{error:?}");
    assert_eq!(error.into_message(), 2);
}
