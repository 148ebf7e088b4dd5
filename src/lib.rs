//! Encrypted clusters for Rust services, over QUIC.
#![forbid(unsafe_code)]

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("distribute needs a TLS provider: enable the feature `aws-lc-rs` (the default) or `ring`");

// In reading order: what users hold, what runs it, what it is made of.
mod cluster;
mod messaging;
mod node;
mod rpc;

mod driver;
mod proto;
mod transport;

mod codec;
mod wire;

mod config;
mod error;
mod id;
mod identity;

pub use bytes::Bytes;

pub use crate::cluster::{Cluster, NodeEvents};
pub use crate::codec::{DecodeError, EncodeError};
pub use crate::config::{Config, ConfigError};
pub use crate::driver::events::NodeEvent;
pub use crate::error::{
    CallError, ConnectError, DownReason, Effect, Error, PingError, RecvError, SendError, ServeError, StartError,
};
pub use crate::id::{
    CLUSTER_NAME_MAX, ClusterName, DEFAULT_PORT, HostName, NODE_NAME_MAX, NameError, NodeId, NodeName, Pid,
};
pub use crate::identity::{AuthError, COOKIE_MAX, Cookie, CookieError, CookieFlaw, PASSPHRASE_MIN};
pub use crate::messaging::{Address, Mailbox, Message, TrySendError};
pub use crate::node::{ADVERTISED_MAX, Builder, Node};
pub use crate::rpc::{Call, CallContext, Callee, Method, Rpc, Serving};
pub use crate::transport::Network;

/// The in-memory network: whole nodes with real QUIC and TLS in one process, under tokio's paused clock.
#[cfg(feature = "sim")]
pub mod sim {
    pub use crate::transport::fabric::{Conditions, Counters, Fabric, Host};
}
