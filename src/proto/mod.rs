//! Protocols as values: inputs and the time go in, outputs come out. No socket, clock, lock or entropy in here.

pub(crate) mod admission;
pub(crate) mod calls;
pub(crate) mod election;
pub(crate) mod founding;
pub(crate) mod hello;
pub(crate) mod lanes;
pub(crate) mod link;
pub(crate) mod links;
pub(crate) mod membership;
pub(crate) mod monitor;
pub(crate) mod node;
pub(crate) mod registry;
pub(crate) mod replication;
#[cfg(any(test, feature = "pieces"))]
pub(crate) mod sim;
