//! When a node is ready: it has the names and groups of the cluster, or it is the one that founds it.
//!
//! Whoever is ready has them from one who was ready before, so they all go back to one founder; two founders are two clusters,
//! until they meet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::id::{NodeId, NodeName};

/// How the first node of a cluster is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// This node has nobody to join: it founds a cluster.
    Found,
    /// Those who list each other: the lowest name founds, once all of these are up and none is ready.
    Contacts(Vec<NodeName>),
    /// The lowest name founds, once so many are up, this node included, and none is ready.
    Expect(usize),
}

#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A session begins; it ends.
    Up {
        peer: NodeId,
    },
    Down {
        peer: NodeId,
    },
    /// The peer says that it is ready.
    PeerReady {
        peer: NodeId,
    },
    /// All that it has is here.
    Synced {
        peer: NodeId,
    },
    Live {
        node: NodeId,
    },
    Gone {
        node: NodeId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Get all that this peer has. [`Input::Synced`] follows.
    SyncWith { peer: NodeId },
    /// This node is ready, from now on.
    Ready { is_founder: bool },
    /// Tell the peer that this node is ready.
    Tell { peer: NodeId },
}

/// Whether one node is ready.
#[derive(Debug)]
pub(crate) struct Founding {
    id: NodeId,
    plan: Plan,
    /// How long it has to look as if this node were to found, before it does: the lists of others may still be on their way.
    settle: Duration,
    is_ready: bool,
    /// Those with a session, and whether they are ready.
    peers: BTreeMap<NodeId, bool>,
    live: BTreeSet<NodeId>,
    /// Whose names and groups are being fetched.
    source: Option<NodeId>,
    due: Option<Instant>,
    outputs: VecDeque<Output>,
}

impl Founding {
    pub(crate) fn new(id: NodeId, plan: Plan, settle: Duration, now: Instant) -> Self {
        let (peers, live, outputs) = (BTreeMap::new(), BTreeSet::new(), VecDeque::new());
        let mut this = Self { id, plan, settle, is_ready: false, peers, live, source: None, due: None, outputs };
        if matches!(this.plan, Plan::Found | Plan::Expect(0 | 1)) {
            this.ready(true);
        }
        this.look(now);
        this
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Up { peer } => {
                if self.is_ready {
                    self.outputs.push_back(Output::Tell { peer: peer.clone() });
                }
                self.peers.insert(peer, false);
            }
            Input::Down { peer } => {
                self.peers.remove(&peer);
                self.source.take_if(|source| *source == peer);
            }
            Input::PeerReady { peer } => {
                if let Some(is_ready) = self.peers.get_mut(&peer) {
                    *is_ready = true;
                }
            }
            Input::Synced { peer } => {
                if self.source.as_ref() == Some(&peer) {
                    self.ready(false);
                }
            }
            Input::Live { node } => drop(self.live.insert(node)),
            Input::Gone { node } => drop(self.live.remove(&node)),
        }
        self.look(now);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            if self.is_to_found() {
                self.ready(true);
            }
        }
    }

    fn ready(&mut self, is_founder: bool) {
        self.is_ready = true;
        (self.due, self.source) = (None, None);
        self.outputs.push_back(Output::Ready { is_founder });
        self.outputs.extend(self.peers.keys().map(|peer| Output::Tell { peer: peer.clone() }));
    }

    /// Looks for somebody who is ready, or whether this node is the one to found.
    fn look(&mut self, now: Instant) {
        if self.is_ready {
            return;
        }
        if self.source.is_none()
            && let Some((peer, _)) = self.peers.iter().find(|(_, is_ready)| **is_ready)
        {
            self.source = Some(peer.clone());
            self.outputs.push_back(Output::SyncWith { peer: peer.clone() });
        }
        if !self.is_to_found() {
            self.due = None;
        } else if self.due.is_none() {
            self.due = Some(now + self.settle);
        }
    }

    /// Everybody who is expected is there, nobody is ready, and this node has the lowest name.
    fn is_to_found(&self) -> bool {
        if self.is_ready || self.peers.values().any(|is_ready| *is_ready) {
            return false;
        }
        let own = self.id.name();
        let is_up = |name: &NodeName| name == own || self.peers.keys().any(|peer| peer.name() == name);
        let all_up = match &self.plan {
            Plan::Found => true,
            Plan::Contacts(names) => names.iter().all(is_up),
            Plan::Expect(count) => {
                let others = self.peers.keys().chain(&self.live).filter(|node| node.name() != own);
                others.collect::<BTreeSet<_>>().len() + 1 >= *count
            }
        };
        // A live member that there is no session with may be ready: it is asked first.
        let is_heard = self.live.iter().all(|node| *node == self.id || self.peers.contains_key(node));
        all_up && is_heard && self.peers.keys().chain(&self.live).all(|node| node.name() >= own)
    }

    /// This node goes on as another incarnation.
    pub(crate) fn renewed(&mut self, id: NodeId) {
        let old = std::mem::replace(&mut self.id, id);
        self.live.remove(&old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(1);

    fn node(text: &str) -> NodeId {
        NodeId::new(NodeName::parse(text).unwrap(), 1)
    }

    fn contacts(names: &[&str]) -> Plan {
        Plan::Contacts(names.iter().map(|name| NodeName::parse(name).unwrap()).collect())
    }

    fn all(founding: &mut Founding) -> Vec<Output> {
        std::iter::from_fn(|| founding.poll_output()).collect()
    }

    fn up(founding: &mut Founding, peer: &str, now: Instant) {
        founding.handle(Input::Live { node: node(peer) }, now);
        founding.handle(Input::Up { peer: node(peer) }, now);
    }

    #[test]
    fn whoever_joins_nobody_founds_and_tells_those_who_come() {
        let now = Instant::now();
        let mut a = Founding::new(node("a@h"), Plan::Found, SETTLE, now);
        assert_eq!(all(&mut a), [Output::Ready { is_founder: true }]);
        up(&mut a, "b@h", now);
        assert_eq!(all(&mut a), [Output::Tell { peer: node("b@h") }]);
    }

    #[test]
    fn whoever_joins_waits_for_all_of_one_who_is_ready() {
        let now = Instant::now();
        let mut b = Founding::new(node("b@h"), contacts(&["a@h"]), SETTLE, now);
        up(&mut b, "a@h", now);
        assert_eq!(all(&mut b), []);
        b.handle(Input::PeerReady { peer: node("a@h") }, now);
        assert_eq!(all(&mut b), [Output::SyncWith { peer: node("a@h") }]);
        b.handle(Input::Synced { peer: node("a@h") }, now);
        assert_eq!(all(&mut b), [Output::Ready { is_founder: false }, Output::Tell { peer: node("a@h") }]);
        assert!(b.is_ready());
    }

    /// The source that goes away is replaced by another one.
    #[test]
    fn a_source_that_is_lost_is_replaced() {
        let now = Instant::now();
        let mut c = Founding::new(node("c@h"), contacts(&["a@h", "b@h"]), SETTLE, now);
        for peer in ["a@h", "b@h"] {
            up(&mut c, peer, now);
            c.handle(Input::PeerReady { peer: node(peer) }, now);
        }
        assert_eq!(all(&mut c), [Output::SyncWith { peer: node("a@h") }]);
        c.handle(Input::Down { peer: node("a@h") }, now);
        assert_eq!(all(&mut c), [Output::SyncWith { peer: node("b@h") }]);
        c.handle(Input::Synced { peer: node("a@h") }, now);
        assert!(!c.is_ready(), "that was the other one");
    }

    /// Of those who list each other the lowest founds, when all are there and it has looked so for a while; nobody else does.
    #[test]
    fn those_who_list_each_other_have_one_founder() {
        let now = Instant::now();
        let names = ["a@h", "b@h", "c@h"];
        for own in names {
            let others: Vec<&str> = names.into_iter().filter(|name| *name != own).collect();
            let mut founding = Founding::new(node(own), contacts(&others), SETTLE, now);
            up(&mut founding, others[0], now);
            assert_eq!(founding.poll_timeout(), None, "one is missing");
            up(&mut founding, others[1], now);
            assert_eq!(founding.poll_timeout(), (own == "a@h").then_some(now + SETTLE), "{own}");
            founding.handle_timeout(now + SETTLE - Duration::from_nanos(1));
            assert!(!founding.is_ready(), "a moment too early");
            founding.handle_timeout(now + SETTLE);
            assert_eq!(founding.is_ready(), own == "a@h", "{own}");
        }
    }

    /// A member that is known and was not heard may be ready: a restarted node that is cut off from it founds nothing.
    #[test]
    fn nobody_founds_beside_a_member_that_was_not_asked() {
        let now = Instant::now();
        let mut a = Founding::new(node("a@h"), contacts(&["b@h"]), SETTLE, now);
        up(&mut a, "b@h", now);
        assert!(a.poll_timeout().is_some());
        a.handle(Input::Live { node: node("z@h") }, now);
        assert_eq!(a.poll_timeout(), None);
        a.handle(Input::Up { peer: node("z@h") }, now);
        assert!(a.poll_timeout().is_some());
        a.handle(Input::PeerReady { peer: node("z@h") }, now);
        assert_eq!((a.poll_timeout(), all(&mut a)), (None, vec![Output::SyncWith { peer: node("z@h") }]));
    }

    #[test]
    fn so_many_as_are_expected_are_enough_and_one_fewer_is_not() {
        let now = Instant::now();
        let mut a = Founding::new(node("a@h"), Plan::Expect(3), SETTLE, now);
        up(&mut a, "b@h", now);
        assert_eq!(a.poll_timeout(), None);
        up(&mut a, "c@h", now);
        a.handle_timeout(now + SETTLE);
        assert_eq!(all(&mut a)[0], Output::Ready { is_founder: true });
        let alone = Founding::new(node("a@h"), Plan::Expect(1), SETTLE, now);
        assert!(alone.is_ready());
    }
}
