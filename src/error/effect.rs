//! Whether what failed may have happened all the same, and whether it is worth trying again.

use super::{
    AskError, BatchError, BroadcastError, CallError, CastError, ConnectError, ElectionError, Error, JoinError,
    LeaveError, LookupError, NamedAskError, NamedSendError, PingError, PublishError, RecvError, RegisterError,
    ReplaceError, SendError, SinkError, SpawnError, UnregisterError, UpdateError, WaitError,
};

/// Whether what failed may have happened all the same.
///
/// Only [`Effect::NotDone`] is safe to repeat without thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// It did not happen, and will not.
    NotDone,
    /// It may have happened, or may yet.
    Unknown,
    /// It happened.
    Done,
}

/// Errors that know whether what failed may have happened all the same: those of this crate, and your own.
///
/// It is what [`Retry`](crate::Retry) goes by.
pub trait HasEffect {
    /// Tells whether what failed may have happened all the same.
    fn effect(&self) -> Effect;

    /// Tells whether it would fail again for the same reason, however long one waits: what was to be sent is too large, say.
    /// The default is false.
    fn is_lasting(&self) -> bool {
        false
    }
}

/// What the errors say of their effect, for [`HasEffect`]; and which of them would be the same however long one waits.
macro_rules! has_effect {
    ($($error:ident: $lasting:pat,)*) => {$(
        impl HasEffect for $error {
            fn effect(&self) -> Effect {
                self.effect()
            }

            fn is_lasting(&self) -> bool {
                matches!(self, $lasting)
            }
        }
    )*};
}

has_effect! {
    ConnectError: Self::BadAddress(_) | Self::IsSelf | Self::Shutdown,
    PingError: Self::NotConnected(ConnectError::BadAddress(_) | ConnectError::Shutdown),
    SendError: Self::TooLarge { .. } | Self::Encode(_) | Self::Unbound | Self::WrongType(_) | Self::Shutdown,
    CallError: Self::TooLarge { .. }
        | Self::Encode(_)
        | Self::Mismatch(_)
        | Self::Undecodable
        | Self::NotConnected(_, Some(ConnectError::Shutdown)),
    CastError: Self::TooLarge { .. } | Self::Encode(_) | Self::NotConnected(_, Some(ConnectError::Shutdown)),
    SinkError: _,
    PublishError: Self::TooLarge { .. } | Self::Encode(_) | Self::Shutdown,
    RegisterError: Self::MailboxClosed(_)
        | Self::WrongNode(_)
        | Self::TooLarge { .. }
        | Self::NotInScope
        | Self::Shutdown,
    UnregisterError: Self::NotOwner { .. } | Self::NotRegistered | Self::Shutdown,
    ReplaceError: Self::NotOwner { .. }
        | Self::NotRegistered
        | Self::MailboxClosed(_)
        | Self::WrongNode(_)
        | Self::TooLarge { .. }
        | Self::NotInScope
        | Self::Shutdown,
    JoinError: Self::NotLocal(_) | Self::Shutdown,
    LeaveError: _,
    BroadcastError: _,
    ElectionError: Self::Name(_)
        | Self::Voter { .. }
        | Self::Voters(_)
        | Self::NoDirectory
        | Self::Vote(_)
        | Self::Client
        | Self::NotAVoter
        | Self::NotASuccessor(_)
        | Self::Superseded
        | Self::Shutdown,
}

impl HasEffect for AskError {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        matches!(self, Self::NotSent(error) if error.is_lasting())
    }
}

impl<E> HasEffect for UpdateError<E> {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::TooLarge { .. } | Self::Shutdown)
    }
}

/// A name that is not there may be there soon.
impl HasEffect for LookupError {
    fn effect(&self) -> Effect {
        Effect::NotDone
    }

    fn is_lasting(&self) -> bool {
        matches!(self, Self::TagMismatch { .. })
    }
}

impl HasEffect for WaitError {
    fn effect(&self) -> Effect {
        Effect::NotDone
    }

    fn is_lasting(&self) -> bool {
        matches!(self, Self::TagMismatch { .. } | Self::Shutdown)
    }
}

impl HasEffect for NamedSendError {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        match self {
            Self::Name(_) => true,
            Self::Lookup(error) => error.is_lasting(),
            Self::Send(error) => error.is_lasting(),
            Self::Absent(_) | Self::Timeout(_) => false,
        }
    }
}

impl HasEffect for BatchError {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        self.failed().any(|(_, reason)| reason.is_lasting())
    }
}

impl HasEffect for SpawnError {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        match self {
            Self::EmptyPool | Self::Name(_) | Self::Shutdown => true,
            Self::Register(error) => error.is_lasting(),
            Self::Join(error) => error.is_lasting(),
        }
    }
}

impl HasEffect for NamedAskError {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        match self {
            Self::Lookup(error) => error.is_lasting(),
            Self::Ask(error) => error.is_lasting(),
        }
    }
}

impl HasEffect for Error {
    fn effect(&self) -> Effect {
        self.effect()
    }

    fn is_lasting(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_lasting(),
            Self::Ping(error) => error.is_lasting(),
            Self::Send(error) => error.is_lasting(),
            Self::Call(error) => error.is_lasting(),
            Self::Cast(error) => error.is_lasting(),
            Self::Sink(error) => error.is_lasting(),
            Self::Ask(error) => error.is_lasting(),
            Self::Publish(error) => error.is_lasting(),
            Self::Register(error) => error.is_lasting(),
            Self::Unregister(error) => error.is_lasting(),
            Self::Replace(error) => error.is_lasting(),
            Self::Update(error) => error.is_lasting(),
            Self::Lookup(error) => error.is_lasting(),
            Self::Wait(error) => error.is_lasting(),
            Self::NamedSend(error) => error.is_lasting(),
            Self::Spawn(error) => error.is_lasting(),
            Self::Batch(error) => error.is_lasting(),
            Self::NamedAsk(error) => error.is_lasting(),
            Self::Join(error) => error.is_lasting(),
            Self::Leave(error) => error.is_lasting(),
            Self::Broadcast(error) => error.is_lasting(),
            Self::Election(error) => error.is_lasting(),
            Self::Recv(error) => *error == RecvError::Closed,
            // What a program gets wrong, or another life of it has to change.
            Self::Name(_)
            | Self::Key(_)
            | Self::Cookie(_)
            | Self::Identity(_)
            | Self::Trust(_)
            | Self::Config(_)
            | Self::Start(_)
            | Self::Serve(_)
            | Self::Metadata(_)
            | Self::Ready(_)
            | Self::Scope(_)
            | Self::Voters(_) => true,
        }
    }
}
