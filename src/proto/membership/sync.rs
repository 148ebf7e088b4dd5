//! Finding and repairing what two members know differently.
//!
//! ```text
//! one                              other
//!  |--- digest of all live members --->|   equal: answered by one bucket, the same digest, and done, in tens of bytes
//!  |<-- digests by bucket -------------|   else
//!  |--- summaries of what differs ---->|   eleven bytes for each member in those buckets
//!  |<-- introductions, questions ------|   what the one lacks; what the other lacks
//!  |--- introductions ---------------->|
//! ```
//!
//! Each packet stands for itself: an exchange that breaks off has applied what arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::table::{self, BUCKETS, Record, Slot, key};
use super::{Membership, Rank, Way};
use crate::wire::membership::{Introduction, Life, ShortId, Summary, Swim};

/// An exchange that this node began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    pub(super) with: Slot,
    pub(super) ends: Instant,
    /// What the peer was asked to compare.
    digest: u64,
}

/// What a peer may still make this node tell it: a few bytes of questions ask for all that is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowance {
    /// When it last began an exchange. It may do so once per interval.
    compared: Option<Instant>,
    /// The finest buckets, a bit for each, that it has not summarised in that exchange. Each is answered once.
    open: [u64; BUCKETS / 64],
    /// When it began to ask for members, and how many it was introduced to since. In an interval it may ask for all,
    /// twice.
    asked: Option<Instant>,
    introduced: usize,
}

impl Allowance {
    fn may_compare(&mut self, interval: Duration, now: Instant) -> bool {
        let may = self.compared.is_none_or(|last| last + interval <= now);
        if may {
            (self.compared, self.open) = (Some(now), [u64::MAX; BUCKETS / 64]);
        }
        may
    }

    /// Which of these buckets, so many in all, are answered; as finest buckets.
    fn close(&mut self, of: &[u32], buckets: usize) -> BTreeSet<usize> {
        let finest = of.iter().flat_map(|bucket| (*bucket as usize..BUCKETS).step_by(buckets));
        let finest: BTreeSet<_> = finest.filter(|n| self.open[n / 64] & (1 << (n % 64)) != 0).collect();
        finest.iter().for_each(|n| self.open[n / 64] &= !(1 << (n % 64)));
        finest
    }

    /// How many of so many members are introduced.
    fn introduce(&mut self, many: usize, members: usize, interval: Duration, now: Instant) -> usize {
        if self.asked.is_none_or(|since| since + interval <= now) {
            (self.asked, self.introduced) = (Some(now), 0);
        }
        let many = many.min((2 * members).saturating_sub(self.introduced));
        self.introduced += many;
        many
    }
}

/// An exchange takes no longer, or the next may begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many members wait for an exchange with them.
const WANTED_MAX: usize = 16;

/// Members per bucket, about.
const PER_BUCKET: usize = 8;

/// So many summaries are in one packet, at most.
const SUMMARIES_MAX: usize = 1024;

/// Introductions are sent in packets of this size, in bytes.
const PACKET: usize = 16 * 1024;

/// An unknown member is not asked for again within this time.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// So many questions are remembered.
const ASKED_MAX: usize = 1024;

/// How much rarer a periodic exchange is in a large cluster: memberlist's scale, which is 1 up to 32 members.
pub(super) fn scale(live: usize) -> u32 {
    if live <= 32 { 1 } else { ((live as f64).log2() - 5.0).ceil() as u32 + 1 }
}

/// Into how many buckets so many members are divided.
fn divisions(members: usize) -> usize {
    (members / PER_BUCKET).next_power_of_two().clamp(1, BUCKETS)
}

impl Membership {
    /// Compares with a peer, now or after the exchange that goes on.
    pub(super) fn sync_with(&mut self, peer: Slot, now: Instant) {
        if self.exchange.is_some_and(|exchange| exchange.ends > now) {
            if self.sync_wanted.len() < WANTED_MAX && !self.sync_wanted.contains(&peer) {
                self.sync_wanted.push_back(peer);
            }
            return;
        }
        self.exchange = Some(Exchange { with: peer, ends: now + PATIENCE, digest: self.table.digest() });
        self.counters.syncs += 1;
        self.send(peer, Way::Stream, Rank::Sync, &[self.digest()]);
    }

    /// Compares with a peer by chance.
    pub(super) fn sync_next(&mut self, now: Instant) {
        let live = self.peers.iter().map(|peer| peer.slot).filter(|slot| self.is_live(*slot));
        let live: Vec<_> = live.collect();
        if !live.is_empty() {
            let peer = live[self.rng.usize(..live.len())];
            self.sync_with(peer, now);
        }
    }

    fn digest(&self) -> Swim {
        Swim::Digest { members: self.table.live() as u64, digest: self.table.digest() }
    }

    fn exchange_is_over(&mut self, with: Slot, now: Instant) {
        if self.exchange.is_some_and(|exchange| exchange.with == with) {
            self.exchange = None;
            self.is_synced = true;
            self.sync_waiting(now);
        }
    }

    /// An exchange with this peer, if one goes on, breaks off.
    pub(super) fn sync_broke_off(&mut self, with: Slot, now: Instant) {
        if self.exchange.is_some_and(|exchange| exchange.with == with) {
            self.exchange = None;
            self.sync_waiting(now);
        }
    }

    /// The next exchange that waits begins.
    pub(super) fn sync_waiting(&mut self, now: Instant) {
        while self.exchange.is_none()
            && let Some(next) = self.sync_wanted.pop_front()
        {
            if self.peer(next).is_some() {
                self.sync_with(next, now);
            }
        }
    }

    pub(super) fn handle_digest(&mut self, from: Slot, members: u64, digest: u64, now: Instant) {
        let is_equal = (members, digest) == (self.table.live() as u64, self.table.digest());
        if self.exchange.is_some_and(|exchange| exchange.with == from) {
            if is_equal {
                // Both have asked at once, and need no answer.
                return self.exchange_is_over(from, now);
            }
            let is_theirs = self.table.get(from).is_some_and(|record| record.identity.id.name() < self.id.name());
            if !is_theirs {
                // Both have asked at once: the exchange of the smaller name goes on.
                return;
            }
            self.exchange = None;
        } else if is_equal {
            // An answer that looked like a question would be answered, if it came late, and that again.
            return self.send(from, Way::Stream, Rank::Sync, &[Swim::Buckets(vec![digest])]);
        }
        let interval = self.params.probe_interval;
        if !self.peer_mut(from).is_some_and(|peer| peer.allowance.may_compare(interval, now)) {
            return;
        }
        let buckets = divisions(self.table.live());
        self.send(from, Way::Stream, Rank::Sync, &[Swim::Buckets(self.table.digests(buckets))]);
        self.sync_waiting(now);
    }

    pub(super) fn handle_buckets(&mut self, from: Slot, theirs: &[u64], now: Instant) {
        let buckets = theirs.len();
        let Some(exchange) = self.exchange.filter(|exchange| exchange.with == from) else { return };
        if *theirs == [exchange.digest] || buckets > BUCKETS {
            return self.exchange_is_over(from, now);
        }
        let own = self.table.digests(buckets);
        let differs = |bucket: &usize| own[bucket % buckets] != theirs[bucket % buckets];
        // A peer that knows few divides into few. Here each of them may have to be divided further.
        let buckets = buckets.max(divisions(self.table.len()));
        let differ = (0..buckets).filter(differs).map(|bucket| (bucket as u32, Vec::new()));
        let mut summaries: BTreeMap<u32, Vec<Summary>> = differ.collect();
        for (_, record) in self.table.iter() {
            if let Some(bucket) = summaries.get_mut(&(table::bucket(record.identity.short, buckets) as u32)) {
                bucket.push(summary(record));
            }
        }
        let mut packet = (Vec::new(), Vec::new());
        for (bucket, summaries) in summaries {
            if packet.1.len() + summaries.len() > SUMMARIES_MAX && !packet.0.is_empty() {
                self.send_summaries(from, buckets, std::mem::take(&mut packet));
            }
            packet.0.push(bucket);
            packet.1.extend(summaries);
        }
        if !packet.0.is_empty() {
            self.send_summaries(from, buckets, packet);
        }
        self.exchange_is_over(from, now);
    }

    fn send_summaries(&mut self, to: Slot, buckets: usize, (of, summaries): (Vec<u32>, Vec<Summary>)) {
        let frame = Swim::Summaries { buckets: buckets as u32, of, summaries };
        self.send(to, Way::Stream, Rank::Sync, &[frame]);
    }

    pub(super) fn handle_summaries(
        &mut self,
        from: Slot,
        buckets: u32,
        of: &[u32],
        summaries: &[Summary],
        now: Instant,
    ) {
        let buckets = buckets as usize;
        if !buckets.is_power_of_two() || buckets > BUCKETS {
            self.counters.malformed += 1;
            return;
        }
        let theirs: BTreeMap<ShortId, &Summary> = summaries.iter().map(|summary| (summary.subject, summary)).collect();
        let of = self.peer_mut(from).map(|peer| peer.allowance.close(of, buckets)).unwrap_or_default();
        let mut lacking = Vec::new();
        for (slot, record) in self.table.iter().take_while(|_| !of.is_empty()) {
            let is_news = match theirs.get(&record.identity.short) {
                None => true,
                Some(theirs) => {
                    record.key() > key(theirs.refutation, theirs.life) || record.identity.version > theirs.profile
                }
            };
            if is_news && of.contains(&table::bucket(record.identity.short, BUCKETS)) {
                lacking.push(slot);
            }
        }
        self.introduce(from, &lacking);
        let mut questions = Vec::new();
        for summary in summaries {
            let Summary { subject, life, refutation, profile } = *summary;
            let Some(slot) = self.table.by_short(subject) else {
                // Of the death of somebody unknown there is nothing to know.
                if matches!(life, Life::Alive | Life::Suspect) {
                    questions.push(subject);
                }
                continue;
            };
            if self.table.get(slot).is_some_and(|record| profile > record.identity.version) {
                questions.push(subject);
            }
            let rumour = match life {
                Life::Alive => Swim::Alive { subject, refutation, profile: 0 },
                // What a peer remembers may be old: the dead of others are suspects here.
                Life::Suspect | Life::Dead if slot == self.own => Swim::Dead { subject, refutation, accuser: subject },
                Life::Suspect | Life::Dead => {
                    let Some(teller) = self.table.get(from) else { return };
                    Swim::Suspect { subject, refutation, accuser: teller.identity.short }
                }
                Life::Left => Swim::Left { subject, refutation },
            };
            self.handle_rumour(rumour, from, now);
        }
        if !questions.is_empty() {
            self.send(from, Way::Stream, Rank::Sync, &[Swim::Who(questions)]);
        }
    }

    /// Asks a peer who somebody is, once.
    pub(super) fn ask(&mut self, peer: Slot, subject: ShortId, now: Instant) {
        self.counters.unknown += 1;
        while self.asked.front().is_some_and(|(_, when)| now.duration_since(*when) > ASK_EVERY) {
            self.asked.pop_front();
        }
        if self.asked.len() >= ASKED_MAX || self.asked.iter().any(|(asked, _)| *asked == subject) {
            return;
        }
        self.asked.push_back((subject, now));
        self.questions.push((peer, subject));
    }

    /// Sends what [`Membership::ask`] has gathered.
    pub(super) fn send_questions(&mut self) {
        let mut by_peer: BTreeMap<Slot, Vec<ShortId>> = BTreeMap::new();
        for (peer, subject) in std::mem::take(&mut self.questions) {
            by_peer.entry(peer).or_default().push(subject);
        }
        for (peer, subjects) in by_peer {
            self.send(peer, Way::Datagram, Rank::Gossip, &[Swim::Who(subjects)]);
        }
    }

    pub(super) fn handle_who(&mut self, from: Slot, subjects: &[ShortId], now: Instant) {
        let known: BTreeSet<_> = subjects.iter().filter_map(|short| self.table.by_short(*short)).collect();
        let (members, interval) = (self.table.len(), self.params.probe_interval);
        let Some(peer) = self.peer_mut(from) else { return };
        let many = peer.allowance.introduce(known.len(), members, interval, now);
        let known: Vec<_> = known.into_iter().take(many).collect();
        self.introduce(from, &known);
    }

    /// Introduces members to a peer.
    pub(super) fn introduce(&mut self, to: Slot, members: &[Slot]) {
        let mut frames = Vec::new();
        let mut size = 0;
        for slot in members {
            let Some(record) = self.table.get(*slot) else { continue };
            let frame = introduction(record);
            size += frame.len();
            frames.push(frame);
            if size > PACKET {
                self.send(to, Way::Stream, Rank::Sync, &frames);
                frames.clear();
                size = 0;
            }
        }
        if !frames.is_empty() {
            self.send(to, Way::Stream, Rank::Sync, &frames);
        }
    }
}

fn summary(record: &Record) -> Summary {
    let (subject, profile) = (record.identity.short, record.identity.version);
    Summary { subject, life: record.life, refutation: record.refutation, profile }
}

pub(super) fn introduction(record: &Record) -> Swim {
    let table::Identity { id, version, profile, .. } = &*record.identity;
    Swim::Introduce(Introduction {
        id: id.clone(),
        life: record.life,
        refutation: record.refutation,
        profile: *version,
        flags: profile.flags,
        addresses: profile.addresses.clone(),
        metadata: profile.metadata.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_clusters_compare_less_often() {
        assert_eq!([1, 32, 33, 64, 65, 128, 1_000, 10_000].map(scale), [1, 1, 2, 2, 3, 3, 6, 10]);
    }
}
