//! Whole nodes: over the in-memory network for each fault, over real sockets and processes for the ordinary way.

mod loopback;
mod tidy;
