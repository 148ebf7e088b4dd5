//! Who is in the cluster, and who lives.
//!
//! SWIM (Das, Gupta, Motivala, DSN 2002) with Lifeguard (Dadgar, Phillips, Currey, 2017), over links that prove who is at
//! the other end. Each member probes one other per interval; what it learns rides on its packets; comparisons on streams
//! repair what was lost. What links show is evidence too: a finished handshake is an answer, a lost link a reason to ask.
//!
//! ```text
//! probe          asks members whether they live         table    who is who, and digests of all
//! suspicion      how long the accused have to object    order    whose turn it is
//! claims         what stands of what is said            facts    what applications spread
//! dissemination  what is still to be told               sync     finding and repairing differences
//! ```

mod claims;
mod dissemination;
mod facts;
pub(crate) mod member;
mod order;
mod probe;
mod suspicion;
mod sync;
mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::dissemination::Rumours;
use self::facts::Heard;
pub(crate) use self::member::{Member, MemberEvent, MemberState, MembershipCounters};
use self::order::Order;
use self::probe::{Probe, Relay};
use self::suspicion::Suspicions;
use self::sync::{Allowance, Exchange};
use self::table::{Identity, Record, Slot, Table};
use crate::id::{NodeId, NodeName};
use crate::wire::NodeFlags;
pub(crate) use crate::wire::membership::{FACT_MAX, METADATA_MAX, TOPIC_MAX};
use crate::wire::membership::{Life, ShortId, Swim, read};

/// How this node takes part. Every number is a field of `Config`, but for `lifeguard`, which measurements switch off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params {
    pub(crate) probe_interval: Duration,
    pub(crate) probe_timeout: Duration,
    /// What a probe waits longer when it has to dial.
    pub(crate) dial_allowance: Duration,
    pub(crate) probe_helpers: usize,
    /// The highest score of the own health: intervals grow to `score_max + 1` times their length.
    pub(crate) score_max: u32,
    pub(crate) suspicion_mult: u32,
    pub(crate) suspicion_max_mult: u32,
    /// Distinct accusers, beside the first, that shorten a suspicion to its minimum.
    pub(crate) suspicion_accusers: usize,
    pub(crate) retransmit_mult: u32,
    pub(crate) gossip_interval: Duration,
    pub(crate) gossip_fanout: usize,
    /// How long the dead are still told that they are.
    pub(crate) gossip_to_dead: Duration,
    pub(crate) sync_interval: Duration,
    /// How often one of the dead is dialled, in case it was a partition.
    pub(crate) reconnect_interval: Duration,
    /// How long the dead and those who left are remembered.
    pub(crate) dead_kept: Duration,
    /// A member that had to object to its death so often, each time within `flap_window` of the last, holds its objection back for
    /// `hold_down`, and twice as long each time after, up to `hold_down_max`.
    pub(crate) flap_deaths: u32,
    pub(crate) flap_window: Duration,
    pub(crate) hold_down: Duration,
    pub(crate) hold_down_max: Duration,
    /// Links that a node which cannot be dialled keeps.
    pub(crate) kept_links: usize,
    pub(crate) members_max: usize,
    /// Own facts that may wait to be spread, and facts of all that are being spread.
    pub(crate) facts_max: usize,
    pub(crate) lifeguard: Lifeguard,
    /// Whether a death is a mere suspicion where none came before it; measurements switch it off too.
    pub(crate) doubts_sudden_death: bool,
}

/// The three additions of Lifeguard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifeguard {
    /// The own health scales the probes.
    pub(crate) probe: bool,
    /// Suspicions begin long, and are shortened by further accusers.
    pub(crate) suspicion: bool,
    /// The suspected are told first.
    pub(crate) buddy: bool,
}

/// What a node says of itself beside its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) flags: NodeFlags,
    pub(crate) metadata: Bytes,
}

/// What is known of the way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) rtt: Duration,
    /// What a datagram to the peer may hold now.
    pub(crate) datagram_max: usize,
}

/// How a peer came to be without a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unlinked {
    /// Both sides agreed to close it: the peer lived at this moment.
    Idle,
    /// The peer said good-bye.
    Left,
    /// A user of either side asked for it, or there was no room: it says nothing of the peer.
    Asked,
    /// It broke, or fell silent, or a rule was broken.
    Lost,
}

#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A packet of a peer, from a datagram or a stream of its link.
    Packet {
        from: NodeId,
        way: Way,
        path: Path,
        packet: Bytes,
    },
    /// A link to this life of the peer is up.
    Linked {
        peer: NodeId,
        addresses: Vec<SocketAddr>,
        flags: NodeFlags,
        path: Path,
    },
    /// There is no link to the peer any more.
    Unlinked {
        peer: NodeId,
        why: Unlinked,
    },
    /// A dial has failed.
    DialFailed {
        peer: NodeName,
    },
    /// Something of the peer's application arrived, at this time.
    Heard {
        peer: NodeId,
        at: Instant,
    },
    SetMetadata {
        metadata: Bytes,
    },
    /// Spread a fact. Refused (silently, counted) beyond `facts_max`: ask [`Membership::has_room`] first.
    Publish {
        topic: String,
        body: Bytes,
    },
    /// Say good-bye. [`Output::GoodbyeSaid`] follows.
    Leave,
    /// This node goes on as another incarnation.
    Renewed {
        id: NodeId,
    },
}

/// How a packet is to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Datagram,
    /// On a stream: it is sent again until it arrives, for as long as the link lives.
    Stream,
}

/// What goes first when there is not room for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Pings, acks, and what a probe is about.
    Probe,
    /// Rumours and facts.
    Gossip,
    /// What repairs differences.
    Sync,
}

#[derive(Clone, Debug)]
pub(crate) enum Output {
    /// Only to peers with a link; dropped if the link is gone meanwhile.
    Send {
        to: NodeId,
        way: Way,
        rank: Rank,
        packet: Bytes,
    },
    /// A link to this member is needed now. Answered by [`Input::Linked`] or [`Input::DialFailed`].
    Dial {
        peer: NodeName,
    },
    Event(MemberEvent),
    /// A fact, once.
    Fact {
        from: NodeId,
        topic: String,
        body: Bytes,
    },
    /// Peers hold a later life of this node's name for live: it is to be found out which is true.
    Superseded {
        by: NodeId,
    },
    /// The good-bye was told to peers.
    GoodbyeSaid,
}

/// The membership of one node.
#[derive(Debug)]
pub(crate) struct Membership {
    id: NodeId,
    own: Slot,
    params: Params,
    rng: fastrand::Rng,
    table: Table,
    peers: Peers,
    order: Order,
    probes: Vec<Probe>,
    urgent: VecDeque<Slot>,
    relays: Vec<Relay>,
    seq: u32,
    score: u32,
    suspicions: Suspicions,
    rumours: Rumours,
    /// The dead and those who left, and since when; and when they are to be forgotten.
    gone: BTreeMap<Slot, Instant>,
    forget_at: BTreeSet<(Instant, Slot)>,
    facts: HashMap<Slot, Heard>,
    fact_number: u64,
    exchange: Option<Exchange>,
    sync_wanted: VecDeque<Slot>,
    is_synced: bool,
    asked: VecDeque<(ShortId, Instant)>,
    questions: Vec<(Slot, ShortId)>,
    next_probe: Instant,
    next_gossip: Option<Instant>,
    last_gossip: Instant,
    next_sync: Instant,
    next_reconnect: Instant,
    /// Later lives of members that answer here, to be taken for true when these no longer do.
    contested: BTreeMap<Slot, (Identity, u32)>,
    /// The own deaths that were heard of, until when they count, the refutation of the last, and until when the objection
    /// waits.
    deaths: u32,
    deaths_until: Option<Instant>,
    died_at: Option<u32>,
    accused_of: u32,
    held_until: Option<Instant>,
    has_left: bool,
    is_superseded: bool,
    outputs: VecDeque<Output>,
    counters: MembershipCounters,
}

/// A member that there is a link to.
#[derive(Clone, Copy, Debug)]
struct Peer {
    slot: Slot,
    path: Path,
    /// When it last answered, or something of its application arrived.
    heard: Instant,
    allowance: Allowance,
}

/// Those with a link, by their slots.
type Peers = Vec<Peer>;

/// A timer that fires so much late, as a share of the probe interval, fired in a node that stood still.
const STOOD_STILL: f64 = 0.5;

impl Membership {
    /// A node that knows only itself. Its first output is its own [`MemberEvent::Joined`]. `seed` fixes every choice by chance.
    pub(crate) fn new(id: NodeId, profile: Profile, params: Params, seed: u64, now: Instant) -> Self {
        let mut table = Table::new();
        let short = ShortId::of(&id);
        // A handshake shows version 0: where there is more to say, peers find out that they lack it.
        let version = u32::from(!profile.metadata.is_empty());
        let identity = Arc::new(Identity { id: id.clone(), short, version, profile });
        let own = table.insert(Record { identity, life: Life::Alive, refutation: 0 });
        let mut this = Self::with(id, own, table, params, seed, now);
        this.event(own, MemberEvent::Joined);
        this
    }

    /// The same knowledge in the hands of another of the members that it holds: how a simulator starts ten thousand that know
    /// each other. Nothing of links, probes or queues is taken over. The table is shared until it is written to.
    #[cfg(any(test, feature = "pieces"))]
    pub(crate) fn fork(&self, id: &NodeId, seed: u64, now: Instant) -> Self {
        let own = self.table.by_id(id).expect("one of the members");
        let mut this = Self::with(id.clone(), own, self.table.clone(), self.params, seed, now);
        this.is_synced = true;
        this
    }

    fn with(id: NodeId, own: Slot, table: Table, params: Params, seed: u64, now: Instant) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // The ticks of many nodes that start together are not to fall together.
        let mut phase = |interval: Duration| now + interval.mul_f64(rng.f64());
        let next_probe = phase(params.probe_interval);
        let next_sync = phase(params.sync_interval);
        let next_reconnect = phase(params.reconnect_interval);
        Self {
            id,
            own,
            params,
            order: Order::new(&mut rng),
            rng,
            table,
            peers: Peers::new(),
            probes: Vec::new(),
            urgent: VecDeque::new(),
            relays: Vec::new(),
            seq: 0,
            score: 0,
            suspicions: Suspicions::default(),
            rumours: Rumours::default(),
            gone: BTreeMap::new(),
            forget_at: BTreeSet::new(),
            facts: HashMap::new(),
            fact_number: 0,
            exchange: None,
            sync_wanted: VecDeque::new(),
            is_synced: false,
            asked: VecDeque::new(),
            questions: Vec::new(),
            next_probe,
            next_gossip: None,
            last_gossip: now,
            next_sync,
            next_reconnect,
            contested: BTreeMap::new(),
            deaths: 0,
            deaths_until: None,
            died_at: None,
            accused_of: 0,
            held_until: None,
            has_left: false,
            is_superseded: false,
            outputs: VecDeque::new(),
            counters: MembershipCounters::default(),
        }
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Packet { from, way, path, packet } => self.handle_packet(&from, way, path, packet, now),
            Input::Linked { peer, addresses, flags, path } => self.linked(peer, addresses, flags, path, now),
            Input::Unlinked { peer, why } => self.unlinked(&peer, why, now),
            Input::DialFailed { peer } => {
                if let Some(slot) = self.table.by_name(&peer) {
                    self.dial_came_to_nothing(slot);
                }
            }
            Input::Heard { peer, at } => {
                if let Some(slot) = self.table.by_id(&peer) {
                    self.heard(slot, at);
                }
            }
            Input::SetMetadata { metadata } => self.set_metadata(metadata, now),
            Input::Publish { topic, body } => self.publish(topic, body, now),
            Input::Leave => self.leave(now),
            Input::Renewed { id } => self.renewed(id, now),
        }
        self.settle(now);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|due| now > due + self.params.probe_interval.mul_f64(STOOD_STILL)) {
            self.stood_still(now);
        }
        if self.held_until.is_some_and(|until| until <= now) {
            self.object(now);
        }
        self.probe_timeouts(now);
        self.suspicion_timeouts(now);
        self.forget_the_gone(now);
        if self.exchange.is_some_and(|exchange| exchange.ends <= now) {
            self.exchange = None;
            self.sync_waiting(now);
        }
        if self.has_left {
            self.next_probe = now + self.params.probe_interval;
            self.next_sync = now + self.params.sync_interval;
            self.next_reconnect = now + self.params.reconnect_interval;
        }
        if self.next_probe <= now {
            self.next_probe = now + self.params.probe_interval * self.scale();
            self.probe_next(now);
        }
        if self.next_gossip.is_some_and(|due| due <= now) {
            self.gossip(now);
            self.last_gossip = now;
            self.next_gossip = (!self.rumours.is_empty()).then(|| now + self.params.gossip_interval);
        }
        if self.next_sync <= now {
            self.next_sync = now + self.params.sync_interval * sync::scale(self.table.live());
            self.sync_next(now);
        }
        if self.next_reconnect <= now {
            self.next_reconnect = now + self.params.reconnect_interval;
            self.reconnect();
        }
        self.settle(now);
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let ticks = [self.next_probe, self.next_sync, self.next_reconnect].into_iter();
        let maybe = [
            self.next_gossip,
            self.held_until,
            self.probe_deadline(),
            self.suspicions.deadlines.first().map(|(due, _)| *due),
            self.forget_at.first().map(|(due, _)| *due),
            self.exchange.map(|exchange| exchange.ends),
        ];
        ticks.chain(maybe.into_iter().flatten()).min()
    }

    /// Whose silence would be judged if the time were `now`: whoever knows when their application was last heard says so, with
    /// [`Input::Heard`], before [`Membership::handle_timeout`].
    pub(crate) fn judged(&self, now: Instant) -> Vec<NodeId> {
        let suspected = self.suspicions.deadlines.iter().take_while(|(due, _)| *due <= now).map(|(_, slot)| *slot);
        let slots = self.probed_until(now).chain(suspected).filter(|slot| self.peer(*slot).is_some());
        slots.filter_map(|slot| self.table.get(slot)).map(|record| record.identity.id.clone()).collect()
    }

    #[cfg(any(test, feature = "pieces"))]
    pub(crate) fn id(&self) -> &NodeId {
        &self.id
    }

    /// What is known of a name; its present life.
    pub(crate) fn member(&self, name: &NodeName) -> Option<Member> {
        self.table.by_name(name).and_then(|slot| self.table.get(slot)).map(Member::from)
    }

    /// All that are known, this node, the dead and those who left included, in no order.
    pub(crate) fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.table.iter().map(|(_, record)| record.into())
    }

    /// How many live, this node included.
    #[cfg(any(test, feature = "pieces"))]
    pub(crate) fn live(&self) -> usize {
        self.table.live()
    }

    /// The score of this node's own health, 0 for good.
    pub(crate) fn score(&self) -> u32 {
        self.score
    }

    /// Whether an own fact can be taken now.
    pub(crate) fn has_room(&self) -> bool {
        self.rumours.own_facts() < self.params.facts_max / 4
    }

    /// When a peer last answered, or something of its application arrived; `None` without a link to it.
    pub(crate) fn last_heard(&self, peer: &NodeName) -> Option<Instant> {
        self.table.by_name(peer).and_then(|slot| self.peer(slot)).map(|peer| peer.heard)
    }

    pub(crate) fn counters(&self) -> &MembershipCounters {
        &self.counters
    }

    fn own_short(&self) -> ShortId {
        self.table.get(self.own).map_or(ShortId(0), |record| record.identity.short)
    }

    fn own_refutation(&self) -> u32 {
        self.table.get(self.own).map_or(0, |record| record.refutation)
    }

    fn is_live(&self, slot: Slot) -> bool {
        self.table.get(slot).is_some_and(Record::is_live)
    }

    fn peer(&self, slot: Slot) -> Option<&Peer> {
        self.peers.binary_search_by_key(&slot, |peer| peer.slot).ok().map(|at| &self.peers[at])
    }

    fn peer_mut(&mut self, slot: Slot) -> Option<&mut Peer> {
        self.peers.binary_search_by_key(&slot, |peer| peer.slot).ok().map(|at| &mut self.peers[at])
    }

    fn unlink(&mut self, slot: Slot) {
        if let Ok(at) = self.peers.binary_search_by_key(&slot, |peer| peer.slot) {
            self.peers.remove(at);
        }
    }

    fn heard(&mut self, slot: Slot, at: Instant) {
        if let Some(peer) = self.peer_mut(slot) {
            peer.heard = peer.heard.max(at);
        }
    }

    /// Whether a peer answered within about an interval.
    fn was_just_heard(&self, slot: Slot, now: Instant) -> bool {
        let interval = self.params.probe_interval * self.scale();
        self.peer(slot).is_some_and(|peer| peer.heard + interval > now)
    }

    // What comes in.

    fn handle_packet(&mut self, from: &NodeId, way: Way, path: Path, packet: Bytes, now: Instant) {
        self.counters.packets_received += 1;
        self.counters.bytes_received += packet.len() as u64;
        let Some(slot) = self.table.by_id(from) else {
            self.counters.unknown += 1;
            return;
        };
        if let Some(peer) = self.peer_mut(slot) {
            peer.path = path;
        }
        let mut questions = 0;
        for frame in read(packet) {
            questions += usize::from(frame.as_ref().is_ok_and(is_question));
            match frame {
                Ok(frame) if questions <= QUESTIONS_MAX => self.handle_frame(slot, way, frame, now),
                _ => {
                    self.counters.malformed += 1;
                    break;
                }
            }
        }
    }

    fn handle_frame(&mut self, from: Slot, way: Way, frame: Swim, now: Instant) {
        match frame {
            Swim::Ping { seq, refutation } => {
                self.claim_alive(from, refutation, None, from, now);
                self.handle_ping(from, way, seq);
            }
            Swim::Ack { seq, refutation } => {
                // From a helper it is the refutation of another.
                let is_own = self.answers_for_itself(from, seq);
                if is_own {
                    self.claim_alive(from, refutation, None, from, now);
                }
                self.handle_ack(from, seq, refutation, now);
            }
            Swim::PingReq { seq, target } => self.handle_ping_req(from, seq, target, now),
            Swim::Nack { seq } => self.handle_nack(from, seq),
            Swim::Who(subjects) => self.handle_who(from, &subjects, now),
            // Who is held for dead, or has left, is heard about itself and about this node, not about others.
            rumour @ (Swim::Alive { .. } | Swim::Suspect { .. } | Swim::Dead { .. } | Swim::Left { .. }) => {
                if self.is_live(from) || self.is_about(&rumour, [from, self.own]) {
                    self.handle_rumour(rumour, from, now);
                }
            }
            Swim::Introduce(introduction) => {
                let names = [from, self.own].map(|slot| self.table.get(slot).map(|record| record.identity.id.name()));
                if self.is_live(from) || names.contains(&Some(introduction.id.name())) {
                    self.introduced(introduction, from, now);
                }
            }
            Swim::Fact { origin, number, topic, body } => self.handle_fact(from, origin, number, topic, body, now),
            Swim::Digest { members, digest } => self.handle_digest(from, members, digest, now),
            Swim::Buckets(buckets) => self.handle_buckets(from, &buckets, now),
            Swim::Summaries { buckets, of, summaries } => self.handle_summaries(from, buckets, &of, &summaries, now),
        }
    }

    fn is_about(&self, rumour: &Swim, slots: [Slot; 2]) -> bool {
        let (Swim::Alive { subject, .. }
        | Swim::Suspect { subject, .. }
        | Swim::Dead { subject, .. }
        | Swim::Left { subject, .. }) = rumour
        else {
            return false;
        };
        self.table.by_short(*subject).is_some_and(|slot| slots.contains(&slot))
    }

    /// A link to this life of a peer is up, which is as good as an answer.
    fn linked(&mut self, id: NodeId, addresses: Vec<SocketAddr>, flags: NodeFlags, path: Path, now: Instant) {
        if id.name() == self.id.name() {
            return;
        }
        let short = ShortId::of(&id);
        let profile = Profile { addresses, flags, metadata: Bytes::new() };
        let known = self.table.by_name(id.name());
        let slot = match known.and_then(|slot| self.table.get(slot).map(|record| (slot, record))) {
            None => {
                let identity = Arc::new(Identity { id, short, version: 0, profile });
                let Some(slot) = self.join(Record { identity, life: Life::Alive, refutation: 0 }) else { return };
                slot
            }
            Some((slot, record)) => {
                let present = record.identity.id.incarnation();
                if id.incarnation() < present {
                    return;
                }
                if id.incarnation() > present {
                    // What a link shows stands over any rumour.
                    self.replace(slot, Identity { id, short, version: 0, profile }, 0);
                }
                slot
            }
        };
        let is_first = known.is_none();
        if let Err(at) = self.peers.binary_search_by_key(&slot, |peer| peer.slot) {
            self.peers.insert(at, Peer { slot, path, heard: now, allowance: Allowance::default() });
        }
        if let Some(peer) = self.peer_mut(slot) {
            (peer.path, peer.heard) = (path, now);
        }
        self.handshake_answers(slot, short, now);
        if self.has_left {
            return;
        }
        if !self.is_live(slot) {
            self.tell_it(slot);
        }
        // What the peer does not know of this node, it learns from a comparison.
        if is_first || !self.is_synced || !self.is_live(slot) {
            self.sync_with(slot, now);
        }
        if !self.rumours.is_empty() {
            self.gossip_soon(now, self.params.gossip_interval);
        }
    }

    fn unlinked(&mut self, id: &NodeId, why: Unlinked, now: Instant) {
        let Some(slot) = self.table.by_id(id) else { return };
        self.unlink(slot);
        self.sync_broke_off(slot, now);
        match why {
            Unlinked::Idle | Unlinked::Asked => self.ask_again(slot),
            Unlinked::Left => {
                let refutation = self.table.get(slot).map_or(0, |record| record.refutation);
                self.claim_left(slot, refutation, now);
            }
            Unlinked::Lost => {
                self.ask_again(slot);
                if self.is_contested(slot) {
                    self.give_way(slot);
                } else if self.is_live(slot) {
                    self.probe_soon(slot, now);
                }
            }
        }
        if self.is_kept() {
            self.keep_links();
        }
    }

    fn dial(&mut self, slot: Slot) {
        let Some(record) = self.table.get(slot) else { return };
        self.counters.dials += 1;
        self.outputs.push_back(Output::Dial { peer: record.identity.id.name().clone() });
    }

    // What time brings.

    /// Dials one of the dead: if a partition has healed, it answers. The more of the cluster is dead, the likelier; so a
    /// single dead member is dialled about once per interval by all together.
    fn reconnect(&mut self) {
        if self.is_kept() {
            self.keep_links();
        }
        let is_dead = |slot: &Slot| self.table.get(*slot).is_some_and(|record| record.life == Life::Dead);
        let dead: Vec<_> = self.gone.keys().copied().filter(is_dead).collect();
        if dead.is_empty() || self.rng.f64() >= dead.len() as f64 / self.table.live() as f64 {
            return;
        }
        let slot = dead[self.rng.usize(..dead.len())];
        if self.peer(slot).is_some() {
            self.tell_it(slot);
        } else if self.is_dialable(slot) {
            self.dial(slot);
        }
    }

    /// Nobody can dial this node, so it sees to it that it is not cut off.
    fn is_kept(&self) -> bool {
        !self.has_left && !self.is_dialable(self.own)
    }

    fn keep_links(&mut self) {
        let missing = self.params.kept_links.saturating_sub(self.peers.len());
        if missing == 0 {
            return;
        }
        let others = self.table.iter().filter(|(slot, record)| *slot != self.own && record.is_live());
        let mut others: Vec<_> = others.map(|(slot, _)| slot).collect();
        others.retain(|slot| self.peer(*slot).is_none() && self.is_dialable(*slot));
        for _ in 0..missing.min(others.len()) {
            let slot = others.swap_remove(self.rng.usize(..others.len()));
            self.dial(slot);
        }
    }

    // What users ask for.

    fn set_metadata(&mut self, metadata: Bytes, now: Instant) {
        if self.table.get(self.own).is_some_and(|record| record.identity.profile.metadata == metadata) {
            return;
        }
        self.change_identity(|identity| {
            identity.version += 1;
            identity.profile.metadata = metadata;
        });
        self.event(self.own, MemberEvent::Updated);
        self.introduce_everywhere(self.own);
        self.gossip_soon(now, Duration::ZERO);
    }

    fn change_identity(&mut self, change: impl FnOnce(&mut Identity)) {
        self.table.update(self.own, |record| {
            let Identity { id, short, version, profile } = &*record.identity;
            let mut identity = Identity { id: id.clone(), short: *short, version: *version, profile: profile.clone() };
            change(&mut identity);
            record.identity = Arc::new(identity);
        });
    }

    fn leave(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.has_left, true) {
            self.table.update(self.own, |record| record.life = Life::Left);
            self.event(self.own, MemberEvent::Left);
            self.tell(self.own);
            let mut peers: Vec<_> = self.peers.iter().map(|peer| peer.slot).collect();
            for _ in 0..GOODBYES.min(peers.len()) {
                let peer = peers.swap_remove(self.rng.usize(..peers.len()));
                let goodbye = self.belief(self.own);
                self.send(peer, Way::Stream, Rank::Probe, goodbye.as_slice());
            }
            self.gossip(now);
        }
        self.outputs.push_back(Output::GoodbyeSaid);
    }

    fn renewed(&mut self, id: NodeId, now: Instant) {
        let old = std::mem::replace(&mut self.id, id.clone());
        self.change_identity(|identity| {
            identity.short = ShortId::of(&id);
            identity.id = id;
        });
        self.table.update(self.own, |record| (record.refutation, record.life) = (0, Life::Alive));
        self.deaths = 0;
        (self.died_at, self.accused_of, self.held_until) = (None, 0, None);
        (self.is_synced, self.is_superseded) = (false, false);
        self.fact_number = 0;
        self.event(self.own, |member| MemberEvent::Replaced { old, member });
        self.introduce_everywhere(self.own);
        self.gossip_soon(now, Duration::ZERO);
    }
}

/// What is answered, and has packets of its own for that.
fn is_question(frame: &Swim) -> bool {
    use Swim::{Buckets, Digest, Ping, PingReq, Summaries, Who};
    matches!(frame, Ping { .. } | PingReq { .. } | Who(_) | Digest { .. } | Buckets(_) | Summaries { .. })
}

/// A packet asks one question. One that asks far more is not from a node that means it.
const QUESTIONS_MAX: usize = 8;

/// So many peers are told a good-bye on a stream; gossip tells the rest.
const GOODBYES: usize = 8;

#[cfg(test)]
mod tests;
