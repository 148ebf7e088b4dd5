//! Membership as a machine of the simulator: nodes by number, lives by number.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::machine::{
    FIRST_LIFE, Id, Input as SimInput, Machine, Output as SimOutput, Path as SimPath, Rank as SimRank, Seen, State,
    Unlinked as SimUnlinked, Way as SimWay, What,
};
use crate::id::{NodeId, NodeName};
use crate::proto::membership::{
    Input, Lifeguard, Member, MemberEvent, MemberState, Membership, Output, Params, Path, Profile, Rank, Unlinked, Way,
};
use crate::wire::NodeFlags;

/// How the machines are tuned.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    pub(crate) params: Params,
}

impl Default for Tuning {
    /// The defaults of a local network.
    fn default() -> Self {
        let secs = Duration::from_secs;
        let params = Params {
            probe_interval: secs(1),
            probe_timeout: Duration::from_millis(500),
            dial_allowance: secs(1),
            probe_helpers: 3,
            score_max: 7,
            suspicion_mult: 4,
            suspicion_max_mult: 6,
            suspicion_accusers: 2,
            retransmit_mult: 4,
            gossip_interval: Duration::from_millis(200),
            gossip_fanout: 3,
            gossip_to_dead: secs(30),
            sync_interval: secs(30),
            reconnect_interval: secs(10),
            dead_kept: secs(600),
            flap_deaths: 3,
            flap_window: secs(600),
            hold_down: secs(60),
            hold_down_max: secs(3_600),
            kept_links: 3,
            members_max: 16_384,
            facts_max: 256,
            lifeguard: Lifeguard { probe: true, suspicion: true, buddy: true },
            doubts_sudden_death: true,
        };
        Self { params }
    }
}

impl Tuning {
    /// What the Lifeguard paper measured with.
    pub fn paper() -> Self {
        let mut tuning = Self::default();
        tuning.params.suspicion_mult = 5;
        tuning.params.suspicion_accusers = 3;
        tuning.params.score_max = 8;
        tuning
    }

    pub fn lifeguard(mut self, probe: bool, suspicion: bool, buddy: bool) -> Self {
        self.params.lifeguard = Lifeguard { probe, suspicion, buddy };
        self.params.doubts_sudden_death = suspicion;
        self
    }

    /// Lets members that are declared dead again and again object at once each time.
    pub fn undamped(mut self) -> Self {
        self.params.flap_deaths = u32::MAX;
        self
    }

    pub fn score_max(&self) -> u32 {
        self.params.score_max
    }

    /// The longest that a suspicion lasts among so many, and a little for what is late by itself.
    pub fn suspicion_max(&self, nodes: u32) -> Duration {
        let lifeguard = if self.params.lifeguard.suspicion { self.params.suspicion_max_mult } else { 1 };
        let scale = f64::from(nodes.max(1)).log10().max(1.0);
        let mult = f64::from(self.params.suspicion_mult * lifeguard);
        self.params.probe_interval.mul_f64(mult * scale) + Duration::from_secs(1)
    }
}

/// What all machines share.
#[derive(Debug)]
pub struct Setup {
    params: Params,
    names: Rc<[NodeName]>,
    /// Nodes from here on cannot be dialled.
    not_dialable_from: u32,
}

impl Setup {
    /// For up to so many nodes.
    pub fn new(tuning: Tuning, nodes: u32) -> Self {
        let name = |node| NodeName::parse(&format!("{node}@simulated")).expect("a name");
        Self { params: tuning.params, names: (0..nodes).map(name).collect(), not_dialable_from: u32::MAX }
    }

    fn profile(&self, node: u32) -> Profile {
        let flags = NodeFlags { not_dialable: node >= self.not_dialable_from, client: false };
        Profile { addresses: Vec::new(), flags, metadata: bytes::Bytes::new() }
    }
}

/// [`Membership`], with numbers for names.
#[derive(Debug)]
pub struct Ours {
    pub(crate) membership: Membership,
    names: Rc<[NodeName]>,
    not_dialable_from: u32,
}

impl Ours {
    fn id(&self, id: Id) -> NodeId {
        id_of(&self.names, id)
    }

    fn flags(&self, node: u32) -> NodeFlags {
        NodeFlags { not_dialable: node >= self.not_dialable_from, client: false }
    }
}

fn id_of(names: &[NodeName], id: Id) -> NodeId {
    NodeId::new(names[id.node as usize].clone(), id.life.into())
}

fn number(name: &NodeName) -> u32 {
    name.local().parse().expect("nodes are named by their numbers")
}

fn numbered(id: &NodeId) -> Id {
    Id { node: number(id.name()), life: u32::try_from(id.incarnation()).expect("lives are small numbers") }
}

fn seen(member: &Member) -> Seen {
    let state = match member.state {
        MemberState::Alive => State::Alive,
        MemberState::Suspect => State::Suspect,
        MemberState::Dead => State::Dead,
        MemberState::Left => State::Left,
    };
    Seen { id: numbered(&member.id), state, refutation: member.refutation }
}

fn path(path: SimPath) -> Path {
    Path { rtt: path.rtt, datagram_max: path.datagram_max }
}

impl Machine for Ours {
    type Setup = Setup;

    fn new(setup: &Setup, id: Id, seed: u64, now: Instant) -> Self {
        let own = id_of(&setup.names, id);
        let membership = Membership::new(own, setup.profile(id.node), setup.params, seed, now);
        Self { membership, names: setup.names.clone(), not_dialable_from: setup.not_dialable_from }
    }

    fn template(setup: &Setup, nodes: u32, now: Instant) -> Self {
        let mut template = Self::new(setup, Id { node: 0, life: FIRST_LIFE }, 0, now);
        let way = Path { rtt: Duration::from_millis(1), datagram_max: 1_162 };
        for node in 1..nodes {
            let peer = template.id(Id { node, life: FIRST_LIFE });
            let flags = template.flags(node);
            let linked = Input::Linked { peer: peer.clone(), addresses: Vec::new(), flags, path: way };
            template.membership.handle(linked, now);
            template.membership.handle(Input::Unlinked { peer, why: Unlinked::Idle }, now);
            while template.membership.poll_output().is_some() {}
        }
        template
    }

    fn fork(&self, id: Id, seed: u64, now: Instant) -> Self {
        let membership = self.membership.fork(&self.id(id), seed, now);
        Self { membership, names: self.names.clone(), not_dialable_from: self.not_dialable_from }
    }

    fn handle(&mut self, input: SimInput, now: Instant) {
        let input = match input {
            SimInput::Packet { from, way, path: to_it, packet } => {
                let way = if way == SimWay::Stream { Way::Stream } else { Way::Datagram };
                Input::Packet { from: self.id(from), way, path: path(to_it), packet }
            }
            SimInput::Linked { peer, path: way } => Input::Linked {
                peer: self.id(peer),
                addresses: Vec::new(),
                flags: self.flags(peer.node),
                path: path(way),
            },
            SimInput::Unlinked { peer, why } => {
                let why = match why {
                    SimUnlinked::Idle => Unlinked::Idle,
                    SimUnlinked::Left => Unlinked::Left,
                    SimUnlinked::Asked => Unlinked::Asked,
                    SimUnlinked::Lost => Unlinked::Lost,
                };
                Input::Unlinked { peer: self.id(peer), why }
            }
            SimInput::DialFailed { node } => Input::DialFailed { peer: self.names[node as usize].clone() },
            SimInput::Heard { peer, at } => Input::Heard { peer: self.id(peer), at },
            SimInput::SetMetadata { metadata } => Input::SetMetadata { metadata },
            SimInput::Publish { topic, body } => Input::Publish { topic, body },
            SimInput::Leave => Input::Leave,
            SimInput::Renewed { life } => {
                let node = number(self.membership.id().name());
                Input::Renewed { id: self.id(Id { node, life }) }
            }
        };
        self.membership.handle(input, now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.membership.handle_timeout(now);
    }

    fn poll_output(&mut self) -> Option<SimOutput> {
        Some(match self.membership.poll_output()? {
            Output::Send { to, way, rank, packet } => {
                let way = match way {
                    Way::Datagram => SimWay::Datagram,
                    Way::Stream => SimWay::Stream,
                };
                let rank = match rank {
                    Rank::Probe => SimRank::Probe,
                    Rank::Gossip => SimRank::Gossip,
                    Rank::Sync => SimRank::Sync,
                };
                SimOutput::Send { to: number(to.name()), way, rank, packet }
            }
            Output::Dial { peer } => SimOutput::Dial { node: number(&peer) },
            Output::Event(event) => happening(&event),
            Output::Fact { body, .. } => SimOutput::Fact { body },
            Output::Superseded { .. } => SimOutput::Superseded,
            Output::GoodbyeSaid => SimOutput::GoodbyeSaid,
        })
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.membership.poll_timeout()
    }

    fn judged(&self, now: Instant) -> Vec<Id> {
        self.membership.judged(now).iter().map(numbered).collect()
    }

    fn each_member(&self, see: &mut dyn FnMut(Seen)) {
        self.membership.members().for_each(|member| see(seen(&member)));
    }

    fn live(&self) -> usize {
        self.membership.live()
    }

    fn score(&self) -> u32 {
        self.membership.score()
    }

    fn life_of(&self, node: u32) -> Option<u32> {
        self.membership.member(&self.names[node as usize]).map(|member| numbered(&member.id).life)
    }
}

fn happening(event: &MemberEvent) -> SimOutput {
    let (what, seen) = match event {
        MemberEvent::Joined(member) => (What::Joined, seen(member)),
        MemberEvent::Replaced { old, member } => (What::Replaced { old: numbered(old).life }, seen(member)),
        MemberEvent::Suspected { member, .. } => (What::Suspected, seen(member)),
        MemberEvent::Cleared(member) => (What::Cleared, seen(member)),
        MemberEvent::Died { member, .. } => (What::Died, seen(member)),
        MemberEvent::Returned(member) => (What::Returned, seen(member)),
        MemberEvent::Left(member) => (What::Left, seen(member)),
        MemberEvent::Updated(member) => (What::Updated, seen(member)),
        MemberEvent::Forgotten(id) => (What::Forgotten, Seen { id: numbered(id), state: State::Dead, refutation: 0 }),
    };
    SimOutput::Event { what, seen }
}
