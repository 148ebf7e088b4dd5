//! A member that is let in, and acts where it has no part, or in another's name.

use bytes::Bytes;

use super::fake::{Fake, Frames, Joined, call, message_frame, number_schema, schema_frame, service_frame};
use super::*;
use crate::groups::Group;
use crate::id::Pid;
use crate::monitor::Monitored;
use crate::proto::monitor::Fate;
use crate::registry::{Name, Registry};
use crate::transport::link::Sender;
use crate::wire::StreamKind;
use crate::wire::services::monitor::Gone;
use crate::wire::services::registry::{Answer, Request, Token};
use crate::wire::services::replication::{Binding, Entry, Joined as Membership, Key, Mine, State};
use crate::wire::services::{Monitor, NUMBERED_MAX, Registry as Claims, Replication, Service, Text, numbered};

const DESK: Name<u64> = Name::new("desk");
const FAR: Name<u64> = Name::new("far");
const ROOM: Group<u64> = Group::new("room");

/// A and B take part in the scopes x and y; the peer in x only.
struct Scoped {
    a: Node,
    b: Node,
    /// Of A and of B; each has a name in both scopes, and is in a group in both.
    desks: [Mailbox<u64>; 2],
    fabric: Fabric,
    cookie: Cookie,
}

/// What a peer says and is told, on the stream of its services.
struct Talk {
    fake: Fake,
    /// Keeps the link.
    _joined: Joined,
    said: u64,
    stream: Sender,
    heard: Frames,
}

impl Scoped {
    async fn new() -> Self {
        let (fabric, cookie) = (Fabric::new(184), Cookie::generate());
        let builder = |host: u8| {
            Node::builder(format!("n@10.0.0.{host}").as_str())
                .cookie(cookie.clone())
                .network(fabric.host([10, 0, 0, host]))
                .config(quiet(Config::default()))
                .scope("x")
                .scope("y")
        };
        let a = builder(1).start().await.unwrap();
        let b = builder(2).join(a.name()).start().await.unwrap();
        b.ready().await.unwrap();
        let desks = [a.mailbox(), b.mailbox()];
        for scope in ["x", "y"] {
            for ((node, desk), name) in [&a, &b].into_iter().zip(&desks).zip([DESK, FAR]) {
                let registry = node.registry().in_scope(scope).unwrap();
                registry.register(name, desk).metadata("as it was").everywhere().await.unwrap();
                node.groups().in_scope(scope).unwrap().join(ROOM, desk).unwrap();
            }
        }
        Self { a, b, desks, fabric, cookie }
    }

    fn registry(&self, scope: &str) -> Registry {
        self.a.registry().in_scope(scope).unwrap()
    }

    /// A peer that has said it takes part in the default scope and in x, and has heard what A says of itself.
    async fn peer(&self, host: u8) -> Talk {
        let fake = Fake::new(&self.fabric, &self.cookie, "default", &format!("x@10.0.0.{host}:4370"));
        let joined = fake.join(&self.a).await;
        let stream = joined.open(&[StreamKind::Services.to_byte()]).await;
        let heard = loop {
            let mut heard = Frames::new(joined.link.accept().await.unwrap(), NUMBERED_MAX);
            heard.begin().await.unwrap();
            if heard.kind() == Some(StreamKind::Services) {
                break heard;
            }
        };
        let mut talk = Talk { fake, _joined: joined, said: 0, stream, heard };
        let mine = |scope: &str| Mine { scope: scope.into(), version: 0, digest: 0 };
        talk.say(Service::Replication(Replication::Status { scopes: vec![mine(""), mine("x")] })).await;
        talk
    }

    /// In this scope all is as it was, and A and B still agree.
    async fn is_untouched(&self, scope: &str) {
        let expected = [(DESK, &self.desks[0]), (FAR, &self.desks[1])];
        // A round of comparisons later.
        sleep(secs(3)).await;
        for node in [&self.a, &self.b] {
            let registry = node.registry().in_scope(scope).unwrap();
            let entries = registry.entries().into_iter().map(|entry| (entry.name, entry.owner, entry.metadata));
            let expected = expected.clone().map(|(name, desk)| (name.name().into(), desk.pid(), "as it was".into()));
            assert_eq!(entries.collect::<Vec<(Arc<str>, Pid, Bytes)>>(), expected, "{scope} at {node:?}");
            let members = node.groups().in_scope(scope).unwrap().memberships(ROOM);
            let members: Vec<_> = members.into_iter().map(|member| (member.pid, member.count)).collect();
            assert_eq!(members, [(self.desks[0].pid(), 1), (self.desks[1].pid(), 1)], "{scope} at {node:?}");
        }
    }
}

impl Talk {
    async fn say(&mut self, service: Service) {
        self.stream.write(&service_frame(self.said, &service)).await.unwrap();
        self.said += 1;
    }

    async fn next(&mut self) -> Option<Service> {
        let frame = self.heard.next().await?;
        let (_, frame) = numbered(frame).unwrap().unwrap();
        Service::decode(frame).unwrap()
    }

    /// What A answers to a question about names.
    async fn ask(&mut self, request: Request) -> Answer {
        let number = 1_000 + self.said;
        self.say(Service::Registry(Claims::Request { number, clock: 1, request })).await;
        loop {
            let service = timeout(secs(30), self.next()).await.expect("an answer").expect("an answer");
            match service {
                Service::Registry(Claims::Answer { number: of, answer, .. }) if of == number => return answer,
                _ => {}
            }
        }
    }

    /// Its session is over, for what it did.
    async fn ends(self, mut events: NodeEvents) {
        let end = NodeEvent::Down(self.fake.id.clone(), DownReason::Disconnected);
        let ended = async { while events.next().await.unwrap() != end {} };
        timeout(secs(60), ended).await.expect("its end is told");
    }

    /// Says that of its own log, or of another's.
    async fn write(&mut self, scope: &str, owner: Option<NodeId>, entries: Vec<Entry>) {
        let upto = entries.iter().map(|entry| entry.version).max().unwrap_or_default();
        let scope = scope.into();
        let frame = Replication::Entries { scope, owner, since: 0, upto, is_reset: false, digest: None, entries };
        self.say(Service::Replication(frame)).await;
    }

    /// How A says that it has read so much of a log.
    async fn has(&mut self, owner: Option<NodeId>) -> u64 {
        loop {
            match timeout(secs(30), self.next()).await.expect("an answer").expect("an answer") {
                Service::Replication(Replication::Have { owner: of, version, .. }) if of == owner => return version,
                _ => {}
            }
        }
    }
}

fn bound(version: u64, name: &str, serial: u64) -> Entry {
    let binding = Binding { serial, stamp: 1, after: None, tag: "u64".into(), metadata: Bytes::new() };
    Entry { version, key: Key::Name(name.into()), state: State::Bound(Arc::new(binding)) }
}

fn joined(version: u64, serial: u64) -> Entry {
    let (group, tag) = ("room".into(), "u64".into());
    Entry { version, key: Key::Member { group, serial }, state: State::Joined(Membership { count: 1, tag }) }
}

/// Whoever takes no part in a scope is told nothing of its names and decides nothing about them, whatever it asks; in a scope
/// of its own the same is answered.
#[tokio::test(start_paused = true)]
async fn a_peer_of_one_scope_has_no_say_in_another() {
    let world = Scoped::new().await;
    let mut peer = world.peer(9).await;
    let (own, serial) = (peer.fake.id.clone(), world.desks[0].pid().serial());
    let requests = |scope: &str, name: &str| {
        let (scope, name): (Text, Text) = (scope.into(), name.into());
        let at = || (scope.clone(), name.clone());
        let vote = |node: &NodeId| {
            let ((scope, name), token) = (at(), Token { node: node.clone(), number: 5 });
            Request::Vote { scope, name, token, serial: 7, stamp: 1, replacing: None, free: None, spent: None }
        };
        let ((scope, name), contender) = (at(), Pid::new(own.clone(), 7));
        let contend = Request::Contend { scope, name, serial, contender, stamp: u64::MAX >> 4 };
        let ((scope, name), replacing) = (at(), Some(world.desks[0].pid()));
        let replace = Request::Claim { scope, name, claim: 6, serial: 7, replacing, has_voted: false };
        let (scope, name) = at();
        let claim = Request::Claim { scope, name, claim: 5, serial: 7, replacing: None, has_voted: false };
        let (scope, name) = at();
        let confirm = Request::Confirm { scope, name, serial };
        let (scope, name) = at();
        let update = Request::Update { scope, name, serial, version: 1, metadata: "stolen".into() };
        let (scope, name) = at();
        let release = Request::Release { scope, name, serial, successor: None };
        let ((scope, name), successor) = (at(), Some(Pid::new(own.clone(), 7)));
        let hand_over = Request::Release { scope, name, serial, successor };
        let hold = Request::Hold { scope: at().0 };
        [claim, replace, vote(&own), vote(&world.b.id()), contend, confirm, update, release, hand_over, hold]
    };
    for name in ["desk", "free"] {
        for request in requests("y", name) {
            assert_eq!(peer.ask(request.clone()).await, Answer::NotInScope, "{request:?}");
        }
    }
    world.is_untouched("y").await;
    for request in requests("x", "free") {
        assert_ne!(peer.ask(request.clone()).await, Answer::NotInScope, "{request:?}");
    }
    world.is_untouched("x").await;
    // Of the owners in its own scope it may ask what every node may.
    let (scope, name): (Text, Text) = ("x".into(), "desk".into());
    let release = Request::Release { scope, name, serial, successor: None };
    assert!(matches!(peer.ask(release).await, Answer::Released { .. }));
    assert_eq!(world.registry("x").entry(DESK), None);
    world.is_untouched("y").await;
}

/// What it writes into a scope of others ends its session, be it said of its own log or of another's.
#[tokio::test(start_paused = true)]
async fn a_peer_of_one_scope_cannot_write_into_another() {
    let world = Scoped::new().await;
    let serial = world.desks[0].pid().serial();
    for (host, entry, of_b) in
        [(7, bound(1, "desk", 7), false), (8, joined(1, 7), false), (9, bound(1, "far", 7), true)]
    {
        let mut peer = world.peer(host).await;
        let events = world.a.cluster().node_events();
        let owner = of_b.then(|| world.b.id());
        peer.write("y", owner, vec![entry]).await;
        peer.ends(events).await;
        world.is_untouched("y").await;
    }
    assert!(world.a.shared().mailboxes.inbox(serial).is_some());
}

/// A log is its owner's: a mailbox of another node is neither bound nor joined by it, for all that numbers are the same. What
/// a peer says of another's log, unasked, is not taken; of this node's own even less.
#[tokio::test(start_paused = true)]
async fn a_peer_writes_of_its_own_mailboxes_alone() {
    let world = Scoped::new().await;
    let mut peer = world.peer(9).await;
    let (here, there) = (world.desks[0].pid().serial(), world.desks[1].pid().serial());
    for owner in [world.b.id(), world.a.id()] {
        let stolen = vec![bound(1_000, "stolen", there), joined(1_001, there + 1), bound(1_002, "desk", here + 1)];
        peer.write("x", Some(owner.clone()), stolen).await;
        assert!(peer.has(Some(owner)).await < 1_000, "it is not taken");
    }
    world.is_untouched("x").await;
    assert!(world.a.registry().stats().await.contradicted > 0);
    peer.write("x", None, vec![bound(1, "mine", there), joined(2, here)]).await;
    while peer.has(None).await < 2 {}
    let mine = world.registry("x").entry(Name::<u64>::new("mine")).map(|entry| entry.owner);
    assert_eq!(mine, Some(Pid::new(peer.fake.id.clone(), there)));
    let members = world.a.groups().in_scope("x").unwrap().memberships(ROOM);
    let of = |pid: &Pid| members.iter().filter(|member| member.pid == *pid).map(|member| member.count).sum::<u32>();
    assert_eq!(of(&Pid::new(peer.fake.id.clone(), here)), 1);
    assert_eq!([of(&world.desks[0].pid()), of(&world.desks[1].pid())], [1, 1]);
}

/// It contends in another's name, or answers what another was asked: its session ends, and nothing comes of it.
#[tokio::test(start_paused = true)]
async fn a_peer_speaks_for_nobody_else() {
    let world = Scoped::new().await;
    let mut peer = world.peer(9).await;
    let (scope, name): (Text, Text) = ("x".into(), "desk".into());
    let (serial, contender) = (world.desks[0].pid().serial(), world.desks[1].pid());
    let contend = Request::Contend { scope, name, serial, contender, stamp: 0 };
    let events = world.a.cluster().node_events();
    peer.say(Service::Registry(Claims::Request { number: 1, clock: 1, request: contend })).await;
    peer.ends(events).await;
    world.is_untouched("x").await;

    // B is asked to give a name up, and is frozen; the peer answers in its place, by every number that there may be.
    let mut peer = world.peer(8).await;
    world.fabric.freeze(world.b.local_addr().ip());
    let (registry, far) = (world.registry("x"), world.desks[1].pid());
    let asking = tokio::spawn(async move { registry.unregister(FAR, far).await });
    sleep(secs(1)).await;
    let events = world.a.cluster().node_events();
    for number in 0..100 {
        let answer = Answer::Released { version: 1, stamp: 1 };
        let frame = Service::Registry(Claims::Answer { number, clock: 1, answer });
        let _ = peer.stream.write(&service_frame(peer.said, &frame)).await;
        peer.said += 1;
    }
    sleep(secs(1)).await;
    assert!(!asking.is_finished(), "whoever asked waits for the owner");
    world.fabric.thaw(world.b.local_addr().ip());
    assert_eq!(timeout(secs(30), asking).await.unwrap().unwrap(), Ok(()));
    peer.ends(events).await;
    assert_eq!(world.registry("x").entry(FAR), None);
}

/// That a mailbox of B is gone, B alone says; that B no longer watches one of A, B too.
#[tokio::test(start_paused = true)]
async fn a_peer_ends_no_watch_of_others() {
    let Scoped { a, b, desks: [here, there], fabric, cookie } = Scoped::new().await;
    let mut inbox = a.mailbox::<u64>();
    inbox.monitor(&there, |_| 1000);
    let (mut of_there, mut of_here) = (a.monitor(&there), b.monitor(&here));
    let mut own = a.monitor(&here);
    let world = Scoped { a, b, desks: [here, there], fabric, cookie };
    let mut peer = world.peer(9).await;
    let serials = world.desks.each_ref().map(|desk| desk.pid().serial());
    for serial in serials {
        for mailbox in [None, Some(inbox.pid().serial())] {
            peer.say(Service::Monitor(Monitor::Unwatch { serial, mailbox })).await;
        }
        let cuts = vec![crate::wire::services::monitor::Cut { mailbox: inbox.pid().serial(), number: 0 }];
        peer.say(Service::Monitor(Monitor::Down { serial, gone: Gone::Closed, cuts })).await;
    }
    for monitor in [&mut of_there, &mut of_here, &mut own] {
        assert!(timeout(secs(5), monitor).await.is_err(), "nobody is told");
    }
    assert_eq!(inbox.try_recv(), Err(RecvError::Empty));
    let targets = world.desks.each_ref().map(Monitored::from);
    drop(world.desks);
    for (monitor, target) in [(of_there, &targets[1]), (of_here, &targets[0]), (own, &targets[0])] {
        let notice = timeout(secs(5), monitor).await.expect("the true end is told");
        assert_eq!((notice.fate, &notice.target), (Fate::Closed, target));
    }
    assert_eq!(inbox.recv_timeout(secs(5)).await, Ok(1000));
}

/// Who sent a message, or made a call, is who the session is with: nothing in it says otherwise.
#[tokio::test(start_paused = true)]
async fn a_peer_is_known_by_its_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    let lane =
        [&schema_frame(0, &number_schema())[..], &message_frame(world.victim.pid().serial(), 0, 0, &[7])].concat();
    let _lane = joined.open(&[&[StreamKind::Lane.to_byte()], &lane[..]].concat()).await;
    let received = world.victim.recv_full().await.unwrap();
    assert_eq!((received.message, received.from), (7, fake.id.clone()));
    assert_eq!(world.runs.load(Ordering::Relaxed), 0);
    let _calls = joined.open(&[&[StreamKind::Calls.to_byte()], &call(1, "double", 1_000)[..]].concat()).await;
    world.talk().await;
    assert_eq!(world.runs.load(Ordering::Relaxed), 1, "it is served as another than B");
}
