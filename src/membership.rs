//! Who is in the cluster, as a user sees it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::driver::members::MembershipEvent;
use crate::driver::subscriber::Subscriber;
use crate::driver::{Command, Shared};
use crate::error::MetadataError;
use crate::id::{NodeId, NodeName};
use crate::proto::membership::{self, Member, MembershipCounters};

/// The longest metadata of a member, in bytes.
pub const METADATA_MAX: usize = membership::METADATA_MAX;

/// The members of the cluster, as one node knows them. Cheap to clone.
///
/// Members find each other: whoever reaches one of them learns of all, without a session with each. Each asks another
/// for a sign of life in every [`Config::probe_interval`](crate::Config::probe_interval), and what it learns spreads by
/// gossip, by the protocol SWIM with Lifeguard. So every node has a view of its own, which lags behind the others' by
/// some gossip intervals, and under a partition differs from theirs. It is answered from memory at once.
///
/// A member is a *life* of a node, while a session ([`Cluster`](crate::Cluster)) is a conversation with one: members
/// without a session are normal, and a session can end though the member lives.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Node};
///
/// let cookie = Cookie::generate();
/// let one = Node::builder("one@127.0.0.1:0").cookie(cookie.clone()).start().await?;
/// let two = Node::builder("two@127.0.0.1:0").cookie(cookie).join(one.name()).start().await?;
///
/// assert_eq!(one.membership().wait_for_alive(2).await, Some(vec![one.id(), two.id()]));
/// assert_eq!(one.membership().leader(), Some(two.id()));
/// # two.shutdown().await;
/// # one.shutdown().await;
/// # Ok(()) }
/// ```
///
/// Once the node has left ([`Cluster::leave`](crate::Cluster::leave)) or is shut down, it is no member and knows none.
#[derive(Clone, Debug)]
#[doc(alias = "memberlist")]
#[doc(alias = "serf")]
#[doc(alias = "swim")]
pub struct Membership {
    shared: Arc<Shared>,
}

impl Membership {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone() }
    }

    /// Returns all members that this node knows, in the order of their names: itself, and for
    /// [`Config::dead_kept`](crate::Config::dead_kept) the dead and those who left.
    pub fn members(&self) -> Vec<Member> {
        self.shared.members.snapshot()
    }

    /// Returns what is known of the present life of a name.
    pub fn member(&self, name: &NodeName) -> Option<Member> {
        self.shared.members.member(name)
    }

    /// Returns the members that live, in the order of their names: this node, and all others that have neither been
    /// declared dead nor left. Those who are suspected still live.
    #[doc(alias = "nodes")]
    pub fn alive(&self) -> Vec<NodeId> {
        self.shared.members.live()
    }

    /// Returns the member with the greatest name of those that live, this node included.
    ///
    /// It is a convention and no election: all nodes with the same view name the same one, but while views differ, as
    /// under a partition, two nodes may each believe that they lead. Let nothing depend on it that must happen once
    /// only: that is what an [`Election`](crate::Election) is for.
    pub fn leader(&self) -> Option<NodeId> {
        self.shared.members.leader()
    }

    /// Subscribes to what happens to members: first a [`MembershipEvent::Snapshot`] of all, then each change once, in
    /// the order in which this node learned of it.
    ///
    /// A subscriber that leaves more than [`Config::events_max`](crate::Config::events_max) events unread loses them,
    /// is told [`MembershipEvent::Lagged`], and begins again with a snapshot.
    #[doc(alias = "nodeup")]
    #[doc(alias = "monitor_nodes")]
    pub fn subscribe(&self) -> MembershipEvents {
        MembershipEvents { subscriber: self.shared.members.subscribe() }
    }

    /// Waits until at least so many members live, this node included, and returns them in the order of their names.
    /// `None` once the node has left or is shut down.
    ///
    /// It is for a service that must not begin alone: after it, this node has seen so many, and they may be fewer again
    /// at any time. It has no deadline of its own.
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn wait_for_alive(&self, least: usize) -> Option<Vec<NodeId>> {
        self.shared.members.wait_for(|members| members.live_if(least)).await
    }

    /// Waits until the members that this node knows are as wanted, and returns them; `None` once the node has left or
    /// is shut down.
    ///
    /// `wanted` is called with all members, in the order of their names: at once, and then after changes, of which
    /// several may be seen as one. It may ask this handle, and should not block.
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn wait_for(&self, mut wanted: impl FnMut(&[Member]) -> bool) -> Option<Vec<Member>> {
        self.shared.members.wait_for(|members| Some(members.snapshot()).filter(|members| wanted(members))).await
    }

    /// Says something of this node to all members, in at most [`METADATA_MAX`] bytes, in place of what it said before:
    /// a role, a zone, a version.
    ///
    /// Returns at once. It spreads like all that is known of members, and is theirs to see in [`Member::metadata`]; of
    /// two changes in quick succession some members may see the later only.
    ///
    /// # Errors
    /// [`MetadataError`]; nothing is changed.
    pub fn set_metadata(&self, metadata: impl Into<Bytes>) -> Result<(), MetadataError> {
        let metadata = metadata.into();
        if metadata.len() > METADATA_MAX {
            return Err(MetadataError::TooLarge { size: metadata.len(), max: METADATA_MAX });
        }
        if self.shared.is_stopping() || self.shared.members.is_closed() {
            return Err(MetadataError::Shutdown);
        }
        self.shared.command(Command::SetMetadata { metadata });
        Ok(())
    }

    /// Returns what has happened to this node's membership since its start. All are zero once it is shut down.
    ///
    /// # Cancel safety
    /// Dropping it has no effect.
    pub async fn counters(&self) -> MembershipCounters {
        let (done, counters) = oneshot::channel();
        self.shared.command(Command::MembershipCounters { done });
        counters.await.unwrap_or_default()
    }
}

/// A subscription to [`MembershipEvent`]s, also a [`Stream`](futures_core::Stream). Dropping it ends it.
#[derive(Debug)]
pub struct MembershipEvents {
    subscriber: Arc<Subscriber<MembershipEvent>>,
}

impl MembershipEvents {
    /// Waits for the next event; `None` once the node has left or is shut down.
    ///
    /// # Cancel safety
    /// Dropping it loses no event.
    pub async fn next(&mut self) -> Option<MembershipEvent> {
        poll_fn(|context| self.subscriber.poll_next(context)).await
    }
}

impl futures_core::Stream for MembershipEvents {
    type Item = MembershipEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<MembershipEvent>> {
        self.subscriber.poll_next(context)
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::identity::Cookie;
    use crate::node::Node;
    use crate::proto::membership::{MemberEvent, MemberState};
    use crate::sim::Fabric;

    async fn node() -> Node {
        let host = Fabric::new(1).host([10, 0, 0, 1]);
        Node::builder("a@10.0.0.1:4370").cookie(Cookie::generate()).network(host).start().await.unwrap()
    }

    fn other(state: MemberState) -> Member {
        let id = NodeId::new("b@10.0.0.2:4370".parse().unwrap(), 1);
        let (metadata, addresses) = (Bytes::new(), Vec::new());
        Member { id, state, refutation: 0, metadata, addresses, not_dialable: false, client: false }
    }

    /// A service that wants two is not ready alone; both kinds of waiting end with the event.
    #[tokio::test(start_paused = true)]
    async fn readiness_is_one_event() {
        let node = node().await;
        let membership = node.membership();
        assert_eq!(membership.wait_for_alive(1).await, Some(vec![node.id()]));
        let waiting = [false, true].map(|by_look| {
            let membership = membership.clone();
            tokio::spawn(async move {
                if by_look {
                    let members = membership.wait_for(|members| members.len() > 1).await;
                    return members.map(|members| members.into_iter().map(|member| member.id).collect());
                }
                membership.wait_for_alive(2).await
            })
        });
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        node.shared().members.apply(MemberEvent::Joined(other(MemberState::Alive)));
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), Some(vec![node.id(), other(MemberState::Alive).id]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_left_is_no_member_and_knows_none() {
        let node = node().await;
        let membership = node.membership();
        node.shared().members.apply(MemberEvent::Joined(other(MemberState::Alive)));
        let mut events = membership.subscribe();
        assert!(matches!(events.next().await, Some(MembershipEvent::Snapshot(members)) if members.len() == 2));
        let waiting = tokio::spawn({
            let membership = membership.clone();
            async move { membership.wait_for_alive(3).await }
        });
        node.cluster().leave().await;
        let Some(MembershipEvent::Changed(MemberEvent::Left(own))) = events.next().await else { panic!() };
        assert_eq!((own.id, events.next().await), (node.id(), None));
        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!((membership.alive(), membership.members(), membership.leader()), (Vec::new(), Vec::new(), None));
        assert_eq!(membership.set_metadata("zone=b"), Err(MetadataError::Shutdown));
        node.cluster().leave().await;
    }

    #[tokio::test(start_paused = true)]
    async fn metadata_has_512_bytes_at_most() {
        let node = node().await;
        assert_eq!(node.membership().set_metadata(vec![0; 512]), Ok(()));
        let error = MetadataError::TooLarge { size: 513, max: 512 };
        assert_eq!(node.membership().set_metadata(vec![0; 513]), Err(error));
        node.shutdown().await;
        assert_eq!(node.membership().set_metadata("zone=b"), Err(MetadataError::Shutdown));
        assert_eq!(node.membership().counters().await, MembershipCounters::default());
    }
}
