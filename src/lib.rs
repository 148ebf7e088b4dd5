//! Encrypted clusters for Rust services, over QUIC: typed messages and calls between nodes.
//!
//! A [`Node`] is one QUIC endpoint in your process. Nodes that hold the same [`Cookie`], or certificates of one PKI, form a
//! cluster; a stranger is turned away by TLS, before any application data. On a node you open a [`Mailbox`], whose
//! [`Address`] sends to it from anywhere, and serve a [`Method`], which other nodes call. Links between nodes are made when
//! they are first needed.
//!
//! ```
//! use distribute::{Cookie, Message, Method, Node};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Order { id: u64 }
//!
//! impl Message for Order {
//!     const TAG: &'static str = "shop.order";
//!     const VERSION: u32 = 1;
//! }
//!
//! const PRICE: Method<u64, u64> = Method::new("shop.price");
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), distribute::Error> {
//! let cookie = Cookie::generate();
//! let shop = Node::builder("shop@127.0.0.1:0").cookie(cookie.clone()).start().await?;
//! let desk = Node::builder("desk@127.0.0.1:0").cookie(cookie).start().await?;
//!
//! let mut orders = shop.mailbox::<Order>();
//! let there = orders.address().bind(&desk); // bound to the node that sends
//! there.send(Order { id: 7 }).await?;
//! assert_eq!(orders.recv().await.map(|order| order.id), Some(7));
//!
//! shop.rpc().serve(PRICE, |_call, item| async move { 3 * item })?;
//! assert_eq!(desk.rpc().call(shop.name(), PRICE, 5).await?, 15);
//! # desk.shutdown().await;
//! # shop.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! `examples/README.md` lists programs that do more, most with a process per node; `examples/partition.rs` shows how to test a
//! service of your own under a partition.
//!
//! # Who is a member
//! Whoever shows the [`Cookie`] of the cluster, or a certificate of its PKI, or both: [`Identity`]. Both ends of each link
//! prove it before anything else is read. [`Node::trust`] changes cookies, certificates and lists while the node runs.
//!
//! # Starting and stopping
//! [`Builder::start`] waits for nobody else: [`Node::join_report`] tells who answered, and [`Node::ready`] waits until the node
//! has what the cluster knows. [`Node::shutdown`] has one order: leads are resigned, names and groups withdrawn, new calls
//! refused, running ones waited for, the others told, the links closed. [`Node::drain`] is the first part by itself. So a
//! service may be restarted node by node under load, and no call is lost whose caller tries again what was not done, as
//! [`Retry`] does.
//!
//! # Order, loss, back-pressure
//! Two nodes talk within a *session*, which begins with the first link between them. Links come and go (an idle one is
//! closed); the session ends when a link is lost, when one of the nodes leaves or is declared dead, or when a user disconnects.
//!
//! What one node sends to one mailbox arrives in the order of acceptance, at most once, and without a gap as long as the
//! session lasts. Acceptance is not delivery: what was on its way when a session ends may be lost. So the next send of
//! every address that had sent in that session returns [`SendError::SessionEnded`] and sends nothing; the one after it
//! begins anew. Between different mailboxes, and between messages and calls, there is no order.
//!
//! [`Address::send`] waits while the mailbox has no room for this node, [`Address::try_send`] returns [`SendError::Full`].
//! A wait for room has no deadline of its own: put `tokio::time::timeout` around it if you need one.
//!
//! # Members
//! A node that reaches one member of a cluster, by [`Builder::join`] or [`Builder::discover`], learns of all. They ask
//! each other for signs of life and tell each other what they learn, so [`Node::membership`] answers from memory who
//! lives. A member that is suspected has time to object, so a busy one is not taken for dead; a dead one is gone
//! everywhere in seconds. [`Node::gossip`] tells small facts to all who live, [`Node::health`] sums up what is wrong.
//!
//! # Names, groups, monitors
//! A mailbox may have a [`Name`], which one mailbox of the cluster has at a time: [`Registry::register`] asks the nodes that
//! decide, [`Registry::lookup`] reads memory. It goes with its mailbox and with its node. [`Node::groups`] makes mailboxes
//! members of groups, to which any node broadcasts. [`Node::monitor`] and [`Mailbox::monitor`] tell once that a
//! mailbox or a node is gone, and why. A node has the names and groups of its cluster when it is [ready](Node::ready). What
//! happens to names in a partition, and whose claim stands after it, is told at [`Registry`].
//!
//! # Actors
//! [`Node::actor`] runs a state and its handler in a task of their own, one message at a time: with a name that it has
//! before it begins, restarts after a panic, and an end that is told with its reason. [`Node::pool`] runs many in a group. A
//! task that reads a [`Mailbox`] in a loop stays the plain way.
//!
//! # Elections
//! [`Node::election`] has declared voters elect one leader at a time, by majority and by lease: [`Election`] has the rules. Each
//! leadership has a [`Token`] that is greater than those before, by which a [`Fence`] refuses what a leader of the past still
//! writes. [`Election::singleton`] runs a task and its mailbox on the leader only. [`Membership::leader`] is a convention that
//! needs none of this, and promises nothing.
//!
//! # Runtime
//! A node runs on the tokio runtime that starts it, and has no thread of its own. On a current-thread runtime it takes the
//! least CPU: QUIC's tasks, the link's and yours hand over without waking another processor. So a service that mostly
//! passes messages does best with a current-thread runtime for the node, and `spawn_blocking` or a second runtime for what
//! computes; one whose handlers compute in their own tasks does better with several workers. README.md has the figures.
//!
//! # Errors
//! Each operation has an error of its own, and [`enum@Error`] holds them all, for `?`. A message of an error tells its own
//! level only: print the chain of [`source`](std::error::Error::source) to see the cause. [`CallError::effect`] answers
//! what a caller must know before it tries again: [`Effect::NotDone`], the handler did not run; [`Effect::Unknown`], it may
//! have run; [`Effect::Done`], it ran. Failed sends and connects are always [`Effect::NotDone`]. The library never repeats
//! anything by itself; [`Retry`] does, where you ask for it, what was not done.
//!
//! # Cancel safety
//! Every future may be dropped, and says in its documentation what that means: a receive that is dropped takes no message,
//! a send that is dropped has sent nothing or was accepted in that instant, a call that is dropped tells the callee to drop
//! the handler, and a shutdown that is dropped goes on.
//!
//! # Counts and correlation
//! [`Node::stats`] tells at once what a node has done and holds: what went each way, what waits, what became of calls, what
//! went wrong. A [`CorrelationId`] names an undertaking: it goes along with the calls and messages that are made in its
//! scope, and with those that their handlers make. It is the id of the W3C [`Trace`] that they carry.
//!
//! # Logs
//! A node tells `tracing` what it does. The levels are for readers:
//!
//! | level | for whom |
//! |---|---|
//! | error | a person is needed: this node gives way to another life of its name, its certificate has expired, or its disk takes no vote |
//! | warn | something was lost, refused, or decided against somebody |
//! | info | the life of the node, its sessions, and what it leads |
//! | debug | whoever asks why |
//! | trace | each packet of membership, each frame of names and groups that comes, each write and read of a stream |
//!
//! What a body, metadata or an error of a codec says is never told, nor a cookie or a key; names of nodes, mailboxes,
//! groups and methods are, and tags. Everything has a target that begins with `distribute`. These events keep their
//! targets, messages and fields, each of them comes once, and [`Node::stats`] counts them, or [`Election::counters`]:
//!
//! | target | message | level | fields |
//! |---|---|---|---|
//! | `distribute::node` | `started` | info | `node`, `cluster`, `address` |
//! | `distribute::node` | `stopping`, `stopped` | info | |
//! | `distribute::session` | `session up` | info | `peer` |
//! | `distribute::session` | `session ended`: by a good-bye, a disconnect or this node's end | info | `peer`, `reason` |
//! | `distribute::session` | `session lost`: for any other reason | warn | `peer`, `reason` |
//! | `distribute::session` | `forced disconnect`: by this node | warn | `peer`, `by`; and `why` if it is no longer trusted |
//! | `distribute::protocol` | `rejected a frame`: and closed the link | warn | `peer`, `link`, `fault` |
//! | `distribute::link` | `refused a link`: of a stranger, or for want of room | warn* | `address`, `reason` |
//! | `distribute::link` | `not connected`: a dial failed | debug | `peer`, `error` |
//! | `distribute::link` | `link busy`, `link no longer busy` | debug | `peer` |
//! | `distribute::conflict` | `refused a second life of a live name` | warn | `live`, `refused` |
//! | `distribute::conflict` | `a registration lost its name to another claim` | warn | `scope`, `name`, `mailbox`, `winner` |
//! | `distribute::conflict` | `the conflict resolver failed: the older claim stands` | warn | `scope`, `name`, `error` |
//! | `distribute::member` | `member declared dead` | warn | `member` |
//! | `distribute::member` | `member changed` | debug | `member`, `what` |
//! | `distribute::election` | `this node leads` | info | `election`, `token` |
//! | `distribute::election` | `this node leads no more` | info | `election`, `token`, `why` |
//! | `distribute::election` | `the vote cannot be written: this node does not vote` | error | `election`, `error` |
//! | `distribute::election` | `the vote is written: this node votes again` | info | `election` |
//! | `distribute::message` | `refused a message`: a mailbox cannot read it | warn* | `mailbox`, `from`, `tag`, `version`, `reason` |
//! | `distribute::call` | `refused a call`: no such method, overloaded, shutting down | warn* | `caller`, `method`, `status` |
//! | `distribute::call` | `a cast came to nothing` | warn* | `caller`, `method`, `status` |
//! | `distribute::call` | `a handler panicked` | warn | those of its span |
//! | `distribute::actor` | `an actor panicked` | warn | `actor` |
//! | `distribute::actor` | `an actor begins anew`: after that pause | warn | `actor`, `pause` |
//! | `distribute::actor` | `an actor ended`: by itself, or because it was asked to | warn, or debug if stopped | `actor`, `how` |
//! | `distribute::trust` | `trust changed` | info | `node`, `what` |
//! | `distribute::trust` | `this node's certificate is about to expire`: 14, 3 and 1 days before | warn | `hours_left` |
//! | `distribute::trust` | `this node's certificate has expired` | error | |
//!
//! \* Others may cause these as often as they like. So one a second of each is a warning, and the rest are told at the
//! level of debug.
//!
//! Spans: `node` around what the node decides (`distribute::node`, info; `node`); `link` around a link's greeting and its
//! work (`distribute::link`, debug; `link`, `role`, and `peer` or `address`); `claim` around a registration
//! (`distribute::name`, debug; `scope`, `name`, `mailbox`, `outcome`); and `call` around each handler (`distribute::call`,
//! info; `method`, `caller`, `correlation`, `outcome`), so that what the handler says carries the [`CorrelationId`] of its
//! call. A task that it spawns is in it by `tracing::Instrument::in_current_span`. Messages have no span. The span of a call
//! costs about what one line of the log does; the filter `distribute::call=warn` saves it.
//!
//! # Features
//! - `aws-lc-rs` (default): the TLS provider that agrees on keys by X25519MLKEM768.
//! - `ring`: another TLS provider, without post-quantum key agreement. With both, `aws-lc-rs` is used. One is required.
//! - `metrics`: hands the counts of nodes to the process's recorder of the `metrics` facade: see [`NodeStats`].
//! - `sim`: the module `sim`, a network in memory for tests under tokio's paused clock.
#![forbid(unsafe_code)]

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("distribute needs a TLS provider: enable the feature `aws-lc-rs` (the default) or `ring`");

// In reading order: what users hold, what runs it, what it is made of.
mod actor;
mod ask;
mod batch;
mod cluster;
mod discovery;
mod election;
mod envelope;
mod gossip;
mod groups;
mod health;
mod membership;
mod message;
mod messaging;
mod monitor;
mod node;
mod registry;
mod retry;
mod rpc;
mod stats;
mod trust;

mod driver;
mod proto;
mod transport;

mod codec;
mod wire;

mod config;
mod correlation;
mod error;
mod id;
mod identity;
mod key;
mod trace;

pub use bytes::Bytes;

pub use crate::actor::{
    Actor, ActorContext, ActorFn, ActorHandler, ActorRef, Exit, Next, Pool, RESTARTS_MAX, Resource, Restart, Spawn,
    SpawnPool, actor_fn,
};
pub use crate::ask::{Ask, ReplyTo};
pub use crate::batch::{SendBatch, SendStrict};
pub use crate::cluster::{Cluster, NodeEvents, Refusals};
pub use crate::codec::{DecodeError, EncodeError};
pub use crate::config::{Config, ConfigError};
pub use crate::correlation::{CorrelationId, CorrelationIdError};
pub use crate::discovery::{Contact, Discovery, Dns, JoinOutcome, JoinReport};
pub use crate::driver::counters::{Flow, Queues, Traffic};
pub use crate::driver::disputes::{Conflict, ConflictResolver};
pub use crate::driver::events::NodeEvent;
pub use crate::driver::groups::{GroupEvent, GroupMember, LeftReason};
pub use crate::driver::journal::Incidents;
pub use crate::driver::leaders::{ElectionCounters, ElectionEvent};
pub use crate::driver::mailboxes::RefusedMessage;
pub use crate::driver::members::MembershipEvent;
pub use crate::driver::names::{NameChange, NameEntry, NameEvent, RegistryCounters};
pub use crate::driver::trust::Changed;
pub use crate::election::{Election, ElectionEvents, Leadership, Lease, Voters};
pub use crate::envelope::{Envelope, EnvelopeError};
pub use crate::error::{
    AskError, BatchError, BroadcastError, CallError, CastError, ConnectError, DownReason, Effect, ElectionError, Error,
    HasEffect, JoinError, LeaveError, LookupError, MetadataError, NamedAskError, NamedSendError, PingError,
    PublishError, ReadyError, RecvError, RegisterError, ReplaceError, ScopeError, SendError, ServeError, SinkError,
    SpawnError, StartError, TrustError, UnregisterError, UpdateError, VoteError, VotersError, WaitError,
};
pub use crate::gossip::{FACT_MAX, Fact, Facts, Gossip, TOPIC_MAX, Topic};
pub use crate::groups::{Broadcast, Gather, Gathered, Group, GroupEvents, Groups, Outcome, Pick, Report};
pub use crate::health::{Checked, Health, HealthReason, HealthStatus, PeerHealth};
pub use crate::id::{
    CLUSTER_NAME_MAX, ClusterName, DEFAULT_PORT, HostName, NODE_NAME_MAX, NameError, NodeId, NodeName, Pid,
};
pub use crate::identity::{
    ALLOWED_MAX, Allowed, AuthError, COOKIE_MAX, Cookie, CookieError, CookieFlaw, Identity, IdentityError,
    IdentityFlaw, KeyHash, KeyHashError, NamePolicy, PASSPHRASE_MIN,
};
pub use crate::key::{KEY_MAX, KeyError};
pub use crate::membership::{METADATA_MAX, Membership, MembershipEvents};
pub use crate::message::Message;
pub use crate::messaging::{Address, Mailbox, Received, SendAllError, TrySendError};
pub use crate::monitor::{Monitor, Monitored, Notice, Watching};
pub use crate::node::{ADVERTISED_MAX, Builder, Node, SCOPE_MAX, SCOPES_MAX};
pub use crate::proto::admission::AdmissionCounters;
pub use crate::proto::election::{Fence, Fenced, LossReason};
pub use crate::proto::membership::member::{Member, MemberEvent, MemberState, MembershipCounters};
pub use crate::proto::monitor::Fate;
pub use crate::proto::node::services::RegistryStats;
pub use crate::proto::registry::{NameReason, Verdict};
pub use crate::registry::{
    ConflictRule, NAME_METADATA_MAX, Name, NameEvents, NamePattern, NamedAsk, Names, OnLoss, Register, Registration,
    Registry, Replace, WaitFor,
};
pub use crate::retry::Retry;
pub use crate::rpc::{
    Call, CallContext, CallStats, CallStream, Callee, Caller, Cast, Method, Multicall, Rpc, Serving, Sink, StreamCall,
};
pub use crate::stats::{LinkStats, NodeStats, PeerStats};
pub use crate::trace::{Trace, TraceError};
pub use crate::transport::Network;
pub use crate::trust::Trust;
pub use crate::wire::services::election::{Token, TokenError};
pub use crate::wire::services::monitor::REASON_MAX;

/// The in-memory network: whole nodes with real QUIC and TLS in one process, under tokio's paused clock.
#[cfg(feature = "sim")]
pub mod sim {
    pub use crate::transport::fabric::{Conditions, Counters, Fabric, Host};
}

#[cfg(feature = "pieces")]
#[doc(hidden)]
pub mod pieces;

/// The programs in the README compile and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
