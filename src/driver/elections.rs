//! The elections of one node, as the node task runs them: a machine each, its clock, its disk, and its packets.
//!
//! Words of elections travel as packets of membership do, as datagrams before gossip and all streams, so they wait neither for
//! bulk nor for names. What is lost is said again with the next heartbeat; a word that is said once goes by a stream as well.
//! Each packet holds all that one move of the machines has to say to one peer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::clock::Clock;
use super::journal::target;
use super::leaders::{Leaders, Place};
use super::{Command, Farewell, Node, now};
use crate::id::{NodeId, NodeName};
use crate::proto::election::{Election as Machine, Input, Output, Vote};
use crate::proto::membership::MemberEvent;
use crate::proto::node;
use crate::wire::services::election::{Election as Frame, Word};
use crate::wire::services::{Service, Text, elections};

/// What handles ask for.
#[derive(Debug)]
pub(crate) enum Ask {
    Open {
        place: Arc<Place>,
        machine: Box<Machine>,
    },
    /// Answered when nothing of it is written any more.
    Close {
        name: Text,
        done: oneshot::Sender<()>,
    },
    Stand {
        name: Text,
        campaign: u64,
    },
    /// That campaign is over, or its leadership is; it hands over to a voter.
    Yield {
        name: Text,
        campaign: u64,
        to: Option<NodeName>,
    },
    /// The disk has answered.
    Written {
        name: Text,
        is_written: bool,
    },
}

/// The machines of one node.
#[derive(Debug, Default)]
pub(super) struct Elections {
    running: HashMap<Text, Running>,
    /// When a link to a peer was asked for last.
    dialled: HashMap<NodeName, Duration>,
    outgoing: BTreeMap<NodeName, Vec<Frame>>,
}

#[derive(Debug)]
struct Running {
    machine: Machine,
    place: Arc<Place>,
    campaign: Option<u64>,
    is_writing: bool,
    /// The last vote could not be written.
    has_failed: bool,
    closing: Option<oneshot::Sender<()>>,
}

/// The smallest path takes so many bytes in a datagram.
const PACKET: usize = 1100;

/// Peers that are remembered as dialled.
const DIALLED_MAX: usize = 1024;

impl Elections {
    /// When the next machine is due.
    pub(super) fn poll_timeout(&self, leaders: &Leaders) -> Option<Instant> {
        let due = self.running.values().filter_map(|running| running.machine.poll_timeout()).min()?;
        Some(now() + due.saturating_sub(leaders.clock.now()))
    }
}

impl Node {
    pub(super) fn elect(&mut self, ask: Ask) {
        let time = self.shared.leaders.clock.now();
        let name = match ask {
            Ask::Open { place, machine } => {
                let name = place.name.clone();
                let running = Running {
                    machine: *machine,
                    place,
                    campaign: None,
                    is_writing: false,
                    has_failed: false,
                    closing: None,
                };
                self.elections.running.insert(name.clone(), running);
                name
            }
            Ask::Close { name, done } => {
                let Some(running) = self.elections.running.get_mut(&name) else {
                    let _ = done.send(());
                    return;
                };
                running.campaign = None;
                running.closing = Some(done);
                running.machine.handle(Input::Resign, time);
                name
            }
            Ask::Stand { name, campaign } => {
                let Some(running) = self.elections.running.get_mut(&name) else { return };
                if running.closing.is_none() && self.farewell == Farewell::No {
                    running.campaign = Some(campaign);
                    running.machine.handle(Input::Stand, time);
                }
                name
            }
            Ask::Yield { name, campaign, to } => {
                let Some(running) = self.elections.running.get_mut(&name) else { return };
                if running.campaign != Some(campaign) {
                    return;
                }
                running.campaign = None;
                if let Some(to) = to {
                    running.machine.handle(Input::Transfer { to }, time);
                }
                running.machine.handle(Input::Resign, time);
                name
            }
            Ask::Written { name, is_written } => {
                let Some(running) = self.elections.running.get_mut(&name) else { return };
                running.is_writing = false;
                running.has_failed = !is_written;
                running.machine.handle(Input::Persisted { is_written }, time);
                name
            }
        };
        self.settle_election(&name);
        self.send_elections();
    }

    /// Whichever machine is due does what is due.
    pub(super) fn elections_timeout(&mut self) {
        let time = self.shared.leaders.clock.now();
        self.each_election(|machine| {
            if machine.poll_timeout().is_some_and(|due| due <= time) {
                machine.handle_timeout(time);
            }
        });
    }

    pub(super) fn election_packet(&mut self, from: &NodeId, packet: Bytes) {
        let Ok(frames) = elections(packet) else {
            tracing::debug!(target: target::ELECTION, peer = %from, "a packet of elections that cannot be read");
            return self.shared.leaders.refused(0, 1);
        };
        let time = self.shared.leaders.clock.now();
        for frame in frames {
            let name = frame.name.clone();
            let Some(running) = self.elections.running.get_mut(&name) else {
                self.shared.leaders.refused(1, 0);
                continue;
            };
            running.machine.handle(Input::Frame { from: from.clone(), frame }, time);
            self.settle_election(&name);
        }
        self.send_elections();
    }

    /// A hint, and never a vote: whoever waits for a leader that is dead waits for less time.
    pub(super) fn tell_elections(&mut self, event: &MemberEvent) {
        let gone = match event {
            MemberEvent::Died { member, .. } | MemberEvent::Left(member) => member.id.name(),
            MemberEvent::Replaced { old, .. } => old.name(),
            _ => return,
        };
        let (time, name) = (self.shared.leaders.clock.now(), gone.clone());
        self.each_election(|machine| machine.handle(Input::Gone { name: name.clone() }, time));
    }

    pub(super) fn renew_elections(&mut self, id: &NodeId) {
        self.each_election(|machine| machine.renewed(id.clone()));
    }

    /// The node leaves. Whoever leads next need not wait.
    pub(super) fn resign_elections(&mut self) {
        self.shared.leaders.refuse();
        let time = self.shared.leaders.clock.now();
        for running in self.elections.running.values_mut() {
            running.campaign = None;
        }
        self.each_election(|machine| machine.handle(Input::Resign, time));
    }

    fn each_election(&mut self, mut act: impl FnMut(&mut Machine)) {
        let names: Vec<_> = self.elections.running.keys().cloned().collect();
        for name in names {
            if let Some(running) = self.elections.running.get_mut(&name) {
                act(&mut running.machine);
                self.settle_election(&name);
            }
        }
        self.send_elections();
    }

    /// Does what one machine wants done.
    fn settle_election(&mut self, name: &Text) {
        loop {
            let Some(running) = self.elections.running.get_mut(name) else { return };
            // Before it is told: whoever is told may look.
            running.place.set_lease(running.machine.lease().map(|(_, until)| until));
            let Some(output) = running.machine.poll_output() else { break };
            match output {
                Output::Persist(vote) => self.write_vote(name, *vote),
                Output::Send { to, frame } => self.elections.outgoing.entry(to).or_default().push(frame),
                Output::Led { token } => match running.campaign {
                    Some(campaign) => {
                        tracing::info!(target: target::ELECTION, election = %name, %token, "this node leads");
                        running.place.led(campaign, token);
                    }
                    None => running.machine.handle(Input::Resign, self.shared.leaders.clock.now()),
                },
                Output::Lost { token, why } => {
                    tracing::info!(target: target::ELECTION, election = %name, %token, ?why, "this node leads no more");
                    running.place.lost(why);
                    // Until somebody campaigns again.
                    running.campaign = None;
                    running.machine.handle(Input::Resign, self.shared.leaders.clock.now());
                }
                Output::Observed { token, leader } => {
                    tracing::debug!(target: target::ELECTION, election = %name, %token, ?leader, "who leads");
                    running.place.observed(token, leader);
                }
            }
        }
        let Some(running) = self.elections.running.get_mut(name) else { return };
        running.place.count(running.machine.counters());
        if !running.is_writing
            && let Some(done) = running.closing.take()
        {
            self.elections.running.remove(name);
            let _ = done.send(());
        }
    }

    fn write_vote(&mut self, name: &Text, vote: Vote) {
        let leaders = &self.shared.leaders;
        let Some(running) = self.elections.running.get_mut(name) else { return };
        let Some(votes) = leaders.votes() else {
            return running.machine.handle(Input::Persisted { is_written: false }, leaders.clock.now());
        };
        // It is tried again and again: only a change is told.
        let (election, had_failed) = (name.clone(), running.has_failed);
        let write = move || {
            let written = votes.store(&election, &vote);
            match &written {
                Err(error) if !had_failed => {
                    tracing::error!(target: target::ELECTION, %election, %error, "the vote cannot be written: this node does not vote");
                }
                Ok(()) if had_failed => {
                    tracing::info!(target: target::ELECTION, %election, "the vote is written: this node votes again")
                }
                _ => {}
            }
            written.is_ok()
        };
        match leaders.clock {
            Clock::Tokio(_) => {
                let is_written = write();
                running.has_failed = !is_written;
                running.machine.handle(Input::Persisted { is_written }, leaders.clock.now());
            }
            Clock::System => {
                running.is_writing = true;
                let (shared, name) = (self.shared.clone(), name.clone());
                self.tasks.spawn_blocking(move || {
                    let is_written = write();
                    shared.command(Command::Election(Ask::Written { name, is_written }));
                });
            }
        }
    }

    /// Sends what the machines have said, and dials whom there is no link to: then it is lost, and said again.
    fn send_elections(&mut self) {
        let time = self.shared.leaders.clock.now();
        for (to, frames) in std::mem::take(&mut self.elections.outgoing) {
            let carrier = self.shared.session(&to).and_then(|session| self.carrier_of(&session));
            let Some(carrier) = carrier else {
                self.dial_for_elections(to, time);
                continue;
            };
            let mut frames = frames.into_iter().peekable();
            while frames.peek().is_some() {
                let (mut packet, mut is_said_once) = (Vec::new(), false);
                while let Some(frame) = frames.next_if(|_| packet.len() < PACKET / 2) {
                    is_said_once |= matches!(frame.word, Word::TakeOver | Word::Resigned);
                    Service::Election(frame).encode(&mut packet);
                }
                carrier.send_election(packet.into(), is_said_once);
            }
        }
    }

    /// One dial per lease, so that the back-off of links is not undone.
    fn dial_for_elections(&mut self, peer: NodeName, time: Duration) {
        let pause = self.shared.config.election_lease;
        let dialled = &mut self.elections.dialled;
        if self.farewell != Farewell::No || dialled.get(&peer).is_some_and(|at| time < *at + pause) {
            return;
        }
        if dialled.len() >= DIALLED_MAX {
            dialled.retain(|_, at| time < *at + pause);
        }
        dialled.insert(peer.clone(), time);
        self.node.handle(node::Input::Want { peer, urgent: true }, now());
    }
}
