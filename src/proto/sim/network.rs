//! What is between two nodes: how long a packet takes, and whether it arrives.

use std::collections::BTreeSet;
use std::time::Duration;

use super::clock::{Time, nanos};

/// What the network does to every packet.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The shortest way takes between so much and so much, each pair of nodes its own time.
    pub latency: (Duration, Duration),
    /// On top of it, a uniform share of this. Packets overtake each other when it is long.
    pub jitter: Duration,
    /// The chance that a packet is lost, each way.
    pub loss: f64,
    /// The chance that a datagram comes twice, though QUIC would see to it.
    pub duplicate: f64,
    /// The chance that a datagram takes up to `reorder_by` longer.
    pub reorder: f64,
    pub reorder_by: Duration,
    /// The chance that a datagram of a link is lost where its streams are not, each way.
    pub datagram_loss: f64,
    /// The chance that a packet of gossip is lost, where others are not.
    pub gossip_loss: f64,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            latency: (Duration::from_micros(250), Duration::from_micros(750)),
            jitter: Duration::from_micros(500),
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(50),
            datagram_loss: 0.0,
            gossip_loss: 0.0,
        }
    }
}

/// What one node's access to the network is like.
#[derive(Clone, Copy, Debug, Default)]
struct Access {
    side: u32,
    loss_in: f64,
    loss_out: f64,
}

/// The state of the network between all nodes.
#[derive(Debug)]
pub(super) struct Between {
    pub(super) network: Network,
    salt: u64,
    access: Vec<Access>,
    cuts: BTreeSet<(u32, u32)>,
    is_split: bool,
}

/// Why a packet does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    Cut,
    Split,
    Lost,
}

impl Between {
    pub(super) fn new(network: Network, salt: u64) -> Self {
        Self { network, salt, access: Vec::new(), cuts: BTreeSet::new(), is_split: false }
    }

    pub(super) fn grow(&mut self, nodes: usize) {
        self.access.resize(nodes, Access::default());
    }

    pub(super) fn cut(&mut self, from: u32, to: u32) {
        self.cuts.insert((from, to));
    }

    /// Puts nodes on another side than the rest.
    pub(super) fn split(&mut self, nodes: &[u32], side: u32) {
        nodes.iter().for_each(|node| self.access[*node as usize].side = side);
        self.is_split = self.access.iter().any(|access| access.side != 0);
    }

    pub(super) fn set_loss(&mut self, node: u32, loss_in: Option<f64>, loss_out: Option<f64>) {
        let access = &mut self.access[node as usize];
        access.loss_in = loss_in.unwrap_or(access.loss_in);
        access.loss_out = loss_out.unwrap_or(access.loss_out);
    }

    /// Undoes cuts, splits and the losses of single nodes.
    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        self.is_split = false;
        self.access.fill(Access::default());
    }

    /// Whether a packet is lost on the way.
    pub(super) fn fate(&self, from: u32, to: u32, rng: &mut fastrand::Rng) -> Result<(), Dropped> {
        let (source, target) = (&self.access[from as usize], &self.access[to as usize]);
        if self.is_split && source.side != target.side {
            return Err(Dropped::Split);
        }
        if !self.cuts.is_empty() && self.cuts.contains(&(from, to)) {
            return Err(Dropped::Cut);
        }
        let losses = [self.network.loss, source.loss_out, target.loss_in];
        if losses.iter().any(|loss| *loss > 0.0 && rng.f64() < *loss) { Err(Dropped::Lost) } else { Ok(()) }
    }

    /// The shortest time between two nodes.
    pub(super) fn base(&self, a: u32, b: u32) -> Time {
        let (least, most) = (nanos(self.network.latency.0), nanos(self.network.latency.1));
        if most <= least {
            return least;
        }
        let pair = (u64::from(a.min(b)) << 32) | u64::from(a.max(b));
        least + mix(pair ^ self.salt) % (most - least)
    }

    /// How long this packet takes.
    pub(super) fn latency(&self, from: u32, to: u32, rng: &mut fastrand::Rng) -> Time {
        let jitter = nanos(self.network.jitter);
        self.base(from, to) + if jitter == 0 { 0 } else { rng.u64(..jitter) }
    }

    /// The longest that a packet takes which is not held up on purpose.
    pub(super) fn longest(&self, from: u32, to: u32) -> Time {
        self.base(from, to) + nanos(self.network.jitter)
    }

    pub(super) fn rtt(&self, a: u32, b: u32) -> Time {
        2 * self.base(a, b) + nanos(self.network.jitter)
    }
}

/// Spreads 64 bits over 64 bits (the finaliser of SplitMix64).
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
