//! The protocol. Both programs are built from it, so they cannot disagree on a type; should they be of different versions,
//! the tag and the version of the message catch it.

use distribute::{Message, Name, ReplyTo};
use serde::{Deserialize, Serialize};

/// Where the calculator is found, whatever node it runs on.
pub const CALCULATOR: Name<Add> = Name::new("calculator");

/// Adds a number to the running sum, and asks for the sum.
#[derive(Debug, Serialize, Deserialize)]
pub struct Add {
    pub number: i64,
    pub reply_to: ReplyTo<i64>,
}

impl Message for Add {
    const TAG: &'static str = "calculator.add";
    const VERSION: u32 = 1;
}
