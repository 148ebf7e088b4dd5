//! What the two programs share: the messages, and the name under which the calculator is found.

pub mod messages;
