//! Asking members whether they live.
//!
//! One member per interval is pinged; when it does not answer, others ask it too, and a stream of its link carries the
//! question a second time. If nobody had an answer by the end of the interval it is suspected. Lifeguard's local health
//! (section 4.1 of the paper) makes all of this slower while this node has reason to think that the fault is its own.

use std::time::{Duration, Instant};

use super::table::Slot;
use super::{Membership, Rank, Way};
use crate::wire::membership::{Life, ShortId, Swim};

/// A question that waits for its answer.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    seq: u32,
    target: Slot,
    /// The life and the refutation that are asked: a later one is not accused by this probe.
    short: ShortId,
    refutation: u32,
    started: Instant,
    /// When others are asked to ask; `None` once they were.
    ask_at: Option<Instant>,
    judge_at: Instant,
    is_dialling: bool,
    has_dialled: bool,
    was_sent: bool,
    helpers: Vec<Helper>,
}

#[derive(Clone, Copy, Debug)]
struct Helper {
    slot: Slot,
    has_answered: bool,
}

/// A question that this node asks for another.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    seq: u32,
    target: Slot,
    short: ShortId,
    origin: Slot,
    origin_short: ShortId,
    origin_seq: u32,
    nack_at: Option<Instant>,
    expires: Instant,
}

/// So many probes run at one time: the one whose turn it is, and those for which something happened.
const PROBES_MAX: usize = 8;

/// So many members wait to be probed because something happened to their links.
pub(super) const URGENT_MAX: usize = 256;

/// So many questions are asked for others at one time.
const RELAYS_MAX: usize = 256;

impl Membership {
    /// How much longer than usual everything takes, for the sake of the own health.
    pub(super) fn scale(&self) -> u32 {
        if self.params.lifeguard.probe { self.score + 1 } else { 1 }
    }

    pub(super) fn change_score(&mut self, delta: i64) {
        let score = (i64::from(self.score) + delta).clamp(0, self.params.score_max.into());
        self.score = if self.params.lifeguard.probe { score as u32 } else { 0 };
    }

    /// Probes whoever's turn it is.
    pub(super) fn probe_next(&mut self, now: Instant) {
        // Whoever came first in this round may come last in the next.
        for _ in 0..2 * self.table.slots() {
            let Some(slot) = self.order.next(self.table.slots(), &mut self.rng) else { return };
            let is_candidate = slot != self.own && self.table.get(slot).is_some_and(|record| record.is_live());
            if is_candidate && self.is_reachable(slot) && !self.is_probed(slot) {
                return self.start_probe(slot, now);
            }
        }
    }

    /// Probes a member because something happened to it, now or as soon as there is room.
    pub(super) fn probe_soon(&mut self, slot: Slot, now: Instant) {
        if slot == self.own || self.has_left || self.is_probed(slot) || self.urgent.contains(&slot) {
            return;
        }
        if self.probes.len() < PROBES_MAX {
            self.start_probe(slot, now);
        } else if self.urgent.len() < URGENT_MAX {
            self.urgent.push_back(slot);
        }
    }

    fn is_probed(&self, slot: Slot) -> bool {
        self.probes.iter().any(|probe| probe.target == slot)
    }

    /// Whether this node has a link to a member, or can make one.
    fn is_reachable(&self, slot: Slot) -> bool {
        self.peer(slot).is_some() || self.is_dialable(slot)
    }

    pub(super) fn is_dialable(&self, slot: Slot) -> bool {
        self.table.get(slot).is_some_and(|record| !record.identity.profile.flags.not_dialable)
    }

    fn start_probe(&mut self, target: Slot, now: Instant) {
        let Some(record) = self.table.get(target).filter(|record| record.is_live()) else { return };
        let (short, refutation) = (record.identity.short, record.refutation);
        let rtt = self.peer(target).map_or(Duration::ZERO, |peer| peer.path.rtt);
        let timeout = self.params.probe_timeout.max(3 * rtt) * self.scale();
        let interval = self.params.probe_interval * self.scale();
        self.counters.probes += 1;
        let mut probe = Probe {
            seq: self.next_seq(),
            target,
            short,
            refutation,
            started: now,
            ask_at: Some(now + timeout),
            judge_at: now + interval.max(2 * timeout),
            is_dialling: false,
            has_dialled: false,
            was_sent: false,
            helpers: Vec::new(),
        };
        if self.peer(target).is_some() {
            probe.was_sent = true;
            self.ping(target, probe.seq, Way::Datagram);
        } else if self.is_dialable(target) {
            self.dial_for(&mut probe);
        } else {
            probe.ask_at = Some(now);
        }
        let asks_now = probe.ask_at == Some(now);
        self.probes.push(probe);
        if asks_now {
            self.ask_helpers(self.probes.len() - 1);
        }
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// A link is made first, once per probe, and the probe has longer.
    fn dial_for(&mut self, probe: &mut Probe) {
        probe.is_dialling = true;
        probe.has_dialled = true;
        probe.was_sent = true;
        probe.judge_at += self.params.dial_allowance;
        self.dial(probe.target);
    }

    /// Pings a member; first comes what is held against it (Lifeguard's buddy system), so that it can object.
    fn ping(&mut self, target: Slot, seq: u32, way: Way) {
        let mut frames = Vec::new();
        if self.params.lifeguard.buddy {
            frames.extend(self.belief(target));
        }
        frames.push(Swim::Ping { seq, refutation: self.own_refutation() });
        self.send(target, way, Rank::Probe, &frames);
    }

    /// What is held against a member, if anything is.
    pub(super) fn belief(&self, slot: Slot) -> Option<Swim> {
        let record = self.table.get(slot)?;
        let (subject, refutation) = (record.identity.short, record.refutation);
        let own = self.own_short();
        match record.life {
            Life::Alive => None,
            Life::Suspect => {
                let accuser = self.suspicions.get(slot).and_then(|suspicion| suspicion.accusers().first()).copied();
                Some(Swim::Suspect { subject, refutation, accuser: accuser.unwrap_or(own) })
            }
            Life::Dead => Some(Swim::Dead { subject, refutation, accuser: own }),
            Life::Left => Some(Swim::Left { subject, refutation }),
        }
    }

    /// Answers the way that the question came.
    pub(super) fn handle_ping(&mut self, from: Slot, way: Way, seq: u32) {
        let mut frames = Vec::new();
        // Whoever is wrongly held for dead learns it with the answer.
        let is_live = self.table.get(from).is_some_and(|record| record.is_live());
        frames.extend(self.belief(from).filter(|_| self.params.lifeguard.buddy || !is_live));
        frames.push(Swim::Ack { seq, refutation: self.own_refutation() });
        self.send(from, way, Rank::Probe, &frames);
    }

    /// An answer, from whom was asked or from a helper.
    pub(super) fn handle_ack(&mut self, from: Slot, seq: u32, refutation: u32, now: Instant) {
        if let Some(at) = self.probes.iter().position(|probe| probe.seq == seq) {
            let probe = &self.probes[at];
            if probe.target == from {
                self.heard(from, now);
                self.probe_succeeded(at, now);
            } else if probe.helpers.iter().any(|helper| helper.slot == from) {
                let target = probe.target;
                self.claim_alive(target, refutation, None, from, now);
                self.probe_succeeded(at, now);
            }
            return;
        }
        if let Some(at) = self.relays.iter().position(|relay| relay.seq == seq && relay.target == from) {
            self.heard(from, now);
            self.answer_relay(at, refutation);
        }
    }

    /// Whether this is the answer of whoever was asked, and not of a helper.
    pub(super) fn answers_for_itself(&self, from: Slot, seq: u32) -> bool {
        self.probes.iter().any(|probe| probe.seq == seq && probe.target == from)
            || self.relays.iter().any(|relay| relay.seq == seq && relay.target == from)
    }

    fn probe_succeeded(&mut self, at: usize, now: Instant) {
        let target = self.probes.remove(at).target;
        // The life that was asked answers: whoever else goes by its name is not believed.
        self.contested.remove(&target);
        self.counters.acks += 1;
        self.change_score(-1);
        self.start_urgent(now);
    }

    fn start_urgent(&mut self, now: Instant) {
        while self.probes.len() < PROBES_MAX
            && let Some(slot) = self.urgent.pop_front()
        {
            if !self.is_probed(slot) {
                self.start_probe(slot, now);
            }
        }
    }

    pub(super) fn handle_nack(&mut self, from: Slot, seq: u32) {
        let Some(probe) = self.probes.iter_mut().find(|probe| probe.seq == seq) else { return };
        if let Some(helper) = probe.helpers.iter_mut().find(|helper| helper.slot == from) {
            helper.has_answered = true;
        }
    }

    /// Another asks this node to ask.
    pub(super) fn handle_ping_req(&mut self, from: Slot, seq: u32, target: ShortId, now: Instant) {
        let nack = [Swim::Nack { seq }];
        let Some(slot) = self.table.by_short(target) else {
            return self.send(from, Way::Datagram, Rank::Probe, &nack);
        };
        if slot == self.own {
            let ack = [Swim::Ack { seq, refutation: self.own_refutation() }];
            return self.send(from, Way::Datagram, Rank::Probe, &ack);
        }
        if !self.is_reachable(slot) {
            return self.send(from, Way::Datagram, Rank::Probe, &nack);
        }
        if self.relays.len() >= RELAYS_MAX {
            return;
        }
        let Some(origin_short) = self.table.get(from).map(|record| record.identity.short) else { return };
        let timeout = self.params.probe_timeout;
        let relay = Relay {
            seq: self.next_seq(),
            target: slot,
            short: target,
            origin: from,
            origin_short,
            origin_seq: seq,
            // The paper's 80 % of the time-out.
            nack_at: Some(now + timeout.mul_f64(0.8)),
            expires: now + 2 * timeout + self.params.dial_allowance,
        };
        let seq = relay.seq;
        self.relays.push(relay);
        if self.peer(slot).is_some() {
            self.ping(slot, seq, Way::Datagram);
        } else {
            self.dial(slot);
        }
    }

    fn answer_relay(&mut self, at: usize, refutation: u32) {
        let relay = self.relays.remove(at);
        if self.table.get(relay.origin).is_some_and(|record| record.identity.short == relay.origin_short) {
            let ack = [Swim::Ack { seq: relay.origin_seq, refutation }];
            self.send(relay.origin, Way::Datagram, Rank::Probe, &ack);
        }
    }

    /// A link to a member is up: whatever was asked of it is answered.
    pub(super) fn handshake_answers(&mut self, slot: Slot, short: ShortId, now: Instant) {
        while let Some(at) = self.probes.iter().position(|probe| probe.target == slot && probe.short == short) {
            self.probe_succeeded(at, now);
        }
        let refutation = self.table.get(slot).map_or(0, |record| record.refutation);
        while let Some(at) = self.relays.iter().position(|relay| relay.target == slot && relay.short == short) {
            self.answer_relay(at, refutation);
        }
    }

    /// A dial came to nothing: that is no answer, and others are asked at once.
    pub(super) fn dial_came_to_nothing(&mut self, slot: Slot) {
        for at in 0..self.probes.len() {
            let probe = &mut self.probes[at];
            if probe.target == slot && probe.is_dialling {
                probe.is_dialling = false;
                probe.judge_at -= self.params.dial_allowance;
                if probe.ask_at.is_some() {
                    self.ask_helpers(at);
                }
            }
        }
        for at in 0..self.relays.len() {
            if self.relays[at].target == slot {
                self.nack(at);
            }
        }
    }

    /// The link to a member closed in good order while it was asked: the question went with it.
    pub(super) fn ask_again(&mut self, slot: Slot) {
        for at in 0..self.probes.len() {
            if self.probes[at].target == slot && !self.probes[at].has_dialled && self.is_dialable(slot) {
                let mut probe = self.probes[at].clone();
                self.dial_for(&mut probe);
                self.probes[at] = probe;
            }
        }
    }

    /// Forgets the questions to a life that is over.
    pub(super) fn forget_probes(&mut self, slot: Slot) {
        self.probes.retain(|probe| probe.target != slot);
        self.relays.retain(|relay| relay.target != slot);
        self.urgent.retain(|urgent| *urgent != slot);
    }

    fn ask_helpers(&mut self, at: usize) {
        let probe = &mut self.probes[at];
        probe.ask_at = None;
        let (seq, target, short) = (probe.seq, probe.target, probe.short);
        // A second way, in case datagrams do not get through.
        if self.peer(target).is_some() {
            self.ping(target, seq, Way::Stream);
        }
        let mut helpers: Vec<_> = self.peers.iter().map(|peer| peer.slot).filter(|slot| *slot != target).collect();
        helpers.retain(|slot| self.table.get(*slot).is_some_and(|record| record.is_live()));
        let mut chosen = Vec::new();
        while chosen.len() < self.params.probe_helpers && !helpers.is_empty() {
            chosen.push(helpers.swap_remove(self.rng.usize(..helpers.len())));
        }
        for slot in &chosen {
            self.send(*slot, Way::Datagram, Rank::Probe, &[Swim::PingReq { seq, target: short }]);
        }
        let probe = &mut self.probes[at];
        probe.was_sent |= !chosen.is_empty();
        probe.helpers = chosen.into_iter().map(|slot| Helper { slot, has_answered: false }).collect();
    }

    pub(super) fn probe_timeouts(&mut self, now: Instant) {
        for at in 0..self.probes.len() {
            if self.probes[at].ask_at.is_some_and(|due| due <= now) {
                self.ask_helpers(at);
            }
        }
        while let Some(at) = self.probes.iter().position(|probe| probe.judge_at <= now) {
            self.judge(at, now);
        }
        for at in 0..self.relays.len() {
            if self.relays[at].nack_at.is_some_and(|due| due <= now) {
                self.nack(at);
            }
        }
        self.relays.retain(|relay| relay.expires > now);
        self.start_urgent(now);
    }

    fn nack(&mut self, at: usize) {
        let relay = &mut self.relays[at];
        if relay.nack_at.take().is_some() {
            let (origin, seq) = (relay.origin, relay.origin_seq);
            self.send(origin, Way::Datagram, Rank::Probe, &[Swim::Nack { seq }]);
        }
    }

    /// Nobody had an answer.
    fn judge(&mut self, at: usize, now: Instant) {
        let probe = self.probes.remove(at);
        // Something of its application came meanwhile: what was lost is the question.
        if self.peer(probe.target).is_some_and(|peer| peer.heard >= probe.started) {
            self.counters.acks += 1;
            return;
        }
        self.counters.failures += 1;
        if probe.was_sent {
            // Helpers that say nothing at all are a sign that the fault is here.
            let silent = probe.helpers.iter().filter(|helper| !helper.has_answered).count();
            self.change_score(if probe.helpers.is_empty() { 1 } else { silent as i64 });
        }
        if self.is_contested(probe.target) {
            return self.give_way(probe.target);
        }
        let is_same = self.table.get(probe.target).is_some_and(|record| record.identity.short == probe.short);
        if is_same {
            self.suspect(probe.target, probe.refutation, self.own_short(), now);
            if let Some(belief) = self.belief(probe.target).filter(|_| self.params.lifeguard.buddy) {
                self.send(probe.target, Way::Stream, Rank::Probe, &[belief]);
            }
        }
    }

    /// This node stood still: what it missed meanwhile is its own fault, and nobody is judged by it.
    pub(super) fn excuse_probes(&mut self) {
        self.probes.clear();
        self.change_score(1);
    }

    pub(super) fn probe_deadline(&self) -> Option<Instant> {
        let probes = self.probes.iter().map(|probe| probe.ask_at.unwrap_or(probe.judge_at).min(probe.judge_at));
        let relays = self.relays.iter().map(|relay| relay.nack_at.unwrap_or(relay.expires));
        probes.chain(relays).min()
    }

    /// The members whose probes would be judged now.
    pub(super) fn probed_until(&self, now: Instant) -> impl Iterator<Item = Slot> + '_ {
        self.probes.iter().filter(move |probe| probe.judge_at <= now).map(|probe| probe.target)
    }
}
