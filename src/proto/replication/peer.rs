//! One session: how far each log was sent to the peer, what is on its way, and what it wants.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::log::{Cursor, Log};
use super::replica::Owners;
use super::sync::{Offer, Syncing};
use super::{Counters, Limits, Output};
use crate::id::NodeId;
use crate::wire::services::Text;
use crate::wire::services::replication::Replication as Frame;

/// Entries of one frame, in bytes: what fits a frame with all that is around them.
const CHUNK: usize = 48 * 1024;

/// What a frame takes beside its entries and names, about.
const FRAME_COST: usize = 64;

/// Logs that a peer may want at once.
pub(super) const WANTS_MAX: usize = 256;

/// Questions that a peer may ask in an interval, in each scope.
const QUESTIONS_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) is_linked: bool,
    /// It broke a rule: nothing is read from it or sent to it any more.
    pub(super) is_broken: bool,
    /// This node's own log in each scope that both take part in, once the peer has said in which it does.
    pub(super) own: Option<BTreeMap<Text, Sent>>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// Logs of others that it wants.
    wants: VecDeque<Want>,
    pub(super) questions: usize,
    /// How often it was asked what it has in a scope, and has not answered.
    pub(super) asked: BTreeMap<Text, usize>,
    /// Logs of others that it has more of.
    pub(super) offers: BTreeMap<(Text, NodeId), Offer>,
    pub(super) syncing: Option<Syncing>,
}

/// How much of a log of this node the peer has.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) cursor: Cursor,
    pub(super) acked: u64,
    /// When it was last sent anew because the peer had something else.
    pub(super) repaired: Option<Instant>,
}

/// Entries that the peer has not answered.
#[derive(Debug)]
struct InFlight {
    scope: Text,
    owner: Option<NodeId>,
    bytes: usize,
}

#[derive(Debug)]
struct Want {
    scope: Text,
    owner: NodeId,
    cursor: Cursor,
}

/// The logs to read from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) own: &'a BTreeMap<Text, Log>,
    pub(super) owners: &'a Owners,
}

impl Peer {
    /// Whether both take part in that scope.
    pub(super) fn shares(&self, scope: &str) -> bool {
        self.own.as_ref().is_some_and(|own| own.contains_key(scope))
    }

    /// Whether it has said what it has, and a link.
    pub(super) fn is_direct(&self) -> bool {
        self.is_linked && !self.is_broken && self.own.is_some()
    }

    /// Counts a question, if there is room for it.
    pub(super) fn may_ask(&mut self) -> bool {
        let scopes = self.own.as_ref().map_or(0, BTreeMap::len);
        self.questions += 1;
        self.questions <= QUESTIONS_MAX * scopes
    }

    /// The peer wants the log of another node, if there is room for one more.
    pub(super) fn want(&mut self, scope: Text, owner: NodeId, cursor: Cursor) -> bool {
        if let Some(want) = self.wants.iter_mut().find(|want| want.scope == scope && want.owner == owner) {
            want.cursor = cursor;
            return true;
        }
        let is_room = self.wants.len() < WANTS_MAX;
        if is_room {
            self.wants.push_back(Want { scope, owner, cursor });
        }
        is_room
    }

    /// The peer has answered the first entries that are on their way, if it is these.
    pub(super) fn answered(&mut self, scope: &Text, owner: Option<&NodeId>) {
        let first = self.in_flight.front().filter(|first| first.scope == *scope && first.owner.as_ref() == owner);
        if let Some(bytes) = first.map(|first| first.bytes) {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
    }

    #[cfg(test)]
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// Sends what there is room for.
    pub(super) fn push(
        &mut self,
        to: &NodeId,
        from: Sources<'_>,
        limits: &Limits,
        counters: &mut Counters,
        outputs: &mut VecDeque<Output>,
    ) {
        if !self.is_direct() {
            return;
        }
        let Self { own, in_flight, in_flight_bytes, wants, .. } = self;
        let mut send = |scope: &Text, owner: Option<&NodeId>, log: &Log, cursor: &mut Cursor| {
            let cost = FRAME_COST + scope.len() + owner.map_or(0, |owner| owner.name().as_str().len());
            let room = limits.window.saturating_sub(*in_flight_bytes + cost).min(CHUNK);
            let is_alone = in_flight.is_empty();
            if room == 0 && !is_alone {
                return false;
            }
            let Some(chunk) = log.next(cursor, room, is_alone) else { return false };
            let bytes = cost + chunk.bytes;
            *in_flight_bytes += bytes;
            in_flight.push_back(InFlight { scope: scope.clone(), owner: owner.cloned(), bytes });
            counters.entries_sent += chunk.entries.len() as u64;
            counters.snapshots_sent += u64::from(chunk.is_reset);
            let frame = Frame::Entries {
                scope: scope.clone(),
                owner: owner.cloned(),
                since: chunk.since,
                upto: chunk.upto,
                is_reset: chunk.is_reset,
                digest: chunk.digest,
                entries: chunk.entries,
            };
            outputs.push_back(Output::Send { to: to.clone(), frame });
            true
        };
        for (scope, sent) in own.iter_mut().flatten() {
            let log = &from.own[scope];
            while send(scope, None, log, &mut sent.cursor) {}
        }
        while let Some(want) = wants.front_mut() {
            // What is not whole here, or not live, is not handed on; the peer asks elsewhere.
            if let Some(log) = from.owners.served(&want.owner, &want.scope) {
                while send(&want.scope, Some(&want.owner), log, &mut want.cursor) {}
                if !want.cursor.is_done() {
                    break;
                }
            }
            wants.pop_front();
        }
    }
}
