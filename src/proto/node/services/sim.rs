//! For tests: the services of some nodes under a virtual clock and a seed, with the sessions between them.
//!
//! Sessions are what the links below make of them: in order, without loss until they end, and each end notices for itself.
//! Membership is an oracle that is late: who crashes, freezes or is cut off is declared dead after some seconds, by each
//! observer at its own time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::tests::any_moment;
use super::*;

/// A process: one life of a node, with its mailboxes and what its handles have seen.
pub(super) struct Process {
    pub(super) id: NodeId,
    pub(super) services: Services,
    /// The sessions of this end, by the peer's place: the number of each, and the peer's life.
    pub(super) sessions: BTreeMap<usize, (u64, NodeId)>,
    pub(super) mailboxes: BTreeSet<u64>,
    tracked: BTreeSet<u64>,
    last: u64,
    pub(super) is_ready: bool,
    pub(super) done: BTreeMap<RequestId, Result<Done, Refusal>>,
    pub(super) names: BTreeMap<Text, Named>,
    pub(super) events: Vec<(Text, Option<Pid>, NameReason)>,
    pub(super) members: BTreeMap<(Text, Pid), u32>,
    pub(super) lost: Vec<(Text, u64, Pid)>,
    /// Answers and losses, in their order.
    pub(super) told: Vec<(Instant, Told)>,
    pub(super) notices: Vec<(WatchId, Fate)>,
    pub(super) disputes: Vec<(DisputeId, Dispute)>,
    pub(super) broken: Vec<NodeId>,
    frozen: Option<Vec<Event>>,
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
}

/// What a handle was told.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Done(RequestId),
    Lost(Text, u64),
    Over(Text, u64),
}

#[derive(Clone, Debug)]
enum Event {
    Deliver {
        from: usize,
        to: usize,
        session: u64,
        frame: Service,
    },
    /// Both ends try to have a session, if they can reach each other.
    Connect {
        one: usize,
        other: usize,
    },
    /// The observer finds that it has not heard of that life for too long.
    Detect {
        observer: usize,
        subject: usize,
        life: NodeId,
    },
    /// The same of the session alone.
    Lose {
        observer: usize,
        subject: usize,
    },
    DialFailed {
        node: usize,
        peer: NodeName,
    },
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) nodes: Vec<Option<Process>>,
    names: Vec<NodeName>,
    lives: Vec<u64>,
    queue: BTreeMap<(Instant, u64), Event>,
    last_event: u64,
    last_session: u64,
    /// When the last frame in that direction arrives: order is kept.
    arrives: BTreeMap<(usize, usize), Instant>,
    /// Directed: what the first sends does not reach the second.
    cuts: BTreeSet<(usize, usize)>,
    /// Frames that wait for the end of a cut.
    held: BTreeMap<(usize, usize), Vec<Event>>,
    pub(super) tune: fn(&mut Setup),
    /// `TRACE=1` prints what nodes do.
    traces: bool,
}

pub(super) fn text(name: &str) -> Text {
    name.into()
}

fn setup(plan: Plan) -> Setup {
    Setup {
        scopes: Vec::new(),
        plan,
        settle: Duration::from_secs(1),
        registry: registry::Params {
            rule: registry::Rule::Oldest,
            rules: Default::default(),
            patience: Duration::from_secs(1),
            barrier: Duration::from_secs(2),
            grant_kept: Duration::from_secs(10),
            names_max: 100_000,
            claims_max: 10_000,
            is_client: false,
        },
        replication: replication::Limits {
            owner_max: 200_000,
            total_max: 1_000_000,
            tombstones_max: 1_000,
            window: 256 * 1024,
            sync_interval: Duration::from_secs(1),
        },
        watches_max: 100_000,
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let now = any_moment();
        Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            now,
            start: now,
            nodes: Vec::new(),
            names: Vec::new(),
            lives: Vec::new(),
            queue: BTreeMap::new(),
            last_event: 0,
            last_session: 0,
            arrives: BTreeMap::new(),
            cuts: BTreeSet::new(),
            held: BTreeMap::new(),
            tune: |_| {},
            traces: std::env::var("TRACE").is_ok(),
        }
    }

    /// So many nodes: the first founds, the others join it; all are ready.
    pub(super) fn cluster(seed: u64, count: usize) -> Self {
        Self::cluster_with(seed, count, |_| {})
    }

    pub(super) fn cluster_with(seed: u64, count: usize, tune: fn(&mut Setup)) -> Self {
        let mut world = Self::new(seed);
        world.tune = tune;
        for _ in 0..count {
            world.add();
        }
        world.run_until("all are ready", 30, |world| world.all().all(|process| process.is_ready));
        // Views of the arbiters and barriers settle.
        world.run_for(Duration::from_secs(3));
        world
    }

    /// Another node, which joins the first.
    pub(super) fn add(&mut self) -> usize {
        let place = self.nodes.len();
        let plan = if place == 0 { Plan::Found } else { Plan::Contacts(vec![self.names[0].clone()]) };
        self.add_with(plan)
    }

    pub(super) fn add_with(&mut self, plan: Plan) -> usize {
        let place = self.nodes.len();
        self.names.push(NodeName::parse(&format!("n{place:02}@h:1")).expect("a name"));
        self.lives.push(0);
        self.nodes.push(None);
        self.begin(place, plan);
        place
    }

    pub(super) fn name(&self, node: usize) -> NodeName {
        self.names[node].clone()
    }

    /// A process begins, as the next life of its name.
    pub(super) fn begin(&mut self, node: usize, plan: Plan) {
        assert!(self.nodes[node].is_none(), "a name has one process at a time");
        self.lives[node] += 1;
        let id = NodeId::new(self.names[node].clone(), self.lives[node]);
        let mut setup = setup(plan);
        (self.tune)(&mut setup);
        let services = Services::new(id.clone(), setup, self.rng.u64(..), self.now);
        self.nodes[node] = Some(Process {
            id: id.clone(),
            services,
            sessions: BTreeMap::new(),
            mailboxes: BTreeSet::new(),
            tracked: BTreeSet::new(),
            last: 0,
            is_ready: false,
            done: BTreeMap::new(),
            names: BTreeMap::new(),
            events: Vec::new(),
            members: BTreeMap::new(),
            lost: Vec::new(),
            told: Vec::new(),
            notices: Vec::new(),
            disputes: Vec::new(),
            broken: Vec::new(),
            frozen: None,
            sent: 0,
            sent_bytes: 0,
        });
        self.tell(node, Input::Live { node: id });
        self.drain(node);
        for other in 0..self.nodes.len() {
            if other != node {
                self.plan_connect(node, other, 5);
            }
        }
    }

    pub(super) fn restart(&mut self, node: usize) {
        let other = usize::from(node == 0);
        let plan = Plan::Contacts(vec![self.names[other].clone()]);
        self.begin(node, plan);
    }

    /// The process is gone without a word.
    pub(super) fn crash(&mut self, node: usize) {
        let Some(process) = self.nodes[node].take() else { return };
        for observer in 0..self.nodes.len() {
            self.plan_detect(observer, node, process.id.clone());
        }
    }

    /// The process says good-bye and ends.
    pub(super) fn stop(&mut self, node: usize) {
        self.tell(node, Input::Withdraw);
        // What it said has time to arrive.
        self.run_for(Duration::from_millis(20));
        let Some(process) = self.nodes[node].take() else { return };
        for observer in 0..self.nodes.len() {
            if self.can_reach(node, observer) && self.nodes[observer].is_some() {
                self.end_session(observer, node, DownReason::Left);
                self.tell(observer, Input::Gone { node: process.id.clone(), how: Departure::Left });
            } else {
                self.plan_detect(observer, node, process.id.clone());
            }
        }
    }

    pub(super) fn freeze(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node] else { return };
        process.frozen.get_or_insert_default();
        let id = process.id.clone();
        for observer in 0..self.nodes.len() {
            self.plan_detect(observer, node, id.clone());
        }
    }

    pub(super) fn thaw(&mut self, node: usize) {
        let Some(events) = self.nodes[node].as_mut().and_then(|process| process.frozen.take()) else { return };
        // Before whatever else arrives now.
        for event in events {
            self.happen(event);
        }
        for other in 0..self.nodes.len() {
            self.plan_connect(node, other, 2_000);
        }
    }

    /// Nothing gets from one side to the other any more.
    pub(super) fn cut(&mut self, side: &[usize]) {
        for one in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                if side.contains(&one) != side.contains(&other) {
                    self.cuts.insert((one, other));
                    if let Some(id) = self.nodes[other].as_ref().map(|process| process.id.clone()) {
                        self.plan_detect(one, other, id);
                    }
                }
            }
        }
    }

    /// Two nodes do not reach each other; others reach both, so nobody is declared dead.
    pub(super) fn cut_pair(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            self.cuts.insert((from, to));
            let after = Duration::from_millis(self.rng.u64(9_000..11_000));
            self.plan(after, Event::Lose { observer: from, subject: to });
        }
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        // Before whatever else arrives now.
        for event in std::mem::take(&mut self.held).into_values().flatten() {
            self.happen(event);
        }
        for one in 0..self.nodes.len() {
            for other in 0..one {
                self.plan_connect(one, other, 2_000);
            }
        }
    }

    fn can_reach(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains(&(from, to))
    }

    fn is_mute(&self, subject: usize, observer: usize) -> bool {
        let is_frozen = self.nodes[subject].as_ref().is_none_or(|process| process.frozen.is_some());
        is_frozen || !self.can_reach(subject, observer)
    }

    fn plan(&mut self, after: Duration, event: Event) {
        self.last_event += 1;
        self.queue.insert((self.now + after, self.last_event), event);
    }

    fn plan_connect(&mut self, one: usize, other: usize, within_ms: u64) {
        let after = Duration::from_millis(self.rng.u64(0..within_ms) + 1);
        self.plan(after, Event::Connect { one, other });
    }

    fn plan_detect(&mut self, observer: usize, subject: usize, life: NodeId) {
        if observer != subject {
            let after = Duration::from_millis(self.rng.u64(4_000..6_000));
            self.plan(after, Event::Detect { observer, subject, life });
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Process> {
        self.nodes.iter().flatten()
    }

    pub(super) fn process(&self, node: usize) -> &Process {
        self.nodes[node].as_ref().expect("it runs")
    }

    // What handles do.

    pub(super) fn open(&mut self, node: usize) -> u64 {
        let process = self.nodes[node].as_mut().expect("it runs");
        process.last += 1;
        process.mailboxes.insert(process.last);
        process.last
    }

    pub(super) fn pid(&self, node: usize, serial: u64) -> Pid {
        Pid::new(self.process(node).id.clone(), serial)
    }

    pub(super) fn close(&mut self, node: usize, serial: u64) {
        let Some(process) = &mut self.nodes[node] else { return };
        process.mailboxes.remove(&serial);
        if process.tracked.remove(&serial) {
            self.tell(node, Input::Closed { serial, gone: Gone::Closed, reason: None });
        }
    }

    pub(super) fn request(&mut self, node: usize, request: Request, seconds: u64) -> RequestId {
        self.last_event += 1;
        let id = RequestId(self.last_event);
        let deadline = self.now + Duration::from_secs(seconds);
        self.tell(node, Input::Request { id, request, deadline });
        id
    }

    pub(super) fn register(&mut self, node: usize, name: &str, serial: u64) -> RequestId {
        self.register_as(node, name, serial, None)
    }

    pub(super) fn register_as(&mut self, node: usize, name: &str, serial: u64, replacing: Option<Pid>) -> RequestId {
        let (scope, tag, metadata) = (text(""), text("u64"), Bytes::new());
        let request = Request::Register { scope, name: text(name), serial, tag, metadata, replacing };
        self.request(node, request, 10)
    }

    pub(super) fn unregister(&mut self, node: usize, name: &str, pid: Pid) -> RequestId {
        self.request(node, Request::Unregister { scope: text(""), name: text(name), pid }, 10)
    }

    pub(super) fn join(&mut self, node: usize, group: &str, serial: u64, count: u32) {
        self.tell(node, Input::Join { scope: text(""), group: text(group), serial, tag: text("u64"), count });
    }

    pub(super) fn watch(&mut self, node: usize, target: Target) -> WatchId {
        self.last_event += 1;
        let watch = WatchId(self.last_event);
        self.tell(node, Input::Watch { watch, target, mailbox: None, until_dead: false });
        watch
    }

    /// Runs until the request is answered.
    pub(super) fn answer(&mut self, node: usize, id: RequestId) -> Result<Done, Refusal> {
        self.run_until("an answer", 30, |world| world.process(node).done.contains_key(&id));
        self.process(node).done[&id].clone()
    }

    pub(super) fn owner(&self, node: usize, name: &str) -> Option<Pid> {
        self.process(node).names.get(name).map(|named| named.pid.clone())
    }

    // Time.

    pub(super) fn tell(&mut self, node: usize, input: Input) {
        let now = self.now;
        if self.traces && !matches!(input, Input::Frame { .. }) {
            println!("{:>9.4} {node} <- {input:?}", (now - self.start).as_secs_f64());
        }
        if let Some(process) = &mut self.nodes[node] {
            process.services.handle(input, now);
            self.drain(node);
        }
    }

    pub(super) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
        self.now = end;
    }

    pub(super) fn run_until(&mut self, what: &str, seconds: u64, mut is_so: impl FnMut(&Self) -> bool) {
        let end = self.now + Duration::from_secs(seconds);
        while !is_so(self) {
            assert!(self.step(end), "seed {}: not within {seconds} s: {what}", self.seed);
        }
    }

    /// The next thing that happens before the end; false when there is none.
    fn step(&mut self, end: Instant) -> bool {
        let timer = self.nodes.iter().enumerate().filter_map(|(node, process)| {
            let process = process.as_ref().filter(|process| process.frozen.is_none())?;
            Some((process.services.poll_timeout()?, node))
        });
        let timer = timer.min();
        let event = self.queue.first_key_value().map(|((at, _), _)| *at);
        match (timer, event) {
            (Some((due, node)), at) if at.is_none_or(|at| due < at) => {
                if due > end {
                    return false;
                }
                self.now = self.now.max(due);
                let now = self.now;
                if let Some(process) = &mut self.nodes[node] {
                    process.services.handle_timeout(now);
                }
                self.drain(node);
                true
            }
            (_, Some(at)) if at <= end => {
                let Some((_, event)) = self.queue.pop_first() else { return false };
                self.now = self.now.max(at);
                self.happen(event);
                true
            }
            _ => false,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, session, .. } => {
                if !self.can_reach(from, to) {
                    self.held.entry((from, to)).or_default().push(event);
                    return;
                }
                let Some(process) = &mut self.nodes[to] else { return };
                if let Some(frozen) = &mut process.frozen {
                    frozen.push(event);
                    return;
                }
                let Event::Deliver { frame, .. } = event else { return };
                if let Some((_, from)) = process.sessions.get(&from).filter(|(number, _)| *number == session) {
                    let from = from.clone();
                    self.tell(to, Input::Frame { from, frame });
                }
            }
            Event::Connect { one, other } => self.connect(one, other),
            Event::Detect { observer, subject, life } => {
                let same = self.nodes[subject].as_ref().is_some_and(|process| process.id == life);
                if same && !self.is_mute(subject, observer) {
                    return;
                }
                let Some(process) = &self.nodes[observer] else { return };
                if process.frozen.is_some() {
                    let after = Duration::from_secs(1);
                    return self.plan(after, Event::Detect { observer, subject, life });
                }
                if process.services.live.contains(&life) {
                    if process.sessions.get(&subject).is_some_and(|(_, peer)| *peer == life) {
                        self.end_session(observer, subject, DownReason::Dead);
                    }
                    self.tell(observer, Input::Gone { node: life, how: Departure::Died });
                }
            }
            Event::Lose { observer, subject } => {
                if !self.can_reach(subject, observer) {
                    self.end_session(observer, subject, DownReason::Lost);
                }
            }
            Event::DialFailed { node, peer } => self.tell(node, Input::DialFailed { peer }),
        }
    }

    fn end_session(&mut self, node: usize, peer: usize, reason: DownReason) {
        let ended = self.nodes[node].as_mut().and_then(|process| process.sessions.remove(&peer));
        if let Some((_, peer)) = ended {
            self.tell(node, Input::SessionDown { peer, reason });
        }
    }

    fn connect(&mut self, one: usize, other: usize) {
        if one == other || !self.can_reach(one, other) || !self.can_reach(other, one) {
            return;
        }
        let (Some(a), Some(b)) = (&self.nodes[one], &self.nodes[other]) else { return };
        if a.frozen.is_some() || b.frozen.is_some() {
            return;
        }
        let number = |process: &Process, peer| process.sessions.get(&peer).map(|(number, _)| *number);
        if number(a, other).is_some() && number(a, other) == number(b, one) {
            return;
        }
        let lives = [a.id.clone(), b.id.clone()];
        // An end that was not noticed comes first.
        for (node, peer) in [(one, other), (other, one)] {
            self.end_session(node, peer, DownReason::EndedByPeer);
        }
        self.last_session += 1;
        let session = self.last_session;
        for (node, peer, life) in [(one, other, lives[1].clone()), (other, one, lives[0].clone())] {
            let stale = self.process(node).services.live.iter().find(|id| id.name() == life.name() && **id != life);
            if let Some(stale) = stale.cloned() {
                self.tell(node, Input::Gone { node: stale, how: Departure::Replaced });
            }
            let Some(process) = &mut self.nodes[node] else { continue };
            process.sessions.insert(peer, (session, life.clone()));
            let is_known = process.services.live.contains(&life);
            self.tell(node, Input::SessionUp { peer: life.clone() });
            if !is_known {
                self.tell(node, Input::Live { node: life.clone() });
            }
            self.tell(node, Input::Linked { peer: life });
        }
    }

    fn drain(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].as_mut().and_then(|process| process.services.poll_output()) {
            self.did(node, output);
        }
    }

    fn did(&mut self, node: usize, output: Output) {
        if self.traces && !matches!(output, Output::Send { frame: Service::Replication(_), .. }) {
            println!("{:>9.4} {node}: {output:?}", (self.now - self.start).as_secs_f64());
        }
        let place = |name: &NodeName| self.names.iter().position(|other| other == name);
        match output {
            Output::Send { to, frame } => {
                let Some(peer) = place(to.name()) else { return };
                let Some(process) = &mut self.nodes[node] else { return };
                process.sent += 1;
                process.sent_bytes += encoded_len(&frame);
                let Some((session, _)) = process.sessions.get(&peer).cloned() else { return };
                let after = Duration::from_micros(self.rng.u64(100..2_000));
                let last = self.arrives.get(&(node, peer)).copied().unwrap_or(self.now);
                let at = (self.now + after).max(last);
                self.arrives.insert((node, peer), at);
                self.last_event += 1;
                self.queue.insert((at, self.last_event), Event::Deliver { from: node, to: peer, session, frame });
            }
            Output::Dial { peer } => {
                let Some(other) = place(&peer) else { return };
                let is_there = self.can_reach(node, other) && self.can_reach(other, node);
                let runs = self.nodes[other].as_ref().is_some_and(|process| process.frozen.is_none());
                if is_there && runs {
                    self.plan_connect(node, other, 5);
                } else {
                    self.plan(Duration::from_secs(1), Event::DialFailed { node, peer });
                }
            }
            Output::Track { serial } => {
                let Some(process) = &mut self.nodes[node] else { return };
                if process.mailboxes.contains(&serial) {
                    process.tracked.insert(serial);
                } else {
                    self.tell(node, Input::Closed { serial, gone: Gone::NoSuchMailbox, reason: None });
                }
            }
            output => {
                let (seed, now) = (self.seed, self.now);
                if let Some(process) = &mut self.nodes[node] {
                    process.saw(seed, now, output);
                }
            }
        }
    }
}

impl Process {
    fn saw(&mut self, seed: u64, now: Instant, output: Output) {
        match output {
            Output::Done { id, outcome } => {
                self.told.push((now, Told::Done(id)));
                let old = self.done.insert(id, outcome);
                assert_eq!(old, None, "seed {seed}: a request is answered once");
            }
            Output::Named { name, named, reason, .. } => {
                let old = self.names.get(&name);
                assert!(old.is_some() || named.is_some(), "seed {seed}: {name} was not there, and is not: {reason:?}");
                assert_ne!(old, named.as_ref(), "seed {seed}: nothing changed: {name}, {reason:?}");
                self.events.push((name.clone(), named.as_ref().map(|named| named.pid.clone()), reason));
                match named {
                    Some(named) => drop(self.names.insert(name, named)),
                    None => drop(self.names.remove(&name)),
                }
            }
            Output::Member { group, pid, count, .. } => {
                if count > 0 {
                    self.members.insert((group, pid), count);
                } else {
                    self.members.remove(&(group, pid));
                }
            }
            Output::Lost { name, serial, winner, .. } => {
                self.told.push((now, Told::Lost(name.clone(), serial)));
                self.lost.push((name, serial, winner));
            }
            Output::Over { name, serial, .. } => self.told.push((now, Told::Over(name, serial))),
            Output::Decide { dispute, over } => self.disputes.push((dispute, over)),
            Output::Notice { watch, told, .. } => {
                assert!(self.notices.iter().all(|(told, _)| *told != watch), "seed {seed}: a watch ends once");
                self.notices.push((watch, told.fate));
            }
            Output::Ready => self.is_ready = true,
            Output::Broken { peer } => self.broken.push(peer),
            Output::Armed { .. } => {}
            Output::Send { .. } | Output::Dial { .. } | Output::Track { .. } => unreachable!("handled before"),
        }
    }
}

fn encoded_len(frame: &Service) -> u64 {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes.len() as u64
}
