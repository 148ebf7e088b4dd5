//! One machine among peers that a test speaks for, and a few machines that are joined by channels which keep the order.

mod convergence;
mod hostile;
mod sessions;
mod speed;
mod sync;

use std::collections::{BTreeSet, btree_map};
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::wire::services::replication::{Binding, Ended, Held, Joined};

const INTERVAL: Duration = Duration::from_secs(10);

const LIMITS: Limits =
    Limits { owner_max: 1000, total_max: 10_000, tombstones_max: 100, window: 256 * 1024, sync_interval: INTERVAL };

/// For what may not take long: no machine sees it.
fn stopwatch() -> Instant {
    Instant::now()
}

fn id(name: &str) -> NodeId {
    life(name, 1)
}

fn life(name: &str, incarnation: u64) -> NodeId {
    NodeId::new(format!("{name}@10.0.0.1:1").parse().unwrap(), incarnation)
}

fn text(text: &str) -> Text {
    text.into()
}

fn name(name: &str) -> Key {
    Key::Name(name.into())
}

fn bound(serial: u64) -> State {
    let (tag, metadata) = (text("tag"), Bytes::from_static(b"metadata"));
    State::Bound(Arc::new(Binding { serial, stamp: serial, after: None, tag, metadata }))
}

fn gone() -> State {
    State::Gone(Ended::Withdrawn)
}

fn entry(version: u64, key: &str, state: State) -> Entry {
    Entry { version, key: name(key), state }
}

fn changed(owner: &NodeId, key: &str, version: u64, state: Option<State>, cause: Cause) -> Output {
    Output::Changed(Change { scope: text(""), owner: owner.clone(), key: name(key), version, state, cause })
}

/// The digest of a log that holds these.
fn digest_of(entries: &[Entry]) -> u64 {
    let mut log = Log::default();
    entries.iter().for_each(|entry| log.put(entry.version, entry.key.clone(), entry.state.clone(), 100));
    log.digest()
}

/// A machine among peers that the test speaks for.
struct One {
    node: Replication,
    now: Instant,
}

impl One {
    fn new() -> Self {
        Self::with(LIMITS, &[""])
    }

    fn with(limits: Limits, scopes: &[&str]) -> Self {
        let now = Instant::now();
        let scopes: Vec<_> = scopes.iter().copied().map(Text::from).collect();
        Self { node: Replication::new(id("me"), &scopes, limits, 1, now), now }
    }

    fn handle(&mut self, input: Input) -> Vec<Output> {
        self.node.handle(input, self.now);
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.node.poll_output()).collect()
    }

    fn hear(&mut self, from: &NodeId, frame: Frame) -> Vec<Output> {
        self.handle(Input::Frame { from: from.clone(), frame })
    }

    fn live(&mut self, node: &NodeId) {
        self.handle(Input::Live { node: node.clone() });
    }

    /// A live peer with a session and a link, that takes part in the default scope and has nothing of this node.
    fn meet(&mut self, peer: &NodeId) -> Vec<Output> {
        self.live(peer);
        self.handle(Input::Up { peer: peer.clone() });
        self.handle(Input::Linked { peer: peer.clone() });
        self.hear(peer, status(0, 0))
    }

    fn tick(&mut self) -> Vec<Output> {
        self.now = self.node.poll_timeout().unwrap();
        self.node.handle_timeout(self.now);
        self.outputs()
    }

    fn write(&mut self, key: &str, state: State) -> Vec<Output> {
        self.node.write("", name(key), state);
        self.outputs()
    }

    /// The names of that node that are to be seen.
    fn names(&self, owner: &NodeId) -> Vec<String> {
        let names = self.node.visible("", owner).map(|(key, ..)| key);
        names.map(|key| if let Key::Name(name) = key { name.to_string() } else { format!("{key:?}") }).collect()
    }
}

fn status(version: u64, digest: u64) -> Frame {
    Frame::Status { scopes: vec![Mine { scope: text(""), version, digest }] }
}

/// A part of the sender's own log.
fn delta(since: u64, upto: u64, digest: Option<u64>, entries: Vec<Entry>) -> Frame {
    Frame::Entries { scope: text(""), owner: None, since, upto, is_reset: false, digest, entries }
}

fn reset(upto: u64, digest: Option<u64>, entries: Vec<Entry>) -> Frame {
    Frame::Entries { scope: text(""), owner: None, since: 0, upto, is_reset: true, digest, entries }
}

/// The same, of the log of another.
fn relayed(frame: Frame, of: &NodeId) -> Frame {
    match frame {
        Frame::Entries { scope, since, upto, is_reset, digest, entries, .. } => {
            Frame::Entries { scope, owner: Some(of.clone()), since, upto, is_reset, digest, entries }
        }
        frame => frame,
    }
}

fn have(version: u64) -> Frame {
    Frame::Have { scope: text(""), owner: None, version }
}

fn vector(logs: Vec<Held>, is_question: bool) -> Frame {
    Frame::Vector { scope: text(""), logs, is_question }
}

fn held(owner: &NodeId, version: u64, digest: u64) -> Held {
    Held { owner: owner.clone(), version, digest }
}

fn want(owner: &NodeId, since: u64) -> Frame {
    Frame::Want { scope: text(""), owner: owner.clone(), since }
}

fn send(to: &NodeId, frame: Frame) -> Output {
    Output::Send { to: to.clone(), frame }
}

fn broken(peer: &NodeId, rule: Broken) -> Output {
    Output::Broken { peer: peer.clone(), rule }
}

/// The entries that are sent, of whichever log.
fn entries_in(outputs: &[Output]) -> usize {
    let entries = outputs.iter().map(|output| match output {
        Output::Send { frame: Frame::Entries { entries, .. }, .. } => entries.len(),
        _ => 0,
    });
    entries.sum()
}

/// What a frame takes on the wire, about.
fn size(frame: &Frame) -> usize {
    let node = |node: &NodeId| node.name().as_str().len() + 9;
    match frame {
        Frame::Status { scopes } => 4 + scopes.iter().map(|mine| 1 + mine.scope.len() + 16).sum::<usize>(),
        Frame::Entries { scope, owner, entries, .. } => {
            let bytes: usize = entries.iter().map(Entry::size_bound).sum();
            32 + scope.len() + owner.as_ref().map_or(0, node) + bytes
        }
        Frame::Have { scope, owner, .. } => 12 + scope.len() + owner.as_ref().map_or(0, node),
        Frame::Digest { scope, .. } => 11 + scope.len(),
        Frame::Vector { scope, logs, .. } => {
            4 + scope.len() + logs.iter().map(|held| node(&held.owner) + 16).sum::<usize>()
        }
        Frame::Want { scope, owner, .. } => 11 + scope.len() + node(owner),
    }
}

/// What somebody who listens to the changes of a machine knows.
#[derive(Debug, Default)]
struct View(BTreeMap<(Text, NodeId, Key), (u64, State)>);

impl View {
    fn apply(&mut self, change: &Change) {
        let key = (change.scope.clone(), change.owner.clone(), change.key.clone());
        match &change.state {
            Some(state) if !log::is_tombstone(state) => _ = self.0.insert(key, (change.version, state.clone())),
            _ => _ = self.0.remove(&key),
        }
    }
}

/// Machines that are joined by channels.
struct Net {
    now: Instant,
    rng: fastrand::Rng,
    nodes: BTreeMap<NodeId, (Replication, View)>,
    /// Sessions, from the lower to the higher id, and whether they have a link.
    sessions: BTreeMap<(NodeId, NodeId), bool>,
    channels: BTreeMap<(NodeId, NodeId), VecDeque<Frame>>,
    causes: Vec<(NodeId, Change)>,
    synced: Vec<(NodeId, NodeId)>,
    dialled: Vec<(NodeId, NodeName)>,
    broken: Vec<(NodeId, NodeId, Broken)>,
    bytes: usize,
    entries: usize,
}

impl Net {
    /// All of them live, as each of them knows; none has a session.
    fn new(names: &[&str], limits: Limits, seed: u64) -> Self {
        let ids: Vec<_> = names.iter().map(|name| (id(name), vec![text("")])).collect();
        Self::with(&ids, limits, seed)
    }

    fn with(ids: &[(NodeId, Vec<Text>)], limits: Limits, seed: u64) -> Self {
        let mut net = Self {
            now: Instant::now(),
            rng: fastrand::Rng::with_seed(seed),
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            channels: BTreeMap::new(),
            causes: Vec::new(),
            synced: Vec::new(),
            dialled: Vec::new(),
            broken: Vec::new(),
            bytes: 0,
            entries: 0,
        };
        for (id, scopes) in ids {
            let seed = net.rng.u64(..);
            net.nodes
                .insert(id.clone(), (Replication::new(id.clone(), scopes, limits, seed, net.now), View::default()));
        }
        for (id, _) in ids {
            for (other, _) in ids {
                net.handle(id, Input::Live { node: other.clone() });
            }
        }
        net
    }

    fn node(&self, name: &str) -> &Replication {
        &self.nodes[&id(name)].0
    }

    fn handle(&mut self, at: &NodeId, input: Input) {
        self.nodes.get_mut(at).unwrap().0.handle(input, self.now);
        self.drain(at);
    }

    fn write(&mut self, at: &str, scope: &str, key: Key, state: State) {
        self.nodes.get_mut(&id(at)).unwrap().0.write(scope, key, state);
        self.drain(&id(at));
    }

    fn drain(&mut self, at: &NodeId) {
        while let Some(output) = self.nodes.get_mut(at).unwrap().0.poll_output() {
            match output {
                Output::Send { to, frame } => {
                    assert!(self.sessions.contains_key(&pair(at, &to)), "{at} sends {frame:?} without a session");
                    self.bytes += size(&frame);
                    self.entries += if let Frame::Entries { entries, .. } = &frame { entries.len() } else { 0 };
                    self.channels.entry((at.clone(), to)).or_default().push_back(frame);
                }
                Output::Changed(change) => {
                    self.nodes.get_mut(at).unwrap().1.apply(&change);
                    self.causes.push((at.clone(), change));
                }
                Output::Synced { peer } => self.synced.push((at.clone(), peer)),
                Output::Dial { peer } => self.dialled.push((at.clone(), peer)),
                Output::Acknowledged { .. } => {}
                Output::Broken { peer, rule } => self.broken.push((at.clone(), peer, rule)),
            }
        }
    }

    fn connect(&mut self, a: &NodeId, b: &NodeId) {
        if let btree_map::Entry::Vacant(vacant) = self.sessions.entry(pair(a, b)) {
            vacant.insert(true);
            for (at, peer) in [(a, b), (b, a)] {
                self.handle(at, Input::Up { peer: peer.clone() });
                self.handle(at, Input::Linked { peer: peer.clone() });
            }
        }
    }

    fn connect_all(&mut self, pairs: &[(&str, &str)]) {
        pairs.iter().for_each(|(a, b)| self.connect(&id(a), &id(b)));
    }

    /// The session ends, and what is on its way is lost.
    fn cut(&mut self, a: &NodeId, b: &NodeId) {
        if self.sessions.remove(&pair(a, b)).is_some() {
            for (at, peer) in [(a, b), (b, a)] {
                self.channels.remove(&(at.clone(), peer.clone()));
                self.handle(at, Input::Down { peer: peer.clone() });
            }
        }
    }

    /// The session goes on without a link, or has one again; what is on its way waits.
    fn set_linked(&mut self, a: &NodeId, b: &NodeId, is_linked: bool) {
        let present = self.sessions.get_mut(&pair(a, b));
        if present.is_some_and(|present| std::mem::replace(present, is_linked) != is_linked) {
            for (at, peer) in [(a, b), (b, a)] {
                let peer = peer.clone();
                self.handle(at, if is_linked { Input::Linked { peer } } else { Input::Unlinked { peer } });
            }
        }
    }

    /// Delivers one frame of a channel that is chosen by chance.
    fn deliver(&mut self) -> bool {
        let linked = |(from, to): &(NodeId, NodeId)| self.sessions.get(&pair(from, to)) == Some(&true);
        let ready = self.channels.iter().filter(|(ends, frames)| linked(ends) && !frames.is_empty());
        let ready: Vec<_> = ready.map(|(ends, _)| ends.clone()).collect();
        if ready.is_empty() {
            return false;
        }
        let ends = &ready[self.rng.usize(..ready.len())];
        let frame = self.channels.get_mut(ends).unwrap().pop_front().unwrap();
        self.handle(&ends.1, Input::Frame { from: ends.0.clone(), frame });
        true
    }

    fn settle(&mut self) {
        while self.deliver() {}
    }

    /// Time passes, and everything that is sent arrives at once.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some((at, due)) = self.next_timeout().filter(|(_, due)| *due <= end) {
            self.now = due;
            self.nodes.get_mut(&at).unwrap().0.handle_timeout(due);
            self.drain(&at);
            self.settle();
        }
        self.now = end;
    }

    fn next_timeout(&self) -> Option<(NodeId, Instant)> {
        let due = self.nodes.iter().map(|(id, (node, _))| (node.poll_timeout().unwrap(), id));
        due.min().map(|(due, id)| (id.clone(), due))
    }

    /// What the node sees of the owner, which is also what its changes say.
    fn seen(&self, at: &NodeId, scope: &str, owner: &NodeId) -> BTreeMap<Key, (u64, State)> {
        let (node, view) = &self.nodes[at];
        let visible = node.visible(scope, owner);
        let visible: BTreeMap<_, _> =
            visible.map(|(key, version, state)| (key.clone(), (version, state.clone()))).collect();
        let told = view.0.iter().filter(|((of, who, _), _)| **of == *scope && who == owner);
        let told: BTreeMap<_, _> = told.map(|((_, _, key), seen)| (key.clone(), seen.clone())).collect();
        assert_eq!(visible, told, "{at} holds of {owner}, and told");
        visible
    }

    /// Every node sees of every other in the scope what that one wrote.
    fn assert_same(&self, scope: &str) {
        for at in self.nodes.keys().filter(|at| self.nodes[*at].0.takes_part(scope)) {
            for owner in self.nodes.keys() {
                assert_eq!(self.seen(at, scope, owner), self.seen(owner, scope, owner), "{at} of {owner}");
            }
        }
    }
}

fn pair(a: &NodeId, b: &NodeId) -> (NodeId, NodeId) {
    if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}
