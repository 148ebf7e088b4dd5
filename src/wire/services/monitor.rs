//! Frames of monitors.

use bytes::Bytes;

use super::super::{Fields, SKIPPABLE, WireError, take_all, take_text, take_u8, take_varint};
use super::{Text, put_option, put_text, take_option};

/// How many cuts one frame holds, at most. A mailbox that more have watched is told of in several frames of its serial:
/// the first says what became of it, and each has cuts that the others do not have.
pub(crate) const CUTS_MAX: usize = 4000;

/// The longest reason for which a mailbox failed, in bytes. A longer one is cut.
pub const REASON_MAX: usize = 256;

/// As much of a reason as travels.
pub(crate) fn reason(text: &str) -> Text {
    let end = (0..=text.len().min(REASON_MAX)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text[..end].into()
}

/// What nodes tell each other about watched mailboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Monitor {
    /// The sender is to be told when the receiver's mailbox is gone. With a mailbox of the sender, the answer says how
    /// many messages came before it in that mailbox's lane.
    Watch { serial: u64, mailbox: Option<u64> },
    /// The sender no longer is to be told.
    Unwatch { serial: u64, mailbox: Option<u64> },
    /// The sender's mailbox is gone. Of each of the receiver's mailboxes that asked: the number that its lane's next
    /// message would have had. One end may be told in several frames, see [`CUTS_MAX`].
    Down { serial: u64, gone: Gone, cuts: Vec<Cut> },
    /// The sender's mailbox has failed, for that reason. [`Monitor::Down`] follows, and says that it was closed, which is all
    /// that older peers hear.
    Failed { serial: u64, reason: Text },
}

/// A point in the lane of a mailbox: all messages with lower numbers come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) mailbox: u64,
    pub(crate) number: u64,
}

/// How a mailbox came to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    Closed,
    Panicked,
    /// There is none of that serial, or none any more.
    NoSuchMailbox,
}

const WATCH: u8 = 0xa0;
const UNWATCH: u8 = 0xa1;
const DOWN: u8 = 0xa2;
const FAILED: u8 = 0xa3 | SKIPPABLE;

impl Gone {
    const ALL: [Self; 3] = [Self::Closed, Self::Panicked, Self::NoSuchMailbox];

    fn to_byte(self) -> u8 {
        match self {
            Self::Closed => 1,
            Self::Panicked => 2,
            Self::NoSuchMailbox => 3,
        }
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        let byte = take_u8(body)?;
        Self::ALL.into_iter().find(|gone| gone.to_byte() == byte).ok_or(WireError::Value("fate"))
    }
}

impl Monitor {
    pub(super) fn has(kind: u8) -> bool {
        (WATCH..=DOWN).contains(&kind) || kind == FAILED
    }

    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Watch { .. } => WATCH,
            Self::Unwatch { .. } => UNWATCH,
            Self::Down { .. } => DOWN,
            Self::Failed { .. } => FAILED,
        }
    }

    pub(super) fn put_fields(&self, out: &mut impl Fields) {
        match self {
            Self::Watch { serial, mailbox } | Self::Unwatch { serial, mailbox } => {
                out.number(*serial);
                put_option(out, mailbox.as_ref(), |out, mailbox| out.number(*mailbox));
            }
            Self::Down { serial, gone, cuts } => {
                debug_assert!(cuts.len() <= CUTS_MAX);
                out.number(*serial);
                out.bytes(&[gone.to_byte()]);
                for Cut { mailbox, number } in cuts {
                    out.number(*mailbox);
                    out.number(*number);
                }
            }
            Self::Failed { serial, reason } => {
                debug_assert!(reason.len() <= REASON_MAX);
                out.number(*serial);
                put_text(out, reason);
            }
        }
    }

    pub(super) fn take(kind: u8, body: &mut Bytes) -> Result<Self, WireError> {
        let serial = take_varint(body)?;
        Ok(match kind {
            WATCH => Self::Watch { serial, mailbox: take_option(body, take_varint)? },
            UNWATCH => Self::Unwatch { serial, mailbox: take_option(body, take_varint)? },
            DOWN => {
                let gone = Gone::take(body)?;
                let cut = |body: &mut Bytes| Ok(Cut { mailbox: take_varint(body)?, number: take_varint(body)? });
                Self::Down { serial, gone, cuts: take_all(body, CUTS_MAX, cut)? }
            }
            FAILED => Self::Failed { serial, reason: take_text(body, REASON_MAX)?.into() },
            kind => return Err(WireError::UnknownFrame(kind)),
        })
    }
}
