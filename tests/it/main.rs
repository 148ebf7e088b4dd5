//! Whole nodes: over the in-memory network for each fault, over real sockets and processes for the ordinary way.

mod actor_processes;
mod actors;
mod call_faults;
mod calls;
mod captured;
mod children;
mod churn;
mod common;
mod evolution;
mod faults;
mod groups;
mod lifecycle;
mod loopback;
mod member_processes;
mod membership;
mod message_faults;
mod messages;
mod monitors;
mod observe;
mod processes;
mod registry;
mod stats;
mod tidy;
mod trust;
