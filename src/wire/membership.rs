//! Frames of membership: what nodes tell each other about who is there and who lives.
//!
//! A packet, which is a datagram or a piece of a membership stream, is a sequence of these frames and of nothing else.
//! All but an introduction name a node by 64 bits, so that one datagram holds more than eighty rumours.

use std::net::SocketAddr;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    ADDRESSES_MAX, Count, Fields, Frame, NodeFlags, WireError, finished, put_address, put_be64, put_bytes, put_varint,
    skip, take_address, take_all, take_be64, take_bytes, take_frame, take_list, take_node_name, take_text, take_u8,
    take_u32, take_varint,
};
use crate::id::NodeId;

/// The longest metadata of a member, in bytes.
pub(crate) const METADATA_MAX: usize = 512;

/// The longest topic of a fact, in bytes.
pub(crate) const TOPIC_MAX: usize = 64;

/// The longest body of a fact, in bytes.
pub(crate) const FACT_MAX: usize = 1024;

/// How many introductions one frame asks for, at most.
pub(crate) const WHO_MAX: usize = 4096;

/// Into how many buckets members are divided, at most.
pub(crate) const BUCKETS_MAX: usize = 256;

/// How many summaries one frame holds, at most.
pub(crate) const SUMMARIES_MAX: usize = 4096;

/// 64 bits for one life of a node.
///
/// Names are chosen by members, who have proved that they belong to the cluster: this is against accidents, which
/// happen to two of ten thousand nodes in one cluster of 10^11.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct ShortId(pub(crate) u64);

impl ShortId {
    pub(crate) fn of(id: &NodeId) -> Self {
        let hash = Sha256::new()
            .chain_update(id.name().as_str())
            // No name holds it, so no two lives hash the same bytes.
            .chain_update([0])
            .chain_update(id.incarnation().to_be_bytes())
            .finalize();
        Self(u64::from_be_bytes(hash[..8].try_into().expect("SHA-256 has 32 bytes")))
    }

    fn put(self, out: &mut impl Fields) {
        put_be64(out, self.0);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        take_be64(body).map(Self)
    }
}

/// Whether a node lives, in the words of the one who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Alive = 1,
    Suspect = 2,
    Dead = 3,
    Left = 4,
}

impl Life {
    const ALL: [Self; 4] = [Self::Alive, Self::Suspect, Self::Dead, Self::Left];

    fn put(self, out: &mut impl Fields) {
        out.bytes(&[self as u8]);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        let byte = take_u8(body)?;
        Self::ALL.into_iter().find(|life| *life as u8 == byte).ok_or(WireError::Value("life"))
    }
}

/// All that there is to say of a member: what it says of itself, and whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Introduction {
    pub(crate) id: NodeId,
    pub(crate) life: Life,
    pub(crate) refutation: u32,
    /// The version of what follows.
    pub(crate) profile: u32,
    pub(crate) flags: NodeFlags,
    /// Where it can be dialled, beside its name; at most four, and more are left out.
    pub(crate) addresses: Vec<SocketAddr>,
    /// At most [`METADATA_MAX`] bytes.
    pub(crate) metadata: Bytes,
}

impl Introduction {
    fn put(&self, out: &mut impl Fields) {
        let Self { id, life, refutation, profile, flags, addresses, metadata } = self;
        debug_assert!(metadata.len() <= METADATA_MAX);
        put_bytes(out, id.name().as_str().as_bytes());
        put_be64(out, id.incarnation());
        life.put(out);
        out.number((*refutation).into());
        out.number((*profile).into());
        out.bytes(&[flags.to_byte(), addresses.len().min(ADDRESSES_MAX) as u8]);
        for address in addresses.iter().take(ADDRESSES_MAX) {
            put_address(out, address);
        }
        put_bytes(out, metadata);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            id: NodeId::new(take_node_name(body)?, take_be64(body)?),
            life: Life::take(body)?,
            refutation: take_u32(body)?,
            profile: take_u32(body)?,
            flags: NodeFlags::from_byte(take_u8(body)?),
            addresses: take_list(body, ADDRESSES_MAX, take_address)?,
            metadata: take_bytes(body, METADATA_MAX)?,
        })
    }
}

/// What one side of a comparison knows of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) subject: ShortId,
    pub(crate) life: Life,
    pub(crate) refutation: u32,
    pub(crate) profile: u32,
}

impl Summary {
    fn put(&self, out: &mut impl Fields) {
        self.subject.put(out);
        self.life.put(out);
        out.number(self.refutation.into());
        out.number(self.profile.into());
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            subject: ShortId::take(body)?,
            life: Life::take(body)?,
            refutation: take_u32(body)?,
            profile: take_u32(body)?,
        })
    }
}

/// One frame of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Swim {
    /// Asks whether the receiver lives. Who probes and who answers vouches for itself, with its own `refutation`.
    Ping {
        seq: u32,
        refutation: u32,
    },
    Ack {
        seq: u32,
        refutation: u32,
    },
    /// Asks the receiver to ping another.
    PingReq {
        seq: u32,
        target: ShortId,
    },
    /// The target of a PINGREQ has not answered so far.
    Nack {
        seq: u32,
    },
    /// Asks the receiver to introduce these; at most [`WHO_MAX`].
    Who(Vec<ShortId>),
    Alive {
        subject: ShortId,
        refutation: u32,
        profile: u32,
    },
    Suspect {
        subject: ShortId,
        refutation: u32,
        accuser: ShortId,
    },
    Dead {
        subject: ShortId,
        refutation: u32,
        accuser: ShortId,
    },
    Left {
        subject: ShortId,
        refutation: u32,
    },
    Introduce(Introduction),
    /// What a user of the origin tells everybody.
    Fact {
        origin: ShortId,
        /// Counted by the origin.
        number: u64,
        /// 1 to [`TOPIC_MAX`] bytes.
        topic: String,
        /// At most [`FACT_MAX`] bytes.
        body: Bytes,
    },
    /// All that the sender knows, in 64 bits: where these are equal, nothing is to be repaired.
    Digest {
        members: u64,
        digest: u64,
    },
    /// The same for each bucket of members. Their number is a power of two, up to [`BUCKETS_MAX`].
    Buckets(Vec<u64>),
    /// All members in some buckets, one by one.
    Summaries {
        /// How many buckets the sender divides into: a power of two, up to [`BUCKETS_MAX`].
        buckets: u32,
        /// Which of them, in ascending order: nobody is made to compare a bucket twice.
        of: Vec<u32>,
        /// At most [`SUMMARIES_MAX`].
        summaries: Vec<Summary>,
    },
}

const PING: u8 = 0x30;
const ACK: u8 = 0x31;
const PING_REQ: u8 = 0x32;
const NACK: u8 = 0x33;
const WHO: u8 = 0x34;
const ALIVE: u8 = 0x35;
const SUSPECT: u8 = 0x36;
const DEAD: u8 = 0x37;
const LEFT: u8 = 0x38;
const INTRODUCE: u8 = 0x39;
const FACT: u8 = 0x3a;
const DIGEST: u8 = 0x3b;
const BUCKETS: u8 = 0x3c;
const SUMMARIES: u8 = 0x3d;

impl Swim {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.kind());
        put_varint(out, self.body_len() as u64);
        self.put_fields(out);
    }

    /// Exactly what [`Swim::put`] appends.
    pub(crate) fn len(&self) -> usize {
        let body = self.body_len();
        let mut count = Count(1 + body);
        count.number(body as u64);
        count.0
    }

    fn body_len(&self) -> usize {
        let mut count = Count(0);
        self.put_fields(&mut count);
        count.0
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Ping { .. } => PING,
            Self::Ack { .. } => ACK,
            Self::PingReq { .. } => PING_REQ,
            Self::Nack { .. } => NACK,
            Self::Who(_) => WHO,
            Self::Alive { .. } => ALIVE,
            Self::Suspect { .. } => SUSPECT,
            Self::Dead { .. } => DEAD,
            Self::Left { .. } => LEFT,
            Self::Introduce(_) => INTRODUCE,
            Self::Fact { .. } => FACT,
            Self::Digest { .. } => DIGEST,
            Self::Buckets(_) => BUCKETS,
            Self::Summaries { .. } => SUMMARIES,
        }
    }

    fn put_fields(&self, out: &mut impl Fields) {
        match self {
            Self::Ping { seq, refutation } | Self::Ack { seq, refutation } => {
                out.number((*seq).into());
                out.number((*refutation).into());
            }
            Self::PingReq { seq, target } => {
                out.number((*seq).into());
                target.put(out);
            }
            Self::Nack { seq } => out.number((*seq).into()),
            Self::Who(subjects) => {
                debug_assert!(subjects.len() <= WHO_MAX);
                subjects.iter().for_each(|subject| subject.put(out));
            }
            Self::Alive { subject, refutation, profile } => {
                subject.put(out);
                out.number((*refutation).into());
                out.number((*profile).into());
            }
            Self::Suspect { subject, refutation, accuser } | Self::Dead { subject, refutation, accuser } => {
                subject.put(out);
                out.number((*refutation).into());
                accuser.put(out);
            }
            Self::Left { subject, refutation } => {
                subject.put(out);
                out.number((*refutation).into());
            }
            Self::Introduce(introduction) => introduction.put(out),
            Self::Fact { origin, number, topic, body } => {
                debug_assert!((1..=TOPIC_MAX).contains(&topic.len()) && body.len() <= FACT_MAX);
                origin.put(out);
                out.number(*number);
                put_bytes(out, topic.as_bytes());
                put_bytes(out, body);
            }
            Self::Digest { members, digest } => {
                out.number(*members);
                put_be64(out, *digest);
            }
            Self::Buckets(hashes) => {
                debug_assert!(divides(hashes.len() as u64));
                hashes.iter().for_each(|hash| put_be64(out, *hash));
            }
            Self::Summaries { buckets, of, summaries } => {
                debug_assert!(divides((*buckets).into()) && are_some(of, *buckets) && summaries.len() <= SUMMARIES_MAX);
                out.number((*buckets).into());
                out.number(of.len() as u64);
                of.iter().for_each(|bucket| out.number((*bucket).into()));
                summaries.iter().for_each(|summary| summary.put(out));
            }
        }
    }

    /// Reads a frame; `None` for one that may be skipped.
    fn decode(frame: Frame) -> Result<Option<Self>, WireError> {
        let mut rest = frame.body;
        let body = &mut rest;
        let read = match frame.kind {
            PING => Self::Ping { seq: take_u32(body)?, refutation: take_u32(body)? },
            ACK => Self::Ack { seq: take_u32(body)?, refutation: take_u32(body)? },
            PING_REQ => Self::PingReq { seq: take_u32(body)?, target: ShortId::take(body)? },
            NACK => Self::Nack { seq: take_u32(body)? },
            WHO => Self::Who(take_all(body, WHO_MAX, ShortId::take)?),
            ALIVE => {
                Self::Alive { subject: ShortId::take(body)?, refutation: take_u32(body)?, profile: take_u32(body)? }
            }
            SUSPECT => Self::Suspect {
                subject: ShortId::take(body)?,
                refutation: take_u32(body)?,
                accuser: ShortId::take(body)?,
            },
            DEAD => {
                Self::Dead { subject: ShortId::take(body)?, refutation: take_u32(body)?, accuser: ShortId::take(body)? }
            }
            LEFT => Self::Left { subject: ShortId::take(body)?, refutation: take_u32(body)? },
            INTRODUCE => Self::Introduce(Introduction::take(body)?),
            FACT => {
                let (origin, number, topic) = (ShortId::take(body)?, take_varint(body)?, take_text(body, TOPIC_MAX)?);
                if topic.is_empty() {
                    return Err(WireError::Value("topic"));
                }
                Self::Fact { origin, number, topic, body: take_bytes(body, FACT_MAX)? }
            }
            DIGEST => Self::Digest { members: take_varint(body)?, digest: take_be64(body)? },
            BUCKETS => {
                let hashes = take_all(body, BUCKETS_MAX, take_be64)?;
                if !divides(hashes.len() as u64) {
                    return Err(WireError::Value("number of buckets"));
                }
                Self::Buckets(hashes)
            }
            SUMMARIES => {
                let buckets = take_u32(body)?;
                if !divides(buckets.into()) {
                    return Err(WireError::Value("number of buckets"));
                }
                let many = take_varint(body)?;
                if many > BUCKETS_MAX as u64 {
                    return Err(WireError::TooLong(many));
                }
                let of = (0..many).map(|_| take_u32(body)).collect::<Result<Vec<_>, _>>()?;
                if !are_some(&of, buckets) {
                    return Err(WireError::Value("buckets"));
                }
                Self::Summaries { buckets, of, summaries: take_all(body, SUMMARIES_MAX, Summary::take)? }
            }
            kind => return skip(kind),
        };
        finished(&rest)?;
        Ok(Some(read))
    }
}

/// A packet of these.
#[cfg(test)]
pub(crate) fn encode_all<'a>(frames: impl IntoIterator<Item = &'a Swim>) -> Bytes {
    let mut packet = Vec::new();
    frames.into_iter().for_each(|frame| frame.put(&mut packet));
    packet.into()
}

/// Reads the frames of a packet, and skips what may be skipped. What is read keeps nothing of the packet.
pub(crate) fn read(packet: Bytes) -> Frames {
    Frames { rest: packet }
}

/// The frames of a packet. The first error is the end.
#[derive(Debug)]
pub(crate) struct Frames {
    rest: Bytes,
}

impl Iterator for Frames {
    type Item = Result<Swim, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            match take_frame(&mut self.rest).and_then(Swim::decode) {
                Ok(None) => {}
                Ok(Some(frame)) => return Some(Ok(frame)),
                Err(error) => {
                    self.rest.clear();
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// Whether members may be divided into so many buckets.
fn divides(buckets: u64) -> bool {
    buckets.is_power_of_two() && buckets <= BUCKETS_MAX as u64
}

/// Whether these are buckets of so many, and in order.
fn are_some(of: &[u32], buckets: u32) -> bool {
    of.is_sorted_by(|a, b| a < b) && of.last().is_none_or(|last| *last < buckets)
}

#[cfg(test)]
mod tests;
