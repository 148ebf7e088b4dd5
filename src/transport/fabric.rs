//! An in-memory UDP network for whole nodes.
//!
//! QUIC runs on it unchanged: handshakes, retransmission, congestion control and migration are quinn's own. Only the
//! sockets are replaced, by ones whose datagrams wait in a heap until tokio's clock says that they have arrived. Under a
//! paused clock a quiet minute costs next to nothing, and every fault falls at an exact time.
//!
//! This is not a model of the Internet. A host has one address, every direction between two hosts is a link of its own,
//! and there is no ICMP: what nobody listens for vanishes without a word. It is not a scheduler either: all nodes share
//! one runtime, so a host's network can be stopped but not its tasks.
//!
//! tokio's timers fire on whole milliseconds after the start of the runtime. Arrival times are kept to the nanosecond and
//! decide the order of datagrams, but a receiver sees a datagram at the first whole millisecond that is not before it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that a socket holds for a reader that has not come yet, and that a frozen host holds for its network.
const SOCKET_BUFFER: usize = 4 << 20;

/// The ports of sockets that did not ask for one.
const EPHEMERAL: RangeInclusive<u16> = 49_152..=65_535;

/// The source ports that [`Fabric::rebind`] gives out.
const PUBLIC: RangeInclusive<u16> = 32_768..=49_151;

/// The longest that a datagram stays in flight. Keeps absurd conditions from overflowing the clock.
const FLIGHT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How one direction between two hosts treats datagrams.
///
/// ```
/// use std::time::Duration;
///
/// use distribute::sim::Conditions;
///
/// let wan = Conditions::default().latency(Duration::from_millis(40)).jitter(Duration::from_millis(5)).loss(0.01);
/// assert_eq!(wan.mtu, 1472);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Conditions {
    /// How long every datagram travels. 500 µs unless set; a receiver sees it at the next whole millisecond of tokio's
    /// clock.
    pub latency: Duration,
    /// The most that is added to the latency of a datagram, drawn evenly from zero. None unless set.
    pub jitter: Duration,
    /// Probability that a datagram is lost, 0 to 1.
    pub loss: f64,
    /// Probability that a datagram arrives twice, 0 to 1. The second copy draws its own jitter.
    pub duplicate: f64,
    /// Probability that a datagram is held back by [`reorder_by`](Self::reorder_by), 0 to 1.
    pub reorder: f64,
    /// How long a datagram is held back, so that later ones overtake it. 10 ms unless set.
    pub reorder_by: Duration,
    /// The largest UDP payload, in bytes, that gets through; larger ones are dropped. 1472 unless set.
    pub mtu: usize,
    /// Bytes of UDP payload per second, or no limit. Zero counts as one.
    pub bandwidth: Option<u64>,
    /// Bytes of UDP payload that wait for the bandwidth before further ones are dropped. 256 KiB unless set.
    pub queue: usize,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(500),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(10),
            mtu: 1472,
            bandwidth: None,
            queue: 256 << 10,
        }
    }
}

impl Conditions {
    /// Sets how long every datagram travels.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Sets the most that is added to the latency.
    #[must_use]
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// Sets the probability of loss.
    #[must_use]
    pub fn loss(mut self, probability: f64) -> Self {
        self.loss = probability;
        self
    }

    /// Sets the probability of a second copy.
    #[must_use]
    pub fn duplicate(mut self, probability: f64) -> Self {
        self.duplicate = probability;
        self
    }

    /// Sets the probability of being held back.
    #[must_use]
    pub fn reorder(mut self, probability: f64) -> Self {
        self.reorder = probability;
        self
    }

    /// Sets how long a datagram is held back.
    #[must_use]
    pub fn reorder_by(mut self, by: Duration) -> Self {
        self.reorder_by = by;
        self
    }

    /// Sets the largest UDP payload.
    #[must_use]
    pub fn mtu(mut self, bytes: usize) -> Self {
        self.mtu = bytes;
        self
    }

    /// Sets the bandwidth, in bytes per second.
    #[must_use]
    pub fn bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.bandwidth = Some(bytes_per_second);
        self
    }

    /// Sets how many bytes wait for the bandwidth.
    #[must_use]
    pub fn queue(mut self, bytes: usize) -> Self {
        self.queue = bytes;
        self
    }
}

/// What became of the datagrams of a [`Fabric`]: proof that a fault really happened.
///
/// `sent + duplicated` is always the sum of `delivered`, `lost`, `cut`, `too_large`, `queue_dropped`, `unroutable` and
/// what is still on its way, held for a frozen host or not yet read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Datagrams that sockets sent.
    pub sent: u64,
    /// Datagrams, copies included, that sockets handed to their readers.
    pub delivered: u64,
    /// Datagrams lost by chance.
    pub lost: u64,
    /// Second copies.
    pub duplicated: u64,
    /// Datagrams that were held back by chance.
    pub reordered: u64,
    /// Datagrams that met a cut.
    pub cut: u64,
    /// Datagrams larger than the direction lets through.
    pub too_large: u64,
    /// Datagrams for which there was no room: in the queue of a bandwidth, in the buffer of a socket, or in the buffer of
    /// a frozen host.
    pub queue_dropped: u64,
    /// Datagrams for which nobody listened, those that a dropped socket had not read included.
    pub unroutable: u64,
    /// Bytes of UDP payload in the datagrams delivered.
    pub bytes_delivered: u64,
}

/// An in-memory network. Cheap to clone; all clones are one network.
///
/// Hosts reach each other as soon as they exist. The seed fixes, separately for each direction between two hosts, what
/// chance does to the first, second, third… datagram sent there, so that traffic elsewhere does not change it. What the
/// datagrams hold is not the fabric's to fix: QUIC draws its own keys and identifiers.
///
/// Faults may be set for addresses that have no host yet. Use it from within the runtime whose clock it lives on.
#[derive(Clone)]
pub struct Fabric {
    net: Arc<Mutex<Net>>,
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = self.lock();
        f.debug_struct("Fabric")
            .field("seed", &net.seed)
            .field("hosts", &net.hosts.len())
            .field("sockets", &net.ports.len())
            .field("counters", &net.counters)
            .finish_non_exhaustive()
    }
}

impl Fabric {
    /// A network without hosts. The seed fixes what chance does.
    pub fn new(seed: u64) -> Self {
        Self { net: Arc::new(Mutex::new(Net::new(seed))) }
    }

    /// The host with this address, which is added if there is none.
    pub fn host(&self, ip: impl Into<IpAddr>) -> Host {
        let ip = ip.into().to_canonical();
        self.lock().hosts.entry(ip).or_default();
        Host { fabric: self.clone(), ip }
    }

    /// Sets the addresses of a DNS name, in place of those that it had. Upper and lower case are the same.
    pub fn name(&self, dns_name: &str, ips: &[IpAddr]) {
        let ips = ips.iter().map(IpAddr::to_canonical).collect();
        self.lock().names.insert(dns_key(dns_name), ips);
    }

    /// Sets the conditions of every direction that has none of its own. Datagrams already in flight keep theirs.
    pub fn conditions(&self, conditions: Conditions) {
        self.lock().conditions = conditions;
    }

    /// Sets the conditions of one direction.
    pub fn conditions_between(&self, from: IpAddr, to: IpAddr, conditions: Conditions) {
        self.lock().link(from.to_canonical(), to.to_canonical()).conditions = Some(conditions);
    }

    /// Cuts both directions between two hosts.
    ///
    /// A datagram meets the cut when it is sent and when it arrives, so what is in flight is dropped too unless the cut
    /// is healed before. What has reached the receiving socket stays there.
    pub fn cut(&self, a: IpAddr, b: IpAddr) {
        self.set_cut(&[(a, b), (b, a)], true);
    }

    /// Cuts one direction: `to` no longer hears `from`. The other direction stays as it is.
    pub fn cut_one_way(&self, from: IpAddr, to: IpAddr) {
        self.set_cut(&[(from, to)], true);
    }

    /// Ends the cuts between two hosts, in both directions.
    pub fn heal(&self, a: IpAddr, b: IpAddr) {
        self.set_cut(&[(a, b), (b, a)], false);
    }

    /// Ends all cuts. Conditions stay, and frozen hosts stay frozen.
    pub fn heal_all(&self) {
        let mut net = self.lock();
        net.settle_all(Instant::now());
        for link in net.links.values_mut() {
            link.cut = false;
        }
    }

    /// Cuts every host of one side from every host of the other. Cuts made before stay.
    pub fn partition(&self, one_side: &[IpAddr], other_side: &[IpAddr]) {
        let pairs = one_side.iter().flat_map(|&a| other_side.iter().flat_map(move |&b| [(a, b), (b, a)]));
        self.set_cut(&pairs.collect::<Vec<_>>(), true);
    }

    /// Stops the network of a host.
    ///
    /// What the host sends and what arrives for it is held, as in the buffers of a stopped process: 4 MiB of what it
    /// sends, and 4 MiB of what arrives for each of its sockets. What does not fit is dropped. The host's tasks keep
    /// running and its timers keep firing, because one runtime cannot stop some of its tasks: only the network stands
    /// still.
    pub fn freeze(&self, ip: IpAddr) {
        self.lock().hosts.entry(ip.to_canonical()).or_default().frozen = true;
    }

    /// Lets the network of a frozen host go on. What was held passes now, in order.
    pub fn thaw(&self, ip: IpAddr) {
        let wakers = self.lock().thaw(ip.to_canonical(), Instant::now());
        wake(wakers);
    }

    /// Moves a host behind a new public port, as a NAT does when it forgets a mapping.
    ///
    /// From now on, every socket that the host has now sends from a new source port, to all peers to which it sent before
    /// they sent to it. Datagrams to the newest port reach the socket; those to the public port before it are dropped,
    /// even those in flight. The port to which the socket is bound keeps accepting, like a forwarded port of a NAT, and
    /// peers that were the first to send to it are answered from it: the connections that they dialled go on.
    ///
    /// The port belongs to the pair of addresses, as in a NAT, and not to the connection. So a peer that this host has
    /// dialled before cannot dial this host in turn: it would be answered from a port that it does not know.
    pub fn rebind(&self, ip: IpAddr) {
        self.lock().rebind(ip.to_canonical(), Instant::now());
    }

    /// What became of the datagrams so far.
    pub fn counters(&self) -> Counters {
        let mut net = self.lock();
        net.settle_all(Instant::now());
        net.counters
    }

    fn set_cut(&self, directions: &[(IpAddr, IpAddr)], cut: bool) {
        let mut net = self.lock();
        net.settle_all(Instant::now());
        for (from, to) in directions {
            net.link(from.to_canonical(), to.to_canonical()).cut = cut;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Net> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine with one address on a [`Fabric`]. Cheap to clone; all clones are one host.
#[derive(Clone)]
pub struct Host {
    fabric: Fabric,
    ip: IpAddr,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.ip).finish()
    }
}

impl Host {
    /// The address of the host.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The network of the host.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Binds a UDP socket; port 0 picks a free one. Dropping the socket frees the port.
    ///
    /// The socket belongs under an endpoint with [`quinn::TokioRuntime`], whose clock and timers are tokio's and so
    /// follow a paused clock.
    pub(crate) fn bind(&self, port: u16) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let at = self.fabric.lock().bind(self.ip, port, Instant::now())?;
        Ok(Arc::new(Socket { fabric: self.fabric.clone(), at, timer: Mutex::new(None) }))
    }

    /// The addresses of a DNS name of the fabric; none if it has no such name.
    pub(crate) fn resolve(&self, dns_name: &str) -> Vec<IpAddr> {
        self.fabric.lock().names.get(&dns_key(dns_name)).cloned().unwrap_or_default()
    }
}

fn dns_key(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Wakes outside the lock, as a waker may run anything.
fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

/// The network behind its lock.
struct Net {
    seed: u64,
    conditions: Conditions,
    hosts: BTreeMap<IpAddr, Station>,
    /// Bound sockets.
    ports: BTreeMap<SocketAddr, Port>,
    /// Where the sockets of rebound hosts appear, and where they are bound.
    public: BTreeMap<SocketAddr, SocketAddr>,
    /// What was in flight to sockets that were dropped. It reaches a socket that is bound there in time.
    orphans: BTreeMap<SocketAddr, BinaryHeap<Reverse<Flight>>>,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    names: BTreeMap<String, Vec<IpAddr>>,
    counters: Counters,
    sequence: u64,
}

/// A host.
struct Station {
    frozen: bool,
    held: VecDeque<Held>,
    held_bytes: usize,
    next_ephemeral: u16,
    next_public: u16,
}

impl Default for Station {
    fn default() -> Self {
        Self {
            frozen: false,
            held: VecDeque::new(),
            held_bytes: 0,
            next_ephemeral: *EPHEMERAL.start(),
            next_public: *PUBLIC.start(),
        }
    }
}

/// A datagram that a frozen host sent.
struct Held {
    at: SocketAddr,
    to: SocketAddr,
    payload: Bytes,
}

/// One direction between two hosts.
struct Link {
    conditions: Option<Conditions>,
    cut: bool,
    rng: fastrand::Rng,
    busy: Busy,
}

/// A datagram on its way. Ordered by arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    due: Instant,
    sequence: u64,
    from: SocketAddr,
    to: SocketAddr,
    payload: Bytes,
}

/// A bound socket, as the network sees it.
#[derive(Default)]
struct Port {
    flights: BinaryHeap<Reverse<Flight>>,
    arrived: VecDeque<Flight>,
    arrived_bytes: usize,
    /// The reader that found nothing.
    reader: Option<Waker>,
    /// When the reader comes back by itself.
    reader_due: Option<Instant>,
    /// The newest port behind which the socket appears in flows that it opened.
    public: Option<u16>,
    flows: BTreeMap<SocketAddr, Opened>,
}

/// Who sent the first datagram between a socket and a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opened {
    Here,
    There,
}

impl Link {
    fn new(seed: u64, from: IpAddr, to: IpAddr) -> Self {
        let mut state = seed;
        for ip in [from, to] {
            let bits = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
                IpAddr::V6(v6) => v6.to_bits(),
            };
            for half in [(bits >> 64) as u64, bits as u64] {
                state = split_mix(state ^ half);
            }
        }
        Self { conditions: None, cut: false, rng: fastrand::Rng::with_seed(state), busy: Busy::default() }
    }
}

/// The finalizer of SplitMix64, so that neighbouring addresses get unrelated generators.
fn split_mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A bottleneck: when it has sent all that it was given, exactly, so that its queue holds whole bytes.
#[derive(Default)]
struct Busy {
    until: Option<Instant>,
    /// The part of a nanosecond after `until`, in units of one nanosecond divided by the bandwidth.
    rest: u128,
}

impl Busy {
    /// When the last byte of a datagram leaves, or nothing if the queue has no room for it.
    fn departure(&mut self, now: Instant, size: usize, conditions: &Conditions) -> Option<Instant> {
        const NANOS: u128 = 1_000_000_000;
        let Some(bandwidth) = conditions.bandwidth else { return Some(now) };
        let (bandwidth, size, queue) = (u128::from(bandwidth.max(1)), size as u128, conditions.queue as u128);
        let (start, rest) = match self.until {
            Some(until) if until >= now => (until, self.rest % bandwidth),
            _ => (now, 0),
        };
        // In units of one byte divided by `NANOS`.
        let backlog = bandwidth.saturating_mul(start.duration_since(now).as_nanos()).saturating_add(rest);
        if backlog.saturating_add(size * NANOS) > queue * NANOS {
            return None;
        }
        let total = size * NANOS + rest;
        let nanos = u64::try_from(total / bandwidth).unwrap_or(u64::MAX);
        let until = start + Duration::from_nanos(nanos).min(FLIGHT_MAX);
        (self.until, self.rest) = (Some(until), total % bandwidth);
        Some(until)
    }
}

impl Net {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            conditions: Conditions::default(),
            hosts: BTreeMap::new(),
            ports: BTreeMap::new(),
            public: BTreeMap::new(),
            orphans: BTreeMap::new(),
            links: BTreeMap::new(),
            names: BTreeMap::new(),
            counters: Counters::default(),
            sequence: 0,
        }
    }

    fn link(&mut self, from: IpAddr, to: IpAddr) -> &mut Link {
        self.links.entry((from, to)).or_insert_with(|| Link::new(self.seed, from, to))
    }

    fn frozen(&self, ip: IpAddr) -> bool {
        self.hosts.get(&ip).is_some_and(|host| host.frozen)
    }

    fn bind(&mut self, ip: IpAddr, port: u16, now: Instant) -> io::Result<SocketAddr> {
        let port = if port == 0 {
            let next = self.hosts.entry(ip).or_default().next_ephemeral;
            let port = self.free_port(ip, next, EPHEMERAL).ok_or(io::ErrorKind::AddrInUse)?;
            self.hosts.entry(ip).or_default().next_ephemeral = following(port, &EPHEMERAL);
            port
        } else {
            port
        };
        let at = SocketAddr::new(ip, port);
        if self.taken(at) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.settle_orphans(now);
        let flights = self.orphans.remove(&at).unwrap_or_default();
        self.ports.insert(at, Port { flights, ..Port::default() });
        Ok(at)
    }

    fn unbind(&mut self, at: SocketAddr) -> Option<Port> {
        let mut port = self.ports.remove(&at)?;
        if let Some(public) = port.public {
            self.public.remove(&SocketAddr::new(at.ip(), public));
        }
        self.counters.unroutable += port.arrived.len() as u64;
        if !port.flights.is_empty() {
            self.orphans.insert(at, mem::take(&mut port.flights));
        }
        Some(port)
    }

    fn taken(&self, at: SocketAddr) -> bool {
        self.ports.contains_key(&at) || self.public.contains_key(&at)
    }

    /// The first free port from `next` on, going round.
    fn free_port(&self, ip: IpAddr, next: u16, range: RangeInclusive<u16>) -> Option<u16> {
        let (first, last) = range.into_inner();
        (next..=last).chain(first..next).find(|&port| !self.taken(SocketAddr::new(ip, port)))
    }

    fn rebind(&mut self, ip: IpAddr, now: Instant) {
        self.settle_all(now);
        let bound: Vec<SocketAddr> = self.ports.keys().filter(|at| at.ip() == ip).copied().collect();
        for at in bound {
            let next = self.hosts.entry(ip).or_default().next_public;
            let Some(public) = self.free_port(ip, next, PUBLIC) else {
                continue;
            };
            self.hosts.entry(ip).or_default().next_public = following(public, &PUBLIC);
            self.public.insert(SocketAddr::new(ip, public), at);
            let old = self.ports.get_mut(&at).and_then(|port| port.public.replace(public));
            if let Some(old) = old {
                self.public.remove(&SocketAddr::new(ip, old));
            }
        }
    }

    fn thaw(&mut self, ip: IpAddr, now: Instant) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let Some(host) = self.hosts.get_mut(&ip) else {
            return wakers;
        };
        host.frozen = false;
        host.held_bytes = 0;
        for Held { at, to, payload } in mem::take(&mut host.held) {
            wakers.extend(self.transmit(at, to, payload, now));
        }
        wakers.extend(self.ports.iter_mut().filter(|(at, _)| at.ip() == ip).filter_map(|(_, port)| port.reader.take()));
        wakers
    }

    /// Takes a datagram from a socket. Returns the reader to wake, if any.
    fn send(&mut self, at: SocketAddr, to: SocketAddr, payload: &[u8], now: Instant) -> Option<Waker> {
        self.counters.sent += 1;
        // A socket with IPv6 addresses writes IPv4 ones as mapped, and scopes mean nothing here.
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let host = self.hosts.entry(at.ip()).or_default();
        if !host.frozen {
            return self.transmit(at, to, Bytes::copy_from_slice(payload), now);
        }
        if host.held_bytes + payload.len() > SOCKET_BUFFER {
            self.counters.queue_dropped += 1;
        } else {
            host.held_bytes += payload.len();
            host.held.push_back(Held { at, to, payload: Bytes::copy_from_slice(payload) });
        }
        None
    }

    /// Puts a datagram on its link. Returns the reader to wake, if any.
    fn transmit(&mut self, at: SocketAddr, to: SocketAddr, payload: Bytes, now: Instant) -> Option<Waker> {
        let reached = if self.ports.contains_key(&to) { Some(to) } else { self.public.get(&to).copied() };
        let Some(reached) = reached.filter(|_| at.is_ipv4() == to.is_ipv4()) else {
            self.counters.unroutable += 1;
            return None;
        };
        let from = self.ports.get_mut(&at).map_or(at, |port| port.source(at, to));

        let Self { conditions, links, counters, seed, .. } = self;
        let link = links.entry((at.ip(), to.ip())).or_insert_with(|| Link::new(*seed, at.ip(), to.ip()));
        let conditions = link.conditions.as_ref().unwrap_or(conditions);
        // Every datagram draws the same numbers whatever the conditions are, so that a change of conditions does not shift
        // the luck of those after it.
        let [loss, duplicate, reorder, jitter, second_jitter] = [(); 5].map(|()| link.rng.f64());
        if link.cut {
            counters.cut += 1;
            return None;
        }
        if payload.len() > conditions.mtu {
            counters.too_large += 1;
            return None;
        }
        if loss < conditions.loss {
            counters.lost += 1;
            return None;
        }
        let Some(departed) = link.busy.departure(now, payload.len(), conditions) else {
            counters.queue_dropped += 1;
            return None;
        };
        let mut travel = conditions.latency;
        if reorder < conditions.reorder {
            counters.reordered += 1;
            travel = travel.saturating_add(conditions.reorder_by);
        }
        let arrival = |draw| {
            let jitter = conditions.jitter.min(FLIGHT_MAX).mul_f64(draw);
            departed + travel.saturating_add(jitter).min(FLIGHT_MAX)
        };
        let first = arrival(jitter);
        let second = (duplicate < conditions.duplicate).then(|| arrival(second_jitter));

        if second.is_some() {
            counters.duplicated += 1;
        }
        let port = self.ports.get_mut(&reached)?;
        for due in [Some(first), second].into_iter().flatten() {
            let flight = Flight { due, sequence: self.sequence, from, to, payload: payload.clone() };
            self.sequence += 1;
            port.flights.push(Reverse(flight));
        }
        let earliest = second.map_or(first, |second| first.min(second));
        let early = port.reader_due.is_none_or(|due| earliest < due);
        // Keeps the bound of the buffer also when nobody reads.
        self.settle(reached, now);
        if !early {
            return None;
        }
        self.ports.get_mut(&reached)?.reader.take()
    }

    /// Moves what has arrived by now into the buffer of a socket.
    fn settle(&mut self, at: SocketAddr, now: Instant) {
        let Self { ports, links, counters, .. } = self;
        let Some(port) = ports.get_mut(&at) else { return };
        while let Some(Reverse(flight)) = pop_due(&mut port.flights, now) {
            let to_bound_port = flight.to.port() == at.port();
            if !to_bound_port && port.public != Some(flight.to.port()) {
                counters.unroutable += 1;
            } else if links.get(&(flight.from.ip(), at.ip())).is_some_and(|link| link.cut) {
                counters.cut += 1;
            } else if port.arrived_bytes + flight.payload.len() > SOCKET_BUFFER {
                counters.queue_dropped += 1;
            } else {
                port.flows.entry(flight.from).or_insert(if to_bound_port { Opened::There } else { Opened::Here });
                port.arrived_bytes += flight.payload.len();
                port.arrived.push_back(flight);
            }
        }
    }

    fn settle_orphans(&mut self, now: Instant) {
        let Self { orphans, counters, .. } = self;
        orphans.retain(|_, flights| {
            while pop_due(flights, now).is_some() {
                counters.unroutable += 1;
            }
            !flights.is_empty()
        });
    }

    /// Settles every socket, so that a change made now does not reach back to what arrived before it.
    fn settle_all(&mut self, now: Instant) {
        let bound: Vec<SocketAddr> = self.ports.keys().copied().collect();
        for at in bound {
            self.settle(at, now);
        }
        self.settle_orphans(now);
    }

    /// Fills buffers with what has arrived. With nothing to give, leaves the reader to be woken and returns zero and when
    /// to come back.
    fn receive(
        &mut self,
        at: SocketAddr,
        now: Instant,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        reader: &mut Option<Waker>,
    ) -> (usize, Option<Instant>) {
        self.settle(at, now);
        let frozen = self.frozen(at.ip());
        let Some(port) = self.ports.get_mut(&at) else {
            return (0, None);
        };
        let mut count = 0;
        if !frozen {
            for (buf, meta) in bufs.iter_mut().zip(meta) {
                let Some(flight) = port.arrived.pop_front() else { break };
                port.arrived_bytes -= flight.payload.len();
                self.counters.delivered += 1;
                self.counters.bytes_delivered += flight.payload.len() as u64;
                // A buffer that is too short gets what fits, as from a real socket.
                let len = flight.payload.len().min(buf.len());
                buf[..len].copy_from_slice(&flight.payload[..len]);
                *meta = RecvMeta { addr: flight.from, len, stride: len, ecn: None, dst_ip: Some(at.ip()) };
                count += 1;
            }
        }
        if count > 0 {
            return (count, None);
        }
        mem::swap(&mut port.reader, reader);
        port.reader_due = port.flights.peek().map(|Reverse(flight)| flight.due);
        (0, port.reader_due)
    }
}

impl Port {
    /// The source address of what the socket sends to a peer.
    fn source(&mut self, at: SocketAddr, to: SocketAddr) -> SocketAddr {
        let opened = *self.flows.entry(to).or_insert(Opened::Here);
        match self.public {
            Some(public) if opened == Opened::Here => SocketAddr::new(at.ip(), public),
            _ => at,
        }
    }
}

fn pop_due(flights: &mut BinaryHeap<Reverse<Flight>>, now: Instant) -> Option<Reverse<Flight>> {
    if flights.peek()?.0.due <= now { flights.pop() } else { None }
}

/// The port after this one, going round.
fn following(port: u16, range: &RangeInclusive<u16>) -> u16 {
    if port >= *range.end() { *range.start() } else { port + 1 }
}

/// A bound socket, as quinn sees it.
struct Socket {
    fabric: Fabric,
    at: SocketAddr,
    /// Brings the reader back when the next datagram is due. Made at first need, inside the reader's runtime.
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.at).finish()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The reader's waker may be the last that holds another socket of this fabric, so it goes after the lock.
        let port = self.fabric.lock().unbind(self.at);
        drop(port);
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let now = Instant::now();
        let contents = transmit.contents;
        let segment = transmit.segment_size.filter(|&size| size > 0).unwrap_or(contents.len()).max(1);
        let mut wakers = Vec::new();
        {
            let mut net = self.fabric.lock();
            if contents.is_empty() {
                wakers.extend(net.send(self.at, transmit.destination, contents, now));
            }
            for payload in contents.chunks(segment) {
                wakers.extend(net.send(self.at, transmit.destination, payload, now));
            }
        }
        wake(wakers);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut reader = Some(cx.waker().clone());
            let (count, due) = self.fabric.lock().receive(self.at, Instant::now(), bufs, meta, &mut reader);
            drop(reader);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            let Some(due) = due else { return Poll::Pending };
            let sleep = timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if sleep.deadline() != due {
                sleep.as_mut().reset(due);
            }
            ready!(sleep.as_mut().poll(cx));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.at)
    }

    // Large batches save system calls, of which there are none here. One datagram per call also keeps quinn from padding
    // datagrams to equal size.
    fn max_transmit_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Sockets never block: what has no room is dropped.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig};
    use rustls::RootCertStore;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio::time::{sleep, timeout_at};

    use super::*;

    type Udp = Arc<dyn AsyncUdpSocket>;

    /// Milliseconds until it arrived, from where, and what.
    type Arrival = (u128, SocketAddr, Vec<u8>);

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn addr(last: u8, port: u16) -> SocketAddr {
        SocketAddr::new(ip(last), port)
    }

    /// Two hosts with a socket at port 1 each, and no latency.
    fn two(seed: u64) -> (Fabric, Udp, Udp) {
        let fabric = Fabric::new(seed);
        fabric.conditions(plain());
        let (a, b) = (fabric.host(ip(1)).bind(1).unwrap(), fabric.host(ip(2)).bind(1).unwrap());
        (fabric, a, b)
    }

    fn plain() -> Conditions {
        Conditions::default().latency(Duration::ZERO)
    }

    fn transmit(contents: &[u8], to: SocketAddr) -> Transmit<'_> {
        Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: None }
    }

    fn send(socket: &Udp, to: SocketAddr, contents: &[u8]) {
        socket.try_send(&transmit(contents, to)).unwrap();
    }

    async fn receive(socket: &Udp) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut space = vec![[0_u8; 2048]; 8];
        let mut meta = [RecvMeta::default(); 8];
        let count = {
            let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut meta)).await.unwrap()
        };
        let read = meta.iter().zip(&space).take(count);
        read.map(|(meta, buf)| (meta.addr, buf[..meta.len].to_vec())).collect()
    }

    /// Everything that a socket receives within a time, the end included.
    async fn arrivals(socket: &Udp, within: Duration) -> Vec<Arrival> {
        let start = Instant::now();
        let mut all = Vec::new();
        while let Ok(read) = timeout_at(start + within, receive(socket)).await {
            let after = start.elapsed().as_millis();
            all.extend(read.into_iter().map(|(from, payload)| (after, from, payload)));
        }
        all
    }

    /// What a socket has received by now.
    async fn texts(socket: &Udp) -> Vec<String> {
        let all = arrivals(socket, Duration::ZERO).await;
        all.into_iter().map(|(_, _, payload)| String::from_utf8(payload).unwrap()).collect()
    }

    fn accounted(counters: Counters) -> u64 {
        let Counters { delivered, lost, cut, too_large, queue_dropped, unroutable, .. } = counters;
        delivered + lost + cut + too_large + queue_dropped + unroutable
    }

    #[tokio::test(start_paused = true)]
    async fn latency_is_exact() {
        let (fabric, a, b) = two(1);
        for (latency, seen) in [(ms(0), 0), (ms(1), 1), (ms(40), 40), (Duration::from_micros(500), 1)] {
            fabric.conditions(plain().latency(latency));
            send(&a, addr(2, 1), b"x");
            assert_eq!(arrivals(&b, ms(100)).await, [(seen, addr(1, 1), b"x".to_vec())], "{latency:?}");
        }
        let counters = fabric.counters();
        assert_eq!(counters, Counters { sent: 4, delivered: 4, bytes_delivered: 4, ..Counters::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn arrival_decides_the_order_within_a_tick() {
        let (fabric, a, b) = two(1);
        for (micros, text) in [(900, "late"), (100, "early"), (900, "last")] {
            fabric.conditions(plain().latency(Duration::from_micros(micros)));
            send(&a, addr(2, 1), text.as_bytes());
        }
        assert!(texts(&b).await.is_empty());
        sleep(ms(1)).await;
        assert_eq!(texts(&b).await, ["early", "late", "last"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_datagram_wakes_a_waiting_reader() {
        let (fabric, a, b) = two(1);
        fabric.conditions(plain().latency(ms(1000)));
        send(&a, addr(2, 1), b"slow");
        let reader = tokio::spawn(async move { arrivals(&b, ms(2000)).await });
        sleep(ms(100)).await;
        fabric.conditions(plain().latency(ms(10)));
        send(&a, addr(2, 1), b"quick");
        let (from, all) = (addr(1, 1), reader.await.unwrap());
        assert_eq!(all, [(110, from, b"quick".to_vec()), (1000, from, b"slow".to_vec())]);
    }

    #[tokio::test(start_paused = true)]
    async fn absurd_times_do_not_overflow() {
        let (fabric, a, b) = two(1);
        let absurd = plain().latency(Duration::MAX).jitter(Duration::MAX).reorder(1.0).reorder_by(Duration::MAX);
        fabric.conditions(absurd.bandwidth(0).queue(usize::MAX));
        for _ in 0..3 {
            send(&a, addr(2, 1), &[0; 1000]);
        }
        assert!(arrivals(&b, ms(1000)).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_reader_misses_no_arrival() {
        for seed in 0..20 {
            let mut seen = Vec::new();
            for waits in [true, false] {
                let (fabric, a, b) = two(seed);
                fabric.conditions(plain().jitter(ms(50)).duplicate(0.5).loss(0.1));
                let start = Instant::now();
                let reader = tokio::spawn(async move {
                    let mut all = Vec::new();
                    while start.elapsed() < ms(200) {
                        let within = if waits { ms(200) } else { ms(0) };
                        let now = start.elapsed().as_millis();
                        all.extend(arrivals(&b, within).await.into_iter().map(|(after, _, p)| (now + after, p)));
                        sleep(ms(1)).await;
                    }
                    all
                });
                for n in 0..50 {
                    send(&a, addr(2, 1), &[n]);
                    sleep(ms(2)).await;
                }
                seen.push(reader.await.unwrap());
            }
            assert!(seen[0].len() > 50);
            assert_eq!(seen[0], seen[1]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_direction_has_its_own_luck() {
        let (fabric, a, b) = two(1);
        let c = fabric.host(ip(3)).bind(1).unwrap();
        fabric.conditions(plain().loss(0.5));
        for n in 0..64 {
            let text = n.to_string();
            send(&a, addr(2, 1), text.as_bytes());
            send(&b, addr(3, 1), text.as_bytes());
            send(&c, addr(1, 1), text.as_bytes());
        }
        let [a, b, c] = [texts(&a).await, texts(&b).await, texts(&c).await];
        assert!(a != b && b != c && c != a);
    }

    /// Runs the same datagrams from 1 to 2 over a bad link, with others between 2 and 3 if asked.
    async fn fate(seed: u64, others: bool) -> (Vec<Arrival>, Counters) {
        let (fabric, a, b) = two(seed);
        let c = fabric.host(ip(3)).bind(1).unwrap();
        let bad = plain().latency(ms(5)).jitter(ms(20)).loss(0.2).duplicate(0.2).reorder(0.2).reorder_by(ms(30));
        fabric.conditions_between(ip(1), ip(2), bad.clone());
        fabric.conditions_between(ip(3), ip(2), bad.clone());
        fabric.conditions_between(ip(2), ip(1), bad);
        for n in 0..200_u32 {
            send(&a, addr(2, 1), &n.to_be_bytes());
            if others {
                send(&b, addr(1, 1), b"back");
                send(&c, addr(2, 1), b"aside");
            }
            sleep(ms(1)).await;
        }
        let mut all = arrivals(&b, ms(100)).await;
        all.retain(|(_, from, _)| *from == addr(1, 1));
        (all, fabric.counters())
    }

    #[tokio::test(start_paused = true)]
    async fn the_seed_fixes_what_chance_does() {
        let (first, counters) = fate(7, false).await;
        assert_eq!((first.clone(), counters), fate(7, false).await);
        assert_ne!(first, fate(8, false).await.0);
        assert!(counters.lost > 0 && counters.duplicated > 0 && counters.reordered > 0);
        assert_eq!(first.len() as u64, counters.delivered);
        assert_eq!(counters.sent + counters.duplicated, accounted(counters));

        let busy: Vec<_> = fate(7, true).await.0.into_iter().map(|(_, _, payload)| payload).collect();
        let quiet: Vec<_> = first.into_iter().map(|(_, _, payload)| payload).collect();
        assert_eq!(busy, quiet, "other traffic does not change the fate of a direction");
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_do_not_shift_the_luck_of_later_datagrams() {
        let mut fates = Vec::new();
        for first in [plain(), plain().mtu(0), plain().loss(1.0).jitter(ms(9)).duplicate(1.0)] {
            let (fabric, a, b) = two(3);
            fabric.conditions(first);
            send(&a, addr(2, 1), b"first");
            sleep(ms(10)).await;
            texts(&b).await;
            fabric.conditions(plain().loss(0.5));
            for n in 0..64 {
                send(&a, addr(2, 1), n.to_string().as_bytes());
            }
            fates.push(texts(&b).await);
        }
        assert_eq!(fates[0], fates[1]);
        assert_eq!(fates[0], fates[2]);
        assert!(!fates[0].is_empty() && fates[0].len() < 64);
    }

    #[tokio::test(start_paused = true)]
    async fn loss() {
        for (probability, range) in [(0.0, 0..=0), (0.3, 250..=350), (1.0, 1000..=1000)] {
            let (fabric, a, b) = two(1);
            fabric.conditions(plain().loss(probability));
            for _ in 0..1000 {
                send(&a, addr(2, 1), b"x");
            }
            let delivered = texts(&b).await.len() as u64;
            let counters = fabric.counters();
            assert!(range.contains(&counters.lost), "{probability}: {counters:?}");
            assert_eq!((counters.delivered, counters.delivered + counters.lost), (delivered, 1000));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn duplicate() {
        for (probability, range) in [(0.0, 0..=0), (0.3, 250..=350), (1.0, 1000..=1000)] {
            let (fabric, a, b) = two(1);
            fabric.conditions(plain().duplicate(probability));
            for _ in 0..1000 {
                send(&a, addr(2, 1), b"x");
            }
            let delivered = texts(&b).await.len() as u64;
            let counters = fabric.counters();
            assert!(range.contains(&counters.duplicated), "{probability}: {counters:?}");
            assert_eq!((counters.delivered, 1000 + counters.duplicated), (delivered, delivered));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reorder() {
        let (fabric, a, b) = two(1);
        fabric.conditions(plain().latency(ms(5)).reorder(1.0).reorder_by(ms(20)));
        send(&a, addr(2, 1), b"held back");
        fabric.conditions(plain().latency(ms(5)));
        send(&a, addr(2, 1), b"overtakes");
        let from = addr(1, 1);
        let all = arrivals(&b, ms(50)).await;
        assert_eq!(all, [(5, from, b"overtakes".to_vec()), (25, from, b"held back".to_vec())]);
        assert_eq!(fabric.counters().reordered, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_adds_up_to_its_bound() {
        let (fabric, a, b) = two(1);
        fabric.conditions(plain().latency(ms(10)).jitter(ms(5)));
        for _ in 0..1000 {
            send(&a, addr(2, 1), b"x");
        }
        let all = arrivals(&b, ms(100)).await;
        assert_eq!(all.len(), 1000);
        assert_eq!(all.iter().map(|(after, ..)| *after).min(), Some(11));
        assert_eq!(all.iter().map(|(after, ..)| *after).max(), Some(15));
    }

    #[tokio::test(start_paused = true)]
    async fn mtu() {
        let (fabric, a, b) = two(1);
        send(&a, addr(2, 1), &[0; 1472]);
        send(&a, addr(2, 1), &[0; 1473]);
        assert_eq!(texts(&b).await.len(), 1);
        fabric.conditions(plain().mtu(1200));
        send(&a, addr(2, 1), &[0; 1200]);
        send(&a, addr(2, 1), &[0; 1201]);
        assert_eq!(texts(&b).await.len(), 1);
        let counters = fabric.counters();
        assert_eq!((counters.sent, counters.delivered, counters.too_large), (4, 2, 2));
        assert_eq!(counters.bytes_delivered, 1472 + 1200);
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_and_its_queue() {
        let (fabric, a, b) = two(1);
        fabric.conditions_between(ip(1), ip(2), plain().latency(ms(7)).bandwidth(1000).queue(300));
        for n in 0..4 {
            send(&a, addr(2, 1), &[n; 100]);
        }
        assert_eq!(fabric.counters().queue_dropped, 1, "300 bytes fit, 400 do not");
        send(&b, addr(1, 1), b"back");
        assert_eq!(texts(&a).await, ["back"], "the other direction has its own");

        sleep(ms(99)).await;
        send(&a, addr(2, 1), &[4; 100]);
        assert_eq!(fabric.counters().queue_dropped, 2, "201 bytes still wait");
        sleep(ms(1)).await;
        send(&a, addr(2, 1), &[5; 100]);
        assert_eq!(fabric.counters().queue_dropped, 2);

        let all: Vec<_> = arrivals(&b, ms(1000)).await.into_iter().map(|(after, _, p)| (after, p[0])).collect();
        assert_eq!(all, [(7, 0), (107, 1), (207, 2), (307, 5)]);

        send(&a, addr(2, 1), &[6; 300]);
        send(&a, addr(2, 1), &[7; 1]);
        assert_eq!(arrivals(&b, ms(1000)).await.len(), 1, "an idle link starts afresh");
        assert_eq!(fabric.counters().queue_dropped, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn odd_bandwidths_fill_the_queue_exactly() {
        for bandwidth in [1, 3, 7, 999_983, 123_456_789, 10_000_000_000] {
            let (fabric, a, b) = two(1);
            fabric.conditions(plain().bandwidth(bandwidth).queue(1000));
            for _ in 0..1001 {
                send(&a, addr(2, 1), b"x");
            }
            assert_eq!(fabric.counters().queue_dropped, 1, "{bandwidth}");
            sleep(ms(1_000_000)).await;
            assert_eq!(texts(&b).await.len(), 1000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn cut_and_heal() {
        let (fabric, a, b) = two(1);
        fabric.cut(ip(1), ip(2));
        send(&a, addr(2, 1), b"lost");
        send(&b, addr(1, 1), b"lost");
        fabric.heal(ip(2), ip(1));
        assert!(texts(&a).await.is_empty() && texts(&b).await.is_empty());
        assert_eq!(fabric.counters().cut, 2);

        send(&a, addr(2, 1), b"1");
        send(&b, addr(1, 1), b"2");
        assert_eq!((texts(&a).await, texts(&b).await), (vec!["2".into()], vec!["1".into()]));
        assert_eq!(fabric.counters().cut, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn cut_one_way() {
        let (fabric, a, b) = two(1);
        fabric.cut_one_way(ip(1), ip(2));
        send(&a, addr(2, 1), b"lost");
        send(&b, addr(1, 1), b"heard");
        assert_eq!((texts(&a).await, texts(&b).await.len()), (vec!["heard".into()], 0));
        assert_eq!(fabric.counters().cut, 1);
        fabric.heal_all();
        send(&a, addr(2, 1), b"again");
        assert_eq!(texts(&b).await, ["again"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_meets_what_is_in_flight_and_spares_what_arrived() {
        let heals: [fn(&Fabric); 2] = [|fabric| fabric.heal(ip(1), ip(2)), Fabric::heal_all];
        for heal in heals {
            let (fabric, a, b) = two(1);
            fabric.conditions(plain().latency(ms(10)));
            send(&a, addr(2, 1), b"arrived");
            sleep(ms(5)).await;
            send(&a, addr(2, 1), b"in flight");
            sleep(ms(5)).await;
            fabric.cut(ip(1), ip(2));
            sleep(ms(5)).await;
            heal(&fabric);
            send(&a, addr(2, 1), b"healed in time");
            fabric.cut(ip(1), ip(2));
            sleep(ms(5)).await;
            heal(&fabric);
            sleep(ms(5)).await;
            assert_eq!(texts(&b).await, ["arrived", "healed in time"]);
            assert_eq!(fabric.counters().cut, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn partition() {
        let fabric = Fabric::new(1);
        fabric.conditions(plain());
        let sockets: Vec<_> = (1..=4).map(|n| fabric.host(ip(n)).bind(1).unwrap()).collect();
        fabric.partition(&[ip(1), ip(2)], &[ip(3), ip(4)]);
        for healed in [false, true] {
            for socket in &sockets {
                (1..=4).for_each(|n| send(socket, addr(n, 1), b"x"));
            }
            for socket in &sockets {
                assert_eq!(texts(socket).await.len(), if healed { 4 } else { 2 });
            }
            assert_eq!(fabric.counters().cut, 8);
            fabric.heal_all();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn freeze_holds_and_thaw_passes_in_order() {
        let (fabric, a, b) = two(1);
        fabric.conditions(plain().latency(ms(5)));
        let reader = {
            let a = a.clone();
            tokio::spawn(async move { arrivals(&a, ms(1000)).await })
        };
        sleep(ms(1)).await;
        fabric.freeze(ip(1));
        for n in 0..3 {
            send(&a, addr(2, 1), format!("out {n}").as_bytes());
            send(&b, addr(1, 1), format!("in {n}").as_bytes());
        }
        sleep(ms(99)).await;
        assert!(texts(&b).await.is_empty() && !reader.is_finished());
        assert_eq!((fabric.counters().sent, fabric.counters().delivered), (6, 0));

        fabric.thaw(ip(1));
        sleep(ms(5)).await;
        assert_eq!(texts(&b).await, ["out 0", "out 1", "out 2"]);
        let from = addr(2, 1);
        let expected = (0..3).map(|n| (100, from, format!("in {n}").into_bytes()));
        assert_eq!(reader.await.unwrap(), expected.collect::<Vec<_>>());

        send(&a, addr(2, 1), b"flows");
        sleep(ms(5)).await;
        assert_eq!(texts(&b).await, ["flows"]);
    }

    #[tokio::test(start_paused = true)]
    async fn buffers_are_bounded() {
        let (fabric, a, b) = two(1);
        let exactly = SOCKET_BUFFER / 1024;
        fabric.freeze(ip(1));
        for _ in 0..=exactly {
            send(&a, addr(2, 1), &[0; 1024]);
        }
        assert_eq!(fabric.counters().queue_dropped, 1, "what a frozen host sends");
        for _ in 0..=exactly {
            send(&b, addr(1, 1), &[0; 1024]);
        }
        assert_eq!(fabric.counters().queue_dropped, 2, "what arrives for a frozen host");
        fabric.thaw(ip(1));
        assert_eq!(texts(&a).await.len(), exactly);
        send(&a, addr(2, 1), &[0; 1024]);
        let flights = fabric.lock().ports[&addr(2, 1)].flights.len();
        assert_eq!((flights, fabric.counters().queue_dropped), (0, 3), "what nobody reads");
        assert_eq!(texts(&b).await.len(), exactly);
        fabric.freeze(ip(1));
        send(&a, addr(2, 1), &[0; 1024]);
        fabric.thaw(ip(1));
        assert_eq!(texts(&b).await.len(), 1);
        let counters = fabric.counters();
        assert_eq!(counters.sent, accounted(counters));
    }

    #[tokio::test(start_paused = true)]
    async fn rebind_changes_the_source_port() {
        let (fabric, a, b) = two(1);
        let source = async |payload: &[u8]| {
            send(&a, addr(2, 1), payload);
            arrivals(&b, Duration::ZERO).await[0].1
        };
        assert_eq!(source(b"own").await, addr(1, 1));
        fabric.rebind(ip(1));
        let first = source(b"first").await;
        assert!(first != addr(1, 1) && first.ip() == ip(1));
        send(&b, first, b"to the newest");
        send(&b, addr(1, 1), b"to its own");
        assert_eq!(texts(&a).await, ["to the newest", "to its own"]);
        assert_eq!(source(b"still").await, first);

        fabric.conditions(plain().latency(ms(10)));
        send(&b, first, b"in flight to the old one");
        fabric.conditions(plain().latency(ms(5)));
        send(&b, first, b"arrived");
        sleep(ms(5)).await;
        fabric.rebind(ip(1));
        assert_eq!(fabric.lock().public.len(), 1);
        fabric.conditions(plain());
        let second = source(b"second").await;
        assert!(second != addr(1, 1) && second != first);
        send(&b, first, b"to the old one");
        assert_eq!(fabric.counters().unroutable, 1);
        send(&b, second, b"to the newest");
        sleep(ms(5)).await;
        assert_eq!(texts(&a).await, ["arrived", "to the newest"]);
        assert_eq!(fabric.counters().unroutable, 2);

        drop(a);
        send(&b, second, b"nobody");
        assert_eq!(fabric.counters().unroutable, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sent_first_is_answered_from_the_bound_port() {
        let (fabric, a, b) = two(1);
        send(&b, addr(1, 1), b"hello");
        assert_eq!(texts(&a).await, ["hello"]);
        fabric.rebind(ip(1));
        send(&a, addr(2, 1), b"welcome");
        assert_eq!(receive(&b).await[0].0, addr(1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn ports() {
        let fabric = Fabric::new(1);
        let host = fabric.host(ip(1));
        let (first, second) = (host.bind(0).unwrap(), host.bind(0).unwrap());
        assert_eq!(first.local_addr().unwrap(), addr(1, 49_152));
        assert_eq!(second.local_addr().unwrap(), addr(1, 49_153));
        let socket = host.bind(4370).unwrap();
        assert_eq!(host.bind(4370).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(fabric.host(ip(2)).bind(4370).is_ok());
        drop(socket);
        assert!(host.bind(4370).is_ok());
        drop(first);
        assert_eq!(host.bind(0).unwrap().local_addr().unwrap(), addr(1, 49_154), "no port comes back at once");
        fabric.rebind(ip(1));
        assert_eq!(host.bind(*PUBLIC.start()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test(start_paused = true)]
    async fn ephemeral_ports_go_round_and_run_out() {
        let fabric = Fabric::new(1);
        let host = fabric.host(ip(1));
        let mut all: Vec<_> = EPHEMERAL.map(|_| host.bind(0).unwrap()).collect();
        assert_eq!(host.bind(0).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let freed = all.swap_remove(100).local_addr().unwrap();
        all.push(host.bind(0).unwrap());
        assert_eq!(all.last().unwrap().local_addr().unwrap(), freed);
        let freed = all.swap_remove(1).local_addr().unwrap();
        assert_eq!(host.bind(0).unwrap().local_addr().unwrap(), freed);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_reaches_the_socket_bound_on_arrival() {
        let (fabric, a, b) = two(1);
        fabric.conditions(plain().latency(ms(10)));
        send(&a, addr(2, 1), b"reaches the next");
        drop(b);
        let b = fabric.host(ip(2)).bind(1).unwrap();
        assert_eq!(arrivals(&b, ms(10)).await.len(), 1);

        send(&a, addr(2, 1), b"reaches none");
        drop(b);
        sleep(ms(10)).await;
        let b = fabric.host(ip(2)).bind(1).unwrap();
        assert!(arrivals(&b, ms(10)).await.is_empty());
        assert_eq!(fabric.counters().unroutable, 1);

        send(&a, addr(2, 1), b"never read");
        sleep(ms(10)).await;
        fabric.counters();
        drop(b);
        assert_eq!(fabric.counters().unroutable, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_there() {
        let (fabric, a, _b) = two(1);
        send(&a, addr(2, 2), b"no such port");
        send(&a, addr(9, 1), b"no such host");
        send(&a, "[fd00::1]:1".parse().unwrap(), b"no such family");
        assert_eq!(fabric.counters(), Counters { sent: 3, unroutable: 3, ..Counters::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn ipv6() {
        let fabric = Fabric::new(1);
        let v6 = |last| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
        let (a, b) = (fabric.host(v6(1)).bind(1).unwrap(), fabric.host(v6(2)).bind(1).unwrap());
        let v4 = fabric.host(ip(1)).bind(1).unwrap();
        send(&a, "[fd00::2%7]:1".parse().unwrap(), b"x");
        assert_eq!(receive(&b).await, [(SocketAddr::new(v6(1), 1), b"x".to_vec())]);
        send(&a, SocketAddr::new(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().into(), 1), b"x");
        assert_eq!(fabric.counters().unroutable, 1, "an IPv6 host has no IPv4 address to send from");
        assert_eq!(fabric.host(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped()).ip(), ip(1));
        drop(v4);
    }

    #[tokio::test(start_paused = true)]
    async fn segments_and_batches() {
        let (fabric, a, b) = two(1);
        let mut batch = transmit(b"aaabbbcc", addr(2, 1));
        batch.segment_size = Some(3);
        a.try_send(&batch).unwrap();
        send(&a, addr(2, 1), b"");
        assert_eq!(fabric.counters().sent, 4);

        let mut space = [[0_u8; 2]; 3];
        let mut meta = [RecvMeta::default(); 5];
        let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(3)) = b.poll_recv(&mut cx, &mut bufs, &mut meta) else { panic!() };
        for meta in &meta[..3] {
            assert_eq!((meta.len, meta.stride, meta.ecn), (2, 2, None), "cut to the buffer");
            assert_eq!((meta.addr, meta.dst_ip), (addr(1, 1), Some(ip(2))));
        }
        let Poll::Ready(Ok(1)) = b.poll_recv(&mut cx, &mut bufs, &mut meta) else { panic!() };
        assert_eq!(meta[0].len, 0);
        assert!(b.poll_recv(&mut cx, &mut bufs, &mut meta).is_pending());
        assert_eq!(space, [*b"aa", *b"bb", *b"cc"]);
        assert!(!b.may_fragment());
    }

    #[tokio::test(start_paused = true)]
    async fn names() {
        let fabric = Fabric::new(1);
        let host = fabric.host(ip(1));
        assert!(host.resolve("db.local").is_empty());
        fabric.name("DB.local", &[ip(3), ip(2)]);
        assert_eq!(host.resolve("db.LOCAL."), [ip(3), ip(2)]);
        fabric.name("db.local.", &[ip(4)]);
        assert_eq!(host.resolve("db.local"), [ip(4)]);
        fabric.name("db.local", &[]);
        assert!(host.resolve("db.local").is_empty());
    }

    /// An endpoint that listens, and one that dials it without keep-alive or idle timeout.
    fn quic(server: &Host, client: &Host) -> (Endpoint, Endpoint) {
        let made = rcgen::generate_simple_self_signed(vec!["node".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(None);
        let transport = Arc::new(transport);

        let mut listens = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
        listens.transport_config(transport.clone());
        let mut dials = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        dials.transport_config(transport);

        let endpoint = |host: &Host, port, config| {
            let socket = host.bind(port).unwrap();
            let runtime = Arc::new(TokioRuntime);
            Endpoint::new_with_abstract_socket(EndpointConfig::default(), config, socket, runtime).unwrap()
        };
        let server = endpoint(server, 4370, Some(listens));
        let mut client = endpoint(client, 0, None);
        client.set_default_client_config(dials);
        (server, client)
    }

    async fn serve_echo(endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let connection = incoming.await.unwrap();
                while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                    let data = recv.read_to_end(1 << 24).await.unwrap();
                    send.write_all(&data).await.unwrap();
                    send.finish().unwrap();
                }
            });
        }
    }

    async fn echo(connection: &Connection, data: &[u8]) {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(data).await.unwrap();
        send.finish().unwrap();
        assert_eq!(recv.read_to_end(data.len()).await.unwrap(), data);
    }

    /// A dialled connection to an endpoint that echoes, from host 2 to host 1.
    async fn connected(fabric: &Fabric) -> (Endpoint, Endpoint, Connection) {
        let (server, client) = quic(&fabric.host(ip(1)), &fabric.host(ip(2)));
        tokio::spawn(serve_echo(server.clone()));
        let connection = client.connect(addr(1, 4370), "node").unwrap().await.unwrap();
        (server, client, connection)
    }

    #[tokio::test(start_paused = true)]
    async fn quic_talks_in_round_trips() {
        let fabric = Fabric::new(1);
        fabric.conditions(Conditions::default().latency(ms(50)));
        let start = Instant::now();
        let (_server, _client, connection) = connected(&fabric).await;
        assert_eq!(start.elapsed(), ms(100), "one round trip");
        echo(&connection, b"hello").await;
        assert_eq!(start.elapsed(), ms(200));
        assert_eq!(connection.rtt(), ms(100));
    }

    #[tokio::test(start_paused = true)]
    async fn quic_without_latency() {
        let fabric = Fabric::new(1);
        fabric.conditions(plain());
        let (_server, _client, connection) = connected(&fabric).await;
        echo(&connection, &[7; 100_000]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn quic_over_ipv6() {
        let fabric = Fabric::new(1);
        let hosts = [1, 2].map(|n| fabric.host(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)));
        let (server, client) = quic(&hosts[0], &hosts[1]);
        tokio::spawn(serve_echo(server));
        let to = SocketAddr::new(hosts[0].ip(), 4370);
        let connection = client.connect(to, "node").unwrap().await.unwrap();
        echo(&connection, b"hello").await;
    }

    #[tokio::test(start_paused = true)]
    async fn quic_finds_the_mtu_of_the_path() {
        for (mtu, found) in [(1472, 1452..=1452), (1300, 1280..=1300)] {
            let fabric = Fabric::new(1);
            fabric.conditions(Conditions::default().mtu(mtu));
            let (_server, _client, connection) = connected(&fabric).await;
            sleep(Duration::from_secs(10)).await;
            echo(&connection, &[7; 1000]).await;
            let current = connection.stats().path.current_mtu;
            assert!(found.contains(&current), "{current}");
            assert_eq!(fabric.counters().too_large > 0, mtu == 1300);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quic_survives_a_bad_network() {
        let fabric = Fabric::new(1);
        let bad = Conditions::default().latency(ms(5)).jitter(ms(3)).loss(0.05).duplicate(0.05).reorder(0.05);
        fabric.conditions(bad.bandwidth(1_000_000).queue(5_000));
        let (_server, _client, connection) = connected(&fabric).await;
        let data: Vec<u8> = (0..500_000_u32).map(|n| n as u8).collect();
        echo(&connection, &data).await;
        let counters = fabric.counters();
        assert!(counters.lost > 0 && counters.duplicated > 0 && counters.reordered > 0);
        assert!(counters.queue_dropped > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn quic_survives_cut_and_freeze() {
        let fabric = Fabric::new(1);
        let (_server, _client, connection) = connected(&fabric).await;
        let begin = Instant::now();
        fabric.cut(ip(1), ip(2));
        let talk = {
            let connection = connection.clone();
            tokio::spawn(async move { echo(&connection, b"later").await })
        };
        sleep(ms(5000)).await;
        assert!(!talk.is_finished() && fabric.counters().cut > 0);
        fabric.heal_all();
        talk.await.unwrap();
        assert!(begin.elapsed() > ms(5000));

        fabric.freeze(ip(1));
        let talk = tokio::spawn(async move { echo(&connection, b"later").await });
        sleep(ms(5000)).await;
        assert!(!talk.is_finished());
        fabric.thaw(ip(1));
        sleep(ms(10)).await;
        assert!(talk.is_finished(), "what was held passes at once");
        talk.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn quic_survives_a_rebind_of_the_dialling_host() {
        let fabric = Fabric::new(1);
        let (server, client) = quic(&fabric.host(ip(1)), &fabric.host(ip(2)));
        let connecting = client.connect(addr(1, 4370), "node").unwrap();
        let accepted = async { server.accept().await.unwrap().await.unwrap() };
        let (dialled, accepted) = tokio::join!(async { connecting.await.unwrap() }, accepted);
        let before = accepted.remote_address();
        for _ in 0..2 {
            let was = accepted.remote_address();
            fabric.rebind(ip(2));
            let talk = async {
                let (_send, mut recv) = accepted.accept_bi().await.unwrap();
                recv.read_to_end(100).await.unwrap()
            };
            let say = async {
                let (mut send, _recv) = dialled.open_bi().await.unwrap();
                send.write_all(b"still here").await.unwrap();
                send.finish().unwrap();
                send.stopped().await.ok();
            };
            assert_eq!(tokio::join!(talk, say).0, b"still here");
            assert_ne!(accepted.remote_address(), was);
        }
        assert_eq!(before.ip(), accepted.remote_address().ip());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rebound_host_keeps_accepting() {
        let fabric = Fabric::new(1);
        let (_server, client, before) = connected(&fabric).await;
        fabric.rebind(ip(1));
        echo(&before, b"what was dialled to it goes on").await;
        let after = client.connect(addr(1, 4370), "node").unwrap().await.unwrap();
        echo(&after, b"what is dialled to it comes about").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_restarts_at_its_address() {
        let fabric = Fabric::new(1);
        for _ in 0..3 {
            let (server, client, connection) = connected(&fabric).await;
            echo(&connection, b"hello").await;
            drop(connection);
            for endpoint in [server, client] {
                endpoint.close(0_u32.into(), b"");
                endpoint.wait_idle().await;
            }
            sleep(ms(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_hour_costs_nothing_and_nothing_is_left_over() {
        let fabric = Fabric::new(1);
        let (server, client, connection) = connected(&fabric).await;
        sleep(Duration::from_secs(60)).await;
        let (sent, real) = (fabric.counters().sent, std::time::Instant::now());
        sleep(Duration::from_secs(3600)).await;
        assert!(real.elapsed() < Duration::from_secs(1));
        assert_eq!(fabric.counters().sent, sent);
        echo(&connection, b"awake").await;

        drop((server, client, connection));
        sleep(Duration::from_secs(60)).await;
        let counters = fabric.counters();
        assert_eq!(counters.sent, accounted(counters));
    }

    #[test]
    fn nothing_holds_the_network_but_its_users() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let fabric = Fabric::new(1);
        let net = Arc::downgrade(&fabric.net);
        runtime.block_on(async move {
            let (_server, _client, connection) = connected(&fabric).await;
            echo(&connection, b"hello").await;
            assert_eq!(fabric.lock().ports.len(), 2);
        });
        drop(runtime);
        assert!(net.upgrade().is_none());
    }
}
