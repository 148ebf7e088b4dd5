//! One question to all members of a group.

use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Group, Groups};
use crate::ask::{Question, ReplyTo};
use crate::config::LONGEST;
use crate::id::Pid;
use crate::message::Message;
use crate::rpc::inherited;

impl Groups {
    /// Asks all members that this node knows of, each once, and collects their replies: await the returned [`Gather`].
    ///
    /// `message` is called for each member, and makes the message that asks it.
    #[doc(alias = "multi_call")]
    #[doc(alias = "scatter")]
    pub fn gather<M, R, F>(&self, group: Group<M>, message: F) -> Gather<'_, M, R, F>
    where
        M: Message,
        R: Message,
        F: FnMut(ReplyTo<R>) -> M,
    {
        Gather { timeout: self.shared.config.call_timeout, groups: self, group, message, reply: PhantomData }
    }
}

/// A question about to be asked of all members of a group: await it.
///
/// Each member is asked as by [`Address::ask`](crate::Address::ask), all at once and with one deadline. A member that does
/// not reply in time, cannot be reached or has no room for the question until then is among the silent, and holds up no
/// other. A reply that comes later is dropped at this node.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Group, Message, Node, ReplyTo};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Load { reply_to: ReplyTo<u32> }
///
/// impl Message for Load {
///     const TAG: &'static str = "shop.load";
///     const VERSION: u32 = 1;
/// }
///
/// const WORKERS: Group<Load> = Group::new("workers");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let mut worker = node.mailbox();
/// node.groups().join(WORKERS, &worker)?;
/// let pid = worker.pid();
/// tokio::spawn(async move {
///     while let Some(Load { reply_to }) = worker.recv().await {
///         let _ = reply_to.reply(3).await;
///     }
/// });
/// let gathered = node.groups().gather(WORKERS, |reply_to| Load { reply_to }).await;
/// assert_eq!(gathered.replies, [(pid, 3)]);
/// assert!(gathered.silent.is_empty());
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Cancel safety
/// A gather that is dropped before its first poll asks nobody; later, members may have read the question, and their
/// replies are dropped.
#[must_use = "a question is asked when it is awaited"]
pub struct Gather<'a, M, R, F> {
    groups: &'a Groups,
    group: Group<M>,
    message: F,
    timeout: Duration,
    reply: PhantomData<fn() -> R>,
}

impl<M, R, F> Gather<'_, M, R, F> {
    /// Sets how long to wait, dialling and back-pressure included. The default is
    /// [`Config::call_timeout`](crate::Config::call_timeout), 5 s; more than a year counts as a year.
    ///
    /// In a handler it has no more time than the handler has left, whatever is set here.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }
}

impl<M, R, F> fmt::Debug for Gather<'_, M, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").field("group", &self.group).finish_non_exhaustive()
    }
}

/// What the members of a group replied. Both lists are in the order of nodes and mailboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gathered<R> {
    /// The replies that came in time, with who was asked.
    pub replies: Vec<(Pid, R)>,
    /// Those whose reply did not come in time, or will not: the mailbox or the session is gone, or the question could not
    /// be sent, or the reply not be read.
    pub silent: Vec<Pid>,
}

impl<'a, M, R, F> IntoFuture for Gather<'a, M, R, F>
where
    M: Message,
    R: Message,
    F: FnMut(ReplyTo<R>) -> M + Send + 'a,
{
    type Output = Gathered<R>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<M: Message, R: Message, F: FnMut(ReplyTo<R>) -> M> Gather<'_, M, R, F> {
    async fn run(self) -> Gathered<R> {
        let Self { groups, group, mut message, timeout, .. } = self;
        let now = Instant::now();
        let deadline = inherited().cap(now + timeout);
        let members = groups.members(group);
        let mut replies: Vec<Option<R>> = members.iter().map(|_| None).collect();
        let mut waiting = JoinSet::new();
        for (at, member) in members.iter().cloned().enumerate() {
            let Ok((question, message)) = Question::prepare(&member, &mut message) else { continue };
            let mut asking = Box::pin(async move { question.answer(&member, message, now, deadline).await.ok() });
            // Sent in this task, so that it has its place among what this task sends.
            match poll_fn(|context| Poll::Ready(asking.as_mut().poll(context))).await {
                Poll::Ready(reply) => replies[at] = reply,
                Poll::Pending => drop(waiting.spawn(async move { (at, asking.await) })),
            }
        }
        while let Some(reply) = waiting.join_next().await {
            match reply {
                Ok((at, reply)) => replies[at] = reply,
                // Only a decoder of the caller's own can panic here.
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        let mut gathered = Gathered { replies: Vec::new(), silent: Vec::new() };
        for (member, reply) in members.iter().zip(replies) {
            match reply {
                Some(reply) => gathered.replies.push((member.pid().clone(), reply)),
                None => gathered.silent.push(member.pid().clone()),
            }
        }
        gathered
    }
}
