//! One node: its links, its membership and its services, joined.
//!
//! No machine knows another. What one does that concerns another is carried here, and nowhere else:
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
//! The services are told what membership was told or tells, after it:
//!
//! | what happened | what the services hear |
//! |---|---|
//! | a session is up, serves, has no link any more, has ended | the same, of its peer |
//! | a dial came to nothing | the same |
//! | this node goes on as another incarnation | the same |
//! | another member joined, or returned | it lives |
//! | another member died, left, or is forgotten | it is gone; the session with the dead has ended before |
//! | a later life took a member's place | the old one is gone, then the new one lives |
//!
//! What the services do about a member comes out before the event itself: whoever acts on a death finds the names of the
//! dead gone.
//!
//! Effects come out in the order in which they are to be done.

pub(crate) mod services;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::services::{Departure, Services};
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
    pub(crate) services: services::Setup,
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
    Outdated {
        link: LinkId,
    },
    /// A peer that has no link is no longer let in.
    Distrusted {
        life: NodeId,
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
    /// For the services, from handles and links.
    Service(services::Input),
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
    Service(services::Output),
}

/// The links, the membership and the services of one node.
#[derive(Debug)]
pub(crate) struct Node {
    /// Of all its lives.
    name: NodeName,
    links: Links,
    membership: Membership,
    services: Services,
    /// Who is at the other end of each session that is up.
    peers: HashMap<SessionId, Linkable>,
    /// The sessions that have a link.
    linked: BTreeSet<SessionId>,
    /// Of the link that came up last.
    path: Path,
    outputs: VecDeque<Output>,
    /// What the services were told of links and members, each with the number of outputs that came before it.
    #[cfg(test)]
    told: Vec<(usize, services::Input)>,
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
        let Setup { id, fingerprint, limits, profile, params, services, seed } = setup;
        let mut rng = fastrand::Rng::with_seed(seed);
        let name = id.name().clone();
        let links = Links::new(id.clone(), fingerprint, limits, rng.u64(..));
        let services = Services::new(id.clone(), services, rng.u64(..), now);
        let membership = Membership::new(id, profile, params, rng.u64(..), now);
        let path = Path { rtt: Duration::ZERO, datagram_max: 0 };
        let mut node = Self {
            name,
            links,
            membership,
            services,
            peers: HashMap::new(),
            linked: BTreeSet::new(),
            path,
            outputs: VecDeque::new(),
            #[cfg(test)]
            told: Vec::new(),
        };
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

    pub(crate) fn registry_stats(&self) -> services::RegistryStats {
        self.services.stats()
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [self.links.poll_timeout(), self.membership.poll_timeout(), self.services.poll_timeout()];
        timeouts.into_iter().flatten().min()
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
        if self.services.poll_timeout().is_some_and(|due| due <= now) {
            self.services.handle_timeout(now);
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
            Input::Outdated { link } => links.handle(links::Input::Outdated { link }, now),
            Input::Distrusted { life } => {
                links.handle(links::Input::Over { life, reason: DownReason::TrustChanged }, now);
            }
            Input::ToldStale { known } => links.handle(links::Input::ToldStale { known }, now),
            Input::Packet { from, way, path, packet } => {
                membership.handle(membership::Input::Packet { from, way, path, packet }, now);
            }
            Input::Heard { peer, at } => membership.handle(membership::Input::Heard { peer, at }, now),
            Input::SetMetadata { metadata } => membership.handle(membership::Input::SetMetadata { metadata }, now),
            Input::Publish { topic, body } => membership.handle(membership::Input::Publish { topic, body }, now),
            Input::Leave => {
                // Nobody is to wait for its vote.
                self.services.handle(services::Input::Withdraw, now);
                self.settle(now);
                self.membership.handle(membership::Input::Leave, now);
            }
            Input::Shutdown => links.handle(links::Input::Shutdown, now),
            Input::Service(input) => self.services.handle(input, now),
        }
        self.settle(now);
    }

    /// Carries what one machine does to the others, until none has more to say. Links come first: the others are told of
    /// every end and every beginning before what they said meanwhile is acted on.
    fn settle(&mut self, now: Instant) {
        loop {
            self.settle_links(now);
            self.settle_services();
            let Some(output) = self.membership.poll_output() else { return };
            self.membership_did(output, now);
        }
    }

    fn settle_services(&mut self) {
        self.outputs.extend(std::iter::from_fn(|| self.services.poll_output()).map(Output::Service));
    }

    fn settle_links(&mut self, now: Instant) {
        while let Some(output) = self.links.poll_output() {
            self.links_did(output, now);
        }
    }

    fn links_did(&mut self, output: links::Output, now: Instant) {
        let peer_of = |session| self.peers.get(session).map(|peer: &Linkable| peer.id.clone());
        // What membership hears, and then the services.
        let (member, service) = match &output {
            links::Output::SessionUp { session, peer } => {
                let Peer { id, addresses, flags, .. } = &**peer;
                let peer = Linkable { id: id.clone(), addresses: addresses.clone(), flags: *flags };
                self.peers.insert(*session, peer);
                (None, Some(services::Input::SessionUp { peer: id.clone() }))
            }
            links::Output::Activate { session, .. } => {
                self.linked.insert(*session);
                let peer = self.peers.get(session);
                let linked = peer.map(|peer| services::Input::Linked { peer: peer.id.clone() });
                (peer.map(|peer| peer.linked(self.path)), linked)
            }
            links::Output::SessionIdle { session, .. } => {
                self.linked.remove(session);
                let peer = peer_of(session);
                let unlinked = peer.clone().map(|peer| membership::Input::Unlinked { peer, why: Unlinked::Idle });
                (unlinked, peer.map(|peer| services::Input::Idle { peer }))
            }
            links::Output::SessionEnded { session, reason, .. } => {
                self.linked.remove(session);
                let peer = self.peers.remove(session).map(|peer| peer.id);
                let unlinked = peer.clone().map(|peer| membership::Input::Unlinked { peer, why: unlinked(*reason) });
                (unlinked, peer.map(|peer| services::Input::SessionDown { peer, reason: *reason }))
            }
            links::Output::GaveUp { peer, .. } | links::Output::NotDialable { peer } => (
                Some(membership::Input::DialFailed { peer: peer.clone() }),
                Some(services::Input::DialFailed { peer: peer.clone() }),
            ),
            links::Output::Renewed { id } => {
                let renewed = membership::Input::Renewed { id: id.clone() };
                (Some(renewed), Some(services::Input::Renewed { id: id.clone() }))
            }
            links::Output::Dial { .. }
            | links::Output::Accept { .. }
            | links::Output::Refuse { .. }
            | links::Output::Stop { .. }
            | links::Output::Close { .. }
            | links::Output::Check { .. }
            | links::Output::Conflict { .. } => (None, None),
        };
        self.outputs.push_back(Output::Link(output));
        if let Some(told) = member {
            self.membership.handle(told, now);
        }
        if let Some(told) = service {
            self.tell(told, now);
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
                self.tell_services(&event, now);
                Output::Event(event)
            }
            membership::Output::Send { to, way, rank, packet } => Output::Send { to, way, rank, packet },
            membership::Output::Fact { from, topic, body } => Output::Fact { from, topic, body },
            membership::Output::Superseded { by } => Output::Superseded { by },
            membership::Output::GoodbyeSaid => Output::GoodbyeSaid,
        };
        self.outputs.push_back(output);
    }

    fn tell(&mut self, input: services::Input, now: Instant) {
        #[cfg(test)]
        self.told.push((self.outputs.len(), input.clone()));
        self.services.handle(input, now);
    }

    /// What they do about it comes out before the event.
    fn tell_services(&mut self, event: &MemberEvent, now: Instant) {
        let gone = match event {
            MemberEvent::Died { member, .. } => Some((&member.id, Departure::Died)),
            MemberEvent::Left(member) => Some((&member.id, Departure::Left)),
            MemberEvent::Replaced { old, .. } => Some((old, Departure::Replaced)),
            MemberEvent::Forgotten(node) => Some((node, Departure::Forgotten)),
            _ => None,
        };
        let live = match event {
            MemberEvent::Joined(member) | MemberEvent::Returned(member) | MemberEvent::Replaced { member, .. } => {
                Some(&member.id)
            }
            _ => None,
        };
        if let Some((node, how)) = gone.filter(|(node, _)| *node.name() != self.name) {
            self.tell(services::Input::Gone { node: node.clone(), how }, now);
        }
        if let Some(node) = live.filter(|node| *node.name() != self.name) {
            self.tell(services::Input::Live { node: node.clone() }, now);
        }
        self.settle_services();
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
        | DownReason::TrustChanged
        | DownReason::Shutdown => Unlinked::Asked,
    }
}

#[cfg(test)]
mod tests;
