//! Many honest nodes behind one address, and a stranger among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use distribute::{AuthError, ConnectError, Cookie, Node};
use tokio::task::JoinSet;

/// Fifty nodes of one address dial one node at once, beside one that has another cookie and never stops trying. None of
/// the fifty is shut out, then or afterwards.
#[tokio::test]
async fn honest_nodes_behind_one_address_are_not_shut_out() {
    const NODES: usize = 50;
    let cookie = Cookie::generate();
    let start = |cookie: &Cookie| Node::builder("n@127.0.0.1:0").cookie(cookie.clone()).start();
    let hub = start(&cookie).await.unwrap();
    let neighbour = start(&cookie).await.unwrap();
    assert_eq!(neighbour.cluster().connect(hub.name()).await, Ok(hub.id()));

    let (is_over, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let stranger = start(&Cookie::generate()).await.unwrap();
    let mut tries = JoinSet::new();
    for _ in 0..2 {
        let (stranger, hub, is_over, refused) =
            (stranger.clone(), hub.name().clone(), is_over.clone(), refused.clone());
        tries.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let error = stranger.cluster().connect(&hub).await.unwrap_err();
                assert!(
                    matches!(error, ConnectError::Auth(AuthError::WrongCookie) | ConnectError::Timeout(_)),
                    "{error:?}"
                );
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while refused.load(Ordering::Relaxed) < 30 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let mut dials = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..NODES {
        let node = start(&cookie).await.unwrap();
        let hub = hub.name().clone();
        dials.spawn(async move {
            let dialled = Instant::now();
            let connected = node.cluster().connect(&hub).await;
            (node, connected, dialled.elapsed())
        });
    }
    let dialled = dials.join_all().await;
    is_over.store(true, Ordering::Relaxed);
    let slowest = dialled.iter().map(|(_, _, took)| *took).max().unwrap();
    let counters = hub.cluster().admission();
    println!(
        "{NODES} nodes were linked within {:?}, the slowest dial took {slowest:?}, beside {refused:?} failures; {counters:?}",
        begun.elapsed()
    );
    for (_, connected, _) in &dialled {
        assert_eq!(connected.as_ref(), Ok(&hub.id()));
    }
    assert!(counters.sources_ignored > 0, "the stranger was noticed: {counters:?}");
    assert_eq!(counters.ignored_failing, 0, "and a member is known at its address: {counters:?}");
    for (node, ..) in dialled {
        drop(node);
    }
}
