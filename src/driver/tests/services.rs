//! The service channel of a session: between good nodes, and what a member may do wrong with it.

use std::collections::BTreeSet;

use super::fake::{Fake, Frames, Joined, closed, service_frame};
use super::*;
use crate::driver::Command;
use crate::driver::session::Session;
use crate::proto::node::services::Input;
use crate::transport::link::Sender;
use crate::wire::services::monitor::{CUTS_MAX, Cut, Gone};
use crate::wire::services::replication::Mine;
use crate::wire::services::{Monitor, NUMBERED_MAX, Replication, Service};
use crate::wire::{Code, Control, StreamKind, put_varint};

const SERVICES: &[u8] = &[7];

/// Whom nobody watches: it means nothing to its receiver, and says which it is.
fn mark(n: u64) -> Service {
    Service::Monitor(Monitor::Unwatch { serial: n, mailbox: None })
}

fn marks(numbers: std::ops::Range<u64>) -> Vec<u8> {
    numbers.flat_map(|n| service_frame(n, &mark(n))).collect()
}

/// The marks that a node has heard, of everybody.
fn heard(node: &Node) -> Vec<u64> {
    marks_of(&node.shared().told.borrow())
}

fn marks_of(told: &[Input]) -> Vec<u64> {
    let mark = |input: &Input| match input {
        Input::Frame { frame: Service::Monitor(Monitor::Unwatch { serial, mailbox: None }), .. } => Some(*serial),
        _ => None,
    };
    told.iter().filter_map(mark).collect()
}

/// Waits until a node has heard so many marks.
async fn hears(node: &Node, many: usize) -> Vec<u64> {
    let mut told = node.shared().told.subscribe();
    let heard = told.wait_for(|told| marks_of(told).len() >= many);
    let heard = timeout(secs(60), heard).await.expect("the marks arrive").unwrap();
    marks_of(&heard)
}

/// Waits until a node was told that one of its mailboxes is gone.
async fn told_closed(node: &Node, mailbox: u64) -> Gone {
    let closed = |told: &[Input]| {
        told.iter().find_map(|input| match input {
            Input::Closed { serial, gone, .. } if *serial == mailbox => Some(*gone),
            _ => None,
        })
    };
    let mut told = node.shared().told.subscribe();
    let told = timeout(secs(60), told.wait_for(|told| closed(told).is_some())).await.expect("it is told").unwrap();
    closed(&told).unwrap()
}

async fn two() -> (Fabric, Node, Node) {
    let fabric = Fabric::new(7);
    let cookie = Cookie::generate();
    let a = node(&fabric, &cookie, "a@10.0.0.1:4370", Config::default()).await;
    let b = node(&fabric, &cookie, "b@10.0.0.2:4370", Config::default()).await;
    b.cluster().connect(a.name()).await.unwrap();
    // Until A has the session too.
    a.cluster().connect(b.name()).await.unwrap();
    (fabric, a, b)
}

fn session(of: &Node, with: &Node) -> Arc<Session> {
    of.shared().session(with.name()).expect("a session")
}

/// Waits until the session has no link, or has one.
async fn is_linked(session: &Session, expected: bool) {
    let waiting = async {
        while session.carrier().is_some() != expected {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(secs(120), waiting).await.expect("it comes, or goes");
}

/// The first link idles out, and what is said then has the next dialled.
#[tokio::test(start_paused = true)]
async fn frames_keep_their_order_over_links_that_come_and_go() {
    let (_fabric, a, b) = two().await;
    let to_a = session(&b, &a);
    for n in 0..300 {
        assert!(to_a.push_service(mark(n)));
    }
    assert_eq!(hears(&a, 300).await, (0..300).collect::<Vec<_>>());
    is_linked(&to_a, false).await;
    for n in 300..600 {
        assert!(to_a.push_service(mark(n)));
    }
    assert_eq!(hears(&a, 600).await, (0..600).collect::<Vec<_>>());
    assert!(Arc::ptr_eq(&to_a, &session(&b, &a)), "it is one session");
}

/// Frames are queued shortly before the link idles out, while it stops, and after that.
#[tokio::test(start_paused = true)]
async fn what_is_said_while_a_link_stops_arrives() {
    let (_fabric, a, b) = two().await;
    let to_a = session(&b, &a);
    let mut links = BTreeSet::new();
    let mut said = 0;
    for round in 0..60 {
        for _ in 0..20 {
            to_a.push_service(mark(said));
            said += 1;
            tokio::task::yield_now().await;
        }
        is_linked(&to_a, true).await;
        assert_eq!(hears(&a, said as usize).await, (0..said).collect::<Vec<_>>());
        links.extend(to_a.carrier().map(|carrier| carrier.id));
        sleep(Duration::from_millis(59_850 + 5 * round)).await;
    }
    assert!((2..60).contains(&links.len()), "some found the link at work, and some did not: {}", links.len());
    assert!(Arc::ptr_eq(&to_a, &session(&b, &a)), "it is one session");
}

/// A node says its last, and goes in good order: all of it was heard when its session ends.
#[tokio::test(start_paused = true)]
async fn what_was_said_is_heard_before_the_session_ends() {
    let (_fabric, a, b) = two().await;
    let mut events = a.cluster().node_events();
    let to_a = session(&b, &a);
    for n in 0..2000 {
        to_a.push_service(mark(n));
    }
    let gone = b.id();
    b.shutdown().await;
    loop {
        if timeout(secs(60), events.next()).await.unwrap().unwrap() == NodeEvent::Down(gone.clone(), DownReason::Left) {
            break;
        }
    }
    assert_eq!(heard(&a), (0..2000).collect::<Vec<_>>());
}

/// The node task is kept busy until the link that brought them has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_waits_for_a_busy_node_is_heard_before_its_link_ends() {
    let (_fabric, a, b) = two().await;
    let mut events = a.cluster().node_events();
    let (to_a, gone) = (session(&b, &a), b.id());
    let link = session(&a, &b).carrier().unwrap().link.clone();
    // The link's tasks are at work, and none of them waits for the thread that is about to be held.
    to_a.push_service(mark(20));
    assert_eq!(hears(&a, 1).await, [20]);
    a.cluster().ping(b.name(), secs(60)).await.unwrap();
    b.cluster().ping(a.name(), secs(60)).await.unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (held, is_held) = tokio::sync::oneshot::channel();
    let shared = a.shared().clone();
    let holder = std::thread::spawn(move || {
        let _wanted = lock(&shared.wanted);
        held.send(()).unwrap();
        let _ = released.recv();
    });
    is_held.await.unwrap();
    a.shared().command(Command::Connect { peer: b.name().clone(), urgent: false, done: None });
    for n in 0..20 {
        to_a.push_service(mark(n));
    }
    let stopping = tokio::spawn(async move { b.shutdown().await });
    timeout(secs(60), link.closed()).await.expect("it ends without the node task");
    // Its task reports that right away; should it be late, there is nothing to see.
    sleep(Duration::from_millis(50)).await;
    assert_eq!(heard(&a), [20]);
    release.send(()).unwrap();
    holder.join().unwrap();
    let end = NodeEvent::Down(gone, DownReason::Left);
    while timeout(secs(60), events.next()).await.expect("it ends").unwrap() != end {}
    assert_eq!(heard(&a)[1..], (0..20).collect::<Vec<_>>());
    stopping.await.unwrap();
}

/// A cut says how many messages the lane of a mailbox had been given.
#[tokio::test(start_paused = true)]
async fn cuts_are_filled_in_where_messages_have_their_numbers() {
    let (_fabric, a, b) = two().await;
    let (mut talked_to, silent) = (a.mailbox::<u64>(), a.mailbox::<u64>());
    let to = talked_to.address().bind(&b);
    for n in 0..3 {
        to.send(n).await.unwrap();
    }
    let cut = |mailbox: &Mailbox<u64>| Cut { mailbox: mailbox.pid().serial(), number: 99 };
    let cuts = vec![cut(&talked_to), cut(&silent)];
    let down = |gone, cuts| Service::Monitor(Monitor::Down { serial: 5, gone, cuts });
    let to_a = session(&b, &a);
    to_a.push_service(down(Gone::Panicked, cuts));
    to.send(3).await.unwrap();
    to_a.push_service(down(Gone::Closed, vec![cut(&talked_to)]));
    to_a.push_service(down(Gone::Closed, vec![]));
    // More than one frame holds.
    let many = (0..=CUTS_MAX as u64).map(|n| Cut { mailbox: 1000 + n, number: 0 }).collect::<Vec<_>>();
    to_a.push_service(down(Gone::Closed, many.clone()));
    to_a.push_service(mark(0));
    hears(&a, 1).await;
    let downs: Vec<_> = a
        .shared()
        .told
        .borrow()
        .iter()
        .filter_map(|input| match input {
            Input::Frame { frame: frame @ Service::Monitor(Monitor::Down { .. }), from } if *from == b.id() => {
                Some(frame.clone())
            }
            _ => None,
        })
        .collect();
    let at = |mailbox: &Mailbox<u64>, number| Cut { mailbox: mailbox.pid().serial(), number };
    assert_eq!(
        downs,
        [
            down(Gone::Panicked, vec![at(&talked_to, 3), at(&silent, 0)]),
            down(Gone::Closed, vec![at(&talked_to, 4)]),
            down(Gone::Closed, vec![]),
            down(Gone::Closed, many[..CUTS_MAX].to_vec()),
            down(Gone::Closed, many[CUTS_MAX..].to_vec()),
        ]
    );
    for n in 0..4 {
        assert_eq!(talked_to.recv().await, Some(n));
    }
}

/// As long as somebody watches, the link asks; then it idles out.
#[tokio::test(start_paused = true)]
async fn a_link_with_watches_is_kept_and_asked() {
    let (fabric, a, b) = two().await;
    let to_b = session(&a, &b);
    to_b.armed(2);
    let link = to_b.carrier().unwrap().id;
    sleep(secs(600)).await;
    assert_eq!(to_b.carrier().map(|carrier| carrier.id), Some(link), "neither side has closed it");
    assert!(session(&b, &a).carrier().is_some());
    to_b.armed(0);
    is_linked(&to_b, false).await;

    // Now from the other state: watches that are armed without a link have one dialled, and its end is noticed.
    to_b.armed(1);
    to_b.push_service(mark(0));
    is_linked(&to_b, true).await;
    hears(&b, 1).await;
    let mut events = a.cluster().node_events();
    fabric.cut(a.local_addr().ip(), b.local_addr().ip());
    let lost =
        timeout(secs(20), async { while events.next().await.unwrap() != NodeEvent::Down(b.id(), DownReason::Lost) {} });
    lost.await.expect("the link is asked, and does not answer");
}

/// Frames of a peer that reads nothing are bounded.
#[tokio::test(start_paused = true)]
async fn what_waits_for_a_peer_is_bounded() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let session = world.a.shared().session(fake.name()).unwrap();
    let large = Service::Replication(Replication::Status {
        scopes: vec![Mine { scope: "s".repeat(60).into(), version: 1, digest: 1 }; 900],
    });
    let mut taken = 0;
    while session.push_service(large.clone()) {
        taken += 1;
        assert!(taken < 1000, "there is no end");
    }
    assert!(taken > 200, "{taken}");
    drop(session);
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    world.is_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn a_tracked_mailbox_is_told_when_it_closes() {
    let (_fabric, a, _b) = two().await;
    let (tracked, other, panics) = (a.mailbox::<u64>(), a.mailbox::<u64>(), a.mailbox::<u64>());
    let [tracked_serial, other_serial, panics_serial] =
        [&tracked, &other, &panics].map(|mailbox| mailbox.pid().serial());
    let mailboxes = &a.shared().mailboxes;
    assert!(mailboxes.track(tracked_serial) && mailboxes.track(tracked_serial) && mailboxes.track(panics_serial));
    drop(other);
    drop(tracked);
    assert_eq!(told_closed(&a, tracked_serial).await, Gone::Closed);
    assert!(!mailboxes.track(tracked_serial) && !mailboxes.track(other_serial), "they are gone");
    let panicked = std::thread::spawn(move || {
        let _panics = panics;
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.join().is_err());
    assert_eq!(told_closed(&a, panics_serial).await, Gone::Panicked);
    let told = a.shared().told.borrow().iter().filter(|input| matches!(input, Input::Closed { .. })).count();
    assert_eq!(told, 2, "each once, and nothing of who was not asked for");
}

/// Either the mailbox was tracked, and its end is told, or it was gone.
#[tokio::test(start_paused = true)]
async fn a_mailbox_that_closes_while_it_is_tracked_is_told_or_refused() {
    let (_fabric, a, _b) = two().await;
    let mut tracked = Vec::new();
    for _ in 0..300 {
        let mailbox = a.mailbox::<u64>();
        let serial = mailbox.pid().serial();
        let closing = std::thread::spawn(move || drop(mailbox));
        if a.shared().mailboxes.track(serial) {
            tracked.push(serial);
        }
        closing.join().unwrap();
    }
    for serial in &tracked {
        told_closed(&a, *serial).await;
    }
    let told = a.shared().told.borrow().iter().filter(|input| matches!(input, Input::Closed { .. })).count();
    assert_eq!(told, tracked.len());
}

/// A member writes what it likes on the stream of its services: its session ends, and nobody else notices.
#[tokio::test(start_paused = true)]
async fn garbage_among_service_frames_ends_the_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let framed = |kind: u8, body: &[u8]| {
        let mut bytes = vec![kind];
        put_varint(&mut bytes, body.len() as u64);
        [&bytes, body].concat()
    };
    let announced = |len: u64| {
        let mut bytes = vec![0x8f];
        put_varint(&mut bytes, len);
        bytes
    };
    let protocol = |what, parts: &[&[u8]]| (what, parts.concat(), Code::PROTOCOL);
    let attacks = vec![
        protocol("noise", &[&[0x1d; 100]]),
        protocol("an empty frame", &[&framed(0x8f, &[])]),
        protocol("a number and nothing else", &[&framed(0x8f, &[0])]),
        protocol("a service frame without its number", &[&framed(0x80, &[])]),
        protocol("an unknown service", &[&framed(0x8f, &[0, 0xa3, 0])]),
        protocol("a length beyond the frame", &[&framed(0x8f, &[0, 0x80, 1])]),
        protocol("a frame that goes on", &[&framed(0x8f, &[0, 0x80, 0, 0])]),
        protocol("READY that says more", &[&framed(0x8f, &[0, 0x80, 1, 0])]),
        protocol("a name without letters", &[&framed(0x8f, &[0, 0x90, 6, 0, 0, 3, 0, 0, 9])]),
        protocol("entries that go back", &[&framed(0x8f, &[0, 0x82, 4, 0, 0, 5, 4])]),
        protocol("a good one and a bad one", &[&marks(0..1), &framed(0x8f, &[1, 0xa0, 1, 5])]),
        protocol("the first again", &[&marks(0..1), &marks(0..1)]),
        protocol("an early one again", &[&marks(5..6), &marks(5..6)]),
        protocol("4097 early ones", &[&marks(1..4098)]),
        ("a frame over the limit", announced(NUMBERED_MAX as u64 + 1), Code::FRAME_TOO_LARGE),
        ("the longest of all", announced((1 << 62) - 1), Code::FRAME_TOO_LARGE),
    ];
    for (what, bytes, code) in attacks {
        let joined = fake.join(&world.a).await;
        let _stream = joined.open(&[SERVICES, &bytes].concat()).await;
        ends(&mut world, &fake, &joined, what, code).await;
    }
    assert_eq!(heard(&world.a), [0, 0], "the good beginnings");
    world.is_unharmed().await;
}

async fn ends(world: &mut World, fake: &Fake, joined: &Joined, what: &str, code: Code) {
    assert_eq!(closed(&joined.link).await.code, code, "{what}");
    world.up_and_down(&fake.id, DownReason::Protocol, what).await;
    world.talk().await;
}

/// Large ones: what is early is bounded in bytes too.
#[tokio::test(start_paused = true)]
async fn a_flood_of_early_frames_ends_the_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    let mut stream = joined.open(SERVICES).await;
    let large = Service::Replication(Replication::Status {
        scopes: vec![Mine { scope: "s".repeat(60).into(), version: 1, digest: 1 }; 900],
    });
    let flooding = async {
        for number in 1..4000 {
            if stream.write(&service_frame(number, &large)).await.is_err() {
                return number;
            }
        }
        panic!("it is taken without end");
    };
    let written = timeout(secs(60), flooding).await.expect("it is read");
    assert!((64..256).contains(&written), "{written}");
    ends(&mut world, &fake, &joined, "a flood", Code::PROTOCOL).await;
    world.is_unharmed().await;
}

/// As many as may wait do, and all are heard once the first is there.
#[tokio::test(start_paused = true)]
async fn early_frames_are_heard_in_their_turn_also_from_another_stream() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let early = joined.open(&[SERVICES, &marks(1..4097)].concat()).await;
    assert!(joined.answers(1).await);
    world.talk().await;
    assert!(heard(&world.a).is_empty());
    let first = joined.open(&[SERVICES, &marks(0..1)].concat()).await;
    assert_eq!(hears(&world.a, 4097).await, (0..4097).collect::<Vec<_>>());
    // One that may be skipped takes its turn.
    let mut unknown = vec![0x8f, 5];
    put_varint(&mut unknown, 4097);
    unknown.extend([0xc3, 1, 7]);
    let mut early = early;
    early.write(&[unknown, marks(4098..4099)].concat()).await.unwrap();
    assert_eq!(hears(&world.a, 4098).await.last(), Some(&4098));
    leaves(&mut world, &fake, joined, vec![early, first]).await;
    world.is_unharmed().await;
}

async fn leaves(world: &mut World, fake: &Fake, joined: Joined, streams: Vec<Sender>) {
    drop(streams);
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
}

/// Two dials have crossed: the frames of one link follow those of the other.
#[tokio::test(start_paused = true)]
async fn frames_of_two_links_are_one_sequence() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let first = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let known = world.a.id().incarnation();
    let second = fake.join_as(&world.a, |hello| hello.known_incarnation = known).await.expect("of the same session");
    let mut on_second = second.open(&[SERVICES, &marks(2..4)].concat()).await;
    world.talk().await;
    assert!(heard(&world.a).is_empty(), "they are early");
    let mut on_first = first.open(&[SERVICES, &marks(0..1)].concat()).await;
    assert_eq!(hears(&world.a, 1).await, [0]);
    on_first.write(&marks(1..2)).await.unwrap();
    assert_eq!(hears(&world.a, 4).await, [0, 1, 2, 3]);
    on_second.write(&marks(3..4)).await.unwrap();
    assert_eq!(closed(&second.link).await.code, Code::PROTOCOL, "a number of the other link");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Protocol));
    drop((first, on_first));
    world.is_unharmed().await;
}

/// The link that brought them is gone in good order, and one that is missing does not come.
#[tokio::test(start_paused = true)]
async fn a_gap_that_stays_ends_the_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    for turn in 0..2 {
        let bytes = if turn == 0 { marks(1..2) } else { Vec::new() };
        joined.open(&[SERVICES, &bytes].concat()).await.finish();
        joined.control(Control::Stop { code: Code::IDLE, streams: 1 }).await;
        while let Some(frame) = joined.frames.next_control().await {
            match frame {
                Control::Stop { .. } => joined.control(Control::Stopped).await,
                Control::Ping { seq } => joined.control(Control::Pong { seq }).await,
                _ => {}
            }
        }
        if turn == 0 {
            // The node may still be owed it, and asks.
            joined = fake.admit().await;
        }
    }
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    assert!(heard(&world.a).is_empty());
    world.is_unharmed().await;
}

/// A flood of good frames takes only as much room as one link has, and the pair talks on.
#[tokio::test(start_paused = true)]
async fn a_flood_of_good_frames_harms_nobody() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let mut stream = joined.open(SERVICES).await;
    for turn in 0..50 {
        stream.write(&marks(1000 * turn..1000 * (turn + 1))).await.unwrap();
        if turn % 10 == 0 {
            world.talk().await;
        }
    }
    let heard = hears(&world.a, 50_000).await;
    assert!(heard.is_sorted() && heard.len() == 50_000);
    leaves(&mut world, &fake, joined, vec![stream]).await;
    world.is_unharmed().await;
}

/// What a node says can be read as it was said.
#[tokio::test(start_paused = true)]
async fn a_node_numbers_its_frames_from_0() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let session = world.a.shared().session(fake.name()).unwrap();
    session.push_service(mark(7));
    session.push_service(mark(8));
    let mut frames = loop {
        let mut frames = Frames::new(joined.link.accept().await.unwrap(), NUMBERED_MAX);
        frames.begin().await.unwrap();
        if frames.kind() == Some(StreamKind::Services) {
            break frames;
        }
    };
    let mut next = 0;
    let mut read = Vec::new();
    while read.len() < 2 {
        let frame = frames.next().await.unwrap();
        let (number, frame) = crate::wire::services::numbered(frame).unwrap().unwrap();
        assert_eq!(number, next);
        next += 1;
        read.extend(Service::decode(frame).unwrap().filter(|service| *service == mark(7) || *service == mark(8)));
    }
    assert_eq!(read, [mark(7), mark(8)]);
    drop(session);
    leaves(&mut world, &fake, joined, vec![]).await;
    world.is_unharmed().await;
}
