//! What happened to the node's sessions, for whoever subscribed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use super::lock;
use super::subscriber::Subscriber;
use crate::error::DownReason;
use crate::id::NodeId;

/// Something that happened to a node that this one has or had a session with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeEvent {
    /// A session began. This comes before its first message.
    #[doc(alias = "nodeup")]
    Up(NodeId),
    /// The session ended. Nothing of it is delivered after this.
    #[doc(alias = "nodedown")]
    Down(NodeId, DownReason),
    /// A second life of a name whose life answers was refused.
    Conflict {
        /// The life that answers.
        live: NodeId,
        /// The newcomer.
        refused: NodeId,
    },
    /// This node goes on as another incarnation, because a peer knew a later life of its name. Its sessions ended, and
    /// addresses of its mailboxes from before reach nothing.
    Renewed(NodeId),
    /// A later life of this node's name took its place among the members. This node shuts down.
    Superseded(NodeId),
    /// The subscriber left too many events unread, and they are gone. `Up` for each present session follows.
    Lagged,
}

/// All subscribers of one node.
#[derive(Debug)]
pub(crate) struct Events {
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    up: BTreeMap<NodeId, ()>,
    subscribers: Vec<Weak<Subscriber<NodeEvent>>>,
    is_closed: bool,
}

impl Events {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, state: Mutex::default() }
    }

    /// A subscriber whose first events are the present sessions.
    pub(crate) fn subscribe(&self) -> Arc<Subscriber<NodeEvent>> {
        let mut state = lock(&self.state);
        let events = state.up.keys().cloned().map(NodeEvent::Up).collect();
        let subscriber = Subscriber::new(events, state.is_closed);
        state.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        state.subscribers.push(Arc::downgrade(&subscriber));
        subscriber
    }

    pub(crate) fn up(&self, node: NodeId) {
        let mut state = lock(&self.state);
        state.up.insert(node.clone(), ());
        state.publish(&NodeEvent::Up(node), self.max);
    }

    pub(crate) fn down(&self, node: NodeId, reason: DownReason) {
        let mut state = lock(&self.state);
        state.up.remove(&node);
        state.publish(&NodeEvent::Down(node, reason), self.max);
    }

    pub(crate) fn conflict(&self, live: NodeId, refused: NodeId) {
        lock(&self.state).publish(&NodeEvent::Conflict { live, refused }, self.max);
    }

    pub(crate) fn renewed(&self, id: NodeId) {
        lock(&self.state).publish(&NodeEvent::Renewed(id), self.max);
    }

    pub(crate) fn superseded(&self, by: NodeId) {
        lock(&self.state).publish(&NodeEvent::Superseded(by), self.max);
    }

    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        for subscriber in state.subscribers.drain(..).filter_map(|subscriber| subscriber.upgrade()) {
            subscriber.close();
        }
    }
}

impl State {
    fn publish(&mut self, event: &NodeEvent, max: usize) {
        let up = &self.up;
        self.subscribers.retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            let anew = || std::iter::once(NodeEvent::Lagged).chain(up.keys().cloned().map(NodeEvent::Up)).collect();
            subscriber.push(event.clone(), max, anew);
            true
        });
    }
}
