//! What is still to be told, to how many.
//!
//! Each rumour is sent `mult * ceil(log10(n + 1))` times by each member that hears it (SWIM, section 4.1, with
//! memberlist's base), the least sent first; a newer rumour about the same subject takes the place of the older. Facts of
//! applications go the same way, after the rumours.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::table::Slot;
use super::{Membership, Output, Rank, Way, sync};
use crate::wire::membership::{Life, Swim};

/// What a rumour is about. There is one at a time about each subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Subject {
    Member(Slot),
    /// The fact of this origin with this number.
    Fact(Slot, u64),
}

/// The rumours that wait to be sent again.
#[derive(Clone, Debug, Default)]
pub(super) struct Rumours {
    queue: BTreeSet<Place>,
    waiting: HashMap<Subject, Rumour>,
    facts: usize,
    own_facts: usize,
    next: u64,
}

/// The order of sending: rumours before facts, then the least sent, then the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    is_fact: bool,
    sends: u32,
    newest_first: std::cmp::Reverse<u64>,
    subject: Subject,
}

#[derive(Clone, Debug)]
struct Rumour {
    frame: Bytes,
    place: Place,
    is_own_fact: bool,
}

/// So many rumours that do not fit are passed over before a packet is called full.
const MISFITS: usize = 8;

/// How often each rumour is sent, in a cluster of so many.
pub(super) fn sends(mult: u32, live: usize) -> u32 {
    mult * ((live + 1) as f64).log10().ceil() as u32
}

impl Rumours {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn facts(&self) -> usize {
        self.facts
    }

    pub(super) fn own_facts(&self) -> usize {
        self.own_facts
    }

    /// Tells of a member from now on; what was told of it before is void.
    pub(super) fn tell(&mut self, slot: Slot, frame: Bytes) {
        self.insert(Subject::Member(slot), frame, false);
    }

    pub(super) fn tell_fact(&mut self, origin: Slot, number: u64, frame: Bytes, is_own: bool) {
        self.insert(Subject::Fact(origin, number), frame, is_own);
    }

    fn insert(&mut self, subject: Subject, frame: Bytes, is_own_fact: bool) {
        self.forget(subject);
        self.next += 1;
        let is_fact = matches!(subject, Subject::Fact(..));
        let place = Place { is_fact, sends: 0, newest_first: std::cmp::Reverse(self.next), subject };
        self.facts += usize::from(is_fact);
        self.own_facts += usize::from(is_own_fact);
        self.queue.insert(place);
        self.waiting.insert(subject, Rumour { frame, place, is_own_fact });
    }

    pub(super) fn forget(&mut self, subject: Subject) {
        let Some(old) = self.waiting.remove(&subject) else { return };
        self.queue.remove(&old.place);
        self.facts -= usize::from(old.place.is_fact);
        self.own_facts -= usize::from(old.is_own_fact);
    }

    /// Appends as many rumours to a packet as fit `max` bytes; each has been sent once more then, and is dropped after
    /// `limit` times. A fact is sent twice as often: what is lost of it no comparison repairs.
    pub(super) fn fill(&mut self, packet: &mut Vec<u8>, max: usize, limit: u32) {
        let mut taken = Vec::new();
        let mut misfits = 0;
        for place in &self.queue {
            let frame = &self.waiting[&place.subject].frame;
            if packet.len() + frame.len() <= max {
                packet.extend_from_slice(frame);
                taken.push(*place);
            } else {
                misfits += 1;
                if misfits == MISFITS || max.saturating_sub(packet.len()) < SMALLEST {
                    break;
                }
            }
        }
        for place in taken {
            let limit = if place.is_fact { limit.saturating_mul(2) } else { limit };
            if place.sends + 1 >= limit {
                self.forget(place.subject);
                continue;
            }
            self.queue.remove(&place);
            let place = Place { sends: place.sends + 1, ..place };
            self.queue.insert(place);
            if let Some(rumour) = self.waiting.get_mut(&place.subject) {
                rumour.place = place;
            }
        }
    }
}

/// Packets are built for this where nothing better is known: what a datagram holds at QUIC's smallest MTU.
const DATAGRAM: usize = 1162;

impl Membership {
    /// Sends frames to a peer; what fits beside them in a datagram are rumours.
    pub(super) fn send(&mut self, to: Slot, way: Way, rank: Rank, frames: &[Swim]) {
        let Some(peer) = self.peer(to) else { return };
        let max = if peer.path.datagram_max == 0 { DATAGRAM } else { peer.path.datagram_max };
        let Some(id) = self.table.get(to).map(|record| record.identity.id.clone()) else { return };
        let mut packet = Vec::new();
        frames.iter().for_each(|frame| frame.put(&mut packet));
        let way = if packet.len() > max { Way::Stream } else { way };
        if way == Way::Datagram {
            let limit = sends(self.params.retransmit_mult, self.table.live());
            self.rumours.fill(&mut packet, max, limit);
        }
        if packet.is_empty() {
            return;
        }
        self.counters.packets_sent += 1;
        self.counters.bytes_sent += packet.len() as u64;
        self.outputs.push_back(Output::Send { to: id, way, rank, packet: packet.into() });
    }

    /// Tells everybody what is known of a member now.
    pub(super) fn tell(&mut self, slot: Slot) {
        let Some(record) = self.table.get(slot) else { return };
        let (subject, refutation, profile) = (record.identity.short, record.refutation, record.identity.version);
        let frame = match record.life {
            Life::Alive => Swim::Alive { subject, refutation, profile },
            Life::Suspect => return,
            Life::Dead => Swim::Dead { subject, refutation, accuser: self.own_short() },
            Life::Left => Swim::Left { subject, refutation },
        };
        self.tell_frame(slot, &frame);
    }

    pub(super) fn introduce_everywhere(&mut self, slot: Slot) {
        if let Some(record) = self.table.get(slot) {
            let frame = sync::introduction(record);
            self.tell_frame(slot, &frame);
        }
    }

    pub(super) fn tell_frame(&mut self, slot: Slot, frame: &Swim) {
        let mut bytes = Vec::with_capacity(frame.len());
        frame.put(&mut bytes);
        self.rumours.tell(slot, bytes.into());
    }

    /// Tells a peer what is held against it.
    pub(super) fn tell_it(&mut self, slot: Slot) {
        if let Some(belief) = self.belief(slot) {
            self.send(slot, Way::Stream, Rank::Probe, &[belief]);
        }
    }

    /// Sends what is still to be told to a few peers by chance: to those that live, and to those that died a short while ago,
    /// so that whoever was wrongly declared dead hears of it.
    pub(super) fn gossip(&mut self, now: Instant) {
        let mut peers: Vec<_> = self.peers.iter().map(|peer| peer.slot).collect();
        peers.retain(|slot| {
            let is_fresh = self.gone.get(slot).is_some_and(|since| *since + self.params.gossip_to_dead > now);
            self.is_live(*slot) || is_fresh
        });
        for _ in 0..self.params.gossip_fanout {
            if peers.is_empty() || self.rumours.is_empty() {
                return;
            }
            let peer = peers.swap_remove(self.rng.usize(..peers.len()));
            self.send(peer, Way::Datagram, Rank::Gossip, &[]);
        }
    }

    pub(super) fn gossip_soon(&mut self, now: Instant, within: Duration) {
        // News cannot make it more frequent.
        let due = (now + within).max(self.last_gossip + self.params.gossip_interval);
        self.next_gossip = Some(self.next_gossip.map_or(due, |next| next.min(due)));
    }

    /// What every turn ends with.
    pub(super) fn settle(&mut self, now: Instant) {
        self.send_questions();
        if self.next_gossip.is_none() && !self.rumours.is_empty() {
            let within = self.params.gossip_interval.mul_f64(self.rng.f64());
            self.gossip_soon(now, within);
        }
    }
}

/// No rumour is smaller.
const SMALLEST: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(rumours: &mut Rumours, max: usize, limit: u32) -> String {
        let mut packet = Vec::new();
        rumours.fill(&mut packet, max, limit);
        String::from_utf8(packet).unwrap()
    }

    fn frame(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn sends_grow_with_the_logarithm() {
        assert_eq!([0, 1, 99].map(|live| sends(3, live)), [0, 3, 6]);
        assert_eq!([9, 99, 999, 9_999, 10_000].map(|live| sends(4, live)), [4, 8, 12, 16, 20]);
    }

    /// The least sent first, then the newest; each so often as it is to be sent.
    #[test]
    fn the_least_sent_go_first() {
        let mut rumours = Rumours::default();
        rumours.tell(1, frame("a"));
        assert_eq!(packet(&mut rumours, 100, 3), "a");
        rumours.tell(2, frame("b"));
        rumours.tell(3, frame("c"));
        assert_eq!(packet(&mut rumours, 100, 3), "cba");
        assert_eq!(packet(&mut rumours, 100, 3), "cba");
        assert_eq!(packet(&mut rumours, 100, 3), "cb");
        assert!(rumours.is_empty());
    }

    /// What does not fit waits for the next packet, and is first there.
    #[test]
    fn what_does_not_fit_waits() {
        let mut rumours = Rumours::default();
        for slot in 0..3 {
            rumours.tell(slot, frame(&slot.to_string().repeat(20)));
        }
        assert_eq!(packet(&mut rumours, 59, 9), ["2".repeat(20), "1".repeat(20)].concat());
        assert!(packet(&mut rumours, 59, 9).starts_with(&"0".repeat(20)));
        assert_eq!(packet(&mut rumours, 19, 9), "");
    }

    /// A newer rumour about a subject starts anew and takes the place of the old one.
    #[test]
    fn news_about_a_subject_voids_the_old() {
        let mut rumours = Rumours::default();
        rumours.tell(1, frame("old"));
        assert_eq!(packet(&mut rumours, 100, 2), "old");
        rumours.tell(1, frame("new"));
        assert_eq!([(); 3].map(|()| packet(&mut rumours, 100, 2)), ["new", "new", ""]);
    }

    /// Facts wait behind rumours, and are counted while they do.
    #[test]
    fn facts_go_after_rumours() {
        let mut rumours = Rumours::default();
        rumours.tell_fact(0, 1, frame("fact"), true);
        rumours.tell_fact(7, 1, frame("other"), false);
        rumours.tell(1, frame("rumour"));
        assert_eq!((rumours.facts(), rumours.own_facts()), (2, 1));
        assert_eq!(packet(&mut rumours, 100, 1), "rumourotherfact");
        assert_eq!((rumours.facts(), rumours.own_facts()), (2, 1));
        assert_eq!(packet(&mut rumours, 100, 1), "otherfact");
        assert_eq!((rumours.facts(), rumours.own_facts()), (0, 0));
    }
}
