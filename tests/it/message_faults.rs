//! What each fault of the network does to messages, large and small.
