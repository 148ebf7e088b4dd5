//! What one machine does: alone among peers that a test speaks for, or among a few machines that are joined by perfect
//! links.

mod claims;
mod evidence;
mod facts;
mod flaps;
mod hostile;
mod probes;
mod properties;
mod speed;
mod suspicions;
mod sync;

use std::collections::BTreeMap;

use super::*;
use crate::wire::membership::{Introduction, Summary, encode_all};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const PATH: Path = Path { rtt: Duration::from_millis(1), datagram_max: 1162 };

pub(super) fn params() -> Params {
    Params {
        probe_interval: secs(1),
        probe_timeout: millis(500),
        dial_allowance: secs(1),
        probe_helpers: 3,
        score_max: 7,
        suspicion_mult: 4,
        suspicion_max_mult: 6,
        suspicion_accusers: 2,
        retransmit_mult: 4,
        gossip_interval: millis(200),
        gossip_fanout: 3,
        gossip_to_dead: secs(30),
        sync_interval: secs(30),
        reconnect_interval: secs(10),
        dead_kept: secs(600),
        flap_deaths: 3,
        flap_window: secs(600),
        hold_down: secs(60),
        hold_down_max: secs(3600),
        kept_links: 3,
        members_max: 16_384,
        facts_max: 256,
        lifeguard: Lifeguard { probe: true, suspicion: true, buddy: true },
        // So that a claim stands as it comes; what is made of sudden deaths has tests of its own.
        doubts_sudden_death: false,
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(format!("{name}@10.0.0.1:1").parse().unwrap(), 1)
}

fn short(name: &str) -> ShortId {
    ShortId::of(&id(name))
}

/// What a member says of itself when it has nothing to say.
fn introduction(id: NodeId, life: Life, refutation: u32) -> Introduction {
    let (flags, addresses, metadata) = (NodeFlags::default(), vec![], Bytes::new());
    Introduction { id, life, refutation, profile: 0, flags, addresses, metadata }
}

fn alive(name: &str, refutation: u32) -> Swim {
    Swim::Alive { subject: short(name), refutation, profile: 0 }
}

fn suspect(name: &str, refutation: u32, accuser: &str) -> Swim {
    Swim::Suspect { subject: short(name), refutation, accuser: short(accuser) }
}

fn dead(name: &str, refutation: u32, accuser: &str) -> Swim {
    Swim::Dead { subject: short(name), refutation, accuser: short(accuser) }
}

fn left(name: &str, refutation: u32) -> Swim {
    Swim::Left { subject: short(name), refutation }
}

/// What a peer does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It answers for itself, has no answer from others, and objects to what is said of it.
    Well,
    /// It says nothing.
    Silent,
    /// It answers for itself only.
    NoHelp,
    /// Its datagrams are lost.
    OnlyStreams,
}

/// One machine, `m`, among peers. Ticks are put off until a test wants them.
struct One {
    now: Instant,
    node: Membership,
    outputs: Vec<(Instant, Output)>,
    manners: BTreeMap<NodeId, Manner>,
    /// How often each peer has objected.
    refutations: BTreeMap<NodeId, u32>,
}

impl One {
    fn new() -> Self {
        Self::with(params(), Profile::default())
    }

    fn with(params: Params, profile: Profile) -> Self {
        let now = Instant::now();
        let node = Membership::new(id("m"), profile, params, 7, now);
        let (outputs, manners, refutations) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut one = Self { now, node, outputs, manners, refutations };
        let far = now + secs(1 << 30);
        (one.node.next_probe, one.node.next_sync, one.node.next_reconnect) = (far, far, far);
        one.settle();
        one
    }

    /// A node with links to these, all at rest.
    fn among(names: &[&str]) -> Self {
        let mut one = Self::new();
        one.link_all(names);
        one
    }

    fn link_all(&mut self, names: &[&str]) {
        names.iter().for_each(|name| self.link(&id(name)));
        self.rest();
        // What is asked from now on is not answered by the handshakes.
        self.run(millis(1));
    }

    /// Nothing is to be told, and no exchange goes on.
    fn rest(&mut self) {
        (self.node.rumours, self.node.exchange, self.node.next_gossip) = (Rumours::default(), None, None);
        self.node.sync_wanted.clear();
        self.outputs.clear();
    }

    fn link(&mut self, peer: &NodeId) {
        self.handle(Input::Linked { peer: peer.clone(), addresses: vec![], flags: NodeFlags::default(), path: PATH });
    }

    fn unlink(&mut self, name: &str, why: Unlinked) {
        self.handle(Input::Unlinked { peer: id(name), why });
    }

    fn handle(&mut self, input: Input) {
        self.node.handle(input, self.now);
        self.settle();
    }

    /// A packet of a peer.
    fn hear(&mut self, from: &str, frames: &[Swim]) {
        self.hear_from(&id(from), frames);
    }

    fn hear_from(&mut self, from: &NodeId, frames: &[Swim]) {
        self.hear_bytes(from, encode_all(frames));
    }

    fn hear_bytes(&mut self, from: &NodeId, packet: Bytes) {
        self.handle(Input::Packet { from: from.clone(), way: Way::Datagram, path: PATH, packet });
    }

    /// A peer introduces these.
    fn introduce(&mut self, by: &str, names: &[&str]) {
        for name in names {
            self.hear(by, &[Swim::Introduce(introduction(id(name), Life::Alive, 0))]);
        }
    }

    fn slot(&self, name: &str) -> Slot {
        self.node.table.by_name(id(name).name()).unwrap()
    }

    fn probe(&mut self, name: &str) {
        self.node.probe_soon(self.slot(name), self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(output) = self.node.poll_output() {
            if let Output::Send { to, way, packet, .. } = &output
                && let Some(answer) = self.answer(to, *way, packet)
            {
                let (from, way) = (to.clone(), *way);
                self.node.handle(Input::Packet { from, way, path: PATH, packet: encode_all(&answer) }, self.now);
            }
            self.outputs.push((self.now, output));
        }
    }

    fn answer(&mut self, of: &NodeId, way: Way, packet: &Bytes) -> Option<Vec<Swim>> {
        let manner = self.manners.get(of).copied().unwrap_or(Manner::Well);
        if manner == Manner::Silent || (manner == Manner::OnlyStreams && way == Way::Datagram) {
            return None;
        }
        let own = self.refutations.entry(of.clone()).or_default();
        let mut answer = Vec::new();
        for frame in frames(packet) {
            match frame {
                Swim::Ping { seq, .. } => answer.push(Swim::Ack { seq, refutation: *own }),
                Swim::PingReq { seq, .. } if manner == Manner::Well => answer.push(Swim::Nack { seq }),
                Swim::Suspect { subject, refutation, .. }
                | Swim::Dead { subject, refutation, .. }
                | Swim::Left { subject, refutation }
                    if subject == ShortId::of(of) && refutation >= *own =>
                {
                    *own = refutation + 1;
                    answer.push(Swim::Alive { subject, refutation: *own, profile: 0 });
                }
                _ => {}
            }
        }
        (!answer.is_empty()).then_some(answer)
    }

    /// Lets time pass. What is due at the end happens.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.node.poll_timeout().filter(|due| *due <= end) {
            assert!(due >= self.now || self.node.poll_timeout().is_some(), "time goes on");
            self.now = self.now.max(due);
            self.node.handle_timeout(self.now);
            assert!(self.node.poll_timeout().is_none_or(|next| next > self.now), "due at once again");
            self.settle();
        }
        self.now = end;
    }

    /// What was sent since this was last asked, each frame by itself.
    fn sent(&mut self) -> Vec<(NodeId, Way, Swim)> {
        let mut sent = Vec::new();
        for (_, output) in self.outputs.extract_if(.., |(_, output)| matches!(output, Output::Send { .. })) {
            if let Output::Send { to, way, packet, .. } = output {
                sent.extend(frames(&packet).into_iter().map(|frame| (to.clone(), way, frame)));
            }
        }
        sent
    }

    fn sent_to(&mut self, name: &str) -> Vec<Swim> {
        let sent = self.sent().into_iter().filter(|(to, _, _)| *to == id(name));
        sent.map(|(_, _, frame)| frame).collect()
    }

    fn events(&mut self) -> Vec<MemberEvent> {
        let events = self.outputs.extract_if(.., |(_, output)| matches!(output, Output::Event(_)));
        let events =
            events.filter_map(|(_, output)| if let Output::Event(event) = output { Some(event) } else { None });
        events.collect()
    }

    fn dials(&mut self) -> Vec<NodeName> {
        let dials = self.outputs.extract_if(.., |(_, output)| matches!(output, Output::Dial { .. }));
        dials.filter_map(|(_, output)| if let Output::Dial { peer } = output { Some(peer) } else { None }).collect()
    }

    fn member(&self, name: &str) -> Member {
        self.node.member(id(name).name()).unwrap()
    }

    fn state(&self, name: &str) -> (MemberState, u32) {
        let member = self.member(name);
        (member.state, member.refutation)
    }

    fn set_manner(&mut self, name: &str, manner: Manner) {
        self.manners.insert(id(name), manner);
    }

    /// How long after now a member is declared dead, if that is within a minute.
    fn dies_after(&mut self, name: &str) -> Option<Duration> {
        let start = self.now;
        self.outputs.clear();
        self.run(secs(60));
        let death = self.outputs.iter().find(
            |(_, output)| matches!(output, Output::Event(MemberEvent::Died { member, .. }) if member.id == id(name)),
        );
        death.map(|(when, _)| *when - start)
    }
}

/// How long it takes, on a real clock.
fn time(what: impl FnOnce()) -> Duration {
    let start = Instant::now();
    what();
    start.elapsed()
}

fn frames(packet: &Bytes) -> Vec<Swim> {
    read(packet.clone()).map(|frame| frame.expect("a machine writes what it can read")).collect()
}

/// A few nodes, all linked, whose packets arrive at once.
struct Few {
    now: Instant,
    nodes: BTreeMap<NodeName, Membership>,
    events: Vec<(NodeId, MemberEvent)>,
    /// Facts: where, of whom, what.
    facts: Vec<(NodeId, NodeId, Bytes)>,
    silent: Vec<NodeId>,
    /// What was sent, in packets and bytes.
    packets: usize,
    bytes: usize,
    largest: usize,
    /// So many packets more arrive; the rest is lost.
    limit: Option<usize>,
}

impl Few {
    fn new(names: &[&str]) -> Self {
        let now = Instant::now();
        let (events, facts, silent) = (Vec::new(), Vec::new(), Vec::new());
        let mut few =
            Self { now, nodes: BTreeMap::new(), events, facts, silent, packets: 0, bytes: 0, largest: 0, limit: None };
        for (seed, name) in names.iter().enumerate() {
            let node = Membership::new(id(name), Profile::default(), params(), seed as u64, now);
            few.nodes.insert(node.id().name().clone(), node);
        }
        for (n, one) in names.iter().enumerate() {
            names[..n].iter().for_each(|other| few.link(one, other));
        }
        few.settle();
        few
    }

    fn link(&mut self, one: &str, other: &str) {
        for (at, peer) in [(one, other), (other, one)] {
            let linked = Input::Linked { peer: id(peer), addresses: vec![], flags: NodeFlags::default(), path: PATH };
            self.handle(&id(at), linked);
        }
    }

    fn node(&mut self, name: &str) -> &mut Membership {
        self.nodes.get_mut(id(name).name()).unwrap()
    }

    fn handle(&mut self, node: &NodeId, input: Input) {
        let now = self.now;
        self.nodes.get_mut(node.name()).unwrap().handle(input, now);
    }

    /// Delivers until nothing is under way.
    fn settle(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 1000, "they go on for ever");
        }
    }

    /// Delivers what is under way. False if nothing is.
    fn step(&mut self) -> bool {
        let mut sent = Vec::new();
        for node in self.nodes.values_mut() {
            while let Some(output) = node.poll_output() {
                match output {
                    Output::Send { to, way, packet, .. } => {
                        self.packets += 1;
                        self.bytes += packet.len();
                        self.largest = self.largest.max(packet.len());
                        sent.push((node.id().clone(), to, way, packet));
                    }
                    Output::Event(event) => self.events.push((node.id().clone(), event)),
                    Output::Fact { from, body, .. } => self.facts.push((node.id().clone(), from, body)),
                    _ => {}
                }
            }
        }
        let is_quiet = sent.is_empty();
        for (from, to, way, packet) in sent {
            if self.limit.is_some_and(|limit| limit == 0) {
                continue;
            }
            self.limit = self.limit.map(|limit| limit - 1);
            if !self.silent.contains(&from) && !self.silent.contains(&to) {
                self.handle(&to, Input::Packet { from, way, path: PATH, packet });
            }
        }
        !is_quiet
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self.nodes.values().filter(|node| !self.silent.contains(node.id()));
            let Some(due) = due.filter_map(Membership::poll_timeout).min().filter(|due| *due <= end) else { break };
            self.now = due;
            for node in self.nodes.values_mut().filter(|node| !self.silent.contains(node.id())) {
                if node.poll_timeout().is_some_and(|next| next <= due) {
                    node.handle_timeout(due);
                }
            }
            self.settle();
        }
        self.now = end;
    }

    fn state(&self, at: &str, of: &str) -> MemberState {
        self.nodes[id(at).name()].member(id(of).name()).unwrap().state
    }
}

/// Nodes that are well stay so: no suspicion in a long time, every probe answered.
#[test]
fn the_healthy_are_left_alone() {
    let mut few = Few::new(&["a", "b", "c", "d", "e"]);
    few.run(secs(600));
    for node in few.nodes.values() {
        let counters = node.counters();
        assert_eq!((counters.failures, counters.suspicions, node.score(), node.live()), (0, 0, 0, 5));
        assert!(counters.probes > 500 && counters.acks == counters.probes, "{counters:?}");
    }
    assert!(few.events.iter().all(|(_, event)| matches!(event, MemberEvent::Joined(_))));
}

/// One that falls silent is suspected, then declared dead, by all, and nobody else is.
#[test]
fn the_silent_die() {
    let mut few = Few::new(&["a", "b", "c", "d", "e"]);
    few.run(secs(10));
    few.events.clear();
    few.silent.push(id("e"));
    few.run(secs(30));
    for at in ["a", "b", "c", "d"] {
        assert_eq!(few.state(at, "e"), MemberState::Dead);
        assert_eq!(few.nodes[id(at).name()].live(), 4);
    }
    let about: Vec<_> = few.events.iter().map(|(_, event)| event.clone()).collect();
    assert_eq!(about.len(), 8, "{about:#?}");
    assert!(about.iter().all(|event| match event {
        MemberEvent::Suspected { member, .. } | MemberEvent::Died { member, .. } => member.id == id("e"),
        _ => false,
    }));
}

/// Falsely declared dead, a node objects as soon as it hears of it, and is back as the same life.
#[test]
fn the_falsely_dead_return() {
    let mut few = Few::new(&["a", "b", "c"]);
    few.silent.push(id("c"));
    few.run(secs(30));
    assert_eq!(few.state("a", "c"), MemberState::Dead);
    few.silent.clear();
    few.run(secs(30));
    assert_eq!(few.state("a", "c"), MemberState::Alive);
    assert_eq!(few.state("b", "c"), MemberState::Alive);
    assert!(few.node("a").member(id("c").name()).unwrap().refutation >= 1);
    let returned = few.events.iter().filter(|(_, event)| matches!(event, MemberEvent::Returned(m) if m.id == id("c")));
    assert_eq!(returned.count(), 2);
}

/// Whoever says good-bye has left, everywhere, and is not suspected.
#[test]
fn who_leaves_has_left() {
    let mut few = Few::new(&["a", "b", "c"]);
    few.run(secs(2));
    few.events.clear();
    few.handle(&id("c"), Input::Leave);
    few.settle();
    assert_eq!((few.state("a", "c"), few.state("b", "c")), (MemberState::Left, MemberState::Left));
    few.run(secs(60));
    assert!(few.events.iter().all(|(_, event)| matches!(event, MemberEvent::Left(_))), "{:?}", few.events);
}
