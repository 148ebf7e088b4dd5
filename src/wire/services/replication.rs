//! Frames of the replicated entries: what each node says of its own names and group members.

use std::sync::Arc;

use bytes::Bytes;

use super::super::{
    Fields, WireError, put_be64, put_bytes, take_all, take_be64, take_bytes, take_flag, take_u8, take_u32, take_varint,
};
use super::{
    NAME_METADATA_MAX, Text, put_node, put_option, put_text, put_time, size, take_name, take_node, take_option,
    take_scope,
};
use crate::id::NodeId;

/// How many entries one frame holds, at most: more than [`ITEMS_MAX`](super::ITEMS_MAX) bytes of them.
pub(crate) const ENTRIES_MAX: usize = 4096;

/// What one node says about one key, as of a version of its log. Only that node writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Counted from 1 in each log, which one node has in each scope; no two entries of a log have the same.
    pub(crate) version: u64,
    pub(crate) key: Key,
    pub(crate) state: State,
}

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The owner is ready and decides on claims in that scope. Entries of this kind are in the log of the default scope.
    Arbiter { scope: Text },
    /// The owner's binding of a name.
    Name(Text),
    /// A mailbox of the owner in a group.
    Member { group: Text, serial: u64 },
}

/// What is so of a key. Those that say that something is over are tombstones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Arbiter,
    Bound(Arc<Binding>),
    Joined(Joined),
    /// A tombstone.
    Gone(Ended),
}

/// A name's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    /// Of the mailbox, which lives on the entry's node.
    pub(crate) serial: u64,
    /// When the name was claimed, as a Lamport time; it is kept through replacement and changes of metadata.
    pub(crate) stamp: u64,
    /// The claim was granted because this older binding had been released: that one counts no more.
    pub(crate) after: Option<After>,
    /// Of the messages that the mailbox takes.
    pub(crate) tag: Text,
    pub(crate) metadata: Bytes,
}

/// Every binding of the name in the log of this node up to this version is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct After {
    pub(crate) owner: NodeId,
    pub(crate) version: u64,
}

/// A mailbox's membership in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    /// How often it joined, 1 at least.
    pub(crate) count: u32,
    pub(crate) tag: Text,
}

/// Why a tombstone stands where something was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its owner took it back: unregistered, or left a group.
    Withdrawn,
    /// The owner leaves the cluster.
    Left,
    /// The mailbox closed.
    Closed,
    /// Another claim of the name won.
    Lost,
    /// Replaced by a mailbox of that node: the old binding is to be seen until the new one is, or that node is gone.
    Replaced { by: NodeId, old: Arc<Binding> },
}

/// What a node has of another's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) owner: NodeId,
    pub(crate) version: u64,
    /// Over all entries up to that version that are no tombstones.
    pub(crate) digest: u64,
}

/// What the sender has of the receiver's own log in a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mine {
    pub(crate) scope: Text,
    pub(crate) version: u64,
    pub(crate) digest: u64,
}

/// What nodes tell each other about entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replication {
    /// The first frame of a session: the scopes that the sender takes part in, and what it has there of the receiver's.
    Status { scopes: Vec<Mine> },
    /// The entries of a log with versions above `since`, up to `upto`, in the order of their versions; those that were
    /// overwritten meanwhile are left out.
    Entries {
        scope: Text,
        /// Whose log it is; the sender's own when there is none.
        owner: Option<NodeId>,
        since: u64,
        upto: u64,
        /// These replace all that the receiver has: the log begins here, at version 0, without tombstones.
        is_reset: bool,
        /// Of the sender's entries of that log, when `upto` is all that it has.
        digest: Option<u64>,
        entries: Vec<Entry>,
    },
    /// The sender has the log up to that version now, and there is room for more. The receiver's own log when there is
    /// no owner.
    Have { scope: Text, owner: Option<NodeId>, version: u64 },
    /// Over all that the sender holds in the scope of live nodes; whoever holds something else answers with a `Vector`.
    Digest { scope: Text, digest: u64 },
    /// All logs of live nodes that the sender holds. A question is answered with the same.
    Vector { scope: Text, logs: Vec<Held>, is_question: bool },
    /// The sender wants that log, from that version on; from 0, all of it anew.
    Want { scope: Text, owner: NodeId, since: u64 },
}

const STATUS: u8 = 0x81;
const ENTRIES: u8 = 0x82;
const HAVE: u8 = 0x83;
pub(super) const DIGEST: u8 = 0x84;
const VECTOR: u8 = 0x85;
const WANT: u8 = 0x86;

/// Of keys.
const ARBITER: u8 = 1;
const NAME: u8 = 2;
const MEMBER: u8 = 3;

/// Of states: what the key is about is so, or why it is over.
const HOLDS: u8 = 1;
const WITHDRAWN: u8 = 2;
const CLOSED: u8 = 3;
const LOST: u8 = 4;
const REPLACED: u8 = 5;
const LEFT: u8 = 6;

/// Flags of entries.
const OF_OWNER: u8 = 1;
const RESET: u8 = 2;
const WITH_DIGEST: u8 = 4;

impl Entry {
    /// How many bytes it takes in a frame, at most; 16 at least, so that those that fit
    /// [`ITEMS_MAX`](super::ITEMS_MAX) are not too many either.
    pub(crate) fn size_bound(&self) -> usize {
        size(|count| self.put(count)).max(16)
    }

    fn put(&self, out: &mut impl Fields) {
        let Self { version, key, state } = self;
        debug_assert!(key.may_be(state), "{self:?}");
        out.number(*version);
        match key {
            Key::Arbiter { scope } => {
                out.bytes(&[ARBITER]);
                put_text(out, scope);
            }
            Key::Name(name) => {
                out.bytes(&[NAME]);
                put_text(out, name);
            }
            Key::Member { group, serial } => {
                out.bytes(&[MEMBER]);
                put_text(out, group);
                out.number(*serial);
            }
        }
        match state {
            State::Arbiter => out.bytes(&[HOLDS]),
            State::Bound(binding) => {
                out.bytes(&[HOLDS]);
                binding.put(out);
            }
            State::Joined(Joined { count, tag }) => {
                out.bytes(&[HOLDS]);
                out.number((*count).into());
                put_text(out, tag);
            }
            State::Gone(Ended::Withdrawn) => out.bytes(&[WITHDRAWN]),
            State::Gone(Ended::Left) => out.bytes(&[LEFT]),
            State::Gone(Ended::Closed) => out.bytes(&[CLOSED]),
            State::Gone(Ended::Lost) => out.bytes(&[LOST]),
            State::Gone(Ended::Replaced { by, old }) => {
                out.bytes(&[REPLACED]);
                put_node(out, by);
                old.put(out);
            }
        }
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        let version = take_varint(body)?;
        let key = match take_u8(body)? {
            ARBITER => Key::Arbiter { scope: take_scope(body)? },
            NAME => Key::Name(take_name(body)?),
            MEMBER => Key::Member { group: take_name(body)?, serial: take_varint(body)? },
            _ => return Err(WireError::Value("key")),
        };
        let state = match (take_u8(body)?, &key) {
            (HOLDS, Key::Arbiter { .. }) => State::Arbiter,
            (HOLDS, Key::Name(_)) => State::Bound(Arc::new(Binding::take(body)?)),
            (HOLDS, Key::Member { .. }) => {
                let count = take_u32(body)?;
                if count == 0 {
                    return Err(WireError::Value("count"));
                }
                State::Joined(Joined { count, tag: take_name(body)? })
            }
            (WITHDRAWN, _) => State::Gone(Ended::Withdrawn),
            (LEFT, _) => State::Gone(Ended::Left),
            (CLOSED, _) => State::Gone(Ended::Closed),
            (LOST, _) => State::Gone(Ended::Lost),
            (REPLACED, _) => State::Gone(Ended::Replaced { by: take_node(body)?, old: Arc::new(Binding::take(body)?) }),
            _ => return Err(WireError::Value("state")),
        };
        if !key.may_be(&state) {
            return Err(WireError::Value("state"));
        }
        Ok(Self { version, key, state })
    }
}

impl Key {
    fn may_be(&self, state: &State) -> bool {
        match state {
            State::Arbiter => matches!(self, Self::Arbiter { .. }),
            State::Joined(_) => matches!(self, Self::Member { .. }),
            State::Bound(_) | State::Gone(Ended::Lost | Ended::Replaced { .. }) => matches!(self, Self::Name(_)),
            State::Gone(Ended::Left) => !matches!(self, Self::Arbiter { .. }),
            State::Gone(Ended::Withdrawn | Ended::Closed) => true,
        }
    }
}

impl Binding {
    fn put(&self, out: &mut impl Fields) {
        let Self { serial, stamp, after, tag, metadata } = self;
        debug_assert!(metadata.len() <= NAME_METADATA_MAX);
        out.number(*serial);
        put_time(out, *stamp);
        put_option(out, after.as_ref(), |out, after| after.put(out));
        put_text(out, tag);
        put_bytes(out, metadata);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            serial: take_varint(body)?,
            stamp: take_varint(body)?,
            after: take_option(body, After::take)?,
            tag: take_name(body)?,
            metadata: take_bytes(body, NAME_METADATA_MAX)?,
        })
    }
}

impl After {
    pub(super) fn put(&self, out: &mut impl Fields) {
        put_node(out, &self.owner);
        out.number(self.version);
    }

    pub(super) fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { owner: take_node(body)?, version: take_varint(body)? })
    }
}

impl Held {
    /// How many bytes it takes in a frame.
    pub(crate) fn size_bound(&self) -> usize {
        size(|count| self.put(count))
    }

    fn put(&self, out: &mut impl Fields) {
        put_node(out, &self.owner);
        out.number(self.version);
        put_be64(out, self.digest);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { owner: take_node(body)?, version: take_varint(body)?, digest: take_be64(body)? })
    }
}

impl Mine {
    fn put(&self, out: &mut impl Fields) {
        put_text(out, &self.scope);
        out.number(self.version);
        put_be64(out, self.digest);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { scope: take_scope(body)?, version: take_varint(body)?, digest: take_be64(body)? })
    }
}

impl Replication {
    pub(super) fn has(kind: u8) -> bool {
        (STATUS..=WANT).contains(&kind)
    }

    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Status { .. } => STATUS,
            Self::Entries { .. } => ENTRIES,
            Self::Have { .. } => HAVE,
            Self::Digest { .. } => DIGEST,
            Self::Vector { .. } => VECTOR,
            Self::Want { .. } => WANT,
        }
    }

    pub(super) fn put_fields(&self, out: &mut impl Fields) {
        match self {
            Self::Status { scopes } => scopes.iter().for_each(|mine| mine.put(out)),
            Self::Entries { scope, owner, since, upto, is_reset, digest, entries } => {
                debug_assert!(are_within(entries, *since, *upto) && entries.len() <= ENTRIES_MAX);
                debug_assert!(!is_reset || *since == 0);
                put_text(out, scope);
                let flag = |is_set, flag| if is_set { flag } else { 0 };
                let (owned, reset) = (flag(owner.is_some(), OF_OWNER), flag(*is_reset, RESET));
                out.bytes(&[owned | reset | flag(digest.is_some(), WITH_DIGEST)]);
                if let Some(owner) = owner {
                    put_node(out, owner);
                }
                out.number(*since);
                out.number(*upto);
                if let Some(digest) = digest {
                    put_be64(out, *digest);
                }
                entries.iter().for_each(|entry| entry.put(out));
            }
            Self::Have { scope, owner, version } => {
                put_text(out, scope);
                put_option(out, owner.as_ref(), put_node);
                out.number(*version);
            }
            Self::Digest { scope, digest } => {
                put_text(out, scope);
                put_be64(out, *digest);
            }
            Self::Vector { scope, logs, is_question } => {
                put_text(out, scope);
                out.bytes(&[u8::from(*is_question)]);
                logs.iter().for_each(|held| held.put(out));
            }
            Self::Want { scope, owner, since } => {
                put_text(out, scope);
                put_node(out, owner);
                out.number(*since);
            }
        }
    }

    pub(super) fn take(kind: u8, body: &mut Bytes) -> Result<Self, WireError> {
        if kind == STATUS {
            return Ok(Self::Status { scopes: take_all(body, usize::MAX, Mine::take)? });
        }
        let scope = take_scope(body)?;
        Ok(match kind {
            ENTRIES => {
                let flags = take_u8(body)?;
                if flags & !(OF_OWNER | RESET | WITH_DIGEST) != 0 {
                    return Err(WireError::Value("flags"));
                }
                let owner = if flags & OF_OWNER != 0 { Some(take_node(body)?) } else { None };
                let (since, upto) = (take_varint(body)?, take_varint(body)?);
                let is_reset = flags & RESET != 0;
                if since > upto || is_reset && since > 0 {
                    return Err(WireError::Value("versions"));
                }
                let digest = if flags & WITH_DIGEST != 0 { Some(take_be64(body)?) } else { None };
                let entries = take_all(body, ENTRIES_MAX, Entry::take)?;
                if !are_within(&entries, since, upto) {
                    return Err(WireError::Value("versions"));
                }
                Self::Entries { scope, owner, since, upto, is_reset, digest, entries }
            }
            HAVE => Self::Have { scope, owner: take_option(body, take_node)?, version: take_varint(body)? },
            DIGEST => Self::Digest { scope, digest: take_be64(body)? },
            VECTOR => {
                let is_question = take_flag(body)?;
                Self::Vector { scope, logs: take_all(body, usize::MAX, Held::take)?, is_question }
            }
            WANT => Self::Want { scope, owner: take_node(body)?, since: take_varint(body)? },
            kind => return Err(WireError::UnknownFrame(kind)),
        })
    }
}

/// Whether the versions ascend, above `since` and up to `upto`.
fn are_within(entries: &[Entry], since: u64, upto: u64) -> bool {
    let first = entries.first().is_none_or(|entry| entry.version > since);
    let last = entries.last().is_none_or(|entry| entry.version <= upto);
    first && last && entries.is_sorted_by(|a, b| a.version < b.version)
}
