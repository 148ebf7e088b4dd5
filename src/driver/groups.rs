//! The groups of the cluster, as handles see them.
//!
//! What this node's own mailboxes join and leave is written here at once, and told to the node task under the same lock,
//! so that it goes out in the order in which it was done. What others do comes from the node task.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use super::subscriber::Subscriber;
use super::{Command, Shared};
use crate::id::{BySerial, NodeId, Pid};
use crate::proto::node::services::Input;
use crate::proto::replication::Cause;
use crate::wire::services::Text;

/// A mailbox in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMember {
    /// The name of the group.
    pub group: Arc<str>,
    /// The mailbox.
    pub pid: Pid,
    /// The tag of the messages that the mailbox takes.
    pub tag: Arc<str>,
    /// How often it has joined and not left; 0 once it is no member any more.
    pub count: u32,
}

/// What a subscriber to groups reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupEvent {
    /// All members at this moment, by group, then in the order of their nodes and mailboxes. It comes first, and after
    /// [`Lagged`](Self::Lagged).
    Snapshot(Vec<GroupMember>),
    /// A mailbox has joined, for the first time or once more.
    #[non_exhaustive]
    Joined {
        /// The member as it is now.
        member: GroupMember,
        /// How often it joined; more than once when several joins are learned of at one time.
        times: u32,
    },
    /// A mailbox has left.
    #[non_exhaustive]
    Left {
        /// The member as it is now; its count is 0 when it is none any more.
        member: GroupMember,
        /// How often it left: all that was left of it when it is no member any more.
        times: u32,
        /// Why.
        reason: LeftReason,
    },
    /// The subscriber left too many events unread, and they are gone. A snapshot follows.
    Lagged,
}

/// Why a mailbox is no longer in a group, or less often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftReason {
    /// It was taken out, or is closed.
    Left,
    /// Its node leaves or has left the cluster, or was replaced by a later life.
    NodeLeft,
    /// Its node died, as far as this one knows. When the node comes back, so do its members.
    NodeDied,
}

/// Why a mailbox of this node did not come to be a member, or once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotJoined {
    /// This node has as many memberships as it may.
    Full,
    Closed,
}

/// The members of a group at one moment.
#[derive(Debug)]
pub(crate) struct View {
    /// In the order of their nodes and mailboxes.
    pub(crate) members: Vec<Member>,
    /// The nodes, with where their members are.
    pub(crate) nodes: Vec<(NodeId, Range<usize>)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) pid: Pid,
    pub(crate) tag: Text,
    pub(crate) count: u32,
}

/// The groups that a node knows.
#[derive(Debug)]
pub(crate) struct Groups {
    events_max: usize,
    /// Of this node's own mailboxes.
    memberships_max: usize,
    /// How many of these there are, to be read without the lock.
    memberships: AtomicUsize,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    own: NodeId,
    scopes: BTreeMap<Text, Scope>,
    /// Where this node's own mailboxes are members.
    joined: BySerial<BTreeSet<(Text, Text)>>,
    /// This node leaves: none of its mailboxes is a member any more.
    is_withdrawn: bool,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Scope {
    groups: BTreeMap<Text, Group>,
    subscribers: Subscribers,
}

/// Never without members.
#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<Pid, Joined>,
    /// Made when it is first asked for after a change.
    view: OnceLock<Arc<View>>,
}

#[derive(Clone, Debug)]
struct Joined {
    tag: Text,
    count: u32,
}

type GroupSubscriber = Subscriber<GroupEvent>;

#[derive(Debug, Default)]
struct Subscribers {
    of_all: Vec<Weak<GroupSubscriber>>,
    of_groups: BTreeMap<Text, Vec<Weak<GroupSubscriber>>>,
}

impl Groups {
    /// No groups. Subscribers may leave so many events unread.
    pub(crate) fn new(own: NodeId, events_max: usize, memberships_max: usize) -> Self {
        let (scopes, joined) = (BTreeMap::new(), BySerial::default());
        let state = State { own, scopes, joined, is_withdrawn: false, is_closed: false };
        Self { events_max, memberships_max, memberships: AtomicUsize::new(0), state: RwLock::new(state) }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the node task tells, in its order. What it says of this node's own mailboxes is known already.
    pub(crate) fn apply(&self, scope: &str, group: Text, pid: Pid, tag: Text, count: u32, cause: Cause) {
        let mut state = self.write();
        // One name has one life: another of this node's own is none to send to.
        if state.is_closed || state.own.name() == pid.node().name() {
            return;
        }
        let reason = match cause {
            Cause::Written | Cause::Synced => LeftReason::Left,
            Cause::Left => LeftReason::NodeLeft,
            Cause::Died => LeftReason::NodeDied,
        };
        state.set(self.events_max, scope, GroupMember { group, pid, tag, count }, reason);
    }

    /// The members of a group; `None` when it has none.
    pub(crate) fn view(&self, scope: &str, group: &str) -> Option<Arc<View>> {
        let state = self.read();
        let group = state.scopes.get(scope)?.groups.get(group)?;
        Some(group.view.get_or_init(|| Arc::new(View::of(&group.members))).clone())
    }

    /// The groups that have members, in the order of their names.
    pub(crate) fn names(&self, scope: &str) -> Vec<Text> {
        self.read().scopes.get(scope).map(|scope| scope.groups.keys().cloned().collect()).unwrap_or_default()
    }

    /// A subscriber to one group of the scope, or to all, whose first event is what there is.
    pub(crate) fn subscribe(&self, scope: &str, group: Option<&str>) -> Arc<GroupSubscriber> {
        let mut state = self.write();
        if state.is_closed {
            return Subscriber::new(VecDeque::new(), true);
        }
        let scope = state.scope(scope);
        let subscriber = Subscriber::new([snapshot(&scope.groups, group)].into(), false);
        let subscribers = match group {
            Some(group) => scope.subscribers.of_groups.entry(group.into()).or_default(),
            None => &mut scope.subscribers.of_all,
        };
        subscribers.push(Arc::downgrade(&subscriber));
        subscriber
    }

    /// A subscriber reads no more.
    pub(crate) fn unsubscribe(&self, scope: &str, group: Option<&str>, subscriber: &Arc<GroupSubscriber>) {
        let mut state = self.write();
        let Some(scope_state) = state.scopes.get_mut(scope) else { return };
        let is_other = |other: &Weak<GroupSubscriber>| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(subscriber));
        let Subscribers { of_all, of_groups } = &mut scope_state.subscribers;
        match group {
            None => of_all.retain(is_other),
            Some(group) => {
                if let Some(subscribers) = of_groups.get_mut(group) {
                    subscribers.retain(is_other);
                    if subscribers.is_empty() {
                        of_groups.remove(group);
                    }
                }
            }
        }
        state.tidy(scope);
    }

    /// The node is over: subscriptions end when they are read.
    pub(crate) fn close(&self) {
        let mut state = self.write();
        state.is_closed = true;
        state.joined.clear();
        self.memberships.store(0, Ordering::Relaxed);
        for scope in std::mem::take(&mut state.scopes).into_values() {
            let Subscribers { of_all, of_groups } = scope.subscribers;
            let all = of_all.into_iter().chain(of_groups.into_values().flatten());
            all.filter_map(|subscriber| subscriber.upgrade()).for_each(|subscriber| subscriber.close());
        }
    }
}

impl Shared {
    /// Makes a mailbox of this node a member, once more if it is one. It is one when this returns.
    pub(crate) fn join_group(&self, scope: &str, group: &str, serial: u64, tag: &str) -> Result<(), NotJoined> {
        let groups = &self.groups;
        let mut state = groups.write();
        if state.is_closed || state.is_withdrawn {
            return Err(NotJoined::Closed);
        }
        let own = Pid::new(state.own.clone(), serial);
        let before = state.joined(scope, group, &own).map_or(0, |joined| joined.count);
        let count = before.checked_add(1).ok_or(NotJoined::Full)?;
        if before == 0 && groups.memberships.load(Ordering::Relaxed) >= groups.memberships_max {
            return Err(NotJoined::Full);
        }
        self.set_own(&mut state, scope, GroupMember { group: group.into(), pid: own, tag: tag.into(), count });
        Ok(())
    }

    /// Takes a mailbox of this node out of a group, where it was once less often from now on. False when it is no member.
    pub(crate) fn leave_group(&self, scope: &str, group: &str, serial: u64) -> bool {
        let mut state = self.groups.write();
        let pid = Pid::new(state.own.clone(), serial);
        let Some(Joined { tag, count }) = state.joined(scope, group, &pid).cloned() else { return false };
        self.set_own(&mut state, scope, GroupMember { group: group.into(), pid, tag, count: count - 1 });
        true
    }

    /// A mailbox of this node has closed: it is in no group any more.
    pub(super) fn leave_all_groups(&self, serial: u64) {
        // Whoever closes a mailbox has seen all that it joined.
        if self.groups.memberships.load(Ordering::Relaxed) == 0 {
            return;
        }
        if !self.groups.read().joined.contains_key(&serial) {
            return;
        }
        let mut state = self.groups.write();
        let pid = Pid::new(state.own.clone(), serial);
        for (scope, group) in state.joined.get(&serial).cloned().unwrap_or_default() {
            let Some(Joined { tag, .. }) = state.joined(&scope, &group, &pid).cloned() else { continue };
            self.set_own(&mut state, &scope, GroupMember { group, pid: pid.clone(), tag, count: 0 });
        }
    }

    /// This node leaves, and its mailboxes leave all groups. The node task says so to the others.
    pub(super) fn withdraw_groups(&self) {
        let groups = &self.groups;
        let mut state = groups.write();
        state.is_withdrawn = true;
        let own = state.own.clone();
        let joined: Vec<_> = std::mem::take(&mut state.joined).into_iter().collect();
        groups.memberships.store(0, Ordering::Relaxed);
        for (serial, joined) in joined {
            let pid = Pid::new(own.clone(), serial);
            for (scope, group) in joined {
                let Some(Joined { tag, .. }) = state.joined(&scope, &group, &pid).cloned() else { continue };
                let gone = GroupMember { group, pid: pid.clone(), tag, count: 0 };
                state.set(groups.events_max, &scope, gone, LeftReason::NodeLeft);
            }
        }
    }

    /// This node goes on as another incarnation, and its mailboxes with it: they are members by their new names.
    pub(super) fn renew_groups(&self, id: &NodeId) {
        let mut state = self.groups.write();
        let old = std::mem::replace(&mut state.own, id.clone());
        let joined: Vec<_> = state.joined.iter().map(|(serial, groups)| (*serial, groups.clone())).collect();
        for (serial, groups) in joined {
            for (scope, group) in groups {
                let pid = Pid::new(old.clone(), serial);
                let Some(Joined { tag, count }) = state.joined(&scope, &group, &pid).cloned() else { continue };
                let gone = GroupMember { group: group.clone(), pid, tag: tag.clone(), count: 0 };
                state.set(self.groups.events_max, &scope, gone, LeftReason::NodeLeft);
                let pid = Pid::new(id.clone(), serial);
                self.set_own(&mut state, &scope, GroupMember { group, pid, tag, count });
            }
        }
    }

    fn set_own(&self, state: &mut State, scope: &str, member: GroupMember) {
        let (serial, count) = (member.pid.serial(), member.count);
        let (scope, group): (Text, Text) = (scope.into(), member.group.clone());
        let groups = state.joined.entry(serial).or_default();
        if count == 0 {
            if groups.remove(&(scope.clone(), group.clone())) {
                self.groups.memberships.fetch_sub(1, Ordering::Relaxed);
            }
        } else if groups.insert((scope.clone(), group.clone())) {
            self.groups.memberships.fetch_add(1, Ordering::Relaxed);
        }
        if groups.is_empty() {
            state.joined.remove(&serial);
        }
        let tag = member.tag.clone();
        state.set(self.groups.events_max, &scope, member, LeftReason::Left);
        // Under the lock, so that the node task hears of it in the order of the joins.
        self.command(Command::Service(Input::Join { scope, group, serial, tag, count }));
    }
}

impl State {
    fn joined(&self, scope: &str, group: &str, member: &Pid) -> Option<&Joined> {
        self.scopes.get(scope)?.groups.get(group)?.members.get(member)
    }

    fn scope(&mut self, name: &str) -> &mut Scope {
        if !self.scopes.contains_key(name) {
            self.scopes.insert(name.into(), Scope::default());
        }
        self.scopes.get_mut(name).expect("it is there now")
    }

    /// Forgets a scope with nothing in it.
    fn tidy(&mut self, scope: &str) {
        if self.scopes.get(scope).is_some_and(Scope::is_empty) {
            self.scopes.remove(scope);
        }
    }

    /// From now on, a member is as it says; subscribers are told when it was not.
    fn set(&mut self, events_max: usize, scope: &str, member: GroupMember, reason: LeftReason) {
        let GroupMember { group, pid, tag, count } = member.clone();
        let Scope { groups, subscribers } = self.scope(scope);
        let before = groups.get(&group).and_then(|group| group.members.get(&pid)).map_or(0, |joined| joined.count);
        if before == count {
            return self.tidy(scope);
        }
        let in_group = groups.entry(group.clone()).or_default();
        in_group.view = OnceLock::new();
        if count > 0 {
            in_group.members.insert(pid, Joined { tag, count });
        } else {
            in_group.members.remove(&pid);
        }
        if in_group.members.is_empty() {
            groups.remove(&group);
        }
        let event = if count > before {
            GroupEvent::Joined { member, times: count - before }
        } else {
            GroupEvent::Left { member, times: before - count, reason }
        };
        if let Some(subscribers) = subscribers.of_groups.get_mut(&group) {
            publish(subscribers, &event, events_max, || snapshot(groups, Some(&group)));
        }
        publish(&mut subscribers.of_all, &event, events_max, || snapshot(groups, None));
        self.tidy(scope);
    }
}

impl Scope {
    fn is_empty(&self) -> bool {
        let Subscribers { of_all, of_groups } = &self.subscribers;
        self.groups.is_empty() && of_all.is_empty() && of_groups.is_empty()
    }
}

impl View {
    fn of(members: &BTreeMap<Pid, Joined>) -> Self {
        let members = members.iter().map(|(pid, Joined { tag, count })| Member {
            pid: pid.clone(),
            tag: tag.clone(),
            count: *count,
        });
        let members: Vec<_> = members.collect();
        let mut at = 0;
        let runs = members.chunk_by(|one, next| one.pid.node() == next.pid.node());
        let nodes = runs.map(|run| {
            at += run.len();
            (run[0].pid.node().clone(), at - run.len()..at)
        });
        Self { nodes: nodes.collect(), members }
    }
}

fn snapshot(groups: &BTreeMap<Text, Group>, of: Option<&str>) -> GroupEvent {
    let member = |group: &Text, (pid, joined): (&Pid, &Joined)| GroupMember {
        group: group.clone(),
        pid: pid.clone(),
        tag: joined.tag.clone(),
        count: joined.count,
    };
    let all = |(name, group): (&Text, &Group)| -> Vec<_> {
        group.members.iter().map(|joined| member(name, joined)).collect()
    };
    GroupEvent::Snapshot(match of {
        Some(name) => groups.get_key_value(name).map(all).unwrap_or_default(),
        None => groups.iter().flat_map(all).collect(),
    })
}

fn publish(
    subscribers: &mut Vec<Weak<GroupSubscriber>>,
    event: &GroupEvent,
    max: usize,
    snapshot: impl Fn() -> GroupEvent,
) {
    subscribers.retain(|subscriber| {
        let Some(subscriber) = subscriber.upgrade() else { return false };
        subscriber.push(event.clone(), max, || [GroupEvent::Lagged, snapshot()].into());
        true
    });
}
