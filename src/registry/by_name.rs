//! What is done with the mailbox of a name in one step: sending once it is there, asking.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::{Name, Registry, WaitFor};
use crate::ask::ReplyTo;
use crate::config::LONGEST;
use crate::error::{LookupError, NamedAskError, NamedSendError, SendError, WaitError};
use crate::message::Message;

impl<M: Message> WaitFor<M> {
    /// Sends a message to the mailbox that has the name, once one has it. [`timeout`](WaitFor::timeout) is for all of it: the
    /// name, a session with its node, and room.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use std::time::Duration;
    /// use distribute::{Cookie, Name, NamedSendError, Node};
    ///
    /// const DESK: Name<String> = Name::new("desk");
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// node.ready().await?;
    /// let soon = Duration::from_millis(10);
    /// let unsent = node.registry().wait_for(DESK).timeout(soon).send("hello".into()).await;
    /// assert_eq!(unsent, Err(NamedSendError::Absent(soon)));
    ///
    /// let desk = node.mailbox();
    /// node.registry().register(DESK, &desk).await?;
    /// node.registry().wait_for(DESK).timeout(Duration::from_secs(1)).send("hello".into()).await?;
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`NamedSendError`]; the message was not sent. [`NamedSendError::Absent`] when nobody had the name in time,
    /// [`NamedSendError::Timeout`] when its mailbox had no room in time, or its node no session.
    ///
    /// # Cancel safety
    /// A send that is dropped before it resolves has sent nothing, or has been accepted in that instant.
    pub async fn send(self, message: M) -> Result<(), NamedSendError> {
        let patience = self.timeout;
        let deadline = patience.map(|patience| Instant::now() + patience);
        let address = self.run().await.map_err(|error| match error {
            WaitError::TagMismatch { expected, found } => LookupError::TagMismatch { expected, found }.into(),
            WaitError::Timeout(patience) => NamedSendError::Absent(patience),
            WaitError::Shutdown => SendError::Shutdown.into(),
        })?;
        let sent = address.send_by(message, deadline).await?;
        sent.ok_or_else(|| NamedSendError::Timeout(patience.unwrap_or_default()))
    }
}

impl Registry {
    /// Asks the mailbox that has the name: looks it up, and asks as [`Address::ask`](crate::Address::ask) does. Await the
    /// returned [`NamedAsk`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Cookie, Name, Node, ReplyTo};
    ///
    /// const STOCK: Name<(u64, ReplyTo<u32>)> = Name::new("stock");
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// node.ready().await?;
    /// let mut stock = node.mailbox();
    /// node.registry().register(STOCK, &stock).await?;
    /// tokio::spawn(async move {
    ///     while let Some((item, reply_to)) = stock.recv().await {
    ///         let _ = reply_to.reply(if item == 7 { 40 } else { 0 }).await;
    ///     }
    /// });
    /// assert_eq!(node.registry().ask(STOCK, |reply_to| (7, reply_to)).await?, 40);
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn ask<M, R, F>(&self, name: Name<M>, message: F) -> NamedAsk<'_, M, R, F>
    where
        M: Message,
        R: Message,
        F: FnOnce(ReplyTo<R>) -> M,
    {
        NamedAsk { registry: self, name, message, timeout: self.shared.config.call_timeout, reply: PhantomData }
    }
}

/// A question about to be asked to the mailbox of a name: await it. It ends as an [`Ask`](crate::Ask) does.
///
/// # Errors
/// [`NamedAskError`], at the deadline at the latest.
///
/// # Cancel safety
/// A question that is dropped before it was sent is not sent; one that was sent may be read, and its reply is dropped.
#[must_use = "a question is asked when it is awaited"]
pub struct NamedAsk<'a, M, R, F> {
    registry: &'a Registry,
    name: Name<M>,
    message: F,
    timeout: Duration,
    reply: PhantomData<fn() -> R>,
}

impl<M, R, F> NamedAsk<'_, M, R, F> {
    /// Sets how long to wait, as [`Ask::timeout`](crate::Ask::timeout) does.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }
}

impl<M, R, F> fmt::Debug for NamedAsk<'_, M, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedAsk").field("name", &self.name).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl<'a, M, R, F> IntoFuture for NamedAsk<'a, M, R, F>
where
    M: Message,
    R: Message,
    F: FnOnce(ReplyTo<R>) -> M + Send + 'a,
{
    type Output = Result<R, NamedAskError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { registry, name, message, timeout, .. } = self;
            let address = registry.find::<M>(name.name())?;
            Ok(address.ask(message).timeout(timeout).await?)
        })
    }
}
