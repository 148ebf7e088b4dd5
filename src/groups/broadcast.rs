//! One message to all members of a group.

use std::any::Any;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Group, Groups};
use crate::config::LONGEST;
use crate::driver::groups::View;
use crate::driver::mailboxes::{LocalRefused, Queue};
use crate::driver::session::{Copies, Session};
use crate::driver::waiting::Refused;
use crate::driver::{Shared, inside};
use crate::error::BroadcastError;
use crate::id::{NodeId, Pid};
use crate::message::{Message, body, schema};
use crate::messaging::footprint;
use crate::rpc::inherited;
use crate::trace::Trace;
use crate::wire::Schema;

impl Groups {
    /// Sends a message to all members that this node knows of, each once: await the returned [`Broadcast`].
    ///
    /// The message is encoded once, and travels to each node once, however many members live there.
    #[doc(alias = "publish")]
    #[doc(alias = "dispatch")]
    pub fn broadcast<M: Message>(&self, group: Group<M>, message: &M) -> Broadcast<M> {
        Broadcast {
            body: body(message).map_err(|error| BroadcastError::Encode(error.to_string())),
            timeout: self.shared.config.call_timeout,
            groups: self.clone(),
            group,
            except: Vec::new(),
            only_local: false,
        }
    }
}

/// A message about to be sent to all members of a group: await it.
///
/// It is offered to the members when it is first polled, to those of connected nodes before any wait; nodes without a
/// session are dialled meanwhile, all at once. It is a message like any other: what this node sends to one mailbox, by
/// itself or with others, arrives in the order of sending, and takes of the same credit.
///
/// It waits for no mailbox: a member that has no room for this node is left out and reported as [`Outcome::Full`], and
/// holds up nobody. What it waits for is that the members' nodes say that they have it, until its deadline.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Group, Node};
///
/// const ROOM: Group<String> = Group::new("room");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let (me, mut you) = (node.mailbox(), node.mailbox());
/// node.groups().join(ROOM, &me)?;
/// node.groups().join(ROOM, &you)?;
/// let report = node.groups().broadcast(ROOM, &"hello".to_owned()).except(&me).await?;
/// assert_eq!((report.len(), report.is_complete()), (1, true));
/// assert_eq!(you.recv().await.as_deref(), Some("hello"));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`BroadcastError`]; no member gets the message. A group without members is no error: the report is empty.
///
/// # Cancel safety
/// A broadcast that is dropped before its first poll sends nothing; after that, connected nodes get it, and others may.
#[must_use = "a message is sent when it is awaited"]
pub struct Broadcast<M> {
    groups: Groups,
    group: Group<M>,
    body: Result<Bytes, BroadcastError>,
    timeout: Duration,
    except: Vec<Pid>,
    only_local: bool,
}

impl<M> Broadcast<M> {
    /// Sets how long to wait for the members' nodes, dialling included. The default is
    /// [`Config::call_timeout`](crate::Config::call_timeout), 5 s; more than a year counts as a year. Zero does not wait:
    /// then what was sent to other nodes is reported as [`Outcome::NoAnswer`].
    ///
    /// In a handler it has no more time than the handler has left, whatever is set here.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// Leaves out a mailbox, as the one that sends. May be said several times.
    pub fn except(mut self, member: impl Into<Pid>) -> Self {
        self.except.push(member.into());
        self
    }

    /// Sends to the members on this node only.
    pub fn local(mut self) -> Self {
        self.only_local = true;
        self
    }
}

impl<M> fmt::Debug for Broadcast<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast").field("group", &self.group).finish_non_exhaustive()
    }
}

impl<M: Message> IntoFuture for Broadcast<M> {
    type Output = Result<Report, BroadcastError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// What became of a message at one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The member's node has the message for it: it is in the mailbox, or follows there what was sent before.
    Delivered,
    /// The mailbox, or the way to it, has no room for this node. It was not sent.
    Full,
    /// The mailbox is closed. It was not read.
    Closed,
    /// There is no session with the node, and none could be had in time. It was not sent.
    NotConnected,
    /// It was sent, and the session ended, or the time, before the node said that it has it. It may be read.
    NoAnswer,
    /// The mailbox is of this node, and takes another type that has the same tag, or the type cannot read what it wrote; or
    /// it is of a node that takes no message that large, or no more types. It was not sent.
    Refused,
}

/// What became of a message at each member that it was for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    outcomes: Vec<(Pid, Outcome)>,
}

impl Report {
    /// Returns how many members the message was for.
    #[expect(clippy::len_without_is_empty, reason = "it is the group that may be empty")]
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Returns how many members had this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.outcomes.iter().filter(|(_, other)| *other == outcome).count()
    }

    /// Returns how many members have it.
    pub fn delivered(&self) -> usize {
        self.count(Outcome::Delivered)
    }

    /// Tells whether all members have it; also true when there was none.
    pub fn is_complete(&self) -> bool {
        self.delivered() == self.len()
    }

    /// Returns the outcome at one member; `None` when the message was not for it.
    pub fn outcome(&self, member: &Pid) -> Option<Outcome> {
        let at = self.outcomes.binary_search_by_key(&member, |(pid, _)| pid).ok()?;
        Some(self.outcomes[at].1)
    }

    /// Returns all outcomes, in the order of the members' nodes and mailboxes.
    pub fn outcomes(&self) -> impl ExactSizeIterator<Item = (&Pid, Outcome)> {
        self.outcomes.iter().map(|(pid, outcome)| (pid, *outcome))
    }
}

/// A message on its way, with all but where to.
#[derive(Clone)]
struct Sending {
    schema: Schema,
    trace: Option<Trace>,
    body: Bytes,
    /// Spreads groups over streams.
    stream: u64,
    deadline: Instant,
}

/// The members on one node that it is for: where their outcomes belong, and their mailboxes.
struct Targets {
    at: Vec<usize>,
    mailboxes: Vec<u64>,
}

/// Waits for what one node says.
struct Sent {
    targets: Targets,
    copies: Copies,
}

impl<M: Message> Broadcast<M> {
    async fn run(self) -> Result<Report, BroadcastError> {
        let Self { groups, group, body, timeout, except, only_local } = self;
        let shared = &groups.shared;
        let body = body?;
        let (size, max) = (body.len(), shared.config.message_max);
        if size > max {
            return Err(BroadcastError::TooLarge { size, max });
        }
        if shared.is_closing() {
            return Err(BroadcastError::Shutdown);
        }
        let Some(view) = groups.view(group.name()) else { return Ok(Report::default()) };
        let mut hasher = DefaultHasher::new();
        (&groups.scope, group.name()).hash(&mut hasher);
        let scope = inherited();
        let sending = Sending {
            schema: schema::<M>(),
            trace: scope.trace,
            body,
            stream: hasher.finish(),
            deadline: scope.cap(Instant::now() + timeout),
        };
        let mut outcomes = Vec::new();
        let mut sent = Vec::new();
        let mut dials = JoinSet::new();
        for node in 0..view.nodes.len() {
            let is_own = shared.is_own(&view.nodes[node].0);
            if only_local && !is_own {
                continue;
            }
            let targets = select(&view, node, &sending.schema.tag, &except, &mut outcomes);
            let node = &view.nodes[node].0;
            if targets.at.is_empty() {
                continue;
            }
            if is_own {
                for (at, mailbox) in targets.at.iter().zip(&targets.mailboxes) {
                    outcomes[*at].1 = deliver_here::<M>(shared, *mailbox, &sending);
                }
                continue;
            }
            match shared.session(node.name()) {
                Some(session) => match offer(&session, node, targets, &sending) {
                    Ok(offered) => sent.push(offered),
                    Err((at, outcome)) => at.into_iter().for_each(|at| outcomes[at].1 = outcome),
                },
                None => drop(dials.spawn(dial(shared.clone(), node.clone(), targets, sending.clone()))),
            }
        }
        for sent in sent {
            sent.settle(sending.deadline, &mut outcomes).await;
        }
        // Each ends by the deadline. What is left to a node that was not reached is `NotConnected`, as it began.
        while let Some(dialled) = dials.join_next().await {
            if let Ok(settled) = dialled {
                settled.into_iter().for_each(|(at, outcome)| outcomes[at].1 = outcome);
            }
        }
        Ok(Report { outcomes })
    }
}

/// The members on one node that the message is for. They are appended to the outcomes.
fn select(view: &View, node: usize, tag: &str, except: &[Pid], outcomes: &mut Vec<(Pid, Outcome)>) -> Targets {
    let mut targets = Targets { at: Vec::new(), mailboxes: Vec::new() };
    for member in &view.members[view.nodes[node].1.clone()] {
        if *member.tag == *tag && !except.contains(&member.pid) {
            targets.at.push(outcomes.len());
            targets.mailboxes.push(member.pid.serial());
            outcomes.push((member.pid.clone(), Outcome::NotConnected));
        }
    }
    targets
}

fn deliver_here<M: Message>(shared: &Arc<Shared>, mailbox: u64, sending: &Sending) -> Outcome {
    let Some(inbox) = shared.mailboxes.inbox(mailbox) else { return Outcome::Closed };
    let inbox: Arc<dyn Any + Send + Sync> = inbox.as_any();
    let Ok(queue) = inbox.downcast::<Queue<M>>() else { return Outcome::Refused };
    let Ok(message) = inside(shared, || M::decode(&sending.body, M::VERSION)) else { return Outcome::Refused };
    let size = footprint(&message);
    match queue.try_push(message, size, sending.trace) {
        Ok(()) => Outcome::Delivered,
        Err(LocalRefused::Full(_)) => Outcome::Full,
        Err(LocalRefused::Closed(_)) => Outcome::Closed,
    }
}

/// Hands the message over to a session, if it is with the life that the members live in.
fn offer(
    session: &Arc<Session>,
    node: &NodeId,
    targets: Targets,
    sending: &Sending,
) -> Result<Sent, (Vec<usize>, Outcome)> {
    if session.peer != *node {
        return Err((targets.at, Outcome::NotConnected));
    }
    let Sending { schema, trace, body, stream, .. } = sending;
    if body.len() > session.message_max {
        return Err((targets.at, Outcome::Refused));
    }
    let Some(schema) = session.declare(schema) else { return Err((targets.at, Outcome::Refused)) };
    let copies = session.offer_copies(&targets.mailboxes, schema, *trace, body, *stream);
    Ok(Sent { targets, copies })
}

async fn dial(shared: Arc<Shared>, node: NodeId, targets: Targets, sending: Sending) -> Vec<(usize, Outcome)> {
    let connected = timeout_at(sending.deadline, shared.connect(node.name(), false)).await;
    let Ok(Ok(session)) = connected else { return Vec::new() };
    match offer(&session, &node, targets, &sending) {
        Ok(sent) => sent.outcomes(sending.deadline).await,
        Err((at, outcome)) => at.into_iter().map(|at| (at, outcome)).collect(),
    }
}

impl Sent {
    async fn settle(self, deadline: Instant, outcomes: &mut [(Pid, Outcome)]) {
        self.outcomes(deadline).await.into_iter().for_each(|(at, outcome)| outcomes[at].1 = outcome);
    }

    /// Waits for the answers, and says what they mean for each member.
    async fn outcomes(self, deadline: Instant) -> Vec<(usize, Outcome)> {
        let Self { targets, copies } = self;
        let mut outcomes = Vec::with_capacity(targets.at.len());
        let mut frames = copies.frames.into_iter();
        // The members of the frame that is looked at, its answer, and how many of them are left.
        let mut frame: (usize, Option<Vec<u64>>) = (0, None);
        for ((at, mailbox), offered) in targets.at.into_iter().zip(targets.mailboxes).zip(copies.offered) {
            let outcome = match offered {
                Ok(()) => {
                    if frame.0 == 0 {
                        let Some((members, answer)) = frames.next() else { break };
                        frame = (members, answered(answer, deadline).await);
                    }
                    frame.0 -= 1;
                    match &frame.1 {
                        None => Outcome::NoAnswer,
                        Some(closed) if closed.binary_search(&mailbox).is_ok() => Outcome::Closed,
                        Some(_) => Outcome::Delivered,
                    }
                }
                Err(Refused::Full | Refused::TooManyMailboxes) => Outcome::Full,
                Err(Refused::MailboxClosed) => Outcome::Closed,
                Err(Refused::SessionEnded) => Outcome::NotConnected,
            };
            outcomes.push((at, outcome));
        }
        outcomes
    }
}

/// The answer to one frame, sorted, unless it does not come.
async fn answered(answer: oneshot::Receiver<Vec<u64>>, deadline: Instant) -> Option<Vec<u64>> {
    // An answer that is there counts, also when the time is over.
    let mut closed = timeout_at(deadline, answer).await.ok()?.ok()?;
    // By whatever rule the peer had put it in order.
    closed.sort_unstable();
    Some(closed)
}
