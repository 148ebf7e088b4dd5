//! Frames of claims: who may have a name.

use bytes::Bytes;

use super::super::{Fields, WireError, put_bytes, take_all, take_bytes, take_flag, take_u8, take_varint};
use super::replication::After;
use super::{
    NAME_METADATA_MAX, Text, put_node, put_option, put_pid, put_text, put_time, size, take_name, take_node,
    take_option, take_pid, take_scope,
};
use crate::id::{NodeId, Pid};

/// What nodes tell each other about claims. Every one carries the sender's Lamport time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Registry {
    /// Numbers are the sender's own, and come back with the answer.
    Request {
        number: u64,
        clock: u64,
        request: Request,
    },
    Answer {
        number: u64,
        clock: u64,
        answer: Answer,
    },
    /// The claim is given up, or was not granted.
    Withdraw {
        scope: Text,
        name: Text,
        token: Token,
        clock: u64,
    },
}

/// A claim, whoever coordinates it and however often it is tried: the claiming node, and that node's number for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token {
    pub(crate) node: NodeId,
    pub(crate) number: u64,
}

/// That mailbox neither holds the name nor claims it, as of that Lamport time of its node: whatever it claimed before is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spent {
    pub(crate) mailbox: Pid,
    pub(crate) time: u64,
}

/// What one node asks of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// To the coordinator: grant me the name.
    Claim {
        scope: Text,
        name: Text,
        claim: u64,
        serial: u64,
        /// Only as the successor of this mailbox.
        replacing: Option<Pid>,
        /// The claiming node is an arbiter itself, and has voted for it.
        has_voted: bool,
    },
    /// To the other arbiters: may this claim be granted?
    Vote {
        scope: Text,
        name: Text,
        token: Token,
        serial: u64,
        stamp: u64,
        replacing: Option<Pid>,
        /// Of this owner it is known that it holds the name no more, since that version.
        free: Option<After>,
        /// Whoever holds a vote by a claim that is over is known by this.
        spent: Option<Spent>,
    },
    /// To an owner, or to who claims the name: does the mailbox hold it?
    Confirm { scope: Text, name: Text, serial: u64 },
    /// To the owner of the older claim: does it hold the name against this one?
    Contend { scope: Text, name: Text, serial: u64, contender: Pid, stamp: u64 },
    /// To the owner: give it up, for that successor or for nobody.
    Release { scope: Text, name: Text, serial: u64, successor: Option<Pid> },
    /// To the owner: set the metadata, if the binding is still of that version.
    Update { scope: Text, name: Text, serial: u64, version: u64, metadata: Bytes },
    /// From a new arbiter: what have you granted that is not bound yet, where I decide now?
    Hold { scope: Text },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To `Claim`.
    Granted {
        stamp: u64,
        after: Option<After>,
    },
    Taken {
        owner: Pid,
        is_confirmed: bool,
    },
    /// Another claim is under way, or this one did not get its majority: try again.
    Contended,
    /// To whatever asks for an arbiter: I am none for that name.
    NotArbiter,
    /// I do not take part in that scope.
    NotInScope,
    /// There is no room for it here.
    Busy,
    /// To `Claim` with a predecessor, `Release`, `Update`: that mailbox is not the owner.
    NotOwner {
        owner: Option<Pid>,
    },
    /// To `Vote`.
    Yes,
    No {
        holder: Pid,
    },
    /// To `Confirm` and `Contend`.
    Holds,
    /// It claims the name, and was not answered yet.
    Claims,
    /// Not, or no more: as of that version of the log.
    Free {
        version: u64,
    },
    /// To `Contend`: the contender is to give it up.
    Wins,
    /// To `Contend`: the contender keeps it; the older claim was given up.
    Yields {
        version: u64,
    },
    /// To `Contend`: both give it up.
    Neither,
    /// To `Release`.
    Released {
        version: u64,
        stamp: u64,
    },
    /// To `Update`.
    Updated {
        version: u64,
    },
    /// To `Update`: it has changed meanwhile.
    Stale {
        version: u64,
        metadata: Bytes,
    },
    /// To `Hold`.
    Held {
        pending: Vec<Pending>,
    },
}

/// A claim that an arbiter has voted for, and whose binding it has not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) name: Text,
    pub(crate) token: Token,
    pub(crate) serial: u64,
    pub(crate) stamp: u64,
}

impl Request {
    pub(crate) fn scope(&self) -> &Text {
        match self {
            Self::Claim { scope, .. }
            | Self::Vote { scope, .. }
            | Self::Confirm { scope, .. }
            | Self::Contend { scope, .. }
            | Self::Release { scope, .. }
            | Self::Update { scope, .. }
            | Self::Hold { scope } => scope,
        }
    }
}

const REQUEST: u8 = 0x90;
const ANSWER: u8 = 0x91;
const WITHDRAW: u8 = 0x92;

/// Of requests.
const CLAIM: u8 = 1;
const VOTE: u8 = 2;
const CONFIRM: u8 = 3;
const CONTEND: u8 = 4;
const RELEASE: u8 = 5;
const UPDATE: u8 = 6;
const HOLD: u8 = 7;

/// Of answers.
const GRANTED: u8 = 1;
const TAKEN: u8 = 2;
const CONTENDED: u8 = 3;
const NOT_ARBITER: u8 = 4;
const NOT_IN_SCOPE: u8 = 5;
const BUSY: u8 = 6;
const NOT_OWNER: u8 = 7;
const YES: u8 = 8;
const NO: u8 = 9;
const HOLDS: u8 = 10;
const CLAIMS: u8 = 11;
const FREE: u8 = 12;
const WINS: u8 = 13;
const YIELDS: u8 = 14;
const NEITHER: u8 = 15;
const RELEASED: u8 = 16;
const UPDATED: u8 = 17;
const STALE: u8 = 18;
const HELD: u8 = 19;

impl Token {
    fn put(&self, out: &mut impl Fields) {
        put_node(out, &self.node);
        out.number(self.number);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { node: take_node(body)?, number: take_varint(body)? })
    }
}

impl Spent {
    fn put(&self, out: &mut impl Fields) {
        put_pid(out, &self.mailbox);
        put_time(out, self.time);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { mailbox: take_pid(body)?, time: take_varint(body)? })
    }
}

impl Pending {
    /// How many bytes it takes in a frame.
    pub(crate) fn size_bound(&self) -> usize {
        size(|count| self.put(count))
    }

    fn put(&self, out: &mut impl Fields) {
        put_text(out, &self.name);
        self.token.put(out);
        out.number(self.serial);
        put_time(out, self.stamp);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            name: take_name(body)?,
            token: Token::take(body)?,
            serial: take_varint(body)?,
            stamp: take_varint(body)?,
        })
    }
}

impl Request {
    fn put(&self, out: &mut impl Fields) {
        fn head(out: &mut impl Fields, kind: u8, scope: &Text, name: &Text) {
            out.bytes(&[kind]);
            put_text(out, scope);
            put_text(out, name);
        }
        match self {
            Self::Claim { scope, name, claim, serial, replacing, has_voted } => {
                head(out, CLAIM, scope, name);
                out.number(*claim);
                out.number(*serial);
                put_option(out, replacing.as_ref(), put_pid);
                out.bytes(&[u8::from(*has_voted)]);
            }
            Self::Vote { scope, name, token, serial, stamp, replacing, free, spent } => {
                head(out, VOTE, scope, name);
                token.put(out);
                out.number(*serial);
                put_time(out, *stamp);
                put_option(out, replacing.as_ref(), put_pid);
                put_option(out, free.as_ref(), |out, free| free.put(out));
                put_option(out, spent.as_ref(), |out, spent| spent.put(out));
            }
            Self::Confirm { scope, name, serial } => {
                head(out, CONFIRM, scope, name);
                out.number(*serial);
            }
            Self::Contend { scope, name, serial, contender, stamp } => {
                head(out, CONTEND, scope, name);
                out.number(*serial);
                put_pid(out, contender);
                put_time(out, *stamp);
            }
            Self::Release { scope, name, serial, successor } => {
                head(out, RELEASE, scope, name);
                out.number(*serial);
                put_option(out, successor.as_ref(), put_pid);
            }
            Self::Update { scope, name, serial, version, metadata } => {
                debug_assert!(metadata.len() <= NAME_METADATA_MAX);
                head(out, UPDATE, scope, name);
                out.number(*serial);
                out.number(*version);
                put_bytes(out, metadata);
            }
            Self::Hold { scope } => {
                out.bytes(&[HOLD]);
                put_text(out, scope);
            }
        }
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        let kind = take_u8(body)?;
        if !(CLAIM..=HOLD).contains(&kind) {
            return Err(WireError::Value("request"));
        }
        let scope = take_scope(body)?;
        if kind == HOLD {
            return Ok(Self::Hold { scope });
        }
        let name = take_name(body)?;
        Ok(match kind {
            CLAIM => Self::Claim {
                scope,
                name,
                claim: take_varint(body)?,
                serial: take_varint(body)?,
                replacing: take_option(body, take_pid)?,
                has_voted: take_flag(body)?,
            },
            VOTE => Self::Vote {
                scope,
                name,
                token: Token::take(body)?,
                serial: take_varint(body)?,
                stamp: take_varint(body)?,
                replacing: take_option(body, take_pid)?,
                free: take_option(body, After::take)?,
                spent: take_option(body, Spent::take)?,
            },
            CONFIRM => Self::Confirm { scope, name, serial: take_varint(body)? },
            CONTEND => Self::Contend {
                scope,
                name,
                serial: take_varint(body)?,
                contender: take_pid(body)?,
                stamp: take_varint(body)?,
            },
            RELEASE => {
                Self::Release { scope, name, serial: take_varint(body)?, successor: take_option(body, take_pid)? }
            }
            _ => Self::Update {
                scope,
                name,
                serial: take_varint(body)?,
                version: take_varint(body)?,
                metadata: take_bytes(body, NAME_METADATA_MAX)?,
            },
        })
    }
}

impl Answer {
    fn put(&self, out: &mut impl Fields) {
        match self {
            Self::Granted { stamp, after } => {
                out.bytes(&[GRANTED]);
                put_time(out, *stamp);
                put_option(out, after.as_ref(), |out, after| after.put(out));
            }
            Self::Taken { owner, is_confirmed } => {
                out.bytes(&[TAKEN]);
                put_pid(out, owner);
                out.bytes(&[u8::from(*is_confirmed)]);
            }
            Self::Contended => out.bytes(&[CONTENDED]),
            Self::NotArbiter => out.bytes(&[NOT_ARBITER]),
            Self::NotInScope => out.bytes(&[NOT_IN_SCOPE]),
            Self::Busy => out.bytes(&[BUSY]),
            Self::NotOwner { owner } => {
                out.bytes(&[NOT_OWNER]);
                put_option(out, owner.as_ref(), put_pid);
            }
            Self::Yes => out.bytes(&[YES]),
            Self::No { holder } => {
                out.bytes(&[NO]);
                put_pid(out, holder);
            }
            Self::Holds => out.bytes(&[HOLDS]),
            Self::Claims => out.bytes(&[CLAIMS]),
            Self::Free { version } => {
                out.bytes(&[FREE]);
                out.number(*version);
            }
            Self::Wins => out.bytes(&[WINS]),
            Self::Yields { version } => {
                out.bytes(&[YIELDS]);
                out.number(*version);
            }
            Self::Neither => out.bytes(&[NEITHER]),
            Self::Released { version, stamp } => {
                out.bytes(&[RELEASED]);
                out.number(*version);
                put_time(out, *stamp);
            }
            Self::Updated { version } => {
                out.bytes(&[UPDATED]);
                out.number(*version);
            }
            Self::Stale { version, metadata } => {
                debug_assert!(metadata.len() <= NAME_METADATA_MAX);
                out.bytes(&[STALE]);
                out.number(*version);
                put_bytes(out, metadata);
            }
            Self::Held { pending } => {
                out.bytes(&[HELD]);
                pending.iter().for_each(|pending| pending.put(out));
            }
        }
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(match take_u8(body)? {
            GRANTED => Self::Granted { stamp: take_varint(body)?, after: take_option(body, After::take)? },
            TAKEN => Self::Taken { owner: take_pid(body)?, is_confirmed: take_flag(body)? },
            CONTENDED => Self::Contended,
            NOT_ARBITER => Self::NotArbiter,
            NOT_IN_SCOPE => Self::NotInScope,
            BUSY => Self::Busy,
            NOT_OWNER => Self::NotOwner { owner: take_option(body, take_pid)? },
            YES => Self::Yes,
            NO => Self::No { holder: take_pid(body)? },
            HOLDS => Self::Holds,
            CLAIMS => Self::Claims,
            FREE => Self::Free { version: take_varint(body)? },
            WINS => Self::Wins,
            YIELDS => Self::Yields { version: take_varint(body)? },
            NEITHER => Self::Neither,
            RELEASED => Self::Released { version: take_varint(body)?, stamp: take_varint(body)? },
            UPDATED => Self::Updated { version: take_varint(body)? },
            STALE => Self::Stale { version: take_varint(body)?, metadata: take_bytes(body, NAME_METADATA_MAX)? },
            HELD => Self::Held { pending: take_all(body, usize::MAX, Pending::take)? },
            _ => return Err(WireError::Value("answer")),
        })
    }
}

impl Registry {
    pub(super) fn has(kind: u8) -> bool {
        (REQUEST..=WITHDRAW).contains(&kind)
    }

    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Request { .. } => REQUEST,
            Self::Answer { .. } => ANSWER,
            Self::Withdraw { .. } => WITHDRAW,
        }
    }

    pub(super) fn put_fields(&self, out: &mut impl Fields) {
        match self {
            Self::Request { number, clock, request } => {
                out.number(*number);
                put_time(out, *clock);
                request.put(out);
            }
            Self::Answer { number, clock, answer } => {
                out.number(*number);
                put_time(out, *clock);
                answer.put(out);
            }
            Self::Withdraw { scope, name, token, clock } => {
                put_text(out, scope);
                put_text(out, name);
                token.put(out);
                put_time(out, *clock);
            }
        }
    }

    pub(super) fn take(kind: u8, body: &mut Bytes) -> Result<Self, WireError> {
        Ok(match kind {
            REQUEST => {
                let (number, clock) = (take_varint(body)?, take_varint(body)?);
                Self::Request { number, clock, request: Request::take(body)? }
            }
            ANSWER => {
                let (number, clock) = (take_varint(body)?, take_varint(body)?);
                Self::Answer { number, clock, answer: Answer::take(body)? }
            }
            WITHDRAW => Self::Withdraw {
                scope: take_scope(body)?,
                name: take_name(body)?,
                token: Token::take(body)?,
                clock: take_varint(body)?,
            },
            kind => return Err(WireError::UnknownFrame(kind)),
        })
    }
}
