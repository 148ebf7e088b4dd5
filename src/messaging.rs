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
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::Instant;

use crate::codec::{self, DecodeError};
use crate::correlation::CorrelationId;
use crate::driver::delivery::{Letter, cost};
use crate::driver::mailboxes::{Ending, Entry, LocalRefused, Queue, RefusedHook, RefusedMessage};
use crate::driver::session::{Body, Session};
use crate::driver::waiting::{Refused, Taken};
use crate::driver::{Shared, decoding_node, inside, lock};
use crate::error::{ConnectError, Effect, HasEffect, RecvError, SendError};
use crate::id::{NodeId, Pid};
use crate::message::{Message, check, schema};
use crate::rpc::inherited;
use crate::trace::Trace;
use crate::wire::services::monitor;
use crate::wire::{Schema, Unreadable};

mod refused;

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
///
/// Beside other sources it is read by `tokio::select!`. A branch that loses is dropped, and a receive that is dropped has
/// taken no message; so nothing is lost, as long as the work on a message is in the branch's body and not in the future that
/// is selected:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::time::Duration;
/// use distribute::{Cookie, Node};
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let mut numbers = node.mailbox::<u64>();
/// let mut texts = node.mailbox::<String>();
/// numbers.address().send(2).await?;
/// numbers.address().send(4).await?;
/// texts.address().send("four".into()).await?;
///
/// let mut tick = tokio::time::interval(Duration::from_millis(10));
/// let (mut total, mut read) = (0, Vec::new());
/// while total < 6 || read.is_empty() {
///     tokio::select! {
///         Some(number) = numbers.recv() => total += number,
///         Some(text) = texts.recv() => read.push(text),
///         _ = tick.tick() => println!("still waiting"),
///         else => break, // both mailboxes have ended
///     }
/// }
/// assert_eq!((total, read), (6, vec!["four".to_owned()]));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[doc(alias = "receive")]
#[doc(alias = "Subject")]
pub struct Mailbox<M: Message> {
    serial: u64,
    queue: Arc<Queue<M>>,
    shared: Arc<Shared>,
    /// Taken from the queue at one time, to be read without its lock.
    taken: VecDeque<Entry<M>>,
    /// The one that is being read.
    letter: Option<Letter>,
    /// A type whose messages can be read here.
    readable: Option<Arc<Schema>>,
    owed: Owed,
    refused: u64,
    on_refused: Option<RefusedHook>,
    /// What its watchers are told when it is dropped.
    ending: Ending,
}

/// Room and credit of messages that were read, to be given back together.
#[derive(Default)]
struct Owed {
    /// Of messages of this node.
    room: usize,
    /// Of messages of one session.
    cost: u64,
    to: Option<Arc<Session>>,
}

impl<M: Message> Mailbox<M> {
    pub(crate) fn open(shared: &Arc<Shared>) -> Self {
        let (serial, queue) = shared.mailboxes.open(shared.config.mailbox_local, shared.config.mailbox_local_bytes);
        Self {
            serial,
            queue,
            shared: shared.clone(),
            taken: VecDeque::new(),
            letter: None,
            readable: None,
            owed: Owed::default(),
            refused: 0,
            on_refused: None,
            ending: Ending::Closed,
        }
    }

    /// Returns the mailbox's identity.
    pub fn pid(&self) -> Pid {
        Pid::new(self.shared.id(), self.serial)
    }

    /// The node that it is of.
    pub(crate) fn home(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether it is a mailbox of that node.
    pub(crate) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Returns an address of this mailbox, valid from any node.
    pub fn address(&self) -> Address<M> {
        Address::bound(self.pid(), &self.shared)
    }

    /// Waits for the next message. `None` once all that had arrived is read and the node is shut down, or the mailbox was
    /// closed because it lost its name ([`OnLoss::CloseMailbox`](crate::OnLoss::CloseMailbox)).
    ///
    /// # Cancel safety
    /// A receive that is dropped takes no message.
    pub async fn recv(&mut self) -> Option<M> {
        poll_fn(|context| self.poll_read(context, Self::message)).await
    }

    /// As [`recv`](Self::recv), with who sent the message and the trace that it belongs to.
    ///
    /// # Cancel safety
    /// A receive that is dropped takes no message.
    pub async fn recv_full(&mut self) -> Option<Received<M>> {
        poll_fn(|context| self.poll_read(context, Self::received)).await
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
            if let Some(message) = self.read(Self::message) {
                return Ok(message);
            }
            if !self.queue.try_take(&mut self.taken) {
                return Err(RecvError::Closed);
            }
            if self.taken.is_empty() {
                return Err(RecvError::Empty);
            }
        }
    }

    /// Returns how many messages this mailbox has skipped because they could not be decoded.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Closes it, and tells those who watch it that it failed, and why: [`Fate::Failed`](crate::Fate::Failed), with so much
    /// of the reason as fits [`REASON_MAX`](crate::REASON_MAX) bytes. Otherwise it is as dropping it.
    pub fn fail(mut self, reason: impl fmt::Display) {
        self.ending = Ending::Failed(monitor::reason(&reason.to_string()));
    }

    pub(crate) fn set_ending(&mut self, ending: Ending) {
        self.ending = ending;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<M>> {
        &self.queue
    }

    fn poll_read<T>(
        &mut self,
        context: &mut Context<'_>,
        open: impl Fn(&mut Self, Opened<'_, M>) -> Option<T>,
    ) -> Poll<Option<T>> {
        loop {
            if let Some(message) = self.read(&open) {
                return Poll::Ready(Some(message));
            }
            if !std::task::ready!(self.queue.poll_take(&mut self.taken, context)) {
                return Poll::Ready(None);
            }
        }
    }

    /// The next readable message of those taken.
    fn read<T>(&mut self, open: impl Fn(&mut Self, Opened<'_, M>) -> Option<T>) -> Option<T> {
        loop {
            if let Some(mut letter) = self.letter.take() {
                while let Some(body) = letter.next() {
                    self.queue.count_read();
                    self.owe(&letter, body.len());
                    // A decoder or a hook that panics takes none of what came with the message along.
                    let opened = catch_unwind(AssertUnwindSafe(|| open(self, Opened::Body(&letter, body))));
                    if let Ok(None) = opened {
                        continue;
                    }
                    self.letter = Some(letter).filter(|letter| !letter.is_read());
                    return opened.unwrap_or_else(|panic| resume_unwind(panic));
                }
            }
            match self.taken.pop_front()? {
                Entry::Letter(letter) => self.letter = Some(letter),
                Entry::Local { message, trace, room } => {
                    self.queue.count_read();
                    self.owed.room += room as usize;
                    if self.taken.is_empty() || self.owed.room >= self.shared.config.mailbox_local_bytes / OWED_PART {
                        self.pay();
                    }
                    return open(self, Opened::Local(message, trace));
                }
                Entry::Notice(notice) => {
                    self.queue.count_read();
                    if self.taken.is_empty() {
                        self.pay();
                    }
                    if let Some(message) = notice.into_message() {
                        return open(self, Opened::Local(message, None));
                    }
                }
            }
        }
    }

    /// Gives credit back: a good piece at a time, and all with the last message that is there, so that nobody waits for
    /// what was read.
    fn owe(&mut self, letter: &Letter, body: usize) {
        if self.owed.to.as_ref().is_none_or(|to| !Arc::ptr_eq(to, &letter.from)) {
            self.pay();
            self.owed.to = Some(letter.from.clone());
        }
        self.owed.cost += cost(body);
        if self.owed.cost >= OWED_COST || (letter.is_read() && self.taken.is_empty()) {
            self.pay();
        }
    }

    fn pay(&mut self) {
        let Owed { room, cost, to } = std::mem::take(&mut self.owed);
        if room > 0 {
            self.queue.make_room(room);
        }
        if let Some(session) = to {
            session.consumed(self.serial, cost);
        }
    }

    fn message(&mut self, opened: Opened<'_, M>) -> Option<M> {
        match opened {
            Opened::Local(message, _) => Some(message),
            Opened::Body(letter, body) => self.decode(letter, body).ok(),
        }
    }

    fn received(&mut self, opened: Opened<'_, M>) -> Option<Received<M>> {
        self.received_or_refused(opened).ok()
    }

    fn received_or_refused(&mut self, opened: Opened<'_, M>) -> Result<Received<M>, Box<RefusedMessage>> {
        let (message, from, trace) = match opened {
            Opened::Local(message, trace) => (message, self.shared.id(), trace.map(|trace| *trace)),
            Opened::Body(letter, body) => {
                (self.decode(letter, body)?, letter.from.peer.clone(), letter.trace.as_deref().copied())
            }
        };
        Ok(Received { message, from, trace })
    }

    fn decode(&mut self, letter: &Letter, body: Bytes) -> Result<M, Box<RefusedMessage>> {
        let Letter { schema, from, .. } = letter;
        // Whoever keeps the bytes is not to keep the whole run.
        let body = if letter.is_run() && schema.codec == codec::RAW { Bytes::copy_from_slice(&body) } else { body };
        // Types of one sender are compared once, not with each message.
        let is_known = self.readable.as_ref().is_some_and(|readable| Arc::ptr_eq(readable, schema));
        let decoded = if is_known { Ok(()) } else { check::<M>(schema) }
            .and_then(|()| inside(&self.shared, || M::decode(&body, schema.version)));
        let error = match decoded {
            Ok(message) => {
                if !is_known {
                    self.readable = Some(schema.clone());
                }
                return Ok(message);
            }
            Err(error) => error,
        };
        self.refused += 1;
        let reason = match &error {
            DecodeError::Tag { .. } => Unreadable::Tag,
            DecodeError::Version { .. } => Unreadable::Version,
            _ => Unreadable::Malformed,
        };
        from.refused(reason);
        self.shared.journal.message_refused(self.serial, &from.peer, &schema.tag, schema.version, reason);
        let refused = RefusedMessage {
            mailbox: self.pid(),
            from: from.peer.clone(),
            tag: schema.tag.clone(),
            version: schema.version,
            error,
        };
        for hook in self.on_refused.iter().chain(&self.shared.on_refused) {
            hook.call(&refused);
        }
        Err(Box::new(refused))
    }
}

/// A message about to be read.
enum Opened<'a, M> {
    Local(M, Option<Box<Trace>>),
    Body(&'a Letter, Bytes),
}

/// After this part of the room for messages of this node, or so much read of a peer, senders are told that there is room.
const OWED_PART: usize = 16;
const OWED_COST: u64 = 16 * 1024;

/// A message with what is known of its way, from [`Mailbox::recv_full`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// The node that sent it; this one for messages of its own.
    pub from: NodeId,
    /// The trace that the sender was in.
    pub trace: Option<Trace>,
}

impl<M> Received<M> {
    /// Returns the id of the trace that the sender was in.
    pub fn correlation_id(&self) -> Option<CorrelationId> {
        self.trace.map(CorrelationId::from)
    }

    /// Runs a future in the trace that the sender was in, so that what it sends and calls carries it on; in that of this
    /// task if the sender was in none.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Cookie, CorrelationId, Node};
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// let (mut first, mut second) = (node.mailbox::<u64>(), node.mailbox::<u64>());
    /// let order = CorrelationId::generate();
    /// order.scope(async { first.address().send(7).await }).await?;
    ///
    /// let received = first.recv_full().await.expect("the node runs");
    /// received.scope(second.address().send(8)).await?;
    /// assert_eq!(second.recv_full().await.and_then(|received| received.correlation_id()), Some(order));
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub async fn scope<F: Future>(&self, future: F) -> F::Output {
        match self.trace {
            Some(trace) => trace.scope(future).await,
            None => future.await,
        }
    }
}

/// Messages are moved in and out, never pinned.
impl<M: Message> Unpin for Mailbox<M> {}

impl<M: Message> futures_core::Stream for Mailbox<M> {
    type Item = M;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<M>> {
        self.get_mut().poll_read(context, Self::message)
    }
}

impl<M: Message> Drop for Mailbox<M> {
    fn drop(&mut self) {
        self.shared.unwatch_all(self.serial);
        self.shared.close_mailbox(self.serial, std::mem::take(&mut self.ending));
        self.queue.abandon();
    }
}

impl<M: Message> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("pid", &self.pid()).field("tag", &M::tag()).finish()
    }
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

impl SentIn {
    fn offer(&self, mailbox: u64, body: Body<'_>, wait: bool) -> Result<Result<Taken, Refused>, SendError> {
        check_size(body.len(), self.session.message_max)?;
        Ok(self.session.offer(mailbox, self.schema, inherited().trace, body, wait))
    }
}

/// What a message takes in a mailbox of its own node, in bytes.
pub(crate) fn footprint<M: Message>(message: &M) -> usize {
    size_of::<M>() + message.heap_size()
}

fn check_size(size: usize, max: usize) -> Result<(), SendError> {
    if size > max { Err(SendError::TooLarge { size, max }) } else { Ok(()) }
}

thread_local! {
    /// Where small messages are encoded, so that they cost no allocation.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer that grew beyond this for one message is not kept for the next.
const SCRATCH_MAX: usize = 64 * 1024;

/// Encodes a message, and does something with the bytes.
fn with_body<M: Message, T>(message: &M, then: impl FnOnce(Body<'_>) -> Result<T, SendError>) -> Result<T, SendError> {
    if let Some(body) = message.shared_body() {
        return then(Body::Owned(body));
    }
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let encoded = message.encode(&mut scratch).map_err(|error| SendError::Encode(error.to_string()));
    if encoded.is_ok() && scratch.len() > SCRATCH_MAX {
        return then(Body::Owned(scratch.into()));
    }
    let result = encoded.and_then(|()| then(Body::Borrowed(&scratch)));
    SCRATCH.set(scratch);
    result
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
        // Without a deadline it is sent, or not for a reason.
        self.send_by(message, None).await.map(drop)
    }

    /// As [`send`](Self::send), but waits until then at most: `None` when the message was not sent in time.
    pub(crate) async fn send_by(&self, message: M, deadline: Option<Instant>) -> Result<Option<()>, SendError> {
        let shared = self.shared.as_ref().ok_or(SendError::Unbound)?;
        // An address that has sent in a session is of another node: no need to look.
        if lock(&self.sent_in).is_none() && shared.is_own(self.node()) {
            let size = footprint(&message);
            let queue = self.local(shared)?;
            return match until(deadline, queue.push(message, size, inherited().trace)).await {
                None => Ok(None),
                Some(Ok(())) => Ok(Some(())),
                Some(Err(LocalRefused::Full(_) | LocalRefused::Closed(_))) => Err(self.closed(shared)),
            };
        }
        let taken = with_body(&message, |body| {
            check_size(body.len(), shared.config.message_max)?;
            match self.offer_again(shared, body.clone(), true)? {
                Some(taken) => Ok(Ok(taken)),
                None => Ok(Err(body.into_owned())),
            }
        })?;
        drop(message);
        let taken = match taken {
            Ok(taken) => taken,
            Err(body) => {
                let connecting = shared.connect(self.node().name(), false);
                let Some(session) = until(deadline, connecting).await else { return Ok(None) };
                let sent_in = self.begin(session.map_err(|error| self.not_connected(error))?)?;
                self.offer_first(sent_in, Body::Owned(body), true)?
            }
        };
        let mut waiting = match taken {
            Taken::Accepted => return Ok(Some(())),
            Taken::Waits(waiting) => waiting,
        };
        let outcome = match until(deadline, waiting.accepted()).await {
            Some(outcome) => outcome,
            None if waiting.take_back() => return Ok(None),
            None => waiting.accepted().await,
        };
        outcome.map(Some).map_err(|refused| self.refused(waiting.session(), refused))
    }

    /// Sends all messages, in order, as [`send`](Self::send) does each.
    ///
    /// # Errors
    /// [`SendAllError`] tells how many were accepted, and why the next one was not; the rest was not sent.
    ///
    /// # Cancel safety
    /// What was accepted before the drop is sent, and nothing more.
    pub async fn send_all(&self, messages: impl IntoIterator<Item = M>) -> Result<(), SendAllError> {
        for (accepted, message) in messages.into_iter().enumerate() {
            self.send(message).await.map_err(|reason| SendAllError { accepted, reason })?;
        }
        Ok(())
    }

    /// Sends a message if that needs no waiting.
    ///
    /// A message above the present credit is refused as [`SendError::Full`], and the credit is asked for, so a later try may
    /// succeed; while large messages of others wait for theirs it may not, and [`send`](Self::send) waits its turn.
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
            let size = footprint(&message);
            return queue.try_push(message, size, inherited().trace).map_err(|refused| match refused {
                LocalRefused::Full(message) => TrySendError { message, reason: SendError::Full },
                LocalRefused::Closed(message) => TrySendError { message, reason: self.closed(shared) },
            });
        }
        let attempt = with_body(&message, |body| {
            check_size(body.len(), shared.config.message_max)?;
            self.offer_again(shared, body, false)
        });
        match attempt {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                shared.want(self.node().name());
                let reason = SendError::NotConnected(self.node().name().clone(), None);
                Err(TrySendError { message, reason })
            }
            Err(reason) => Err(TrySendError { message, reason }),
        }
    }

    fn local(&self, shared: &Shared) -> Result<Arc<Queue<M>>, SendError> {
        let inbox = shared.mailboxes.inbox(self.pid.serial()).ok_or_else(|| self.closed(shared))?;
        inbox.as_any().downcast().map_err(|_| SendError::WrongType(self.pid.clone()))
    }

    fn closed(&self, shared: &Shared) -> SendError {
        if shared.is_closing() { SendError::Shutdown } else { SendError::MailboxClosed(self.pid.clone()) }
    }

    /// Offers in the session of the last send, or in one that there is; `None` without one.
    fn offer_again(&self, shared: &Shared, body: Body<'_>, wait: bool) -> Result<Option<Taken>, SendError> {
        let memo = lock(&self.sent_in);
        if let Some(sent_in) = &*memo {
            let offered = sent_in.offer(self.pid.serial(), body, wait)?;
            let offered = offered.map_err(|refused| (sent_in.session.clone(), refused));
            drop(memo);
            return offered.map(Some).map_err(|(session, refused)| self.refused(&session, refused));
        }
        drop(memo);
        if shared.id().name() == self.node().name() {
            return Err(self.not_connected(ConnectError::Superseded(self.node().clone())));
        }
        match shared.session(self.node().name()) {
            Some(session) => self.offer_first(self.begin(session)?, body, wait).map(Some),
            None if shared.is_closing() => Err(SendError::Shutdown),
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

    /// Offers in a session that this address has not sent in.
    fn offer_first(&self, sent_in: SentIn, body: Body<'_>, wait: bool) -> Result<Taken, SendError> {
        // Remembered before anybody else sends by this address.
        let mut memo = lock(&self.sent_in);
        match sent_in.offer(self.pid.serial(), body, wait)? {
            Ok(taken) => {
                *memo = Some(sent_in);
                Ok(taken)
            }
            Err(refused) => {
                drop(memo);
                Err(self.refused(&sent_in.session, refused))
            }
        }
    }

    fn refused(&self, session: &Arc<Session>, refused: Refused) -> SendError {
        match refused {
            Refused::Full => SendError::Full,
            Refused::MailboxClosed => SendError::MailboxClosed(self.pid.clone()),
            Refused::TooManyMailboxes => SendError::TooManyMailboxes(self.node().name().clone()),
            Refused::SessionEnded => {
                // Another sender may have heard of it before, and sent in the next one since.
                lock(&self.sent_in).take_if(|sent_in| Arc::ptr_eq(&sent_in.session, session));
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

/// Waits for it until then, if there is an end to it.
async fn until<T>(deadline: Option<Instant>, what: impl Future<Output = T>) -> Option<T> {
    match deadline {
        None => Some(what.await),
        Some(deadline) => tokio::time::timeout_at(deadline, what).await.ok(),
    }
}

/// Why [`Address::send_all`] stopped, and after how many messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only {accepted} messages were accepted")]
#[non_exhaustive]
pub struct SendAllError {
    /// How many messages were accepted, before the one that was not.
    pub accepted: usize,
    /// Why that one was not.
    #[source]
    pub reason: SendError,
}

impl SendAllError {
    /// Tells whether something was sent: [`Effect::NotDone`] when nothing was accepted, else [`Effect::Unknown`].
    pub fn effect(&self) -> Effect {
        if self.accepted == 0 { Effect::NotDone } else { Effect::Unknown }
    }
}

impl HasEffect for SendAllError {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        self.reason.is_lasting()
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

impl<M> HasEffect for TrySendError<M> {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        self.reason.is_lasting()
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

impl<M: Message> From<&Address<M>> for Pid {
    fn from(address: &Address<M>) -> Self {
        address.pid.clone()
    }
}

impl<M: Message> From<&Mailbox<M>> for Pid {
    fn from(mailbox: &Mailbox<M>) -> Self {
        mailbox.pid()
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
        let shared = decoding_node();
        Ok(Self { pid, shared, sent_in: Mutex::new(None), message: PhantomData })
    }
}
