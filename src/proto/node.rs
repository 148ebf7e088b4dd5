//! One node: its links and its membership, joined.
//!
//! Neither machine knows the other. What one does that concerns the other is carried here, and nowhere else:
//!
//! | what happened | what follows from it |
//! |---|---|
//! | a link serves a session | its peer is linked |
//! | a session has no link any more | its peer is unlinked, and lived until now |
//! | a session ended | its peer is unlinked, for a reason |
//! | a dial came to nothing | that dial has failed |
//! | this node goes on as another incarnation | so does its membership |
//! | membership needs a link | it is dialled at once |
//! | a member died, or a later life took its place | the session with that very life ends, then the event is told |
//! | a life greets whose name membership knows by another | that is hearsay, for the links to judge by |
//!
//! Effects come out in the order in which they are to be done.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::hello::Peer;
use super::links::{self, CheckId, Hearsay, Limits, LinkId, Links, SessionId};
use super::membership::{self, Member, MemberEvent, Membership, Params, Path, Profile, Rank, Unlinked, Way};
use crate::error::DownReason;
use crate::id::{NodeId, NodeName};
use crate::identity::Role;
use crate::wire::{Code, NodeFlags};

/// What a node is made of.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) id: NodeId,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) limits: Limits,
    pub(crate) profile: Profile,
    pub(crate) params: Params,
    /// Fixes every choice by chance.
    pub(crate) seed: u64,
}

/// What a node is told. The parts that concern one machine are explained there.
#[derive(Debug)]
pub(crate) enum Input {
    Want {
        peer: NodeName,
        urgent: bool,
    },
    Greeted {
        link: LinkId,
        role: Role,
        peer: Box<Peer>,
    },
    /// READY was sent, or has arrived. The path is measured by then.
    Ready {
        link: LinkId,
        path: Path,
    },
    Stopping {
        link: LinkId,
    },
    Closed {
        link: LinkId,
        code: Option<Code>,
    },
    CheckAnswered {
        check: CheckId,
        alive: bool,
    },
    Disconnect {
        peer: NodeName,
    },
    ToldStale {
        known: u64,
    },
    Packet {
        from: NodeId,
        way: Way,
        path: Path,
        packet: Bytes,
    },
    Heard {
        peer: NodeId,
        at: Instant,
    },
    SetMetadata {
        metadata: Bytes,
    },
    Publish {
        topic: String,
        body: Bytes,
    },
    /// Say good-bye. [`Output::GoodbyeSaid`] follows, and then it is time for [`Input::Shutdown`].
    Leave,
    Shutdown,
}

/// What a node wants done.
#[derive(Debug)]
pub(crate) enum Output {
    Link(links::Output),
    Send {
        to: NodeId,
        way: Way,
        rank: Rank,
        packet: Bytes,
    },
    Event(MemberEvent),
    Fact {
        from: NodeId,
        topic: String,
        body: Bytes,
    },
    /// Peers hold a later life of this node's name for live: it is to be found out which is true.
    Superseded {
        by: NodeId,
    },
    GoodbyeSaid,
}

/// The links and the membership of one node.
#[derive(Debug)]
pub(crate) struct Node {
    links: Links,
    membership: Membership,
    /// Who is at the other end of each session that is up.
    peers: HashMap<SessionId, Linkable>,
    /// The sessions that have a link.
    linked: BTreeSet<SessionId>,
    /// Of the link that came up last.
    path: Path,
    outputs: VecDeque<Output>,
}

/// What membership is told of a peer each time that it has a link.
#[derive(Debug)]
struct Linkable {
    id: NodeId,
    addresses: Vec<SocketAddr>,
    flags: NodeFlags,
}

impl Linkable {
    fn linked(&self, path: Path) -> membership::Input {
        let Self { id, addresses, flags } = self;
        membership::Input::Linked { peer: id.clone(), addresses: addresses.clone(), flags: *flags, path }
    }
}

impl Node {
    pub(crate) fn new(setup: Setup, now: Instant) -> Self {
        let Setup { id, fingerprint, limits, profile, params, seed } = setup;
        let mut rng = fastrand::Rng::with_seed(seed);
        let links = Links::new(id.clone(), fingerprint, limits, rng.u64(..));
        let membership = Membership::new(id, profile, params, rng.u64(..), now);
        let path = Path { rtt: Duration::ZERO, datagram_max: 0 };
        let mut node =
            Self { links, membership, peers: HashMap::new(), linked: BTreeSet::new(), path, outputs: VecDeque::new() };
        node.settle(now);
        node
    }

    /// The name of a link that was accepted, before anybody is known behind it.
    pub(crate) fn accepted(&mut self) -> LinkId {
        self.links.accepted()
    }

    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.links.poll_timeout().into_iter().chain(self.membership.poll_timeout()).min()
    }

    /// Of whom [`Input::Heard`] is wanted before [`Node::handle_timeout`].
    pub(crate) fn judged(&self, now: Instant) -> Vec<NodeId> {
        self.membership.judged(now)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.links.poll_timeout().is_some_and(|due| due <= now) {
            self.links.handle_timeout(now);
            self.settle(now);
        }
        if self.membership.poll_timeout().is_some_and(|due| due <= now) {
            self.membership.handle_timeout(now);
            self.settle(now);
        }
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        let links = &mut self.links;
        let membership = &mut self.membership;
        match input {
            Input::Want { peer, urgent } => links.handle(links::Input::Want { peer, urgent }, now),
            Input::Greeted { link, role, peer } => {
                let hearsay = membership.member(peer.id.name()).as_ref().map(Hearsay::from);
                links.handle(links::Input::Greeted { link, role, peer, hearsay }, now);
            }
            Input::Ready { link, path } => {
                self.path = path;
                links.handle(links::Input::Ready { link }, now);
            }
            Input::Stopping { link } => links.handle(links::Input::Stopping { link }, now),
            Input::Closed { link, code } => links.handle(links::Input::Closed { link, code }, now),
            Input::CheckAnswered { check, alive } => links.handle(links::Input::CheckAnswered { check, alive }, now),
            Input::Disconnect { peer } => links.handle(links::Input::Disconnect { peer }, now),
            Input::ToldStale { known } => links.handle(links::Input::ToldStale { known }, now),
            Input::Packet { from, way, path, packet } => {
                membership.handle(membership::Input::Packet { from, way, path, packet }, now);
            }
            Input::Heard { peer, at } => membership.handle(membership::Input::Heard { peer, at }, now),
            Input::SetMetadata { metadata } => membership.handle(membership::Input::SetMetadata { metadata }, now),
            Input::Publish { topic, body } => membership.handle(membership::Input::Publish { topic, body }, now),
            Input::Leave => membership.handle(membership::Input::Leave, now),
            Input::Shutdown => links.handle(links::Input::Shutdown, now),
        }
        self.settle(now);
    }

    /// Carries what one machine does to the other, until neither has more to say. Links come first: membership is told of
    /// every end and every beginning before what it said meanwhile is acted on.
    fn settle(&mut self, now: Instant) {
        loop {
            self.settle_links(now);
            let Some(output) = self.membership.poll_output() else { return };
            self.membership_did(output, now);
        }
    }

    fn settle_links(&mut self, now: Instant) {
        while let Some(output) = self.links.poll_output() {
            self.links_did(output, now);
        }
    }

    fn links_did(&mut self, output: links::Output, now: Instant) {
        let told = match &output {
            links::Output::SessionUp { session, peer } => {
                let Peer { id, addresses, flags, .. } = &**peer;
                let peer = Linkable { id: id.clone(), addresses: addresses.clone(), flags: *flags };
                self.peers.insert(*session, peer);
                None
            }
            links::Output::Activate { session, .. } => {
                self.linked.insert(*session);
                self.peers.get(session).map(|peer| peer.linked(self.path))
            }
            links::Output::SessionIdle { session, .. } => {
                self.linked.remove(session);
                let peer = self.peers.get(session);
                peer.map(|peer| membership::Input::Unlinked { peer: peer.id.clone(), why: Unlinked::Idle })
            }
            links::Output::SessionEnded { session, reason, .. } => {
                self.linked.remove(session);
                let peer = self.peers.remove(session);
                peer.map(|peer| membership::Input::Unlinked { peer: peer.id, why: unlinked(*reason) })
            }
            links::Output::GaveUp { peer, .. } | links::Output::NotDialable { peer } => {
                Some(membership::Input::DialFailed { peer: peer.clone() })
            }
            links::Output::Renewed { id } => Some(membership::Input::Renewed { id: id.clone() }),
            links::Output::Dial { .. }
            | links::Output::Accept { .. }
            | links::Output::Refuse { .. }
            | links::Output::Stop { .. }
            | links::Output::Close { .. }
            | links::Output::Check { .. }
            | links::Output::Conflict { .. } => None,
        };
        self.outputs.push_back(Output::Link(output));
        if let Some(told) = told {
            self.membership.handle(told, now);
        }
    }

    fn membership_did(&mut self, output: membership::Output, now: Instant) {
        let output = match output {
            membership::Output::Dial { peer } => {
                // A peer that there was no room for when its link came up is linked all the same.
                let linked = self.linked.iter().filter_map(|session| self.peers.get(session));
                if let Some(linkable) = linked.into_iter().find(|linkable| *linkable.id.name() == peer) {
                    let told = linkable.linked(self.path);
                    return self.membership.handle(told, now);
                }
                return self.links.handle(links::Input::Want { peer, urgent: true }, now);
            }
            membership::Output::Event(event) => {
                // Whoever acts on the event finds no session with the dead.
                let over = match &event {
                    MemberEvent::Died { member, .. } => Some((member.id.clone(), DownReason::Dead)),
                    MemberEvent::Replaced { old, .. } => Some((old.clone(), DownReason::Superseded)),
                    _ => None,
                };
                if let Some((life, reason)) = over {
                    self.links.handle(links::Input::Over { life, reason }, now);
                    self.settle_links(now);
                }
                Output::Event(event)
            }
            membership::Output::Send { to, way, rank, packet } => Output::Send { to, way, rank, packet },
            membership::Output::Fact { from, topic, body } => Output::Fact { from, topic, body },
            membership::Output::Superseded { by } => Output::Superseded { by },
            membership::Output::GoodbyeSaid => Output::GoodbyeSaid,
        };
        self.outputs.push_back(output);
    }
}

impl From<&Member> for Hearsay {
    fn from(member: &Member) -> Self {
        Self { incarnation: member.id.incarnation(), is_live: member.state.is_live() }
    }
}

/// What the end of a session says of the peer.
fn unlinked(reason: DownReason) -> Unlinked {
    match reason {
        DownReason::Left => Unlinked::Left,
        // A peer that ended it may hold this node for dead: a probe tells.
        DownReason::Lost | DownReason::Protocol | DownReason::EndedByPeer => Unlinked::Lost,
        // Of the dead and the superseded membership knows, and in the other cases the peer may be well.
        DownReason::Dead
        | DownReason::Superseded
        | DownReason::Disconnected
        | DownReason::Overloaded
        | DownReason::Renewed
        | DownReason::Shutdown => Unlinked::Asked,
    }
}

#[cfg(test)]
mod tests;
