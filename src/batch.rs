//! Many messages to many mailboxes.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{IntoFuture, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::LONGEST;
use crate::error::{BatchError, NamedSendError};
use crate::id::Pid;
use crate::key::KeyError;
use crate::message::Message;
use crate::messaging::Address;
use crate::registry::{Name, Registry};

/// Messages about to be sent to mailboxes, by their names or addresses: await it.
///
/// It resolves to a result for each message, in the order in which they were given: one that cannot be sent is no reason not
/// to send the others. Messages to one name or address are accepted in their order; those to different ones do not wait for
/// each other, so a full mailbox holds up its own only. An empty batch is done at once. By names it comes from
/// [`Registry::send_batch`], by addresses from [`SendBatch::new`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::time::Duration;
/// use distribute::{Cookie, LookupError, Name, NamedSendError, Node, SendBatch};
///
/// const LEFT: Name<u64> = Name::new("left");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.ready().await?;
/// let (left, right) = (node.mailbox(), node.mailbox());
/// node.registry().register(LEFT, &left).await?;
///
/// let sent = node.registry().send_batch([("left", 1_u64), ("nobody", 2)]).await;
/// assert_eq!(sent, [Ok(()), Err(NamedSendError::Lookup(LookupError::NotFound))]);
///
/// let (to_left, to_right) = (left.address(), right.address());
/// SendBatch::new([(&to_left, 3), (&to_right, 4)]).timeout(Duration::from_secs(1)).strict().await?;
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Cancel safety
/// What was accepted before the drop is sent, and nothing more.
#[must_use = "nothing is sent until it is awaited"]
pub struct SendBatch<'a, M: Message> {
    items: Vec<(Target<'a, M>, M)>,
    timeout: Option<Duration>,
}

enum Target<'a, M: Message> {
    Name(Registry, Name<M>),
    /// It cannot be one.
    NoName(KeyError),
    Address(&'a Address<M>),
}

impl<'a, M: Message> SendBatch<'a, M> {
    /// Messages to addresses.
    pub fn new(items: impl IntoIterator<Item = (&'a Address<M>, M)>) -> Self {
        let items = items.into_iter().map(|(address, message)| (Target::Address(address), message));
        Self { items: items.collect(), timeout: None }
    }

    /// Sets how long to wait for sessions and room, all together. Messages that are not accepted by then are not sent, which is
    /// [`NamedSendError::Timeout`]. The default is to wait as [`Address::send`] does, which for room is as long as it takes;
    /// more than a year counts as a year.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout.min(LONGEST));
        self
    }

    /// Resolves to `Ok` only if every message was accepted, else to a [`BatchError`] that says which were not. All are tried
    /// all the same.
    pub fn strict(self) -> SendStrict<'a, M> {
        SendStrict { batch: self }
    }

    async fn run(self) -> Vec<Result<(), NamedSendError>> {
        let patience = self.timeout;
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut results: Vec<_> = self.items.iter().map(|_| Ok(())).collect();
        let mut queues = BTreeMap::<Key, Queue<'a, M>>::new();
        for (at, (target, message)) in self.items.into_iter().enumerate() {
            match target {
                Target::NoName(error) => results[at] = Err(NamedSendError::Name(error)),
                target => queues.entry(Key::of(&target)).or_default().push((at, target, message)),
            }
        }
        let queues = queues.into_values().map(|queue| {
            let sending: Sending<'_> = Box::pin(async move {
                let mut sent = Vec::with_capacity(queue.len());
                for (at, target, message) in queue {
                    sent.push((at, send(target, message, deadline, patience).await));
                }
                sent
            });
            sending
        });
        for (at, result) in all(queues.collect()).await {
            results[at] = result;
        }
        results
    }
}

/// What is sent in order, with its places among all.
type Queue<'a, M> = Vec<(usize, Target<'a, M>, M)>;

type Sent = Vec<(usize, Result<(), NamedSendError>)>;

type Sending<'a> = Pin<Box<dyn Future<Output = Sent> + Send + 'a>>;

/// What tells queues apart.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Name(String),
    Mailbox(Pid),
    Nothing,
}

impl Key {
    fn of<M: Message>(target: &Target<'_, M>) -> Self {
        match target {
            Target::Name(_, name) => Self::Name(name.name().to_owned()),
            Target::Address(address) => Self::Mailbox(address.pid().clone()),
            Target::NoName(_) => Self::Nothing,
        }
    }
}

async fn send<M: Message>(
    target: Target<'_, M>,
    message: M,
    deadline: Option<Instant>,
    patience: Option<Duration>,
) -> Result<(), NamedSendError> {
    let sent = match target {
        Target::Name(registry, name) => registry.lookup(name)?.send_by(message, deadline).await?,
        Target::Address(address) => address.send_by(message, deadline).await?,
        Target::NoName(error) => return Err(NamedSendError::Name(error)),
    };
    sent.ok_or_else(|| NamedSendError::Timeout(patience.unwrap_or_default()))
}

/// Waits for all of them, each polled in this task, so that they belong to its trace.
async fn all(mut sending: Vec<Sending<'_>>) -> Sent {
    let mut done = Vec::new();
    poll_fn(|context| {
        sending.retain_mut(|sending| match sending.as_mut().poll(context) {
            Poll::Ready(sent) => {
                done.extend(sent);
                false
            }
            Poll::Pending => true,
        });
        if sending.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done
}

impl<M: Message> fmt::Debug for SendBatch<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { items, timeout } = self;
        f.debug_struct("SendBatch").field("messages", &items.len()).field("timeout", timeout).finish()
    }
}

impl<'a, M: Message> IntoFuture for SendBatch<'a, M> {
    type Output = Vec<Result<(), NamedSendError>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A batch that is to be accepted as a whole, as far as can be told: await it. See [`SendBatch::strict`].
///
/// # Errors
/// [`BatchError`]: what was accepted is sent all the same.
///
/// # Cancel safety
/// What was accepted before the drop is sent, and nothing more.
#[must_use = "nothing is sent until it is awaited"]
#[derive(Debug)]
pub struct SendStrict<'a, M: Message> {
    batch: SendBatch<'a, M>,
}

impl<'a, M: Message> IntoFuture for SendStrict<'a, M> {
    type Output = Result<(), BatchError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async {
            let results = self.batch.run().await;
            let total = results.len();
            let mut failed = results.into_iter().enumerate().filter_map(|(at, result)| Some((at, result.err()?)));
            let Some(first) = failed.next() else { return Ok(()) };
            let ((position, reason), rest) = (first, failed.collect());
            Err(BatchError { total, position, reason, rest })
        })
    }
}

impl Registry {
    /// Sends messages to the mailboxes that have these names, as [`send`](Self::send) does each: await the returned
    /// [`SendBatch`]. A name is a [`Name`], or text; text that can be no name is [`NamedSendError::Name`] in its place.
    pub fn send_batch<M, N>(&self, items: impl IntoIterator<Item = (N, M)>) -> SendBatch<'static, M>
    where
        M: Message,
        N: TryInto<Name<M>>,
        N::Error: Into<KeyError>,
    {
        let items = items.into_iter().map(|(name, message)| match name.try_into() {
            Ok(name) => (Target::Name(self.clone(), name), message),
            Err(error) => (Target::NoName(error.into()), message),
        });
        SendBatch { items: items.collect(), timeout: None }
    }
}
