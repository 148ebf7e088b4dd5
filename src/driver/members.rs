//! What membership has told, for whoever asks or subscribed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::lock;
use super::subscriber::Subscriber;
use crate::config::Config;
use crate::id::{NodeId, NodeName};
use crate::proto::membership::{Lifeguard, Member, MemberEvent, MemberState, Params};

/// What a subscriber to the membership reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MembershipEvent {
    /// All members that are known at this moment, in the order of their names: the dead and those who left too, and
    /// this node. It comes first, and after [`Lagged`](Self::Lagged).
    Snapshot(Vec<Member>),
    /// Something happened to a member since the last snapshot. Each change comes once, in the order in which this node
    /// learned of it.
    #[doc(alias = "nodeup")]
    #[doc(alias = "nodedown")]
    Changed(MemberEvent),
    /// The subscriber left too many events unread, and they are gone. A snapshot follows.
    Lagged,
}

/// How a node with these settings takes part.
pub(crate) fn params(config: &Config) -> Params {
    Params {
        probe_interval: config.probe_interval,
        probe_timeout: config.probe_timeout,
        dial_allowance: config.dial_allowance,
        probe_helpers: config.probe_helpers,
        score_max: config.health_score_max,
        suspicion_mult: config.suspicion_mult,
        suspicion_max_mult: config.suspicion_max_mult,
        suspicion_accusers: config.suspicion_accusers,
        retransmit_mult: config.retransmit_mult,
        gossip_interval: config.gossip_interval,
        gossip_fanout: config.gossip_fanout,
        gossip_to_dead: config.gossip_to_dead,
        sync_interval: config.sync_interval,
        reconnect_interval: config.reconnect_interval,
        dead_kept: config.dead_kept,
        flap_deaths: config.flap_deaths,
        flap_window: config.flap_window,
        hold_down: config.hold_down,
        hold_down_max: config.hold_down_max,
        kept_links: config.kept_links,
        members_max: config.members_max,
        facts_max: config.facts_max,
        lifeguard: Lifeguard { probe: true, suspicion: true, buddy: true },
        doubts_sudden_death: true,
    }
}

/// The members that a node knows, as its handles see them.
#[derive(Debug)]
pub(crate) struct Members {
    events_max: usize,
    state: Mutex<State>,
    /// Told after each change, and at the end.
    changed: watch::Sender<()>,
    /// How unwell the node thinks itself.
    score: AtomicU32,
}

#[derive(Debug)]
struct State {
    members: BTreeMap<NodeName, Member>,
    live: BTreeSet<NodeName>,
    /// When those were declared dead who are dead.
    died: BTreeMap<NodeName, Instant>,
    subscribers: Vec<Weak<Subscriber<MembershipEvent>>>,
    is_closed: bool,
}

/// What a look at all members finds that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    /// How many live, this node included; none once it is no member.
    pub(crate) live: usize,
    pub(crate) suspected: Vec<NodeId>,
    /// Who was declared dead of late, and has not come back.
    pub(crate) died: Vec<NodeId>,
}

/// What the node task knows of a peer when it is asked: a node that this one has a session with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerVitals {
    pub(crate) peer: NodeId,
    /// `None` without a link.
    pub(crate) path: Option<PathVitals>,
    /// When anything of the peer was last heard, on any way.
    pub(crate) last_heard: Option<Instant>,
}

/// The same of the link in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathVitals {
    pub(crate) rtt: Duration,
    /// UDP packets since the link began, and those of them that QUIC believes lost.
    pub(crate) packets_sent: u64,
    pub(crate) packets_lost: u64,
}

impl Members {
    /// A node is its own first member. Subscribers may leave so many events unread.
    pub(crate) fn new(events_max: usize, own: Member) -> Self {
        let live = BTreeSet::from([own.id.name().clone()]);
        let members = BTreeMap::from([(own.id.name().clone(), own)]);
        let died = BTreeMap::new();
        let state = State { members, live, died, subscribers: Vec::new(), is_closed: false };
        Self { events_max, state: Mutex::new(state), changed: watch::Sender::new(()), score: AtomicU32::new(0) }
    }

    /// Takes what membership tells, in its order. Telling it again who joined is no event.
    pub(crate) fn apply(&self, event: MemberEvent) {
        let now = super::now();
        let mut state = lock(&self.state);
        if state.is_closed || !state.apply(&event, now) {
            return;
        }
        state.publish(&MembershipEvent::Changed(event), self.events_max);
        drop(state);
        self.changed.send_replace(());
    }

    /// The node is no member of anything any more: nobody is listed, and subscriptions end when they are read.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.members.clear();
        state.live.clear();
        state.died.clear();
        for subscriber in state.subscribers.drain(..).filter_map(|subscriber| subscriber.upgrade()) {
            subscriber.close();
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// A subscriber whose first event is the present view.
    pub(crate) fn subscribe(&self) -> Arc<Subscriber<MembershipEvent>> {
        let mut state = lock(&self.state);
        let is_closed = state.is_closed;
        let events = if is_closed { VecDeque::new() } else { [state.snapshot()].into() };
        let subscriber = Subscriber::new(events, is_closed);
        if !is_closed {
            state.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
            state.subscribers.push(Arc::downgrade(&subscriber));
        }
        subscriber
    }

    /// All that are known, in the order of their names.
    pub(crate) fn snapshot(&self) -> Vec<Member> {
        lock(&self.state).members.values().cloned().collect()
    }

    pub(crate) fn member(&self, name: &NodeName) -> Option<Member> {
        lock(&self.state).members.get(name).cloned()
    }

    /// Those who live, in the order of their names.
    pub(crate) fn live(&self) -> Vec<NodeId> {
        lock(&self.state).live()
    }

    /// The same, if there are so many.
    pub(crate) fn live_if(&self, least: usize) -> Option<Vec<NodeId>> {
        let state = lock(&self.state);
        (state.live.len() >= least).then(|| state.live())
    }

    pub(crate) fn live_count(&self) -> usize {
        lock(&self.state).live.len()
    }

    /// The greatest name that lives.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let state = lock(&self.state);
        Some(state.members.get(state.live.last()?)?.id.clone())
    }

    /// What is wrong now; whoever died longer ago than `of_late` does not count.
    pub(crate) fn condition(&self, of_late: Duration) -> Condition {
        let now = super::now();
        let state = lock(&self.state);
        let lives = state.live.iter().filter_map(|name| state.members.get(name));
        let suspected = lives.filter(|member| member.state == MemberState::Suspect).map(|member| member.id.clone());
        let died = state.died.iter().filter(|(_, at)| now.saturating_duration_since(**at) < of_late);
        let died = died.filter_map(|(name, _)| state.members.get(name).map(|member| member.id.clone()));
        Condition { live: state.live.len(), suspected: suspected.collect(), died: died.collect() }
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).is_closed
    }

    /// Waits until `look` finds what it looks for: it is called now, and after changes. `None` at the end.
    pub(crate) async fn wait_for<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        let mut changed = self.changed.subscribe();
        loop {
            if self.is_closed() {
                return None;
            }
            if let Some(found) = look(self) {
                return Some(found);
            }
            changed.changed().await.ok()?;
        }
    }

    /// The score of the node's own health, 0 for good, as it was last set.
    pub(crate) fn score(&self) -> u32 {
        self.score.load(Ordering::Relaxed)
    }

    pub(crate) fn set_score(&self, score: u32) {
        self.score.store(score, Ordering::Relaxed);
    }
}

impl State {
    /// True when something changed.
    fn apply(&mut self, event: &MemberEvent, now: Instant) -> bool {
        let member = match event {
            MemberEvent::Joined(member) => {
                if self.members.get(member.id.name()) == Some(member) {
                    return false;
                }
                member
            }
            MemberEvent::Replaced { member, .. }
            | MemberEvent::Suspected { member, .. }
            | MemberEvent::Cleared(member)
            | MemberEvent::Died { member, .. }
            | MemberEvent::Returned(member)
            | MemberEvent::Left(member)
            | MemberEvent::Updated(member) => member,
            MemberEvent::Forgotten(id) => {
                if self.members.get(id.name()).is_some_and(|present| present.id == *id) {
                    self.members.remove(id.name());
                    self.live.remove(id.name());
                    self.died.remove(id.name());
                }
                return true;
            }
        };
        let name = member.id.name();
        if member.state.is_live() {
            self.live.insert(name.clone());
        } else {
            self.live.remove(name);
        }
        match member.state {
            MemberState::Dead => drop(self.died.entry(name.clone()).or_insert(now)),
            _ => drop(self.died.remove(name)),
        }
        self.members.insert(name.clone(), member.clone());
        true
    }

    fn live(&self) -> Vec<NodeId> {
        self.live.iter().filter_map(|name| Some(self.members.get(name)?.id.clone())).collect()
    }

    fn snapshot(&self) -> MembershipEvent {
        MembershipEvent::Snapshot(self.members.values().cloned().collect())
    }

    fn publish(&mut self, event: &MembershipEvent, max: usize) {
        let mut subscribers = std::mem::take(&mut self.subscribers);
        subscribers.retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            subscriber.push(event.clone(), max, || [MembershipEvent::Lagged, self.snapshot()].into());
            true
        });
        self.subscribers = subscribers;
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker, ready};

    use super::*;

    /// A view of `m@h` that knows `b@h`.
    fn view(events_max: usize) -> Members {
        let members = Members::new(events_max, member("m@h", 1, MemberState::Alive));
        members.apply(MemberEvent::Joined(member("b@h", 1, MemberState::Alive)));
        members
    }

    fn member(name: &str, incarnation: u64, state: MemberState) -> Member {
        let id = NodeId::new(name.parse().unwrap(), incarnation);
        let (metadata, addresses) = (bytes::Bytes::new(), Vec::new());
        Member { id, state, refutation: 0, metadata, addresses, not_dialable: false, client: false }
    }

    fn names(ids: Vec<NodeId>) -> Vec<String> {
        ids.iter().map(|id| id.name().local().to_owned()).collect()
    }

    /// All that can be read without waiting, and whether that was the end.
    fn read(subscriber: &Subscriber<MembershipEvent>) -> (Vec<MembershipEvent>, bool) {
        let mut context = Context::from_waker(Waker::noop());
        let mut events = Vec::new();
        let mut all = || -> Poll<()> {
            while let Some(event) = ready!(subscriber.poll_next(&mut context)) {
                events.push(event);
            }
            Poll::Ready(())
        };
        let is_over = all().is_ready();
        (events, is_over)
    }

    #[test]
    fn a_node_is_its_own_first_member() {
        let own = member("m@h", 1, MemberState::Alive);
        let members = Members::new(8, own.clone());
        assert_eq!((members.snapshot(), members.live()), (vec![own.clone()], vec![own.id.clone()]));
        assert_eq!(members.leader(), Some(own.id.clone()));
        let subscriber = members.subscribe();
        members.apply(MemberEvent::Joined(own.clone()));
        assert_eq!(read(&subscriber), (vec![MembershipEvent::Snapshot(vec![own])], false), "that was known");
    }

    /// The suspected live, the dead do not, and may return; who left is gone.
    #[test]
    fn the_view_follows_what_is_told() {
        let members = view(8);
        members.apply(MemberEvent::Joined(member("z@h", 1, MemberState::Alive)));
        assert_eq!(names(members.live()), ["b", "m", "z"]);
        assert_eq!(members.leader().unwrap().name().local(), "z");

        let by = member("b@h", 1, MemberState::Alive).id;
        let suspect = member("z@h", 1, MemberState::Suspect);
        members.apply(MemberEvent::Suspected { member: suspect.clone(), by: by.clone() });
        assert_eq!(names(members.live()), ["b", "m", "z"]);
        let condition = members.condition(Duration::MAX);
        assert_eq!(condition, Condition { live: 3, suspected: vec![suspect.id.clone()], died: Vec::new() });

        members.apply(MemberEvent::Died { member: member("z@h", 1, MemberState::Dead), by });
        assert_eq!((names(members.live()), members.live_count()), (vec!["b".to_owned(), "m".to_owned()], 2));
        assert_eq!(members.leader().unwrap().name().local(), "m");
        assert_eq!(members.member(suspect.id.name()).unwrap().state, MemberState::Dead, "it is remembered");
        assert_eq!(members.condition(Duration::MAX).died, std::slice::from_ref(&suspect.id));
        assert_eq!(members.condition(Duration::ZERO).died, [], "that was too long ago");

        members.apply(MemberEvent::Returned(member("z@h", 1, MemberState::Alive)));
        assert_eq!(names(members.live()), ["b", "m", "z"]);
        assert_eq!(members.condition(Duration::MAX), Condition { live: 3, ..Condition::default() });

        members.apply(MemberEvent::Left(member("b@h", 1, MemberState::Left)));
        assert_eq!(names(members.live()), ["m", "z"]);
        assert_eq!(members.condition(Duration::MAX), Condition { live: 2, ..Condition::default() });
        assert_eq!(members.snapshot().len(), 3);
    }

    /// A life that is forgotten does not take its successor along.
    #[test]
    fn lives_of_a_name_are_told_apart() {
        let members = view(8);
        let old = member("b@h", 1, MemberState::Alive).id;
        let next = member("b@h", 2, MemberState::Alive);
        members.apply(MemberEvent::Replaced { old: old.clone(), member: next.clone() });
        members.apply(MemberEvent::Forgotten(old));
        assert_eq!(members.member(next.id.name()), Some(next.clone()));
        members.apply(MemberEvent::Died { member: member("b@h", 2, MemberState::Dead), by: next.id.clone() });
        members.apply(MemberEvent::Forgotten(next.id.clone()));
        assert_eq!((members.member(next.id.name()), members.snapshot().len()), (None, 1));
        assert_eq!(members.condition(Duration::MAX).died, []);
    }

    #[test]
    fn a_subscriber_reads_a_snapshot_and_then_each_change_once() {
        let members = view(8);
        let subscriber = members.subscribe();
        let all = members.snapshot();
        let changes = [
            MemberEvent::Updated(member("b@h", 1, MemberState::Alive)),
            MemberEvent::Left(member("b@h", 1, MemberState::Left)),
        ];
        for change in changes.clone() {
            members.apply(change);
        }
        let [updated, left] = changes.map(MembershipEvent::Changed);
        assert_eq!(read(&subscriber), (vec![MembershipEvent::Snapshot(all), updated, left], false));
        members.close();
        assert_eq!(read(&subscriber), (Vec::new(), true));
        assert_eq!(read(&members.subscribe()), (Vec::new(), true));
        members.apply(MemberEvent::Joined(member("b@h", 1, MemberState::Alive)));
        assert_eq!((members.snapshot(), members.leader(), members.live_count()), (Vec::new(), None, 0));
    }

    /// The last event that fits, and the first that does not.
    #[test]
    fn whoever_lags_begins_again() {
        let members = view(3);
        let subscriber = members.subscribe();
        let b = |refutation| Member { refutation, ..member("b@h", 1, MemberState::Alive) };
        for refutation in 1..=2 {
            members.apply(MemberEvent::Updated(b(refutation)));
        }
        assert_eq!(read(&subscriber).0.len(), 3, "a snapshot and two changes");
        for refutation in 3..=6 {
            members.apply(MemberEvent::Updated(b(refutation)));
        }
        let snapshot = MembershipEvent::Snapshot(vec![b(6), member("m@h", 1, MemberState::Alive)]);
        assert_eq!(read(&subscriber), (vec![MembershipEvent::Lagged, snapshot], false));
        members.apply(MemberEvent::Updated(b(7)));
        assert_eq!(read(&subscriber).0, [MembershipEvent::Changed(MemberEvent::Updated(b(7)))]);
    }

    #[tokio::test]
    async fn a_wait_ends_with_what_it_waits_for_or_with_the_node() {
        let members = Arc::new(view(8));
        assert_eq!(members.wait_for(|members| members.live_if(2)).await.map(names), Some(vec!["b".into(), "m".into()]));
        let wait = |least| {
            let members = members.clone();
            tokio::spawn(async move { members.wait_for(|members| members.live_if(least)).await })
        };
        let (three, four) = (wait(3), wait(4));
        tokio::task::yield_now().await;
        members.apply(MemberEvent::Joined(member("z@h", 1, MemberState::Alive)));
        assert_eq!(three.await.unwrap().map(names), Some(vec!["b".into(), "m".into(), "z".into()]));
        members.close();
        assert_eq!(four.await.unwrap(), None);
        assert_eq!(wait(0).await.unwrap(), None, "there is nobody, and will be nobody");
    }
}
