//! What is to be seen of a name: all its bindings, and the one that stands.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::arbiters::Vote;
use super::{NameReason, Named, Output, RELEASES_KEPT, Registry, Rule, Scope, Then, Why};
use crate::id::{NodeId, Pid};
use crate::wire::services::Text;
use crate::wire::services::replication::{After, Binding, Ended, State};

/// All that is known of one name.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The bindings that are to be seen, one per node at most.
    pub(super) bindings: Vec<Bound>,
    shown: Option<Shown>,
    /// What few names have.
    rest: Option<Box<Rest>>,
}

/// A node's binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) owner: NodeId,
    pub(super) version: u64,
    pub(super) binding: Arc<Binding>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    owner: NodeId,
    serial: u64,
    version: u64,
}

#[derive(Debug, Default)]
struct Rest {
    /// The last release that was heard of.
    released: Option<After>,
    /// Releases that owners confirmed before their logs said so.
    confirmed: Vec<After>,
    /// The own vote for a claim.
    vote: Option<Vote>,
    /// An owner that handed the name to another node, whose binding has not come.
    handed: Option<Handed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Handed {
    from: NodeId,
    version: u64,
    to: NodeId,
    old: Arc<Binding>,
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.released.is_none() && self.confirmed.is_empty() && self.vote.is_none() && self.handed.is_none()
    }
}

impl Bound {
    pub(super) fn pid(&self) -> Pid {
        Pid::new(self.owner.clone(), self.binding.serial)
    }

    pub(super) fn named(&self) -> Named {
        let Binding { stamp, tag, metadata, .. } = &*self.binding;
        Named { pid: self.pid(), version: self.version, stamp: *stamp, tag: tag.clone(), metadata: metadata.clone() }
    }

    /// Whether a claim was granted because this binding, or a later one of the same log, had been released.
    fn is_released_by(&self, after: &After) -> bool {
        after.owner == self.owner && after.version >= self.version
    }

    /// The order of claims, the older first: by stamps, then by nodes.
    pub(super) fn age(&self) -> (u64, &NodeId) {
        (self.binding.stamp, &self.owner)
    }
}

impl Entry {
    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    fn tidy(&mut self) {
        self.rest.take_if(|rest| rest.is_empty());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bindings.is_empty() && self.shown.is_none() && self.rest.is_none()
    }

    pub(super) fn of(&self, owner: &NodeId) -> Option<&Bound> {
        self.bindings.iter().find(|bound| bound.owner == *owner)
    }

    pub(super) fn vote(&self) -> Option<&Vote> {
        self.rest.as_ref()?.vote.as_ref()
    }

    pub(super) fn set_vote(&mut self, vote: Option<Vote>) -> Option<Vote> {
        if vote.is_none() && self.rest.is_none() {
            return None;
        }
        let old = std::mem::replace(&mut self.rest().vote, vote);
        self.tidy();
        old
    }

    pub(super) fn released(&self) -> Option<After> {
        self.rest.as_ref()?.released.clone()
    }

    /// An owner has said that it holds the name no more, as of that version.
    pub(super) fn confirm_release(&mut self, after: After) {
        if !self.bindings.iter().any(|bound| bound.is_released_by(&after)) {
            return;
        }
        let confirmed = &mut self.rest().confirmed;
        confirmed.retain(|known| known.owner != after.owner);
        confirmed.push(after);
    }

    /// The bindings that count: those that no other was granted after, and that their owners have not given up.
    pub(super) fn valid(&self) -> impl Iterator<Item = &Bound> {
        self.bindings.iter().filter(|bound| {
            let followed = self.bindings.iter().filter_map(|other| other.binding.after.as_ref());
            let confirmed = self.rest.iter().flat_map(|rest| &rest.confirmed);
            !followed.chain(confirmed).any(|after| bound.is_released_by(after))
        })
    }

    /// The binding that stands.
    pub(super) fn standing(&self, rule: &Rule) -> Option<&Bound> {
        self.valid().reduce(|one, other| if rule.prefers(other, one) { other } else { one })
    }
}

impl Rule {
    /// Whether the first stands against the second. A pure function of the two, and never true both ways round.
    pub(super) fn prefers(&self, one: &Bound, other: &Bound) -> bool {
        self.orders((&one.owner, one.binding.stamp), (&other.owner, other.binding.stamp)).is_lt()
    }

    /// The order of two claims by their nodes and times, the one that stands first.
    pub(super) fn orders(&self, one: (&NodeId, u64), other: (&NodeId, u64)) -> Ordering {
        let by_age = (one.1, one.0).cmp(&(other.1, other.0));
        match self {
            Self::Oldest | Self::Asked => by_age,
            Self::Newest => by_age.reverse(),
            Self::Priority(list) => {
                let rank = |node: &NodeId| list.iter().position(|name| name == node.name()).unwrap_or(list.len());
                rank(one.0).cmp(&rank(other.0)).then(by_age)
            }
        }
    }
}

impl Scope {
    pub(super) fn entry(&mut self, name: &Text) -> &mut Entry {
        self.names.entry(name.clone()).or_default()
    }

    /// Forgets a name of which nothing is left.
    pub(super) fn tidy(&mut self, name: &Text) {
        if self.names.get(name).is_some_and(Entry::is_empty) {
            self.names.remove(name);
        }
    }

    fn remember_release(&mut self, name: &Text, after: After) {
        let rest = self.entry(name).rest();
        if rest.released.replace(after).is_none() {
            self.released.push_back(name.clone());
        }
        while self.released.len() > RELEASES_KEPT {
            let Some(oldest) = self.released.pop_front() else { return };
            if let Some(entry) = self.names.get_mut(&oldest) {
                if let Some(rest) = &mut entry.rest {
                    rest.released = None;
                }
                entry.tidy();
                self.tidy(&oldest);
            }
        }
    }
}

impl Registry {
    #[expect(clippy::too_many_arguments, reason = "they are the fields of one input")]
    pub(super) fn changed(
        &mut self,
        scope: &Text,
        name: &Text,
        owner: NodeId,
        version: u64,
        state: Option<State>,
        why: Why,
        now: Instant,
    ) {
        let Some(this) = self.scopes.get_mut(scope) else { return };
        let is_own = owner == self.id;
        if is_own {
            this.own_version = this.own_version.max(version);
        }
        let entry = this.names.entry(name.clone()).or_default();
        let old = entry.bindings.iter().position(|bound| bound.owner == owner);
        let old = old.map(|place| entry.bindings.remove(place));
        if let Some(rest) = &mut entry.rest {
            if rest.handed.take_if(|handed| handed.from == owner || handed.to == owner).is_some() {
                this.handed.remove(name);
            }
            // Its log goes on: a later binding is another.
            let is_bound = matches!(state, Some(State::Bound(_)));
            rest.confirmed.retain(|after| after.owner != owner || is_bound && after.version >= version);
        }
        let reason = match (&state, why) {
            (Some(State::Bound(_)), Why::Written) => NameReason::Registered,
            (Some(State::Bound(_)), _) => NameReason::Synced,
            (Some(State::Gone(Ended::Closed)), _) => NameReason::MailboxClosed,
            (Some(State::Gone(Ended::Lost)), _) => NameReason::Conflict,
            (Some(State::Gone(Ended::Left)), _) => NameReason::NodeLeft,
            (Some(_), _) => NameReason::Unregistered,
            (None, Why::Died) => NameReason::NodeDown,
            (None, _) => NameReason::NodeLeft,
        };
        match &state {
            Some(State::Bound(binding)) => {
                if binding.stamp < super::CLOCK_END {
                    self.clock = self.clock.max(binding.stamp);
                }
                let is_voted = entry.vote().is_some_and(|vote| {
                    vote.token.node == owner && (vote.serial == binding.serial || vote.stamp <= binding.stamp)
                });
                if is_voted && let Some(vote) = entry.set_vote(None) {
                    this.voted.remove(name);
                    self.votes -= 1;
                    self.timers.remove(&vote.timer(scope, name));
                }
                entry.bindings.push(Bound { owner: owner.clone(), version, binding: binding.clone() });
            }
            Some(State::Gone(ended)) => {
                if let Ended::Replaced { by, old } = ended
                    && entry.of(by).is_none()
                    && (self.live.contains(by) || *by == self.id)
                {
                    let (from, to, old) = (owner.clone(), by.clone(), old.clone());
                    entry.rest().handed = Some(Handed { from, version, to, old });
                    this.handed.insert(name.clone());
                }
                this.remember_release(name, After { owner: owner.clone(), version });
            }
            Some(_) | None => {}
        }
        if is_own {
            self.index_own(scope, name, old.as_ref());
            let is_lost = matches!(state, Some(State::Gone(Ended::Lost)));
            if let Some(serial) = old.map(|old| old.binding.serial).filter(|_| !is_lost) {
                self.gave_up(scope, name, serial);
            }
        }
        self.refresh(scope, name, reason);
        self.contest(scope, name, now);
    }

    /// Tells the mailbox that had the name, unless it has it still. An own binding need not be the one that is to be seen.
    fn gave_up(&mut self, scope: &Text, name: &Text, serial: u64) {
        if self.own_binding(scope, name).is_none_or(|own| own.binding.serial != serial) {
            self.outputs.push_back(Output::Over { scope: scope.clone(), name: name.clone(), serial });
        }
    }

    /// The own names by their mailboxes.
    fn index_own(&mut self, scope: &Text, name: &Text, old: Option<&Bound>) {
        let key = (scope.clone(), name.clone());
        if let Some(old) = old {
            let serial = old.binding.serial;
            if let Some(names) = self.own.get_mut(&serial) {
                names.remove(&key);
                if names.is_empty() {
                    self.own.remove(&serial);
                }
            }
            self.own_count -= 1;
        }
        if let Some(own) = self.own_binding(scope, name) {
            self.own.entry(own.binding.serial).or_default().insert(key);
            self.own_count += 1;
        }
    }

    pub(super) fn own_binding(&self, scope: &Text, name: &Text) -> Option<Bound> {
        self.scopes.get(scope)?.names.get(name)?.of(&self.id).cloned()
    }

    /// Who is to be seen as the owner.
    pub(super) fn shown(&self, scope: &Text, name: &Text) -> Option<Pid> {
        let shown = self.scopes.get(scope)?.names.get(name)?.shown.as_ref()?;
        Some(Pid::new(shown.owner.clone(), shown.serial))
    }

    /// Tells what is to be seen of the name, if that is something else than before.
    pub(super) fn refresh(&mut self, scope: &Text, name: &Text, reason: NameReason) {
        let Some(this) = self.scopes.get_mut(scope) else { return };
        let Some(entry) = this.names.get_mut(name) else { return };
        let standing = entry.standing(self.params.rules.of(name).unwrap_or(&self.params.rule)).cloned();
        let handed = entry.rest.as_ref().and_then(|rest| rest.handed.as_ref());
        let from_hand = handed.map(|handed| Bound {
            owner: handed.from.clone(),
            version: handed.version,
            binding: handed.old.clone(),
        });
        let bound = standing.or(from_hand);
        let next = bound.as_ref().map(|bound| Shown {
            owner: bound.owner.clone(),
            serial: bound.binding.serial,
            version: bound.version,
        });
        let was = std::mem::replace(&mut entry.shown, next.clone());
        let reason = match (&was, &next) {
            (None, None) => return self.tidy_name(scope, name),
            (Some(was), Some(is)) if was.owner == is.owner && was.serial == is.serial => {
                // The same mailbox: handed over and still to be seen, or with other metadata.
                if was.version == is.version || bound.as_ref().is_some_and(|bound| entry.of(&bound.owner).is_none()) {
                    return;
                }
                NameReason::Updated
            }
            (Some(was), Some(is)) => {
                let is_rival = entry.of(&was.owner).is_some();
                let after = bound.as_ref().and_then(|bound| bound.binding.after.as_ref());
                // A claim may follow a release of that node and yet be a rival of what the node has claimed since.
                let follows = after.is_some_and(|after| after.owner == was.owner && after.version >= was.version);
                if was.owner == is.owner || follows {
                    NameReason::Replaced
                } else if is_rival || reason == NameReason::Conflict {
                    NameReason::Conflict
                } else {
                    reason
                }
            }
            _ => reason,
        };
        self.outputs.push_back(Output::Named {
            scope: scope.clone(),
            name: name.clone(),
            named: bound.as_ref().map(Bound::named),
            reason,
        });
        self.tidy_name(scope, name);
    }

    pub(super) fn tidy_name(&mut self, scope: &Text, name: &Text) {
        if let Some(this) = self.scopes.get_mut(scope) {
            if let Some(entry) = this.names.get_mut(name) {
                entry.tidy();
            }
            this.tidy(name);
        }
    }

    /// Names that were handed over by that node, or to it, which is gone, are nobody's until somebody binds them.
    pub(super) fn refresh_handed(&mut self, scope: &Text, node: &NodeId) {
        let Some(this) = self.scopes.get_mut(scope) else { return };
        for name in this.handed.clone() {
            let Some(this) = self.scopes.get_mut(scope) else { return };
            let rest = this.names.get_mut(&name).and_then(|entry| entry.rest.as_mut());
            let concerns = |handed: &Handed| handed.to == *node || handed.from == *node;
            let Some(rest) = rest.filter(|rest| rest.handed.as_ref().is_some_and(concerns)) else {
                continue;
            };
            if rest.handed.take().is_some_and(|handed| handed.from == self.id) {
                // All are to know it, also those who take that node for live.
                let withdrawn = State::Gone(Ended::Withdrawn);
                self.outputs.push_back(Output::Write { scope: scope.clone(), name: name.clone(), state: withdrawn });
                self.writes.push_back((scope.clone(), name.clone(), Then::Nothing));
            }
            this.handed.remove(&name);
            self.refresh(scope, &name, NameReason::NodeDown);
        }
    }
}

impl Registry {
    /// As of which version of its log the owner handed the name to that node, and how old the claim is.
    pub(super) fn handed_to(&self, scope: &Text, name: &Text, old: &Pid, to: &NodeId) -> Option<(u64, u64)> {
        let handed = self.scopes.get(scope)?.names.get(name)?.rest.as_ref()?.handed.as_ref()?;
        let is_it = handed.from == *old.node() && handed.to == *to && handed.old.serial == old.serial();
        is_it.then_some((handed.version, handed.old.stamp))
    }

    /// Names that this mailbox of this node has handed over, and that are not bound there yet.
    pub(super) fn handed_by(&self, serial: u64) -> Vec<(Text, Text)> {
        let mut found = Vec::new();
        for (scope, this) in &self.scopes {
            for name in &this.handed {
                let rest = this.names.get(name).and_then(|entry| entry.rest.as_ref());
                let handed = rest.and_then(|rest| rest.handed.as_ref());
                if handed.is_some_and(|handed| handed.from == self.id && handed.old.serial == serial) {
                    found.push((scope.clone(), name.clone()));
                }
            }
        }
        found
    }
}
