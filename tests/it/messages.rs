//! Messages to mailboxes, over real sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use distribute::{
    Address, Bytes, Config, Cookie, DecodeError, DownReason, Effect, EncodeError, Mailbox, Message, Node, NodeEvent,
    RecvError, RefusedMessage, SendError, Trace,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(10);

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

/// The same mailbox, as a binary that means another type by its address.
fn known_as<A: Message, B: Message>(address: &Address<A>, node: &Node) -> Address<B> {
    let text = serde_json::to_string(address).unwrap();
    serde_json::from_str::<Address<B>>(&text).unwrap().bind(node)
}

/// 64 messages of 32 KiB, then 32 of 64 KiB, on this side and on the other of what travels on its own stream: the count
/// and the bytes are exact.
#[tokio::test]
async fn counts_and_bytes_are_exact() {
    let (a, b) = pair().await;
    for (count, size) in [(64, 32 << 10), (32, 64 << 10)] {
        let mut inbox = b.mailbox::<Vec<u8>>();
        let there = inbox.address().bind(&a);
        let sending = tokio::spawn(async move { there.send_all((0..count).map(|n| vec![n; size])).await });
        let mut bytes = 0;
        for n in 0..count {
            let message = inbox.recv_timeout(SOON).await.unwrap();
            assert!(message.iter().all(|byte| *byte == n));
            bytes += message.len();
        }
        sending.await.unwrap().unwrap();
        assert_eq!(bytes, usize::from(count) * size);
        assert_eq!(inbox.try_recv(), Err(RecvError::Empty));
    }
}

/// One message of 16,384 chunks of 65 random bytes comes back equal.
#[tokio::test]
async fn a_message_of_many_chunks_comes_back_equal() {
    type Chunks = Vec<Vec<u8>>;
    let (a, b) = pair().await;
    let (mut home, mut mirror) = (a.mailbox::<Chunks>(), b.mailbox::<(Address<Chunks>, Chunks)>());
    let mut rng = fastrand::Rng::with_seed(83);
    let chunks: Chunks = (0..16_384).map(|_| (0..65).map(|_| rng.u8(..)).collect()).collect();
    mirror.address().bind(&a).send((home.address(), chunks.clone())).await.unwrap();
    let (back, seen) = mirror.recv_timeout(SOON).await.unwrap();
    back.send(seen).await.unwrap();
    assert!(home.recv_timeout(SOON).await.unwrap() == chunks);
}

/// 1 B and 8 MiB in turn, to one mailbox, arrive in the order of sending.
#[tokio::test]
async fn least_and_largest_keep_their_order() {
    let (a, b) = pair().await;
    let mut inbox = b.mailbox::<Bytes>();
    let there = inbox.address().bind(&a);
    let body = |n: u8| Bytes::from(vec![n; if n.is_multiple_of(2) { 1 } else { 8 << 20 }]);
    let sending = tokio::spawn(async move { there.send_all((0..20).map(body)).await });
    for n in 0..20 {
        assert!(inbox.recv_timeout(SOON).await.unwrap() == body(n), "message {n}");
    }
    sending.await.unwrap().unwrap();
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Circle { radius: f64 },
    Polygon(Vec<(i32, i32)>),
    Group(Box<Self>, Box<Self>),
}

/// A bit of everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rich {
    number: i128,
    text: String,
    maybe: Option<Option<bool>>,
    map: BTreeMap<String, Vec<char>>,
    shapes: [Shape; 3],
    outcome: Result<(), String>,
    bytes: Bytes,
    time: Duration,
    home: Address<u64>,
}

impl Message for Rich {
    const TAG: &'static str = "test.rich";
    const VERSION: u32 = 1;
}

fn rich(home: &Mailbox<u64>) -> Rich {
    let group = Shape::Group(Box::new(Shape::Circle { radius: -0.0 }), Box::new(Shape::Nothing));
    Rich {
        number: i128::MIN,
        text: "naïve 🦀\0".to_owned(),
        maybe: Some(None),
        map: [(String::new(), vec![]), ("ß".to_owned(), vec!['\u{10ffff}', 'a'])].into(),
        shapes: [Shape::Nothing, Shape::Polygon(vec![(i32::MIN, 0), (7, i32::MAX)]), group],
        outcome: Err("as told".to_owned()),
        bytes: vec![0xff; 70_000].into(),
        time: Duration::new(7, 999_999_999),
        home: home.address(),
    }
}

/// The first send of all, to a node without a link, brings the same as later ones. When the session was ended, its address
/// says so once and delivers with the next send; one that was stored delivers at once.
#[tokio::test]
async fn the_first_send_and_the_one_after_an_end_bring_the_same() {
    let (a, b) = pair().await;
    let (mut home, mut inbox) = (a.mailbox::<u64>(), b.mailbox::<Rich>());
    let there = inbox.address().bind(&a);
    let stored = serde_json::to_string(&there).unwrap();
    let message = rich(&home);
    let mut events = a.cluster().node_events();
    let mut arrives = async |n: u64| {
        let received = inbox.recv_timeout(SOON).await.unwrap();
        assert_eq!(received, message);
        received.home.send(n).await.unwrap();
        assert_eq!(home.recv_timeout(SOON).await, Ok(n), "the address in it works");
    };
    assert_eq!(a.cluster().peers(), []);
    there.send(message.clone()).await.unwrap();
    arrives(1).await;
    there.send(message.clone()).await.unwrap();
    arrives(2).await;

    b.cluster().disconnect(a.name()).await;
    assert_eq!(events.next().await, Some(NodeEvent::Up(b.id())));
    assert_eq!(events.next().await, Some(NodeEvent::Down(b.id(), DownReason::Disconnected)));
    assert_eq!(there.send(message.clone()).await, Err(SendError::SessionEnded(b.id())));
    there.send(message.clone()).await.unwrap();
    arrives(3).await;

    b.cluster().disconnect(a.name()).await;
    while events.next().await != Some(NodeEvent::Down(b.id(), DownReason::Disconnected)) {}
    let restored: Address<Rich> = serde_json::from_str(&stored).unwrap();
    restored.bind(&a).send(message.clone()).await.unwrap();
    arrives(4).await;
}

/// The largest message arrives; one byte more is refused here, also where only the peer takes no more, and nothing of it
/// is sent.
#[tokio::test]
async fn a_message_too_large_is_refused_before_it_is_sent() {
    const MIB: usize = 1 << 20;
    let cookie = Cookie::generate();
    let mut less = Config::default();
    less.message_max = MIB;
    let a = node("a", &cookie).await;
    for (config, max) in [(Config::default(), 16 * MIB), (less, MIB)] {
        let b = node_with("b", &cookie, config).await;
        let mut inbox = b.mailbox::<Bytes>();
        let there = inbox.address().bind(&a);
        let too_large = Bytes::from(vec![1; max + 1]);
        let error = SendError::TooLarge { size: max + 1, max };
        for _ in 0..2 {
            assert_eq!(there.send(too_large.clone()).await.as_ref(), Err(&error));
            assert_eq!(error.effect(), Effect::NotDone);
        }
        if max == 16 * MIB {
            assert_eq!(a.cluster().peers(), [], "for that nobody is dialled");
        }
        let largest = Bytes::from(vec![2; max]);
        there.send(largest.clone()).await.unwrap();
        let refused = there.try_send(too_large.clone()).unwrap_err();
        assert_eq!(refused.reason(), &error);
        assert_eq!(refused.into_message(), too_large);
        there.send(Bytes::from_static(b"end")).await.unwrap();
        assert!(inbox.recv_timeout(SOON).await.unwrap() == largest);
        assert_eq!(inbox.recv_timeout(SOON).await.as_deref(), Ok(&b"end"[..]));
    }
}

/// A value without an encoding is an error of its send, and of nothing else.
#[tokio::test]
async fn what_cannot_be_encoded_is_not_sent() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Even(#[serde(serialize_with = "only_even")] u64);
    fn only_even<S: serde::Serializer>(n: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        if n.is_multiple_of(2) { serializer.serialize_u64(*n) } else { Err(serde::ser::Error::custom("it is odd")) }
    }
    impl Message for Even {
        const TAG: &'static str = "test.even";
        const VERSION: u32 = 1;
    }
    let (a, b) = pair().await;
    let mut inbox = b.mailbox::<Even>();
    let there = inbox.address().bind(&a);
    there.send(Even(2)).await.unwrap();
    let error = there.send(Even(3)).await.unwrap_err();
    assert!(matches!(&error, SendError::Encode(why) if why.contains("odd")), "{error:?}");
    assert_eq!(there.try_send(Even(5)).unwrap_err().into_message(), Even(5));
    there.send(Even(4)).await.unwrap();
    assert_eq!(inbox.recv_timeout(SOON).await, Ok(Even(2)));
    assert_eq!(inbox.recv_timeout(SOON).await, Ok(Even(4)));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    id: u64,
    text: String,
}

impl Message for Note {
    const TAG: &'static str = "test.note";
    const VERSION: u32 = 1;
}

/// Says that it is a note, and is none.
#[derive(Serialize, Deserialize)]
struct Garbled;

impl Message for Garbled {
    const TAG: &'static str = "test.note";
    const VERSION: u32 = 1;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(&[7, 200, 0xff, 0xff]);
        Ok(())
    }
}

/// A message that does not decode is skipped, told to the hook and counted, once on each side; the link and what is sent
/// around it are as before.
#[tokio::test]
async fn a_message_that_does_not_decode_is_skipped_and_counted_once() {
    let cookie = Cookie::generate();
    let a = node("a", &cookie).await;
    let (tells, mut told) = mpsc::unbounded_channel();
    let hook = move |refused: &RefusedMessage| tells.send(refused.clone()).unwrap();
    let b = Node::builder("b@127.0.0.1:0").cookie(cookie).on_refused(hook).start().await.unwrap();
    let mut events = a.cluster().node_events();
    let mut inbox = b.mailbox::<Note>();
    let there = inbox.address().bind(&a);
    assert_eq!(a.cluster().refusals(b.name()), None, "there is no session");
    let note = |id| Note { id, text: "legible".to_owned() };
    there.send(note(1)).await.unwrap();
    known_as::<_, Garbled>(&there, &a).send(Garbled).await.unwrap();
    there.send(note(2)).await.unwrap();
    known_as::<_, u64>(&there, &a).send(7).await.unwrap();
    there.send(note(3)).await.unwrap();
    for id in 1..=3 {
        assert_eq!(inbox.recv_timeout(SOON).await, Ok(note(id)));
    }
    assert_eq!(inbox.refused(), 2);
    let garbled = told.recv().await.unwrap();
    assert_eq!((&garbled.mailbox, &garbled.from, &garbled.tag[..]), (there.pid(), &a.id(), "test.note"));
    assert!(matches!(garbled.error, DecodeError::Malformed(_)), "{:?}", garbled.error);
    let other = told.recv().await.unwrap();
    assert_eq!((&other.tag[..], other.version), ("u64", 1));
    assert!(matches!(other.error, DecodeError::Tag { .. }), "{:?}", other.error);
    assert!(told.try_recv().is_err());

    // The peer is told soon after: a ping is answered after what was to be said before it.
    let refusals = async {
        loop {
            let seen = a.cluster().refusals(b.name()).unwrap();
            if (seen.malformed, seen.wrong_type, seen.wrong_version) == (1, 1, 0) {
                return;
            }
            assert!(seen.malformed <= 1 && seen.wrong_type <= 1, "{seen:?}");
            a.cluster().ping(b.name(), SOON).await.unwrap();
        }
    };
    tokio::time::timeout(SOON, refusals).await.expect("the sender is told");
    assert_eq!(events.next().await, Some(NodeEvent::Up(b.id())));
    assert!(tokio::time::timeout(Duration::ZERO, events.next()).await.is_err(), "the session goes on");
}

/// 16,384 sends to a live mailbox all arrive, from its own node and from another, and in order.
#[tokio::test]
async fn every_send_to_a_live_mailbox_arrives() {
    let (a, b) = pair().await;
    let mut inbox = b.mailbox::<(bool, u64)>();
    let sends = [&a, &b].map(|from| {
        let (there, is_local) = (inbox.address().bind(from), from.id() == b.id());
        tokio::spawn(async move { there.send_all((0..16_384).map(|n| (is_local, n))).await })
    });
    let mut next = [0; 2];
    for _ in 0..2 * 16_384 {
        let (is_local, n) = inbox.recv_timeout(SOON).await.unwrap();
        assert_eq!(n, std::mem::replace(&mut next[usize::from(is_local)], n + 1));
    }
    for sending in sends {
        sending.await.unwrap().unwrap();
    }
    assert_eq!(inbox.try_recv(), Err(RecvError::Empty));
}

/// A send to a mailbox that is closed says so, here and from afar, to all that send and to those that wait; and it gives
/// the message back.
#[tokio::test]
async fn a_closed_mailbox_says_so_here_and_there() {
    let (a, b) = pair().await;
    for from in [&b, &a] {
        let inbox = b.mailbox::<Vec<u8>>();
        let there = inbox.address().bind(from);
        // As many as fit, and one that waits.
        from.cluster().connect(b.name()).await.unwrap();
        while there.try_send(vec![0; 1000]).is_ok() {}
        let waits = tokio::spawn({
            let there = there.clone();
            async move { there.send(vec![0; 1000]).await }
        });
        tokio::task::yield_now().await;
        let closed = SendError::MailboxClosed(there.pid().clone());
        drop(inbox);
        assert_eq!(waits.await.unwrap(), Err(closed.clone()), "from {from:?}");
        for n in 0..16_384 {
            let refused = there.try_send(vec![n as u8]).unwrap_err();
            assert_eq!(refused.reason(), &closed);
            assert_eq!(refused.into_message(), [n as u8]);
        }
        let error = there.send_all([vec![1], vec![2]]).await.unwrap_err();
        assert_eq!((error.accepted, &error.reason, error.effect()), (0, &closed, Effect::NotDone));
    }
    // Where nobody has been told yet, an accepted send finds out.
    let there = b.mailbox::<u64>().address();
    assert_eq!(there.send(1).await, Err(SendError::MailboxClosed(there.pid().clone())));
    let there = there.bind(&a);
    let finding_out = async {
        while there.send(1).await.is_ok() {
            a.cluster().ping(b.name(), SOON).await.unwrap();
        }
        there.send(1).await
    };
    let found = tokio::time::timeout(SOON, finding_out).await.expect("it is told");
    assert_eq!(found, Err(SendError::MailboxClosed(there.pid().clone())));
}

/// All are sent in order; an error tells how many were accepted before it, and the rest is not looked at.
#[tokio::test]
async fn send_all_keeps_order_and_counts() {
    let cookie = Cookie::generate();
    let mut less = Config::default();
    less.message_max = 1000;
    let (a, b) = (node("a", &cookie).await, node_with("b", &cookie, less).await);
    let mut inbox = b.mailbox::<Bytes>();
    let there = inbox.address().bind(&a);
    let looked_at = AtomicU64::new(0);
    let sizes = [1, 2, 1000, 1001, 3];
    let bodies = sizes.iter().map(|size| {
        looked_at.fetch_add(1, Ordering::Relaxed);
        Bytes::from(vec![7; *size])
    });
    let error = there.send_all(bodies).await.unwrap_err();
    assert_eq!((error.accepted, error.effect()), (3, Effect::Unknown));
    assert_eq!(error.reason, SendError::TooLarge { size: 1001, max: 1000 });
    assert_eq!(looked_at.load(Ordering::Relaxed), 4);
    there.send_all(std::iter::empty()).await.unwrap();
    there.send_all([Bytes::new()]).await.unwrap();
    for size in [1, 2, 1000, 0] {
        assert_eq!(inbox.recv_timeout(SOON).await.unwrap().len(), size);
    }
    assert_eq!(inbox.try_recv(), Err(RecvError::Empty));
}

/// Who sent a message, and in which trace, is known with it: from this node and from another, small and large; and what is
/// sent on belongs to it again.
#[tokio::test]
async fn a_message_tells_its_sender_and_its_trace() {
    let (a, b) = pair().await;
    let trace: Trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let mut inbox = b.mailbox::<Vec<u8>>();
    for from in [&a, &b] {
        let there = inbox.address().bind(from);
        for size in [1, 200_000] {
            let sending = async {
                there.send(vec![1; size]).await.unwrap();
                trace.scope(there.send(vec![2; size])).await.unwrap();
                trace.scope(there.send_all([vec![3; size], vec![4; size]])).await.unwrap();
            };
            let reading = async {
                for (first, expected) in [(1, None), (2, Some(trace)), (3, Some(trace)), (4, Some(trace))] {
                    let received = inbox.recv_full().await.unwrap();
                    assert_eq!((received.message.len(), received.message[0]), (size, first));
                    assert_eq!((&received.from, received.trace), (&from.id(), expected));
                }
            };
            tokio::join!(sending, reading);
        }
        trace.scope(async { there.try_send(vec![5]) }).await.unwrap();
        let received = inbox.recv_full().await.unwrap();
        assert_eq!(received.trace, Some(trace));
        // Plain reads skip what they do not ask for.
        trace.scope(there.send(vec![6])).await.unwrap();
        assert_eq!(inbox.recv().await, Some(vec![6]));
    }
}

/// A message to a mailbox of the same node is moved, and never encoded; to another node it is encoded once.
#[tokio::test]
async fn a_local_send_moves_the_value() {
    static ENCODED: AtomicU64 = AtomicU64::new(0);
    #[derive(Debug, Serialize, Deserialize)]
    struct Counted(Box<u64>);
    impl Message for Counted {
        const TAG: &'static str = "test.counted";
        const VERSION: u32 = 1;

        fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
            ENCODED.fetch_add(1, Ordering::Relaxed);
            self.0.encode(out)
        }
    }
    let (a, b) = pair().await;
    let mut inbox = a.mailbox::<Counted>();
    let there = inbox.address();
    let place = |message: &Counted| std::ptr::from_ref(&*message.0).addr();
    let (one, two) = (Counted(Box::new(1)), Counted(Box::new(2)));
    let places = [place(&one), place(&two)];
    there.send(one).await.unwrap();
    there.try_send(two).unwrap();
    for (n, at) in (1..).zip(places) {
        let message = inbox.recv().await.unwrap();
        assert_eq!((*message.0, place(&message)), (n, at));
    }
    assert_eq!(ENCODED.load(Ordering::Relaxed), 0);
    there.bind(&b).send(Counted(Box::new(3))).await.unwrap();
    assert_eq!(inbox.recv_timeout(SOON).await.map(|message| *message.0), Ok(3));
    assert_eq!(ENCODED.load(Ordering::Relaxed), 1);
    // What no mailbox of this node takes is not even an attempt.
    let wrong = known_as::<_, u64>(&there, &a);
    assert_eq!(wrong.send(1).await, Err(SendError::WrongType(there.pid().clone())));
    assert_eq!(wrong.try_send(1).unwrap_err().reason(), &SendError::WrongType(there.pid().clone()));
    assert_eq!(inbox.try_recv().map(|message| *message.0), Err(RecvError::Empty));
}

/// With two nodes in one process, an address is bound to the one that decoded it; read from JSON it is bound to none.
#[tokio::test]
async fn an_address_is_bound_by_the_node_that_decodes_it() {
    let cookie = Cookie::generate();
    let (a, b, c) = (node("a", &cookie).await, node("b", &cookie).await, node("c", &cookie).await);
    let mut home = c.mailbox::<u64>();
    let mut senders = Vec::new();
    let (mut at_a, mut at_b) = (a.mailbox::<Option<Address<u64>>>(), b.mailbox::<Option<Address<u64>>>());
    at_a.address().bind(&c).send(Some(home.address())).await.unwrap();
    at_b.address().bind(&c).send(Some(home.address())).await.unwrap();
    senders.push(at_a.recv_timeout(SOON).await.unwrap().unwrap());
    senders.push(at_b.recv_timeout(SOON).await.unwrap().unwrap());
    // What a local send moves stays bound as it was.
    at_b.address().send(Some(senders[0].clone())).await.unwrap();
    senders.push(at_b.recv_timeout(SOON).await.unwrap().unwrap());
    for (n, (there, from)) in (0..).zip(senders.iter().zip([&a, &b, &a])) {
        there.send(n).await.unwrap();
        let received = home.recv_full().await.unwrap();
        assert_eq!((received.message, &received.from), (n, &from.id()));
    }

    let text = serde_json::to_string(&senders[0]).unwrap();
    let unbound: Address<u64> = serde_json::from_str(&text).unwrap();
    assert_eq!(unbound, senders[0]);
    assert_eq!(unbound.send(1).await, Err(SendError::Unbound));
    assert_eq!(unbound.try_send(1).unwrap_err().reason(), &SendError::Unbound);
    unbound.bind(&b).send(9).await.unwrap();
    let received = home.recv_full().await.unwrap();
    assert_eq!((received.message, received.from), (9, b.id()));
}

/// A hundred thousand messages that do not decode do not starve who sends good ones: to the same mailbox and to another.
///
#[tokio::test]
async fn a_flood_that_does_not_decode_starves_nobody() {
    const FLOOD: u64 = 100_000;
    let cookie = Cookie::generate();
    let (a, c) = (node("a", &cookie).await, node("c", &cookie).await);
    let hooked = Arc::new(AtomicU64::new(0));
    let counter = hooked.clone();
    let hook = move |_: &RefusedMessage| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let b = Node::builder("b@127.0.0.1:0").cookie(cookie).on_refused(hook).start().await.unwrap();
    let (mut same, mut other) = (b.mailbox::<Note>(), b.mailbox::<Note>());
    let flood = known_as::<_, Garbled>(&same.address(), &a);
    let flooding = tokio::spawn(async move { flood.send_all((0..FLOOD).map(|_| Garbled)).await });
    let note = |id| Note { id, text: "legible".to_owned() };
    let mut legit = Vec::new();
    for there in [same.address().bind(&c), other.address().bind(&a), other.address().bind(&c)] {
        legit.push(tokio::spawn(async move { there.send_all((0..1000).map(note)).await }));
    }
    let reading = tokio::spawn(async move {
        let mut next = BTreeMap::new();
        for _ in 0..2000 {
            let received = other.recv_full().await.unwrap();
            let n: &mut u64 = next.entry(received.from).or_default();
            assert_eq!(received.message, note(*n));
            *n += 1;
        }
    });
    for n in 0..1000 {
        assert_eq!(same.recv_timeout(SOON).await, Ok(note(n)));
    }
    let before_the_end = same.refused();
    for sending in legit {
        sending.await.unwrap().unwrap();
    }
    reading.await.unwrap();
    println!("a thousand good messages were through after {before_the_end} of {FLOOD} that did not decode");
    assert!(before_the_end < FLOOD, "they waited for the end of the flood");
    // The flood ends by itself while the mailbox is read.
    let mut sent = false;
    tokio::pin!(flooding);
    while same.refused() < FLOOD {
        tokio::select! {
            done = &mut flooding, if !sent => { done.unwrap().unwrap(); sent = true; }
            message = same.recv_timeout(Duration::from_millis(1)) => assert_eq!(message, Err(RecvError::Timeout)),
        }
    }
    assert_eq!(hooked.load(Ordering::Relaxed), FLOOD);
    let told = async {
        while a.cluster().refusals(b.name()).unwrap().malformed != FLOOD {
            a.cluster().ping(b.name(), SOON).await.unwrap();
        }
    };
    tokio::time::timeout(SOON, told).await.expect("the sender is told of each");
}
