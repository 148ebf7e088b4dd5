//! Packets of membership and elections between the node task and a link: what waits to leave, and what waits to be read. Service frames
//! wait to be read beside them.
//!
//! Both ways are bounded. Of what leaves, probes go first, and beyond the bounds the oldest is dropped: what membership
//! says it says again. Of what arrives on one link little may wait, so that a flood harms only its sender: a datagram
//! beyond is dropped, a stream waits. Service frames have places of their own, so that no probe is dropped for them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::lock;
use crate::id::NodeId;
use crate::proto::links::SessionId;
use crate::proto::membership::{Path, Rank, Way};
use crate::wire::services::Service;

/// Datagrams that wait at one link.
const PROBES_MAX: usize = 32;
const ELECTIONS_MAX: usize = 64;
const GOSSIP_MAX: usize = 64;

/// Bytes that wait for the membership stream of one link. The answer to a whole comparison of ten thousand members fits.
const STREAM_MAX: usize = 4 * 1024 * 1024;

/// Packets that wait for the node task, of all links and of one.
const WAITING_MAX: usize = 1024;
const WAITING_PER_LINK: usize = 32;

/// Bytes of service frames that wait for the node task, of all links and of one, and what a small frame counts for. So
/// they take at most half of the places of all links.
const SERVICES_WAITING_MAX: usize = 4 * 1024 * 1024;
const SERVICES_PER_LINK: usize = 256 * 1024;
const SERVICE_LEAST: usize = 8 * 1024;

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
    /// They go before gossip, and have places of their own, so that no probe is dropped for them.
    elections: VecDeque<Bytes>,
    gossip: VecDeque<Bytes>,
    /// By rank: what is of the same rank keeps its order.
    stream: [VecDeque<Bytes>; 3],
    stream_bytes: usize,
}

/// A packet for a datagram, and whether it goes before others, as a probe or as a word of an election.
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

    /// Queues a packet of elections for a datagram; how many were dropped for it.
    pub(super) fn push_election(&self, packet: Bytes) -> u64 {
        let queue = &mut lock(&self.queues).elections;
        let is_full = queue.len() >= ELECTIONS_MAX;
        if is_full {
            queue.pop_front();
        }
        queue.push_back(packet);
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
        let urgent = queues.probes.pop_front().or_else(|| queues.elections.pop_front());
        match urgent {
            Some(packet) => Some(Datagram { packet, is_probe: true }),
            None => queues.gossip.pop_front().map(|packet| Datagram { packet, is_probe: false }),
        }
    }

    /// Puts one back that was taken last, because something goes before it.
    pub(super) fn untake(&self, Datagram { packet, is_probe }: Datagram) {
        let mut queues = lock(&self.queues);
        if is_probe { &mut queues.probes } else { &mut queues.gossip }.push_front(packet);
    }

    /// How many packets wait.
    pub(super) fn len(&self) -> usize {
        let queues = lock(&self.queues);
        let stream: usize = queues.stream.iter().map(VecDeque::len).sum();
        queues.probes.len() + queues.elections.len() + queues.gossip.len() + stream
    }

    /// Whether something waits that goes before gossip.
    pub(super) fn has_probe(&self) -> bool {
        let queues = lock(&self.queues);
        !queues.probes.is_empty() || !queues.elections.is_empty()
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

/// What has arrived on a link.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) from: NodeId,
    pub(crate) content: Content,
    /// The places that it has taken.
    _places: Places,
}

#[derive(Debug)]
pub(crate) enum Content {
    Packet {
        way: Way,
        path: Path,
        packet: Bytes,
    },
    /// In the order of the session's frames.
    Service {
        session: SessionId,
        frame: Service,
    },
}

#[derive(Debug)]
struct Places {
    _of_link: OwnedSemaphorePermit,
    _of_all: Option<OwnedSemaphorePermit>,
}

/// The way to the node task, for links.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    sender: mpsc::Sender<Arrived>,
    services: Arc<Semaphore>,
}

/// The way to the node task for one link.
#[derive(Debug)]
pub(super) struct Doorway {
    arrivals: Arrivals,
    places: Arc<Semaphore>,
    services: Arc<Semaphore>,
    from: NodeId,
    session: SessionId,
}

/// Room for one service frame on its way to the node task.
#[derive(Debug)]
pub(super) struct ServiceSlot<'a> {
    doorway: &'a Doorway,
    slot: mpsc::Permit<'a, Arrived>,
    places: Places,
}

impl ServiceSlot<'_> {
    pub(super) fn send(self, frame: Service) {
        let Doorway { from, session, .. } = self.doorway;
        let content = Content::Service { session: *session, frame };
        self.slot.send(Arrived { from: from.clone(), content, _places: self.places });
    }
}

/// A way to the node task, and its end there.
pub(crate) fn arrivals() -> (Arrivals, mpsc::Receiver<Arrived>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Arrivals { sender, services: Arc::new(Semaphore::new(SERVICES_WAITING_MAX)) }, receiver)
}

impl Arrivals {
    /// For one link of that session with that peer.
    pub(super) fn doorway(&self, from: NodeId, session: SessionId) -> Doorway {
        let places = Arc::new(Semaphore::new(WAITING_PER_LINK));
        let services = Arc::new(Semaphore::new(SERVICES_PER_LINK));
        Doorway { arrivals: self.clone(), places, services, from, session }
    }
}

impl Doorway {
    /// Hands a datagram to the node task if there is room; whether there was.
    pub(super) fn try_hand_over(&self, packet: Bytes, path: impl FnOnce() -> Path) -> bool {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return false };
        let Ok(slot) = self.arrivals.sender.try_reserve() else { return false };
        slot.send(self.packet(Way::Datagram, path(), packet, place));
        true
    }

    /// Hands a packet of a stream to the node task, and waits for room.
    pub(super) async fn hand_over(&self, packet: Bytes, path: impl FnOnce() -> Path) {
        let Ok(place) = self.places.clone().acquire_owned().await else { return };
        let Ok(slot) = self.arrivals.sender.reserve().await else { return };
        slot.send(self.packet(Way::Stream, path(), packet, place));
    }

    /// Waits for room for a service frame of so many bytes. `None` once the node has stopped.
    pub(super) async fn room_for_service(&self, bytes: usize) -> Option<ServiceSlot<'_>> {
        let bytes = bytes.clamp(SERVICE_LEAST, SERVICES_PER_LINK) as u32;
        let of_link = self.services.clone().acquire_many_owned(bytes).await.ok()?;
        let of_all = self.arrivals.services.clone().acquire_many_owned(bytes).await.ok()?;
        let slot = self.arrivals.sender.reserve().await.ok()?;
        Some(ServiceSlot { doorway: self, slot, places: Places { _of_link: of_link, _of_all: Some(of_all) } })
    }

    fn packet(&self, way: Way, path: Path, packet: Bytes, place: OwnedSemaphorePermit) -> Arrived {
        let places = Places { _of_link: place, _of_all: None };
        Arrived { from: self.from.clone(), content: Content::Packet { way, path, packet }, _places: places }
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
    fn elections_go_after_probes_and_before_gossip_in_places_of_their_own() {
        let out = Outgoing::default();
        out.push_datagram(Rank::Gossip, packet(1));
        for n in 0..ELECTIONS_MAX {
            assert_eq!(out.push_election(packet(10 + n)), 0);
        }
        assert!(out.has_probe(), "gossip that is about to leave makes way");
        assert_eq!(out.push_election(packet(1000)), 1, "the oldest is dropped");
        assert_eq!(out.push_datagram(Rank::Probe, packet(2)), 0);
        assert_eq!(out.take_datagram(), datagram(2, true));
        for n in (11..10 + ELECTIONS_MAX).chain([1000]) {
            assert_eq!(out.take_datagram(), datagram(n, true));
        }
        assert!(!out.has_probe());
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
        let (one, other) = (arrivals.doorway(one, SessionId(1)), arrivals.doorway(other, SessionId(2)));
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
        while let Ok(Arrived { content: Content::Packet { packet, .. }, .. }) = inbox.try_recv() {
            all.push(packet);
        }
        assert_eq!(all.len(), WAITING_PER_LINK + 1);
        assert_eq!(all.last(), Some(&packet(100)));
    }

    /// However many service frames wait, a probe does not, and the other way round.
    #[tokio::test]
    async fn service_frames_have_places_of_their_own() {
        let (arrivals, mut inbox) = arrivals();
        let path = || Path { rtt: Duration::ZERO, datagram_max: 0 };
        let node = |n: u64| NodeId::new(NodeName::parse("a@h").unwrap(), n);
        let (one, other) = (arrivals.doorway(node(1), SessionId(1)), arrivals.doorway(node(2), SessionId(2)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..SERVICES_PER_LINK / SERVICE_LEAST {
            one.room_for_service(1).await.unwrap().send(Service::Ready);
        }
        let waits = one.room_for_service(1);
        tokio::pin!(waits);
        assert!(waits.as_mut().poll(&mut context).is_pending(), "the places of one link are taken");
        other.room_for_service(1).await.unwrap().send(Service::Ready);
        for n in 0..WAITING_PER_LINK {
            assert!(one.try_hand_over(packet(n), path));
        }
        let first = inbox.recv().await.unwrap();
        assert_eq!(first.from, node(1));
        assert!(matches!(first.content, Content::Service { session: SessionId(1), frame: Service::Ready }));
        assert!(waits.as_mut().poll(&mut context).is_pending(), "it is not handled yet");
        drop(first);
        waits.await.unwrap().send(Service::Ready);
    }

    #[tokio::test]
    async fn a_large_service_frame_takes_more_of_the_room() {
        let (arrivals, mut inbox) = arrivals();
        let node = NodeId::new(NodeName::parse("a@h").unwrap(), 1);
        let doorway = arrivals.doorway(node, SessionId(1));
        for _ in 0..4 {
            doorway.room_for_service(SERVICES_PER_LINK / 4).await.unwrap().send(Service::Ready);
        }
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let waits = doorway.room_for_service(1);
        tokio::pin!(waits);
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(inbox.recv().await);
        drop(waits.await.unwrap());
        assert_eq!(doorway.services.available_permits(), SERVICES_PER_LINK / 4, "what is not used is given back");
    }

    /// The frames of all links leave places for packets.
    #[tokio::test]
    async fn service_frames_of_many_links_leave_room_for_packets() {
        let (arrivals, mut inbox) = arrivals();
        let path = || Path { rtt: Duration::ZERO, datagram_max: 0 };
        let mut doorways = Vec::new();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut sent = 0;
        for n in 0..100 {
            let node = NodeId::new(NodeName::parse("a@h").unwrap(), n);
            let doorway = arrivals.doorway(node, SessionId(n));
            for _ in 0..SERVICES_PER_LINK / SERVICE_LEAST {
                // Or tokio would have the task yield after so many.
                let room = tokio::task::unconstrained(doorway.room_for_service(1));
                tokio::pin!(room);
                if let std::task::Poll::Ready(Some(room)) = room.as_mut().poll(&mut context) {
                    room.send(Service::Ready);
                    sent += 1;
                }
            }
            doorways.push(doorway);
        }
        assert_eq!(sent, WAITING_MAX / 2);
        assert!(doorways.iter().all(|doorway| doorway.try_hand_over(packet(0), path)));
        while inbox.try_recv().is_ok() {}
    }
}
