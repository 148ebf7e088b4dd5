//! The open calls of one session, in both directions.
//!
//! Handles ask and give up here, links bring answers and requests. What is to be written goes through
//! [`Session::push_call`].

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;

use super::lock;
use super::session::Session;
use crate::config::Config;
use crate::wire::{CallFrame, Code, Schema, Status};

/// How a call came back.
#[derive(Debug)]
pub(crate) enum Answer {
    Answered { schema: Schema, body: Bytes },
    Failed(Status),
    SessionEnded,
}

/// What a session holds of its calls.
#[derive(Debug)]
pub(crate) struct Exchange {
    calls: Mutex<Calls>,
    call_room: Semaphore,
    call_buffer: usize,
    calls_max: usize,
    next_call: AtomicU64,
}

#[derive(Debug, Default)]
struct Calls {
    /// Calls of this side that wait for an answer.
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// Calls of the peer that are being handled.
    serving: HashMap<u64, AbortHandle>,
    ended: bool,
}

impl Exchange {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            calls: Mutex::default(),
            call_room: Semaphore::new(config.send_buffer),
            call_buffer: config.send_buffer,
            calls_max: config.calls_max,
            next_call: AtomicU64::new(0),
        }
    }

    /// What was taken has been handed to QUIC.
    pub(super) fn written(&self, cost: u64) {
        self.call_room.add_permits(cost as usize);
    }

    /// The session ends: whoever waits is told, and whatever runs for the peer is stopped.
    pub(super) fn end(&self) {
        self.call_room.close();
        let mut calls = lock(&self.calls);
        calls.ended = true;
        let (waiting, serving) = (std::mem::take(&mut calls.waiting), std::mem::take(&mut calls.serving));
        drop(calls);
        waiting.into_values().for_each(|done| drop(done.send(Answer::SessionEnded)));
        serving.into_values().for_each(|handler| handler.abort());
    }
}

impl Session {
    /// Sends a request. The receiver gets the answer; dropping it and calling [`Session::give_up`] cancels.
    pub(crate) async fn request(
        &self,
        method: &str,
        timeout_ms: u64,
        schema: Schema,
        body: Bytes,
        calls_max: usize,
    ) -> Result<(u64, oneshot::Receiver<Answer>), RequestError> {
        let id = self.exchange.next_call.fetch_add(1, Ordering::Relaxed);
        let frame = CallFrame::Call { id, timeout_ms, method: method.to_owned(), trace: None, schema, body };
        let bytes = encode(&frame);
        let room = self.reserve(bytes.len()).await.map_err(|()| RequestError::SessionEnded)?;
        let (done, answer) = oneshot::channel();
        {
            let mut calls = lock(&self.exchange.calls);
            if calls.ended {
                return Err(RequestError::SessionEnded);
            }
            if calls.waiting.len() >= calls_max {
                drop(calls);
                self.exchange.call_room.add_permits(room);
                return Err(RequestError::Overloaded);
            }
            calls.waiting.insert(id, done);
        }
        self.push_call(id, bytes, room);
        self.calls_changed();
        Ok((id, answer))
    }

    /// Nobody waits for the answer any more: the callee is told.
    pub(crate) fn give_up(&self, id: u64) {
        if lock(&self.exchange.calls).waiting.remove(&id).is_none() {
            return;
        }
        // A cancel takes no room: it is small, and there is at most one per call that had room.
        self.push_call(id, encode(&CallFrame::Cancel { id }), 0);
        self.calls_changed();
    }

    pub(crate) fn answered(&self, id: u64, answer: Answer) {
        let waiting = lock(&self.exchange.calls).waiting.remove(&id);
        // A late answer ends here: nobody waits.
        if let Some(done) = waiting {
            let _ = done.send(answer);
            self.calls_changed();
        }
    }

    /// Starts a handler for a call of the peer, unless the session has ended or the id is in use.
    ///
    /// # Errors
    /// The code to close the link with, when the peer has more calls open than a caller may have.
    pub(crate) fn serve(&self, id: u64, start: impl FnOnce() -> AbortHandle) -> Result<(), Code> {
        let mut calls = lock(&self.exchange.calls);
        if calls.ended || calls.serving.contains_key(&id) {
            return Ok(());
        }
        // Twice what a caller has open, because a call on one stream overtakes the cancel of another.
        if calls.serving.len() >= 2 * self.exchange.calls_max {
            return Err(Code::LIMIT);
        }
        // Under the lock, so that the handler's end cannot come before its beginning.
        calls.serving.insert(id, start());
        drop(calls);
        self.calls_changed();
        Ok(())
    }

    pub(crate) fn served(&self, id: u64) {
        lock(&self.exchange.calls).serving.remove(&id);
        self.calls_changed();
    }

    pub(crate) fn cancelled_by_caller(&self, id: u64) {
        let handler = lock(&self.exchange.calls).serving.remove(&id);
        if let Some(handler) = handler {
            handler.abort();
            self.calls_changed();
        }
    }

    /// Sends an answer. Waits for room in the buffer.
    pub(crate) async fn answer(&self, id: u64, status: Status, schema: Option<Schema>, body: Bytes) {
        let bytes = encode(&CallFrame::Answer { id, status, schema, body });
        if let Ok(room) = self.reserve(bytes.len()).await {
            self.push_call(id, bytes, room);
        }
    }

    /// Waits for room in the call buffers; a frame larger than all of it takes all of it.
    async fn reserve(&self, bytes: usize) -> Result<usize, ()> {
        let room = bytes.min(self.exchange.call_buffer);
        self.exchange.call_room.acquire_many(room as u32).await.map_err(|_| ())?.forget();
        Ok(room)
    }

    pub(crate) fn calls_open(&self) -> usize {
        let calls = lock(&self.exchange.calls);
        calls.waiting.len() + calls.serving.len()
    }

    fn calls_changed(&self) {
        let carrier = self.carrier();
        if let Some(carrier) = carrier {
            carrier.calls_changed();
        }
    }
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestError {
    Overloaded,
    SessionEnded,
}

fn encode(frame: &CallFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}
