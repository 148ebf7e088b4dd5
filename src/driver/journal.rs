//! What a person may ask about: each such thing is counted and told to the log once, here.
//!
//! The targets, messages and fields are documented in `lib.rs`. Nothing here names a body, metadata or a secret.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::lock;
use super::packets::PacketCounters;
use crate::error::DownReason;
use crate::id::{NodeId, Pid};
use crate::identity::AuthError;
use crate::proto::links::LinkId;
use crate::proto::membership::MemberEvent;
use crate::wire::{Code, Status, Unreadable};

/// The targets of the log that keep their names.
pub(crate) mod target {
    pub(crate) const NODE: &str = "distribute::node";
    pub(crate) const SESSION: &str = "distribute::session";
    pub(crate) const LINK: &str = "distribute::link";
    pub(crate) const PROTOCOL: &str = "distribute::protocol";
    pub(crate) const CONFLICT: &str = "distribute::conflict";
    pub(crate) const MEMBER: &str = "distribute::member";
    pub(crate) const NAME: &str = "distribute::name";
    pub(crate) const ELECTION: &str = "distribute::election";
    pub(crate) const ACTOR: &str = "distribute::actor";
    pub(crate) const MESSAGE: &str = "distribute::message";
    pub(crate) const CALL: &str = "distribute::call";
    pub(crate) const TRUST: &str = "distribute::trust";
}

/// Of what others may cause as often as they like, one warning comes in so long; the rest is told at the level of debug.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// How often something happened that a person may ask about, since the node's start. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Incidents {
    /// Sessions that began.
    pub sessions_begun: u64,
    /// Sessions that ended, for whatever reason.
    pub sessions_ended: u64,
    /// Of these: how many ended otherwise than by a good-bye, a disconnect or this node's own end.
    pub sessions_lost: u64,
    /// Sessions that this node ended by force: a user asked for it, its place was needed, or the peer was too slow, too much,
    /// left a gap, or is trusted no longer.
    pub disconnects_forced: u64,
    /// Links that this node closed because of a frame that breaks the protocol.
    pub frames_rejected: u64,
    /// Frames, packets and streams of a later protocol that may be skipped, and were.
    pub frames_skipped: u64,
    /// Messages and copies that mailboxes of this node could not read.
    pub messages_refused: u64,
    /// Handlers of this node that panicked, or whose answers could not be encoded, those of casts among them.
    pub handlers_panicked: u64,
    /// Panics of actors of this node.
    pub actors_panicked: u64,
    /// How often actors of this node began anew.
    pub actors_restarted: u64,
    /// Second lives of a live name that this node refused.
    pub lives_refused: u64,
    /// Incoming links that this node refused: strangers, those that break the greeting or take too long for it, and those
    /// for which there was no room.
    pub links_refused: u64,
    /// Dials that did not lead to a link.
    pub dials_failed: u64,
    /// Datagrams of membership that arrived when there was no room for them.
    pub packets_dropped_in: u64,
    /// Packets of membership that did not leave, for want of room or of a link.
    pub packets_dropped_out: u64,
}

/// Counts what happens, and tells the log.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    sessions_begun: AtomicU64,
    sessions_ended: AtomicU64,
    sessions_lost: AtomicU64,
    disconnects_forced: AtomicU64,
    frames_rejected: AtomicU64,
    frames_skipped: AtomicU64,
    messages_refused: AtomicU64,
    handlers_panicked: AtomicU64,
    actors_panicked: AtomicU64,
    actors_restarted: AtomicU64,
    lives_refused: AtomicU64,
    links_refused: AtomicU64,
    dials_failed: AtomicU64,
    links: Gate,
    messages: Gate,
    calls: Gate,
    casts: Gate,
}

/// Lets one warning through at a time.
#[derive(Debug, Default)]
struct Gate(Mutex<Option<Instant>>);

impl Gate {
    fn is_open(&self) -> bool {
        let now = Instant::now();
        let mut last = lock(&self.0);
        let is_open = last.is_none_or(|last| now.duration_since(last) >= WARN_EVERY);
        if is_open {
            *last = Some(now);
        }
        is_open
    }
}

/// One event: a warning if the gate is open.
macro_rules! gated {
    ($gate:expr, $($event:tt)*) => {
        if $gate.is_open() { tracing::warn!($($event)*) } else { tracing::debug!($($event)*) }
    };
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Why this node ends a session by force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    User,
    Gap,
    Slow,
    Limit,
    Room,
}

impl By {
    fn text(self) -> &'static str {
        match self {
            Self::User => "a user asked for it",
            Self::Gap => "it left a gap in its messages",
            Self::Slow => "it was too slow",
            Self::Limit => "it reached a limit",
            Self::Room => "its place was needed, and it was idle",
        }
    }
}

impl Journal {
    pub(crate) fn incidents(&self, packets: &PacketCounters) -> Incidents {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Incidents {
            sessions_begun: count(&self.sessions_begun),
            sessions_ended: count(&self.sessions_ended),
            sessions_lost: count(&self.sessions_lost),
            disconnects_forced: count(&self.disconnects_forced),
            frames_rejected: count(&self.frames_rejected),
            frames_skipped: count(&self.frames_skipped),
            messages_refused: count(&self.messages_refused),
            handlers_panicked: count(&self.handlers_panicked),
            actors_panicked: count(&self.actors_panicked),
            actors_restarted: count(&self.actors_restarted),
            lives_refused: count(&self.lives_refused),
            links_refused: count(&self.links_refused),
            dials_failed: count(&self.dials_failed),
            packets_dropped_in: count(&packets.dropped_in),
            packets_dropped_out: count(&packets.dropped_out),
        }
    }

    // Sessions.

    pub(super) fn session_up(&self, peer: &NodeId) {
        count(&self.sessions_begun);
        tracing::info!(target: target::SESSION, %peer, "session up");
    }

    pub(super) fn session_ended(&self, peer: &NodeId, reason: DownReason) {
        count(&self.sessions_ended);
        match reason {
            DownReason::Left | DownReason::Disconnected | DownReason::Renewed | DownReason::Shutdown => {
                tracing::info!(target: target::SESSION, %peer, ?reason, "session ended");
            }
            _ => {
                count(&self.sessions_lost);
                tracing::warn!(target: target::SESSION, %peer, ?reason, "session lost");
            }
        }
    }

    pub(super) fn disconnects(&self, peer: &impl Display, by: By) {
        count(&self.disconnects_forced);
        tracing::warn!(target: target::SESSION, %peer, by = by.text(), "forced disconnect");
    }

    /// A peer that would no longer be let in is cut off.
    pub(super) fn distrusts(&self, peer: &impl Display, why: &AuthError) {
        count(&self.disconnects_forced);
        tracing::warn!(target: target::SESSION, %peer, by = "it is no longer trusted", %why, "forced disconnect");
    }

    // Links and frames.

    /// This side closes a link, and has not before. Only a fault of the peer is worth telling.
    pub(super) fn link_closed(&self, peer: &NodeId, link: LinkId, code: Code) {
        let fault = match code {
            Code::PROTOCOL => "it breaks the protocol",
            Code::FRAME_TOO_LARGE => "it is too large",
            Code::SLOW => return self.disconnects(peer, By::Slow),
            Code::LIMIT => return self.disconnects(peer, By::Limit),
            _ => return,
        };
        count(&self.frames_rejected);
        tracing::warn!(target: target::PROTOCOL, %peer, link = link.0, fault, "rejected a frame");
    }

    /// What a peer says of names, groups and mailboxes makes no sense, whichever link brought it.
    pub(super) fn service_broken(&self, peer: &NodeId) {
        count(&self.frames_rejected);
        let fault = "it breaks the rules of the services";
        tracing::warn!(target: target::PROTOCOL, %peer, fault, "rejected a frame");
    }

    /// Something of a later protocol was skipped.
    pub(super) fn skipped(&self, peer: &NodeId, kind: u8) {
        count(&self.frames_skipped);
        tracing::trace!(target: target::PROTOCOL, %peer, kind, "skipped a frame");
    }

    pub(super) fn link_refused(&self, address: &impl Display, reason: &impl Display) {
        count(&self.links_refused);
        gated!(self.links, target: target::LINK, %address, %reason, "refused a link");
    }

    /// Nobody is to blame, or it is told elsewhere.
    pub(super) fn link_broke(address: &impl Display, reason: &impl Display) {
        tracing::debug!(target: target::LINK, %address, %reason, "a link did not come up");
    }

    pub(super) fn dial_failed(&self, peer: &impl Display, error: &impl Display) {
        count(&self.dials_failed);
        tracing::debug!(target: target::LINK, %peer, %error, "not connected");
    }

    // Lives and members.

    pub(super) fn life_refused(&self, live: &NodeId, refused: &NodeId) {
        count(&self.lives_refused);
        tracing::warn!(target: target::CONFLICT, %live, %refused, "refused a second life of a live name");
    }

    /// Metadata is the application's.
    pub(super) fn member(event: &MemberEvent) {
        use MemberEvent as Event;
        let (what, member): (&str, &NodeId) = match event {
            Event::Died { member, .. } => {
                return tracing::warn!(target: target::MEMBER, member = %member.id, "member declared dead");
            }
            Event::Joined(member) => ("joined", &member.id),
            Event::Replaced { member, .. } => ("replaced", &member.id),
            Event::Suspected { member, .. } => ("suspected", &member.id),
            Event::Cleared(member) => ("cleared", &member.id),
            Event::Returned(member) => ("returned", &member.id),
            Event::Left(member) => ("left", &member.id),
            Event::Updated(member) => ("updated", &member.id),
            Event::Forgotten(member) => ("forgotten", member),
        };
        tracing::debug!(target: target::MEMBER, %member, what, "member changed");
    }

    // Messages and calls.

    /// What cannot be read may quote the message, so only the reason is told.
    pub(crate) fn message_refused(&self, mailbox: u64, from: &NodeId, tag: &str, version: u32, reason: Unreadable) {
        count(&self.messages_refused);
        gated!(self.messages, target: target::MESSAGE, mailbox, %from, tag, version, ?reason, "refused a message");
    }

    pub(super) fn call_refused(&self, caller: &NodeId, method: &str, status: Status) {
        gated!(self.calls, target: target::CALL, %caller, method, ?status, "refused a call");
    }

    pub(super) fn cast_failed(&self, caller: &NodeId, method: Option<&str>, status: Status) {
        gated!(self.casts, target: target::CALL, %caller, method, ?status, "a cast came to nothing");
    }

    /// The span tells which method it is of. What a panic says may quote the request: the process's panic hook has it.
    pub(crate) fn handler_panicked(&self) {
        count(&self.handlers_panicked);
        tracing::warn!(target: target::CALL, "a handler panicked");
    }

    // Actors.

    /// What a panic says may quote the message: whoever holds the actor is told, and the process's panic hook.
    pub(crate) fn actor_panicked(&self, actor: &Pid) {
        count(&self.actors_panicked);
        tracing::warn!(target: target::ACTOR, %actor, "an actor panicked");
    }

    pub(crate) fn actor_restarts(&self, actor: &Pid, pause: Duration) {
        count(&self.actors_restarted);
        tracing::warn!(target: target::ACTOR, %actor, ?pause, "an actor begins anew");
    }

    /// A reason is the application's.
    pub(crate) fn actor_ended(actor: &Pid, how: &str, is_clean: bool) {
        if is_clean {
            tracing::debug!(target: target::ACTOR, %actor, how, "an actor ended");
        } else {
            tracing::warn!(target: target::ACTOR, %actor, how, "an actor ended");
        }
    }

    /// A send has to wait, the first of its session; or none waits any more.
    pub(super) fn busy(peer: &NodeId, is_busy: bool) {
        if is_busy {
            tracing::debug!(target: target::LINK, %peer, "link busy");
        } else {
            tracing::debug!(target: target::LINK, %peer, "link no longer busy");
        }
    }
}

/// Where a link leads to, as far as it is known.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    Dialled(&'a dyn Display),
    From(SocketAddr),
    Peer { peer: &'a NodeId, is_dialled: bool },
}

/// The span of a link's greeting, or of its work.
pub(super) fn link_span(link: LinkId, end: End<'_>) -> tracing::Span {
    let (role, peer, address): (_, Option<&dyn Display>, _) = match end {
        End::Dialled(name) => ("dialler", Some(name), None),
        End::From(address) => ("responder", None, Some(address)),
        End::Peer { peer, is_dialled: true } => ("dialler", Some(peer), None),
        End::Peer { peer, is_dialled: false } => ("responder", Some(peer), None),
    };
    let (peer, address) = (peer.map(tracing::field::display), address.map(tracing::field::display));
    tracing::debug_span!(target: target::LINK, "link", link = link.0, role, peer, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flood is one warning a second, whatever it is made of.
    #[tokio::test(start_paused = true)]
    async fn one_warning_a_second() {
        let gate = Gate::default();
        assert!(gate.is_open());
        assert!((0..1000).all(|_| !gate.is_open()));
        tokio::time::advance(WARN_EVERY - Duration::from_millis(1)).await;
        assert!(!gate.is_open());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(gate.is_open() && !gate.is_open());
    }
}
