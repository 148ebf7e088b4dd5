//! Packets of membership between the node task and a link: what waits to leave, and what waits to be read.
//!
//! Both ways are bounded. Of what leaves, probes go first, and beyond the bounds the oldest is dropped: what membership
//! says it says again. Of what arrives on one link little may wait, so that a flood harms only its sender: a datagram
//! beyond is dropped, a stream waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::lock;
use crate::id::NodeId;
use crate::proto::membership::{Path, Rank, Way};

/// Datagrams that wait at one link.
const PROBES_MAX: usize = 32;
const GOSSIP_MAX: usize = 64;

/// Bytes that wait for the membership stream of one link. The answer to a whole comparison of ten thousand members fits.
const STREAM_MAX: usize = 4 * 1024 * 1024;

/// Packets that wait for the node task, of all links and of one.
const WAITING_MAX: usize = 1024;
const WAITING_PER_LINK: usize = 32;

/// Packets for which there was no room.
#[derive(Debug, Default)]
pub(crate) struct PacketCounters {
    pub(crate) dropped_in: AtomicU64,
    pub(crate) dropped_out: AtomicU64,
}

/// What waits at one link to leave.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    queues: Mutex<Queues>,
    /// Something was queued for a datagram.
    datagram_ready: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    probes: VecDeque<Bytes>,
    gossip: VecDeque<Bytes>,
    /// By rank: what is of the same rank keeps its order.
    stream: [VecDeque<Bytes>; 3],
    stream_bytes: usize,
}

/// A packet for a datagram, and whether it goes before others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) packet: Bytes,
    pub(super) is_probe: bool,
}

impl Outgoing {
    /// Queues a packet for a datagram; how many were dropped for it.
    pub(super) fn push_datagram(&self, rank: Rank, packet: Bytes) -> u64 {
        let mut queues = lock(&self.queues);
        let (queue, max) = match rank {
            Rank::Probe => (&mut queues.probes, PROBES_MAX),
            Rank::Gossip | Rank::Sync => (&mut queues.gossip, GOSSIP_MAX),
        };
        let is_full = queue.len() >= max;
        if is_full {
            queue.pop_front();
        }
        queue.push_back(packet);
        drop(queues);
        self.datagram_ready.notify_one();
        u64::from(is_full)
    }

    /// Queues a packet for the stream; how many were dropped, which is this one or none.
    pub(super) fn push_stream(&self, rank: Rank, packet: Bytes) -> u64 {
        let mut queues = lock(&self.queues);
        if queues.stream_bytes + packet.len() > STREAM_MAX {
            return 1;
        }
        queues.stream_bytes += packet.len();
        queues.stream[rank as usize].push_back(packet);
        0
    }

    pub(super) fn take_datagram(&self) -> Option<Datagram> {
        let mut queues = lock(&self.queues);
        let (probe, gossip) = (queues.probes.pop_front(), &mut queues.gossip);
        match probe {
            Some(packet) => Some(Datagram { packet, is_probe: true }),
            None => gossip.pop_front().map(|packet| Datagram { packet, is_probe: false }),
        }
    }

    /// Puts one back that was taken last, because something goes before it.
    pub(super) fn untake(&self, Datagram { packet, is_probe }: Datagram) {
        let mut queues = lock(&self.queues);
        if is_probe { &mut queues.probes } else { &mut queues.gossip }.push_front(packet);
    }

    pub(super) fn has_probe(&self) -> bool {
        !lock(&self.queues).probes.is_empty()
    }

    /// Resolves when a datagram was queued since the last time.
    pub(super) async fn datagram_queued(&self) {
        self.datagram_ready.notified().await;
    }

    /// The next packet for the stream.
    pub(super) fn take_stream(&self) -> Option<Bytes> {
        let mut queues = lock(&self.queues);
        let packet = queues.stream.iter_mut().find_map(VecDeque::pop_front)?;
        queues.stream_bytes -= packet.len();
        Some(packet)
    }

    /// The stream is to end: what repairs differences is repeated later, on another link.
    pub(super) fn drop_syncs(&self) {
        let mut queues = lock(&self.queues);
        let dropped = std::mem::take(&mut queues.stream[Rank::Sync as usize]);
        queues.stream_bytes -= dropped.iter().map(Bytes::len).sum::<usize>();
    }
}

/// A packet that has arrived.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) from: NodeId,
    pub(crate) way: Way,
    pub(crate) path: Path,
    pub(crate) packet: Bytes,
    /// One of the places of its link.
    _place: OwnedSemaphorePermit,
}

/// The way to the node task, for links.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals(mpsc::Sender<Arrived>);

/// The way to the node task for one link.
#[derive(Debug)]
pub(super) struct Doorway {
    arrivals: Arrivals,
    places: Arc<Semaphore>,
    from: NodeId,
}

/// A way for packets to the node task, and its end there.
pub(crate) fn arrivals() -> (Arrivals, mpsc::Receiver<Arrived>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Arrivals(sender), receiver)
}

impl Arrivals {
    pub(super) fn doorway(&self, from: NodeId) -> Doorway {
        Doorway { arrivals: self.clone(), places: Arc::new(Semaphore::new(WAITING_PER_LINK)), from }
    }
}

impl Doorway {
    /// Hands a datagram to the node task if there is room; whether there was.
    pub(super) fn try_hand_over(&self, packet: Bytes, path: impl FnOnce() -> Path) -> bool {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return false };
        let Ok(slot) = self.arrivals.0.try_reserve() else { return false };
        slot.send(Arrived { from: self.from.clone(), way: Way::Datagram, path: path(), packet, _place: place });
        true
    }

    /// Hands a packet of a stream to the node task, and waits for room.
    pub(super) async fn hand_over(&self, packet: Bytes, path: impl FnOnce() -> Path) {
        let Ok(place) = self.places.clone().acquire_owned().await else { return };
        let Ok(slot) = self.arrivals.0.reserve().await else { return };
        slot.send(Arrived { from: self.from.clone(), way: Way::Stream, path: path(), packet, _place: place });
    }
}

impl PacketCounters {
    pub(super) fn dropped_in(&self) {
        self.dropped_in.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dropped_out(&self, packets: u64) {
        self.dropped_out.fetch_add(packets, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::NodeName;

    fn packet(n: usize) -> Bytes {
        Bytes::copy_from_slice(&(n as u32).to_be_bytes())
    }

    fn datagram(n: usize, is_probe: bool) -> Option<Datagram> {
        Some(Datagram { packet: packet(n), is_probe })
    }

    #[test]
    fn probes_go_first_and_the_oldest_beyond_the_bound_is_dropped() {
        let out = Outgoing::default();
        for n in 0..GOSSIP_MAX {
            assert_eq!(out.push_datagram(Rank::Gossip, packet(n)), 0);
        }
        assert_eq!(out.push_datagram(Rank::Sync, packet(1000)), 1, "a gossip too many");
        for n in 0..PROBES_MAX {
            assert_eq!(out.push_datagram(Rank::Probe, packet(n)), 0);
        }
        assert_eq!(out.push_datagram(Rank::Probe, packet(2000)), 1, "a probe too many");
        assert_eq!(out.take_datagram(), datagram(1, true));
        while out.has_probe() {
            assert!(out.take_datagram().is_some_and(|datagram| datagram.is_probe));
        }
        assert_eq!(out.take_datagram(), datagram(1, false));
    }

    #[test]
    fn what_is_put_back_comes_next_of_its_kind() {
        let out = Outgoing::default();
        out.push_datagram(Rank::Gossip, packet(1));
        out.push_datagram(Rank::Gossip, packet(2));
        let first = out.take_datagram().unwrap();
        out.push_datagram(Rank::Probe, packet(3));
        out.untake(first);
        let order: Vec<_> = std::iter::from_fn(|| out.take_datagram()).collect();
        assert_eq!(
            order.into_iter().map(Some).collect::<Vec<_>>(),
            [datagram(3, true), datagram(1, false), datagram(2, false)]
        );
    }

    #[test]
    fn the_stream_holds_so_many_bytes_and_its_probes_go_first() {
        let out = Outgoing::default();
        let large = Bytes::from(vec![0; STREAM_MAX - 4]);
        assert_eq!(out.push_stream(Rank::Sync, large.clone()), 0);
        assert_eq!(out.push_stream(Rank::Probe, packet(1)), 0, "it fits to the last byte");
        assert_eq!(out.push_stream(Rank::Probe, packet(2)), 1, "and no more");
        assert_eq!(out.take_stream(), Some(packet(1)));
        assert_eq!(out.take_stream(), Some(large.clone()));
        assert_eq!(out.push_stream(Rank::Sync, large), 0, "room is given back");
        out.push_stream(Rank::Gossip, packet(3));
        out.drop_syncs();
        assert_eq!(out.take_stream(), Some(packet(3)));
        assert_eq!(out.take_stream(), None);
        assert_eq!(out.push_stream(Rank::Sync, Bytes::from(vec![0; STREAM_MAX])), 0, "all room is free");
    }

    #[tokio::test]
    async fn one_link_fills_its_own_places_and_no_others() {
        let (arrivals, mut inbox) = arrivals();
        let path = || Path { rtt: Duration::ZERO, datagram_max: 0 };
        let [one, other] = ["a@h", "b@h"].map(|name| NodeId::new(NodeName::parse(name).unwrap(), 1));
        let (one, other) = (arrivals.doorway(one), arrivals.doorway(other));
        for n in 0..WAITING_PER_LINK {
            assert!(one.try_hand_over(packet(n), path));
        }
        assert!(!one.try_hand_over(packet(99), path), "its places are taken");
        assert!(other.try_hand_over(packet(0), path));
        let waits = one.hand_over(packet(100), path);
        tokio::pin!(waits);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(inbox.recv().await.unwrap());
        waits.await;
        let mut all = Vec::new();
        while let Ok(arrived) = inbox.try_recv() {
            all.push(arrived.packet);
        }
        assert_eq!(all.len(), WAITING_PER_LINK + 1);
        assert_eq!(all.last(), Some(&packet(100)));
    }
}
