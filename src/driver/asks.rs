//! Questions of this node that wait for replies.
//!
//! A question goes to a mailbox as a message; its reply comes from whatever node holds the right to reply. So it is known
//! by a number of this node, with a secret that only the message has told.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::lock;
use crate::id::{NodeId, Pid};
use crate::proto::links::SessionId;
use crate::wire::Term;

/// The questions of a node.
#[derive(Debug)]
pub(crate) struct Asks {
    state: Mutex<State>,
    max: usize,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    waiting: HashMap<u64, Question>,
    by_target: HashMap<Pid, HashSet<u64>>,
}

#[derive(Debug)]
struct Question {
    secret: [u8; 8],
    target: Pid,
    /// The session that its message went in.
    session: Option<SessionId>,
    done: oneshot::Sender<Outcome>,
}

/// What came of a question.
#[derive(Debug)]
pub(crate) enum Outcome {
    Replied { term: Arc<Term>, body: Bytes },
    MailboxClosed,
    SessionEnded,
}

/// The right to one reply, as the node that asks knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) serial: u64,
    pub(crate) secret: [u8; 8],
}

impl Asks {
    pub(crate) fn new(max: usize) -> Self {
        Self { state: Mutex::default(), max }
    }

    /// Registers a question to a mailbox; `None` when there are too many.
    pub(crate) fn register(&self, target: &Pid) -> Option<(Ticket, oneshot::Receiver<Outcome>)> {
        let mut secret = [0; 8];
        crate::identity::fill_random(&mut secret);
        let mut state = lock(&self.state);
        if state.waiting.len() >= self.max {
            return None;
        }
        state.last += 1;
        let serial = state.last;
        let (done, outcome) = oneshot::channel();
        state.waiting.insert(serial, Question { secret, target: target.clone(), session: None, done });
        state.by_target.entry(target.clone()).or_default().insert(serial);
        Some((Ticket { serial, secret }, outcome))
    }

    /// The message of a question was accepted in this session. Look afterwards whether that has ended.
    pub(crate) fn sent_in(&self, serial: u64, session: SessionId) {
        if let Some(question) = lock(&self.state).waiting.get_mut(&serial) {
            question.session = Some(session);
        }
    }

    /// Nobody waits for the reply any more.
    pub(crate) fn forget(&self, serial: u64) {
        lock(&self.state).remove(serial);
    }

    /// A reply has come. Says whether somebody waited for it.
    pub(crate) fn replied(&self, serial: u64, secret: [u8; 8], term: Arc<Term>, body: Bytes) -> bool {
        let mut state = lock(&self.state);
        if state.waiting.get(&serial).is_none_or(|question| question.secret != secret) {
            return false;
        }
        let done = state.remove(serial);
        drop(state);
        done.is_some_and(|done| done.send(Outcome::Replied { term, body }).is_ok())
    }

    /// A mailbox is closed, or was never there: nobody will read what was asked.
    pub(crate) fn mailbox_closed(&self, node: &NodeId, mailbox: u64) {
        let mut state = lock(&self.state);
        if state.waiting.is_empty() {
            return;
        }
        let asked = state.by_target.remove(&Pid::new(node.clone(), mailbox)).unwrap_or_default();
        let waiting: Vec<_> = asked.iter().filter_map(|serial| state.waiting.remove(serial)).collect();
        drop(state);
        waiting.into_iter().for_each(|question| drop(question.done.send(Outcome::MailboxClosed)));
    }

    /// A session has ended, and with it what was asked in it.
    pub(crate) fn session_ended(&self, session: SessionId) {
        self.end(|question| question.session == Some(session));
    }

    /// The node has stopped.
    pub(crate) fn end_all(&self) {
        self.end(|_| true);
    }

    fn end(&self, has_ended: impl Fn(&Question) -> bool) {
        let mut state = lock(&self.state);
        let ended: Vec<_> =
            state.waiting.iter().filter(|(_, question)| has_ended(question)).map(|(serial, _)| *serial).collect();
        let waiting: Vec<_> = ended.into_iter().filter_map(|serial| state.remove(serial)).collect();
        drop(state);
        waiting.into_iter().for_each(|done| drop(done.send(Outcome::SessionEnded)));
    }

    /// How many questions wait.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting.len()
    }
}

impl State {
    fn remove(&mut self, serial: u64) -> Option<oneshot::Sender<Outcome>> {
        let question = self.waiting.remove(&serial)?;
        if let Some(asked) = self.by_target.get_mut(&question.target) {
            asked.remove(&serial);
            if asked.is_empty() {
                self.by_target.remove(&question.target);
            }
        }
        Some(question.done)
    }
}
