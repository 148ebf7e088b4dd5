//! Groups of mailboxes, under a name that the whole cluster knows.

mod broadcast;
mod gather;

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

pub use self::broadcast::{Broadcast, Outcome, Report};
pub use self::gather::{Gather, Gathered};
use crate::driver::Shared;
use crate::driver::groups::{GroupEvent, GroupMember, Member, NotJoined, View};
use crate::driver::subscriber::Subscriber;
use crate::error::{JoinError, LeaveError, ScopeError};
use crate::id::{NodeId, Pid};
use crate::key::{Key, KeyError};
use crate::message::{Message, schema};
use crate::messaging::{Address, Mailbox};
use crate::node::Node;

/// The name of a group, with the type of the messages that its members take.
///
/// ```
/// use distribute::Group;
///
/// const WORKERS: Group<u64> = Group::new("workers");
/// assert_eq!(WORKERS.name(), "workers");
///
/// let room: Group<String> = Group::parse(format!("room/{}", 42))?;
/// # Ok::<(), distribute::Error>(())
/// ```
///
/// A constant with a bad name does not compile:
///
/// ```compile_fail
/// # use distribute::Group;
/// const WORKERS: Group<u64> = Group::new("");
/// ```
pub struct Group<M> {
    name: Key,
    message: PhantomData<fn(M) -> M>,
}

impl<M> Group<M> {
    /// A group with a name of 1 to 255 bytes, without control characters.
    ///
    /// # Panics
    /// When the name breaks these rules; in a constant that is an error of the compiler.
    pub const fn new(name: &'static str) -> Self {
        Self { name: Key::new(name), message: PhantomData }
    }

    /// A group whose name is made at run time, of 1 to 255 bytes, without control characters. Clones share the name.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with the name.
    pub fn parse(name: impl Into<String>) -> Result<Self, KeyError> {
        Ok(Self { name: Key::parse(name.into())?, message: PhantomData })
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

impl<M> Clone for Group<M> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), message: PhantomData }
    }
}

impl<M> fmt::Debug for Group<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({:?})", self.name)
    }
}

/// The groups of the cluster, as one node knows them. Cheap to clone.
///
/// Mailboxes of any node join a group under its name; a message to the group goes to all. A group is there as long as it
/// has members: nobody makes or deletes one.
///
/// Each node answers from memory. What a mailbox of this node joins or leaves is so here at once, and at the other nodes
/// shortly after; what one node does is seen everywhere in the order in which it did it. A mailbox that closes leaves all
/// its groups. The members of a node that died or is cut off are gone, and are back when the node is. There is no conflict
/// to resolve: each node says for itself who of its own is in.
///
/// A mailbox may join more than once, and is a member until it has left as often. It gets each message once all the same.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Group, Node};
///
/// const WORKERS: Group<u64> = Group::new("workers");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let (mut one, mut two) = (node.mailbox(), node.mailbox());
/// node.groups().join(WORKERS, &one)?;
/// node.groups().join(WORKERS, &two)?;
/// assert_eq!(node.groups().members(WORKERS), [one.address(), two.address()]);
///
/// let report = node.groups().broadcast(WORKERS, &7).await?;
/// assert!(report.is_complete());
/// assert_eq!((one.recv().await, two.recv().await), (Some(7), Some(7)));
///
/// if let Some(worker) = node.groups().pick(WORKERS).nearest() {
///     worker.send(8).await?;
/// }
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[doc(alias = "pg")]
#[doc(alias = "receptionist")]
pub struct Groups {
    shared: Arc<Shared>,
    scope: Arc<str>,
}

impl Groups {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), scope: Arc::from("") }
    }

    /// Returns the groups of another scope than the default one. Groups of one name in two scopes are two groups, and only
    /// nodes that take part in a scope know what is in it.
    ///
    /// # Errors
    /// [`ScopeError::NotInScope`] when this node takes no part in that scope.
    pub fn in_scope(&self, scope: &str) -> Result<Self, ScopeError> {
        if !self.shared.takes_part(scope) {
            return Err(ScopeError::NotInScope(scope.to_owned()));
        }
        Ok(Self { shared: self.shared.clone(), scope: scope.into() })
    }

    /// Makes a mailbox of this node a member, once more if it is one already. Returns at once; here it is a member from
    /// now on.
    ///
    /// # Errors
    /// [`JoinError`]; nothing has changed. [`JoinError::TooMany`] beyond
    /// [`Config::groups_max`](crate::Config::groups_max).
    pub fn join<M: Message>(&self, group: Group<M>, mailbox: &Mailbox<M>) -> Result<(), JoinError> {
        if !mailbox.is_of(&self.shared) {
            return Err(JoinError::NotLocal(mailbox.pid()));
        }
        if self.is_over() {
            return Err(JoinError::Shutdown);
        }
        let joined = self.shared.join_group(&self.scope, group.name(), mailbox.pid().serial(), &schema::<M>().tag);
        joined.map_err(|refused| match refused {
            NotJoined::Full => JoinError::TooMany(self.shared.config.groups_max),
            NotJoined::Closed => JoinError::Shutdown,
        })
    }

    /// Takes back one join of a mailbox of this node, which may be in the hands of another task: an address of it will do,
    /// or its [`Pid`]. It is a member until it has left as often as it joined. Returns at once.
    ///
    /// # Errors
    /// [`LeaveError::NotJoined`] when it is no member.
    pub fn leave<M>(&self, group: Group<M>, member: impl Into<Pid>) -> Result<(), LeaveError> {
        let pid = member.into();
        let is_member =
            self.shared.is_own(pid.node()) && self.shared.leave_group(&self.scope, group.name(), pid.serial());
        if is_member { Ok(()) } else { Err(LeaveError::NotJoined(pid)) }
    }

    /// Returns the members, each once, in the order of their nodes and mailboxes, which is the same on all nodes.
    ///
    /// Members that take messages of another type are left out: see [`memberships`](Self::memberships).
    #[doc(alias = "get_members")]
    pub fn members<M: Message>(&self, group: Group<M>) -> Vec<Address<M>> {
        self.addresses(group, |_| true)
    }

    /// Returns the members that live on this node.
    #[doc(alias = "get_local_members")]
    pub fn local_members<M: Message>(&self, group: Group<M>) -> Vec<Address<M>> {
        self.addresses(group, |node| self.shared.is_own(node))
    }

    fn addresses<M: Message>(&self, group: Group<M>, wanted: impl Fn(&NodeId) -> bool) -> Vec<Address<M>> {
        let Some(view) = self.view(group.name()) else { return Vec::new() };
        let tag = schema::<M>().tag;
        let nodes = view.nodes.iter().filter(|(node, _)| wanted(node));
        let members = nodes.flat_map(|(_, range)| &view.members[range.clone()]).filter(|member| *member.tag == *tag);
        members.map(|member| Address::bound(member.pid.clone(), &self.shared)).collect()
    }

    /// Returns how many members there are, each counted once, of whatever type.
    pub fn count<M>(&self, group: Group<M>) -> usize {
        self.view(group.name()).map_or(0, |view| view.members.len())
    }

    /// Returns the members of whatever type, with how often each joined, in the same order as
    /// [`members`](Self::members).
    pub fn memberships<M>(&self, group: Group<M>) -> Vec<GroupMember> {
        let Some(view) = self.view(group.name()) else { return Vec::new() };
        let name: Arc<str> = group.name().into();
        let member = |Member { pid, tag, count }: &Member| GroupMember {
            group: name.clone(),
            pid: pid.clone(),
            tag: tag.clone(),
            count: *count,
        };
        view.members.iter().map(member).collect()
    }

    /// Returns the names of all groups that have members, in their order.
    #[doc(alias = "which_groups")]
    pub fn groups(&self) -> Vec<Arc<str>> {
        self.shared.groups.names(&self.scope)
    }

    /// Subscribes to a group: first a [`GroupEvent::Snapshot`], then each change once, in the order in which this node
    /// learned of it. Changes made on one node come in the order in which they were made.
    ///
    /// A subscriber that leaves more than [`Config::events_max`](crate::Config::events_max) events unread loses them, is
    /// told [`GroupEvent::Lagged`], and begins again with a snapshot.
    #[doc(alias = "monitor")]
    pub fn subscribe<M>(&self, group: Group<M>) -> GroupEvents {
        self.subscribe_to(Some(group.name()))
    }

    /// Subscribes to all groups of the scope, as [`subscribe`](Self::subscribe) does to one.
    #[doc(alias = "monitor_scope")]
    pub fn subscribe_all(&self) -> GroupEvents {
        self.subscribe_to(None)
    }

    fn subscribe_to(&self, group: Option<&str>) -> GroupEvents {
        let subscriber = self.shared.groups.subscribe(&self.scope, group);
        GroupEvents { shared: self.shared.clone(), scope: self.scope.clone(), group: group.map(Arc::from), subscriber }
    }

    /// Begins to choose one of the members that there are now.
    #[doc(alias = "get_closest_pid")]
    pub fn pick<M: Message>(&self, group: Group<M>) -> Pick<M> {
        Pick { shared: self.shared.clone(), members: self.members(group) }
    }

    fn view(&self, group: &str) -> Option<Arc<View>> {
        self.shared.groups.view(&self.scope, group)
    }

    fn is_over(&self) -> bool {
        self.shared.is_stopping() || self.shared.members.is_closed()
    }
}

impl GroupMember {
    /// Returns an address of the member, bound to a node; `None` when it takes messages of another type.
    pub fn address<M: Message>(&self, node: &Node) -> Option<Address<M>> {
        (*self.tag == *schema::<M>().tag).then(|| Address::bound(self.pid.clone(), node.shared()))
    }
}

/// A subscription to [`GroupEvent`]s, also a [`Stream`](futures_core::Stream). Dropping it ends it.
pub struct GroupEvents {
    shared: Arc<Shared>,
    scope: Arc<str>,
    group: Option<Arc<str>>,
    subscriber: Arc<Subscriber<GroupEvent>>,
}

impl GroupEvents {
    /// Waits for the next event; `None` once the node is shut down.
    ///
    /// # Cancel safety
    /// Dropping it loses no event.
    pub async fn next(&mut self) -> Option<GroupEvent> {
        poll_fn(|context| self.subscriber.poll_next(context)).await
    }
}

impl futures_core::Stream for GroupEvents {
    type Item = GroupEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<GroupEvent>> {
        self.subscriber.poll_next(context)
    }
}

impl Drop for GroupEvents {
    fn drop(&mut self) {
        self.shared.groups.unsubscribe(&self.scope, self.group.as_deref(), &self.subscriber);
    }
}

impl fmt::Debug for GroupEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupEvents").field("scope", &self.scope).field("group", &self.group).finish_non_exhaustive()
    }
}

/// The members of a group at one moment, of which one is to be chosen. Made by [`Groups::pick`].
#[must_use = "nothing is chosen yet"]
pub struct Pick<M: Message> {
    shared: Arc<Shared>,
    members: Vec<Address<M>>,
}

impl<M: Message> Pick<M> {
    /// Returns the first member in the order of nodes and mailboxes: the same at all nodes that see the same members.
    pub fn first(self) -> Option<Address<M>> {
        self.members.into_iter().next()
    }

    /// Returns any member, each with the same chance.
    pub fn random(mut self) -> Option<Address<M>> {
        if self.members.is_empty() {
            return None;
        }
        Some(self.members.swap_remove(fastrand::usize(..self.members.len())))
    }

    /// Returns a member of this node if there is one, else of the node with the shortest round trip among those that this
    /// node has a link to, else of any. Among those that are equally near, each has the same chance.
    pub fn nearest(mut self) -> Option<Address<M>> {
        let nodes = self.members.chunk_by(|one, next| one.node() == next.node());
        let distances: Vec<_> = nodes.map(|run| (self.distance(run[0].node()), run.len())).collect();
        let nearest = distances.iter().map(|(distance, _)| *distance).min()?;
        let mut is_near = distances.iter().flat_map(|(distance, run)| std::iter::repeat_n(*distance == nearest, *run));
        self.members.retain(|_| is_near.next().unwrap_or_default());
        self.random()
    }

    fn distance(&self, node: &NodeId) -> Distance {
        if self.shared.is_own(node) {
            return Distance::Here;
        }
        let session = self.shared.session(node.name()).filter(|session| session.peer == *node);
        let carrier = session.and_then(|session| session.carrier());
        carrier.map_or(Distance::Unknown, |carrier| Distance::Rtt(carrier.path().rtt))
    }
}

/// How far a node is, from near to far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    Here,
    Rtt(std::time::Duration),
    Unknown,
}

impl<M: Message> fmt::Debug for Pick<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick").field("members", &self.members).finish_non_exhaustive()
    }
}
