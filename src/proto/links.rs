//! Which links this node dials and keeps, and which session each serves.
//!
//! A session is the association between two incarnations. It lives through links that close in good order and ends when
//! a link is lost, so both ends must agree on whether it ended. Each side counts the sessions with the other that it ended
//! by itself, and HELLO carries the count and the last one seen from the other:
//!
//! - equal pairs: the same session goes on (a link after an idle close, or two dials that crossed);
//! - the peer's count is higher than seen: it ended the session; this side ends it too, then begins the next;
//! - the peer's count is lower than seen: the link is older than an end; refused.
//!
//! An end that the peer reported does not raise this side's count, so one broken link is counted once per side that
//! noticed. Peers that are forgotten restart from the highest count of any peer.
//!
//! One name has one life at a time: a second life of a name waits until the first has been asked for a sign of life. The
//! first is the one with a session, or else the one that hearsay tells of.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::error::DownReason;
use crate::id::{NodeId, NodeName};
use crate::identity::Role;
use crate::proto::hello::{Greeting, INCARNATION_END, Peer, Refusal};
use crate::wire::Code;

/// One link, dialled or accepted; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkId(pub(crate) u64);

/// One session of this node; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// One question whether an old life still answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CheckId(u64);

/// What others say of a name: its latest life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hearsay {
    pub(crate) incarnation: u64,
    pub(crate) is_live: bool,
}

/// How often to dial, and how much to remember.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    /// Sessions at one time.
    pub(crate) peers_max: usize,
    /// Peers whose counts are remembered, with and without a session.
    pub(crate) remembered_max: usize,
}

#[derive(Debug)]
pub(crate) enum Input {
    /// Something waits for a link. `urgent` does not wait for the back-off.
    Want {
        peer: NodeName,
        urgent: bool,
    },
    /// A new incoming link asks to be judged, or an own dial has reached its peer.
    Greeted {
        link: LinkId,
        role: Role,
        peer: Box<Peer>,
        hearsay: Option<Hearsay>,
    },
    /// READY was sent, or has arrived.
    Ready {
        link: LinkId,
    },
    /// The link has begun the agreed stop.
    Stopping {
        link: LinkId,
    },
    /// The link is gone; `None` for one that was lost or never came up.
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
    /// This node presents something else than it did on that link: another link is to take its place.
    Outdated {
        link: LinkId,
    },
    /// This life is over, others say, for this reason. A link that is coming up may show that it is not.
    Over {
        life: NodeId,
        reason: DownReason,
    },
    /// A peer knows a life of this node's name that began later than this one.
    ToldStale {
        known: u64,
    },
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Dial {
        link: LinkId,
        peer: NodeName,
        greeting: Greeting,
    },
    /// There is no way to dial the peer: whoever waits is to be told.
    NotDialable {
        peer: NodeName,
    },
    /// The dial has failed: whoever waits is to be told.
    GaveUp {
        link: LinkId,
        peer: NodeName,
    },
    Accept {
        link: LinkId,
        session: SessionId,
        greeting: Greeting,
    },
    Refuse {
        link: LinkId,
        refusal: Refusal,
    },
    /// The session's first link is up.
    SessionUp {
        session: SessionId,
        peer: Box<Peer>,
    },
    /// From now on the session sends on this link.
    Activate {
        session: SessionId,
        link: LinkId,
    },
    /// Stop the link in agreement with the peer.
    Stop {
        link: LinkId,
        code: Code,
    },
    /// Close the link at once.
    Close {
        link: LinkId,
        code: Code,
    },
    SessionEnded {
        session: SessionId,
        peer: NodeId,
        reason: DownReason,
    },
    /// The session has no link any more, in good order.
    SessionIdle {
        session: SessionId,
        peer: NodeName,
    },
    /// Ask the old life for a sign of life: on the link, or by dialling it with this greeting.
    Check {
        check: CheckId,
        old: NodeId,
        link: Option<LinkId>,
        greeting: Greeting,
    },
    /// A second life of a live name was refused.
    Conflict {
        live: NodeId,
        refused: NodeId,
    },
    /// This node goes on as another incarnation.
    Renewed {
        id: NodeId,
    },
}

/// The links and sessions of one node.
#[derive(Debug)]
pub(crate) struct Links {
    id: NodeId,
    fingerprint: [u8; 32],
    limits: Limits,
    rng: fastrand::Rng,
    peers: BTreeMap<NodeName, Known>,
    links: BTreeMap<LinkId, NodeName>,
    checks: BTreeMap<CheckId, NodeName>,
    dials_due: BTreeSet<(Instant, NodeName)>,
    /// The highest count of sessions that this node ended with any peer.
    ended_max: u64,
    next: u64,
    /// Counts the ends of links, to know which session has been idle for longest.
    idled: u64,
    stopping: bool,
    outputs: VecDeque<Output>,
}

/// What is known of one name.
#[derive(Debug)]
struct Known {
    life: Option<(u64, [u8; 32])>,
    ended: u64,
    seen_ended: u64,
    session: Option<Session>,
    links: Vec<Link>,
    wanted: bool,
    failures: u32,
    dial_after: Option<Instant>,
    not_dialable: bool,
    check: Option<Check>,
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    up: bool,
    /// A user asked for its end while its last link was stopping for another reason.
    is_leaving: bool,
    /// Orders the sessions that have no link.
    idle_since: u64,
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    /// This node dialled it.
    own: bool,
    state: State,
    /// What the peer presented, once it has greeted: see [`Peer::certificate`].
    certificate: [u8; 32],
    /// One of the two presents something else by now. It serves until another link is up.
    is_outdated: bool,
}

impl Link {
    fn new(id: LinkId, own: bool, state: State) -> Self {
        Self { id, own, state, certificate: [0; 32], is_outdated: false }
    }

    /// Another link is wanted in spite of this one.
    fn is_to_be_replaced(&self) -> bool {
        self.state == State::Stopping || self.state == State::Up && self.is_outdated
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Dialling,
    /// Accepted, and waiting for READY; with the counts of that moment.
    Greeted {
        ended: u64,
        seen_ended: u64,
        peer: Box<Peer>,
    },
    Up,
    Stopping,
}

#[derive(Debug)]
struct Check {
    /// The life that is asked.
    old: Old,
    newcomers: Vec<Newcomer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Old {
    /// One with a session.
    Met((u64, [u8; 32])),
    /// One that only others have met.
    ToldOf(u64),
}

impl Old {
    fn incarnation(self) -> u64 {
        match self {
            Self::Met((incarnation, _)) | Self::ToldOf(incarnation) => incarnation,
        }
    }
}

/// A second life of a name, with a link that asks to be let in.
#[derive(Debug)]
struct Newcomer {
    link: LinkId,
    role: Role,
    peer: Box<Peer>,
    hearsay: Option<Hearsay>,
}

/// How many links one peer may have to this node, those that stop included: an honest one has two that crossed, and what it
/// left behind where the network broke.
const LINKS_MAX: usize = 16;

/// How many newcomers wait for one check.
const NEWCOMERS_MAX: usize = 4;

impl Links {
    /// A node with this identity. `seed` fixes the jitter of the back-off.
    pub(crate) fn new(id: NodeId, fingerprint: [u8; 32], limits: Limits, seed: u64) -> Self {
        Self {
            id,
            fingerprint,
            limits,
            rng: fastrand::Rng::with_seed(seed),
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            checks: BTreeMap::new(),
            dials_due: BTreeSet::new(),
            ended_max: 0,
            next: 1,
            idled: 0,
            stopping: false,
            outputs: VecDeque::new(),
        }
    }

    /// The name of a link that was accepted, before anybody is known behind it.
    pub(crate) fn accepted(&mut self) -> LinkId {
        LinkId(self.next())
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.dials_due.first().map(|(due, _)| *due)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((due, peer)) = self.dials_due.pop_first() {
            if due > now {
                self.dials_due.insert((due, peer));
                return;
            }
            if self.peers.get(&peer).is_some_and(|known| known.wanted) {
                self.want(peer, false, now);
            }
        }
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Want { peer, urgent } => self.want(peer, urgent, now),
            Input::Greeted { link, role, peer, hearsay } => self.judge(Newcomer { link, role, peer, hearsay }),
            Input::Ready { link } => self.ready(link, now),
            Input::Stopping { link } => self.link_stopping(link),
            Input::Closed { link, code } => self.link_closed(link, code, now),
            Input::CheckAnswered { check, alive } => self.check_answered(check, alive),
            Input::Disconnect { peer } => self.disconnect(&peer),
            Input::Outdated { link } => self.outdated(link, now),
            Input::Over { life, reason } => self.life_over(&life, reason),
            Input::ToldStale { known } => self.told_stale(known),
            Input::Shutdown => self.shutdown(),
        }
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn known(&mut self, name: &NodeName) -> &mut Known {
        if !self.peers.contains_key(name) && self.peers.len() >= self.limits.remembered_max {
            let idle = self.peers.iter().find(|(_, known)| known.is_idle()).map(|(name, _)| name.clone());
            if let Some(idle) = idle {
                self.peers.remove(&idle);
            }
        }
        self.peers.entry(name.clone()).or_insert(Known {
            life: None,
            ended: self.ended_max,
            seen_ended: 0,
            session: None,
            links: Vec::new(),
            wanted: false,
            failures: 0,
            dial_after: None,
            not_dialable: false,
            check: None,
        })
    }

    fn want(&mut self, peer: NodeName, urgent: bool, now: Instant) {
        if self.stopping || peer == *self.id.name() {
            return;
        }
        let known = self.known(&peer);
        let is_served = known.links.iter().any(|link| link.state == State::Up && !link.is_outdated);
        if is_served {
            return;
        }
        known.wanted = true;
        let is_coming = known.links.iter().any(|link| !link.is_to_be_replaced());
        if is_coming {
            return;
        }
        if known.not_dialable {
            known.wanted = false;
            self.outputs.push_back(Output::NotDialable { peer });
            return;
        }
        if let Some(after) = known.dial_after
            && !urgent
            && after > now
        {
            self.dials_due.insert((after, peer));
            return;
        }
        let link = LinkId(self.next());
        let known = self.known(&peer);
        known.links.push(Link::new(link, true, State::Dialling));
        let greeting = known.greeting();
        self.links.insert(link, peer.clone());
        self.outputs.push_back(Output::Dial { link, peer, greeting });
    }

    fn refuse(&mut self, link: LinkId, refusal: impl Into<Refusal>) {
        self.outputs.push_back(Output::Refuse { link, refusal: refusal.into() });
    }

    fn judge(&mut self, newcomer: Newcomer) {
        let Newcomer { link, role, ref peer, hearsay } = newcomer;
        if self.stopping {
            return self.refuse(link, Code::SHUTDOWN);
        }
        if role == Role::Dialler && !self.links.contains_key(&link) {
            // The dial was given up while it was on its way.
            return self.refuse(link, Code::STALE_LINK);
        }
        if peer.id.name() == self.id.name() {
            if peer.id == self.id && peer.fingerprint == self.fingerprint {
                return self.refuse(link, Code::SELF);
            }
            self.refuse(link, Code::NAME_CONFLICT);
            return self.outputs.push_back(Output::Conflict { live: self.id.clone(), refused: peer.id.clone() });
        }
        let sessions = self.peers.values().filter(|known| known.session.is_some()).count();
        let peers_max = self.limits.peers_max;
        let next_check = CheckId(self.next());
        let own_incarnation = self.id.incarnation();
        let is_member = self.peers.get(peer.id.name()).is_some_and(|known| known.session.is_some());
        if !is_member && sessions >= peers_max && !self.end_oldest_idle() {
            return self.refuse(link, Code::LIMIT);
        }
        let known = self.known(peer.id.name());
        let life = (peer.id.incarnation(), peer.fingerprint);
        let up = known.links.iter().find(|link| link.state == State::Up).map(|link| link.id);
        let is_up = known.session.as_ref().is_some_and(|session| session.up);
        // What a handshake has shown stands over what others say.
        let told_of = hearsay.filter(|told| !is_up && told.incarnation != life.0);
        let met = known.life.filter(|met| *met != life);
        let is_asked = met.is_some() && known.check.is_some();
        let old = match (met, told_of) {
            (Some(met), _) if is_up || is_asked => Some(Old::Met(met)),
            (_, Some(told)) if told.is_live => Some(Old::ToldOf(told.incarnation)),
            _ => None,
        };
        // A dial that reached another life, with no link to the old one, has asked the old one already.
        let has_asked = role == Role::Dialler && up.is_none();
        if let Some(old) = old.filter(|_| !has_asked) {
            let name = peer.id.name().clone();
            let is_new = known.check.is_none();
            let greeting = known.greeting();
            let check = known.check.get_or_insert(Check { old, newcomers: Vec::new() });
            if check.newcomers.len() >= NEWCOMERS_MAX {
                return self.refuse(link, Code::LIMIT);
            }
            check.newcomers.push(newcomer);
            if is_new {
                let old = NodeId::new(name.clone(), old.incarnation());
                self.checks.insert(next_check, name);
                self.outputs.push_back(Output::Check { check: next_check, old, link: up, greeting });
            }
            return;
        }
        let is_stale = |known: u64| known >= life.0;
        let stale = met.map(|met| met.0).filter(|met| is_stale(*met));
        let stale = stale.max(told_of.map(|told| told.incarnation).filter(|told| is_stale(*told)));
        if let Some(known) = stale {
            let reason = known.to_be_bytes().to_vec();
            return self.refuse(link, Refusal { code: Code::STALE_INCARNATION, reason });
        }
        if met.is_some() {
            let name = peer.id.name().clone();
            let seen_ended = peer.greeting.ended;
            self.end_session(&name, DownReason::Superseded, false);
            let known = self.known(&name);
            known.life = Some(life);
            known.seen_ended = seen_ended;
        }
        self.admit(link, role, newcomer.peer, own_incarnation);
    }

    /// The peer is who this node thinks, or nobody was known: compare the counts.
    fn admit(&mut self, link: LinkId, role: Role, peer: Box<Peer>, own_incarnation: u64) {
        let name = peer.id.name().clone();
        let known = self.known(&name);
        let theirs = peer.greeting;
        let knows_me = theirs.known_incarnation == own_incarnation;
        if known.life.is_none() {
            known.life = Some((peer.id.incarnation(), peer.fingerprint));
            known.seen_ended = theirs.ended;
        }
        // A peer that has seen more ends than this side counts speaks of another life; it will find out by itself.
        if theirs.ended < known.seen_ended {
            return self.refuse(link, Code::STALE_LINK);
        }
        if role == Role::Dialler && (!knows_me || theirs.seen_ended != known.ended) {
            // This side ended a session, or became another incarnation, after it had sent its HELLO.
            return self.refuse(link, Code::STALE_LINK);
        }
        if theirs.ended > known.seen_ended {
            known.seen_ended = theirs.ended;
            self.end_session(&name, DownReason::EndedByPeer, false);
        }
        let next_session = SessionId(self.next());
        let known = self.known(&name);
        if role == Role::Responder && known.links.len() >= LINKS_MAX {
            return self.refuse(link, Code::LIMIT);
        }
        known.not_dialable = peer.flags.not_dialable;
        let session =
            known.session.get_or_insert(Session { id: next_session, up: false, is_leaving: false, idle_since: 0 }).id;
        let greeting = known.greeting();
        let certificate = peer.certificate;
        let state = State::Greeted { ended: known.ended, seen_ended: known.seen_ended, peer };
        match known.links.iter_mut().find(|entry| entry.id == link) {
            Some(entry) => (entry.state, entry.certificate) = (state, certificate),
            None => known.links.push(Link { certificate, ..Link::new(link, role == Role::Dialler, state) }),
        }
        self.links.insert(link, name);
        self.outputs.push_back(Output::Accept { link, session, greeting });
    }

    fn ready(&mut self, link: LinkId, now: Instant) {
        let Some(name) = self.links.get(&link).cloned() else { return };
        let own_is_greater = *self.id.name() > name;
        let known = self.known(&name);
        let (ended, seen_ended) = (known.ended, known.seen_ended);
        let Some(entry) = known.links.iter_mut().find(|entry| entry.id == link) else { return };
        let State::Greeted { ended: ended_then, seen_ended: seen_then, peer } = entry.state.clone() else { return };
        let is_same_life = known.life == Some((peer.id.incarnation(), peer.fingerprint));
        let is_current = is_same_life && (ended, seen_ended) == (ended_then, seen_then);
        let Some(session) = known.session.as_mut().filter(|_| is_current) else {
            // The session that this link was greeted for has ended since.
            self.outputs.push_back(Output::Close { link, code: Code::STALE_LINK });
            return self.link_closed(link, Some(Code::STALE_LINK), now);
        };
        entry.state = State::Up;
        let session_id = session.id;
        let is_first = !std::mem::replace(&mut session.up, true);
        known.wanted = false;
        known.failures = 0;
        known.dial_after = None;
        // A peer that presents something else by now wants this link in place of the others.
        for other in known.links.iter_mut().filter(|other| other.id != link && other.state == State::Up) {
            other.is_outdated |= other.certificate != peer.certificate;
        }
        // Of dials that crossed, both sides keep the one by the greater name; of two by one side, the later.
        let best = known
            .links
            .iter()
            .filter(|link| link.state == State::Up)
            .max_by_key(|link| (!link.is_outdated, link.own == own_is_greater, link.id))
            .map(|link| link.id);
        let losers: Vec<_> = known
            .links
            .iter_mut()
            .filter(|link| link.state == State::Up && Some(link.id) != best)
            .map(|link| {
                link.state = State::Stopping;
                link.id
            })
            .collect();
        if is_first {
            self.outputs.push_back(Output::SessionUp { session: session_id, peer });
        }
        if let Some(best) = best {
            self.outputs.push_back(Output::Activate { session: session_id, link: best });
        }
        for link in losers {
            self.outputs.push_back(Output::Stop { link, code: Code::DUPLICATE_LINK });
        }
    }

    fn outdated(&mut self, link: LinkId, now: Instant) {
        let Some(name) = self.links.get(&link).cloned() else { return };
        let known = self.known(&name);
        let not_dialable = known.not_dialable;
        let Some(entry) = known.links.iter_mut().find(|entry| entry.id == link && entry.state == State::Up) else {
            return;
        };
        if not_dialable {
            // It dials again by itself, once it has no link.
            entry.state = State::Stopping;
            return self.outputs.push_back(Output::Stop { link, code: Code::OUTDATED });
        }
        entry.is_outdated = true;
        self.want(name, true, now);
    }

    fn link_stopping(&mut self, link: LinkId) {
        let Some(name) = self.links.get(&link).cloned() else { return };
        let known = self.known(&name);
        if let Some(entry) = known.links.iter_mut().find(|entry| entry.id == link && entry.state == State::Up) {
            entry.state = State::Stopping;
        }
    }

    fn link_closed(&mut self, link: LinkId, code: Option<Code>, now: Instant) {
        for name in self.checks.values() {
            if let Some(check) = self.peers.get_mut(name).and_then(|known| known.check.as_mut()) {
                check.newcomers.retain(|newcomer| newcomer.link != link);
            }
        }
        let Some(name) = self.links.get(&link).cloned() else { return };
        let Some(entry) = self.forget_link(&name, link) else { return };
        let is_stopping = self.stopping;
        self.idled += 1;
        let order = self.idled;
        let known = self.known(&name);
        match entry.state {
            State::Dialling | State::Greeted { .. } => {
                if entry.own {
                    self.dial_failed(&name, link, code, now);
                } else if known.wanted {
                    self.want(name.clone(), false, now);
                }
                self.forget_half_session(&name);
            }
            State::Up | State::Stopping => {
                if entry.is_outdated && known.links.iter().all(Link::is_to_be_replaced) {
                    // What was to replace it is wanted only if something waits.
                    known.wanted = false;
                }
                match code {
                    Some(code) if code.keeps_session() => {
                        if known.session.as_ref().is_some_and(|session| session.is_leaving) {
                            return self.end_session(&name, DownReason::Disconnected, true);
                        }
                        // One that stops may still bring what the session waits for.
                        let is_unlinked =
                            !known.links.iter().any(|link| matches!(link.state, State::Up | State::Stopping));
                        if let Some(session) = known.session.as_mut().filter(|_| is_unlinked) {
                            session.idle_since = order;
                            let session = session.id;
                            self.outputs.push_back(Output::SessionIdle { session, peer: name });
                        }
                    }
                    _ if is_stopping => self.end_session(&name, DownReason::Shutdown, true),
                    code => self.end_session(&name, down_reason(code), true),
                }
            }
        }
    }

    /// Begins the back-off. A dial that only came too early or too late (the counts or the life had moved) is repeated at
    /// once.
    fn dial_failed(&mut self, name: &NodeName, link: LinkId, code: Option<Code>, now: Instant) {
        let Limits { backoff_min, backoff_max, .. } = self.limits;
        let jitter = 0.5 + self.rng.f64() / 2.0;
        let known = self.known(name);
        if matches!(code, Some(Code::STALE_LINK | Code::STALE_INCARNATION)) && known.failures == 0 {
            if known.wanted {
                known.failures = 1;
                self.want(name.clone(), true, now);
            }
            return;
        }
        known.failures = known.failures.saturating_add(1);
        let factor = 1u32 << known.failures.saturating_sub(1).min(16);
        let dial_after = now + backoff_min.saturating_mul(factor).min(backoff_max).mul_f64(jitter);
        known.dial_after = Some(dial_after);
        if known.wanted && known.links.iter().any(|link| link.state == State::Up && link.is_outdated) {
            // It serves on meanwhile: the peer may learn to trust what this node presents.
            self.dials_due.insert((dial_after, name.clone()));
            return;
        }
        // The peer's own dial may be on its way; else who waited is told, and who comes next waits for the next dial.
        if known.links.iter().all(|link| link.state == State::Stopping) {
            known.wanted = false;
            let is_unlinked = known.links.is_empty();
            self.outputs.push_back(Output::GaveUp { link, peer: name.clone() });
            if is_unlinked {
                // A session without a link, to a node that cannot be reached: what was sent last may be lost.
                self.end_session(name, DownReason::Lost, true);
            }
        }
    }

    fn check_answered(&mut self, check: CheckId, alive: bool) {
        let Some(name) = self.checks.remove(&check) else { return };
        let known = self.known(&name);
        let Some(check) = known.check.take() else { return };
        // The answer is about the life that was asked; another may have taken its place meanwhile.
        let is_present = match check.old {
            Old::Met(old) => known.life == Some(old),
            Old::ToldOf(_) => !known.session.as_ref().is_some_and(|session| session.up),
        };
        if is_present && !alive {
            self.end_session(&name, DownReason::Superseded, true);
        }
        let old = check.old.incarnation();
        for mut newcomer in check.newcomers {
            let is_itself = matches!(check.old, Old::ToldOf(_)) && newcomer.peer.id.incarnation() == old;
            if is_present && alive && !is_itself {
                // One that began earlier is over, and is to know it.
                let is_earlier = newcomer.peer.id.incarnation() < old;
                let reason = if is_earlier { old.to_be_bytes().to_vec() } else { Vec::new() };
                self.refuse(newcomer.link, Refusal { code: Code::NAME_CONFLICT, reason });
                let live = NodeId::new(name.clone(), old);
                self.outputs.push_back(Output::Conflict { live, refused: newcomer.peer.id });
                continue;
            }
            // Asked once, and never again for the same newcomer.
            if let Some(told) = newcomer.hearsay.as_mut().filter(|told| told.incarnation == old) {
                told.is_live = false;
            }
            self.judge(newcomer);
        }
    }

    fn disconnect(&mut self, peer: &NodeName) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        known.wanted = false;
        let was_stopping = known.links.iter().any(|link| link.state == State::Stopping);
        let mut was_up = false;
        for link in &mut known.links {
            match link.state {
                State::Up => {
                    link.state = State::Stopping;
                    was_up = true;
                    self.outputs.push_back(Output::Stop { link: link.id, code: Code::NORMAL });
                }
                State::Stopping => {}
                State::Dialling | State::Greeted { .. } => {
                    self.outputs.push_back(Output::Close { link: link.id, code: Code::NORMAL });
                }
            }
        }
        match &mut known.session {
            Some(session) if was_up || was_stopping => session.is_leaving = true,
            _ => self.end_session(peer, DownReason::Disconnected, true),
        }
    }

    fn life_over(&mut self, life: &NodeId, reason: DownReason) {
        let known = self.peers.get(life.name()).and_then(|known| known.life);
        if known.is_some_and(|(incarnation, _)| incarnation == life.incarnation()) {
            self.end_session(life.name(), reason, true);
        }
    }

    fn told_stale(&mut self, known: u64) {
        if known < self.id.incarnation() || known >= INCARNATION_END - 1 {
            return;
        }
        let names: Vec<_> = self.peers.keys().cloned().collect();
        for name in names {
            self.end_session(&name, DownReason::Renewed, true);
            // Links that were greeted in the old life must not come up in the new one.
            let known = self.known(&name);
            if !known.links.is_empty() {
                known.ended += 1;
                let ended = known.ended;
                self.ended_max = self.ended_max.max(ended);
            }
        }
        self.id = NodeId::new(self.id.name().clone(), known + 1);
        self.outputs.push_back(Output::Renewed { id: self.id.clone() });
    }

    fn shutdown(&mut self) {
        self.stopping = true;
        for known in self.peers.values_mut() {
            known.wanted = false;
            for link in &mut known.links {
                let id = link.id;
                self.outputs.push_back(match link.state {
                    State::Up | State::Stopping => Output::Stop { link: id, code: Code::SHUTDOWN },
                    State::Dialling | State::Greeted { .. } => Output::Close { link: id, code: Code::SHUTDOWN },
                });
            }
        }
    }

    /// Ends the session of a name, if it has one, and closes its links. `own` raises this side's count.
    fn end_session(&mut self, name: &NodeName, reason: DownReason, own: bool) {
        let Some(known) = self.peers.get_mut(name) else { return };
        let Some(session) = known.session.take() else { return };
        if !session.up {
            // Nothing was sent in it: there is nothing to agree on. Its links will find their counts unchanged.
            known.session = Some(session);
            return;
        }
        // However it came to its end meanwhile, it was asked for.
        let reason = if session.is_leaving { DownReason::Disconnected } else { reason };
        if own {
            known.ended += 1;
            self.ended_max = self.ended_max.max(known.ended);
        }
        let serving: Vec<_> = known
            .links
            .extract_if(.., |link| matches!(link.state, State::Up | State::Stopping))
            .map(|link| link.id)
            .collect();
        for link in serving {
            self.links.remove(&link);
            self.outputs.push_back(Output::Close { link, code: Code::STALE_LINK });
        }
        let life = known.life.map_or(0, |(incarnation, _)| incarnation);
        let peer = NodeId::new(name.clone(), life);
        self.outputs.push_back(Output::SessionEnded { session: session.id, peer, reason });
    }

    /// Ends the session that has been without a link for longest. True when there was one: its node may be long gone.
    fn end_oldest_idle(&mut self) -> bool {
        let idle = self.peers.iter().filter(|(_, known)| known.links.is_empty());
        let sessions =
            idle.filter_map(|(name, known)| known.session.as_ref().map(|session| (session.idle_since, name)));
        let Some((_, name)) = sessions.min() else { return false };
        let name = name.clone();
        self.end_session(&name, DownReason::Overloaded, true);
        true
    }

    /// A session that never came up is nobody's once its links are gone.
    fn forget_half_session(&mut self, name: &NodeName) {
        let known = self.known(name);
        if known.links.is_empty() && known.session.as_ref().is_some_and(|session| !session.up) {
            known.session = None;
        }
    }

    fn forget_link(&mut self, name: &NodeName, link: LinkId) -> Option<Link> {
        self.links.remove(&link)?;
        let known = self.peers.get_mut(name)?;
        let at = known.links.iter().position(|entry| entry.id == link)?;
        Some(known.links.remove(at))
    }
}

impl Known {
    fn greeting(&self) -> Greeting {
        Greeting {
            known_incarnation: self.life.map_or(0, |(incarnation, _)| incarnation),
            ended: self.ended,
            seen_ended: self.seen_ended,
        }
    }

    fn is_idle(&self) -> bool {
        self.session.is_none() && self.links.is_empty() && !self.wanted && self.check.is_none()
    }
}

fn down_reason(code: Option<Code>) -> DownReason {
    match code {
        Some(Code::SHUTDOWN) => DownReason::Left,
        Some(Code::NORMAL) => DownReason::Disconnected,
        Some(Code::STALE_LINK) => DownReason::EndedByPeer,
        Some(Code::LIMIT | Code::SLOW) => DownReason::Overloaded,
        Some(Code::TRUST_CHANGED) => DownReason::TrustChanged,
        None | Some(Code::LOST) => DownReason::Lost,
        Some(_) => DownReason::Protocol,
    }
}

#[cfg(test)]
mod tests;
