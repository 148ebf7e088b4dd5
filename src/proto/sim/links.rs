//! What QUIC makes of the network: links between two nodes, each end with its own idea of whether there is one.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::clock::Time;
use super::machine::Id;

/// How links behave.
#[derive(Clone, Copy, Debug)]
pub struct LinkTimes {
    /// A dial that is not answered fails after this.
    pub connect_timeout: Duration,
    /// What a handshake costs each side beside the way of its flights.
    pub handshake_work: Duration,
    /// A link that nobody used for so long is closed by agreement.
    pub idle: Duration,
    /// A link without any acknowledgement of what is outstanding is lost after this.
    pub lost_after: Duration,
}

impl Default for LinkTimes {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            handshake_work: Duration::from_micros(500),
            idle: Duration::from_secs(60),
            lost_after: Duration::from_secs(10),
        }
    }
}

/// When the first flight of a handshake is sent again, counted from the dial: QUIC's first probe time-out, doubled.
pub(super) const REDIALS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// A link; the generation tells it from earlier ones in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkId {
    place: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndState {
    /// The last flight of the handshake is on its way to this end.
    Waiting,
    Open,
    Closed,
}

/// What a stream carries.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// The last flight of the handshake.
    Ready,
    Packet(Bytes),
    /// Something of the application.
    Application,
}

/// One end: its state, what it has sent, and what waits at it.
#[derive(Debug)]
pub(super) struct End {
    pub(super) id: Id,
    pub(super) state: EndState,
    /// When the oldest packet was sent that is not acknowledged, and the newest of all.
    pub(super) oldest: Option<Time>,
    pub(super) newest: Time,
    /// Whether this end has planned to look for an acknowledgement, and how often it did.
    pub(super) is_watching: bool,
    pub(super) looks: u32,
    /// What the stream holds back behind a packet that was lost.
    pub(super) stream: VecDeque<Payload>,
    pub(super) is_resending: bool,
    pub(super) resends: u32,
    /// Streams keep their order: nothing arrives before this.
    pub(super) stream_until: Time,
    pub(super) backlog: Backlog,
}

impl End {
    fn new(id: Id, state: EndState) -> Self {
        Self {
            id,
            state,
            oldest: None,
            newest: 0,
            is_watching: false,
            looks: 0,
            stream: VecDeque::new(),
            is_resending: false,
            resends: 0,
            stream_until: 0,
            backlog: Backlog::default(),
        }
    }

    pub(super) fn sent(&mut self, now: Time) {
        self.newest = now;
        self.oldest.get_or_insert(now);
    }

    /// What was sent then has been acknowledged, and what was sent earlier is acknowledged or known to be lost.
    pub(super) fn acknowledged(&mut self, sent: Time) {
        self.looks = 0;
        self.oldest = self.oldest.filter(|_| sent < self.newest).map(|oldest| oldest.max(sent));
    }
}

/// Datagrams that wait at a node that does not take them: when there are too many, the oldest give way.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    sizes: VecDeque<u32>,
    bytes: usize,
    head: u32,
}

/// The most bytes of datagrams that wait for one link.
const BACKLOG_MAX: usize = 64 << 10;

impl Backlog {
    /// Returns the ticket of the datagram, and how many gave way to it.
    pub(super) fn push(&mut self, bytes: usize) -> (u32, u64) {
        let ticket = self.head.wrapping_add(self.sizes.len() as u32);
        self.sizes.push_back(bytes as u32);
        self.bytes += bytes;
        let mut gave_way = 0;
        while self.bytes > BACKLOG_MAX {
            self.pop();
            gave_way += 1;
        }
        (ticket, gave_way)
    }

    /// Whether the datagram is still there; it is taken out.
    pub(super) fn take(&mut self, ticket: u32) -> bool {
        let is_there = ticket == self.head && !self.sizes.is_empty();
        if is_there {
            self.pop();
        }
        is_there
    }

    fn pop(&mut self) {
        self.bytes -= self.sizes.pop_front().unwrap_or_default() as usize;
        self.head = self.head.wrapping_add(1);
    }
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) ends: [End; 2],
    pub(super) rtt: Time,
    pub(super) used: Time,
}

/// All links.
#[derive(Debug, Default)]
pub(super) struct Links {
    places: Vec<(u32, Option<Link>)>,
    free: Vec<u32>,
}

impl Links {
    /// A link that is up at its first end, and will be at the second.
    pub(super) fn add(&mut self, dialler: Id, responder: Id, rtt: Time, now: Time) -> LinkId {
        let ends = [End::new(dialler, EndState::Open), End::new(responder, EndState::Waiting)];
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 links")
        });
        let (generation, link) = &mut self.places[place as usize];
        *link = Some(Link { ends, rtt, used: now });
        LinkId { place, generation: *generation }
    }

    pub(super) fn get(&mut self, id: LinkId) -> Option<&mut Link> {
        let (generation, link) = &mut self.places[id.place as usize];
        link.as_mut().filter(|_| *generation == id.generation)
    }

    /// Closes an end; the link is gone when both are closed. Returns what the end was.
    pub(super) fn close(&mut self, id: LinkId, end: usize) -> EndState {
        let Some(link) = self.get(id) else { return EndState::Closed };
        let before = link.ends[end].state;
        link.ends[end].state = EndState::Closed;
        if link.ends.iter().all(|end| end.state == EndState::Closed) {
            let (generation, link) = &mut self.places[id.place as usize];
            *link = None;
            *generation += 1;
            self.free.push(id.place);
        }
        before
    }
}
