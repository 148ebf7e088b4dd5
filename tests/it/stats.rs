//! What a node counts: exactly what its users sent, for each session and in sums that outlive them; and how the recorder of
//! the `metrics` facade gets it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distribute::{Address, Bytes, Flow, Group, Message, Method, Node, NodeStats, PeerStats};
use metrics::{CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};
use tokio::time::{Instant, sleep, timeout};
use tracing::Level;

use crate::captured::Log;
use crate::common::{World, millis, secs, unprobing};

const ECHO: Method<Bytes, Bytes> = Method::new("echo");
const NOTE: Method<u64, ()> = Method::new("note");
const NEVER: Method<u64, u64> = Method::new("never");

/// The same mailbox, for a node that believes that it takes something else.
pub(crate) fn retyped<A: Message, B: Message>(address: &Address<A>, node: &Node) -> Address<B> {
    let text = serde_json::to_string(address).unwrap();
    serde_json::from_str::<Address<B>>(&text).unwrap().bind(node)
}

/// The node's only peer.
pub(crate) fn peer(node: &Node) -> PeerStats {
    let mut peers = node.stats().peers;
    assert_eq!(peers.len(), 1, "{peers:?}");
    peers.remove(0)
}

/// Waits until the node's counts are so.
pub(crate) async fn until(node: &Node, what: impl Fn(&NodeStats) -> bool) {
    let waiting = async {
        while !what(&node.stats()) {
            sleep(millis(10)).await;
        }
    };
    assert!(timeout(secs(60), waiting).await.is_ok(), "{:#?}", node.stats());
}

fn flow(messages: (u64, u64), copies: (u64, u64), requests: (u64, u64), answers: (u64, u64)) -> [u64; 8] {
    [messages.0, messages.1, copies.0, copies.1, requests.0, requests.1, answers.0, answers.1]
}

fn counts(flow: &Flow) -> [u64; 8] {
    let Flow { messages, message_bytes, copies, copy_bytes, .. } = *flow;
    let Flow { requests, request_bytes, answers, answer_bytes, .. } = *flow;
    [messages, message_bytes, copies, copy_bytes, requests, request_bytes, answers, answer_bytes]
}

/// Known traffic of each kind, small and large, read, refused and undeliverable: both ends count exactly that, for the
/// session and for the node; and the node's sums outlive the session.
#[tokio::test(start_paused = true)]
async fn the_counts_are_the_traffic() {
    const ITEMS: Method<u64, Bytes> = Method::new("items");
    const WHAT: Group<Bytes> = Group::new("what");
    const LARGE: usize = 100 << 10;
    let world = World::new(12);
    let (a, b) = world.unprobing_pair().await;
    a.cluster().connect(b.name()).await.unwrap();
    let body = |size: usize| Bytes::from(vec![7; size]);

    // 200 small messages, 3 large, 5 that cannot be read, 1 to a mailbox that is gone.
    let mut inbox = b.mailbox::<Bytes>();
    let there = inbox.address().bind(&a);
    let wrong: Address<u64> = retyped(&inbox.address(), &a);
    let gone = b.mailbox::<Bytes>().address().bind(&a);
    let sending = async {
        for size in 0..200 {
            there.send(body(size)).await.unwrap();
        }
        for _ in 0..5 {
            wrong.send(1).await.unwrap();
        }
        gone.send(body(50)).await.unwrap();
        for _ in 0..3 {
            there.send(body(LARGE)).await.unwrap();
        }
    };
    let reading = async {
        for size in (0..200).chain([LARGE; 3]) {
            assert_eq!(inbox.recv().await.unwrap().len(), size);
        }
    };
    timeout(secs(60), async { tokio::join!(sending, reading) }).await.unwrap();
    assert_eq!(inbox.refused(), 5);
    let wrong_bytes = {
        let mut numbers = b.mailbox::<u64>();
        let before = a.stats().traffic.sent.message_bytes;
        numbers.address().bind(&a).send(1).await.unwrap();
        assert_eq!(numbers.recv().await, Some(1));
        a.stats().traffic.sent.message_bytes - before
    };
    let message_bytes = (0..200).sum::<u64>() + 3 * LARGE as u64 + 6 * wrong_bytes;
    let messages = (200 + 3 + 6, message_bytes);

    // 20 broadcasts to two members there and one here.
    let (mut second, mut here) = (b.mailbox::<Bytes>(), a.mailbox::<Bytes>());
    b.groups().join(WHAT, &inbox).unwrap();
    b.groups().join(WHAT, &second).unwrap();
    a.groups().join(WHAT, &here).unwrap();
    let joined = async {
        while a.groups().count(WHAT) < 3 {
            sleep(millis(10)).await;
        }
    };
    timeout(secs(10), joined).await.unwrap();
    for _ in 0..20 {
        assert_eq!(a.groups().broadcast(WHAT, &body(7)).await.unwrap().delivered(), 3);
    }
    for mailbox in [&mut inbox, &mut second, &mut here] {
        for _ in 0..20 {
            assert_eq!(mailbox.recv().await.unwrap().len(), 7);
        }
    }
    let copies = (40, 40 * 7);

    // 50 calls, one of them large; 3 casts that run and 4 that do not; a stream of 10 items; a question.
    b.rpc().serve(ECHO, |_call, body| async move { body }).unwrap();
    b.rpc()
        .serve_stream(ITEMS, |_call, items, mut sink| async move {
            for _ in 0..items {
                sink.send(Bytes::from_static(&[1; 9])).await.unwrap();
            }
        })
        .unwrap();
    b.rpc().serve(NOTE, |_call, _| async {}).unwrap();
    for _ in 0..49 {
        assert_eq!(a.rpc().call(b.name(), ECHO, body(10)).await.unwrap().len(), 10);
    }
    assert_eq!(a.rpc().call(b.name(), ECHO, body(LARGE)).await.unwrap().len(), LARGE);
    let before_casts = a.stats().traffic.sent.request_bytes;
    for _ in 0..3 {
        a.rpc().cast(b.name(), NOTE, 1).await.unwrap();
    }
    for _ in 0..4 {
        a.rpc().cast(b.name(), NEVER, 1).await.unwrap();
    }
    let cast_bytes = a.stats().traffic.sent.request_bytes - before_casts;
    assert_eq!(cast_bytes % 7, 0, "seven alike");
    let mut items = a.rpc().call_stream(b.name(), ITEMS, 10).await.unwrap();
    let mut read = 0;
    while let Some(item) = items.next().await {
        read += item.unwrap().len();
    }
    assert_eq!(read, 90);
    let requests = (50 + 7 + 1, 49 * 10 + LARGE as u64 + cast_bytes + cast_bytes / 7);
    let answers = (50 + 10, 49 * 10 + LARGE as u64 + 90);
    until(&b, |stats| stats.calls.casts_failed == 4).await;
    until(&a, |stats| stats.traffic.refused == 5).await;

    let to_b = flow(messages, copies, requests, (0, 0));
    let to_a = flow((0, 0), (0, 0), (0, 0), answers);
    let sent = flow((messages.0 + 1, messages.1 + 50), copies, requests, (0, 0));
    let check = |a: &NodeStats, b: &NodeStats| {
        assert_eq!(counts(&a.traffic.sent), sent);
        assert_eq!(counts(&b.traffic.received), to_b);
        assert_eq!((counts(&b.traffic.sent), counts(&a.traffic.received)), (to_a, to_a));
        assert_eq!((b.traffic.undeliverable, a.traffic.refused, b.incidents.messages_refused), (1, 5, 5));
        assert_eq!((a.calls.made, a.calls.answered, a.calls.casts), (51, 51, 7));
        assert_eq!((b.calls.served, b.calls.casts_failed), (50 + 3 + 1, 4));
        assert_eq!((a.local_messages, b.local_messages), (20, 0), "copies to this node's own members");
        for stats in [a, b] {
            assert_eq!((stats.unread, stats.calls.waiting, stats.calls.handlers), (0, 0, 0));
        }
        assert_eq!((a.mailboxes, b.mailboxes), (1, 2));
    };
    let (seen_by_a, seen_by_b) = (a.stats(), b.stats());
    check(&seen_by_a, &seen_by_b);
    let (at_a, at_b) = (peer(&a), peer(&b));
    assert_eq!((at_a.id, at_a.traffic), (b.id(), seen_by_a.traffic), "one session is all that there was");
    assert_eq!((at_b.id, at_b.traffic, at_b.unreadable), (a.id(), seen_by_b.traffic, 5));
    for (peer, bytes) in [(at_a.link.unwrap(), sent), (at_b.link.unwrap(), to_a)] {
        assert!(peer.bytes_sent > bytes[1] + bytes[5] + bytes[7], "{peer:?}");
        assert!(peer.packets_sent > 100 && peer.packets_lost == 0, "{peer:?}");
        assert!((1..10).contains(&peer.round_trip.as_millis()), "{peer:?}");
    }

    a.cluster().disconnect(b.name()).await;
    until(&b, |stats| stats.peers.is_empty()).await;
    check(&a.stats(), &b.stats());
    assert!(a.stats().peers.is_empty());
}

/// A mailbox that nobody reads: sends that would not wait are counted as full, those that wait by how long they do, and the
/// peer is busy from the first to the last of them, once; then all is as before.
#[tokio::test(start_paused = true)]
async fn a_busy_peer_is_told_once_an_episode() {
    let world = World::new(13);
    let (log, _listening) = Log::listen(Level::DEBUG);
    let (a, b) = world.unprobing_pair().await;
    a.cluster().connect(b.name()).await.unwrap();
    let mut inbox = b.mailbox::<Bytes>();
    let there = inbox.address().bind(&a);
    let body = || Bytes::from(vec![7; 1024]);
    for episode in 1..=2 {
        let (mut accepted, before) = (0, peer(&a).traffic);
        while there.try_send(body()).is_ok() {
            accepted += 1;
        }
        assert!(there.try_send(body()).is_err());
        until(&b, |stats| stats.unread == accepted).await;
        let (at_a, at_b) = (peer(&a), peer(&b));
        assert_eq!(at_a.traffic.full - before.full, 2);
        assert_eq!(at_a.traffic.sent.messages - before.sent.messages, accepted);
        assert_eq!(at_b.queues.unread, accepted * (1024 + 128));
        assert!(!at_a.is_busy() && at_a.queues.waiting == 0, "nobody waits");

        let begun = Instant::now();
        let sends: Vec<_> =
            (0..3).map(|_| there.clone()).map(|there| tokio::spawn(async move { there.send(body()).await })).collect();
        until(&a, |stats| stats.peers[0].queues.waiting == 3).await;
        assert!(peer(&a).is_busy());
        sleep(secs(10)).await;
        let (waited, so_far) = (begun.elapsed(), peer(&a).traffic.blocked - before.blocked);
        assert_eq!(so_far, 3 * waited, "each of the three, up to now");
        for _ in 0..accepted + 3 {
            assert_eq!(inbox.recv().await.unwrap().len(), 1024);
        }
        for send in sends {
            send.await.unwrap().unwrap();
        }
        let after = peer(&a);
        let blocked = after.traffic.blocked - before.blocked;
        assert!(blocked >= 3 * waited && blocked < 3 * waited + millis(100), "{blocked:?}");
        assert!(!after.is_busy());
        assert_eq!(after.traffic.busy, episode);
        assert_eq!(["link busy", "link no longer busy"].map(|what| log.of(what).len() as u64), [episode; 2]);
        until(&a, |stats| stats.peers[0].queues.buffered == 0).await;
        assert_eq!((peer(&b).queues.unread, b.stats().unread), (0, 0));
        sleep(secs(1)).await;
    }
}

/// Calls that wait for room are counted too, and what is open now is counted while it is.
#[tokio::test(start_paused = true)]
async fn what_is_open_is_counted_while_it_is() {
    let world = World::new(14);
    let mut config = unprobing();
    config.send_buffer = 4096;
    let a = world.builder("a", 1).config(config).start().await.unwrap();
    let b = world.unprobing("b", 2).await;
    a.cluster().connect(b.name()).await.unwrap();
    const STREAM: Method<u64, u64> = Method::new("stream");
    b.rpc().serve(NEVER, |_call, _| std::future::pending()).unwrap();
    b.rpc().serve(ECHO, |_call, body| async move { body }).unwrap();
    b.rpc().serve_stream(STREAM, |_call, _, _sink| std::future::pending()).unwrap();
    let stream = a.rpc().call_stream(b.name(), STREAM, 1).await.unwrap();
    let (rpc, name) = (a.rpc(), b.name().clone());
    let calling = tokio::spawn(async move { rpc.call(&name, NEVER, 1).timeout(secs(3600)).await });
    until(&b, |stats| stats.peers.iter().any(|peer| peer.handlers == 2)).await;
    let at_a = peer(&a);
    assert_eq!((at_a.calls, at_a.streams, at_a.handlers), (2, 1, 0));
    assert_eq!((peer(&b).calls, peer(&b).streams), (0, 0));
    calling.abort();
    drop(stream);
    until(&b, |stats| stats.peers.iter().all(|peer| peer.handlers == 0)).await;
    assert_eq!((peer(&a).calls, peer(&a).streams), (0, 0));

    // Two bodies of the whole buffer: the second waits until the first is written.
    let body = Bytes::from(vec![7; 4096]);
    let rpc = a.rpc();
    let calls = [rpc.call(b.name(), ECHO, body.clone()), rpc.call(b.name(), ECHO, body)];
    let [first, second] = calls.map(IntoFuture::into_future);
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.unwrap().len(), second.unwrap().len()), (4096, 4096));
    assert_eq!(peer(&a).traffic.busy, 1);
    until(&a, |stats| stats.peers[0].queues.calls_buffered == 0).await;
}

/// Messages of a node to itself take no link, and are counted apart.
#[tokio::test(start_paused = true)]
async fn messages_within_a_node_are_counted_apart() {
    let world = World::new(15);
    let node = world.node("a", 1).await;
    let mut inbox = node.mailbox::<u64>();
    for n in 0..10 {
        inbox.address().send(n).await.unwrap();
    }
    let stats = node.stats();
    assert_eq!((stats.local_messages, stats.unread, stats.mailboxes), (10, 10, 1));
    assert_eq!(inbox.recv().await, Some(0));
    assert_eq!(node.stats().unread, 9);
    drop(inbox);
    let stats = node.stats();
    assert_eq!((stats.local_messages, stats.unread, stats.mailboxes), (10, 0, 0));
    assert_eq!(stats.traffic, Default::default());
    assert!(stats.uptime < Duration::from_secs(1) && stats.id == node.id());
}

// The `metrics` facade.

/// Remembers what it is told.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Series>>);

/// By the name of the metric and that of the node.
type Series = BTreeMap<(String, String), Arc<Told>>;

#[derive(Default)]
struct Told {
    counter: AtomicU64,
    /// As bits.
    gauge: AtomicU64,
    samples: Mutex<Vec<f64>>,
}

impl CounterFn for Told {
    fn increment(&self, value: u64) {
        self.counter.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.counter.fetch_max(value, Ordering::Relaxed);
    }
}

impl GaugeFn for Told {
    fn increment(&self, _: f64) {
        panic!("gauges are set");
    }

    fn decrement(&self, _: f64) {
        panic!("gauges are set");
    }

    fn set(&self, value: f64) {
        self.gauge.store(value.to_bits(), Ordering::Relaxed);
    }
}

impl HistogramFn for Told {
    fn record(&self, value: f64) {
        self.samples.lock().unwrap().push(value);
    }
}

impl Recorder {
    fn told(&self, key: &Key) -> Arc<Told> {
        let labels: Vec<_> = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
        let [(label, node)] = &labels[..] else { panic!("{key}") };
        assert_eq!(label, "node", "{key}");
        self.0.lock().unwrap().entry((key.name().to_owned(), node.clone())).or_default().clone()
    }

    fn of(&self, name: &str, node: &str) -> Option<Arc<Told>> {
        self.0.lock().unwrap().get(&(name.to_owned(), node.to_owned())).cloned()
    }

    fn counter(&self, name: &str, node: &Node) -> Option<u64> {
        self.of(name, node.name().as_str()).map(|told| told.counter.load(Ordering::Relaxed))
    }

    fn gauge(&self, name: &str, node: &Node) -> Option<f64> {
        self.of(name, node.name().as_str()).map(|told| f64::from_bits(told.gauge.load(Ordering::Relaxed)))
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> metrics::Counter {
        metrics::Counter::from_arc(self.told(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::from_arc(self.told(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::from_arc(self.told(key))
    }
}

/// Nodes publish by themselves within five seconds, each under its name, what their own counts say; and once more when they
/// stop.
#[tokio::test(start_paused = true)]
async fn counts_reach_the_recorder_by_themselves() {
    let recorder = Recorder::default();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let world = World::new(16);
    let (a, b) = world.unprobing_pair().await;
    let mut inbox = b.mailbox::<Bytes>();
    let there = inbox.address().bind(&a);
    for _ in 0..10 {
        there.send(Bytes::from_static(&[7; 100])).await.unwrap();
    }
    until(&b, |stats| stats.unread == 10).await;
    assert_eq!(recorder.counter("distribute_messages_sent_total", &a), None, "not yet");
    sleep(secs(5)).await;
    let sent =
        ["distribute_messages_sent_total", "distribute_body_bytes_sent_total", "distribute_sessions_begun_total"];
    assert_eq!(sent.map(|name| recorder.counter(name, &a)), [Some(10), Some(1000), Some(1)]);
    assert_eq!(sent.map(|name| recorder.counter(name, &b)), [Some(0), Some(0), Some(1)]);
    assert_eq!(recorder.counter("distribute_messages_received_total", &b), Some(10));
    let now = ["distribute_unread_messages", "distribute_sessions", "distribute_mailboxes"];
    assert_eq!(now.map(|name| recorder.gauge(name, &b)), [Some(10.0), Some(1.0), Some(1.0)]);
    let samples = recorder.of("distribute_round_trip_seconds", a.name().as_str()).unwrap();
    let samples = samples.samples.lock().unwrap().clone();
    assert!(samples.len() == 1 && (0.0005..0.1).contains(&samples[0]), "{samples:?}");

    assert_eq!(inbox.recv().await.unwrap().len(), 100);
    b.stats().record();
    assert_eq!(recorder.gauge("distribute_unread_messages", &b), Some(9.0), "at once when asked to");
    there.send(Bytes::from_static(&[7; 100])).await.unwrap();
    a.shutdown().await;
    sleep(millis(1)).await;
    assert_eq!(recorder.counter("distribute_messages_sent_total", &a), Some(11), "the last of it");
    assert_eq!(recorder.gauge("distribute_sessions", &a), Some(0.0));
}
