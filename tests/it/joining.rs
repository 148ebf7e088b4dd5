//! What a node learns of those by whom it joins.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use distribute::{AuthError, ConnectError, Contact, Cookie, Discovery, JoinOutcome, Node};
use tokio::time::Instant;

use crate::common::{World, ip, millis, secs};

fn place(host: u8) -> Contact {
    Contact::Node(format!("n@10.0.0.{host}:4370").parse().unwrap())
}

/// Each is told apart: who answered, the stranger, the host that is off, this node itself, and one that came first.
#[tokio::test(start_paused = true)]
async fn a_report_says_who_answered_and_why_the_others_did_not() {
    let world = World::new(1);
    let one = world.node("n", 1).await;
    let two = world.builder("n", 2).join(one.name()).start().await.unwrap();
    two.ready().await.unwrap();
    let stranger = Node::builder("n@10.0.0.3").cookie(Cookie::generate()).network(world.fabric.host(ip(3)));
    let _stranger = stranger.start().await.unwrap();

    let names = [1, 2, 3, 4, 5].map(|host| format!("n@10.0.0.{host}"));
    let builder = names.iter().fold(world.builder("n", 5), |builder, name| builder.join(name.as_str()));
    let node = builder.start().await.unwrap();
    let begun = Instant::now();
    let early = node.join_report(millis(1000)).await;
    assert_eq!(begun.elapsed(), secs(1), "it waits as long as it is told");
    assert_eq!(early.pending().collect::<Vec<_>>(), [&place(4)], "{early:?}");
    let report = node.join_report(secs(60)).await;
    assert!((secs(5)..secs(6)).contains(&begun.elapsed()), "a dial to nobody takes {:?}", begun.elapsed());

    let [of_one, of_two, of_stranger, of_nobody, of_itself] = &report.places[..] else { panic!("{report:?}") };
    assert_eq!(of_nobody, &(place(4), JoinOutcome::Failed(ConnectError::Timeout(secs(5)))));
    assert_eq!(of_stranger, &(place(3), JoinOutcome::Failed(ConnectError::Auth(AuthError::WrongCookie))));
    assert_eq!(of_itself, &(place(5), JoinOutcome::Itself));
    for (outcome, host) in [(of_one, 1), (of_two, 2)] {
        assert_eq!(outcome.0, place(host));
        assert!(matches!(outcome.1, JoinOutcome::Answered { .. } | JoinOutcome::Member), "{outcome:?}");
    }
    let (first, after) = report.answered().next().expect("one of them answered");
    assert!([one.name(), two.name()].contains(&first) && after < secs(1), "{first} {after:?}");
    assert_eq!(report.failed().map(|(place, _)| place.clone()).collect::<Vec<_>>(), [place(3), place(4)]);
    assert_eq!(report.pending().count(), 0);
}

/// Whoever comes up later is in a later report.
#[tokio::test(start_paused = true)]
async fn a_report_tells_the_latest() {
    let world = World::new(2);
    let node = world.builder("n", 1).join("n@10.0.0.2").start().await.unwrap();
    let report = node.join_report(secs(60)).await;
    assert_eq!(report.places, [(place(2), JoinOutcome::Failed(ConnectError::Timeout(secs(5))))]);
    let late = world.node("n", 2).await;
    node.membership().wait_for_alive(2).await.unwrap();
    let report = node.join_report(secs(60)).await;
    let [(_, JoinOutcome::Answered { node: answered, after, .. })] = &report.places[..] else { panic!("{report:?}") };
    assert!(answered == late.name() && *after >= secs(5), "{report:?}");
    node.shutdown().await;
    assert_eq!(node.join_report(secs(60)).await, report, "it is what it was");
}

/// A node that has nobody to join waits for nothing; one that is shut down meanwhile does not either.
#[tokio::test(start_paused = true)]
async fn a_report_never_waits_in_vain() {
    let world = World::new(3);
    let begun = Instant::now();
    assert_eq!(world.node("n", 1).await.join_report(secs(60)).await.places, []);
    assert_eq!(begun.elapsed(), secs(0));
    let node = world.builder("n", 2).join("n@10.0.0.9").start().await.unwrap();
    let (report, ()) = tokio::join!(node.join_report(secs(60)), async {
        tokio::time::sleep(secs(1)).await;
        node.shutdown().await;
    });
    assert!(begun.elapsed() < secs(5), "{:?}", begun.elapsed());
    assert_eq!(report.places, [(place(9), JoinOutcome::Failed(ConnectError::Shutdown))]);
}

/// Places that somebody wrote down.
struct List(Arc<Mutex<Vec<Contact>>>);

impl Discovery for List {
    fn contacts(&self) -> Pin<Box<dyn Future<Output = io::Result<Vec<Contact>>> + Send + '_>> {
        Box::pin(async { Ok(self.0.lock().unwrap().clone()) })
    }
}

/// Addresses, of which nobody said whose they are, are in the report with who answered.
#[tokio::test(start_paused = true)]
async fn places_that_were_discovered_are_in_the_report() {
    let world = World::new(4);
    let one = world.node("n", 1).await;
    let at = |host| Contact::Address((ip(host), 4370).into());
    let list = List(Arc::new(Mutex::new(vec![at(1), at(2), at(9)])));
    let node = world.builder("n", 2).discover(list).start().await.unwrap();
    let report = node.join_report(secs(60)).await;
    let outcome = |host| &report.places.iter().find(|(place, _)| *place == at(host)).expect("it is there").1;
    assert!(matches!(outcome(1), JoinOutcome::Answered { node, .. } if node == one.name()), "{report:?}");
    assert_eq!(outcome(2), &JoinOutcome::Itself);
    assert_eq!(outcome(9), &JoinOutcome::Failed(ConnectError::Timeout(secs(5))));
}
