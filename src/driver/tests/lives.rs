//! One name, one life: second lives, dead ones, and the node's own.

use super::fake::{Fake, closed, control_frame, encode, hear, open, say};
use super::*;
use crate::error::SendError;
use crate::identity::Role;
use crate::transport::link::End;
use crate::wire::{Code, Control};

/// Another process with the node's own name, and the node itself.
#[tokio::test(start_paused = true)]
async fn the_nodes_own_name_is_taken() {
    let mut world = World::new().await;
    let at = "10.0.0.9:4370".parse().unwrap();
    let double = Fake::at(&world.fabric, at, &world.cookie, "default", world.a.name().clone());
    let refused = double.join_as(&world.a, |_| {}).await.err().unwrap();
    assert_eq!(refused.code, Code::NAME_CONFLICT);
    let live = world.a.id();
    assert_eq!(world.next_event().await, NodeEvent::Conflict { live: live.clone(), refused: double.id.clone() });
    // With the very incarnation of the node it is still not the node: its key is another.
    let incarnation = world.a.id().incarnation();
    let refused = double.join_as(&world.a, |hello| hello.incarnation = incarnation).await.err().unwrap();
    assert_eq!(refused.code, Code::NAME_CONFLICT);
    assert_eq!(world.next_event().await, NodeEvent::Conflict { live: live.clone(), refused: live });
    world.is_unharmed().await;
}

/// A node that answers to its own dial knows itself by its key.
#[tokio::test(start_paused = true)]
async fn a_node_knows_itself() {
    let mut world = World::new().await;
    let shared = world.a.shared().clone();
    let link = shared.endpoint().unwrap().dial(&shared.tls, world.a.local_addr(), world.a.name()).await.unwrap();
    let mut own = world.member("x@10.0.0.9:4370");
    own.tls = shared.tls.clone();
    own.id = world.a.id();
    let _greeting = say(&link, &encode(&own.hello(&link, Role::Dialler))).await;
    let code = closed(&link).await.code;
    assert_eq!(code, Code::SELF);
    world.is_unharmed().await;
}

/// A second life of a name whose first life answers is refused, and said to be; the first notices nothing.
#[tokio::test(start_paused = true)]
async fn a_second_life_of_a_live_name_is_refused() {
    let mut world = World::new().await;
    let at = "10.0.0.9:4370".parse().unwrap();
    let mut double = Fake::at(&world.fabric, at, &world.cookie, "default", world.b.name().clone());
    for incarnation in [1, world.b.id().incarnation(), u64::MAX >> 3] {
        double.id = NodeId::new(world.b.name().clone(), incarnation);
        let refused = double.join_as(&world.a, |_| {}).await.err().unwrap();
        // The earlier is told which it is that lives.
        let live = world.b.id().incarnation();
        let reason = if incarnation < live { live.to_be_bytes().to_vec() } else { Vec::new() };
        assert_eq!((refused.code, refused.reason), (Code::NAME_CONFLICT, reason));
        let conflict = NodeEvent::Conflict { live: world.b.id(), refused: double.id.clone() };
        assert_eq!(world.next_event().await, conflict);
    }
    world.is_unharmed().await;
}

/// More newcomers than are kept waiting are refused without a question to the old life.
#[tokio::test(start_paused = true)]
async fn a_crowd_of_second_lives_is_bounded() {
    let mut world = World::new().await;
    let mut crowd = tokio::task::JoinSet::new();
    for n in 0..20u8 {
        let at = ([10, 0, 1, n], 4370).into();
        let double = Fake::at(&world.fabric, at, &world.cookie, "default", world.b.name().clone());
        let a = world.a.clone();
        crowd.spawn(async move { double.join_as(&a, |_| {}).await.err().unwrap().code });
    }
    let codes = crowd.join_all().await;
    assert!(codes.iter().all(|code| [Code::NAME_CONFLICT, Code::LIMIT].contains(code)), "{codes:?}");
    for _ in codes.iter().filter(|code| **code == Code::NAME_CONFLICT) {
        assert!(matches!(world.next_event().await, NodeEvent::Conflict { .. }));
    }
    world.is_unharmed().await;
}

/// A dead life is replaced by the next, its end told first.
#[tokio::test(start_paused = true)]
async fn a_dead_life_is_replaced() {
    let mut world = World::new().await;
    let first = world.member("x@10.0.0.9:4370");
    let joined = first.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(first.id.clone()));
    world.fabric.cut(world.a.local_addr().ip(), first.host.ip());
    let at = "10.0.0.10:4370".parse().unwrap();
    let mut second = Fake::at(&world.fabric, at, &world.cookie, "default", first.name().clone());
    second.id = NodeId::new(first.name().clone(), 1_001);
    let began = tokio::time::Instant::now();
    let next = second.join(&world.a).await;
    assert!(began.elapsed() < Duration::from_millis(1100), "{:?}", began.elapsed());
    assert_eq!(world.next_event().await, NodeEvent::Down(first.id.clone(), DownReason::Superseded));
    assert_eq!(world.next_event().await, NodeEvent::Up(second.id.clone()));
    next.link.close_as(1, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(second.id.clone(), DownReason::Left));
    drop(joined);
    world.is_unharmed().await;
}

/// A newcomer whose time is over while the old life is still asked leaves nothing that would stand in the way of the next.
#[tokio::test(start_paused = true)]
async fn a_newcomer_that_cannot_wait_leaves_nothing() {
    let mut world = World::with(Config { conflict_check: secs(7), ..Config::default() }).await;
    let name = NodeName::parse("x@10.0.0.9:4370").unwrap();
    let at = |at: &str| Fake::at(&world.fabric, at.parse().unwrap(), &world.cookie, "default", name.clone());
    let (first, mut second, mut third) = (at("10.0.0.8:4370"), at("10.0.0.10:4370"), at("10.0.0.9:4370"));
    let joined = first.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(first.id.clone()));
    world.fabric.cut(world.a.local_addr().ip(), first.host.ip());
    second.id = NodeId::new(name.clone(), 1_001);
    let link = second.dial(&world.a).await;
    let _greeting = say(&link, &encode(&second.hello(&link, Role::Dialler))).await;
    assert_eq!(closed(&link).await.code, Code::HELLO_TIMEOUT);
    assert_eq!(world.next_event().await, NodeEvent::Down(first.id.clone(), DownReason::Superseded));
    drop(joined);
    world.fabric.heal_all();
    third.id = NodeId::new(third.name().clone(), 1_002);
    let (mut joined, dialled) = tokio::join!(third.admit(), world.dials(third.name()));
    assert_eq!(dialled, Ok(third.id.clone()));
    assert!(joined.answers(1).await);
    assert_eq!(world.next_event().await, NodeEvent::Up(third.id.clone()));
    joined.link.close_as(1, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(third.id.clone(), DownReason::Left));
    world.is_unharmed().await;
}

/// A life that began before one that was known is told which.
#[tokio::test(start_paused = true)]
async fn an_earlier_life_is_told_the_later() {
    let mut world = World::new().await;
    let first = world.member("x@10.0.0.9:4370");
    let joined = first.join(&world.a).await;
    joined.link.close_as(1, b"");
    world.up_and_down(&first.id, DownReason::Left, "the first life").await;
    let at = "10.0.0.10:4370".parse().unwrap();
    let mut second = Fake::at(&world.fabric, at, &world.cookie, "default", first.name().clone());
    for incarnation in [1, 999, 1_000] {
        let refused = second.join_as(&world.a, |hello| hello.incarnation = incarnation).await.err().unwrap();
        assert_eq!((refused.code, refused.reason), (Code::STALE_INCARNATION, 1_000u64.to_be_bytes().to_vec()));
    }
    second.id = NodeId::new(second.name().clone(), 1_001);
    let joined = second.join(&world.a).await;
    joined.link.close_as(1, b"");
    world.up_and_down(&second.id, DownReason::Left, "the second life").await;
    world.is_unharmed().await;
}

/// A node that is told of a later life of its own name comes back as a later one, at once, and says so.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_told_of_its_later_life_renews_itself() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let old = world.a.id();
    let known = old.incarnation() + 77;
    let answering = async {
        let link = fake.accept().await;
        let (_send, mut recv) = link.accept_greeting().await.unwrap();
        assert_eq!(hear(&mut recv).await.unwrap().incarnation, old.incarnation());
        link.close_as(Code::STALE_INCARNATION.0.into(), &known.to_be_bytes());
        fake.admit().await
    };
    world.chatter.abort();
    let (joined, dialled) = tokio::join!(answering, world.dials(fake.name()));
    assert_eq!(joined.hello.incarnation, known + 1);
    assert_eq!(dialled, Ok(fake.id.clone()), "the dial is repeated as the new life");
    let new = NodeId::new(old.name().clone(), known + 1);
    assert_eq!(world.a.id(), new);
    assert_eq!(world.next_event().await, NodeEvent::Down(world.b.id(), DownReason::Renewed));
    assert_eq!(world.next_event().await, NodeEvent::Renewed(new.clone()));
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    // The old friend meets the new life.
    assert_eq!(world.b.cluster().connect(world.a.name()).await, Ok(new));
    assert_eq!(world.next_event().await, NodeEvent::Up(world.b.id()));
    let mut inbox = world.a.mailbox::<u64>();
    let address = inbox.address().bind(&world.b);
    address.send(1).await.unwrap();
    assert_eq!(inbox.recv().await, Some(1));
    drop(joined);
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    world.has_no_leak().await;
}

/// A reason that is no incarnation, or an impossible one, changes nothing.
#[tokio::test(start_paused = true)]
async fn nonsense_about_the_nodes_own_life_is_ignored() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let reasons: [&[u8]; 5] = [&[], &[1; 7], &[1; 9], &[0; 8], &[0xff; 8]];
    for reason in reasons {
        let answering = async {
            let link = fake.accept().await;
            link.accept_greeting().await.unwrap();
            link.close_as(Code::STALE_INCARNATION.0.into(), reason);
        };
        let ((), dialled) = tokio::join!(answering, world.dials(fake.name()));
        assert!(dialled.is_err());
    }
    world.is_unharmed().await;
}

/// An idle session whose name another life claims: the old life is asked without being disturbed.
#[tokio::test(start_paused = true)]
async fn an_idle_life_is_asked_and_keeps_its_session() {
    let mut world = World::new().await;
    let c = node(&world.fabric, &world.cookie, "c@10.0.0.3:4370", Config::default()).await;
    let mut at_a = world.a.mailbox::<u64>();
    let from_c = at_a.address().bind(&c);
    // End one session first, so that the counters are not all zero.
    from_c.send(1).await.unwrap();
    c.cluster().disconnect(world.a.name()).await;
    assert_eq!(from_c.send(2).await, Err(SendError::SessionEnded(world.a.id())));
    from_c.send(3).await.unwrap();
    assert_eq!((at_a.recv().await, at_a.recv().await), (Some(1), Some(3)));
    for _ in 0..2 {
        world.next_event().await;
    }
    assert_eq!(world.next_event().await, NodeEvent::Up(c.id()));
    sleep(secs(70)).await;
    assert_eq!(world.held().entries, world.census.entries, "the link to C has idled out");
    assert_eq!(world.held().sessions, world.census.sessions + 1);

    let mut events = c.cluster().node_events();
    assert_eq!(events.next().await, Some(NodeEvent::Up(world.a.id())));
    let at = "10.0.0.9:4370".parse().unwrap();
    let mut double = Fake::at(&world.fabric, at, &world.cookie, "default", c.name().clone());
    double.id = NodeId::new(c.name().clone(), c.id().incarnation() + 1);
    let refused = double.join_as(&world.a, |_| {}).await.err().unwrap();
    assert_eq!(refused.code, Code::NAME_CONFLICT);
    let conflict = NodeEvent::Conflict { live: c.id(), refused: double.id.clone() };
    assert_eq!(world.next_event().await, conflict);
    // The session goes on at both ends.
    from_c.send(4).await.unwrap();
    assert_eq!(at_a.recv().await, Some(4));
    let mut at_c = c.mailbox::<u64>();
    at_c.address().bind(&world.a).send(5).await.unwrap();
    assert_eq!(at_c.recv().await, Some(5));
    assert!(timeout(secs(1), events.next()).await.is_err());
    c.shutdown().await;
    assert_eq!(world.next_event().await, NodeEvent::Down(c.id(), DownReason::Left));
    world.is_unharmed().await;
}

/// A dial that is called off in the middle of its greeting leaves nothing.
#[tokio::test(start_paused = true)]
async fn a_dial_that_is_called_off_leaves_nothing() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    for wait in 0..5 {
        let answering = async {
            let Ok(arrival) = timeout(secs(1), fake.endpoint.accept()).await else { return };
            let Ok(link) = arrival.unwrap().accept().await else { return };
            let Ok((mut send, mut recv)) = link.accept_greeting().await else { return };
            let Some(theirs) = hear(&mut recv).await else { return };
            let mut hello = fake.hello(&link, Role::Responder);
            (hello.known_incarnation, hello.ended, hello.seen_ended) =
                (theirs.incarnation, theirs.seen_ended, theirs.ended);
            fake.prove(&link, &mut hello);
            send.write(&encode(&hello)).await.unwrap();
            let _ = timeout(secs(1), link.closed()).await;
        };
        let name = fake.name().clone();
        let calling_off = async {
            sleep(Duration::from_millis(wait)).await;
            world.a.shared().command(super::super::Command::Disconnect { peer: name.clone() });
        };
        let ((), dialled, ()) = tokio::join!(answering, world.dials(&name), calling_off);
        assert!(dialled.is_err(), "{dialled:?}");
        world.has_no_leak().await;
    }
    world.is_unharmed().await;
}

/// A greeted link that is closed by the node itself ends for the attacker only.
#[tokio::test(start_paused = true)]
async fn a_user_may_end_the_attackers_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let link = fake.dial(&world.a).await;
    let (_send, mut recv) = say(&link, &encode(&fake.hello(&link, Role::Dialler))).await;
    assert!(hear(&mut recv).await.is_some());
    link.raise_limits(1000);
    let _control = open(&link, &[&[1][..], &control_frame(Control::Ready)].concat()).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    // The attacker reads nothing, agrees to nothing, and lives on.
    let cluster = world.a.cluster();
    timeout(secs(60), cluster.disconnect(fake.name())).await.expect("a stop that is not agreed on ends");
    assert!(matches!(link.closed().await, End::Closed { by_peer: true, .. }));
    assert!(matches!(world.next_event().await, NodeEvent::Down(..)));
    world.is_unharmed().await;
}
