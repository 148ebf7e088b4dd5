//! An actor from outside, and how it ended.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::driver::Shared;
use crate::id::Pid;
use crate::message::Message;
use crate::messaging::Address;
use crate::monitor::Monitored;
use crate::registry::Registration;

/// How an actor ended. Monitors of its mailbox are told the [`Fate`](crate::Fate) that stands beside each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It was stopped, stopped by itself, or its mailbox came to its end: its node shut down, or it lost its name
    /// ([`OnLoss::CloseMailbox`](crate::OnLoss::CloseMailbox)). [`Fate::Closed`](crate::Fate::Closed).
    #[doc(alias = "normal")]
    Stopped,
    /// It stopped for this reason. [`Fate::Failed`](crate::Fate::Failed), with the reason.
    Failed(String),
    /// It panicked, with this text. [`Fate::Panicked`](crate::Fate::Panicked).
    Panicked(String),
    /// It would have begun anew more often than its [`Restart`](super::Restart) allows. The last time it ended for this
    /// reason, which monitors are not told. [`Fate::Failed`](crate::Fate::Failed).
    TooManyRestarts(String),
    /// It was killed, or its runtime went away. [`Fate::Failed`](crate::Fate::Failed).
    Killed,
}

impl Exit {
    /// In a word, without what the application says.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Failed(_) => "failed",
            Self::Panicked(_) => "panicked",
            Self::TooManyRestarts(_) => "too many restarts",
            Self::Killed => "killed",
        }
    }

    /// Tells whether it ended in good order.
    pub fn is_clean(&self) -> bool {
        *self == Self::Stopped
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped | Self::Killed => f.write_str(self.kind()),
            Self::Failed(text) | Self::Panicked(text) | Self::TooManyRestarts(text) => {
                write!(f, "{}: {text}", self.kind())
            }
        }
    }
}

/// What an actor and those who hold it share.
#[derive(Debug, Default)]
pub(super) struct Status {
    pub(super) restarts: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) stop: watch::Sender<bool>,
    pub(super) exit: watch::Sender<Option<Exit>>,
}

/// An actor that was spawned. Cheap to clone. Dropping it, and all its clones, leaves the actor running.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{ActorContext, Cookie, Exit, Fate, Next, Node, actor_fn};
///
/// async fn check(_: &mut (), number: u64, _: &ActorContext<u64>) -> Next {
///     if number < 10 { Next::Continue } else { Next::fail("it is too great") }
/// }
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let checker = node.actor(actor_fn((), check)).await?;
/// let watch = node.monitor(&checker);
/// checker.address().send(10).await?;
/// assert_eq!(checker.ended().await, Exit::Failed("it is too great".into()));
///
/// let notice = watch.await;
/// assert_eq!((notice.fate, notice.reason()), (Fate::Failed, Some("it is too great")));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
pub struct ActorRef<M: Message> {
    pub(super) address: Address<M>,
    pub(super) shared: Arc<Shared>,
    pub(super) registration: Option<Registration<M>>,
    pub(super) status: Arc<Status>,
    pub(super) task: AbortHandle,
}

impl<M: Message> ActorRef<M> {
    /// Returns the address of its mailbox.
    pub fn address(&self) -> &Address<M> {
        &self.address
    }

    /// Returns the identity of its mailbox. It stays through restarts.
    pub fn pid(&self) -> &Pid {
        self.address.pid()
    }

    /// Returns its name's registration, if it was spawned with a name.
    pub fn registration(&self) -> Option<&Registration<M>> {
        self.registration.as_ref()
    }

    /// Returns how often it has begun anew.
    pub fn restarts(&self) -> u64 {
        self.status.restarts.load(Ordering::Relaxed)
    }

    /// Returns how often it has panicked.
    pub fn panics(&self) -> u64 {
        self.status.panics.load(Ordering::Relaxed)
    }

    /// Returns how it ended; `None` while it runs, also while it pauses before it begins anew.
    pub fn exit(&self) -> Option<Exit> {
        self.status.exit.borrow().clone()
    }

    /// Waits until it has ended: its state is dropped, and its mailbox closed.
    ///
    /// # Cancel safety
    /// A wait that is dropped changes nothing.
    #[doc(alias = "join")]
    pub async fn ended(&self) -> Exit {
        let mut exit = self.status.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        // The sender is held here, and only ever set to an exit.
        ended.unwrap_or(Exit::Killed)
    }

    /// Stops it and waits for its end: it finishes the message that it is handling. What has arrived and is not handled by
    /// then is thrown away; to have it handled, use [`drain`](Self::drain). It never begins anew after that.
    ///
    /// # Cancel safety
    /// A stop that is dropped goes on, once it was polled.
    pub async fn stop(&self) -> Exit {
        self.ask_to_stop();
        self.ended().await
    }

    pub(super) fn ask_to_stop(&self) {
        self.status.stop.send_replace(true);
    }

    /// Closes its mailbox, has it handle what had arrived, and waits for its end. Senders are told that the mailbox is
    /// closed from now on, and names and watchers hear of it at once.
    ///
    /// # Cancel safety
    /// One that is dropped goes on, once it was polled.
    pub async fn drain(&self) -> Exit {
        self.shared.shut_mailbox(self.pid().serial());
        self.ended().await
    }

    /// Ends it where it waits next, in the middle of a message if need be. Returns at once; the end is told by
    /// [`ended`](Self::ended).
    #[doc(alias = "abort")]
    pub fn kill(&self) {
        self.task.abort();
    }
}

impl<M: Message> Clone for ActorRef<M> {
    fn clone(&self) -> Self {
        Self {
            address: self.address.clone(),
            shared: self.shared.clone(),
            registration: self.registration.clone(),
            status: self.status.clone(),
            task: self.task.clone(),
        }
    }
}

impl<M: Message> fmt::Debug for ActorRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorRef")
            .field("pid", self.pid())
            .field("restarts", &self.restarts())
            .field("exit", &self.exit())
            .finish_non_exhaustive()
    }
}

impl<M: Message> From<&ActorRef<M>> for Monitored {
    fn from(actor: &ActorRef<M>) -> Self {
        Self::Mailbox(actor.pid().clone())
    }
}

impl<M: Message> From<&ActorRef<M>> for Pid {
    fn from(actor: &ActorRef<M>) -> Self {
        actor.pid().clone()
    }
}
