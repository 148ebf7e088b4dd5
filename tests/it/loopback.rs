//! The ordinary way, over real sockets.

use std::time::Duration;

use distribute::{Address, CallError, Config, Cookie, Effect, Method, Node, NodeEvent, SendError};

async fn node(name: &str, cookie: &Cookie) -> Node {
    Node::builder(format!("{name}@127.0.0.1:0")).cookie(cookie.clone()).start().await.unwrap()
}

/// Two nodes greet, and each sees the other.
#[tokio::test]
async fn two_nodes_connect() {
    let cookie = Cookie::generate();
    let (a, b) = (node("a", &cookie).await, node("b", &cookie).await);
    assert_eq!(a.cluster().connect(b.name()).await.unwrap(), b.id());
    assert_eq!(a.cluster().peers(), [b.id()]);
    let mut events = b.cluster().node_events();
    assert_eq!(events.next().await, Some(NodeEvent::Up(a.id())));
    assert_eq!(b.cluster().peers(), [a.id()]);
    let took = b.cluster().ping(a.name(), Duration::from_secs(1)).await.unwrap();
    assert!(took < Duration::from_secs(1));
    a.shutdown().await;
    assert_eq!(events.next().await, Some(NodeEvent::Down(a.id(), distribute::DownReason::Left)));
    b.shutdown().await;
    assert_eq!(events.next().await, None);
}

/// An address travels inside a message and comes back through a third node.
#[tokio::test]
async fn an_address_travels() {
    let cookie = Cookie::generate();
    let (a, b, c) = (node("a", &cookie).await, node("b", &cookie).await, node("c", &cookie).await);
    let mut home = a.mailbox::<String>();
    let mut relay = b.mailbox::<Address<String>>();
    let mut end = c.mailbox::<Address<String>>();

    let there = relay.address().bind(&a);
    there.send(home.address()).await.unwrap();
    let carried = relay.recv().await.unwrap();
    end.address().bind(&b).send(carried).await.unwrap();
    let carried = end.recv().await.unwrap();
    assert_eq!(carried, home.address());
    carried.send("hello".into()).await.unwrap();
    assert_eq!(home.recv().await.as_deref(), Some("hello"));
}

/// A thousand calls at once, a panic, a missing method, a time-out.
#[tokio::test]
async fn calls_end_one_way_or_another() {
    const DOUBLE: Method<u64, u64> = Method::new("double");
    const PANIC: Method<u64, u64> = Method::new("panic");
    const NEVER: Method<u64, u64> = Method::new("never");
    const MISSING: Method<u64, u64> = Method::new("missing");
    let cookie = Cookie::generate();
    let (a, b) = (node("a", &cookie).await, node("b", &cookie).await);
    b.rpc().serve(DOUBLE, |_, n| async move { 2 * n }).unwrap();
    b.rpc().serve(PANIC, |_, _| async move { panic!("as told") }).unwrap();
    b.rpc().serve(NEVER, |_, _| std::future::pending()).unwrap();

    let mut calls = tokio::task::JoinSet::new();
    for n in 0..1000 {
        let (rpc, to) = (a.rpc(), b.name().clone());
        calls.spawn(async move { (n, rpc.call(&to, DOUBLE, n).await) });
    }
    while let Some(done) = calls.join_next().await {
        let (n, answer) = done.unwrap();
        assert_eq!(answer, Ok(2 * n));
    }
    let rpc = a.rpc();
    assert_eq!(rpc.call(b.name(), PANIC, 1).await, Err(CallError::Panicked));
    assert_eq!(rpc.call(b.name(), MISSING, 1).await, Err(CallError::NoSuchMethod("missing".into())));
    let soon = Duration::from_millis(50);
    let late = rpc.call(b.name(), NEVER, 1).timeout(soon).await.unwrap_err();
    assert_eq!(late, CallError::Timeout(soon));
    assert_eq!(late.effect(), Effect::Unknown);
    assert_eq!(rpc.call(b.name(), DOUBLE, 4).await, Ok(8));
    b.shutdown().await;
}

/// Messages small and large arrive in the order of sending.
#[tokio::test]
async fn order_holds_across_sizes() {
    let cookie = Cookie::generate();
    let (a, b) = (node("a", &cookie).await, node("b", &cookie).await);
    let mut inbox = b.mailbox::<Vec<u8>>();
    let there = inbox.address().bind(&a);
    let sending = tokio::spawn(async move {
        for n in 0..60u8 {
            let size = if n % 3 == 0 { 2_000_000 } else { 1 };
            there.send(vec![n; size]).await.unwrap();
        }
    });
    for n in 0..60u8 {
        let message = inbox.recv().await.unwrap();
        assert_eq!(message[0], n);
    }
    sending.await.unwrap();
}

/// A session that ended says so, once, to an address that sent in it.
#[tokio::test]
async fn an_ended_session_says_so() {
    let cookie = Cookie::generate();
    let (a, b) = (node("a", &cookie).await, node("b", &cookie).await);
    let mut inbox = b.mailbox::<u64>();
    let there = inbox.address().bind(&a);
    there.send(1).await.unwrap();
    assert_eq!(inbox.recv().await, Some(1));
    a.cluster().disconnect(b.name()).await;
    assert_eq!(there.send(2).await, Err(SendError::SessionEnded(b.id())));
    there.send(3).await.unwrap();
    assert_eq!(inbox.recv().await, Some(3));
}

/// A message that was accepted in the last moment, as the first of its stream, is still delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_last_survives_the_shutdown() {
    let cookie = Cookie::generate();
    let b = node("b", &cookie).await;
    for round in 0..20 {
        let a = node("a", &cookie).await;
        a.cluster().ping(b.name(), Duration::from_secs(5)).await.unwrap();
        let mut inbox = b.mailbox::<u64>();
        inbox.address().bind(&a).send(round).await.unwrap();
        a.shutdown().await;
        assert_eq!(inbox.recv_timeout(Duration::from_secs(5)).await, Ok(round), "round {round}");
    }
}

/// Nodes named by DNS bind by themselves, and are found by their names.
#[tokio::test]
async fn nodes_named_by_dns_connect() {
    let cookie = Cookie::generate();
    let start = |name: &str| Node::builder(name).cookie(cookie.clone()).start();
    let (a, b) = (start("a@localhost:0").await.unwrap(), start("b@localhost:0").await.unwrap());
    assert_eq!(a.cluster().connect(b.name()).await, Ok(b.id()));
}

/// A mailbox is bounded for its own node too, in messages and in bytes; a message larger than all of that fits alone.
#[tokio::test]
async fn local_sends_are_bounded_in_messages_and_bytes() {
    let mut config = Config::default();
    (config.mailbox_local, config.mailbox_local_bytes) = (10, 1_000_000);
    let start = Node::builder("a@127.0.0.1:0").cookie(Cookie::generate()).config(config).start();
    let node = start.await.unwrap();
    let is_full = |error: SendError| matches!(error, SendError::Full);

    let mut small = node.mailbox::<u8>();
    let to = small.address();
    (0..10).for_each(|n| to.try_send(n).unwrap());
    assert!(is_full(to.try_send(10).unwrap_err().reason().clone()));
    assert_eq!(small.recv().await, Some(0));

    let mut large = node.mailbox::<Vec<Vec<u8>>>();
    let to = large.address();
    (0..3).for_each(|_| to.try_send(vec![vec![0; 150_000]; 2]).unwrap());
    assert!(is_full(to.try_send(vec![vec![0; 150_000]; 2]).unwrap_err().reason().clone()));
    for _ in 0..3 {
        assert!(large.recv().await.is_some());
    }
    to.try_send(vec![vec![0; 2_000_000]]).unwrap();
    assert!(is_full(to.try_send(Vec::new()).unwrap_err().reason().clone()));
    let waiting = tokio::spawn(async move { to.send(Vec::new()).await });
    assert!(large.recv().await.is_some());
    assert_eq!(waiting.await.unwrap(), Ok(()));
    assert_eq!(large.recv().await, Some(Vec::new()));
}
