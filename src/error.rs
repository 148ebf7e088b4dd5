//! Why something did not happen, whose fault it is, and whether it took effect.

mod effect;

use std::path::PathBuf;
use std::time::Duration;

pub use self::effect::{Effect, HasEffect};
use crate::config::ConfigError;
use crate::id::{NameError, NodeId, NodeName, Pid};
use crate::identity::{AuthError, CookieError, IdentityError};
use crate::key::KeyError;

/// Any error of this crate, for `?`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant says no more than the error that it holds")]
pub enum Error {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Cookie(#[from] CookieError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Ping(#[from] PingError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Recv(#[from] RecvError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Cast(#[from] CastError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Ready(#[from] ReadyError),
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Unregister(#[from] UnregisterError),
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    #[error(transparent)]
    Update(UpdateError<Box<dyn std::error::Error + Send + Sync>>),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error(transparent)]
    NamedSend(#[from] NamedSendError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    NamedAsk(#[from] NamedAskError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Leave(#[from] LeaveError),
    #[error(transparent)]
    Broadcast(#[from] BroadcastError),
    #[error(transparent)]
    Voters(#[from] VotersError),
    #[error(transparent)]
    Election(#[from] ElectionError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<UpdateError<E>> for Error {
    fn from(error: UpdateError<E>) -> Self {
        Self::Update(match error {
            UpdateError::Failed(error) => UpdateError::Failed(error.into()),
            UpdateError::NotRegistered => UpdateError::NotRegistered,
            UpdateError::TooLarge { size, max } => UpdateError::TooLarge { size, max },
            UpdateError::NotReady => UpdateError::NotReady,
            UpdateError::Timeout(patience) => UpdateError::Timeout(patience),
            UpdateError::Shutdown => UpdateError::Shutdown,
        })
    }
}

impl Error {
    /// Tells whether what failed may have happened all the same.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Connect(error) => error.effect(),
            Self::Ping(error) => error.effect(),
            Self::Send(error) => error.effect(),
            Self::Call(error) => error.effect(),
            Self::Cast(error) => error.effect(),
            Self::Sink(error) => error.effect(),
            Self::Ask(error) => error.effect(),
            Self::Publish(error) => error.effect(),
            Self::Register(error) => error.effect(),
            Self::Unregister(error) => error.effect(),
            Self::Replace(error) => error.effect(),
            Self::Update(error) => error.effect(),
            Self::NamedSend(error) => error.effect(),
            Self::Batch(error) => error.effect(),
            Self::NamedAsk(error) => error.effect(),
            Self::Join(error) => error.effect(),
            Self::Leave(error) => error.effect(),
            Self::Broadcast(error) => error.effect(),
            Self::Election(error) => error.effect(),
            Self::Spawn(error) => error.effect(),
            Self::Name(_)
            | Self::Key(_)
            | Self::Cookie(_)
            | Self::Identity(_)
            | Self::Trust(_)
            | Self::Config(_)
            | Self::Start(_)
            | Self::Recv(_)
            | Self::Serve(_)
            | Self::Metadata(_)
            | Self::Ready(_)
            | Self::Scope(_)
            | Self::Lookup(_)
            | Self::Wait(_)
            | Self::Voters(_) => Effect::NotDone,
        }
    }
}

/// Why a node did not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The node's, the cluster's or a peer's name is not one.
    #[error("not a name: {name:?}")]
    Name {
        /// The text that was given.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A scope's name is not one.
    #[error("not a scope: {name:?}")]
    Scope {
        /// The text that was given.
        name: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// More scopes than a node takes part in.
    #[error("{count} scopes, at most {max} are allowed")]
    TooManyScopes {
        /// Those given.
        count: usize,
        /// Those allowed.
        max: usize,
    },
    /// The builder was given neither a cookie nor another identity.
    #[error("a node needs a cookie, or another identity")]
    NoIdentity,
    /// The list of allowed nodes is longer than [`ALLOWED_MAX`](crate::ALLOWED_MAX).
    #[error("the list of allowed nodes has {count} entries, at most {max} are allowed")]
    TooManyAllowed {
        /// Those given.
        count: usize,
        /// Those allowed.
        max: usize,
    },
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host of the node's name has no address here, and no address to bind was given.
    #[error("the host of {0} has no address")]
    Resolve(NodeName),
    /// The socket could not be bound.
    #[error("cannot bind {address}")]
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node's identity cannot be used; the source says which part, and why.
    #[error("cannot use the node's identity")]
    Identity(#[from] IdentityError),
    /// The directory of the votes cannot be used.
    #[error("cannot use the directory of the votes")]
    Votes(#[from] VoteError),
}

/// Why the trust of a node was not changed. Nothing was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The cookie is not among those that the node accepts. Accept it first, on all nodes.
    #[error("the node does not accept this cookie")]
    NotAccepted,
    /// The cookie is the one that the node presents. Present another one first.
    #[error("the node presents this cookie")]
    Presented,
    /// The node accepts as many cookies as it may. Forget one of them.
    #[error("the node accepts {max} cookies already, which is all that it may")]
    TooManyCookies {
        /// Those allowed.
        max: usize,
    },
    /// The node was started without a cookie, and all nodes of a cluster prove their membership alike.
    #[error("this node has no cookies: it was started with certificates alone")]
    NoCookies,
    /// The node was started without certificates of a PKI, and all nodes of a cluster prove their membership alike.
    #[error("this node has no certificates to reload: it was started with a cookie alone")]
    NoCertificates,
    /// A list is too long.
    #[error("the list has more than {max} entries")]
    TooMany {
        /// Those allowed.
        max: usize,
    },
    /// The certificates cannot be used; the source says which, and why.
    #[error("cannot use the certificates")]
    Identity(#[from] IdentityError),
    /// The node has shut down.
    #[error("this node has shut down")]
    Shutdown,
}

impl TrustError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why there is no link to a node. Nothing was sent: the effect is always [`Effect::NotDone`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The two nodes do not trust each other, or do not speak the same protocol.
    #[error("not trusted")]
    Auth(#[from] AuthError),
    /// The host name has no address.
    #[error("no address for {0}")]
    Resolve(NodeName),
    /// An address that must not be dialled: port 0, unspecified, or multicast.
    #[error("{0} cannot be dialled")]
    BadAddress(std::net::SocketAddr),
    /// The peer said that nobody can dial it, and it has no link to this node now.
    #[error("{0} cannot be dialled, and has no link to this node")]
    NotDialable(NodeName),
    /// Nothing answered in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The other side did not greet in time.
    #[error("no greeting in time")]
    HelloTimeout,
    /// A node that answers to the address is this one.
    #[error("that is this node")]
    IsSelf,
    /// Another node with this node's name is alive; or, at the dialling side, the peer's name is held by another.
    #[error("the name is held by another live node")]
    NameConflict,
    /// The peer is at its limit of links or sessions.
    #[error("the peer has no room for another link")]
    Limit,
    /// The peer is shutting down.
    #[error("the peer is shutting down")]
    PeerShutdown,
    /// The peer broke the protocol, or says that this node did.
    #[error("protocol error")]
    Protocol,
    /// The link broke before it was up.
    #[error("the link broke while it was set up")]
    Broken,
    /// The life of the node that was meant has ended; its name is held by a later one.
    #[error("{0} is gone: its name belongs to a later life")]
    Superseded(NodeId),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl ConnectError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why a ping has no answer. A ping never ends a link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// There is no link.
    #[error("not connected")]
    NotConnected(#[source] ConnectError),
    /// The peer did not answer in time; it may be busy.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The link broke while waiting.
    #[error("the link was lost")]
    Disconnected,
}

impl PingError {
    /// Returns [`Effect::NotDone`]: a ping has no effect.
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DownReason {
    /// The link broke, or gave no sign of life. The node may live.
    #[doc(alias = "noconnection")]
    Lost,
    /// The members agree that the node is dead: it answered nobody, and did not object in time.
    Dead,
    /// The node shut down in good order.
    Left,
    /// A user of either node asked for it.
    Disconnected,
    /// The peer ended the session and this side had not noticed.
    EndedByPeer,
    /// A later life of the same name took its place.
    Superseded,
    /// One of the two broke the protocol.
    Protocol,
    /// One of the two was at a limit.
    Overloaded,
    /// This node goes on as another incarnation of its name.
    Renewed,
    /// One of the two trusts the other no longer: its cookie was forgotten, its certificate has expired, was revoked or
    /// blocked, or it was taken off the list of those that are allowed.
    TrustChanged,
    /// This node shut down.
    Shutdown,
}

/// Why a message was not accepted.
///
/// Acceptance is not delivery: an accepted message may still be lost when its session ends, and then the next send of
/// the same handle says [`SendError::SessionEnded`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no room or credit, and the caller would not wait.
    #[error("the mailbox or the way to it is full")]
    Full,
    /// There is no session with the node, and none could be had.
    #[error("not connected to {0}")]
    NotConnected(NodeName, #[source] Option<ConnectError>),
    /// The session in which this handle sent before has ended, so earlier messages may be lost. This message was not
    /// sent; the next send begins anew.
    #[error("the session with {0} ended: messages sent before may be lost")]
    SessionEnded(NodeId),
    /// The mailbox is closed.
    #[error("mailbox {0} is closed")]
    #[doc(alias = "noproc")]
    MailboxClosed(Pid),
    /// The message is larger than this node or the peer takes.
    #[error("the message has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of the encoded message.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The message cannot be encoded.
    #[error("the message cannot be encoded: {0}")]
    Encode(String),
    /// This node has sent 4096 types of messages, or versions of them, in the session, and a peer takes no more.
    #[error("too many types of messages in one session")]
    TooManyTypes,
    /// This session has sent to as many mailboxes as the peer takes; one of them must close first.
    #[error("the session with {0} has sent to as many mailboxes as the peer takes")]
    TooManyMailboxes(NodeName),
    /// The address was decoded outside of a node, and is bound to none.
    #[error("the address is bound to no node")]
    Unbound,
    /// A local mailbox of another type has this address.
    #[error("mailbox {0} takes messages of another type")]
    WrongType(Pid),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl SendError {
    /// Tells whether the message of this call may have been sent: never.
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// Nothing arrived in time.
    #[error("nothing arrived in time")]
    Timeout,
    /// There is nothing now.
    #[error("the mailbox is empty")]
    Empty,
    /// The node is shut down, or the mailbox was closed with the loss of its name, and all that had arrived was read.
    #[error("the mailbox is closed")]
    Closed,
}

/// Why a method is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The node serves a method of that name.
    #[error("method {0:?} is served already")]
    Taken(String),
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// There is no session with the node, and none could be had. Nothing was sent.
    #[error("not connected to {0}")]
    NotConnected(NodeName, #[source] Option<ConnectError>),
    /// The request is larger than this node or the peer takes. Nothing was sent.
    #[error("the request has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of the encoded request.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The request cannot be encoded. Nothing was sent.
    #[error("the request cannot be encoded: {0}")]
    Encode(String),
    /// Too many calls wait for answers here, or too many handlers run at the callee. The handler did not run.
    #[error("overloaded")]
    Overloaded,
    /// No answer in time. The handler may have run; it is told to stop.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The session ended before the answer. The handler may have run.
    #[error("the session with {0} ended before the answer")]
    #[doc(alias = "noconnection")]
    Disconnected(NodeId),
    /// The callee serves no such method.
    #[error("no method {0:?} there")]
    #[doc(alias = "undef")]
    NoSuchMethod(String),
    /// The callee's method takes or answers with another type or version.
    #[error("caller and callee differ about the types of method {0:?}")]
    Mismatch(String),
    /// The callee could not decode the request. The handler did not run.
    #[error("the callee could not decode the request")]
    Undecodable,
    /// The answer could not be decoded. The handler ran.
    #[error("the answer cannot be decoded: {0}")]
    BadAnswer(String),
    /// The answer is larger than allowed. The handler ran.
    #[error("the answer is larger than allowed")]
    AnswerTooLarge,
    /// The handler panicked.
    #[error("the handler panicked")]
    Panicked,
    /// The handler was cancelled at the callee.
    #[error("the handler was cancelled")]
    Cancelled,
    /// The callee is shutting down. The handler did not run.
    #[error("the callee is shutting down")]
    ShuttingDown,
}

impl CallError {
    /// Tells whether the handler may have run.
    ///
    /// ```
    /// use distribute::{CallError, Effect};
    ///
    /// assert_eq!(CallError::Overloaded.effect(), Effect::NotDone);
    /// assert_eq!(CallError::Panicked.effect(), Effect::Unknown);
    /// ```
    pub fn effect(&self) -> Effect {
        match self {
            Self::NotConnected(..)
            | Self::TooLarge { .. }
            | Self::Encode(_)
            | Self::Overloaded
            | Self::NoSuchMethod(_)
            | Self::Mismatch(_)
            | Self::Undecodable
            | Self::ShuttingDown => Effect::NotDone,
            // A handler that panicked or was stopped may have done part of its work.
            Self::Timeout(_) | Self::Disconnected(_) | Self::Panicked | Self::Cancelled => Effect::Unknown,
            Self::BadAnswer(_) | Self::AnswerTooLarge => Effect::Done,
        }
    }
}

/// Why a cast was not made. Nothing was sent: the effect is always [`Effect::NotDone`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CastError {
    /// There is no session with the node, and none could be had.
    #[error("not connected to {0}")]
    NotConnected(NodeName, #[source] Option<ConnectError>),
    /// There was no session, or no room, in time.
    #[error("not accepted within {0:?}")]
    Timeout(Duration),
    /// The request is larger than this node or the peer takes.
    #[error("the request has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of the encoded request.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The request cannot be encoded.
    #[error("the request cannot be encoded: {0}")]
    Encode(String),
}

impl CastError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why an item of a stream was not sent: the effect is always [`Effect::NotDone`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The stream is over: its handler has returned, or its caller is gone.
    #[error("the stream is over")]
    Ended,
    /// The item is larger than this node or the peer takes.
    #[error("the item has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of the encoded item.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The item cannot be encoded.
    #[error("the item cannot be encoded: {0}")]
    Encode(String),
}

impl SinkError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why a question to a mailbox has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The message was not sent.
    #[error("the question was not sent")]
    NotSent(#[from] SendError),
    /// Too many questions of this node wait for replies. Nothing was sent.
    #[error("too many questions wait for replies")]
    Overloaded,
    /// No reply in time. The message may be read yet; a reply that still comes is dropped.
    #[error("no reply within {0:?}")]
    Timeout(Duration),
    /// The mailbox is closed, or its node has no such mailbox. The message may have been read.
    #[error("mailbox {0} closed before the reply")]
    #[doc(alias = "noproc")]
    MailboxClosed(Pid),
    /// The session with the mailbox's node ended before the reply. The message may have been read.
    #[error("the session with {0} ended before the reply")]
    #[doc(alias = "noconnection")]
    Disconnected(NodeId),
    /// The reply could not be decoded. The question was read.
    #[error("the reply cannot be decoded: {0}")]
    BadReply(String),
}

impl AskError {
    /// Tells whether the question may have been acted on.
    pub fn effect(&self) -> Effect {
        match self {
            Self::NotSent(_) | Self::Overloaded => Effect::NotDone,
            Self::Timeout(_) | Self::MailboxClosed(_) | Self::Disconnected(_) => Effect::Unknown,
            Self::BadReply(_) => Effect::Done,
        }
    }
}

/// Why a node's metadata is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// It is longer than allowed.
    #[error("the metadata has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of it.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// This node has left the cluster, or is shutting down.
    #[error("this node has left the cluster, or is shutting down")]
    Shutdown,
}

/// Why a fact was not published. Nobody gets it: the effect is always [`Effect::NotDone`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The fact, with its envelope, is larger than allowed.
    #[error("the fact has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of it.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The fact cannot be encoded.
    #[error("the fact cannot be encoded: {0}")]
    Encode(String),
    /// Too many facts wait to be spread.
    #[error("too many facts wait to be spread")]
    Busy,
    /// This node has left the cluster, or is shutting down.
    #[error("this node has left the cluster, or is shutting down")]
    Shutdown,
}

impl PublishError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why a node will not be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadyError {
    /// This node has stopped, or is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

/// Why a node has nothing to do with a scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScopeError {
    /// It was not started with [`Builder::scope`](crate::Builder::scope) of that name.
    #[error("this node takes no part in scope {0:?}")]
    NotInScope(String),
}

/// Why a name was not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Another mailbox has the name. One that has it itself may register again, and succeeds.
    #[error("the name is taken by {owner}")]
    Taken {
        /// Who has it.
        owner: Pid,
        /// Its node has said so just now. Otherwise that node did not answer, and the name may become free.
        is_confirmed: bool,
    },
    /// The mailbox is closed.
    #[error("mailbox {0} is closed")]
    #[doc(alias = "noproc")]
    MailboxClosed(Pid),
    /// The mailbox is another node's: a node registers its own.
    #[error("mailbox {0} is not of this node")]
    WrongNode(Pid),
    /// This node has as many names as it may have.
    #[error("this node has {max} names, and may have no more")]
    LimitReached {
        /// See [`Config::names_max`](crate::Config::names_max).
        max: usize,
    },
    /// The metadata is longer than allowed.
    #[error("the metadata has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of it.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// This node does not know the names of the cluster yet: see [`Node::ready`](crate::Node::ready).
    #[error("this node is not ready")]
    NotReady,
    /// Nobody decided in time. The name may have been registered, or may yet be for a moment.
    #[error("not decided within {0:?}")]
    Timeout(Duration),
    /// It is registered, but some live member had not heard of it in time.
    #[error("registered, but not everywhere within {0:?}")]
    NotEverywhere(Duration),
    /// Nobody who decides on this name takes part in the scope.
    #[error("the scope has no part in this")]
    NotInScope,
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl RegisterError {
    /// Tells whether the name may have been registered.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Timeout(_) => Effect::Unknown,
            Self::NotEverywhere(_) => Effect::Done,
            _ => Effect::NotDone,
        }
    }
}

/// Why a name was not unregistered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnregisterError {
    /// Another mailbox has the name.
    #[error("the name belongs to {owner}")]
    NotOwner {
        /// Who has it.
        owner: Pid,
    },
    /// Nobody has the name: so it may be done again without harm.
    #[error("the name is not registered")]
    NotRegistered,
    /// This node does not know the names of the cluster yet: see [`Node::ready`](crate::Node::ready).
    #[error("this node is not ready")]
    NotReady,
    /// The owner's node did not answer in time. It may have been done, or may yet be.
    #[error("not done within {0:?}")]
    Timeout(Duration),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl UnregisterError {
    /// Tells whether the name may have been unregistered.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Timeout(_) => Effect::Unknown,
            _ => Effect::NotDone,
        }
    }
}

/// Why a name's owner was not replaced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// Another mailbox has the name than the one to be replaced.
    #[error("the name belongs to {owner}")]
    NotOwner {
        /// Who has it.
        owner: Pid,
    },
    /// Nobody has the name.
    #[error("the name is not registered")]
    NotRegistered,
    /// The successor is closed.
    #[error("mailbox {0} is closed")]
    MailboxClosed(Pid),
    /// The successor is another node's: a node registers its own mailboxes.
    #[error("mailbox {0} is not of this node")]
    WrongNode(Pid),
    /// This node has as many names as it may have.
    #[error("this node has {max} names, and may have no more")]
    LimitReached {
        /// See [`Config::names_max`](crate::Config::names_max).
        max: usize,
    },
    /// The metadata is longer than allowed.
    #[error("the metadata has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of it.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// This node does not know the names of the cluster yet: see [`Node::ready`](crate::Node::ready).
    #[error("this node is not ready")]
    NotReady,
    /// Nobody decided in time. It may have been done, or may yet be.
    #[error("not decided within {0:?}")]
    Timeout(Duration),
    /// It is done, but some live member had not heard of it in time.
    #[error("replaced, but not everywhere within {0:?}")]
    NotEverywhere(Duration),
    /// Nobody who decides on this name takes part in the scope.
    #[error("the scope has no part in this")]
    NotInScope,
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl ReplaceError {
    /// Tells whether the owner may have been replaced.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Timeout(_) => Effect::Unknown,
            Self::NotEverywhere(_) => Effect::Done,
            _ => Effect::NotDone,
        }
    }
}

/// Why a name's metadata was not updated; `E` is the error of the function that makes the new of the old.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError<E> {
    /// The function failed.
    #[error("the updater failed: {0}")]
    Failed(E),
    /// Nobody has the name.
    #[error("the name is not registered")]
    NotRegistered,
    /// What the function made is longer than allowed.
    #[error("the metadata has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of it.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// This node does not know the names of the cluster yet: see [`Node::ready`](crate::Node::ready).
    #[error("this node is not ready")]
    NotReady,
    /// The owner's node did not answer in time, or others were always first. It may have been done.
    #[error("not done within {0:?}")]
    Timeout(Duration),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl<E> UpdateError<E> {
    /// Tells whether the metadata may have been changed.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Timeout(_) => Effect::Unknown,
            _ => Effect::NotDone,
        }
    }
}

/// Why a lookup gave no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// Nobody has the name, as far as this node knows.
    #[error("the name is not registered")]
    #[doc(alias = "undefined")]
    NotFound,
    /// The name's mailbox takes messages of another type.
    #[error("the mailbox of that name takes {found:?}, not {expected:?}")]
    TagMismatch {
        /// The tag of the type that was asked for.
        expected: String,
        /// The tag of the type that the mailbox takes.
        found: String,
    },
}

/// Why a wait for a name ended without an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The name is there, and its mailbox takes messages of another type.
    #[error("the mailbox of that name takes {found:?}, not {expected:?}")]
    TagMismatch {
        /// The tag of the type that was asked for.
        expected: String,
        /// The tag of the type that the mailbox takes.
        found: String,
    },
    /// Nobody had the name in time.
    #[error("not registered within {0:?}")]
    Timeout(Duration),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

/// Why a message to a name, or one of a batch, was not sent: the effect is always [`Effect::NotDone`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamedSendError {
    /// The text can be no name.
    #[error("not a name")]
    Name(#[from] KeyError),
    /// The name leads to no mailbox of that type.
    #[error("the name leads to no mailbox")]
    Lookup(#[from] LookupError),
    /// Nobody had the name in time.
    #[error("not registered within {0:?}")]
    Absent(Duration),
    /// There was no session with the mailbox's node, or no room in the mailbox, in time.
    #[error("not accepted within {0:?}")]
    Timeout(Duration),
    /// The mailbox of that name did not get it.
    #[error("not sent to the mailbox")]
    Send(#[from] SendError),
}

impl NamedSendError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Which messages of a batch were not accepted. The others are sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} of {total} messages were not accepted, the first at {position}", rest.len() + 1)]
#[non_exhaustive]
pub struct BatchError {
    /// How many messages there were.
    pub total: usize,
    /// The first that was not accepted, counted from 0.
    pub position: usize,
    /// Why that one was not.
    #[source]
    pub reason: NamedSendError,
    /// The others that were not accepted, with their positions in rising order.
    pub rest: Vec<(usize, NamedSendError)>,
}

impl BatchError {
    /// Returns the messages that were not accepted, by their positions, which rise from 0, and why.
    pub fn failed(&self) -> impl Iterator<Item = (usize, &NamedSendError)> {
        let rest = self.rest.iter().map(|(at, reason)| (*at, reason));
        std::iter::once((self.position, &self.reason)).chain(rest)
    }

    /// Tells whether something was sent: [`Effect::NotDone`] when nothing was accepted, else [`Effect::Unknown`].
    pub fn effect(&self) -> Effect {
        if self.rest.len() + 1 == self.total { Effect::NotDone } else { Effect::Unknown }
    }
}

/// Why a question to a name has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamedAskError {
    /// The name leads to no mailbox of that type. Nothing was sent.
    #[error("the name leads to no mailbox")]
    Lookup(#[from] LookupError),
    /// The mailbox of that name gave no reply.
    #[error("no reply from the mailbox of that name")]
    Ask(#[from] AskError),
}

impl NamedAskError {
    /// Tells whether the question may have been acted on.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Lookup(_) => Effect::NotDone,
            Self::Ask(error) => error.effect(),
        }
    }
}

/// Why a mailbox did not join a group. Nothing has changed: the effect is always [`Effect::NotDone`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The mailbox is of another node: each node says for its own mailboxes where they are members.
    #[error("mailbox {0} is not of this node")]
    NotLocal(Pid),
    /// The mailboxes of this node have as many memberships as they may, or this one joined 2^32 times.
    #[error("the mailboxes of this node have as many memberships as they may, {0}")]
    TooMany(usize),
    /// This node has left the cluster, or is shutting down.
    #[error("this node has left the cluster, or is shutting down")]
    Shutdown,
}

impl JoinError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why a mailbox did not leave a group. Nothing has changed: the effect is always [`Effect::NotDone`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// The mailbox is no member, or is of another node.
    #[error("mailbox {0} is no member, or is of another node")]
    NotJoined(Pid),
}

impl LeaveError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why an actor, or a pool of them, was not spawned. No handler has run, and no mailbox, name or membership is left behind:
/// the effect is always [`Effect::NotDone`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A pool has one member at least.
    #[error("a pool needs a member")]
    EmptyPool,
    /// What tells a member of a pool from the others makes no name.
    #[error("not a name")]
    Name(#[from] KeyError),
    /// It did not get its name.
    #[error("the name was not registered")]
    Register(#[from] RegisterError),
    /// It could not join its group.
    #[error("the group was not joined")]
    Join(#[from] JoinError),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl SpawnError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why a message was sent to no member of a group. What became of it at each member, once it was sent, is no error but in
/// the report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BroadcastError {
    /// The message is larger than this node takes.
    #[error("the message has {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes of the encoded message.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The message cannot be encoded.
    #[error("the message cannot be encoded: {0}")]
    Encode(String),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl BroadcastError {
    /// Returns [`Effect::NotDone`].
    pub fn effect(&self) -> Effect {
        Effect::NotDone
    }
}

/// Why names are no voters, or not the ones who may follow those that this node remembers. It is the caller's configuration
/// that is wrong; nothing has happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VotersError {
    /// There is no name.
    #[error("an election needs at least one voter")]
    Empty,
    /// There are too many names.
    #[error("there are {count} voters, at most {max} are allowed")]
    TooMany {
        /// Names given.
        count: usize,
        /// Names allowed.
        max: usize,
    },
    /// A name is given twice.
    #[error("{0} is named twice")]
    Twice(NodeName),
    /// A version or a generation is too great.
    #[error("a version or a generation is greater than {max}")]
    Number {
        /// The greatest that is allowed.
        max: u64,
    },
    /// Two voters without a disk: neither could ever come back after a restart.
    #[error("two voters cannot do without a disk: take one, or three")]
    TwoWithoutDisk,
    /// Fewer than a majority of the set before are voters still, so nobody could be elected.
    #[error("a majority of the voters before has to be among the voters")]
    PreviousGone,
    /// This node has voted under a later version.
    #[error("version {version} of the voters is over: this node has seen version {stored}")]
    Older {
        /// The version given.
        version: u64,
        /// The version seen.
        stored: u64,
    },
    /// This node has voted under this version, and the voters were others.
    #[error(
        "version {version} of the voters has other names than this node remembers: raise the version with every change"
    )]
    SameVersion {
        /// The version given.
        version: u64,
    },
    /// A majority of these could elect a leader while a majority of those before has one.
    #[error(
        "version {version} of the voters is too far from version {stored}: change one voter at a time, or name the set before"
    )]
    Apart {
        /// The version given.
        version: u64,
        /// The version remembered.
        stored: u64,
    },
}

/// Why the votes of this node cannot be read or written. Without them the node must not vote, and does not: a voter that has
/// forgotten its vote may elect a second leader. No file that could not be read is overwritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VoteError {
    /// The system refused: no such directory, no right, no room.
    #[error("{path}: {message}")]
    Io {
        /// What was to be read or written.
        path: PathBuf,
        /// What kind of failure.
        kind: std::io::ErrorKind,
        /// What the system said.
        message: String,
    },
    /// Another node, of this process or another, uses the directory.
    #[error("{0} is in use by another node")]
    Locked(PathBuf),
    /// The file is no vote.
    #[error("{0} is no vote")]
    NotAVote(PathBuf),
    /// The file is a vote, but was cut or changed. Where the others of the election go on without this voter, they may be
    /// given another in its place; where the file is restored from a copy, the vote that it holds may be too old.
    #[error("{0} is damaged")]
    Damaged(PathBuf),
    /// The vote was written by another version of this library.
    #[error("{path} has format {found}, this version reads {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u16,
        /// The format that this version reads and writes.
        known: u16,
    },
    /// It is the vote of another node, of another cluster, or in another election.
    #[error("{path} is of {found:?}, not of {expected:?}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
}

/// Why an election is not taken part in, or did not come to what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElectionError {
    /// The election's name is not one.
    #[error("not the name of an election")]
    Name(#[from] KeyError),
    /// A voter's name is not one.
    #[error("not the name of a voter: {name:?}")]
    Voter {
        /// The text that was given.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// These cannot be the voters.
    #[error("not the voters")]
    Voters(#[from] VotersError),
    /// This node is a voter, has no place for its vote, and was not told to do without.
    #[error("a voter needs a directory for its vote: see Builder::election_dir, or Voters::diskless")]
    NoDirectory,
    /// What this node has voted cannot be read.
    #[error("the vote of this node cannot be read")]
    Vote(#[from] VoteError),
    /// This node only uses the cluster: see [`Builder::client`](crate::Builder::client).
    #[error("a client is no voter")]
    Client,
    /// This node is no voter of the election, so it cannot lead.
    #[error("this node is no voter of the election")]
    NotAVoter,
    /// The one to lead next is no voter, or is this node.
    #[error("{0} is no other voter of the election")]
    NotASuccessor(NodeName),
    /// This node does not lead.
    #[error("this node does not lead")]
    NotLeader,
    /// This node has stopped leading for another, who does not lead in time. Another may, or may yet.
    #[error("{to} does not lead within {patience:?}")]
    NotTransferred {
        /// Who was to lead.
        to: NodeName,
        /// How long it had.
        patience: Duration,
    },
    /// The node takes part in as many elections as it may.
    #[error("this node takes part in {0} elections, and may in no more")]
    TooMany(usize),
    /// The election was opened anew on this node, with other voters.
    #[error("the election goes on with other voters")]
    Superseded,
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Shutdown,
}

impl ElectionError {
    /// Returns [`Effect::Done`] for [`NotTransferred`](Self::NotTransferred), of which the first half is done, and
    /// [`Effect::NotDone`] for all others.
    pub fn effect(&self) -> Effect {
        match self {
            Self::NotTransferred { .. } => Effect::Done,
            _ => Effect::NotDone,
        }
    }
}
