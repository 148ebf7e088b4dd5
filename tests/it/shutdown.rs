//! The end of a node, in its order.

use std::sync::Arc;
use std::time::Duration;

use distribute::{
    CallError, DownReason, Fate, Group, GroupEvent, JoinError, LeftReason, MemberEvent, MembershipEvent, Method, Name,
    NameEvent, NameReason, Node, NodeEvent, RegisterError,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::common::{World, ip, millis, next, secs};

const DESK: Name<u64> = Name::new("desk");
const WORKERS: Group<u64> = Group::new("workers");
/// Answers when it is let.
const HELD: Method<u64, u64> = Method::new("held");
const ECHO: Method<u64, u64> = Method::new("echo");

/// Three nodes that are ready and know each other.
async fn three(world: &World) -> [Node; 3] {
    let a = world.node("a", 1).await;
    let b = world.builder("b", 2).join(a.name()).start().await.unwrap();
    let c = world.builder("c", 3).join(a.name()).start().await.unwrap();
    for node in [&a, &b, &c] {
        node.ready().await.unwrap();
        node.membership().wait_for_alive(3).await.unwrap();
    }
    [a, b, c]
}

/// Serves [`HELD`], whose handlers wait for the permits that are given out here.
fn serve_held(node: &Node) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let serving = node.rpc().serve(HELD, move |_, n| {
        let held = held.clone();
        async move {
            held.acquire().await.unwrap().forget();
            n + 1
        }
    });
    serving.unwrap();
    gate
}

/// A call that has reached its handler.
async fn hold(from: &Node, to: &Node) -> tokio::task::JoinHandle<Result<u64, CallError>> {
    let (rpc, name, served) = (from.rpc(), to.name().clone(), to.rpc().stats().served);
    let call = tokio::spawn(async move { rpc.call(&name, HELD, 1).timeout(secs(60)).await });
    while to.rpc().stats().served == served {
        tokio::time::sleep(millis(1)).await;
    }
    call
}

/// The order, as others see it: names and memberships go first and are free for a successor, then calls are refused, the
/// one that runs is answered, the node is told to have left, and its session ends.
#[tokio::test(start_paused = true)]
async fn names_go_before_calls_and_calls_before_links() {
    let world = World::new(1);
    let [a, b, c] = three(&world).await;
    let desk = b.mailbox::<u64>();
    let registration = b.registry().register(DESK, &desk).everywhere().await.unwrap();
    b.groups().join(WORKERS, &desk).unwrap();
    a.rpc().call(b.name(), HELD, 1).await.unwrap_err();
    let gate = serve_held(&b);
    let mut names = a.registry().watch(DESK);
    assert!(matches!(names.next().await, Some(NameEvent::Snapshot(names)) if names.len() == 1));
    let mut groups = a.groups().subscribe(WORKERS);
    assert!(matches!(groups.next().await, Some(GroupEvent::Snapshot(members)) if members.len() == 1));
    let mut sessions = a.cluster().node_events();
    for _ in 0..2 {
        assert!(matches!(next(&mut sessions).await, NodeEvent::Up(_)));
    }
    let mut members = a.membership().subscribe();
    let of_node = a.monitor(b.id());
    let running = hold(&a, &b).await;

    let stopping = tokio::spawn({
        let b = b.clone();
        async move { b.shutdown().await }
    });
    // One reason for all that goes.
    let Some(NameEvent::Changed(change)) = names.next().await else { panic!() };
    assert_eq!((change.now, change.reason), (None, NameReason::NodeLeft));
    let Some(GroupEvent::Left { member, reason, .. }) = groups.next().await else { panic!() };
    assert_eq!((member.pid, reason), (desk.pid(), LeftReason::NodeLeft));
    assert_eq!(registration.lost().await, None, "it is over, and not lost");
    assert!(!running.is_finished() && !stopping.is_finished(), "handlers still run");
    assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Err(CallError::ShuttingDown));
    assert_eq!(b.rpc().call(b.name(), ECHO, 1).await, Err(CallError::ShuttingDown));
    assert_eq!(b.registry().register(DESK, &desk).await.unwrap_err(), RegisterError::Shutdown);
    assert_eq!(b.groups().join(WORKERS, &desk), Err(JoinError::Shutdown));
    // Others go on without it, as if it were gone.
    let successor = c.mailbox::<u64>();
    c.registry().register(DESK, &successor).timeout(secs(3)).everywhere().await.unwrap();
    assert_eq!(a.registry().lookup(DESK).unwrap().pid(), &successor.pid());
    assert!(!running.is_finished() && !stopping.is_finished(), "handlers still run");
    // But it is a member, and is still sent to.
    assert!(a.membership().alive().contains(&b.id()));
    desk.address().bind(&a).send(7).await.unwrap();

    gate.add_permits(1);
    assert_eq!(running.await.unwrap(), Ok(2));
    stopping.await.unwrap();
    assert_eq!(next(&mut sessions).await, NodeEvent::Down(b.id(), DownReason::Left));
    assert_eq!(timeout(secs(5), of_node).await.unwrap().fate, Fate::NodeLeft);
    loop {
        match members.next().await.unwrap() {
            MembershipEvent::Changed(MemberEvent::Left(member)) if member.id == b.id() => break,
            MembershipEvent::Changed(MemberEvent::Suspected { member, .. } | MemberEvent::Died { member, .. }) => {
                panic!("{member:?} is not taken for dead")
            }
            _ => {}
        }
    }
}

/// Handlers that run too long are waited for until the deadline; what links have left then is a second.
#[tokio::test(start_paused = true)]
async fn a_shutdown_keeps_its_deadline() {
    let world = World::new(2);
    let [a, b, c] = three(&world).await;
    let _gate = serve_held(&b);
    let running = hold(&a, &b).await;
    let begun = Instant::now();
    b.shutdown().await;
    println!("a shutdown with a handler that does not end took {:?}", begun.elapsed());
    assert!((secs(5)..secs(7)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Cancelled | CallError::Disconnected(_)), "{error:?}");

    // The same with nobody at the other end of the links.
    let _gate = serve_held(&c);
    let _running = hold(&a, &c).await;
    world.fabric.cut(ip(1), ip(3));
    let begun = Instant::now();
    c.shutdown().await;
    println!("the same behind a cut took {:?}", begun.elapsed());
    assert!((secs(5)..=secs(8) + millis(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

/// What runs may finish what it does: it may call nodes that this one has no session with.
#[tokio::test(start_paused = true)]
async fn handlers_that_are_waited_for_may_call_others() {
    let world = World::new(3);
    let [a, b, _c] = three(&world).await;
    let far = world.node("far", 9).await;
    far.rpc().serve(ECHO, |_, n| async move { n }).unwrap();
    let mut inbox = far.mailbox::<u64>();
    let (rpc, name, there) = (b.rpc(), far.name().clone(), inbox.address().bind(&b));
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    b.rpc()
        .serve(HELD, move |_, n| {
            let (rpc, name, there, held) = (rpc.clone(), name.clone(), there.clone(), held.clone());
            async move {
                held.acquire().await.unwrap().forget();
                there.send(n).await.unwrap();
                rpc.call(&name, ECHO, 10 * n).await.unwrap()
            }
        })
        .unwrap();
    let running = hold(&a, &b).await;
    let stopping = tokio::spawn({
        let b = b.clone();
        async move { b.shutdown().await }
    });
    while a.rpc().call(b.name(), ECHO, 1).await != Err(CallError::ShuttingDown) {
        tokio::time::sleep(millis(1)).await;
    }
    gate.add_permits(1);
    assert_eq!(running.await.unwrap(), Ok(10));
    assert_eq!(inbox.recv().await, Some(1));
    stopping.await.unwrap();
}

/// A node that drains stays a member with its links, for as long as it likes.
#[tokio::test(start_paused = true)]
async fn a_node_that_drains_stays() {
    let world = World::new(4);
    let [a, b, _c] = three(&world).await;
    let mut desk = b.mailbox::<u64>();
    b.registry().register(DESK, &desk).everywhere().await.unwrap();
    let gate = serve_held(&b);
    let running = hold(&a, &b).await;
    assert_eq!(b.drain().await, 1, "it still runs");
    assert!(a.registry().lookup(DESK).is_err());
    let draining = tokio::spawn({
        let b = b.clone();
        async move { b.drain().await }
    });
    gate.add_permits(1);
    assert_eq!(draining.await.unwrap(), 0);
    assert_eq!(running.await.unwrap(), Ok(2));
    tokio::time::sleep(secs(120)).await;
    assert!(a.membership().alive().contains(&b.id()), "two minutes later");
    desk.address().bind(&a).send(1).await.unwrap();
    assert_eq!(desk.recv_timeout(secs(1)).await, Ok(1));
    assert_eq!(a.rpc().call(b.name(), ECHO, 1).await, Err(CallError::ShuttingDown));
    b.shutdown().await;
    assert_eq!(b.drain().await, 0, "after the end there is nothing to wait for");
}

/// A shutdown that nobody waits for goes on, at any point of it.
#[tokio::test(start_paused = true)]
async fn a_shutdown_that_is_dropped_goes_on() {
    for after in [Duration::ZERO, millis(1), secs(2)] {
        let world = World::new(5);
        let [a, b, _c] = three(&world).await;
        let desk = b.mailbox::<u64>();
        b.registry().register(DESK, &desk).everywhere().await.unwrap();
        let _gate = serve_held(&b);
        let _running = hold(&a, &b).await;
        let mut sessions = a.cluster().node_events();
        assert!(timeout(after, b.shutdown()).await.is_err(), "{after:?}");
        while next(&mut sessions).await != NodeEvent::Down(b.id(), DownReason::Left) {}
        assert!(a.registry().lookup(DESK).is_err());
        b.shutdown().await;
    }
}

/// Names by the thousand go with their node in a moment, and cost the node little.
#[tokio::test(start_paused = true)]
async fn many_names_are_withdrawn_at_once() {
    let world = World::new(6);
    let [a, b, _c] = three(&world).await;
    let desk = b.mailbox::<u64>();
    let mut claims = tokio::task::JoinSet::new();
    for n in 0..5_000u64 {
        claims.spawn(b.registry().register(Name::parse(format!("desk/{n}")).unwrap(), &desk).into_future());
    }
    for claim in claims.join_all().await {
        claim.unwrap();
    }
    while a.registry().count() < 5_000 {
        tokio::time::sleep(millis(10)).await;
    }
    let (begun, real) = (Instant::now(), std::time::Instant::now());
    b.drain().await;
    let took = real.elapsed();
    while a.registry().count() > 0 {
        tokio::time::sleep(millis(1)).await;
    }
    println!("5,000 names were withdrawn in {took:?}, and gone elsewhere {:?} later", begun.elapsed());
    assert!(begun.elapsed() < secs(2), "{:?}", begun.elapsed());
    b.shutdown().await;
}
