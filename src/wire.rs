//! Frames: every byte that a link carries, except message bodies.
//!
//! A stream starts with its kind (one byte), then holds frames: a type (one byte), a length ([RFC 9000, section 16]
//! varint), a body. A type with the bit [`SKIPPABLE`] may be skipped by a peer that does not know it; any other unknown
//! type ends the session. The codec is written by hand, because what is read here comes from a peer that may be hostile:
//! lengths are checked before anything is kept, and nothing is allocated by a number that arrived.
//!
//! [RFC 9000, section 16]: https://www.rfc-editor.org/rfc/rfc9000#section-16

pub(crate) mod membership;
pub(crate) mod services;

use std::str;

use bytes::{Buf, Bytes, BytesMut};

use crate::id::{NODE_NAME_MAX, NodeName};
pub(crate) use crate::trace::Trace;

/// Set in the type of a frame, or in the kind of a stream, that a peer who does not know it skips.
pub(crate) const SKIPPABLE: u8 = 0x40;

/// The largest HELLO, in bytes.
pub(crate) const HELLO_MAX: usize = 4096;

/// The largest body of a control frame, in bytes.
pub(crate) const CONTROL_MAX: usize = 64 * 1024;

/// What the frame around a body may add to it, in bytes: an upper bound.
pub(crate) const OVERHEAD_MAX: usize = 1024;

/// The longest tag or method name, in bytes.
pub(crate) const TAG_MAX: usize = 255;

/// What a byte sequence from a peer may be guilty of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a frame ends before its content does")]
    Short,
    #[error("a frame goes on after its content")]
    Trailing,
    #[error("a frame of {0} bytes is longer than its kind allows")]
    TooLong(u64),
    #[error("a value is out of its range: {0}")]
    Value(&'static str),
    #[error("an unknown frame of type {0:#04x}")]
    UnknownFrame(u8),
}

/// Application close codes, carried in QUIC's CONNECTION_CLOSE.
///
/// Some are sent in good order, after both sides agreed that all was read; the rest end the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Code(pub(crate) u32);

impl Code {
    /// The user asked for it.
    pub(crate) const NORMAL: Self = Self(0x00);
    pub(crate) const SHUTDOWN: Self = Self(0x01);
    pub(crate) const IDLE: Self = Self(0x02);
    /// This side presents another certificate by now; the next link carries on.
    pub(crate) const OUTDATED: Self = Self(0x03);
    pub(crate) const HELLO_TIMEOUT: Self = Self(0x10);
    pub(crate) const BAD_PROOF: Self = Self(0x11);
    pub(crate) const NAME_MISMATCH: Self = Self(0x12);
    /// The reason holds the incarnation that answers, as 8 bytes, if that began later.
    pub(crate) const NAME_CONFLICT: Self = Self(0x13);
    pub(crate) const SELF: Self = Self(0x14);
    pub(crate) const PROTOCOL: Self = Self(0x15);
    pub(crate) const FRAME_TOO_LARGE: Self = Self(0x16);
    /// The peer would not be let in any more.
    pub(crate) const TRUST_CHANGED: Self = Self(0x17);
    pub(crate) const LIMIT: Self = Self(0x18);
    pub(crate) const VERSION: Self = Self(0x19);
    pub(crate) const MODE_MISMATCH: Self = Self(0x1a);
    /// Two dials crossed; the other link serves the session.
    pub(crate) const DUPLICATE_LINK: Self = Self(0x1b);
    pub(crate) const SLOW: Self = Self(0x1c);
    /// This side counts more ends of sessions than the HELLO knew of.
    pub(crate) const STALE_LINK: Self = Self(0x1d);
    /// The reason holds the incarnation that is known, as 8 bytes.
    pub(crate) const STALE_INCARNATION: Self = Self(0x1e);
    /// No sign of life.
    pub(crate) const LOST: Self = Self(0x1f);
    /// The peer is a member, and not on the list of those that are let in.
    pub(crate) const NOT_ALLOWED: Self = Self(0x20);

    /// True for a close that both sides agreed on and after which the session goes on.
    pub(crate) fn keeps_session(self) -> bool {
        matches!(self, Self::IDLE | Self::OUTDATED | Self::DUPLICATE_LINK)
    }
}

/// What a unidirectional stream carries, from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// Frames about the link and the session; the first stream of each side.
    Control,
    /// Schemas and messages below the size of a body with its own stream.
    Lane,
    /// Calls, answers, items, and what steers them.
    Calls,
    /// One message of its own.
    Body,
    /// One large call, answer, item or reply. It is reset when nobody wants it any more.
    LargeCall,
    /// Packets of membership that a datagram cannot hold, or that are not to be lost.
    Membership,
    /// Frames about names, groups and monitors, numbered over all links of the session.
    Services,
}

impl StreamKind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Lane => 2,
            Self::Calls => 3,
            Self::Body => 4,
            Self::LargeCall => 5,
            Self::Membership => 6,
            Self::Services => 7,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        let kinds =
            [Self::Control, Self::Lane, Self::Calls, Self::Body, Self::LargeCall, Self::Membership, Self::Services];
        kinds.into_iter().find(|kind| kind.to_byte() == byte)
    }
}

/// How the bytes of a body are to be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Schema {
    pub(crate) tag: String,
    pub(crate) version: u32,
    /// The oldest version whose readers can read this body, when it only grew at its end.
    pub(crate) readable_since: u32,
    pub(crate) codec: u8,
}

impl Schema {
    fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.tag);
        put_varint(out, self.version.into());
        put_varint(out, self.readable_since.into());
        out.push(self.codec);
    }

    fn decode(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            tag: take_text(body, TAG_MAX)?,
            version: take_u32(body)?,
            readable_since: take_u32(body)?,
            codec: take_u8(body)?,
        })
    }
}

/// So many copies of a message one frame may carry.
pub(crate) const COPIES_MAX: usize = 4096;

/// What one copy adds to its frame, in bytes: an upper bound.
pub(crate) const COPY_MAX: usize = 16;

/// Frames of the control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// The dialler has accepted the responder's HELLO.
    Ready,
    /// The credit of a mailbox: all bytes that may ever be sent to it in this session. `seq` is of the last request of the
    /// lane that was heard.
    Grant {
        mailbox: u64,
        seq: u64,
        limit: u64,
    },
    /// A sender that has sent so many bytes needs credit up to this limit. Of the requests of a lane the one with the highest
    /// `seq` stands.
    Need {
        mailbox: u64,
        seq: u64,
        sent: u64,
        limit: u64,
    },
    /// A sender will not send beyond this limit, and hears no grant that was made before this.
    Return {
        mailbox: u64,
        seq: u64,
        limit: u64,
    },
    /// The mailbox does not exist (any more).
    Closed {
        mailbox: u64,
    },
    /// Messages wait for credit here, or no longer do: the receiver gives back credit for messages that were given up.
    Short {
        seq: u64,
        on: bool,
    },
    /// Windows are small here, because many lanes have one: the receiver gives back those that it does not use.
    Spare,
    /// So many messages of the receiver could not be read, since the last of these frames.
    Refused {
        reason: Unreadable,
        messages: u64,
    },
    /// A frame of copies has come, and all copies are taken but for those to mailboxes that do not exist (any more).
    Delivered {
        id: u64,
        closed: Vec<u64>,
    },
    Ping {
        seq: u64,
    },
    Pong {
        seq: u64,
    },
    /// The sender has finished its streams on this link; it opened that many, this one not counted.
    Stop {
        code: Code,
        streams: u64,
    },
    /// The sender has read every stream that the other's STOP counted.
    Stopped,
    /// Comes before a STOP. Every call of the receiver that a handler of the sender began is answered on streams of this link,
    /// and none begins any more: what has no answer by the end was not done. A peer that skips it knows less.
    Drained,
}

/// Why a mailbox cannot read a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Tag = 1,
    Version = 2,
    Malformed = 3,
}

impl Unreadable {
    pub(crate) const ALL: [Self; 3] = [Self::Tag, Self::Version, Self::Malformed];
}

const READY: u8 = 0x02;
const GRANT: u8 = 0x03;
const NEED: u8 = 0x04;
const CLOSED: u8 = 0x05;
const PING: u8 = 0x06;
const PONG: u8 = 0x07;
const STOP: u8 = 0x08;
const STOPPED: u8 = 0x09;
const RETURN: u8 = 0x0a;
const SHORT: u8 = 0x0b;
const SPARE: u8 = 0x0c;
const REFUSED: u8 = 0x0d;
const DELIVERED: u8 = 0x0e;
const DRAINED: u8 = 0x0f | SKIPPABLE;

impl Control {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let all;
        let (kind, fields): (u8, &[u64]) = match self {
            Self::Ready => (READY, &[]),
            Self::Grant { mailbox, seq, limit } => (GRANT, &[*mailbox, *seq, *limit]),
            Self::Need { mailbox, seq, sent, limit } => (NEED, &[*mailbox, *seq, *sent, *limit]),
            Self::Return { mailbox, seq, limit } => (RETURN, &[*mailbox, *seq, *limit]),
            Self::Closed { mailbox } => (CLOSED, &[*mailbox]),
            Self::Short { seq, on } => (SHORT, &[*seq, u64::from(*on)]),
            Self::Spare => (SPARE, &[]),
            Self::Refused { reason, messages } => (REFUSED, &[*reason as u64, *messages]),
            Self::Delivered { id, closed } => {
                all = [&[*id, closed.len() as u64], &closed[..]].concat();
                (DELIVERED, &all)
            }
            Self::Ping { seq } => (PING, &[*seq]),
            Self::Pong { seq } => (PONG, &[*seq]),
            Self::Stop { code, streams } => (STOP, &[code.0.into(), *streams]),
            Self::Stopped => (STOPPED, &[]),
            Self::Drained => (DRAINED, &[]),
        };
        put_frame(out, kind, fields.iter().map(|v| varint_len(*v)).sum(), |out| {
            for field in fields {
                put_varint(out, *field);
            }
        });
    }

    /// Reads a frame; `None` for one that may be skipped.
    pub(crate) fn decode(frame: Frame) -> Result<Option<Self>, WireError> {
        let mut body = frame.body;
        let read = match frame.kind {
            READY => Self::Ready,
            GRANT => Self::Grant {
                mailbox: take_varint(&mut body)?,
                seq: take_varint(&mut body)?,
                limit: take_varint(&mut body)?,
            },
            RETURN => Self::Return {
                mailbox: take_varint(&mut body)?,
                seq: take_varint(&mut body)?,
                limit: take_varint(&mut body)?,
            },
            NEED => Self::Need {
                mailbox: take_varint(&mut body)?,
                seq: take_varint(&mut body)?,
                sent: take_varint(&mut body)?,
                limit: take_varint(&mut body)?,
            },
            CLOSED => Self::Closed { mailbox: take_varint(&mut body)? },
            SHORT => Self::Short { seq: take_varint(&mut body)?, on: take_flag(&mut body)? },
            SPARE => Self::Spare,
            REFUSED => {
                let reason = take_varint(&mut body)?;
                let reason = Unreadable::ALL.into_iter().find(|known| *known as u64 == reason);
                let reason = reason.ok_or(WireError::Value("reason"))?;
                Self::Refused { reason, messages: take_varint(&mut body)? }
            }
            DELIVERED => {
                let id = take_varint(&mut body)?;
                let count = take_varint(&mut body)?;
                if count > COPIES_MAX as u64 {
                    return Err(WireError::Value("number of copies"));
                }
                let closed = (0..count).map(|_| take_varint(&mut body)).collect::<Result<_, _>>()?;
                Self::Delivered { id, closed }
            }
            PING => Self::Ping { seq: take_varint(&mut body)? },
            PONG => Self::Pong { seq: take_varint(&mut body)? },
            STOP => Self::Stop { code: Code(take_u32(&mut body)?), streams: take_varint(&mut body)? },
            STOPPED => Self::Stopped,
            DRAINED => Self::Drained,
            kind => return skip(kind),
        };
        finished(&body)?;
        Ok(Some(read))
    }
}

/// Frames of lanes, and the one frame of a body's own stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LaneFrame {
    /// What the number means in this session; sent on each stream before it is used there.
    Schema {
        id: u64,
        schema: Schema,
    },
    Message(MessageFrame),
    Copies(CopiesFrame),
}

/// One message on its way to several mailboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopiesFrame {
    pub(crate) head: CopiesHead,
    pub(crate) body: Bytes,
}

/// All of a [`CopiesFrame`] but its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopiesHead {
    /// What the answer is called; counted in each session.
    pub(crate) id: u64,
    pub(crate) schema: u64,
    pub(crate) trace: Option<Trace>,
    /// The mailboxes, 1 to [`COPIES_MAX`], each with the number of its message.
    pub(crate) to: Vec<(u64, u64)>,
}

/// One message on its way to a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MessageFrame {
    pub(crate) head: MessageHead,
    pub(crate) body: Bytes,
}

/// All of a message but its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MessageHead {
    pub(crate) mailbox: u64,
    /// Counted from 0 in each (session, mailbox).
    pub(crate) number: u64,
    pub(crate) schema: u64,
    pub(crate) trace: Option<Trace>,
}

impl MessageHead {
    fn take(body: &mut impl Buf) -> Result<Self, WireError> {
        Ok(Self { mailbox: take_varint(body)?, number: take_varint(body)?, schema: take_varint(body)?, trace: None })
    }

    pub(crate) fn with(self, body: Bytes) -> MessageFrame {
        MessageFrame { head: self, body }
    }
}

const SCHEMA: u8 = 0x10;
const MESSAGE: u8 = 0x11;
const TRACED_MESSAGE: u8 = 0x12;
const COPIES: u8 = 0x13;
const TRACED_COPIES: u8 = 0x14;

pub(crate) fn put_schema(out: &mut Vec<u8>, id: u64, schema: &Schema) {
    let mut body = Vec::new();
    put_varint(&mut body, id);
    schema.encode(&mut body);
    put_frame(out, SCHEMA, body.len(), |out| out.extend_from_slice(&body));
}

/// Writes all of a message but its body, which is to follow.
pub(crate) fn put_message_head(out: &mut Vec<u8>, head: &MessageHead, body: usize) {
    let MessageHead { mailbox, number, schema, trace } = head;
    let numbers = varint_len(*mailbox) + varint_len(*number) + varint_len(*schema);
    let kind = if trace.is_some() { TRACED_MESSAGE } else { MESSAGE };
    let len = numbers + trace.map_or(0, |trace| trace.0.len()) + body;
    out.push(kind);
    put_varint(out, len as u64);
    put_varint(out, *mailbox);
    put_varint(out, *number);
    put_varint(out, *schema);
    if let Some(trace) = trace {
        out.extend_from_slice(&trace.0);
    }
}

impl CopiesHead {
    fn put_fields(&self, out: &mut impl Fields) {
        let Self { id, schema, trace, to } = self;
        out.number(*id);
        out.number(*schema);
        if let Some(trace) = trace {
            out.bytes(&trace.0);
        }
        out.number(to.len() as u64);
        for (mailbox, number) in to {
            out.number(*mailbox);
            out.number(*number);
        }
    }

    /// Writes all of a frame but its body, which is to follow.
    pub(crate) fn put(&self, out: &mut Vec<u8>, body: usize) {
        let mut count = Count(body);
        self.put_fields(&mut count);
        out.push(if self.trace.is_some() { TRACED_COPIES } else { COPIES });
        put_varint(out, count.0 as u64);
        self.put_fields(out);
    }

    fn take(body: &mut Bytes, is_traced: bool) -> Result<Self, WireError> {
        let (id, schema) = (take_varint(body)?, take_varint(body)?);
        let trace = if is_traced { Some(Trace(take_array(body)?)) } else { None };
        let count = take_varint(body)?;
        if !(1..=COPIES_MAX as u64).contains(&count) {
            return Err(WireError::Value("number of copies"));
        }
        // No more is allocated than has come.
        if (body.len() as u64) < 2 * count {
            return Err(WireError::Short);
        }
        let to = (0..count).map(|_| Ok((take_varint(body)?, take_varint(body)?))).collect::<Result<_, WireError>>()?;
        Ok(Self { id, schema, trace, to })
    }
}

impl LaneFrame {
    pub(crate) fn decode(frame: Frame) -> Result<Option<Self>, WireError> {
        let mut body = frame.body;
        match frame.kind {
            SCHEMA => {
                let (id, schema) = (take_varint(&mut body)?, Schema::decode(&mut body)?);
                finished(&body)?;
                Ok(Some(Self::Schema { id, schema }))
            }
            MESSAGE | TRACED_MESSAGE => {
                let mut head = MessageHead::take(&mut body)?;
                if frame.kind == TRACED_MESSAGE {
                    head.trace = Some(Trace(take_array(&mut body)?));
                }
                Ok(Some(Self::Message(head.with(body))))
            }
            COPIES | TRACED_COPIES => {
                let head = CopiesHead::take(&mut body, frame.kind == TRACED_COPIES)?;
                Ok(Some(Self::Copies(CopiesFrame { head, body })))
            }
            kind => skip(kind),
        }
    }
}

const PACKET: u8 = 0x3f;

/// Writes a packet of membership as a frame of a membership stream.
pub(crate) fn put_packet(out: &mut Vec<u8>, packet: &[u8]) {
    put_frame(out, PACKET, packet.len(), |out| out.extend_from_slice(packet));
}

/// The packet in a frame of a membership stream; `None` for a frame that may be skipped.
pub(crate) fn packet(frame: Frame) -> Result<Option<Bytes>, WireError> {
    if frame.kind == PACKET { Ok(Some(frame.body)) } else { skip(frame.kind) }
}

/// A frame of a call stream, or the one frame of a large call's own stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallFrame {
    pub(crate) head: CallHead,
    /// Empty but for calls, answers, items and replies.
    pub(crate) body: Bytes,
}

/// All of a [`CallFrame`] but its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallHead {
    /// What the number means in this session; sent on each stream before it is used there. Numbers begin with 1.
    Term {
        number: u64,
        term: Term,
    },
    Call {
        id: u64,
        term: TermRef,
        timeout_ms: u64,
        mode: CallMode,
        trace: Option<Trace>,
    },
    Answer {
        id: u64,
        term: TermRef,
    },
    /// One answer of many, counted from 0.
    Item {
        id: u64,
        number: u64,
        term: TermRef,
    },
    /// The call is over without an answer, or after so many items.
    End {
        id: u64,
        status: Status,
        items: u64,
    },
    /// Nobody waits for the answer any more.
    Cancel {
        id: u64,
    },
    /// How much the items of a call may cost from its beginning.
    Credit {
        id: u64,
        limit: u64,
    },
    /// What somebody answers to a message that asked for it.
    Reply {
        serial: u64,
        secret: [u8; 8],
        term: TermRef,
    },
}

/// What is said of many calls: a method with the schema of its requests, or the schema of answers, without a method.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    pub(crate) method: String,
    pub(crate) schema: Schema,
}

/// A term by the number that was declared for it, or in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TermRef {
    Number(u64),
    InFull(Box<Term>),
}

/// What the caller wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallMode {
    Answer,
    Nothing,
    /// Items, and so much of them at first.
    Items {
        limit: u64,
    },
}

/// How a call ended at the callee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Answered,
    NoSuchMethod,
    /// The request's type or version is not what the method reads.
    Mismatch,
    /// The request's body cannot be decoded.
    Undecodable,
    Panicked,
    Cancelled,
    ShuttingDown,
    Overloaded,
    /// The deadline passed at the callee.
    Expired,
    /// The answer is larger than the caller's or the callee's limit.
    AnswerTooLarge,
}

const STATUSES: [Status; 10] = [
    Status::Answered,
    Status::NoSuchMethod,
    Status::Mismatch,
    Status::Undecodable,
    Status::Panicked,
    Status::Cancelled,
    Status::ShuttingDown,
    Status::Overloaded,
    Status::Expired,
    Status::AnswerTooLarge,
];

const CALL: u8 = 0x20;
const ANSWER: u8 = 0x21;
const CANCEL: u8 = 0x22;
const END: u8 = 0x23;
const TERM: u8 = 0x24;
const ITEM: u8 = 0x25;
const CREDIT: u8 = 0x26;
const REPLY: u8 = 0x27;

/// Flags of a call.
const TRACED: u8 = 1;
const ONE_WAY: u8 = 2;
const ITEMS: u8 = 4;

/// Where the fields of a head go: to a frame, or to nowhere, to be counted.
trait Fields {
    fn bytes(&mut self, bytes: &[u8]);
    fn number(&mut self, value: u64);
}

impl Fields for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn number(&mut self, value: u64) {
        put_varint(self, value);
    }
}

struct Count(usize);

impl Fields for Count {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn number(&mut self, value: u64) {
        self.0 += varint_len(value);
    }
}

impl Term {
    fn put(&self, out: &mut impl Fields) {
        for text in [&self.method, &self.schema.tag] {
            out.number(text.len() as u64);
            out.bytes(text.as_bytes());
        }
        out.number(self.schema.version.into());
        out.number(self.schema.readable_since.into());
        out.bytes(&[self.schema.codec]);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { method: take_text(body, TAG_MAX)?, schema: Schema::decode(body)? })
    }
}

impl TermRef {
    fn put(&self, out: &mut impl Fields) {
        match self {
            Self::Number(number) => out.number(*number),
            Self::InFull(term) => {
                out.number(0);
                term.put(out);
            }
        }
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(match take_varint(body)? {
            0 => Self::InFull(Box::new(Term::take(body)?)),
            number => Self::Number(number),
        })
    }
}

impl CallHead {
    /// Whether a body follows. These frames may have a stream of their own.
    pub(crate) fn has_body(&self) -> bool {
        matches!(self, Self::Call { .. } | Self::Answer { .. } | Self::Item { .. } | Self::Reply { .. })
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Term { .. } => TERM,
            Self::Call { .. } => CALL,
            Self::Answer { .. } => ANSWER,
            Self::Item { .. } => ITEM,
            Self::End { .. } => END,
            Self::Cancel { .. } => CANCEL,
            Self::Credit { .. } => CREDIT,
            Self::Reply { .. } => REPLY,
        }
    }

    fn put_fields(&self, out: &mut impl Fields) {
        match self {
            Self::Term { number, term } => {
                out.number(*number);
                term.put(out);
            }
            Self::Call { id, term, timeout_ms, mode, trace } => {
                out.number(*id);
                term.put(out);
                // A caller may be willing to wait for ever.
                out.number((*timeout_ms).min(VARINT_MAX));
                let traced = if trace.is_some() { TRACED } else { 0 };
                match mode {
                    CallMode::Answer => out.bytes(&[traced]),
                    CallMode::Nothing => out.bytes(&[traced | ONE_WAY]),
                    CallMode::Items { limit } => {
                        out.bytes(&[traced | ITEMS]);
                        out.number(*limit);
                    }
                }
                if let Some(trace) = trace {
                    out.bytes(&trace.0);
                }
            }
            Self::Answer { id, term } => {
                out.number(*id);
                term.put(out);
            }
            Self::Item { id, number, term } => {
                out.number(*id);
                out.number(*number);
                term.put(out);
            }
            Self::End { id, status, items } => {
                out.number(*id);
                let byte = STATUSES.iter().position(|s| s == status).expect("every status is listed");
                out.bytes(&[byte as u8]);
                out.number(*items);
            }
            Self::Cancel { id } => out.number(*id),
            Self::Credit { id, limit } => {
                out.number(*id);
                out.number(*limit);
            }
            Self::Reply { serial, secret, term } => {
                out.number(*serial);
                out.bytes(secret);
                term.put(out);
            }
        }
    }

    /// Writes all of a frame but its body, which is to follow.
    pub(crate) fn put(&self, out: &mut Vec<u8>, body: usize) {
        let mut count = Count(body);
        self.put_fields(&mut count);
        out.push(self.kind());
        put_varint(out, count.0 as u64);
        self.put_fields(out);
    }
}

impl CallFrame {
    pub(crate) fn decode(frame: Frame) -> Result<Option<Self>, WireError> {
        let mut body = frame.body;
        let head = match frame.kind {
            TERM => {
                let number = take_varint(&mut body)?;
                if number == 0 {
                    return Err(WireError::Value("term number"));
                }
                CallHead::Term { number, term: Term::take(&mut body)? }
            }
            CALL => {
                let id = take_varint(&mut body)?;
                let term = TermRef::take(&mut body)?;
                let timeout_ms = take_varint(&mut body)?;
                let flags = take_u8(&mut body)?;
                let mode = match flags & !TRACED {
                    0 => CallMode::Answer,
                    ONE_WAY => CallMode::Nothing,
                    ITEMS => CallMode::Items { limit: take_varint(&mut body)? },
                    _ => return Err(WireError::Value("call flags")),
                };
                let trace = if flags & TRACED != 0 { Some(Trace(take_array(&mut body)?)) } else { None };
                CallHead::Call { id, term, timeout_ms, mode, trace }
            }
            ANSWER => CallHead::Answer { id: take_varint(&mut body)?, term: TermRef::take(&mut body)? },
            ITEM => CallHead::Item {
                id: take_varint(&mut body)?,
                number: take_varint(&mut body)?,
                term: TermRef::take(&mut body)?,
            },
            END => {
                let id = take_varint(&mut body)?;
                let status = usize::from(take_u8(&mut body)?);
                let status = *STATUSES.get(status).ok_or(WireError::Value("status"))?;
                CallHead::End { id, status, items: take_varint(&mut body)? }
            }
            CANCEL => CallHead::Cancel { id: take_varint(&mut body)? },
            CREDIT => CallHead::Credit { id: take_varint(&mut body)?, limit: take_varint(&mut body)? },
            REPLY => CallHead::Reply {
                serial: take_varint(&mut body)?,
                secret: take_array(&mut body)?,
                term: TermRef::take(&mut body)?,
            },
            kind => return skip(kind),
        };
        if !head.has_body() {
            finished(&body)?;
        }
        Ok(Some(Self { head, body }))
    }
}

/// The type of the only frame on the greeting stream.
pub(crate) const HELLO: u8 = 0x01;

const HELLO_MAGIC: &[u8; 4] = b"DSTB";

/// The minor version of this wire format. A peer with a greater one speaks this one too.
pub(crate) const MINOR: u16 = 0;

/// How a node proves that it belongs to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Cookie,
    Pki,
    Both,
}

/// The one frame that each side sends before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) minor: u16,
    /// 1 for the dialler, 2 for the responder.
    pub(crate) role: u8,
    pub(crate) incarnation: u64,
    pub(crate) capabilities: u64,
    /// The largest body that the sender takes, in bytes.
    pub(crate) message_max: u32,
    pub(crate) codecs: Vec<u8>,
    pub(crate) cluster: String,
    pub(crate) name: NodeName,
    /// Where the sender can be dialled, beside its name; at most four.
    pub(crate) addresses: Vec<std::net::SocketAddr>,
    pub(crate) flags: NodeFlags,
    /// The receiver's incarnation that the two counters are about; 0 when the sender knows none.
    pub(crate) known_incarnation: u64,
    /// How many sessions with the receiver the sender has ended by itself.
    pub(crate) ended: u64,
    /// The receiver's own count, as the sender last saw it.
    pub(crate) seen_ended: u64,
    /// What each mailbox of the sender may be sent without asking, in bytes.
    pub(crate) first_credit: u32,
    /// To how many mailboxes of the sender one session may send.
    pub(crate) lanes_max: u32,
    pub(crate) mode: Mode,
    pub(crate) proof: [u8; 32],
}

/// What kind of member a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFlags {
    /// Nobody can dial the node: its links are kept.
    pub(crate) not_dialable: bool,
    /// The node never decides for others.
    pub(crate) client: bool,
}

impl NodeFlags {
    fn to_byte(self) -> u8 {
        u8::from(self.not_dialable) | u8::from(self.client) << 1
    }

    /// Bits that nobody knows yet say nothing.
    fn from_byte(byte: u8) -> Self {
        Self { not_dialable: byte & 1 != 0, client: byte & 2 != 0 }
    }
}

const ADDRESSES_MAX: usize = 4;
const CODECS_MAX: usize = 16;

impl Hello {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(256);
        body.extend_from_slice(HELLO_MAGIC);
        body.extend_from_slice(&self.minor.to_be_bytes());
        body.push(self.role);
        body.extend_from_slice(&self.incarnation.to_be_bytes());
        body.extend_from_slice(&self.capabilities.to_be_bytes());
        body.extend_from_slice(&self.message_max.to_be_bytes());
        put_list(&mut body, &self.codecs, CODECS_MAX, |out, codec| out.push(*codec));
        put_text(&mut body, &self.cluster);
        put_text(&mut body, self.name.as_str());
        put_list(&mut body, &self.addresses, ADDRESSES_MAX, put_address);
        body.push(self.flags.to_byte());
        for value in [self.known_incarnation, self.ended, self.seen_ended] {
            body.extend_from_slice(&value.to_be_bytes());
        }
        body.extend_from_slice(&self.first_credit.to_be_bytes());
        body.extend_from_slice(&self.lanes_max.to_be_bytes());
        body.push(match self.mode {
            Mode::Cookie => 1,
            Mode::Pki => 2,
            Mode::Both => 3,
        });
        body.extend_from_slice(&self.proof);
        put_frame(out, HELLO, body.len(), |out| out.extend_from_slice(&body));
    }

    /// Reads a HELLO. What a later minor version puts behind the fields known here is ignored.
    pub(crate) fn decode(frame: Frame) -> Result<Self, WireError> {
        if frame.kind != HELLO {
            return Err(WireError::UnknownFrame(frame.kind));
        }
        let mut body = frame.body;
        if &take_array::<4>(&mut body)? != HELLO_MAGIC {
            return Err(WireError::Value("magic"));
        }
        let minor = u16::from_be_bytes(take_array(&mut body)?);
        let role = take_u8(&mut body)?;
        let incarnation = take_be64(&mut body)?;
        let capabilities = take_be64(&mut body)?;
        let message_max = take_be32(&mut body)?;
        let codecs = take_list(&mut body, CODECS_MAX, take_u8)?;
        let cluster = take_text(&mut body, crate::id::CLUSTER_NAME_MAX)?;
        let name = take_node_name(&mut body)?;
        let addresses = take_list(&mut body, ADDRESSES_MAX, take_address)?;
        let flags = take_u8(&mut body)?;
        let hello = Self {
            minor,
            role,
            incarnation,
            capabilities,
            message_max,
            codecs,
            cluster,
            name,
            addresses,
            flags: NodeFlags::from_byte(flags),
            known_incarnation: take_be64(&mut body)?,
            ended: take_be64(&mut body)?,
            seen_ended: take_be64(&mut body)?,
            first_credit: take_be32(&mut body)?,
            lanes_max: take_be32(&mut body)?,
            mode: match take_u8(&mut body)? {
                1 => Mode::Cookie,
                2 => Mode::Pki,
                3 => Mode::Both,
                _ => return Err(WireError::Value("mode")),
            },
            proof: take_array(&mut body)?,
        };
        if minor == MINOR {
            finished(&body)?;
        }
        Ok(hello)
    }
}

/// One frame, split off but not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
}

/// Splits what a stream delivers into frames, however it was cut.
///
/// It keeps at most one begun frame, and of that only what arrived.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// A frame that began in an earlier chunk.
    begun: BytesMut,
    chunk: Bytes,
    /// Bytes at the beginning of the chunk that were given out by reference.
    lent: usize,
    max: usize,
}

impl Splitter {
    /// A splitter that refuses bodies of more than `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self { begun: BytesMut::new(), chunk: Bytes::new(), lent: 0, max }
    }

    /// Adds what arrived. Take all frames out before the next chunk.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.len() == self.lent, "all frames are taken before the next chunk");
        self.lent = 0;
        self.chunk = chunk;
    }

    /// True when a frame has begun and is not complete.
    pub(crate) fn is_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// How many bytes complete the frame that has begun, as far as is known.
    pub(crate) fn missing(&self) -> usize {
        match self.head(&self.begun) {
            Ok(Some((_, head, len))) => (head + len).saturating_sub(self.begun.len()),
            _ => 1,
        }
    }

    /// The next frame, if it is a message without a trace whose body is below `max`, and is whole in the chunk: for these
    /// nothing is allocated or counted.
    pub(crate) fn next_small_message(&mut self, max: usize) -> Result<Option<(MessageHead, &[u8])>, WireError> {
        self.chunk.advance(std::mem::take(&mut self.lent));
        if !self.begun.is_empty() || self.chunk.first() != Some(&MESSAGE) {
            return Ok(None);
        }
        let Some((_, head, len)) = self.head(&self.chunk)? else { return Ok(None) };
        let Some(mut body) = self.chunk.get(head..head + len).filter(|_| len < max) else { return Ok(None) };
        self.lent = head + len;
        let message = MessageHead::take(&mut body)?;
        Ok(Some((message, body)))
    }

    /// Returns the next whole frame, or `None` until more arrives.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        self.chunk.advance(std::mem::take(&mut self.lent));
        if self.begun.is_empty() {
            let Some((kind, head, len)) = self.head(&self.chunk)? else {
                self.begun.extend_from_slice(&self.chunk);
                self.chunk.clear();
                return Ok(None);
            };
            if self.chunk.len() < head + len {
                self.begun.extend_from_slice(&self.chunk);
                self.chunk.clear();
                return Ok(None);
            }
            self.chunk.advance(head);
            return Ok(Some(Frame { kind, body: self.chunk.split_to(len) }));
        }
        loop {
            let missing = match self.head(&self.begun)? {
                None => 1,
                Some((kind, head, len)) if self.begun.len() == head + len => {
                    let mut whole = std::mem::take(&mut self.begun).freeze();
                    whole.advance(head);
                    return Ok(Some(Frame { kind, body: whole }));
                }
                Some((_, head, len)) => head + len - self.begun.len(),
            };
            if self.chunk.is_empty() {
                return Ok(None);
            }
            let part = self.chunk.split_to(missing.min(self.chunk.len()));
            if self.begun.capacity() < self.begun.len() + part.len() {
                // By what has come, not by what was announced; in few steps, because each copies.
                self.begun.reserve(missing.min(4 * (self.begun.len() + part.len())));
            }
            self.begun.extend_from_slice(&part);
        }
    }

    /// Reads type and length, once both are there: (type, bytes of the head, bytes of the body).
    fn head(&self, bytes: &[u8]) -> Result<Option<(u8, usize, usize)>, WireError> {
        let [kind, rest @ ..] = bytes else { return Ok(None) };
        let Some((len, used)) = peek_varint(rest) else { return Ok(None) };
        if len > self.max as u64 {
            return Err(WireError::TooLong(len));
        }
        Ok(Some((*kind, 1 + used, len as usize)))
    }
}

fn skip<T>(kind: u8) -> Result<Option<T>, WireError> {
    if kind & SKIPPABLE != 0 { Ok(None) } else { Err(WireError::UnknownFrame(kind)) }
}

fn finished(body: &Bytes) -> Result<(), WireError> {
    if body.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
}

fn put_frame(out: &mut Vec<u8>, kind: u8, len: usize, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    put_varint(out, len as u64);
    let start = out.len();
    body(out);
    debug_assert_eq!(out.len() - start, len);
}

/// Numbers from 2^62 on do not fit a varint; no counter of this crate can reach them.
const VARINT_MAX: u64 = (1 << 62) - 1;

fn varint_len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, value: u64) {
    assert!(value <= VARINT_MAX, "counters stay below 2^62");
    match varint_len(value) {
        1 => out.push(value as u8),
        2 => out.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        4 => out.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
        _ => out.extend_from_slice(&(value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

fn peek_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let len = 1 << (first >> 6);
    let rest = bytes.get(1..len)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, len))
}

fn take_varint(body: &mut impl Buf) -> Result<u64, WireError> {
    let (value, len) = peek_varint(body.chunk()).ok_or(WireError::Short)?;
    body.advance(len);
    Ok(value)
}

fn take_u32(body: &mut Bytes) -> Result<u32, WireError> {
    take_varint(body)?.try_into().map_err(|_| WireError::Value("a 32-bit number"))
}

fn take_u8(body: &mut Bytes) -> Result<u8, WireError> {
    body.try_get_u8().map_err(|_| WireError::Short)
}

fn take_flag(body: &mut Bytes) -> Result<bool, WireError> {
    match take_u8(body)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Value("flag")),
    }
}

fn take_be32(body: &mut Bytes) -> Result<u32, WireError> {
    body.try_get_u32().map_err(|_| WireError::Short)
}

fn take_be64(body: &mut Bytes) -> Result<u64, WireError> {
    body.try_get_u64().map_err(|_| WireError::Short)
}

fn take_array<const N: usize>(body: &mut Bytes) -> Result<[u8; N], WireError> {
    let mut array = [0; N];
    body.try_copy_to_slice(&mut array).map_err(|_| WireError::Short)?;
    Ok(array)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn take_text(body: &mut Bytes, max: usize) -> Result<String, WireError> {
    let len = take_varint(body)?;
    if len > max as u64 {
        return Err(WireError::TooLong(len));
    }
    if body.len() < len as usize {
        return Err(WireError::Short);
    }
    let bytes = body.split_to(len as usize);
    str::from_utf8(&bytes).map(str::to_owned).map_err(|_| WireError::Value("UTF-8"))
}

fn take_node_name(body: &mut Bytes) -> Result<NodeName, WireError> {
    let text = take_text(body, NODE_NAME_MAX)?;
    // Proofs, certificates and hashes are over the text: only one spelling of a name may exist.
    NodeName::parse(&text).ok().filter(|name| name.as_str() == text).ok_or(WireError::Value("node name"))
}

fn put_list<T>(out: &mut Vec<u8>, list: &[T], max: usize, put: impl Fn(&mut Vec<u8>, &T)) {
    let len = list.len().min(max);
    out.push(len as u8);
    list[..len].iter().for_each(|item| put(out, item));
}

fn take_list<T>(
    body: &mut Bytes,
    max: usize,
    take: impl Fn(&mut Bytes) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let len = usize::from(take_u8(body)?);
    if len > max {
        return Err(WireError::TooLong(len as u64));
    }
    (0..len).map(|_| take(body)).collect()
}

fn put_address(out: &mut impl Fields, address: &std::net::SocketAddr) {
    match address.ip() {
        std::net::IpAddr::V4(ip) => {
            out.bytes(&[4]);
            out.bytes(&ip.octets());
        }
        std::net::IpAddr::V6(ip) => {
            out.bytes(&[6]);
            out.bytes(&ip.octets());
        }
    }
    out.bytes(&address.port().to_be_bytes());
}

fn take_address(body: &mut Bytes) -> Result<std::net::SocketAddr, WireError> {
    let ip: std::net::IpAddr = match take_u8(body)? {
        4 => take_array::<4>(body)?.into(),
        6 => take_array::<16>(body)?.into(),
        _ => return Err(WireError::Value("address family")),
    };
    Ok((ip, u16::from_be_bytes(take_array(body)?)).into())
}

fn put_be64(out: &mut impl Fields, value: u64) {
    out.bytes(&value.to_be_bytes());
}

fn put_bytes(out: &mut impl Fields, bytes: &[u8]) {
    out.number(bytes.len() as u64);
    out.bytes(bytes);
}

/// Copies the bytes out: they may be kept for long, and would keep the whole packet with them.
fn take_bytes(body: &mut Bytes, max: usize) -> Result<Bytes, WireError> {
    let len = take_varint(body)?;
    if len > max as u64 {
        return Err(WireError::TooLong(len));
    }
    if body.len() < len as usize {
        return Err(WireError::Short);
    }
    Ok(Bytes::copy_from_slice(&body.split_to(len as usize)))
}

/// Reads items to the end of the body.
fn take_all<T>(
    body: &mut Bytes,
    max: usize,
    take: impl Fn(&mut Bytes) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let len = body.len() as u64;
    let mut items = Vec::new();
    while !body.is_empty() {
        if items.len() == max {
            return Err(WireError::TooLong(len));
        }
        items.push(take(body)?);
    }
    Ok(items)
}

/// Reads a frame that stands within another, or within a packet.
fn take_frame(bytes: &mut Bytes) -> Result<Frame, WireError> {
    let kind = take_u8(bytes)?;
    let len = take_varint(bytes)?;
    if len > bytes.len() as u64 {
        return Err(WireError::Short);
    }
    Ok(Frame { kind, body: bytes.split_to(len as usize) })
}

#[cfg(test)]
mod tests;
