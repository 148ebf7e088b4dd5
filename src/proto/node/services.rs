//! Names, groups and monitors of one node, joined: the machines, and what follows from what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::DownReason;
use crate::id::{NodeId, NodeName, Pid};
use crate::proto::founding::{self, Founding, Plan};
use crate::proto::monitor::{self, Fate, Monitors, Target, WatchId};
use crate::proto::registry::{
    self, Dispute, DisputeId, Granted, NameReason, Named, Refusal, Registry, RequestId, Verdict, Why, Wish,
};
use crate::proto::replication::{self, Cause, Change, Replication};
use crate::wire::services::monitor::Gone;
use crate::wire::services::replication::{Ended, Joined, Key, State};
use crate::wire::services::{self as wire, Service, Text};

/// What the services of a node are made of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Those that this node takes part in, beside the default scope, whose name is empty.
    pub(crate) scopes: Vec<Text>,
    pub(crate) plan: Plan,
    /// How long it has to look as if this node were to found the cluster, before it does.
    pub(crate) settle: Duration,
    pub(crate) registry: registry::Params,
    pub(crate) replication: replication::Limits,
    /// Mailboxes of one peer that another may watch, and watches of this node.
    pub(crate) watches_max: usize,
}

/// What handles ask for. Each request is answered by one [`Output::Done`] of its number.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Bind the name to a mailbox of this node. Of another node's only as its successor.
    Register { scope: Text, name: Text, serial: u64, tag: Text, metadata: Bytes, replacing: Option<Pid> },
    /// Take the name from that mailbox, wherever it lives.
    Unregister { scope: Text, name: Text, pid: Pid },
    /// Set the metadata, if the binding is still of that version.
    Update { scope: Text, name: Text, pid: Pid, version: u64, metadata: Bytes },
    /// Wait until every live member has this node's own log up to that version.
    Everywhere { scope: Text, version: u64 },
}

/// A request that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// By an entry of that version in the owner's log.
    Bound {
        version: u64,
        stamp: u64,
    },
    Unregistered,
    Updated {
        version: u64,
    },
    Everywhere,
}

#[derive(Clone, Debug)]
pub(crate) enum Input {
    // Of links and members.
    SessionUp {
        peer: NodeId,
    },
    /// The session has a link, or no longer has one.
    Linked {
        peer: NodeId,
    },
    Idle {
        peer: NodeId,
    },
    SessionDown {
        peer: NodeId,
        reason: DownReason,
    },
    DialFailed {
        peer: NodeName,
    },
    /// A member lives, also one that is back.
    Live {
        node: NodeId,
    },
    /// A member is dead, has left, has a successor, or is forgotten.
    Gone {
        node: NodeId,
        how: Departure,
    },
    Renewed {
        id: NodeId,
    },
    Frame {
        from: NodeId,
        frame: Service,
    },

    // Of handles.
    Request {
        id: RequestId,
        request: Request,
        deadline: Instant,
    },
    /// Nobody waits for the answer any more.
    GiveUp {
        id: RequestId,
    },
    /// A mailbox of this node is so often in the group now; 0, no longer at all.
    Join {
        scope: Text,
        group: Text,
        serial: u64,
        tag: Text,
        count: u32,
    },
    Watch {
        watch: WatchId,
        target: Target,
        mailbox: Option<u64>,
        until_dead: bool,
    },
    Unwatch {
        watch: WatchId,
    },
    /// A mailbox of this node that was to be tracked is gone.
    Closed {
        serial: u64,
        gone: Gone,
        /// Why, when it was closed because it failed.
        reason: Option<Text>,
    },
    Decided {
        dispute: DisputeId,
        verdict: Verdict,
    },
    /// The node leaves: it gives up its names and memberships. Again does nothing.
    Withdraw,
}

/// What a node has done for names and groups. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistryStats {
    /// Claims of names by mailboxes of this node, replacements included.
    pub claims: u64,
    /// Of these: how many were granted.
    pub granted: u64,
    /// How often this node asked the node of an older claim whether it stands.
    pub contests: u64,
    /// Names that this node lost to another claim.
    pub lost: u64,
    /// What peers said about claims that makes no sense.
    pub malformed: u64,
    /// Names and memberships that were sent to peers, removals included.
    pub entries_sent: u64,
    /// The same that were received.
    pub entries_received: u64,
    /// Entries that others passed on, and that contradict what their owner says itself. They were not believed.
    pub contradicted: u64,
    /// Entries for which there was no room: see [`Config::entries_max`](crate::Config::entries_max).
    pub left_out: u64,
    /// How often a peer got all entries of a node anew.
    pub snapshots_sent: u64,
    /// Differences that were found and repaired.
    pub repairs: u64,
    /// Comparisons of all names and groups with a peer.
    pub rounds: u64,
}

/// How a member came to be no longer live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// It may come back.
    Died,
    Left,
    Replaced,
    Forgotten,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// To a peer with a session, in the order of these outputs.
    Send {
        to: NodeId,
        frame: Service,
    },
    /// A session is needed.
    Dial {
        peer: NodeName,
    },
    /// Say [`Input::Closed`] when this mailbox is gone, at once if it is.
    Track {
        serial: u64,
    },
    Done {
        id: RequestId,
        outcome: Result<Done, Refusal>,
    },
    /// What there is to be seen of a name has changed.
    Named {
        scope: Text,
        name: Text,
        named: Option<Named>,
        reason: NameReason,
    },
    /// What there is to be seen of a member of a group has changed; a count of 0 when it is none any more.
    Member {
        scope: Text,
        group: Text,
        pid: Pid,
        tag: Text,
        count: u32,
        cause: Cause,
    },
    /// A mailbox of this node is not the owner of the name any more, because another claim won.
    Lost {
        scope: Text,
        name: Text,
        serial: u64,
        winner: Pid,
    },
    /// It is not the owner any more for another reason: it was given up, or handed over.
    Over {
        scope: Text,
        name: Text,
        serial: u64,
    },
    /// The resolver is to decide; [`Input::Decided`] answers.
    Decide {
        dispute: DisputeId,
        over: Dispute,
    },
    /// The watch is over. When there is a number, the notice comes after the messages below it in the lane from that peer.
    Notice {
        watch: WatchId,
        told: monitor::Told,
        cut: Option<(NodeId, u64)>,
    },
    /// So many watches depend on the session with this peer.
    Armed {
        peer: NodeId,
        watches: usize,
    },
    /// This node has the names and groups of the cluster. Once.
    Ready,
    /// The peer broke a rule: its session is to end.
    Broken {
        peer: NodeId,
    },
}

/// The services of one node.
#[derive(Debug)]
pub(crate) struct Services {
    id: NodeId,
    is_client: bool,
    is_withdrawn: bool,
    scopes: Vec<Text>,
    replication: Replication,
    registry: Registry,
    monitors: Monitors,
    founding: Founding,
    live: BTreeSet<NodeId>,
    /// Those that may come back: membership forgets them in time.
    dead: BTreeMap<NodeName, NodeId>,
    /// Up to which version of each log the registry knows what it wrote itself.
    written: BTreeMap<Text, u64>,
    /// Who waits until every live member has this node's log up to a version.
    everywhere: BTreeMap<RequestId, Everywhere>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Everywhere {
    scope: Text,
    version: u64,
    deadline: Instant,
}

impl Services {
    pub(crate) fn new(id: NodeId, setup: Setup, seed: u64, now: Instant) -> Self {
        let Setup { scopes, plan, settle, registry, replication, watches_max } = setup;
        let mut rng = fastrand::Rng::with_seed(seed);
        let default: Text = "".into();
        let scopes: Vec<Text> = [default].into_iter().chain(scopes).collect();
        let is_client = registry.is_client;
        let mut this = Self {
            is_client,
            is_withdrawn: false,
            replication: Replication::new(id.clone(), &scopes, replication, rng.u64(..), now),
            registry: Registry::new(id.clone(), &scopes, registry, rng.u64(..)),
            monitors: Monitors::new(id.clone(), watches_max),
            founding: Founding::new(id.clone(), plan, settle, now),
            id,
            scopes,
            live: BTreeSet::new(),
            dead: BTreeMap::new(),
            written: BTreeMap::new(),
            everywhere: BTreeMap::new(),
            outputs: VecDeque::new(),
        };
        this.settle(now);
        this
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let everywhere = self.everywhere.values().map(|waiting| waiting.deadline);
        let machines = [
            self.replication.poll_timeout(),
            self.registry.poll_timeout(),
            self.founding.poll_timeout(),
            self.monitors.poll_timeout(),
        ];
        machines.into_iter().flatten().chain(everywhere).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.replication.handle_timeout(now);
        self.registry.handle_timeout(now);
        self.founding.handle_timeout(now);
        self.monitors.handle_timeout(now);
        let late = self.everywhere.iter().filter(|(_, waiting)| waiting.deadline <= now).map(|(id, _)| *id);
        for id in late.collect::<Vec<_>>() {
            self.everywhere.remove(&id);
            self.outputs.push_back(Output::Done { id, outcome: Err(Refusal::Timeout) });
        }
        self.settle(now);
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::SessionUp { peer } => {
                self.replication.handle(replication::Input::Up { peer: peer.clone() }, now);
                self.registry.handle(registry::Input::Up { peer: peer.clone() }, now);
                self.founding.handle(founding::Input::Up { peer: peer.clone() }, now);
                self.monitors.handle(monitor::Input::Up { peer }, now);
            }
            Input::Linked { peer } => self.replication.handle(replication::Input::Linked { peer }, now),
            Input::Idle { peer } => self.replication.handle(replication::Input::Unlinked { peer }, now),
            Input::SessionDown { peer, reason } => self.session_down(peer, reason, now),
            Input::DialFailed { peer } => {
                self.registry.handle(registry::Input::DialFailed { peer: peer.clone() }, now);
                self.monitors.handle(monitor::Input::DialFailed { peer }, now);
            }
            Input::Live { node } => {
                // The life before it is over, whether or not membership says so again.
                let old = self.dead.remove(node.name()).filter(|old| *old != node);
                if let Some(old) = old {
                    self.replication.handle(replication::Input::Over { node: old }, now);
                }
                self.live.insert(node.clone());
                self.replication.handle(replication::Input::Live { node: node.clone() }, now);
                self.registry.handle(registry::Input::Live { node: node.clone() }, now);
                self.founding.handle(founding::Input::Live { node: node.clone() }, now);
                self.monitors.handle(monitor::Input::Live { node }, now);
            }
            Input::Gone { node, how } => {
                let is_over = how != Departure::Died;
                self.gone(&node, is_over, now);
                let fate = match how {
                    Departure::Died | Departure::Forgotten => Fate::NodeDown,
                    Departure::Left => Fate::NodeLeft,
                    Departure::Replaced => Fate::Superseded,
                };
                self.monitors.handle(monitor::Input::Ended { node, fate }, now);
            }
            Input::Renewed { id } => {
                self.id = id.clone();
                self.written.clear();
                self.registry.handle(registry::Input::Renewed { id: id.clone() }, now);
                self.settle(now);
                self.replication.handle(replication::Input::Renewed { id: id.clone() }, now);
                self.founding.renewed(id.clone());
                self.monitors.handle(monitor::Input::Renewed { id }, now);
            }
            Input::Frame { from, frame } => match frame {
                Service::Replication(frame) => {
                    self.replication.handle(replication::Input::Frame { from, frame }, now);
                }
                Service::Registry(frame) => self.claim_frame(from, frame, now),
                Service::Monitor(frame) => self.monitors.handle(monitor::Input::Frame { from, frame }, now),
                Service::Election(_) => {}
                Service::Ready => self.founding.handle(founding::Input::PeerReady { peer: from }, now),
            },
            Input::Request { id, request, deadline } => self.request(id, request, deadline, now),
            Input::GiveUp { id } => {
                self.everywhere.remove(&id);
                self.registry.handle(registry::Input::GiveUp { id }, now);
            }
            Input::Join { scope, group, serial, tag, count } => self.join(&scope, group, serial, tag, count),
            Input::Watch { watch, target, mailbox, until_dead } => {
                self.monitors.handle(monitor::Input::Watch { watch, target, mailbox, until_dead }, now);
            }
            Input::Unwatch { watch } => self.monitors.handle(monitor::Input::Unwatch { watch }, now),
            Input::Closed { serial, gone, reason } => {
                // First, so that whoever is told finds the names free.
                self.registry.handle(registry::Input::Closed { serial }, now);
                self.settle(now);
                self.monitors.handle(monitor::Input::Closed { serial, gone, reason }, now);
            }
            Input::Decided { dispute, verdict } => {
                self.registry.handle(registry::Input::Decided { dispute, verdict }, now);
            }
            Input::Withdraw => self.withdraw(now),
        }
        self.settle(now);
    }

    /// Only those who take part in a scope have a say in its names. Which scopes these are is the first that a peer says.
    fn claim_frame(&mut self, from: NodeId, frame: wire::Registry, now: Instant) {
        let input = match frame {
            wire::Registry::Request { number, request, .. }
                if self.replication.shares(&from, request.scope()) != Some(true) =>
            {
                registry::Input::Stranger { from, number }
            }
            frame => registry::Input::Frame { from, frame },
        };
        self.registry.handle(input, now);
    }

    fn session_down(&mut self, peer: NodeId, reason: DownReason, now: Instant) {
        let why = match reason {
            DownReason::Dead => Fate::NodeDown,
            DownReason::Left => Fate::NodeLeft,
            DownReason::Superseded => Fate::Superseded,
            _ => Fate::Disconnected,
        };
        self.replication.handle(replication::Input::Down { peer: peer.clone() }, now);
        self.registry.handle(registry::Input::Down { peer: peer.clone() }, now);
        self.founding.handle(founding::Input::Down { peer: peer.clone() }, now);
        if why != Fate::Disconnected {
            // Membership is about to say so too: whoever is told of the end finds the names free.
            self.gone(&peer, false, now);
        }
        self.settle(now);
        self.monitors.handle(monitor::Input::Down { peer, why }, now);
    }

    fn gone(&mut self, node: &NodeId, is_over: bool, now: Instant) {
        self.live.remove(node);
        if !is_over {
            self.dead.insert(node.name().clone(), node.clone());
        } else if self.dead.get(node.name()) == Some(node) {
            self.dead.remove(node.name());
        }
        let node = node.clone();
        let replicas = if is_over {
            replication::Input::Over { node: node.clone() }
        } else {
            replication::Input::Hidden { node: node.clone() }
        };
        self.replication.handle(replicas, now);
        self.registry.handle(registry::Input::Gone { node: node.clone() }, now);
        self.founding.handle(founding::Input::Gone { node }, now);
        self.settle(now);
        self.look_everywhere();
    }

    fn request(&mut self, id: RequestId, request: Request, deadline: Instant, now: Instant) {
        let input = match request {
            Request::Register { scope, name, serial, tag, metadata, replacing } => {
                let wish = Wish { scope, name, serial, tag, metadata, replacing, deadline };
                registry::Input::Register { id, wish }
            }
            Request::Unregister { scope, name, pid } => registry::Input::Unregister { id, scope, name, pid, deadline },
            Request::Update { scope, name, pid, version, metadata } => {
                registry::Input::Update { id, scope, name, pid, version, metadata, deadline }
            }
            Request::Everywhere { scope, version } => {
                self.everywhere.insert(id, Everywhere { scope, version, deadline });
                return self.look_everywhere();
            }
        };
        self.registry.handle(input, now);
    }

    fn join(&mut self, scope: &Text, group: Text, serial: u64, tag: Text, count: u32) {
        if !self.scopes.contains(scope) || self.is_withdrawn {
            return;
        }
        let key = Key::Member { group, serial };
        let state = if count > 0 { State::Joined(Joined { count, tag }) } else { State::Gone(Ended::Withdrawn) };
        self.replication.write(scope, key, state);
    }

    /// The node leaves: its mailboxes have no names and are in no groups any more, and it decides on nothing.
    fn withdraw(&mut self, now: Instant) {
        if std::mem::replace(&mut self.is_withdrawn, true) {
            return;
        }
        self.registry.handle(registry::Input::Withdraw, now);
        self.settle(now);
        for scope in self.scopes.clone() {
            for member in self.replication.own_members(&scope) {
                self.replication.write(&scope, member, State::Gone(Ended::Left));
            }
        }
        if self.founding.is_ready() && !self.is_client {
            for scope in self.scopes.clone() {
                self.replication.write("", Key::Arbiter { scope }, State::Gone(Ended::Withdrawn));
            }
        }
    }

    /// Answers those who wait for every live member; dials the members that have yet to be told.
    fn look_everywhere(&mut self) {
        let mut done = Vec::new();
        let mut dialled = BTreeSet::new();
        for (id, Everywhere { scope, version, .. }) in &self.everywhere {
            let lacking = self.live.iter().filter(|node| {
                let takes_part = self.replication.shares(node, scope) != Some(false);
                **node != self.id && takes_part && self.replication.acknowledged(node, scope) < *version
            });
            let lacking: Vec<&NodeId> = lacking.collect();
            if lacking.is_empty() {
                done.push(*id);
            }
            dialled.extend(lacking.into_iter().filter(|node| !self.replication.is_linked(node)).cloned());
        }
        for id in done {
            self.everywhere.remove(&id);
            self.outputs.push_back(Output::Done { id, outcome: Ok(Done::Everywhere) });
        }
        self.outputs.extend(dialled.into_iter().map(|node| Output::Dial { peer: node.name().clone() }));
    }

    /// Carries what one machine does to the others, until none has more to say. What is to be seen of names and groups comes
    /// before what follows from it.
    fn settle(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.replication.poll_output() {
                self.replication_did(output, now);
            } else if let Some(output) = self.registry.poll_output() {
                self.registry_did(output, now);
            } else if let Some(output) = self.founding.poll_output() {
                self.founding_did(output, now);
            } else if let Some(output) = self.monitors.poll_output() {
                self.monitors_did(output);
            } else {
                return;
            }
        }
    }

    fn replication_did(&mut self, output: replication::Output, now: Instant) {
        match output {
            replication::Output::Send { to, frame } => self.send(to, Service::Replication(frame)),
            replication::Output::Dial { peer } => self.outputs.push_back(Output::Dial { peer }),
            replication::Output::Changed(change) => self.changed(change, now),
            replication::Output::Synced { peer } => self.founding.handle(founding::Input::Synced { peer }, now),
            replication::Output::Acknowledged { .. } => self.look_everywhere(),
            replication::Output::Broken { peer, rule } => {
                tracing::debug!(target: "distribute::protocol", %peer, %rule, "the peer breaks the rules of replication");
                self.outputs.push_back(Output::Broken { peer });
            }
        }
    }

    fn changed(&mut self, change: Change, now: Instant) {
        let Change { scope, owner, key, version, state, cause } = change;
        match key {
            Key::Arbiter { scope } => {
                let is = matches!(state, Some(State::Arbiter));
                self.registry.handle(registry::Input::Arbiter { scope, node: owner, is }, now);
            }
            Key::Name(name) => {
                if owner == self.id && self.written.get(&scope).is_some_and(|written| version <= *written) {
                    return;
                }
                let why = match cause {
                    Cause::Written => Why::Written,
                    Cause::Synced => Why::Synced,
                    Cause::Left => Why::Left,
                    Cause::Died => Why::Died,
                };
                self.registry.handle(registry::Input::Changed { scope, name, owner, version, state, why }, now);
            }
            Key::Member { group, serial } => {
                let cause = if state == Some(State::Gone(Ended::Left)) { Cause::Left } else { cause };
                let (count, tag) = match state {
                    Some(State::Joined(Joined { count, tag })) => (count, tag),
                    _ => (0, "".into()),
                };
                let pid = Pid::new(owner, serial);
                self.outputs.push_back(Output::Member { scope, group, pid, tag, count, cause });
            }
        }
    }

    fn registry_did(&mut self, output: registry::Output, now: Instant) {
        let output = match output {
            registry::Output::Send { to, frame } => return self.send(to, Service::Registry(frame)),
            registry::Output::Write { scope, name, state } => {
                let version = self.replication.write(&scope, Key::Name(name.clone()), state.clone());
                self.written.insert(scope.clone(), version);
                return self.registry.handle(registry::Input::Written { scope, name, version, state }, now);
            }
            registry::Output::Dial { peer } => Output::Dial { peer },
            registry::Output::Track { serial } => Output::Track { serial },
            registry::Output::Done { id, outcome } => {
                let outcome = outcome.map(|granted| match granted {
                    Granted::Bound { version, stamp } => Done::Bound { version, stamp },
                    Granted::Unregistered => Done::Unregistered,
                    Granted::Updated { version } => Done::Updated { version },
                });
                Output::Done { id, outcome }
            }
            registry::Output::Named { scope, name, named, reason } => Output::Named { scope, name, named, reason },
            registry::Output::Lost { scope, name, serial, winner } => Output::Lost { scope, name, serial, winner },
            registry::Output::Over { scope, name, serial } => Output::Over { scope, name, serial },
            registry::Output::Decide { dispute, over } => Output::Decide { dispute, over },
            registry::Output::Broken { peer } => Output::Broken { peer },
        };
        self.outputs.push_back(output);
    }

    fn founding_did(&mut self, output: founding::Output, now: Instant) {
        match output {
            founding::Output::SyncWith { peer } => {
                self.replication.handle(replication::Input::SyncWith { peer }, now);
            }
            founding::Output::Ready { is_founder } => {
                self.registry.handle(registry::Input::Ready { is_founder }, now);
                if !self.is_client {
                    for scope in self.scopes.clone() {
                        self.replication.write("", Key::Arbiter { scope }, State::Arbiter);
                    }
                }
                self.outputs.push_back(Output::Ready);
            }
            founding::Output::Tell { peer } => self.send(peer, Service::Ready),
        }
    }

    fn monitors_did(&mut self, output: monitor::Output) {
        let output = match output {
            monitor::Output::Send { to, frame } => return self.send(to, Service::Monitor(frame)),
            monitor::Output::Dial { peer } => Output::Dial { peer },
            monitor::Output::Track { serial } => Output::Track { serial },
            monitor::Output::Notice { watch, told, cut } => Output::Notice { watch, told, cut },
            monitor::Output::Armed { peer, watches } => Output::Armed { peer, watches },
            monitor::Output::Broken { peer } => Output::Broken { peer },
        };
        self.outputs.push_back(output);
    }

    pub(crate) fn stats(&self) -> RegistryStats {
        let registry::Counters { claims, granted, conflicts, lost, malformed } = *self.registry.counters();
        let replication::Counters {
            entries_sent,
            entries_received,
            contradicted,
            left_out,
            snapshots_sent,
            repairs,
            rounds,
        } = self.replication.counters();
        RegistryStats {
            claims,
            granted,
            contests: conflicts,
            lost,
            malformed,
            entries_sent,
            entries_received,
            contradicted,
            left_out,
            snapshots_sent,
            repairs,
            rounds,
        }
    }

    fn send(&mut self, to: NodeId, frame: Service) {
        self.outputs.push_back(Output::Send { to, frame });
    }

    /// Nothing is under way, and nothing is kept of what was.
    #[cfg(test)]
    fn assert_at_rest(&self, seed: u64) {
        assert_eq!(self.registry.pending(), 0, "seed {seed}: {}: {:?}", self.id, self.registry);
        assert!(self.everywhere.is_empty(), "seed {seed}: {}", self.id);
    }
}

#[cfg(test)]
mod search;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
