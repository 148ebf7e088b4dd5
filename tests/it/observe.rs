//! What a node tells of itself: ids that follow an undertaking across nodes, and the log.

use distribute::{
    ActorContext, Address, Ask, CallError, ConnectError, Cookie, CorrelationId, DownReason, Group, Message, Method,
    Name, Next, Node, NodeEvent, OnLoss, ReplyTo, Restart, SendError, Topic, Trace, actor_fn,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::{sleep, timeout};
use tracing::Level;

use crate::captured::Log;
use crate::common::{World, ip, millis, next, secs, unprobing};
use crate::stats::{peer, retyped, until};

const NOTE: Method<u64, ()> = Method::new("note");
const NEVER: Method<u64, u64> = Method::new("never");
const NOWHERE: Method<u64, u64> = Method::new("nowhere");

// Ids that follow an undertaking.

#[derive(Serialize, Deserialize)]
struct Question {
    reply_to: ReplyTo<String>,
}

impl Message for Question {
    const TAG: &'static str = "question";
    const VERSION: u32 = 1;
}

/// A call to a second node, whose handler sends a message to a third, which asks the first: all of it carries the id, and
/// each node's log has it in the span of what it serves.
#[tokio::test(start_paused = true)]
async fn a_correlation_id_goes_over_three_nodes_and_back() {
    const ORDER: Method<(), ()> = Method::new("order");
    const STOCK: Method<(), String> = Method::new("stock");
    let world = World::new(1);
    let (log, _listening) = Log::listen(Level::INFO);
    let (a, b, c) = (world.node("a", 1).await, world.node("b", 2).await, world.node("c", 3).await);
    let mut questions = a.mailbox::<Question>();
    let mut parcels = c.mailbox::<u64>();
    let there = parcels.address().bind(&b);
    b.rpc()
        .serve(ORDER, move |call, ()| {
            let there = there.clone();
            async move {
                assert_eq!(call.correlation_id(), CorrelationId::current());
                there.send(7).await.unwrap();
            }
        })
        .unwrap();
    a.rpc().serve(STOCK, |_call, ()| async { CorrelationId::current().unwrap().to_string() }).unwrap();
    let asks = questions.address().bind(&c);
    let (c_rpc, a_name) = (c.rpc(), a.name().clone());
    let third = tokio::spawn(async move {
        let parcel = parcels.recv_full().await.unwrap();
        let seen = parcel.correlation_id();
        let ask: Ask<'_, _, String, _> = asks.ask(|reply_to| Question { reply_to });
        let asked = parcel.scope(ask.into_future()).await.unwrap();
        let called = parcel.scope(c_rpc.call(&a_name, STOCK, ()).into_future()).await.unwrap();
        (seen, asked, called)
    });

    let id = CorrelationId::generate();
    id.scope(async { a.rpc().call(b.name(), ORDER, ()).await }).await.unwrap();
    let question = questions.recv_full().await.unwrap();
    assert_eq!((question.correlation_id(), question.from.clone()), (Some(id), c.id()));
    question.message.reply_to.reply("here".into()).await.unwrap();
    let (seen, asked, called) = third.await.unwrap();
    assert_eq!((seen, asked.as_str(), called), (Some(id), "here", id.to_string()));

    let spans = log.spans("call");
    let of = |method: &str, caller: &Node| {
        let caller = caller.id().to_string();
        spans
            .iter()
            .any(|span| span["method"] == method && span["caller"] == caller && span["correlation"] == id.to_string())
    };
    assert!(spans.len() == 2 && of("order", &a) && of("stock", &c), "{spans:#?}");
    assert!(CorrelationId::current().is_none() && Trace::current().is_none(), "nothing of it is left here");
}

/// A node that was given a trace keeps it, and one that begins with an id of its own leaves it when it is over.
#[tokio::test]
async fn a_scope_keeps_a_trace_of_its_id_and_begins_one_else() {
    let trace: Trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let other = CorrelationId::generate();
    let scoped = trace.scope(async {
        let same = CorrelationId::from(trace).scope(async { Trace::current() }).await;
        let begun = other.scope(async { Trace::current().unwrap() }).await;
        (same, begun, Trace::current())
    });
    let (same, begun, after) = scoped.await;
    assert_eq!((same, after), (Some(trace), Some(trace)));
    assert_eq!((CorrelationId::from(begun), begun.is_sampled()), (other, false));
}

// The log.

/// What a handler says is within the span of its own call, of whatever kind that is; and the span tells how it ended.
#[tokio::test(start_paused = true)]
async fn what_a_handler_says_is_within_its_call() {
    const LATER: Method<u64, u64> = Method::new("later");
    const AT_ONCE: Method<u64, u64> = Method::new("at-once");
    const MANY: Method<u64, u64> = Method::new("many");
    const PANICS: Method<u64, u64> = Method::new("panics");
    let world = World::new(2);
    let (log, _listening) = Log::listen(Level::INFO);
    let (a, b) = world.unprobing_pair().await;
    let say = |n: u64| tracing::info!(target: "distribute::test", n, "said");
    b.rpc()
        .serve(LATER, move |_call, n| async move {
            // The two that run at a time take turns.
            for _ in 0..3 {
                say(n);
                tokio::task::yield_now().await;
            }
            n
        })
        .unwrap();
    b.rpc().serve_inline(AT_ONCE, move |_call, n| (say(n), n).1).unwrap();
    b.rpc()
        .serve_stream(MANY, move |_call, n, mut sink| async move { (say(n), sink.send(n).await.unwrap()).1 })
        .unwrap();
    b.rpc().serve(PANICS, move |_call, n| async move { if n == 3 { panic!("a user's mistake") } else { n } }).unwrap();
    let ids: Vec<_> = (0..5).map(|_| CorrelationId::generate()).collect();
    let rpc = a.rpc();
    let first = ids[0].scope(rpc.call(b.name(), LATER, 0).into_future());
    let second = ids[1].scope(rpc.call(b.name(), LATER, 1).into_future());
    assert_eq!(tokio::join!(first, second), (Ok(0), Ok(1)));
    assert_eq!(ids[2].scope(rpc.call(b.name(), AT_ONCE, 2).into_future()).await, Ok(2));
    assert_eq!(ids[3].scope(rpc.call(b.name(), PANICS, 3).into_future()).await, Err(CallError::Panicked));
    let mut items = ids[4].scope(rpc.call_stream(b.name(), MANY, 4).into_future()).await.unwrap();
    assert_eq!((items.next().await, items.next().await), (Some(Ok(4)), None));

    let said = log.of("said");
    assert_eq!(said.len(), 3 + 3 + 1 + 1);
    for line in said {
        let n: usize = line.field("n").parse().unwrap();
        let [(name, span)] = &line.spans[..] else { panic!("{line:?}") };
        assert_eq!((*name, &span["correlation"]), ("call", &ids[n].to_string()), "{line:?}");
        assert_eq!(span["caller"], a.id().to_string());
    }
    let panicked = log.only("a handler panicked");
    assert_eq!((panicked.level, panicked.target.as_str()), (Level::WARN, "distribute::call"));
    assert_eq!(panicked.spans[0].1["method"], "panics");
    let outcomes: Vec<_> = log.spans("call").into_iter().map(|span| span["outcome"].clone()).collect();
    assert_eq!(outcomes, ["Answered", "Answered", "Answered", "Panicked", "Answered"]);
    assert_eq!(b.stats().incidents.handlers_panicked, 1);
}

/// Each end of a link has its spans, with who dialled whom; a claim has one, with what came of it.
#[tokio::test(start_paused = true)]
async fn links_and_claims_have_spans() {
    const DESK: Name<u64> = Name::new("desk");
    let world = World::new(3);
    let (log, _listening) = Log::listen(Level::DEBUG);
    let (a, b) = (world.unprobing("a", 1).await, world.unprobing("b", 2).await);
    b.cluster().connect(a.name()).await.unwrap();
    until(&a, |stats| stats.peers.len() == 1).await;
    let links = log.spans("link");
    let at_work = |peer: &Node, role: &str| {
        let peer = peer.id().to_string();
        links.iter().filter(|span| span.get("peer") == Some(&peer) && span["role"] == role).count()
    };
    assert_eq!((at_work(&a, "dialler"), at_work(&b, "responder")), (1, 1), "{links:#?}");
    assert!(links.iter().all(|span| span["link"].parse::<u64>().is_ok()), "{links:#?}");

    let (one, other) = (a.mailbox::<u64>(), a.mailbox::<u64>());
    a.ready().await.unwrap();
    a.registry().register(DESK, &one).await.unwrap();
    a.registry().register(DESK, &other).await.unwrap_err();
    let claims = log.spans("claim");
    let outcomes: Vec<_> = claims.iter().map(|claim| (claim["name"].as_str(), claim["outcome"].as_str())).collect();
    assert_eq!(outcomes, [("desk", "granted"), ("desk", "taken")]);
}

/// The life of a node as a person reads it, who is told nothing more than that; and no warning.
#[tokio::test(start_paused = true)]
async fn the_life_of_a_node_in_five_lines() {
    let world = World::new(4);
    let (log, _listening) = Log::listen(Level::INFO);
    let (a, b) = world.pair().await;
    b.cluster().connect(a.name()).await.unwrap();
    b.shutdown().await;
    a.shutdown().await;
    let lines: Vec<_> = log
        .lines()
        .into_iter()
        .filter(|line| {
            line.spans.iter().any(|(_, node)| node["node"] == b.name().as_str())
                || line.field("node") == b.id().to_string()
        })
        .collect();
    let told: Vec<_> = lines.iter().map(|line| (line.target.as_str(), line.message.as_str())).collect();
    let expected = [
        ("distribute::node", "started"),
        ("distribute::session", "session up"),
        ("distribute::node", "stopping"),
        ("distribute::session", "session ended"),
        ("distribute::node", "stopped"),
    ];
    assert_eq!(told, expected);
    assert!(log.lines().iter().all(|line| line.level == Level::INFO), "{log:#?}");
}

/// A cut ends a session on both sides: one warning each, with the reason.
#[tokio::test(start_paused = true)]
async fn a_lost_session_is_told_once() {
    let world = World::new(5);
    let (log, _listening) = Log::listen(Level::INFO);
    let (a, b) = world.unprobing_pair().await;
    let mut events = a.cluster().node_events();
    let there = b.mailbox::<u64>().address().bind(&a);
    a.cluster().connect(b.name()).await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    world.fabric.cut(ip(1), ip(2));
    there.send(1).await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::Lost));
    let lost = log.only("session lost");
    assert_eq!((lost.level, lost.target.as_str()), (Level::WARN, "distribute::session"));
    assert_eq!((lost.field("peer"), lost.field("reason")), (b.id().to_string().as_str(), "Lost"));
    let incidents = a.stats().incidents;
    assert_eq!((incidents.sessions_begun, incidents.sessions_ended, incidents.sessions_lost), (1, 1, 1));
    assert_eq!((incidents.disconnects_forced, incidents.frames_rejected), (0, 0));
    assert!(log.of("session ended").is_empty() && log.of("forced disconnect").is_empty());
}

/// Who ends a session by force says so; the peer is told, and has nothing to warn of.
#[tokio::test(start_paused = true)]
async fn a_forced_disconnect_is_told_once() {
    let world = World::new(6);
    let (log, _listening) = Log::listen(Level::INFO);
    let (a, b) = world.unprobing_pair().await;
    let mut events = b.cluster().node_events();
    a.cluster().connect(b.name()).await.unwrap();
    let cluster = a.cluster();
    tokio::join!(cluster.disconnect(b.name()), cluster.disconnect(b.name()));
    cluster.disconnect(b.name()).await;
    assert_eq!(next(&mut events).await, NodeEvent::Up(a.id()));
    assert_eq!(next(&mut events).await, NodeEvent::Down(a.id(), DownReason::Disconnected));
    let forced = log.only("forced disconnect");
    assert_eq!((forced.level, forced.field("peer")), (Level::WARN, b.name().as_str()));
    assert_eq!(forced.field("by"), "a user asked for it");
    assert_eq!(log.of("session ended").len(), 2, "one at each end");
    assert_eq!([&a, &b].map(|node| node.stats().incidents.disconnects_forced), [1, 0]);
    assert_eq!([&a, &b].map(|node| node.stats().incidents.sessions_lost), [0, 0]);
}

/// A session that is idle gives its place to a new one, and that is told with its reason.
#[tokio::test(start_paused = true)]
async fn a_session_that_makes_room_is_told_once() {
    let world = World::new(17);
    let mut config = unprobing();
    config.peers_max = 1;
    let a = world.builder("a", 1).config(config).start().await.unwrap();
    let (b, c) = (world.unprobing("b", 2).await, world.unprobing("c", 3).await);
    b.cluster().connect(a.name()).await.unwrap();
    // Its link closes by itself, and the session goes on.
    sleep(secs(90)).await;
    assert_eq!(a.stats().peers.len(), 1);
    let (log, _listening) = Log::listen(Level::WARN);
    c.cluster().connect(a.name()).await.unwrap();
    until(&a, |stats| stats.peers.iter().any(|peer| peer.id == c.id())).await;
    let forced = log.only("forced disconnect");
    let told = [forced.field("peer"), forced.field("by")];
    assert_eq!(told, [&*b.id().to_string(), "its place was needed, and it was idle"]);
    assert_eq!(log.only("session lost").field("reason"), "Overloaded");
    let incidents = a.stats().incidents;
    assert_eq!((incidents.disconnects_forced, incidents.sessions_lost), (1, 1));
}

/// Two lives of one name: the node that refuses the second tells of it once, and who was refused is told by its error.
#[tokio::test(start_paused = true)]
async fn a_conflict_of_lives_is_told_once() {
    let world = World::new(7);
    let (log, _listening) = Log::listen(Level::INFO);
    let (a, b) = world.pair().await;
    b.cluster().connect(a.name()).await.unwrap();
    let twin = world.builder("b", 2).network(world.fabric.host(ip(9))).bind((ip(9), 4370).into());
    let twin = twin.start().await.unwrap();
    assert_eq!(twin.cluster().connect(a.name()).await, Err(ConnectError::NameConflict));
    sleep(secs(1)).await;
    let conflict = log.only("refused a second life of a live name");
    assert_eq!((conflict.level, conflict.target.as_str()), (Level::WARN, "distribute::conflict"));
    assert_eq!((conflict.field("live"), conflict.field("refused")), (&*b.id().to_string(), &*twin.id().to_string()));
    assert_eq!([&a, &b].map(|node| node.stats().incidents.lives_refused), [1, 0]);
    let warnings = log.lines().into_iter().filter(|line| line.level <= Level::WARN).count();
    assert_eq!(warnings, 1, "{log:?}");
}

/// Two sides of a partition give out one name: after the heal the loser's node tells of it once, and no other does.
#[tokio::test(start_paused = true)]
async fn a_conflict_of_names_is_told_once() {
    const DESK: Name<u64> = Name::new("desk");
    let world = World::new(8);
    let (log, _listening) = Log::listen(Level::INFO);
    let (a, b) = (world.node("a", 1).await, world.node("b", 2).await);
    let (one, other) = (a.mailbox::<u64>(), b.mailbox::<u64>());
    let first = a.registry().register(DESK, &one).await.unwrap();
    let second = b.registry().register(DESK, &other).on_loss(OnLoss::Tell).await.unwrap();
    b.cluster().connect(a.name()).await.unwrap();
    let lost = timeout(secs(60), async {
        tokio::select! { _ = first.lost() => (&a, &one), _ = second.lost() => (&b, &other) }
    });
    let (loser, mailbox) = lost.await.expect("one of them loses");
    sleep(secs(60)).await;
    let winner = if loser.id() == a.id() { other.pid() } else { one.pid() };
    let told = log.only("a registration lost its name to another claim");
    assert_eq!((told.level, told.target.as_str()), (Level::WARN, "distribute::conflict"));
    let expected = ["desk".to_owned(), mailbox.pid().serial().to_string(), winner.to_string()];
    assert_eq!(["name", "mailbox", "winner"].map(|field| told.field(field).to_owned()), expected);
    assert_eq!([&a, &b].map(|node| node.stats().names.lost).iter().sum::<u64>(), 1);
    assert_eq!(loser.stats().names.lost, 1);
}

/// What a mailbox cannot read, what a node does not serve, and what it has no room for: an event each, of which one a second
/// is a warning, so that no peer can fill the log.
#[tokio::test(start_paused = true)]
async fn refusals_are_told_each_and_warned_of_once_a_second() {
    let world = World::new(9);
    let (log, _listening) = Log::listen(Level::DEBUG);
    let a = world.unprobing("a", 1).await;
    let mut config = unprobing();
    config.handlers_max = 1;
    let b = world.builder("b", 2).config(config).start().await.unwrap();
    let mut numbers = b.mailbox::<u64>();
    let wrong: Address<String> = retyped(&numbers.address(), &a);
    for _ in 0..100 {
        wrong.send("no number".into()).await.unwrap();
    }
    numbers.address().bind(&a).send(7).await.unwrap();
    assert_eq!(numbers.recv().await, Some(7), "the mailbox lives on");
    let told = log.of("refused a message");
    assert_eq!(told.len(), 100);
    assert_eq!(told.iter().filter(|line| line.level == Level::WARN).count(), 1);
    assert_eq!((told[0].field("from"), told[0].field("tag")), (&*a.id().to_string(), "string"));
    assert_eq!((told[0].field("reason"), told[0].level), ("Tag", Level::WARN));
    assert_eq!((b.stats().incidents.messages_refused, peer(&b).unreadable), (100, 100));
    until(&a, |stats| stats.traffic.refused == 100).await;

    b.rpc().serve(NEVER, |_call, _| std::future::pending()).unwrap();
    let (rpc, name) = (a.rpc(), b.name().clone());
    let running = tokio::spawn(async move { rpc.call(&name, NEVER, 1).timeout(secs(3600)).await });
    until(&b, |stats| stats.calls.handlers == 1).await;
    for _ in 0..10 {
        assert_eq!(a.rpc().call(b.name(), NEVER, 2).await, Err(CallError::Overloaded));
    }
    sleep(secs(1)).await;
    assert_eq!(a.rpc().call(b.name(), NEVER, 2).await, Err(CallError::Overloaded));
    let told = log.of("refused a call");
    let warned = told.iter().filter(|line| line.level == Level::WARN).count();
    assert_eq!((told.len(), warned), (11, 2), "a second later the next is a warning again");
    assert_eq!((told[0].field("method"), told[0].field("status")), ("never", "Overloaded"));
    assert_eq!((b.stats().calls.overloaded, b.stats().calls.refused), (11, 0));
    assert_eq!(a.rpc().call(b.name(), NOWHERE, 2).await, Err(CallError::NoSuchMethod("nowhere".into())));
    assert_eq!((b.stats().calls.overloaded, b.stats().calls.refused), (11, 1));
    running.abort();

    for _ in 0..5 {
        a.rpc().cast(b.name(), NOTE, 1).await.unwrap();
    }
    until(&b, |stats| stats.calls.casts_failed == 5).await;
    let told = log.of("a cast came to nothing");
    assert_eq!((told.len(), told[0].field("method"), told[0].field("status")), (5, "note", "NoSuchMethod"));
}

/// A stranger is told of once by the node that it knocks at, by its address and what was wrong.
#[tokio::test(start_paused = true)]
async fn a_stranger_is_told_once() {
    let world = World::new(10);
    let (log, _listening) = Log::listen(Level::INFO);
    let a = world.unprobing("a", 1).await;
    let stranger = world.builder("b", 2).cookie(Cookie::generate()).config(unprobing()).start().await.unwrap();
    assert!(matches!(stranger.cluster().connect(a.name()).await, Err(ConnectError::Auth(_))));
    sleep(secs(1)).await;
    let refused = log.only("refused a link");
    assert_eq!((refused.level, refused.target.as_str()), (Level::WARN, "distribute::link"));
    assert!(refused.field("address").starts_with("10.0.0.2:"), "{refused:?}");
    assert_eq!([&a, &stranger].map(|node| node.stats().incidents.links_refused), [1, 0]);
    assert_eq!([&a, &stranger].map(|node| node.stats().incidents.dials_failed), [0, 1]);
}

// What is never told.

const PAYLOAD: &str = "pAyLoAd-xq7";
const SECRET: &str = "cOoKiE-of-this-cluster-zv9-with-many-words";
const OTHER_SECRET: &str = "cOoKiE-of-another-cluster-kk3-with-many-words";

/// Whose errors quote what they were given, as serde's may.
#[derive(Debug)]
struct Picky(String);

impl Serialize for Picky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.strip_prefix("unsendable") {
            Some(rest) => Err(serde::ser::Error::custom(format!("cannot send {rest}"))),
            None => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Err(serde::de::Error::custom(format!("cannot read {text}")))
    }
}

impl Message for Picky {
    const TAG: &'static str = "picky";
    const VERSION: u32 = 1;
}

async fn choke(_: &mut (), text: String, _: &ActorContext<String>) -> Next {
    panic!("an actor that quotes {text}")
}

/// All that a node says at the most talkative level, its QUIC and TLS included, names neither what its users sent nor its
/// cookie: through messages small and large, calls of each kind, broadcasts, names, facts, refusals, panics and strangers.
#[test]
fn no_payload_and_no_secret_is_told() {
    // In a process of its own: as long as one thread listens to everything, all threads have it made.
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "observe::in_a_process_of_its_own_all_is_heard", "--nocapture"])
        .env(LISTENS, "1")
        .status();
    assert!(status.unwrap().success());
}

/// Set in that process.
const LISTENS: &str = "DISTRIBUTE_TEST_LISTENS";

#[tokio::test(start_paused = true)]
async fn in_a_process_of_its_own_all_is_heard() {
    if std::env::var_os(LISTENS).is_none() {
        return;
    }
    const TEXT: Method<String, String> = Method::new("text");
    const PANICS: Method<String, String> = Method::new("panics");
    const BAD: Method<String, Picky> = Method::new("bad");
    const TEXTS: Group<String> = Group::new("texts");
    const DESK: Name<String> = Name::new("desk");
    const NEWS: Topic<String> = Topic::new("news");
    let world = World::new(11);
    let (log, _listening) = Log::listen_to("", Level::TRACE);
    let cookie = || Cookie::from_passphrase(SECRET).unwrap();
    let a = world.builder("a", 1).cookie(cookie()).start().await.unwrap();
    let b = world.builder("b", 2).cookie(cookie()).join(a.name()).start().await.unwrap();
    let other = Cookie::from_passphrase(OTHER_SECRET).unwrap();
    let stranger = world.builder("c", 3).cookie(other).start().await.unwrap();
    assert!(stranger.cluster().connect(a.name()).await.is_err());
    b.ready().await.unwrap();

    let text = || PAYLOAD.to_owned();
    let large = || PAYLOAD.repeat(20_000);
    let mut texts = b.mailbox::<String>();
    b.registry().register(DESK, &texts).metadata(PAYLOAD).await.unwrap();
    b.groups().join(TEXTS, &texts).unwrap();
    b.membership().set_metadata(PAYLOAD).unwrap();
    let mut news = b.gossip().subscribe(NEWS);
    let there = a.registry().wait_for(DESK).await.unwrap();
    for body in [text(), large()] {
        there.send(body.clone()).await.unwrap();
        assert_eq!(texts.recv().await, Some(body));
    }
    let mut picky = b.mailbox::<Picky>();
    picky.address().bind(&a).send(Picky(text())).await.unwrap();
    assert!(picky.recv_timeout(secs(1)).await.is_err());
    assert_eq!(picky.refused(), 1);
    let unsendable = picky.address().bind(&a).send(Picky(format!("unsendable {PAYLOAD}"))).await;
    assert!(matches!(unsendable, Err(SendError::Encode(_))));
    let joined = async {
        while a.groups().count(TEXTS) == 0 {
            sleep(millis(10)).await;
        }
    };
    timeout(secs(10), joined).await.unwrap();
    assert!(a.groups().broadcast(TEXTS, &text()).await.unwrap().is_complete());
    a.gossip().publish(NEWS, &text()).await.unwrap();
    assert_eq!(timeout(secs(10), news.next()).await.unwrap().map(|fact| fact.value), Some(text()));

    b.rpc().serve(TEXT, |_call, text| async move { text }).unwrap();
    b.rpc().serve(PANICS, |_call, text| async move { panic!("a panic that quotes {text}") }).unwrap();
    b.rpc().serve(BAD, |_call, text| async move { Picky(format!("unsendable {text}")) }).unwrap();
    for body in [text(), large()] {
        assert_eq!(a.rpc().call(b.name(), TEXT, body.clone()).await, Ok(body));
    }
    assert!(a.rpc().call(b.name(), PANICS, text()).await.is_err());
    assert!(a.rpc().call(b.name(), BAD, text()).await.is_err());
    assert!(a.rpc().call(b.name(), Method::<String, String>::new("nobody"), text()).await.is_err());
    let choking = || actor_fn((), choke);
    let restart = Restart::on_panic().limit(1, secs(60));
    let actor = b.actor(choking()).restart(restart, choking).await.unwrap();
    for _ in 0..2 {
        actor.address().bind(&a).send(text()).await.unwrap();
    }
    assert!(actor.ended().await.to_string().contains(PAYLOAD), "who holds it may know");
    a.rpc().cast(b.name(), PANICS, text()).await.unwrap();
    until(&b, |stats| stats.calls.casts_failed == 1).await;
    sleep(secs(10)).await;
    b.shutdown().await;
    a.shutdown().await;
    stranger.shutdown().await;

    let said = log.text();
    let lines = log.lines();
    for target in ["distribute::", "quinn"] {
        assert!(lines.iter().any(|line| line.target.starts_with(target)), "it listens to {target}");
    }
    assert!(lines.iter().any(|line| line.level == Level::TRACE && line.target.starts_with("distribute")));
    let occasions = ["refused a message", "a handler panicked", "refused a call", "refused a link"];
    for message in occasions.into_iter().chain(["an actor panicked", "an actor begins anew", "an actor ended"]) {
        assert!(!log.of(message).is_empty(), "{message}");
    }
    for forbidden in [PAYLOAD, SECRET, OTHER_SECRET] {
        let hex: String = forbidden.bytes().map(|byte| format!("{byte:02x}")).collect();
        let numbers: Vec<_> = forbidden.bytes().map(|byte| byte.to_string()).collect();
        for form in [forbidden.to_owned(), hex.clone(), hex.to_uppercase(), numbers.join(", ")] {
            let at = said.find(&form);
            let around = at.map(|at| &said[said.floor_char_boundary(at.saturating_sub(300))..at]);
            assert!(at.is_none(), "{form} is told: {around:?}");
        }
    }
}
