//! What must never happen, checked at each event: a subscriber's picture of every node, and the rules that its changes obey.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::time::Duration;

use super::clock::{Time, nanos};
use super::machine::{FIRST_LIFE, Id, Seen, State, What};
use super::network::mix;

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// No suspicion lasts longer, unless whoever holds it was frozen or slow.
    pub suspicion_max: Duration,
    pub score_max: u32,
}

/// A rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// The refutation of a member fell in the eyes of one node.
    RefutationFell,
    /// The event does not follow from what the subscriber was told before.
    ForbiddenEdge,
    /// The subscriber was told already.
    Repeated,
    /// A dead member came back without having objected.
    Resurrected,
    /// A running node said that it is dead or has left.
    OwnDeath,
    SuspicionTooLong,
    ScoreTooHigh,
    /// The table says something else than the events did.
    TableDiffers,
    NotConverged,
}

/// A broken rule, and where.
#[derive(Clone, Debug)]
pub struct Violation {
    pub breach: Breach,
    pub at: Duration,
    pub observer: Id,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?} by {:?}: {}", self.breach, self.at, self.observer, self.detail)
    }
}

/// A member as a subscriber would hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) life: u32,
    pub(super) state: State,
    pub(super) refutation: u32,
    /// Since when it is suspected, if it is.
    since: Time,
}

/// What a subscriber of one node was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    /// Nodes below this number were known from the start; `told` holds what differs from that.
    known: u32,
    told: BTreeMap<u32, Option<Held>>,
    pub(super) live: u32,
    /// The live ones, in any order.
    pub(super) digest: u64,
}

const KNOWN: Held = Held { life: FIRST_LIFE, state: State::Alive, refutation: 0, since: 0 };

impl Picture {
    pub(super) fn of_template(nodes: u32) -> Self {
        let digest = (0..nodes).fold(0, |digest, node| digest ^ digest_of(Id { node, life: FIRST_LIFE }));
        Self { known: nodes, told: BTreeMap::new(), live: nodes, digest }
    }

    pub(super) fn get(&self, node: u32) -> Option<Held> {
        self.told.get(&node).copied().unwrap_or_else(|| (node < self.known).then_some(KNOWN))
    }

    fn set(&mut self, node: u32, held: Option<Held>) {
        for (held, is_new) in [(self.get(node), false), (held, true)] {
            if let Some(held) = held.filter(|held| held.state.is_live()) {
                self.digest ^= digest_of(Id { node, life: held.life });
                self.live = if is_new { self.live + 1 } else { self.live - 1 };
            }
        }
        self.told.insert(node, held);
    }
}

pub(super) fn digest_of(id: Id) -> u64 {
    mix((u64::from(id.node) << 32 | u64::from(id.life)) + 0x9e37_79b9_7f4a_7c15)
}

/// A suspicion that somebody holds, by when it must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Time,
    observer: u32,
    subject: u32,
    life: u32,
    refutation: u32,
    since: Time,
}

/// The rules, and what each node's subscriber knows.
#[derive(Debug)]
pub(super) struct Check {
    rules: Rules,
    pub(super) pictures: Vec<Picture>,
    due: BinaryHeap<Reverse<Due>>,
    /// Until when each node may be late, because it was frozen or slow.
    late: Vec<Late>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Late {
    is_late: bool,
    until: Time,
}

impl Check {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, pictures: Vec::new(), due: BinaryHeap::new(), late: Vec::new() }
    }

    pub(super) fn grow(&mut self, nodes: usize) {
        self.pictures.resize(nodes, Picture::default());
        self.late.resize(nodes, Late::default());
    }

    /// A new subscriber listens to this node.
    pub(super) fn reset(&mut self, node: u32, picture: Picture) {
        self.pictures[node as usize] = picture;
        self.late[node as usize] = Late::default();
    }

    /// The node's timers may fire late, until it is said that it is not late any more.
    pub(super) fn set_late(&mut self, node: u32, is_late: bool, now: Time) {
        self.late[node as usize] = Late { is_late, until: now };
    }

    /// Takes in what a node tells about a member.
    pub(super) fn event(
        &mut self,
        observer: Id,
        what: What,
        seen: Seen,
        is_leaving: bool,
        now: Time,
    ) -> Result<(), Breach> {
        let picture = &mut self.pictures[observer.node as usize];
        let before = picture.get(seen.id.node);
        let since = match before {
            Some(held) if held.life == seen.id.life && held.state == State::Suspect && what == What::Updated => {
                held.since
            }
            _ => now,
        };
        if seen.id.node == observer.node {
            own(before, what, seen, is_leaving)?;
        } else {
            other(before, what, seen)?;
        }
        let after = Held { life: seen.id.life, state: seen.state, refutation: seen.refutation, since };
        picture.set(seen.id.node, (what != What::Forgotten).then_some(after));
        if seen.state == State::Suspect && what != What::Forgotten {
            let at = since.saturating_add(nanos(self.rules.suspicion_max));
            let (observer, subject) = (observer.node, seen.id.node);
            let (life, refutation) = (seen.id.life, seen.refutation);
            self.due.push(Reverse(Due { at, observer, subject, life, refutation, since }));
        }
        Ok(())
    }

    /// Looks for suspicions that should have ended by now.
    pub(super) fn pass(&mut self, now: Time) -> Result<(), (u32, u32)> {
        while let Some(&Reverse(due)) = self.due.peek().filter(|due| due.0.at < now) {
            self.due.pop();
            let held = self.pictures[due.observer as usize].get(due.subject);
            let is_held = held.is_some_and(|held| {
                (held.life, held.state, held.refutation, held.since)
                    == (due.life, State::Suspect, due.refutation, due.since)
            });
            if !is_held {
                continue;
            }
            let Late { is_late, until } = self.late[due.observer as usize];
            let slack = nanos(self.rules.suspicion_max) * u64::from(self.rules.score_max + 1);
            let excused = if is_late { now + nanos(Duration::from_secs(1)) } else { until + slack };
            if (is_late || until >= due.since) && excused >= now {
                self.due.push(Reverse(Due { at: excused, ..due }));
            } else {
                return Err((due.observer, due.subject));
            }
        }
        Ok(())
    }

    pub(super) fn score(&self, score: u32) -> Result<(), Breach> {
        if score > self.rules.score_max { Err(Breach::ScoreTooHigh) } else { Ok(()) }
    }

    /// Compares what the node's table says with what its subscriber was told; returns the first difference.
    pub(super) fn table(&self, node: u32, table: &[Seen], live: usize) -> Result<(), String> {
        let picture = &self.pictures[node as usize];
        let mut listed: BTreeMap<u32, Seen> = BTreeMap::new();
        for seen in table {
            if let Some(twice) = listed.insert(seen.id.node, *seen) {
                return Err(format!("{twice:?} and {seen:?} are both in the table"));
            }
            match picture.get(seen.id.node) {
                Some(held)
                    if (held.life, held.state, held.refutation) == (seen.id.life, seen.state, seen.refutation) => {}
                held => return Err(format!("the table has {seen:?}, the events said {held:?}")),
            }
        }
        let told = picture.told.iter().filter(|(_, held)| held.is_some()).map(|(node, _)| *node);
        if let Some(missing) =
            told.chain(0..picture.known).find(|told| picture.get(*told).is_some() && !listed.contains_key(told))
        {
            return Err(format!("the events told of {missing}, the table has no such member"));
        }
        if live != picture.live as usize {
            return Err(format!("{live} are said to live, {} do by the events", picture.live));
        }
        Ok(())
    }
}

/// What a node may say of itself.
fn own(before: Option<Held>, what: What, seen: Seen, is_leaving: bool) -> Result<(), Breach> {
    if !is_leaving && (!seen.state.is_live() || matches!(what, What::Died | What::Left | What::Forgotten)) {
        return Err(Breach::OwnDeath);
    }
    match before {
        Some(held) if held.life > seen.id.life => Err(Breach::ForbiddenEdge),
        Some(held) if held.life == seen.id.life && held.refutation > seen.refutation => Err(Breach::RefutationFell),
        _ => Ok(()),
    }
}

/// What a node may say of another, given what it said before.
fn other(before: Option<Held>, what: What, seen: Seen) -> Result<(), Breach> {
    let fits = match what {
        What::Joined | What::Replaced { .. } | What::Returned => seen.state.is_live(),
        What::Updated => before.is_some_and(|held| held.state == seen.state),
        What::Suspected => seen.state == State::Suspect,
        What::Cleared => seen.state == State::Alive,
        What::Died => seen.state == State::Dead,
        What::Left => seen.state == State::Left,
        What::Forgotten => true,
    };
    let Some(held) = before else {
        return if what == What::Joined && fits { Ok(()) } else { Err(Breach::ForbiddenEdge) };
    };
    if !fits || seen.id.life < held.life {
        return Err(Breach::ForbiddenEdge);
    }
    if seen.id.life > held.life {
        return match what {
            What::Joined if !held.state.is_live() => Ok(()),
            What::Replaced { old } if held.state.is_live() && old == held.life => Ok(()),
            _ => Err(Breach::ForbiddenEdge),
        };
    }
    if seen.refutation < held.refutation && what != What::Forgotten {
        return Err(Breach::RefutationFell);
    }
    let is_raised = seen.refutation > held.refutation;
    match (held.state, what) {
        (State::Alive, What::Suspected | What::Died | What::Left) => Ok(()),
        (State::Suspect, What::Cleared | What::Died | What::Left) => Ok(()),
        // Of the gone, only that they were said to be gone again, after another objection.
        (State::Alive | State::Suspect, What::Updated) => Ok(()),
        (State::Dead | State::Left, What::Updated) if is_raised => Ok(()),
        (State::Suspect, What::Suspected) if is_raised => Ok(()),
        (State::Dead | State::Left, What::Returned) if is_raised => Ok(()),
        (State::Dead | State::Left, What::Returned) => Err(Breach::Resurrected),
        (State::Dead, What::Left | What::Forgotten) | (State::Left, What::Forgotten) => Ok(()),
        (State::Alive | State::Suspect, What::Joined)
        | (State::Alive, What::Cleared)
        | (State::Suspect, What::Suspected)
        | (State::Dead, What::Died)
        | (State::Left, What::Left) => Err(Breach::Repeated),
        _ => Err(Breach::ForbiddenEdge),
    }
}
