//! Private pieces, opened for the project's own benchmarks (`benches/pieces.rs`, `benches/groups.rs`,
//! `benches/membership`, `benches/registry.rs`). Not part of the API.
#![allow(missing_docs, missing_debug_implementations, reason = "read by benchmarks")]

use std::sync::LazyLock;

use bytes::Bytes;

use crate::groups::Group;
use crate::id::{NodeId, Pid};
use crate::message::{Message, schema};
use crate::messaging::Mailbox;
use crate::node::Node;
use crate::proto::lanes::{Arrived, Inbound, InboundLimits, MESSAGE_COST, Offer, Offered, Outbound, Pool};
use crate::proto::registry::{NameReason, Named};
use crate::proto::replication::Cause;
use crate::wire::{MessageHead, Splitter, put_message_head};

/// The simulator of many members.
pub mod membership {
    pub use crate::proto::sim::*;
}

/// Tells a node of a member elsewhere, as if that had joined.
pub fn tell_member<M: Message>(node: &Node, group: &Group<M>, member: &Mailbox<M>) {
    let (group, tag) = (group.name().into(), schema::<M>().tag.into());
    node.shared().groups.apply("", group, member.pid(), tag, 1, Cause::Written);
}

/// What a lane carries: so many messages to one mailbox.
pub fn lane(messages: u64, body: usize) -> Bytes {
    let mut bytes = Vec::new();
    let body = vec![7; body];
    for number in 0..messages {
        put_message_head(&mut bytes, &MessageHead { mailbox: 5, number, schema: 0, trace: None }, body.len());
        bytes.extend_from_slice(&body);
    }
    bytes.into()
}

/// Splits a lane that arrived in pieces of so many bytes; returns how many bytes of bodies it held.
pub fn split(lane: &Bytes, piece: usize) -> usize {
    let mut splitter = Splitter::new(1 << 20);
    let mut bodies = 0;
    let mut rest = lane.clone();
    while !rest.is_empty() {
        splitter.push(rest.split_to(piece.min(rest.len())));
        loop {
            while let Some((_, body)) = splitter.next_small_message(4096).expect("a lane of messages") {
                bodies += body.len();
            }
            let Some(frame) = splitter.next_frame().expect("a lane of messages") else { break };
            bodies += frame.body.len();
        }
    }
    bodies
}

/// Both ends of the lanes of a session, without what is between them.
pub struct Lanes {
    sender: Outbound<()>,
    receiver: Inbound<()>,
    pool: Pool,
}

impl Default for Lanes {
    fn default() -> Self {
        let limits = InboundLimits {
            window: 32 << 10,
            window_max: 4 << 20,
            lanes_max: 8192,
            message_max: 16 << 20,
            windows_max: 32 << 20,
            large_max: 32 << 20,
        };
        Self {
            sender: Outbound::new(limits.window, limits.lanes_max, 1 << 20, 1 << 20),
            receiver: Inbound::new(0, limits),
            pool: Pool::new(1 << 30, 1 << 30),
        }
    }
}

impl Lanes {
    /// Offers, accepts, receives and consumes one message, and brings its credit back.
    pub fn message(&mut self, mailbox: u64, body: usize) {
        let (mut outputs, mut ready, mut grants) = (Vec::new(), Vec::new(), Vec::new());
        let offer = Offer { mailbox, body, bulk: false, wait: false };
        let Offered::Accepted(number) = self.sender.offer(offer, || (), &mut outputs) else {
            unreachable!("credit comes back at once")
        };
        let cost = body as u64 + MESSAGE_COST;
        self.sender.written(cost, false, &mut outputs);
        let arrived = Arrived { mailbox, number, messages: 1, cost, item: () };
        self.receiver.receive(arrived, &mut ready).expect("the sender keeps the rules");
        self.receiver.consumed(mailbox, cost, &mut self.pool, &mut grants);
        grants.into_iter().for_each(|grant| self.sender.granted(grant, &mut outputs));
    }
}

/// Tells the handles of a node that a mailbox for `u64` of a node elsewhere has a name, or that nobody has it, as its
/// registry would.
pub fn tell_name(node: &Node, name: &str, mailbox: Option<u64>) {
    /// All that one node has told shares its identity.
    static ELSEWHERE: LazyLock<NodeId> =
        LazyLock::new(|| NodeId::new("elsewhere@127.0.0.1:9".parse().expect("a name"), 1));
    let named = mailbox.map(|serial| Named {
        pid: Pid::new(ELSEWHERE.clone(), serial),
        version: 1,
        stamp: 1,
        tag: "u64".into(),
        metadata: Bytes::new(),
    });
    let reason = if named.is_some() { NameReason::Registered } else { NameReason::Unregistered };
    node.shared().names.apply("", name.into(), named, reason);
}
