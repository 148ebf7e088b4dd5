//! Names of mailboxes, which all nodes know.

mod by_name;

use std::fmt;
use std::future::{IntoFuture, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::Instrument;
use tracing::field::Empty;

pub use self::by_name::NamedAsk;
use crate::config::LONGEST;
use crate::driver::disputes::{ConflictResolver, Resolver};
use crate::driver::journal::target;
use crate::driver::names::{Claim, NameEntry, NameEvent, RegistryCounters, SEPARATOR, Standing, Table, Watch, Watched};
use crate::driver::{Command, Shared};
use crate::error::{
    LookupError, NamedSendError, RegisterError, ReplaceError, ScopeError, UnregisterError, UpdateError, WaitError,
};
use crate::id::{NodeName, Pid};
use crate::key::{ByName, KEY_MAX, Key, KeyError};
use crate::message::{Message, has_tag, schema};
use crate::messaging::{Address, Mailbox};
use crate::proto::node::services::{Done, RegistryStats, Request};
use crate::proto::registry::{Refusal, Rule};

/// The longest metadata of a name, in bytes.
pub const NAME_METADATA_MAX: usize = 1024;

/// The name of a mailbox, with the type of its messages.
///
/// ```
/// use distribute::Name;
///
/// const ORDERS: Name<u64> = Name::new("orders");
/// assert_eq!(ORDERS.name(), "orders");
///
/// let orders: Name<u64> = Name::parse(format!("orders.{}", "berlin"))?;
/// # Ok::<(), distribute::Error>(())
/// ```
///
/// A constant with a bad name does not compile:
///
/// ```compile_fail
/// # use distribute::Name;
/// const ORDERS: Name<u64> = Name::new("");
/// ```
pub struct Name<M> {
    name: Key,
    message: PhantomData<fn(M) -> M>,
}

impl<M> Name<M> {
    /// A name of 1 to 255 bytes, without control characters.
    ///
    /// # Panics
    /// When the name breaks these rules; in a constant that is an error of the compiler.
    pub const fn new(name: &'static str) -> Self {
        Self { name: Key::new(name), message: PhantomData }
    }

    /// A name that is made at run time, of 1 to 255 bytes, without control characters. Clones share it.
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

impl<M> TryFrom<String> for Name<M> {
    type Error = KeyError;

    fn try_from(name: String) -> Result<Self, KeyError> {
        Self::parse(name)
    }
}

impl<M> TryFrom<&str> for Name<M> {
    type Error = KeyError;

    fn try_from(name: &str) -> Result<Self, KeyError> {
        Self::parse(name)
    }
}

impl<M> Clone for Name<M> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), message: PhantomData }
    }
}

impl<M> fmt::Display for Name<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.name, f)
    }
}

impl<M> fmt::Debug for Name<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({:?})", self.name)
    }
}

/// A family of names for mailboxes of one type: `user/1`, `user/2`.
///
/// ```
/// use distribute::Names;
///
/// const USERS: Names<u64> = Names::new("user");
/// let name = USERS.name(42)?;
/// assert_eq!(name.name(), "user/42");
/// assert_eq!(USERS.member(name.name()), Some("42"));
/// assert_eq!(USERS.member("users/42"), None);
/// # Ok::<(), distribute::Error>(())
/// ```
pub struct Names<M> {
    prefix: Key,
    message: PhantomData<fn(M) -> M>,
}

impl<M> Names<M> {
    /// The names that begin with this and a `/`. It has 1 to 253 bytes, without control characters.
    ///
    /// # Panics
    /// When it breaks these rules; in a constant that is an error of the compiler.
    pub const fn new(prefix: &'static str) -> Self {
        Self { prefix: Key::new_within(prefix, KEY_MAX - 2), message: PhantomData }
    }

    /// A family whose prefix is made at run time, of 1 to 253 bytes, without control characters. Clones share it.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with the prefix.
    pub fn parse(prefix: impl Into<String>) -> Result<Self, KeyError> {
        Ok(Self { prefix: Key::parse_within(prefix.into(), KEY_MAX - 2)?, message: PhantomData })
    }

    /// Returns the prefix, without its `/`.
    pub fn prefix(&self) -> &str {
        self.prefix.as_str()
    }

    /// Makes one name of the family.
    ///
    /// # Errors
    /// [`KeyError`] when what tells it from the others is empty, or the whole is no name: of 255 bytes at most, without
    /// control characters.
    pub fn name(&self, member: impl fmt::Display) -> Result<Name<M>, KeyError> {
        let name = format!("{}{SEPARATOR}{member}", self.prefix);
        if name.len() == self.prefix().len() + SEPARATOR.len_utf8() {
            return Err(KeyError::Empty);
        }
        Name::parse(name)
    }

    /// Returns what tells a name of the family from the others; `None` when it is none of them.
    pub fn member<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(self.prefix())?.strip_prefix(SEPARATOR)
    }
}

impl<M> Clone for Names<M> {
    fn clone(&self) -> Self {
        Self { prefix: self.prefix.clone(), message: PhantomData }
    }
}

impl<M> fmt::Debug for Names<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Names({:?})", self.prefix)
    }
}

/// Which mailbox has which name, in one scope. Cheap to clone.
///
/// A name has one owner in the cluster: a mailbox, which may have several names. Of several that ask for it at one time
/// one gets it. It goes when it is unregistered, when its mailbox closes, and when the mailbox's node leaves or dies.
///
/// Every node knows all names of the scopes that it takes part in, so [`lookup`](Self::lookup) reads memory and waits for
/// nobody. What one node changes the others learn in a moment, each for itself: so a name that was just registered
/// elsewhere may not be found yet, and one whose owner has just gone may be found for a moment; a send to that fails as a
/// send to any closed mailbox does.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Name, Node};
///
/// const ORDERS: Name<u64> = Name::new("orders");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.ready().await?;
/// let mut orders = node.mailbox::<u64>();
/// node.registry().register(ORDERS, &orders).await?;
///
/// node.registry().lookup(ORDERS)?.send(7).await?; // on any node of the cluster
/// assert_eq!(orders.recv().await, Some(7));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Who gets a name
/// Three nodes, which follow from the name and the members, decide on it, and a majority of them is enough; their grant
/// is what [`register`](Self::register) waits for. They decide from when they are *ready*, that is, know the names that
/// there are: see [`Node::ready`](crate::Node::ready). Before this node is ready itself, its claims fail with
/// [`RegisterError::NotReady`].
///
/// # Conflicts
/// Two mailboxes can get one name only where those who decide do not see each other: on the two sides of a partition,
/// which go on alone, and for a moment while members come and go. As soon as the two claims meet, all nodes judge them by
/// one rule and agree: the older claim stands, whoever learns of it first, and of two that are equally old that of the
/// lower node. Clocks play no part: who claimed later is who may have known of the other. Another rule can be chosen by
/// [`Builder::conflict_resolver`](crate::Builder::conflict_resolver), and for one name or family by
/// [`Builder::conflict_resolver_for`](crate::Builder::conflict_resolver_for). Whichever it is, the two claims are settled at the
/// node of the older one, and all nodes show the outcome; while a [`ConflictResolver`] thinks, they
/// show the older.
///
/// Whoever loses is told, and not ended: its [`Registration`] says so, watchers read [`NameReason::Conflict`], and a
/// mailbox that must not go on without its name is closed if its registration asked for
/// [`on_loss(OnLoss::CloseMailbox)`](Register::on_loss). A claim is lost only after the node of the other has confirmed
/// that it still has the name.
///
/// # Scopes
/// A registry is that of the default scope, in which all nodes are, unless it comes from [`in_scope`](Self::in_scope).
/// A name in one scope has nothing to do with the same name in another.
///
/// [`NameReason::Conflict`]: crate::NameReason::Conflict
#[derive(Clone)]
#[doc(alias = "global")]
#[doc(alias = "syn")]
pub struct Registry {
    shared: Arc<Shared>,
    table: Arc<Table>,
}

impl Registry {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let table = shared.names.table("").expect("every node takes part in the default scope");
        Self { table: table.clone(), shared: shared.clone() }
    }

    /// Returns the registry of a scope that this node takes part in by [`Builder::scope`](crate::Builder::scope), whatever
    /// scope this one is of.
    ///
    /// Only the nodes in a scope know its names, so these cost the others nothing.
    ///
    /// # Errors
    /// [`ScopeError::NotInScope`].
    pub fn in_scope(&self, scope: &str) -> Result<Self, ScopeError> {
        // The default scope is none that a builder could name.
        let table = self.shared.names.table(scope).filter(|_| !scope.is_empty());
        let table = table.ok_or_else(|| ScopeError::NotInScope(scope.to_owned()))?;
        Ok(Self { table: table.clone(), shared: self.shared.clone() })
    }

    /// Gives a name to a mailbox of this node: await it.
    ///
    /// When it resolves, this node finds the name, and all others do in a moment: see [`Register::everywhere`]. The name
    /// stays with the mailbox until it is unregistered, even when the [`Registration`] is dropped.
    ///
    /// # Errors
    /// [`RegisterError`], within [`Config::register_timeout`](crate::Config::register_timeout) unless
    /// [`timeout`](Register::timeout) says otherwise.
    #[doc(alias = "register_name")]
    #[doc(alias = "yes_register_name")]
    pub fn register<M: Message>(&self, name: Name<M>, mailbox: &Mailbox<M>) -> Register<M> {
        let is_own = Arc::ptr_eq(mailbox.home(), &self.shared);
        self.claim(name, mailbox.pid(), is_own, None)
    }

    /// The same for a mailbox that its reader has.
    pub(crate) fn claim<M>(&self, name: Name<M>, pid: Pid, is_own: bool, replacing: Option<Pid>) -> Register<M> {
        Register {
            timeout: self.shared.config.register_timeout,
            registry: self.clone(),
            name,
            pid,
            is_own,
            metadata: Bytes::new(),
            on_loss: OnLoss::default(),
            is_everywhere: false,
            replacing,
        }
    }

    /// Gives a name from its owner, on whatever node, to a mailbox of this node: await it.
    ///
    /// Nothing happens if the name has another owner, or none. There is no moment in which nobody has the name. The claim
    /// stays as old as it was; the metadata is the successor's.
    ///
    /// # Errors
    /// [`ReplaceError`], within [`Config::register_timeout`](crate::Config::register_timeout) unless
    /// [`timeout`](Replace::timeout) says otherwise.
    #[doc(alias = "re_register_name")]
    pub fn replace<M: Message>(&self, name: Name<M>, owner: impl Into<Pid>, mailbox: &Mailbox<M>) -> Replace<M> {
        let mut register = self.register(name, mailbox);
        register.replacing = Some(owner.into());
        Replace { register }
    }

    /// Takes a name from its owner, on whatever node. Nothing happens if the name has another owner, or none.
    ///
    /// Waits for the owner's node, for [`Config::register_timeout`](crate::Config::register_timeout) at most. The mailbox
    /// goes on without the name.
    ///
    /// # Errors
    /// [`UnregisterError`].
    ///
    /// # Cancel safety
    /// One that is dropped may have been done.
    #[doc(alias = "unregister_name")]
    pub async fn unregister<M>(&self, name: Name<M>, owner: impl Into<Pid>) -> Result<(), UnregisterError> {
        let owner = owner.into();
        self.take_from(name.name.to_text(), owner).await
    }

    /// Changes the metadata of a name, whose owner may be on any node.
    ///
    /// `updater` is given what the metadata is, and returns what it is to be. When somebody else was first it is called
    /// again with what the metadata is by then, so that no change is lost; it should have no other effect. When it
    /// returns what it was given, as this node knows it, nothing is written and no watcher is told. Waits for the owner's
    /// node, for [`Config::register_timeout`](crate::Config::register_timeout) at most. Returns the metadata as it is
    /// now, of at most [`NAME_METADATA_MAX`] bytes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// # use distribute::{Bytes, Cookie, Name, Node};
    /// # const ORDERS: Name<u64> = Name::new("orders");
    /// # let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// # node.ready().await?;
    /// # let orders = node.mailbox::<u64>();
    /// node.registry().register(ORDERS, &orders).metadata("1").await?;
    /// let count = |metadata: &Bytes| {
    ///     let text = std::str::from_utf8(metadata).unwrap_or_default();
    ///     text.parse().map(|n: u64| Bytes::from((n + 1).to_string()))
    /// };
    /// assert_eq!(node.registry().update(ORDERS, count).await?, "2");
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`UpdateError`]; what the updater fails with is in [`UpdateError::Failed`].
    ///
    /// # Cancel safety
    /// One that is dropped may have been done.
    pub async fn update<M, E>(
        &self,
        name: Name<M>,
        updater: impl FnMut(&Bytes) -> Result<Bytes, E>,
    ) -> Result<Bytes, UpdateError<E>> {
        self.change(name.name.to_text(), None, updater).await
    }

    /// Returns the address of the mailbox that has the name, as this node knows it, at once.
    ///
    /// # Errors
    /// [`LookupError`]: nobody has the name, or its mailbox takes messages of another type.
    #[doc(alias = "whereis")]
    #[doc(alias = "whereis_name")]
    pub fn lookup<M: Message>(&self, name: Name<M>) -> Result<Address<M>, LookupError> {
        self.find(name.name())
    }

    /// Returns who has the name and what is said of it, as this node knows it, at once. `None` when nobody has it.
    pub fn entry<M>(&self, name: Name<M>) -> Option<NameEntry> {
        let entry = self.table.look(name.name(), |named| NameEntry::new(name.name.to_text(), named))?;
        (!self.shared.is_known_closed(&entry.owner)).then_some(entry)
    }

    /// Waits until a mailbox has the name, and returns its address: await it.
    ///
    /// It has no deadline of its own: see [`WaitFor::timeout`].
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn wait_for<M: Message>(&self, name: Name<M>) -> WaitFor<M> {
        WaitFor { registry: self.clone(), name, timeout: None }
    }

    /// Sends a message to the mailbox that has the name: looks it up, and sends as [`Address::send`] does.
    ///
    /// It is looked up with each send, so a message goes to whoever has the name then, and there is no order between
    /// messages to one owner and to the next. Since nothing is remembered from one send to the next, this never says
    /// [`SendError::SessionEnded`](crate::SendError::SessionEnded): hold an address where it matters whether messages
    /// before were lost.
    ///
    /// # Errors
    /// [`NamedSendError`]; the message was not sent.
    ///
    /// # Cancel safety
    /// A send that is dropped before it resolves has sent nothing, or has been accepted in that instant.
    #[doc(alias = "via")]
    pub async fn send<M: Message>(&self, name: Name<M>, message: M) -> Result<(), NamedSendError> {
        let address = self.find::<M>(name.name())?;
        Ok(address.send(message).await?)
    }

    /// Watches one name: first a [`NameEvent::Snapshot`] of it, then each change once, in the order in which this node
    /// learned of it. It costs changes of other names nothing.
    ///
    /// A watcher that leaves more than [`Config::events_max`](crate::Config::events_max) events unread loses them, is
    /// told [`NameEvent::Lagged`], and begins again with a snapshot.
    #[doc(alias = "subscribe")]
    pub fn watch<M>(&self, name: Name<M>) -> NameEvents {
        NameEvents { watch: self.table.watch(Watched::Name(name.name.to_text())) }
    }

    /// Watches all names of a family, as [`watch`](Self::watch) does one.
    pub fn watch_family<M>(&self, family: &Names<M>) -> NameEvents {
        let prefix = format!("{}{SEPARATOR}", family.prefix);
        NameEvents { watch: self.table.watch(Watched::Family(prefix.into())) }
    }

    /// Watches all names of the scope, as [`watch`](Self::watch) does one.
    pub fn watch_all(&self) -> NameEvents {
        NameEvents { watch: self.table.watch(Watched::All) }
    }

    /// Returns all names of the scope that this node knows, in their order.
    #[doc(alias = "registered")]
    #[doc(alias = "registered_names")]
    pub fn names(&self) -> Vec<Arc<str>> {
        self.entries().into_iter().map(|entry| entry.name).collect()
    }

    /// Returns who has which name, in the order of the names.
    pub fn entries(&self) -> Vec<NameEntry> {
        let mut entries = self.table.entries();
        entries.retain(|entry| !self.shared.is_known_closed(&entry.owner));
        entries
    }

    /// Returns how many names of the scope this node knows. It costs the same however many there are.
    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// Returns what has happened to names, in all scopes, since this node's start.
    pub fn counters(&self) -> RegistryCounters {
        self.shared.names.counters()
    }

    /// Returns what this node has done for names and groups since its start. All are zero once it is shut down.
    ///
    /// # Cancel safety
    /// Dropping it has no effect.
    pub async fn stats(&self) -> RegistryStats {
        let (done, stats) = oneshot::channel();
        self.shared.command(Command::RegistryStats { done });
        stats.await.unwrap_or_default()
    }

    fn find<M: Message>(&self, name: &str) -> Result<Address<M>, LookupError> {
        let found = self
            .table
            .look(name, |named| if has_tag::<M>(&named.tag) { Ok(named.pid.clone()) } else { Err(named.tag.clone()) });
        match found.ok_or(LookupError::NotFound)? {
            Ok(pid) if self.shared.is_known_closed(&pid) => Err(LookupError::NotFound),
            Ok(pid) => Ok(Address::bound(pid, &self.shared)),
            Err(tag) => Err(LookupError::TagMismatch { expected: schema::<M>().tag, found: tag.to_string() }),
        }
    }

    async fn take_from(&self, name: Arc<str>, pid: Pid) -> Result<(), UnregisterError> {
        let patience = self.shared.config.register_timeout;
        let request = Request::Unregister { scope: self.table.scope().clone(), name, pid };
        let Err(refusal) = self.shared.request(request, deadline(patience)).await else { return Ok(()) };
        Err(match refusal {
            Refusal::NotOwner { owner } | Refusal::Taken { owner, .. } => UnregisterError::NotOwner { owner },
            Refusal::NotRegistered | Refusal::MailboxClosed | Refusal::NotInScope => UnregisterError::NotRegistered,
            Refusal::NotReady => UnregisterError::NotReady,
            Refusal::Shutdown => UnregisterError::Shutdown,
            Refusal::Timeout | Refusal::Stale { .. } | Refusal::LimitReached { .. } => {
                UnregisterError::Timeout(patience)
            }
        })
    }

    /// Updates the metadata as long as that is the owner, or whoever is.
    async fn change<E>(
        &self,
        name: Arc<str>,
        owner: Option<&Pid>,
        mut updater: impl FnMut(&Bytes) -> Result<Bytes, E>,
    ) -> Result<Bytes, UpdateError<E>> {
        let patience = self.shared.config.register_timeout;
        let deadline = deadline(patience);
        let known = || {
            let known = self.table.look(&name, |named| (named.pid.clone(), named.version, named.metadata.clone()));
            known.filter(|(pid, ..)| owner.is_none_or(|owner| owner == pid) && !self.shared.is_known_closed(pid))
        };
        let (mut pid, mut version, mut metadata) = known().ok_or(UpdateError::NotRegistered)?;
        let scope = self.table.scope();
        loop {
            // Whoever learned of another owner before this node's view did asks that one first what there is.
            let asks = version == UNKNOWN;
            let next = if asks { Bytes::new() } else { updater(&metadata).map_err(UpdateError::Failed)? };
            if next == metadata && !asks {
                return Ok(next);
            }
            if next.len() > NAME_METADATA_MAX {
                return Err(UpdateError::TooLarge { size: next.len(), max: NAME_METADATA_MAX });
            }
            let (scope, of, wanted) = (scope.clone(), pid.clone(), next.clone());
            let request = Request::Update { scope, name: name.clone(), pid: of, version, metadata: wanted };
            match self.shared.request(request, deadline).await {
                Ok(_) => return Ok(next),
                Err(Refusal::Stale { version: newer, metadata: present }) => (version, metadata) = (newer, present),
                Err(Refusal::NotOwner { owner: other } | Refusal::Taken { owner: other, .. }) => {
                    if owner.is_some() {
                        return Err(UpdateError::NotRegistered);
                    }
                    if other == pid {
                        // It has handed the name over, and is to be seen until its successor is.
                        self.moved_on(&name, &pid).await;
                    }
                    (pid, version, metadata) =
                        known().filter(|(known, ..)| *known == other).unwrap_or((other, UNKNOWN, Bytes::new()));
                }
                Err(Refusal::NotRegistered | Refusal::MailboxClosed | Refusal::NotInScope) => {
                    return Err(UpdateError::NotRegistered);
                }
                Err(Refusal::NotReady) => return Err(UpdateError::NotReady),
                Err(Refusal::Shutdown) => return Err(UpdateError::Shutdown),
                Err(Refusal::Timeout | Refusal::LimitReached { .. }) => return Err(UpdateError::Timeout(patience)),
            }
            if now() >= deadline {
                return Err(UpdateError::Timeout(patience));
            }
        }
    }

    /// Waits until another is to be seen as the owner, or nobody, but not for long.
    async fn moved_on(&self, name: &Arc<str>, pid: &Pid) {
        let watch = self.table.watch(Watched::Name(name.clone()));
        let moved_on = async {
            while self.table.look(name, |named| named.pid == *pid) == Some(true) {
                if poll_fn(|context| watch.poll_next(context)).await.is_none() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(HAND_OVER, moved_on).await;
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("scope", self.table.scope()).field("count", &self.count()).finish()
    }
}

/// An owner that has handed its name over is asked again after so long, or when its successor is to be seen.
const HAND_OVER: Duration = Duration::from_millis(50);

/// A version that no binding has: who updates from it is told the present one.
const UNKNOWN: u64 = (1 << 62) - 1;

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn deadline(patience: Duration) -> Instant {
    now() + patience
}

/// What becomes of a mailbox whose name is lost to another claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLoss {
    /// It goes on without the name. Its [`Registration`] and watchers are told.
    #[default]
    Tell,
    /// It is closed: whoever reads it reads what has come, and then its end, and senders are told that it is closed.
    CloseMailbox,
}

/// A registration about to be made: await it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::time::Duration;
/// use distribute::{Cookie, Name, Node, OnLoss};
///
/// const DESK: Name<String> = Name::new("desk");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.ready().await?;
/// let desk = node.mailbox::<String>();
/// let register = node.registry().register(DESK, &desk).metadata("zone=b").on_loss(OnLoss::CloseMailbox);
/// let registration = register.timeout(Duration::from_secs(3)).everywhere().await?;
/// assert_eq!(registration.pid(), &desk.pid());
/// registration.unregister().await?;
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`RegisterError`], at the deadline at the latest.
///
/// # Cancel safety
/// A registration that is dropped is given up, or was made in that instant.
#[must_use = "a registration is made when it is awaited"]
pub struct Register<M> {
    registry: Registry,
    name: Name<M>,
    pid: Pid,
    is_own: bool,
    metadata: Bytes,
    timeout: Duration,
    on_loss: OnLoss,
    is_everywhere: bool,
    replacing: Option<Pid>,
}

impl<M> Register<M> {
    /// Says something of the mailbox to all who look its name up, in at most [`NAME_METADATA_MAX`] bytes. The default is
    /// nothing.
    pub fn metadata(mut self, metadata: impl Into<Bytes>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// Sets how long to wait. The default is [`Config::register_timeout`](crate::Config::register_timeout), 10 s; more
    /// than a year counts as a year.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// Sets what becomes of the mailbox if another claim wins the name. The default is [`OnLoss::Tell`].
    pub fn on_loss(mut self, on_loss: OnLoss) -> Self {
        self.on_loss = on_loss;
        self
    }

    /// Waits until every live member of the scope knows the name, too.
    ///
    /// A member that does not take it in time makes this [`RegisterError::NotEverywhere`]; the name is registered all the
    /// same.
    pub fn everywhere(mut self) -> Self {
        self.is_everywhere = true;
        self
    }
}

impl<M> fmt::Debug for Register<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Register");
        debug.field("name", &self.name).field("mailbox", &self.pid).finish_non_exhaustive()
    }
}

impl<M: Message> IntoFuture for Register<M> {
    type Output = Result<Registration<M>, RegisterError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let (pid, patience) = (self.pid.clone(), self.timeout);
        Box::pin(async move {
            self.run().await.map_err(|failure| match failure {
                Failure::WrongNode => RegisterError::WrongNode(pid),
                Failure::TooLarge { size, max } => RegisterError::TooLarge { size, max },
                Failure::NotEverywhere => RegisterError::NotEverywhere(patience),
                Failure::Refused(refusal) => match refusal {
                    Refusal::Taken { owner, is_confirmed } => RegisterError::Taken { owner, is_confirmed },
                    Refusal::NotOwner { owner } => RegisterError::Taken { owner, is_confirmed: false },
                    Refusal::MailboxClosed => RegisterError::MailboxClosed(pid),
                    Refusal::LimitReached { max } => RegisterError::LimitReached { max },
                    Refusal::NotReady => RegisterError::NotReady,
                    Refusal::NotInScope => RegisterError::NotInScope,
                    Refusal::Shutdown => RegisterError::Shutdown,
                    Refusal::Timeout | Refusal::NotRegistered | Refusal::Stale { .. } => {
                        RegisterError::Timeout(patience)
                    }
                },
            })
        })
    }
}

/// Why a claim came to nothing.
enum Failure {
    WrongNode,
    TooLarge {
        size: usize,
        max: usize,
    },
    Refused(Refusal),
    /// It did not, but not everybody knows.
    NotEverywhere,
}

impl Failure {
    /// What the log says.
    fn kind(&self) -> &'static str {
        match self {
            Self::WrongNode => "a mailbox of another node",
            Self::TooLarge { .. } => "metadata too large",
            Self::NotEverywhere => "not everywhere",
            Self::Refused(refusal) => match refusal {
                Refusal::Taken { .. } => "taken",
                Refusal::MailboxClosed => "mailbox closed",
                Refusal::NotOwner { .. } => "not the owner",
                Refusal::NotRegistered => "not registered",
                Refusal::LimitReached { .. } => "limit reached",
                Refusal::NotReady => "not ready",
                Refusal::Timeout => "timeout",
                Refusal::Stale { .. } => "stale",
                Refusal::NotInScope => "not in the scope",
                Refusal::Shutdown => "shutdown",
            },
        }
    }
}

impl<M: Message> Register<M> {
    async fn run(self) -> Result<Registration<M>, Failure> {
        let (scope, name, mailbox) = (self.registry.table.scope().clone(), self.name.name.to_text(), self.pid.serial());
        let span = tracing::debug_span!(target: target::NAME, "claim", %scope, %name, mailbox, outcome = Empty);
        let claimed = self.claim().instrument(span.clone()).await;
        let outcome = claimed.as_ref().map_or_else(Failure::kind, |_| "granted");
        span.record("outcome", outcome);
        tracing::debug!(target: target::NAME, parent: &span, outcome, "claimed a name");
        claimed
    }

    async fn claim(self) -> Result<Registration<M>, Failure> {
        let Self { registry, name, pid, is_own, metadata, timeout, on_loss, is_everywhere, replacing } = self;
        let Registry { shared, table } = &registry;
        let deadline = deadline(timeout);
        if !is_own {
            return Err(Failure::WrongNode);
        }
        if metadata.len() > NAME_METADATA_MAX {
            return Err(Failure::TooLarge { size: metadata.len(), max: NAME_METADATA_MAX });
        }
        if shared.is_stopping() {
            return Err(Failure::Refused(Refusal::Shutdown));
        }
        if shared.is_known_closed(&pid) {
            return Err(Failure::Refused(Refusal::MailboxClosed));
        }
        let text = name.name.to_text();
        let (scope, serial) = (table.scope().clone(), pid.serial());
        let claiming = table.claim(text.clone(), pid, on_loss == OnLoss::CloseMailbox);
        let request = Request::Register {
            scope: scope.clone(),
            name: text,
            serial,
            tag: schema::<M>().tag.into(),
            metadata,
            replacing,
        };
        let done = shared.request(request, deadline).await.map_err(Failure::Refused)?;
        let claim = claiming.granted();
        if let Done::Bound { version, .. } = done
            && is_everywhere
        {
            let known = shared.request(Request::Everywhere { scope, version }, deadline).await;
            known.map_err(|_| Failure::NotEverywhere)?;
        }
        Ok(Registration { registry, name, claim })
    }
}

/// A replacement about to be made: await it. As [`Register`], but for a name that another mailbox has.
///
/// # Errors
/// [`ReplaceError`], at the deadline at the latest.
///
/// # Cancel safety
/// A replacement that is dropped is given up, or was made in that instant.
#[must_use = "a replacement is made when it is awaited"]
pub struct Replace<M> {
    register: Register<M>,
}

impl<M> Replace<M> {
    /// As [`Register::metadata`].
    pub fn metadata(self, metadata: impl Into<Bytes>) -> Self {
        Self { register: self.register.metadata(metadata) }
    }

    /// As [`Register::timeout`].
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { register: self.register.timeout(timeout) }
    }

    /// As [`Register::on_loss`].
    pub fn on_loss(self, on_loss: OnLoss) -> Self {
        Self { register: self.register.on_loss(on_loss) }
    }

    /// As [`Register::everywhere`], with [`ReplaceError::NotEverywhere`].
    pub fn everywhere(self) -> Self {
        Self { register: self.register.everywhere() }
    }
}

impl<M> fmt::Debug for Replace<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Register { name, pid, replacing, .. } = &self.register;
        let mut debug = f.debug_struct("Replace");
        debug.field("name", name).field("owner", replacing).field("mailbox", pid).finish_non_exhaustive()
    }
}

impl<M: Message> IntoFuture for Replace<M> {
    type Output = Result<Registration<M>, ReplaceError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let (pid, patience) = (self.register.pid.clone(), self.register.timeout);
        Box::pin(async move {
            self.register.run().await.map_err(|failure| match failure {
                Failure::WrongNode => ReplaceError::WrongNode(pid),
                Failure::TooLarge { size, max } => ReplaceError::TooLarge { size, max },
                Failure::NotEverywhere => ReplaceError::NotEverywhere(patience),
                Failure::Refused(refusal) => match refusal {
                    Refusal::NotOwner { owner } | Refusal::Taken { owner, .. } => ReplaceError::NotOwner { owner },
                    Refusal::NotRegistered => ReplaceError::NotRegistered,
                    Refusal::MailboxClosed => ReplaceError::MailboxClosed(pid),
                    Refusal::LimitReached { max } => ReplaceError::LimitReached { max },
                    Refusal::NotReady => ReplaceError::NotReady,
                    Refusal::NotInScope => ReplaceError::NotInScope,
                    Refusal::Shutdown => ReplaceError::Shutdown,
                    Refusal::Timeout | Refusal::Stale { .. } => ReplaceError::Timeout(patience),
                },
            })
        })
    }
}

/// A name that a mailbox of this node has. Dropping it does not unregister the name; clones are of the same registration.
pub struct Registration<M> {
    registry: Registry,
    name: Name<M>,
    claim: Arc<Claim>,
}

impl<M> Registration<M> {
    /// Returns the name.
    pub fn name(&self) -> &Name<M> {
        &self.name
    }

    /// Returns the mailbox.
    pub fn pid(&self) -> &Pid {
        self.claim.pid()
    }

    /// Tells whether the name was lost to another claim: see [`Registry`].
    pub fn is_lost(&self) -> bool {
        matches!(self.claim.standing(), Standing::Lost(_))
    }

    /// Waits until the name is lost to another claim, and returns the mailbox that has it. `None` when the registration
    /// ended otherwise: it was unregistered or replaced, its mailbox closed, or the node is shut down.
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn lost(&self) -> Option<Pid> {
        self.claim.ended().await
    }

    /// Gives the name up, as [`Registry::unregister`] does. The mailbox goes on.
    ///
    /// # Errors
    /// [`UnregisterError`].
    ///
    /// # Cancel safety
    /// One that is dropped may have been done.
    pub async fn unregister(&self) -> Result<(), UnregisterError> {
        self.registry.take_from(self.name.name.to_text(), self.pid().clone()).await
    }

    /// Changes the metadata, as [`Registry::update`] does, as long as this mailbox has the name.
    ///
    /// # Errors
    /// [`UpdateError`]; [`UpdateError::NotRegistered`] also when another mailbox has the name.
    ///
    /// # Cancel safety
    /// One that is dropped may have been done.
    pub async fn update<E>(&self, updater: impl FnMut(&Bytes) -> Result<Bytes, E>) -> Result<Bytes, UpdateError<E>> {
        self.registry.change(self.name.name.to_text(), Some(self.pid()), updater).await
    }
}

impl<M> Clone for Registration<M> {
    fn clone(&self) -> Self {
        Self { registry: self.registry.clone(), name: self.name.clone(), claim: self.claim.clone() }
    }
}

impl<M> fmt::Debug for Registration<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Registration");
        debug.field("name", &self.name).field("mailbox", self.pid()).field("standing", &self.claim.standing()).finish()
    }
}

impl<M> From<&Registration<M>> for Pid {
    fn from(registration: &Registration<M>) -> Self {
        registration.pid().clone()
    }
}

/// A wait for a name: await it.
///
/// # Errors
/// [`WaitError`]: its mailbox takes messages of another type, the deadline is over, or the node is shut down.
///
/// # Cancel safety
/// A wait that is dropped leaves nothing behind.
#[must_use = "nobody waits until it is awaited"]
#[derive(Debug)]
pub struct WaitFor<M> {
    registry: Registry,
    name: Name<M>,
    timeout: Option<Duration>,
}

impl<M> WaitFor<M> {
    /// Sets how long to wait; more than a year counts as a year. The default is as long as the node lives.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout.min(LONGEST));
        self
    }
}

impl<M: Message> WaitFor<M> {
    async fn run(self) -> Result<Address<M>, WaitError> {
        let Self { registry, name, timeout } = self;
        let found = async {
            let mut changes = registry.watch(name.clone());
            loop {
                match registry.find(name.name()) {
                    Ok(address) => return Ok(address),
                    Err(LookupError::TagMismatch { expected, found }) => {
                        return Err(WaitError::TagMismatch { expected, found });
                    }
                    Err(LookupError::NotFound) => {}
                }
                if changes.next().await.is_none() {
                    return Err(WaitError::Shutdown);
                }
            }
        };
        match timeout {
            None => found.await,
            Some(patience) => tokio::time::timeout(patience, found).await.unwrap_or(Err(WaitError::Timeout(patience))),
        }
    }
}

impl<M: Message> IntoFuture for WaitFor<M> {
    type Output = Result<Address<M>, WaitError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A subscription to [`NameEvent`]s, also a [`Stream`](futures_core::Stream). Dropping it ends it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, NameEvent, NameReason, Names, Node};
///
/// const USERS: Names<u64> = Names::new("user");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.ready().await?;
/// let mut changes = node.registry().watch_family(&USERS);
/// assert_eq!(changes.next().await, Some(NameEvent::Snapshot(vec![])));
///
/// let user = node.mailbox();
/// node.registry().register(USERS.name(42)?, &user).await?;
/// let Some(NameEvent::Changed(change)) = changes.next().await else { panic!() };
/// assert_eq!((&*change.name, change.reason), ("user/42", NameReason::Registered));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct NameEvents {
    watch: Watch,
}

impl NameEvents {
    /// Waits for the next event; `None` once the node is shut down.
    ///
    /// # Cancel safety
    /// Dropping it loses no event.
    pub async fn next(&mut self) -> Option<NameEvent> {
        poll_fn(|context| self.watch.poll_next(context)).await
    }
}

impl futures_core::Stream for NameEvents {
    type Item = NameEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<NameEvent>> {
        self.watch.poll_next(context)
    }
}

/// Which of two claims of one name stands. Every node of a cluster has to have the same.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum ConflictRule {
    /// The older claim; of two that are equally old, that of the lower node.
    #[default]
    Oldest,
    /// The newer claim; of two that are equally old, that of the greater node.
    Newest,
    /// That of the node which is earlier in the list, and of two that are not in it the older.
    Priority(Vec<NodeName>),
    /// As the application says.
    Ask(Arc<dyn ConflictResolver>),
}

impl ConflictRule {
    pub(crate) fn into_parts(self) -> (Rule, Option<Resolver>) {
        match self {
            Self::Oldest => (Rule::Oldest, None),
            Self::Newest => (Rule::Newest, None),
            Self::Priority(nodes) => (Rule::Priority(nodes), None),
            Self::Ask(resolver) => (Rule::Asked, Some(Resolver(resolver))),
        }
    }
}

/// The rules of some names, and whom to ask where that is the rule.
pub(crate) fn by_name(rules: Vec<(NamePattern, ConflictRule)>) -> (ByName<Rule>, ByName<Resolver>) {
    let (mut by_name, mut resolvers) = (ByName::default(), ByName::default());
    for (pattern, rule) in rules {
        let (rule, resolver) = rule.into_parts();
        match pattern.0 {
            Watched::Family(prefix) => {
                resolver.into_iter().for_each(|resolver| resolvers.set_family(prefix.clone(), resolver));
                by_name.set_family(prefix, rule);
            }
            Watched::Name(name) => {
                resolver.into_iter().for_each(|resolver| resolvers.set_name(name.clone(), resolver));
                by_name.set_name(name, rule);
            }
            Watched::All => {}
        }
    }
    (by_name, resolvers)
}

/// One name, or all names of a family: made from a [`Name`] or [`Names`].
#[derive(Clone, Debug)]
pub struct NamePattern(Watched);

impl<M> From<Name<M>> for NamePattern {
    fn from(name: Name<M>) -> Self {
        Self(Watched::Name(name.name.to_text()))
    }
}

impl<M> From<Names<M>> for NamePattern {
    fn from(family: Names<M>) -> Self {
        Self(Watched::Family(format!("{}{SEPARATOR}", family.prefix).into()))
    }
}

impl<R: ConflictResolver> From<R> for ConflictRule {
    fn from(resolver: R) -> Self {
        Self::Ask(Arc::new(resolver))
    }
}

impl fmt::Debug for ConflictRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oldest => f.write_str("Oldest"),
            Self::Newest => f.write_str("Newest"),
            Self::Priority(nodes) => f.debug_tuple("Priority").field(nodes).finish(),
            Self::Ask(_) => f.write_str("Ask"),
        }
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
