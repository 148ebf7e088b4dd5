//! The mailboxes of one node.

use std::any::Any;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};

use tokio::sync::{Semaphore, TryAcquireError};

use super::delivery::Letter;
use super::lock;
use crate::codec::DecodeError;
use crate::id::{BySerial, NodeId, Pid};
use crate::trace::Trace;
use crate::wire::services::Text;

/// A message that its mailbox could not read, as [`Builder::on_refused`](crate::Builder::on_refused) is told. The link and
/// the mailbox live on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedMessage {
    /// The mailbox that it came to.
    pub mailbox: Pid,
    /// The node that sent it.
    pub from: NodeId,
    /// The tag that it came with.
    pub tag: String,
    /// The version that it came with.
    pub version: u32,
    /// Why it could not be read.
    pub error: DecodeError,
}

/// Whom to tell of refused messages.
#[derive(Clone)]
pub(crate) struct RefusedHook(pub(crate) Arc<dyn Fn(&RefusedMessage) + Send + Sync>);

impl RefusedHook {
    pub(crate) fn call(&self, refused: &RefusedMessage) {
        (self.0)(refused);
    }
}

impl std::fmt::Debug for RefusedHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RefusedHook")
    }
}

/// How a mailbox ends, as those are told who watch it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By a panic, if the task that drops it panics.
    #[default]
    Closed,
    /// Its owner panicked, and the panic was contained.
    Panicked,
    /// For a reason that its owner gave.
    Failed(Text),
}

/// A mailbox as links see it.
pub(crate) trait Inbox: Send + Sync {
    /// Takes all letters, in order. Credit has bounded them.
    fn deliver(&self, letters: &mut Vec<Letter>);
    /// The node shuts down: nothing more will come.
    fn close(&self);
    /// How many messages are unread, and how many of this node itself ever came.
    fn counts(&self) -> (u64, u64);
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// The open mailboxes of a node, by serial. Serials are never used twice.
#[derive(Default)]
pub(crate) struct Mailboxes {
    open: RwLock<BySerial<Open>>,
    /// Tracked ones that are closed, of which the node task is about to hear.
    closing: Mutex<BTreeSet<u64>>,
    last: AtomicU64,
    /// Messages between mailboxes of this node, of mailboxes that are closed.
    local: AtomicU64,
    is_closed: std::sync::atomic::AtomicBool,
}

/// What the open mailboxes hold, and what has passed through all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) open: usize,
    pub(crate) unread: u64,
    /// Messages of this node to itself.
    pub(crate) local: u64,
}

struct Open {
    inbox: Arc<dyn Inbox>,
    /// The node task is to be told when it closes.
    is_tracked: bool,
}

impl std::fmt::Debug for Mailboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mailboxes")
    }
}

impl Mailboxes {
    /// Opens a mailbox that holds so many messages, and so many bytes, of senders on this node.
    pub(crate) fn open<T: Send + 'static>(&self, messages: usize, bytes: usize) -> (u64, Arc<Queue<T>>) {
        let serial = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let queue = Arc::new(Queue {
            state: Mutex::new(State { entries: VecDeque::new(), reader: None, is_closed: false, arrived: 0, local: 0 }),
            read: Apart::default(),
            room: Semaphore::new(bytes),
            bytes,
            least: bytes / messages,
        });
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(serial, Open { inbox: queue.clone(), is_tracked: false });
        drop(open);
        // A node that has shut down opens only closed mailboxes.
        if self.is_closed.load(Ordering::Acquire) {
            queue.close();
        }
        (serial, queue)
    }

    /// Whoever closes this mailbox is to tell the node task. False when it is closed.
    pub(crate) fn track(&self, serial: u64) -> bool {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.get_mut(&serial).map(|open| open.is_tracked = true).is_some()
    }

    pub(crate) fn inbox(&self, serial: u64) -> Option<Arc<dyn Inbox>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&serial).map(|open| open.inbox.clone())
    }

    /// Forgets a mailbox; whether the node task is to be told.
    pub(crate) fn remove(&self, serial: u64) -> bool {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let removed = open.remove(&serial);
        if let Some(Open { inbox, .. }) = &removed {
            self.local.fetch_add(inbox.counts().1, Ordering::Relaxed);
        }
        let is_tracked = removed.is_some_and(|open| open.is_tracked);
        if is_tracked {
            // Under the lock of the open ones: it is never in neither.
            lock(&self.closing).insert(serial);
        }
        is_tracked
    }

    /// Whether the node task is about to hear how this mailbox closed.
    pub(crate) fn is_closing(&self, serial: u64) -> bool {
        lock(&self.closing).contains(&serial)
    }

    /// The node task has heard of it.
    pub(crate) fn closed(&self, serial: u64) {
        lock(&self.closing).remove(&serial);
    }

    /// What all hold. It looks at each.
    pub(crate) fn holding(&self) -> Holding {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let local = self.local.load(Ordering::Relaxed);
        let none = Holding { open: open.len(), unread: 0, local };
        open.values().map(|open| open.inbox.counts()).fold(none, |sum, (unread, local)| Holding {
            unread: sum.unread + unread,
            local: sum.local + local,
            ..sum
        })
    }

    pub(crate) fn close_all(&self) {
        self.is_closed.store(true, Ordering::Release);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let inboxes: Vec<_> = open.values().map(|open| open.inbox.clone()).collect();
        drop(open);
        inboxes.iter().for_each(|inbox| inbox.close());
    }
}

/// What one mailbox holds.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    /// In bytes, for senders on this node; remote ones are bounded by credit.
    room: Semaphore,
    bytes: usize,
    /// What a message takes of the room at least, so that their number is bounded too.
    least: usize,
    /// How many messages were read. Written by the one reader, with each.
    read: Apart<AtomicU64>,
}

/// On a cache line of its own: what the reader writes does not slow down who sends.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Apart<T>(T);

#[derive(Debug)]
struct State<T> {
    entries: VecDeque<Entry<T>>,
    reader: Option<Waker>,
    is_closed: bool,
    /// Messages that ever came, and those of this node itself.
    arrived: u64,
    local: u64,
}

/// A message in its queue.
#[derive(Debug)]
pub(crate) enum Entry<T> {
    /// From this node, as a value.
    Local {
        message: T,
        trace: Option<Box<Trace>>,
        /// What it takes of the room.
        room: u32,
    },
    /// From a peer, as bytes; one or more.
    Letter(Letter),
    /// The notice of a monitor.
    Notice(Notice<T>),
}

/// Makes a message of a notice, when it is read. Nothing when nobody wants it any more.
pub(crate) struct Notice<T>(Mutex<Make<T>>);

type Make<T> = Box<dyn FnOnce() -> Option<T> + Send>;

impl<T> Notice<T> {
    pub(crate) fn new(make: impl FnOnce() -> Option<T> + Send + 'static) -> Self {
        // Never locked: it lets threads share a mailbox whatever the closure holds.
        Self(Mutex::new(Box::new(make)))
    }

    pub(crate) fn into_message(self) -> Option<T> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)()
    }
}

impl<T> std::fmt::Debug for Notice<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notice")
    }
}

/// Why a message of this node did not fit.
#[derive(Debug)]
pub(crate) enum LocalRefused<T> {
    Full(T),
    Closed(T),
}

impl<T: Send + 'static> Queue<T> {
    /// Waits for room, then delivers the value.
    pub(crate) async fn push(&self, value: T, size: usize, trace: Option<Trace>) -> Result<(), LocalRefused<T>> {
        let room = self.room_for(size);
        match self.room.acquire_many(room).await {
            Ok(permit) => {
                permit.forget();
                self.push_entry(value, room, trace)
            }
            Err(_) => Err(LocalRefused::Closed(value)),
        }
    }

    pub(crate) fn try_push(&self, value: T, size: usize, trace: Option<Trace>) -> Result<(), LocalRefused<T>> {
        let room = self.room_for(size);
        match self.room.try_acquire_many(room) {
            Ok(permit) => {
                permit.forget();
                self.push_entry(value, room, trace)
            }
            Err(TryAcquireError::NoPermits) => Err(LocalRefused::Full(value)),
            Err(TryAcquireError::Closed) => Err(LocalRefused::Closed(value)),
        }
    }

    /// A message larger than all room takes all of it.
    fn room_for(&self, size: usize) -> u32 {
        size.clamp(self.least, self.bytes) as u32
    }

    fn push_entry(&self, value: T, room: u32, trace: Option<Trace>) -> Result<(), LocalRefused<T>> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(LocalRefused::Closed(value));
        }
        state.arrived += 1;
        state.local += 1;
        state.entries.push_back(Entry::Local { message: value, trace: trace.map(Box::new), room });
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    /// Delivers a notice, which takes no room: each was asked for.
    pub(crate) fn push_notice(&self, notice: Notice<T>) {
        let mut state = lock(&self.state);
        if state.is_closed {
            return;
        }
        state.arrived += 1;
        state.entries.push_back(Entry::Notice(notice));
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Takes all that has come into `taken`, which is empty, or waits. False once the queue is closed and empty.
    #[expect(clippy::needless_pass_by_ref_mut, reason = "the shape of every poll")]
    pub(crate) fn poll_take(&self, taken: &mut VecDeque<Entry<T>>, context: &mut Context<'_>) -> Poll<bool> {
        let mut state = lock(&self.state);
        if !state.entries.is_empty() {
            std::mem::swap(&mut state.entries, taken);
            return Poll::Ready(true);
        }
        if state.is_closed {
            return Poll::Ready(false);
        }
        if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
            state.reader = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Takes all that has come into `taken`, which is empty. False once the queue is closed and empty.
    pub(crate) fn try_take(&self, taken: &mut VecDeque<Entry<T>>) -> bool {
        let mut state = lock(&self.state);
        std::mem::swap(&mut state.entries, taken);
        !(state.is_closed && taken.is_empty())
    }

    /// A message, or a notice, was read. There is one reader.
    pub(crate) fn count_read(&self) {
        let read = &self.read.0;
        read.store(read.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Messages of this node that took so much room have been read.
    pub(crate) fn make_room(&self, room: usize) {
        self.room.add_permits(room);
    }

    /// Nobody reads any more: what is left is thrown away.
    pub(crate) fn abandon(&self) {
        self.room.close();
        let mut state = lock(&self.state);
        state.is_closed = true;
        let left = std::mem::take(&mut state.entries);
        drop(state);
        drop(left);
    }
}

impl<T: Send + 'static> Inbox for Queue<T> {
    fn deliver(&self, letters: &mut Vec<Letter>) {
        if letters.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        state.arrived += letters.iter().map(Letter::messages).sum::<u64>();
        state.entries.extend(letters.drain(..).map(Entry::Letter));
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn close(&self) {
        self.room.close();
        let mut state = lock(&self.state);
        state.is_closed = true;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn counts(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.arrived.saturating_sub(self.read.0.load(Ordering::Relaxed)), state.local)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
