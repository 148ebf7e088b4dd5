//! What the simulator runs: one node's failure detector, whichever it is.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// A node by its place in the simulation, and which of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    pub node: u32,
    pub life: u32,
}

/// A member as one node holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub id: Id,
    pub state: State,
    pub refutation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Alive,
    Suspect,
    Dead,
    Left,
}

impl State {
    pub fn is_live(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// What happened to a member, as a subscriber is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Joined,
    Replaced { old: u32 },
    Suspected,
    Cleared,
    Died,
    Returned,
    Left,
    Updated,
    Forgotten,
}

/// What a node knows of the way to a peer.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub rtt: Duration,
    pub datagram_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlinked {
    Idle,
    Left,
    Asked,
    Lost,
}

#[derive(Clone, Debug)]
pub enum Input {
    Packet { from: Id, way: Way, path: Path, packet: Bytes },
    Linked { peer: Id, path: Path },
    Unlinked { peer: Id, why: Unlinked },
    DialFailed { node: u32 },
    Heard { peer: Id, at: Instant },
    SetMetadata { metadata: Bytes },
    Publish { topic: String, body: Bytes },
    Leave,
    Renewed { life: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A datagram on a link.
    Datagram,
    /// A stream on a link.
    Stream,
    /// A datagram that needs no link, as over plain UDP.
    Unlinked,
}

/// What a packet is for; reports count by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    Probe,
    Gossip,
    Sync,
}

#[derive(Clone, Debug)]
pub enum Output {
    Send {
        to: u32,
        way: Way,
        rank: Rank,
        packet: Bytes,
    },
    Dial {
        node: u32,
    },
    Event {
        what: What,
        seen: Seen,
    },
    Fact {
        body: Bytes,
    },
    /// The machine gave itself another life, though its process goes on.
    Renewed {
        life: u32,
    },
    Superseded,
    GoodbyeSaid,
}

/// One node's failure detector, as a value: inputs and the time go in, outputs come out.
pub trait Machine {
    /// What all machines of one simulation share.
    type Setup;

    fn new(setup: &Self::Setup, id: Id, seed: u64, now: Instant) -> Self;

    /// Node 0 of `nodes` nodes that know each other already, all in their first life.
    fn template(setup: &Self::Setup, nodes: u32, now: Instant) -> Self;

    /// The same knowledge in the hands of another node.
    fn fork(&self, id: Id, seed: u64, now: Instant) -> Self;

    fn handle(&mut self, input: Input, now: Instant);

    fn handle_timeout(&mut self, now: Instant);

    fn poll_output(&mut self) -> Option<Output>;

    fn poll_timeout(&self) -> Option<Instant>;

    /// Whose silence would be judged now.
    fn judged(&self, now: Instant) -> Vec<Id>;

    /// Shows every member, this node included.
    fn each_member(&self, see: &mut dyn FnMut(Seen));

    /// How many live, this node included.
    fn live(&self) -> usize;

    fn score(&self) -> u32;

    /// The life of a name that this node holds for the present one.
    fn life_of(&self, node: u32) -> Option<u32>;
}

/// The first life of every node; the next ones are greater by [`LIFE_STEP`], so that a clock can step back between them.
pub const FIRST_LIFE: u32 = 1_000;
pub const LIFE_STEP: u32 = 1_000;
