//! Typed messages between mailboxes.
//!
//! A [`Mailbox`] receives; an [`Address`] sends to it, from any node. Addresses are values: they travel inside messages
//! and work wherever they arrive.
//!
//! **Order and loss.** What one node sends to one mailbox arrives in the order of acceptance, at most once, and without a
//! gap for as long as the session between the two nodes lasts. A session that ends says so: the next send of every
//! address that had sent in it returns [`SendError::SessionEnded`], because messages before may be lost.
//!
//! **Back-pressure.** Each sending node has a credit of bytes at each mailbox, which grows as the mailbox is read. Without
//! credit [`Address::send`] waits and [`Address::try_send`] returns [`SendError::Full`]. A mailbox that nobody reads holds
//! up nobody else.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::driver::mailboxes::{Entry, LocalRefused, Queue};
use crate::driver::session::{Letter, Refused, Session, Taken};
use crate::driver::{Shared, lock};
use crate::error::{ConnectError, Effect, RecvError, SendError};
use crate::id::{NodeId, Pid};
use crate::message::{self, Message, decode, schema};

impl<M: Message> Message for Address<M> {
    const TAG: &'static str = "address";
    const VERSION: u32 = 1;

    fn tag() -> Cow<'static, str> {
        Cow::Owned(format!("address<{}>", M::tag()))
    }
}

/// Where messages of one type arrive.
///
/// Made by [`Node::mailbox`](crate::Node::mailbox). Dropping it closes it: senders are told, and what was not read is
/// thrown away. Also a [`Stream`](futures_core::Stream).
///
/// What cannot be decoded (another type, a version that cannot be read, malformed bytes) is skipped, counted
/// ([`Mailbox::refused`]) and logged; the link and the mailbox live on.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Node};
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let mut numbers = node.mailbox::<u64>();
/// let there = numbers.address();
/// there.send(42).await?;
/// assert_eq!(numbers.recv().await, Some(42));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[doc(alias = "receive")]
#[doc(alias = "Subject")]
pub struct Mailbox<M: Message> {
    serial: u64,
    queue: Arc<Queue<M>>,
    shared: Arc<Shared>,
    refused: u64,
}

impl<M: Message> Mailbox<M> {
    pub(crate) fn open(shared: &Arc<Shared>) -> Self {
        let (serial, queue) = shared.mailboxes.open(shared.config.mailbox_local);
        Self { serial, queue, shared: shared.clone(), refused: 0 }
    }

    /// Returns the mailbox's identity.
    pub fn pid(&self) -> Pid {
        Pid::new(self.shared.id(), self.serial)
    }

    /// Returns an address of this mailbox, valid from any node.
    pub fn address(&self) -> Address<M> {
        Address::bound(self.pid(), &self.shared)
    }

    /// Waits for the next message. `None` once the node is shut down and all that had arrived is read.
    ///
    /// # Cancel safety
    /// A receive that is dropped takes no message.
    pub async fn recv(&mut self) -> Option<M> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// Waits for the next message, for so long at most.
    ///
    /// # Errors
    /// [`RecvError::Timeout`], or [`RecvError::Closed`] once the node is shut down and all is read.
    ///
    /// # Cancel safety
    /// A receive that is dropped takes no message.
    pub async fn recv_timeout(&mut self, patience: Duration) -> Result<M, RecvError> {
        match tokio::time::timeout(patience, self.recv()).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(RecvError::Closed),
            Err(_) => Err(RecvError::Timeout),
        }
    }

    /// Takes a message that has arrived.
    ///
    /// # Errors
    /// [`RecvError::Empty`] when there is none, [`RecvError::Closed`] once the node is shut down and all is read.
    pub fn try_recv(&mut self) -> Result<M, RecvError> {
        loop {
            match self.queue.try_pop() {
                (Some(entry), _) => {
                    if let Some(message) = self.open_entry(entry) {
                        return Ok(message);
                    }
                }
                (None, true) => return Err(RecvError::Closed),
                (None, false) => return Err(RecvError::Empty),
            }
        }
    }

    /// Returns how many messages this mailbox has skipped because they could not be decoded.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<M>> {
        loop {
            match std::task::ready!(self.queue.poll_pop(context)) {
                None => return Poll::Ready(None),
                Some(entry) => {
                    if let Some(message) = self.open_entry(entry) {
                        return Poll::Ready(Some(message));
                    }
                }
            }
        }
    }

    fn open_entry(&mut self, entry: Entry<M>) -> Option<M> {
        let Letter { schema, body, from, .. } = match entry {
            Entry::Local(message) => return Some(message),
            Entry::Letter(letter) => letter,
        };
        match inside(&self.shared, || decode(&schema, &body)) {
            Ok(message) => Some(message),
            Err(error) => {
                self.refused += 1;
                tracing::warn!(mailbox = self.serial, from = %from.peer, %error, "refused a message");
                None
            }
        }
    }
}

impl<M: Message> futures_core::Stream for Mailbox<M> {
    type Item = M;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<M>> {
        self.get_mut().poll_recv(context)
    }
}

impl<M: Message> Drop for Mailbox<M> {
    fn drop(&mut self) {
        self.shared.close_mailbox(self.serial);
        self.queue.abandon();
    }
}

impl<M: Message> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("pid", &self.pid()).field("tag", &M::tag()).finish()
    }
}

thread_local! {
    /// The node in which a value is being decoded, so that addresses in it are bound to that node.
    static INSIDE: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// Runs a decoder inside a node.
pub(crate) fn inside<T>(shared: &Arc<Shared>, decode: impl FnOnce() -> T) -> T {
    /// Restores what was there before, also when the decoder panics.
    struct Restore(Option<Arc<Shared>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            INSIDE.set(self.0.take());
        }
    }
    let _restore = Restore(INSIDE.replace(Some(shared.clone())));
    decode()
}

/// The node in which a value is being decoded, if it is decoded in one.
pub(crate) fn decoding_node() -> Option<Arc<Shared>> {
    INSIDE.with_borrow(Clone::clone)
}

/// Where to send messages of one type: a mailbox's [`Pid`] with its type.
///
/// Addresses are equal when their mailboxes are. They can be serialised: one that is decoded inside a node, in a message
/// or a call, is bound to that node; elsewhere (JSON, a file) it is unbound until [`Address::bind`].
///
/// An address remembers the session in which it sent last; each clone remembers its own.
#[doc(alias = "pid")]
pub struct Address<M: Message> {
    pid: Pid,
    shared: Option<Arc<Shared>>,
    sent_in: Mutex<Option<SentIn>>,
    message: PhantomData<fn(M)>,
}

/// The session of an address's last send.
#[derive(Clone)]
struct SentIn {
    session: Arc<Session>,
    schema: u64,
}

impl<M: Message> Address<M> {
    pub(crate) fn bound(pid: Pid, shared: &Arc<Shared>) -> Self {
        Self { pid, shared: Some(shared.clone()), sent_in: Mutex::new(None), message: PhantomData }
    }

    /// Returns the mailbox's identity.
    pub fn pid(&self) -> &Pid {
        &self.pid
    }

    /// The node that sends.
    pub(crate) fn sender(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    /// The session that it sent in last.
    pub(crate) fn last_session(&self) -> Option<Arc<Session>> {
        lock(&self.sent_in).as_ref().map(|sent_in| sent_in.session.clone())
    }

    /// Returns the node that the mailbox lives on.
    pub fn node(&self) -> &NodeId {
        self.pid.node()
    }

    /// Binds the address to a node, which sends from now on.
    #[must_use]
    pub fn bind(&self, node: &crate::Node) -> Self {
        Self::bound(self.pid.clone(), node.shared())
    }

    /// Sends a message: waits for a session, for credit and for room.
    ///
    /// Resolves when the message is accepted; it arrives unless the session ends before. To a mailbox of this node the
    /// value is moved, not encoded. Without a session the node is dialled, for the connect deadline at most; waiting for
    /// credit has no deadline of its own.
    ///
    /// # Errors
    /// [`SendError`]; the message was not sent, whatever the error.
    ///
    /// # Cancel safety
    /// A send that is dropped before it resolves has sent nothing, or has been accepted in that instant.
    #[doc(alias = "!")]
    pub async fn send(&self, message: M) -> Result<(), SendError> {
        let shared = self.shared.as_ref().ok_or(SendError::Unbound)?;
        if shared.is_own(self.node()) {
            return match self.local(shared)?.push(message).await {
                Ok(()) => Ok(()),
                Err(LocalRefused::Full(_) | LocalRefused::Closed(_)) => Err(self.closed(shared)),
            };
        }
        let body = self.encode(&message, shared.config.message_max)?;
        drop(message);
        let sent_in = match self.current(shared)? {
            Some(sent_in) => sent_in,
            None => {
                let session = shared.connect(self.node().name(), false).await;
                self.begin(session.map_err(|error| self.not_connected(error))?)?
            }
        };
        match self.offer(&sent_in, body, true)? {
            Taken::Accepted => Ok(()),
            Taken::Waits(waiting) => waiting.accepted().await.map_err(|refused| self.refused(refused)),
        }
    }

    /// Sends a message if that needs no waiting.
    ///
    /// Without a session this starts a dial and returns [`SendError::NotConnected`]; try again later.
    ///
    /// # Errors
    /// [`TrySendError`] gives the message back; it was not sent.
    pub fn try_send(&self, message: M) -> Result<(), TrySendError<M>> {
        let Some(shared) = &self.shared else { return Err(TrySendError { message, reason: SendError::Unbound }) };
        if shared.is_own(self.node()) {
            let queue = match self.local(shared) {
                Ok(queue) => queue,
                Err(reason) => return Err(TrySendError { message, reason }),
            };
            return queue.try_push(message).map_err(|refused| match refused {
                LocalRefused::Full(message) => TrySendError { message, reason: SendError::Full },
                LocalRefused::Closed(message) => TrySendError { message, reason: self.closed(shared) },
            });
        }
        let attempt = || {
            let body = self.encode(&message, shared.config.message_max)?;
            let Some(sent_in) = self.current(shared)? else {
                shared.want(self.node().name());
                return Err(SendError::NotConnected(self.node().name().clone(), None));
            };
            self.offer(&sent_in, body, false)
        };
        match attempt() {
            Ok(_) => Ok(()),
            Err(reason) => Err(TrySendError { message, reason }),
        }
    }

    fn local(&self, shared: &Shared) -> Result<Arc<Queue<M>>, SendError> {
        let inbox = shared.mailboxes.inbox(self.pid.serial()).ok_or_else(|| self.closed(shared))?;
        inbox.as_any().downcast().map_err(|_| SendError::WrongType(self.pid.clone()))
    }

    fn closed(&self, shared: &Shared) -> SendError {
        if shared.is_stopping() { SendError::Shutdown } else { SendError::MailboxClosed(self.pid.clone()) }
    }

    fn encode(&self, message: &M, max: usize) -> Result<Bytes, SendError> {
        let body = message::body(message).map_err(|error| SendError::Encode(error.to_string()))?;
        if body.len() > max {
            return Err(SendError::TooLarge { size: body.len(), max });
        }
        Ok(body)
    }

    /// The session to send in, if there is one; an error when the last one has ended.
    fn current(&self, shared: &Shared) -> Result<Option<SentIn>, SendError> {
        let mut sent_in = lock(&self.sent_in);
        if let Some(last) = &*sent_in {
            if last.session.is_ended() {
                let ended = SendError::SessionEnded(last.session.peer.clone());
                *sent_in = None;
                return Err(ended);
            }
            return Ok(Some(last.clone()));
        }
        drop(sent_in);
        if shared.id().name() == self.node().name() {
            return Err(self.not_connected(ConnectError::Superseded(self.node().clone())));
        }
        match shared.session(self.node().name()) {
            Some(session) => self.begin(session).map(Some),
            None if shared.is_stopping() => Err(SendError::Shutdown),
            None => Ok(None),
        }
    }

    /// Goes on in a session, if it is with the life that the mailbox lives in.
    fn begin(&self, session: Arc<Session>) -> Result<SentIn, SendError> {
        if session.peer != *self.node() {
            return Err(self.not_connected(ConnectError::Superseded(self.node().clone())));
        }
        let schema = session.declare(&schema::<M>()).ok_or(SendError::TooManyTypes)?;
        Ok(SentIn { schema, session })
    }

    fn offer(&self, sent_in: &SentIn, body: Bytes, wait: bool) -> Result<Taken, SendError> {
        let SentIn { session, schema } = sent_in;
        if body.len() > session.message_max {
            return Err(SendError::TooLarge { size: body.len(), max: session.message_max });
        }
        let taken = session.offer(self.pid.serial(), *schema, body, wait).map_err(|refused| self.refused(refused))?;
        let mut memo = lock(&self.sent_in);
        if memo.as_ref().is_none_or(|memo| memo.session.id != session.id) {
            *memo = Some(sent_in.clone());
        }
        Ok(taken)
    }

    fn refused(&self, refused: Refused) -> SendError {
        match refused {
            Refused::Full => SendError::Full,
            Refused::MailboxClosed => SendError::MailboxClosed(self.pid.clone()),
            Refused::SessionEnded => {
                *lock(&self.sent_in) = None;
                SendError::SessionEnded(self.node().clone())
            }
        }
    }

    fn not_connected(&self, error: ConnectError) -> SendError {
        match error {
            ConnectError::Shutdown => SendError::Shutdown,
            error => SendError::NotConnected(self.node().name().clone(), Some(error)),
        }
    }
}

/// A message that [`Address::try_send`] did not send, and why.
#[derive(thiserror::Error)]
#[error("not sent")]
pub struct TrySendError<M> {
    message: M,
    #[source]
    reason: SendError,
}

impl<M> TrySendError<M> {
    /// Returns why it was not sent.
    pub fn reason(&self) -> &SendError {
        &self.reason
    }

    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }

    /// Gives the message back.
    pub fn into_message(self) -> M {
        self.message
    }
}

impl<M> fmt::Debug for TrySendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrySendError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<M> From<TrySendError<M>> for crate::Error {
    fn from(error: TrySendError<M>) -> Self {
        Self::Send(error.reason)
    }
}

impl<M: Message> Clone for Address<M> {
    fn clone(&self) -> Self {
        let sent_in = Mutex::new(lock(&self.sent_in).clone());
        Self { pid: self.pid.clone(), shared: self.shared.clone(), sent_in, message: PhantomData }
    }
}

impl<M: Message> PartialEq for Address<M> {
    fn eq(&self, other: &Self) -> bool {
        self.pid == other.pid
    }
}

impl<M: Message> Eq for Address<M> {}

impl<M: Message> Hash for Address<M> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.pid.hash(state);
    }
}

impl<M: Message> fmt::Debug for Address<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.pid)
    }
}

impl<M: Message> Serialize for Address<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.pid.serialize(serializer)
    }
}

impl<'de, M: Message> Deserialize<'de> for Address<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pid = Pid::deserialize(deserializer)?;
        let shared = INSIDE.with_borrow(Clone::clone);
        Ok(Self { pid, shared, sent_in: Mutex::new(None), message: PhantomData })
    }
}
