//! Questions to mailboxes: a message that carries the right to one reply.
//!
//! A call goes to a method of a node, a question to a mailbox, wherever it is; and who replies need not be who was asked,
//! since a [`ReplyTo`] is a value that travels on.

use std::borrow::Cow;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::LONGEST;
use crate::driver::asks::{Outcome, Ticket};
use crate::driver::counters::CallCounters;
use crate::driver::exchange::Content;
use crate::driver::session::Session;
use crate::driver::{Shared, decoding_node, inside};
use crate::error::{AskError, ConnectError, SendError};
use crate::id::NodeId;
use crate::message::{Message, decode};
use crate::messaging::Address;
use crate::rpc::{content, inherited};
use crate::wire::Term;

impl<M: Message> Address<M> {
    /// Sends a message that asks for a reply, and waits for it: await the returned [`Ask`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Cookie, Message, Node, ReplyTo};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Stock { item: u64, reply_to: ReplyTo<u32> }
    ///
    /// impl Message for Stock {
    ///     const TAG: &'static str = "shop.stock";
    ///     const VERSION: u32 = 1;
    /// }
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// let mut questions = node.mailbox::<Stock>();
    /// let there = questions.address();
    /// tokio::spawn(async move {
    ///     while let Some(Stock { item, reply_to }) = questions.recv().await {
    ///         let _ = reply_to.reply(if item == 7 { 40 } else { 0 }).await;
    ///     }
    /// });
    /// let left = there.ask(|reply_to| Stock { item: 7, reply_to }).await?;
    /// assert_eq!(left, 40);
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    #[doc(alias = "gen_server")]
    pub fn ask<R: Message, F: FnOnce(ReplyTo<R>) -> M>(&self, message: F) -> Ask<'_, M, R, F> {
        let timeout = self.sender().map_or(LONGEST, |shared| shared.config.call_timeout);
        Ask { address: self, message, timeout, reply: PhantomData }
    }
}

/// A question about to be asked: await it.
///
/// It ends with a reply, at its deadline, or as soon as the mailbox or the session with its node is gone, whichever is
/// first. Between the question and other messages of this node to the mailbox the order is that of sending; a reply has no
/// order with messages.
///
/// # Errors
/// [`AskError`], at the deadline at the latest.
///
/// # Cancel safety
/// A question that is dropped before it was sent is not sent; one that was sent may be read, and its reply is dropped.
#[must_use = "a question is asked when it is awaited"]
pub struct Ask<'a, M: Message, R, F> {
    address: &'a Address<M>,
    message: F,
    timeout: Duration,
    reply: PhantomData<fn() -> R>,
}

impl<M: Message, R, F> Ask<'_, M, R, F> {
    /// Sets how long to wait, dialling and back-pressure included. The default is
    /// [`Config::call_timeout`](crate::Config::call_timeout), 5 s; more than a year counts as a year.
    ///
    /// In a handler it has no more time than the handler has left, whatever is set here.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }
}

impl<M: Message, R, F> fmt::Debug for Ask<'_, M, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").field("address", self.address).finish_non_exhaustive()
    }
}

impl<'a, M, R, F> IntoFuture for Ask<'a, M, R, F>
where
    M: Message,
    R: Message,
    F: FnOnce(ReplyTo<R>) -> M + Send + 'a,
{
    type Output = Result<R, AskError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<M, R, F> Ask<'_, M, R, F>
where
    M: Message,
    R: Message,
    F: FnOnce(ReplyTo<R>) -> M,
{
    async fn run(self) -> Result<R, AskError> {
        let Self { address, message, timeout, .. } = self;
        let now = Instant::now();
        let deadline = inherited().cap(now + timeout);
        let (open, message) = Question::prepare(address, message)?;
        open.answer(address, message, now, deadline).await
    }
}

/// A question that has its number. Dropping it forgets it, and counts how it ended.
pub(crate) struct Question<R> {
    shared: Arc<Shared>,
    serial: u64,
    outcome: oneshot::Receiver<Outcome>,
    ended: Option<Result<(), bool>>,
    reply: PhantomData<fn() -> R>,
}

impl<R> Drop for Question<R> {
    fn drop(&mut self) {
        self.shared.asks.forget(self.serial);
        let counters = &self.shared.counters;
        CallCounters::count(match self.ended {
            Some(Ok(())) => &counters.answered,
            Some(Err(true)) => &counters.timed_out,
            Some(Err(false)) => &counters.failed,
            None => &counters.given_up,
        });
    }
}

impl<R: Message> Question<R> {
    /// Makes the message that asks.
    pub(crate) fn prepare<M: Message>(
        address: &Address<M>,
        message: impl FnOnce(ReplyTo<R>) -> M,
    ) -> Result<(Self, M), AskError> {
        let shared = address.sender().ok_or(SendError::Unbound)?.clone();
        let (ticket, outcome) = shared.asks.register(address.pid()).ok_or(AskError::Overloaded)?;
        CallCounters::count(&shared.counters.made);
        let question = Self { serial: ticket.serial, outcome, ended: None, reply: PhantomData, shared: shared.clone() };
        let reply_to = ReplyTo::new(shared.id(), ticket, Some(shared));
        Ok((question, message(reply_to)))
    }

    /// Sends the message, and waits for the reply until the deadline.
    pub(crate) async fn answer<M: Message>(
        mut self,
        address: &Address<M>,
        message: M,
        asked: Instant,
        deadline: Instant,
    ) -> Result<R, AskError> {
        let Self { shared, serial, outcome, .. } = &mut self;
        let asking = async {
            address.send(message).await?;
            if let Some(session) = address.last_session() {
                shared.asks.sent_in(*serial, session.id);
                // It may have ended in between.
                if session.is_ended() {
                    return Err(AskError::Disconnected(session.peer.clone()));
                }
            }
            match outcome.await {
                Ok(Outcome::Replied { term, body }) => inside(shared, || decode(&term.schema, &body))
                    .map_err(|error| AskError::BadReply(error.to_string())),
                Ok(Outcome::MailboxClosed) => Err(AskError::MailboxClosed(address.pid().clone())),
                Ok(Outcome::SessionEnded) | Err(_) => Err(AskError::Disconnected(address.node().clone())),
            }
        };
        let timeout = deadline.saturating_duration_since(asked);
        let reply = tokio::time::timeout_at(deadline, asking).await.unwrap_or(Err(AskError::Timeout(timeout)));
        self.ended = Some(reply.as_ref().map(|_| ()).map_err(|error| matches!(error, AskError::Timeout(_))));
        reply
    }
}

/// The right to reply, once, to whoever asked: part of a message, made by [`Address::ask`].
///
/// It can be serialised and works from any node that holds it. The first reply counts; a second one, and one that comes
/// when nobody waits any more, is dropped at the node that asked, and counted there
/// ([`CallStats::late`](crate::CallStats::late)).
///
/// One that is decoded inside a node is bound to it; elsewhere it is unbound until [`ReplyTo::bind`].
pub struct ReplyTo<R> {
    node: NodeId,
    ticket: Ticket,
    shared: Option<Arc<Shared>>,
    reply: PhantomData<fn(R)>,
}

impl<R> ReplyTo<R> {
    fn new(node: NodeId, ticket: Ticket, shared: Option<Arc<Shared>>) -> Self {
        Self { node, ticket, shared, reply: PhantomData }
    }

    /// Returns the node that asks.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Binds it to a node, which replies from now on.
    #[must_use]
    pub fn bind(&self, node: &crate::Node) -> Self {
        Self::new(self.node.clone(), self.ticket, Some(node.shared().clone()))
    }
}

impl<R: Message> ReplyTo<R> {
    /// Replies: waits for a session with the node that asks, and for room.
    ///
    /// Resolves when the reply is accepted; it arrives unless the session ends before. Without a session the node is
    /// dialled, for the connect deadline at most.
    ///
    /// # Errors
    /// [`SendError`]; the reply was not sent. That nobody waits for it is no error: it is not known here.
    ///
    /// # Cancel safety
    /// A reply that is dropped before it resolves has sent nothing, or was accepted in that instant.
    pub async fn reply(self, value: R) -> Result<(), SendError> {
        let Some((shared, content)) = self.prepare(value)? else { return Ok(()) };
        let session = match shared.session(self.node.name()) {
            Some(session) => session,
            None => shared.connect(self.node.name(), false).await.map_err(|error| self.not_connected(error))?,
        };
        self.check(&session, &content)?;
        let room = session.call_room(content.body.len()).await;
        let room = room.ok_or_else(|| SendError::NotConnected(self.node.name().clone(), None))?;
        session.reply(room, self.ticket.serial, self.ticket.secret, content);
        Ok(())
    }

    /// Replies if that needs no waiting.
    ///
    /// Without a session this starts a dial and returns [`SendError::NotConnected`].
    ///
    /// # Errors
    /// [`SendError`]; the reply was not sent, and may be tried again.
    pub fn try_reply(&self, value: R) -> Result<(), SendError> {
        let Some((shared, content)) = self.prepare(value)? else { return Ok(()) };
        let Some(session) = shared.session(self.node.name()) else {
            shared.want(self.node.name());
            return Err(SendError::NotConnected(self.node.name().clone(), None));
        };
        self.check(&session, &content)?;
        let room = session.try_call_room(content.body.len()).ok_or(SendError::Full)?;
        session.reply(room, self.ticket.serial, self.ticket.secret, content);
        Ok(())
    }

    /// The reply as it travels; `None` when the question is of this node, and has its reply.
    fn prepare(&self, value: R) -> Result<Option<(&Arc<Shared>, Content)>, SendError> {
        let shared = self.shared.as_ref().ok_or(SendError::Unbound)?;
        let content = content(&value).map_err(|error| SendError::Encode(error.to_string()))?;
        drop(value);
        let (size, max) = (content.body.len(), shared.config.message_max);
        if size > max {
            return Err(SendError::TooLarge { size, max });
        }
        if shared.is_own(&self.node) {
            let term = Term { method: String::new(), schema: (content.kind.schema)() };
            if !shared.asks.replied(self.ticket.serial, self.ticket.secret, Arc::new(term), content.body) {
                shared.counters.late();
            }
            return Ok(None);
        }
        if shared.id().name() == self.node.name() {
            return Err(self.not_connected(ConnectError::Superseded(self.node.clone())));
        }
        Ok(Some((shared, content)))
    }

    fn check(&self, session: &Session, content: &Content) -> Result<(), SendError> {
        if session.peer != self.node {
            return Err(self.not_connected(ConnectError::Superseded(self.node.clone())));
        }
        let (size, max) = (content.body.len(), session.message_max);
        if size > max { Err(SendError::TooLarge { size, max }) } else { Ok(()) }
    }

    fn not_connected(&self, error: ConnectError) -> SendError {
        match error {
            ConnectError::Shutdown => SendError::Shutdown,
            error => SendError::NotConnected(self.node.name().clone(), Some(error)),
        }
    }
}

impl<R: Message> Message for ReplyTo<R> {
    const TAG: &'static str = "reply-to";
    const VERSION: u32 = 1;

    fn tag() -> Cow<'static, str> {
        Cow::Owned(format!("reply-to<{}>", R::tag()))
    }
}

impl<R> Clone for ReplyTo<R> {
    fn clone(&self) -> Self {
        Self::new(self.node.clone(), self.ticket, self.shared.clone())
    }
}

impl<R> fmt::Debug for ReplyTo<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret is what makes it a right.
        write!(f, "ReplyTo({}/{})", self.node, self.ticket.serial)
    }
}

impl<R> Serialize for ReplyTo<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.node, self.ticket.serial, self.ticket.secret).serialize(serializer)
    }
}

impl<'de, R> Deserialize<'de> for ReplyTo<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (node, serial, secret) = Deserialize::deserialize(deserializer)?;
        // What the wire cannot carry names no question.
        if serial >= 1 << 62 {
            return Err(serde::de::Error::custom("a serial that no question can have"));
        }
        Ok(Self::new(node, Ticket { serial, secret }, decoding_node()))
    }
}
