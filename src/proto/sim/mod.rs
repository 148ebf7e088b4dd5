//! Many machines under one virtual clock, with every fault that a network and a computer have.
//!
//! One thread and one seed: the same run again gives the same trace, packet by packet. What a machine is does not matter
//! here, as long as it is a [`Machine`]; the links below it behave as QUIC's do. Rules are checked at each event.
//!
//! ```text
//! Sim -- inputs, time -->  Machine  -- outputs --> Sim -- fate and latency of each packet --> Agenda --> Sim
//!                                                   '--> Check (what must never happen), Report (what was seen)
//! ```
#![allow(missing_docs, missing_debug_implementations, reason = "read by tests and by one benchmark")]

mod check;
mod clock;
mod faults;
mod links;
mod machine;
mod network;
mod ours;
mod report;
mod transit;

#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod search;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod toy;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::check::{Breach, Rules, Violation};
pub use self::faults::{Chances, Chaos};
pub use self::links::LinkTimes;
pub use self::machine::{
    FIRST_LIFE, Id, Input, LIFE_STEP, Machine, Output, Path, Rank, Seen, State, Unlinked, Way, What,
};
pub use self::network::Network;
pub use self::ours::{Ours, Setup, Tuning};
pub use self::report::{Crash, Fault, Faults, Report, Spread, percentile};

use self::check::{Check, Picture, digest_of};
use self::clock::{Agenda, Clock, Time, nanos};
use self::links::{LinkId, Links};
use self::network::{Between, mix};
use self::report::Divergence;
use self::transit::{Event, Work};

/// How a simulation is set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub network: Network,
    pub links: LinkTimes,
    /// What a datagram may hold.
    pub datagram_max: usize,
    /// How long a node waits before it dials a contact again that did not answer.
    pub contact_interval: Duration,
    /// How often contacts are dialled again that the node does not hold for live; never, when there is none.
    pub contact_again: Option<Duration>,
    /// What is checked; nothing, when the machine has other rules.
    pub rules: Option<Rules>,
    /// Whether a breach of the rules ends the run with a panic, which names the seed.
    pub is_strict: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            network: Network::default(),
            links: LinkTimes::default(),
            datagram_max: 1_162,
            contact_interval: Duration::from_secs(1),
            contact_again: None,
            rules: None,
            is_strict: true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Crashed,
    /// It has said good-bye.
    Left,
}

/// A dial that has not ended.
#[derive(Clone, Copy, Debug)]
struct Dial {
    number: u64,
    flights: usize,
}

#[derive(Debug)]
struct Node<M> {
    machine: Option<M>,
    id: Id,
    /// The first life of this process: a machine may take later ones by itself.
    born: u32,
    phase: Phase,
    clock: Clock,
    /// When the next timer event is planned.
    timer: Option<Time>,
    frozen_until: Option<Time>,
    blocked_until: Option<Time>,
    /// How long each piece of work takes.
    service: Time,
    busy_until: Time,
    is_wake_planned: bool,
    inbox: VecDeque<Work>,
    links: BTreeMap<u32, (LinkId, usize)>,
    dials: BTreeMap<u32, Dial>,
    /// Those that it is configured to dial, and those of them that it has not had a link to yet.
    joins: BTreeSet<u32>,
    contacts: BTreeSet<u32>,
    /// When the application of a peer was last heard.
    heard: BTreeMap<u32, Time>,
    /// Whether anything was ever done to this node.
    is_tainted: bool,
    is_leaving: bool,
}

/// Machines, the network between them, and the time.
#[derive(Debug)]
pub struct Sim<M: Machine> {
    seed: u64,
    setup: M::Setup,
    settings: Settings,
    base: Instant,
    now: Time,
    rng: fastrand::Rng,
    agenda: Agenda<Event>,
    nodes: Vec<Node<M>>,
    links: Links,
    between: Between,
    flows: Vec<Flow>,
    dials: u64,
    check: Check,
    divergence: Divergence,
    /// The ids of all that run, as a picture that is right would have them.
    truth: u64,
    violations: Vec<Violation>,
    report: Report,
    trace: u64,
    /// The next node whose whole table is compared with its events.
    next_checked: usize,
    events_to_check: usize,
}

/// Application traffic from one node to another.
#[derive(Clone, Copy, Debug)]
struct Flow {
    from: u32,
    to: u32,
    every: Time,
}

impl<M: Machine> Sim<M> {
    /// An empty network. `base` is what every clock shows at the beginning.
    pub fn new(seed: u64, setup: M::Setup, settings: Settings, base: Instant) -> Self {
        let rules = settings.rules.unwrap_or(Rules { suspicion_max: Duration::MAX, score_max: u32::MAX });
        Self {
            seed,
            setup,
            settings,
            base,
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
            agenda: Agenda::new(),
            nodes: Vec::new(),
            links: Links::default(),
            between: Between::new(settings.network, mix(seed)),
            flows: Vec::new(),
            dials: 0,
            check: Check::new(rules),
            divergence: Divergence::default(),
            truth: 0,
            violations: Vec::new(),
            report: Report::default(),
            trace: seed,
            next_checked: 0,
            events_to_check: 0,
        }
    }

    /// Starts nodes that know each other already; the simulation must be empty.
    pub fn start(&mut self, nodes: u32) {
        assert!(self.nodes.is_empty(), "a template is for all nodes or for none");
        let template = M::template(&self.setup, nodes, self.base);
        let picture = Picture::of_template(nodes);
        self.nodes.reserve(nodes as usize);
        for node in 0..nodes {
            let id = Id { node, life: FIRST_LIFE };
            let machine = template.fork(id, self.rng.u64(..), self.base);
            self.add(machine, id, picture.clone());
        }
    }

    /// Starts nodes that know nobody; returns the first of them.
    pub fn start_alone(&mut self, nodes: u32) -> u32 {
        let first = self.nodes.len() as u32;
        for node in first..first + nodes {
            let id = Id { node, life: FIRST_LIFE };
            let machine = M::new(&self.setup, id, self.rng.u64(..), self.clock_now());
            self.add(machine, id, Picture::default());
        }
        first
    }

    /// The node dials the contact until it has a link to it, now and after each restart.
    pub fn join(&mut self, node: u32, contact: u32) {
        let this = &mut self.nodes[node as usize];
        this.joins.insert(contact);
        this.contacts.insert(contact);
        self.contact(node, contact);
        if let Some(again) = self.settings.contact_again {
            self.agenda.plan(self.now + nanos(again), Event::Again { node, to: contact });
        }
    }

    fn add(&mut self, machine: M, id: Id, picture: Picture) {
        self.nodes.push(Node {
            machine: None,
            id,
            born: id.life,
            phase: Phase::Crashed,
            clock: Clock::new(self.base, 1.0),
            timer: None,
            frozen_until: None,
            blocked_until: None,
            service: 0,
            busy_until: 0,
            is_wake_planned: false,
            inbox: VecDeque::new(),
            links: BTreeMap::new(),
            dials: BTreeMap::new(),
            joins: BTreeSet::new(),
            contacts: BTreeSet::new(),
            heard: BTreeMap::new(),
            is_tainted: false,
            is_leaving: false,
        });
        self.between.grow(self.nodes.len());
        self.check.grow(self.nodes.len());
        self.report.bytes_in.push(0);
        self.report.bytes_out.push(0);
        self.begin(machine, id, picture);
    }

    /// A process begins to run.
    fn begin(&mut self, machine: M, id: Id, picture: Picture) {
        let node = &mut self.nodes[id.node as usize];
        node.machine = Some(machine);
        (node.id, node.born, node.phase) = (id, id.life, Phase::Running);
        (node.timer, node.frozen_until, node.blocked_until, node.is_leaving) = (None, None, None, false);
        let is_late = node.service > 0;
        self.truth ^= digest_of(id);
        self.divergence.add(picture.digest, self.now);
        self.check.reset(id.node, picture);
        self.check.set_late(id.node, is_late, self.now);
        self.drain(id.node);
    }

    /// The process is gone; nobody is told.
    fn end(&mut self, node: u32, phase: Phase) {
        let this = &mut self.nodes[node as usize];
        (this.machine, this.phase) = (None, phase);
        this.inbox.clear();
        this.dials.clear();
        this.heard.clear();
        (this.timer, this.frozen_until, this.blocked_until) = (None, None, None);
        let (id, links) = (this.id, std::mem::take(&mut this.links));
        for (link, end) in links.into_values() {
            self.links.close(link, end);
        }
        self.truth ^= digest_of(id);
        self.divergence.remove(self.check.pictures[node as usize].digest, self.now);
        self.check.reset(node, Picture::default());
        self.report.observer_gone(node, self.now);
    }

    /// Ends the process without a word.
    pub fn crash(&mut self, node: u32) {
        let id = self.nodes[node as usize].id;
        assert!(self.is_running(node), "only what runs can crash");
        self.end(node, Phase::Crashed);
        let observers = (0..self.nodes.len() as u32).filter(|other| {
            let held = self.check.pictures[*other as usize].get(node);
            self.is_running(*other) && held.is_some_and(|held| held.life == id.life && held.state.is_live())
        });
        let waiting: BTreeSet<u32> = observers.collect();
        self.report.crashed(id, waiting, self.now);
    }

    /// A new process under the old name; it dials what the old one did, and this contact.
    pub fn restart(&mut self, node: u32, contact: u32) {
        let life = (self.id(node).life / LIFE_STEP + 1) * LIFE_STEP;
        self.restart_as(node, life, contact);
    }

    /// A new process under the old name whose clock has stepped back: its life is numbered below the one that ended.
    pub fn restart_stepped_back(&mut self, node: u32, contact: u32) {
        let life = self.nodes[node as usize].id.life - 1;
        self.restart_as(node, life, contact);
    }

    fn restart_as(&mut self, node: u32, life: u32, contact: u32) {
        assert!(!self.is_running(node), "a name has one process at a time");
        let id = Id { node, life };
        let machine = M::new(&self.setup, id, self.rng.u64(..), self.clock_of(node).at(self.now));
        self.report.faults.note(Fault::Restarted);
        self.begin(machine, id, Picture::default());
        let this = &mut self.nodes[node as usize];
        this.contacts.clone_from(&this.joins);
        this.contacts.insert(contact);
        let contacts: Vec<u32> = this.contacts.iter().copied().collect();
        contacts.into_iter().for_each(|contact| self.contact(node, contact));
    }

    /// Asks the node to say good-bye; it ends when it has.
    pub fn leave(&mut self, node: u32) {
        self.nodes[node as usize].is_leaving = true;
        self.tell(node, Input::Leave);
    }

    /// Holds up all that comes to the node and all that it does, timers too, and releases it at once in the end.
    pub fn freeze(&mut self, node: u32, duration: Duration) {
        let until = self.now + nanos(duration);
        let this = &mut self.nodes[node as usize];
        this.is_tainted = true;
        this.frozen_until = Some(this.frozen_until.map_or(until, |earlier| earlier.max(until)));
        self.report.faults.note(Fault::Frozen);
        self.check.set_late(node, true, self.now);
        self.agenda.plan(until, Event::Thaw { node });
    }

    /// Holds up all packets that come to the node and that it sends, and releases them in the end; its timers go on.
    pub fn block(&mut self, node: u32, duration: Duration) {
        let until = self.now + nanos(duration);
        let this = &mut self.nodes[node as usize];
        this.is_tainted = true;
        this.blocked_until = Some(this.blocked_until.map_or(until, |earlier| earlier.max(until)));
        self.report.faults.note(Fault::Blocked);
        self.agenda.plan(until, Event::Unblock { node });
    }

    /// Every piece of work takes the node so long from now on.
    ///
    /// The node's timers are one piece of work each.
    pub fn slow(&mut self, node: u32, service: Duration) {
        let this = &mut self.nodes[node as usize];
        this.is_tainted |= !service.is_zero();
        this.service = nanos(service);
        let is_late = this.service > 0 || this.frozen_until.is_some();
        self.check.set_late(node, is_late, self.now);
    }

    /// The node's clock runs so much faster, or slower, than time does.
    ///
    /// # Panics
    /// Panics after the node has begun to use it.
    pub fn drift(&mut self, node: u32, rate: f64) {
        assert_eq!(self.now, 0, "a clock does not jump");
        self.nodes[node as usize].clock = Clock::new(self.base, rate);
        self.nodes[node as usize].timer = None;
        self.report.faults.note(Fault::Drifting);
        self.plan_timer(node);
    }

    /// Lets nothing pass from one node to another; the other way is not touched.
    pub fn cut(&mut self, from: u32, to: u32) {
        self.taint(&[from, to]);
        self.between.cut(from, to);
    }

    /// Separates these nodes from the rest.
    pub fn partition(&mut self, nodes: &[u32]) {
        let all: Vec<u32> = (0..self.nodes.len() as u32).collect();
        self.taint(&all);
        self.between.split(nodes, 1);
    }

    /// Ends cuts, partitions, and losses of single nodes.
    pub fn heal(&mut self) {
        self.between.heal();
    }

    pub fn loss_in(&mut self, node: u32, loss: f64) {
        self.taint(&[node]);
        self.between.set_loss(node, Some(loss), None);
    }

    pub fn loss_out(&mut self, node: u32, loss: f64) {
        self.taint(&[node]);
        self.between.set_loss(node, None, Some(loss));
    }

    pub fn network(&mut self) -> &mut Network {
        &mut self.between.network
    }

    /// The application of one node sends to the other's from now on, on a stream of the link that there is, or is dialled.
    pub fn flow(&mut self, from: u32, to: u32, every: Duration) {
        self.flows.push(Flow { from, to, every: nanos(every) });
        self.agenda.plan(self.now, Event::Flow { flow: self.flows.len() - 1 });
    }

    /// Spreads a fact; the report's `facts` will say how.
    pub fn publish(&mut self, node: u32) {
        let number = self.report.facts.len() as u64;
        let audience = self.running().count() - 1;
        self.report.facts.push(Spread { origin: node, at: self.time(), arrivals: Vec::new(), audience });
        let body = Bytes::copy_from_slice(&number.to_be_bytes());
        self.tell(node, Input::Publish { topic: "simulated".into(), body });
    }

    pub fn set_metadata(&mut self, node: u32, metadata: Bytes) {
        self.tell(node, Input::SetMetadata { metadata });
    }

    /// Gives a node a packet as if a peer had sent it.
    pub fn forge(&mut self, from: Id, to: u32, packet: Bytes) {
        let path = self.path(from.node, to);
        self.tell(to, Input::Packet { from, way: Way::Stream, path, packet });
    }

    pub fn run_for(&mut self, duration: Duration) {
        let limit = self.now + nanos(duration);
        self.run_to(limit);
    }

    /// Runs until the condition holds, which is asked every 10 ms; returns how long that took, unless the limit came first.
    pub fn run_until(&mut self, mut condition: impl FnMut(&Self) -> bool, limit: Duration) -> Option<Duration> {
        let began = self.now;
        let end = began + nanos(limit);
        while !condition(self) {
            if self.now >= end {
                return None;
            }
            self.run_to((self.now + 10_000_000).min(end));
        }
        Some(Duration::from_nanos(self.now - began))
    }

    /// Whether every running node holds exactly those for live that run, in their present life.
    pub fn is_converged(&self) -> bool {
        self.divergence.is_agreed(self.truth)
    }

    /// Runs until the running nodes agree with the truth. That they do not is a breach of the rules.
    pub fn converge_within(&mut self, limit: Duration) -> Option<Duration> {
        let took = self.run_until(|sim| sim.is_converged(), limit);
        if took.is_none() {
            let views: Vec<String> = self.running().map(|node| self.describe(node)).take(8).collect();
            let observer = self.running().next().map_or(Id { node: 0, life: 0 }, |node| self.id(node));
            self.breach(Breach::NotConverged, observer, format!("after {limit:?} of calm: {}", views.join("; ")));
        }
        took
    }

    fn describe(&self, node: u32) -> String {
        let picture = &self.check.pictures[node as usize];
        let wrong = (0..self.nodes.len() as u32).filter(|other| {
            let live = picture.get(*other).filter(|held| held.state.is_live()).map(|held| held.life);
            live != self.is_running(*other).then(|| self.id(*other).life)
        });
        let wrong: Vec<String> = wrong.take(4).map(|other| format!("{other}: {:?}", picture.get(other))).collect();
        format!("{node} holds {} for live, and is wrong about {wrong:?}", picture.live)
    }

    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    pub fn is_running(&self, node: u32) -> bool {
        self.nodes[node as usize].phase == Phase::Running
    }

    pub fn is_frozen(&self, node: u32) -> bool {
        self.nodes[node as usize].frozen_until.is_some()
    }

    pub fn is_leaving(&self, node: u32) -> bool {
        self.nodes[node as usize].is_leaving
    }

    /// Whether the node's life is numbered as only a clock that stepped back does.
    pub fn has_stepped_back(&self, node: u32) -> bool {
        !self.id(node).life.is_multiple_of(LIFE_STEP)
    }

    pub fn running(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.nodes.len() as u32).filter(|node| self.is_running(*node))
    }

    pub fn id(&self, node: u32) -> Id {
        self.nodes[node as usize].id
    }

    pub fn machine(&self, node: u32) -> Option<&M> {
        self.nodes[node as usize].machine.as_ref()
    }

    /// What the node's subscriber was told of a member: its life and state.
    pub fn sees(&self, observer: u32, node: u32) -> Option<(u32, State)> {
        self.check.pictures[observer as usize].get(node).map(|held| (held.life, held.state))
    }

    /// Whether all running nodes but the member itself hold it in this state, whichever its life.
    pub fn all_see(&self, node: u32, state: State) -> bool {
        self.running().filter(|other| *other != node).all(|other| self.state(other, node) == Some(state))
    }

    pub fn state(&self, observer: u32, node: u32) -> Option<State> {
        self.sees(observer, node).map(|(_, state)| state)
    }

    /// How many the node holds for live.
    pub fn view(&self, node: u32) -> usize {
        self.check.pictures[node as usize].live as usize
    }

    /// How many different sets are held for live.
    pub fn distinct_views(&self) -> usize {
        self.divergence.distinct()
    }

    /// Takes the fingerprint of all that has happened.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    pub fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.diverged = self.divergence.total(self.now);
        report
    }

    /// Counts from zero again; facts that were published stay.
    pub fn clear_report(&mut self) {
        let zeros = || vec![0; self.nodes.len()];
        let facts = std::mem::take(&mut self.report.facts);
        self.report = Report { bytes_in: zeros(), bytes_out: zeros(), facts, ..Report::default() };
        self.divergence.clear(self.now);
    }

    fn taint(&mut self, nodes: &[u32]) {
        nodes.iter().for_each(|node| self.nodes[*node as usize].is_tainted = true);
    }

    fn clock_now(&self) -> Instant {
        self.base + Duration::from_nanos(self.now)
    }

    fn clock_of(&self, node: u32) -> Clock {
        self.nodes[node as usize].clock
    }

    fn breach(&mut self, breach: Breach, observer: Id, detail: String) {
        let violation = Violation { breach, at: self.time(), observer, detail };
        assert!(!self.settings.is_strict, "seed {}: {violation}", self.seed);
        self.violations.push(violation);
    }
}
