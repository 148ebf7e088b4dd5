//! What is said of members, and which of it stands.
//!
//! Of two claims about one life the one with the higher refutation stands; at the same refutation left is stronger than
//! dead, dead than suspect, suspect than alive. So the order of arrival does not matter. A later life of a name stands
//! over an earlier. Only the member itself raises its refutation, to object.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dissemination::Subject;
use super::suspicion::{self, Suspicion};
use super::table::{Identity, Record, Slot, key};
use super::{Member, MemberEvent, MemberState, Membership, Output, Profile};
use crate::id::{HostName, NodeId};
use crate::wire::membership::{Introduction, Life, ShortId, Swim};

/// A claim whose refutation is so far above what is known cannot be true: members object rarely.
const JUMP_MAX: u32 = 1 << 12;

impl From<Life> for MemberState {
    fn from(life: Life) -> Self {
        match life {
            Life::Alive => Self::Alive,
            Life::Suspect => Self::Suspect,
            Life::Dead => Self::Dead,
            Life::Left => Self::Left,
        }
    }
}

impl From<&Record> for Member {
    fn from(record: &Record) -> Self {
        let Identity { id, profile, .. } = &*record.identity;
        Self {
            id: id.clone(),
            state: record.life.into(),
            refutation: record.refutation,
            metadata: profile.metadata.clone(),
            addresses: profile.addresses.clone(),
            not_dialable: profile.flags.not_dialable,
            client: profile.flags.client,
        }
    }
}

impl Membership {
    pub(super) fn event(&mut self, slot: Slot, event: impl FnOnce(Member) -> MemberEvent) {
        if let Some(record) = self.table.get(slot) {
            self.outputs.push_back(Output::Event(event(record.into())));
        }
    }

    /// Whose id it is, or of whoever said so.
    fn accuser(&self, accuser: ShortId, teller: Slot) -> NodeId {
        let record = self.table.by_short(accuser).and_then(|slot| self.table.get(slot));
        let record = record.or_else(|| self.table.get(teller));
        record.map_or_else(|| self.id.clone(), |record| record.identity.id.clone())
    }

    fn is_plausible(&mut self, slot: Slot, refutation: u32) -> bool {
        let known = self.table.get(slot).map_or(0, |record| record.refutation);
        let is_plausible = refutation <= known.saturating_add(JUMP_MAX);
        self.counters.implausible += u64::from(!is_plausible);
        is_plausible
    }

    /// A frame about a member, from a live one.
    pub(super) fn handle_rumour(&mut self, rumour: Swim, from: Slot, now: Instant) {
        let (Swim::Alive { subject, refutation, .. }
        | Swim::Suspect { subject, refutation, .. }
        | Swim::Dead { subject, refutation, .. }
        | Swim::Left { subject, refutation }) = rumour
        else {
            return;
        };
        let Some(slot) = self.table.by_short(subject) else {
            // Of the death of somebody unknown there is nothing to know.
            if matches!(rumour, Swim::Alive { .. } | Swim::Suspect { .. }) {
                self.ask(from, subject, now);
            }
            return;
        };
        if slot == self.own {
            return match rumour {
                Swim::Alive { .. } => {}
                Swim::Suspect { .. } => self.accused(refutation, false, now),
                _ => self.accused(refutation, true, now),
            };
        }
        match rumour {
            Swim::Alive { profile, .. } => self.claim_alive(slot, refutation, Some(profile), from, now),
            Swim::Suspect { accuser, .. } => self.claim_suspect(slot, refutation, accuser, from, now),
            Swim::Dead { accuser, .. } => self.claim_dead(slot, refutation, accuser, from, now),
            _ => self.claim_left(slot, refutation, now),
        }
    }

    /// Somebody says that a member lives, or it says so itself.
    pub(super) fn claim_alive(&mut self, slot: Slot, refutation: u32, version: Option<u32>, from: Slot, now: Instant) {
        let Some(record) = self.table.get(slot) else { return };
        if slot == self.own {
            return;
        }
        let short = record.identity.short;
        let (life, is_news) = (record.life, refutation > record.refutation);
        if version.is_some_and(|version| version > record.identity.version) {
            self.ask(from, short, now);
        }
        if !is_news || !self.is_plausible(slot, refutation) {
            return;
        }
        self.table.update(slot, |record| {
            record.refutation = refutation;
            record.life = Life::Alive;
        });
        match life {
            Life::Alive => self.event(slot, MemberEvent::Updated),
            Life::Suspect => {
                self.suspicions.end(slot);
                self.counters.false_alarms += 1;
                self.event(slot, MemberEvent::Cleared);
            }
            Life::Dead | Life::Left => {
                self.no_longer_gone(slot);
                self.counters.false_alarms += u64::from(life == Life::Dead);
                self.event(slot, MemberEvent::Returned);
            }
        }
        self.tell(slot);
    }

    /// Somebody says that a member does not answer.
    fn claim_suspect(&mut self, slot: Slot, refutation: u32, accuser: ShortId, from: Slot, now: Instant) {
        let Some(record) = self.table.get(slot) else { return };
        if accuser == record.identity.short {
            self.counters.implausible += 1;
            return;
        }
        // Who is dead or gone has no standing.
        let has_standing =
            self.table.by_short(accuser).and_then(|slot| self.table.get(slot)).is_none_or(Record::is_live);
        if refutation < record.refutation || !has_standing {
            return;
        }
        if !record.is_live() {
            // It has objected since, or nobody could suspect it.
            if refutation <= record.refutation {
                return;
            }
            self.claim_alive(slot, refutation, None, from, now);
        }
        if self.is_plausible(slot, refutation) {
            self.suspect(slot, refutation, accuser, now);
        }
    }

    /// Begins a suspicion, or adds an accuser to it.
    pub(super) fn suspect(&mut self, slot: Slot, refutation: u32, accuser: ShortId, now: Instant) {
        let Some(record) = self.table.get(slot).filter(|record| record.is_live()) else { return };
        let subject = record.identity.short;
        if key(refutation, Life::Suspect) < record.key() {
            return;
        }
        if record.key() == key(refutation, Life::Suspect) {
            if self.suspicions.confirm(slot, accuser) {
                self.tell_frame(slot, &Swim::Suspect { subject, refutation, accuser });
            }
            return;
        }
        let min = suspicion::shortest(self.params.suspicion_mult, self.table.live(), self.params.probe_interval);
        let others = self.table.live().saturating_sub(2);
        let enough = self.params.suspicion_accusers;
        let enough = if self.params.lifeguard.suspicion && others >= enough { enough } else { 0 };
        let max = min * self.params.suspicion_max_mult;
        self.table.update(slot, |record| {
            record.refutation = refutation;
            record.life = Life::Suspect;
        });
        self.suspicions.begin(slot, Suspicion::new(accuser, enough, min, max, now));
        self.counters.suspicions += 1;
        let by = self.accuser(accuser, self.own);
        self.event(slot, |member| MemberEvent::Suspected { member, by });
        self.tell_frame(slot, &Swim::Suspect { subject, refutation, accuser });
    }

    /// Somebody says that a member is dead.
    fn claim_dead(&mut self, slot: Slot, refutation: u32, accuser: ShortId, from: Slot, now: Instant) {
        let Some(record) = self.table.get(slot) else { return };
        let (is_news, is_live) = (key(refutation, Life::Dead) > record.key(), record.is_live());
        if !is_news || !self.is_plausible(slot, refutation) {
            return;
        }
        if self.was_just_heard(slot, now) {
            // It answers here, so it is not dead; it may not know that others have no answer from it.
            self.suspect(slot, refutation, accuser, now);
            return self.tell_it(slot);
        }
        if is_live && self.params.doubts_sudden_death && !self.is_ripe(slot, refutation, now) {
            // Whoever is declared dead out of the blue was perhaps never told of a suspicion, and could not object.
            return self.suspect(slot, refutation, accuser, now);
        }
        let by = self.accuser(accuser, from);
        self.die(slot, refutation, by, now);
    }

    /// Whether a member has been suspected here for a while, and did not object.
    fn is_ripe(&self, slot: Slot, refutation: u32, now: Instant) -> bool {
        let is_suspected = self.table.get(slot).is_some_and(|record| record.key() == key(refutation, Life::Suspect));
        is_suspected && self.suspicions.get(slot).is_some_and(|suspicion| suspicion.is_ripe(now))
    }

    pub(super) fn die(&mut self, slot: Slot, refutation: u32, by: NodeId, now: Instant) {
        let Some(record) = self.table.get(slot) else { return };
        let was_live = record.is_live();
        self.table.update(slot, |record| {
            record.refutation = refutation;
            record.life = Life::Dead;
        });
        if was_live {
            self.counters.deaths += 1;
            self.event(slot, |member| MemberEvent::Died { member, by });
            self.is_gone(slot, now);
        } else {
            self.event(slot, MemberEvent::Updated);
        }
        self.tell(slot);
    }

    /// A member said good-bye.
    pub(super) fn claim_left(&mut self, slot: Slot, refutation: u32, now: Instant) {
        let Some(record) = self.table.get(slot) else { return };
        let (is_news, was_there) = (key(refutation, Life::Left) > record.key(), record.life != Life::Left);
        if slot == self.own || !is_news || !self.is_plausible(slot, refutation) {
            return;
        }
        self.table.update(slot, |record| {
            record.refutation = refutation;
            record.life = Life::Left;
        });
        if was_there {
            self.event(slot, MemberEvent::Left);
            self.is_gone(slot, now);
        } else {
            self.event(slot, MemberEvent::Updated);
        }
        self.tell(slot);
    }

    /// From now on a member is only remembered, so that old rumours cannot bring it back.
    fn is_gone(&mut self, slot: Slot, now: Instant) {
        self.suspicions.end(slot);
        self.contested.remove(&slot);
        self.forget_probes(slot);
        self.is_remembered(slot, now);
    }

    fn is_remembered(&mut self, slot: Slot, now: Instant) {
        // The dead can leave, too.
        self.no_longer_gone(slot);
        self.gone.insert(slot, now);
        self.forget_at.insert((now + self.params.dead_kept, slot));
    }

    fn no_longer_gone(&mut self, slot: Slot) {
        if let Some(since) = self.gone.remove(&slot) {
            self.forget_at.remove(&(since + self.params.dead_kept, slot));
        }
    }

    /// Forgets those who have been gone for long.
    pub(super) fn forget_the_gone(&mut self, now: Instant) {
        while let Some((_, slot)) = self.forget_at.first().copied().filter(|(due, _)| *due <= now) {
            if self.peer(slot).is_some() {
                // It may still object, and whoever is forgotten is not heard.
                self.is_remembered(slot, now);
            } else {
                self.forget(slot);
            }
        }
    }

    fn forget(&mut self, slot: Slot) {
        self.no_longer_gone(slot);
        let Some(record) = self.table.get(slot) else { return };
        self.outputs.push_back(Output::Event(MemberEvent::Forgotten(record.identity.id.clone())));
        self.contested.remove(&slot);
        self.facts.remove(&slot);
        self.rumours.forget(Subject::Member(slot));
        self.unlink(slot);
        self.forget_probes(slot);
        self.table.remove(slot);
    }

    /// A member is introduced, in full.
    pub(super) fn introduced(&mut self, introduction: Introduction, from: Slot, now: Instant) {
        let Introduction { id, life, refutation, profile: version, flags, addresses, metadata } = introduction;
        if id.name() == self.id.name() {
            return self.introduced_to_itself(&id, life, refutation, now);
        }
        let is_live = matches!(life, Life::Alive | Life::Suspect);
        let profile = Profile { addresses, flags, metadata };
        let Some(slot) = self.table.by_name(id.name()) else {
            if !is_live {
                return;
            }
            if !can_be_dialled(&id, &profile) {
                self.counters.implausible += 1;
                return;
            }
            let identity = Identity { short: ShortId::of(&id), id, version, profile };
            let Some(slot) = self.join(Record { identity: Arc::new(identity), life: Life::Alive, refutation }) else {
                return;
            };
            if life == Life::Suspect {
                let accuser = self.short_of(from);
                self.suspect(slot, refutation, accuser, now);
            }
            return;
        };
        let Some(record) = self.table.get(slot) else { return };
        let known = record.identity.id.incarnation();
        if id.incarnation() < known {
            return;
        }
        if id.incarnation() > known {
            let later = Identity { short: ShortId::of(&id), id, version, profile };
            if self.was_just_heard(slot, now) {
                // The life that is known answers. If it does not do so again, the later one is true.
                self.contested.insert(slot, (later, refutation));
                return self.probe_soon(slot, now);
            }
            self.replace(slot, later, refutation);
        } else if version > record.identity.version {
            let short = record.identity.short;
            self.table.update(slot, |record| record.identity = Arc::new(Identity { id, short, version, profile }));
            self.event(slot, MemberEvent::Updated);
            self.introduce_everywhere(slot);
        }
        let teller = self.short_of(from);
        match life {
            Life::Alive => self.claim_alive(slot, refutation, None, from, now),
            // What a peer remembers may be old: the dead of others are suspects here.
            Life::Suspect | Life::Dead if from != slot => self.claim_suspect(slot, refutation, teller, from, now),
            Life::Suspect | Life::Dead => {}
            Life::Left => self.claim_left(slot, refutation, now),
        }
    }

    fn introduced_to_itself(&mut self, id: &NodeId, life: Life, refutation: u32, now: Instant) {
        if id.incarnation() > self.id.incarnation() {
            if !std::mem::replace(&mut self.is_superseded, true) {
                self.outputs.push_back(Output::Superseded { by: id.clone() });
            }
        } else if id.incarnation() == self.id.incarnation() {
            match life {
                Life::Alive => {}
                Life::Suspect => self.accused(refutation, false, now),
                Life::Dead | Life::Left => self.accused(refutation, true, now),
            }
        }
    }

    fn short_of(&self, slot: Slot) -> ShortId {
        self.table.get(slot).map_or_else(|| self.own_short(), |record| record.identity.short)
    }

    /// Takes in a member that was not known, if there is room.
    pub(super) fn join(&mut self, record: Record) -> Option<Slot> {
        if self.table.len() >= self.params.members_max {
            // Somebody who is only remembered makes room.
            let mut remembered = self.forget_at.iter().map(|(_, slot)| *slot);
            match remembered.find(|slot| self.peer(*slot).is_none()) {
                Some(oldest) => self.forget(oldest),
                None => {
                    self.counters.crowded_out += 1;
                    return None;
                }
            }
        }
        let slot = self.table.insert(record);
        self.event(slot, MemberEvent::Joined);
        self.introduce_everywhere(slot);
        Some(slot)
    }

    /// A later life takes the place of an earlier one, whatever was known of that.
    pub(super) fn replace(&mut self, slot: Slot, identity: Identity, refutation: u32) {
        let Some(record) = self.table.get(slot) else { return };
        let (old, was_live) = (record.identity.id.clone(), record.is_live());
        self.suspicions.end(slot);
        self.contested.remove(&slot);
        self.forget_probes(slot);
        self.no_longer_gone(slot);
        self.facts.remove(&slot);
        self.unlink(slot);
        self.table.update(slot, |record| {
            *record = Record { identity: Arc::new(identity), life: Life::Alive, refutation };
        });
        if was_live {
            self.event(slot, |member| MemberEvent::Replaced { old, member });
        } else {
            self.event(slot, MemberEvent::Joined);
        }
        self.introduce_everywhere(slot);
    }

    pub(super) fn is_contested(&self, slot: Slot) -> bool {
        self.contested.contains_key(&slot)
    }

    /// A life no longer answers, and another goes by its name.
    pub(super) fn give_way(&mut self, slot: Slot) {
        if let Some((later, refutation)) = self.contested.remove(&slot) {
            self.replace(slot, later, refutation);
        }
    }

    /// Somebody says that this node does not answer, or is dead.
    pub(super) fn accused(&mut self, refutation: u32, of_death: bool, now: Instant) {
        let own = self.own_refutation();
        if self.has_left || refutation < own {
            return;
        }
        if !self.is_plausible(self.own, refutation) {
            return;
        }
        if of_death && self.died_at != Some(own) {
            self.died_at = Some(own);
            self.note_death(now);
        }
        self.accused_of = self.accused_of.max(refutation);
        if self.held_until.is_none() {
            self.object(now);
        }
    }

    /// A node that is declared dead again and again is half dead: it objects later each time, so that the others see it as
    /// dead, instead of now this and now that.
    fn note_death(&mut self, now: Instant) {
        if self.deaths_until.is_none_or(|until| until < now) {
            self.deaths = 0;
        }
        self.deaths += 1;
        let mut counts_from = now;
        if self.deaths >= self.params.flap_deaths {
            let doublings = (self.deaths - self.params.flap_deaths).min(16);
            let hold = self.params.hold_down.saturating_mul(1 << doublings).min(self.params.hold_down_max);
            counts_from = now + hold;
            self.held_until = Some(counts_from);
        }
        // Whoever lives so long without another death starts anew.
        self.deaths_until = Some(counts_from + self.params.flap_window);
    }

    /// Says that this node lives.
    pub(super) fn object(&mut self, now: Instant) {
        self.held_until = None;
        let refutation = self.accused_of.saturating_add(1);
        self.table.update(self.own, |record| record.refutation = refutation);
        self.counters.refutations += 1;
        self.change_score(1);
        self.event(self.own, MemberEvent::Updated);
        self.tell(self.own);
        self.gossip_soon(now, Duration::ZERO);
    }
}

/// Whether a node could be where it says that it is.
fn can_be_dialled(id: &NodeId, profile: &Profile) -> bool {
    let is_place =
        |ip: IpAddr, port| !ip.is_unspecified() && !ip.is_multicast() && ip != Ipv4Addr::BROADCAST && port != 0;
    let is_named = match id.name().host() {
        HostName::Ip(ip) => is_place(ip, id.name().port()),
        HostName::Dns(_) => id.name().port() != 0,
    };
    let is_advertised = profile.addresses.iter().any(|address| is_place(address.ip(), address.port()));
    profile.flags.not_dialable || is_named || is_advertised
}
