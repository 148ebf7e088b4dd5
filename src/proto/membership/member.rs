//! What a user sees of a member.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::id::NodeId;

/// Whether a member lives, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum MemberState {
    /// It answers, or somebody vouches for it.
    Alive,
    /// Somebody had no answer from it; it has time to object. It counts as alive.
    Suspect,
    /// It did not object in time. It may still come back, when it was falsely declared dead.
    Dead,
    /// It said good-bye.
    Left,
}

impl MemberState {
    /// Returns true for [`Alive`](Self::Alive) and [`Suspect`](Self::Suspect): not declared dead, and not gone.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// A node that membership knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its name, and which of its lives this is.
    pub id: NodeId,
    /// Whether it lives.
    pub state: MemberState,
    /// How often it had to object to being suspected, in this life. Only the member itself raises it.
    #[doc(alias = "incarnation")]
    pub refutation: u32,
    /// What it says of itself, up to 512 bytes; empty unless it set any.
    pub metadata: Bytes,
    /// Where it can be dialled, beside its name.
    pub addresses: Vec<SocketAddr>,
    /// Nobody can dial it: it dials, and keeps a few links.
    pub not_dialable: bool,
    /// It only uses the cluster.
    pub client: bool,
}

/// Something that happened to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberEvent {
    /// A member that was not known, or was known to have left or to be dead in an earlier life, is there.
    Joined(Member),
    /// The new life of a name took the place of an old one that had not been declared dead.
    Replaced {
        /// The life that is over.
        old: NodeId,
        /// The life that is there now.
        member: Member,
    },
    /// Somebody had no answer from a member.
    Suspected {
        /// The member.
        member: Member,
        /// Who says so.
        by: NodeId,
    },
    /// A suspected member has objected, or somebody heard from it.
    Cleared(Member),
    /// A member was declared dead.
    Died {
        /// The member.
        member: Member,
        /// Who declared it.
        by: NodeId,
    },
    /// A member that had been declared dead has objected: it is the same life, which had never ended.
    Returned(Member),
    /// A member said good-bye.
    Left(Member),
    /// What a member says of itself has changed, or its count of objections.
    Updated(Member),
    /// A member that was dead, or had left, is no longer remembered.
    Forgotten(NodeId),
}

/// What has happened to the membership of one node, counted. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MembershipCounters {
    /// Members that this node asked for a sign of life.
    pub probes: u64,
    /// Of these: how many answered in time, on whatever way.
    pub acks: u64,
    /// Of these: how many did not, and were suspected.
    pub failures: u64,
    /// Suspicions that this node took up, its own and others'.
    pub suspicions: u64,
    /// How often this node objected to its own suspicion or death.
    pub refutations: u64,
    /// Suspicions and deaths of others that turned out to be wrong.
    pub false_alarms: u64,
    /// Deaths that this node declared, or was told of.
    pub deaths: u64,
    /// Links that membership asked for.
    pub dials: u64,
    /// Packets sent, each a datagram or a frame on a stream.
    pub packets_sent: u64,
    /// Bytes of these, without what QUIC adds.
    pub bytes_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Bytes of these.
    pub bytes_received: u64,
    /// Comparisons of all that is known with another member.
    pub syncs: u64,
    /// Frames or packets that make no sense.
    pub malformed: u64,
    /// Claims that cannot be true, and were not believed.
    pub implausible: u64,
    /// Claims about members that this node does not know.
    pub unknown: u64,
    /// Members left out because there was no room: see [`Config::members_max`](crate::Config::members_max).
    pub crowded_out: u64,
    /// Facts dropped because there was no room: see [`Config::facts_max`](crate::Config::facts_max).
    pub facts_dropped: u64,
}
