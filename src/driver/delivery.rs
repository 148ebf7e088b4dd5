//! What one read of a lane brings, on its way to mailboxes.
//!
//! Small messages to one mailbox often come in a row. Such a run is copied into one buffer, and is one entry of the
//! mailbox's queue, so that what a message costs is shared by all of the run.

use std::sync::{Arc, MutexGuard};

use bytes::Bytes;

use super::Shared;
use super::counters::Flow;
use super::lock;
use super::mailboxes::Inbox;
use super::session::{In, SCHEMAS_MAX, Session};
use crate::proto::lanes::{self, MESSAGE_COST};
use crate::trace::Trace;
use crate::wire::{Code, CopiesFrame, CopiesHead, LaneFrame, MessageHead, Schema};

/// Below this, a received body is copied out: a slice would pin the whole buffer that it arrived in.
pub(super) const COPY_BELOW: usize = 4096;

/// A run ends at so many bytes, because its buffer lives until its last message is read.
const RUN_MAX: usize = 4096;

/// Messages that have arrived in a row, and where they came from.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) schema: Arc<Schema>,
    pub(crate) trace: Option<Box<Trace>>,
    pub(crate) from: Arc<Session>,
    /// The bodies that are not read, one after the other.
    bodies: Bytes,
    /// Where each body ends, counted from the first; nothing when there is one body.
    ends: Box<[u32]>,
    /// How many are read.
    read: usize,
}

impl Letter {
    /// The next body; `None` after the last.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        if self.ends.is_empty() {
            self.read += 1;
            return (self.read == 1).then(|| std::mem::take(&mut self.bodies));
        }
        let end = *self.ends.get(self.read)?;
        let start = self.read.checked_sub(1).map_or(0, |last| self.ends[last]);
        self.read += 1;
        Some(self.bodies.split_to((end - start) as usize))
    }

    /// Whether all is read.
    pub(crate) fn is_read(&self) -> bool {
        self.read >= self.ends.len().max(1)
    }

    /// How many messages it holds, the read ones too.
    pub(super) fn messages(&self) -> u64 {
        self.ends.len().max(1) as u64
    }

    /// Whether its bodies share a buffer.
    pub(crate) fn is_run(&self) -> bool {
        !self.ends.is_empty()
    }
}

/// What a message takes of its sender's credit.
pub(crate) fn cost(body: usize) -> u64 {
    body as u64 + MESSAGE_COST
}

/// Small messages in a row, to one mailbox and of one type.
#[derive(Debug, Default)]
pub(super) struct Run {
    mailbox: u64,
    schema: u64,
    /// The number of the first.
    first: u64,
    bodies: Vec<u8>,
    ends: Vec<u32>,
}

/// One read being delivered. What came before a frame that is wrong is delivered all the same.
pub(super) struct Delivery<'a> {
    session: &'a Arc<Session>,
    shared: Arc<Shared>,
    inn: MutexGuard<'a, In>,
    /// Where the last message went.
    to: Option<(u64, Arc<dyn Inbox>)>,
    /// Mailboxes that do not exist.
    closes: Vec<u64>,
    /// The frames of copies that have come, each with those of its mailboxes that do not exist.
    delivered: Vec<(u64, Vec<u64>)>,
}

impl Session {
    /// Begins to deliver what was read. Nothing else is delivered meanwhile.
    pub(super) fn deliver(self: &Arc<Self>) -> Result<Delivery<'_>, Code> {
        let shared = self.shared.upgrade().ok_or(Code::SHUTDOWN)?;
        let inn = lock(&self.inn);
        if inn.ended {
            // Whoever ended the session closes the link.
            return Err(Code::STALE_LINK);
        }
        Ok(Delivery { session: self, shared, inn, to: None, closes: Vec::new(), delivered: Vec::new() })
    }
}

impl Delivery<'_> {
    pub(super) fn frame(&mut self, frame: LaneFrame) -> Result<(), Code> {
        match frame {
            LaneFrame::Schema { id, schema } => {
                if id >= SCHEMAS_MAX {
                    return Err(Code::LIMIT);
                }
                let id = id as usize;
                let schemas = &mut self.inn.schemas;
                schemas.resize(schemas.len().max(id + 1), None);
                let known = schemas[id].get_or_insert_with(|| Arc::new(schema.clone()));
                if **known == schema { Ok(()) } else { Err(Code::PROTOCOL) }
            }
            LaneFrame::Message(message) if message.head.trace.is_none() && message.body.len() < COPY_BELOW => {
                self.small(message.head, &message.body)
            }
            LaneFrame::Message(message) => {
                self.flush()?;
                if message.body.len() > self.shared.config.message_max {
                    return Err(Code::FRAME_TOO_LARGE);
                }
                let small = message.body.len() < COPY_BELOW;
                let body = if small { Bytes::copy_from_slice(&message.body) } else { message.body };
                let cost = cost(body.len());
                let size = body.len();
                let is_taken = self.receive(message.head, 1, cost, body, Box::default())?;
                self.count(is_taken, 1, |received| received.message(1, size));
                Ok(())
            }
            LaneFrame::Copies(CopiesFrame { head, body }) => {
                self.flush()?;
                self.copies(head, body)
            }
        }
    }

    /// Takes one message to several mailboxes, which share its body.
    fn copies(&mut self, head: CopiesHead, body: Bytes) -> Result<(), Code> {
        if body.len() > self.shared.config.message_max {
            return Err(Code::FRAME_TOO_LARGE);
        }
        let small = body.len() < COPY_BELOW;
        let body = if small { Bytes::copy_from_slice(&body) } else { body };
        let CopiesHead { id, schema, trace, to } = head;
        let mut closed = Vec::new();
        for (mailbox, number) in to {
            let head = MessageHead { mailbox, number, schema, trace };
            let is_taken = self.receive(head, 1, cost(body.len()), body.clone(), Box::default())?;
            self.count(is_taken, 1, |received| received.copy(body.len()));
            if !is_taken {
                closed.push(mailbox);
            }
        }
        self.delivered.push((id, closed));
        Ok(())
    }

    /// Takes a message with a body that is copied.
    pub(super) fn small(&mut self, head: MessageHead, body: &[u8]) -> Result<(), Code> {
        if body.len() > self.shared.config.message_max {
            return Err(Code::FRAME_TOO_LARGE);
        }
        let run = &mut self.inn.run;
        let goes_on = !run.ends.is_empty()
            && run.mailbox == head.mailbox
            && run.schema == head.schema
            && run.first + run.ends.len() as u64 == head.number
            && run.bodies.len() + body.len() <= RUN_MAX;
        if !goes_on {
            self.flush()?;
            let run = &mut self.inn.run;
            (run.mailbox, run.schema, run.first) = (head.mailbox, head.schema, head.number);
        }
        let run = &mut self.inn.run;
        run.bodies.extend_from_slice(body);
        run.ends.push(run.bodies.len() as u32);
        Ok(())
    }

    /// Receives the run that has been gathered.
    fn flush(&mut self) -> Result<(), Code> {
        let run = &mut self.inn.run;
        let messages = run.ends.len();
        if messages == 0 {
            return Ok(());
        }
        let head = MessageHead { mailbox: run.mailbox, number: run.first, schema: run.schema, trace: None };
        let cost = run.bodies.len() as u64 + messages as u64 * MESSAGE_COST;
        let (bodies, size) = (Bytes::copy_from_slice(&run.bodies), run.bodies.len());
        let ends = if messages == 1 { Box::default() } else { Box::from(&run.ends[..]) };
        run.bodies.clear();
        run.ends.clear();
        let is_taken = self.receive(head, messages as u64, cost, bodies, ends)?;
        self.count(is_taken, messages as u64, |received| received.message(messages as u64, size));
        Ok(())
    }

    fn count(&mut self, is_taken: bool, messages: u64, received: impl FnOnce(&mut Flow)) {
        if is_taken {
            received(&mut self.inn.received);
        } else {
            self.inn.undeliverable += messages;
        }
    }

    /// Receives messages; false when their mailbox does not exist.
    fn receive(
        &mut self,
        head: MessageHead,
        messages: u64,
        cost: u64,
        bodies: Bytes,
        ends: Box<[u32]>,
    ) -> Result<bool, Code> {
        let MessageHead { mailbox, number, schema, trace } = head;
        let inn = &mut *self.inn;
        let known = usize::try_from(schema).ok().and_then(|id| inn.schemas.get(id)?.as_ref());
        let schema = known.ok_or(Code::PROTOCOL)?.clone();
        if self.to.as_ref().is_none_or(|(open, _)| *open != mailbox) {
            if let Some((_, inbox)) = self.to.take() {
                inbox.deliver(&mut inn.ready);
            }
            self.to = self.shared.mailboxes.inbox(mailbox).map(|inbox| (mailbox, inbox));
        }
        if self.to.is_none() {
            if inn.lanes.refuse(mailbox) {
                self.closes.push(mailbox);
            }
            return Ok(false);
        }
        let from = self.session.clone();
        let letter = Letter { schema, trace: trace.map(Box::new), from, bodies, ends, read: 0 };
        let arrived = lanes::Arrived { mailbox, number, messages, cost, item: letter };
        let received = inn.lanes.receive(arrived, &mut inn.ready);
        received.map(|()| true).map_err(|violation| self.session.broken(violation))
    }

    /// Hands everything to the mailboxes.
    pub(super) fn finish(mut self) -> Result<(), Code> {
        let flushed = self.flush();
        if let Some((_, inbox)) = self.to.take() {
            inbox.deliver(&mut self.inn.ready);
        }
        let due = self.inn.due_notices();
        let Self { session, shared, inn, closes, delivered, .. } = self;
        drop(inn);
        due.into_iter().for_each(|(watch, fate)| shared.monitors.deliver(watch, fate));
        flushed?;
        if !closes.is_empty() {
            session.refuse_mailboxes(&closes)?;
        }
        if delivered.is_empty() { Ok(()) } else { session.answer_copies(delivered) }
    }
}
