//! Sends that wait for credit or room.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;

use super::counters::Blocked;
use super::session::Session;
use crate::proto::lanes::Ticket;

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    MailboxClosed,
    TooManyMailboxes,
    SessionEnded,
}

/// A message that was taken, or that waits for credit.
#[derive(Debug)]
pub(crate) enum Taken {
    Accepted,
    Waits(Waiting),
}

/// A message that waits for credit. Dropping it takes the message back, unless it was accepted meanwhile.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(super) session: Arc<Session>,
    pub(super) mailbox: u64,
    pub(super) ticket: Ticket,
    pub(super) outcome: oneshot::Receiver<Result<(), Refused>>,
    /// Counts how long it waits.
    pub(super) _blocked: Option<Blocked>,
}

impl Waiting {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(crate) async fn accepted(&mut self) -> Result<(), Refused> {
        (&mut self.outcome).await.unwrap_or(Err(Refused::SessionEnded))
    }

    /// Takes the message back. False when it is decided on already: then the outcome is at hand.
    pub(crate) fn take_back(&self) -> bool {
        self.session.take_back(self.mailbox, self.ticket)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.session.take_back(self.mailbox, self.ticket);
    }
}

/// Sends that wait for credit or room.
#[derive(Default)]
pub(super) struct Waiters {
    by_ticket: HashMap<Ticket, oneshot::Sender<Result<(), Refused>>>,
    /// How many, to be read without the lock.
    pub(super) count: Arc<AtomicUsize>,
}

impl Waiters {
    pub(super) fn insert(&mut self, ticket: Ticket, done: oneshot::Sender<Result<(), Refused>>) {
        self.by_ticket.insert(ticket, done);
        self.counted();
    }

    pub(super) fn remove(&mut self, ticket: &Ticket) -> Option<oneshot::Sender<Result<(), Refused>>> {
        let done = self.by_ticket.remove(ticket);
        self.counted();
        done
    }

    pub(super) fn drain(&mut self) -> Vec<oneshot::Sender<Result<(), Refused>>> {
        let all = std::mem::take(&mut self.by_ticket);
        self.counted();
        all.into_values().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_ticket.len()
    }

    fn counted(&self) {
        self.count.store(self.by_ticket.len(), Ordering::Release);
    }
}

/// Tells them that the session has ended.
pub(super) fn refuse_all(waiting: Vec<oneshot::Sender<Result<(), Refused>>>) {
    for done in waiting {
        let _ = done.send(Err(Refused::SessionEnded));
    }
}
