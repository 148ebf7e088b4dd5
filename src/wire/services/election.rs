//! Frames of elections: who leads.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::{
    Fields, WireError, put_be64, put_bytes, take_all, take_be64, take_flag, take_node_name, take_u8, take_varint,
};
use super::{Text, put_option, put_text, take_name, take_option};
use crate::id::NodeName;

/// The most voters of one election.
pub(crate) const VOTERS_MAX: usize = 15;

/// The greatest version, generation and term: what a frame can carry.
pub(crate) const NUMBER_MAX: u64 = super::VARINT_MAX;

/// Which leadership it is: the fencing token of all that a leader does.
///
/// Tokens of one election are ordered, and no two leaders ever have the same one: a later leader's is greater. Whatever has
/// an effect outside of the leader's own memory should carry its token, and whoever takes such effects keeps the greatest
/// token that it has seen and refuses those with a lesser one: [`Fence`](crate::Fence) does so. A leader that was frozen, and
/// goes on without knowing that another was elected meanwhile, is harmless then.
///
/// The parts are compared in this order: the operator's generation, which is 0 where votes are on disk; the version of
/// the voter set; the term.
///
/// ```
/// use distribute::Token;
///
/// let first: Token = "0.1.7".parse()?;
/// let later: Token = "0.2.3".parse()?;
/// assert!(first < later, "the version of the voter set comes before the term");
/// assert_eq!((later.generation(), later.version(), later.term()), (0, 2, 3));
/// # Ok::<(), distribute::TokenError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[doc(alias = "epoch")]
#[doc(alias = "term")]
pub struct Token {
    generation: u64,
    version: u64,
    term: u64,
}

impl Token {
    pub(crate) fn new(generation: u64, version: u64, term: u64) -> Self {
        Self { generation, version, term }
    }

    /// Returns the operator's generation, 0 where votes are on disk.
    pub fn generation(self) -> u64 {
        self.generation
    }

    /// Returns the version of the voter set.
    pub fn version(self) -> u64 {
        self.version
    }

    /// Returns the term: each election that was begun has one of its own.
    pub fn term(self) -> u64 {
        self.term
    }

    fn put(self, out: &mut impl Fields) {
        for part in [self.generation, self.version, self.term] {
            out.number(part);
        }
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self::new(take_varint(body)?, take_varint(body)?, take_varint(body)?))
    }
}

/// `generation.version.term`.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.generation, self.version, self.term)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a token: `generation.version.term`, three numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token is three numbers: `generation.version.term`")]
#[non_exhaustive]
pub struct TokenError;

impl std::str::FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.split('.').map(|part| match part.as_bytes() {
            [b'0'..=b'9', ..] => part.parse().ok().filter(|number| *number <= NUMBER_MAX),
            _ => None,
        });
        let mut next = || parts.next().flatten().ok_or(TokenError);
        let token = Self::new(next()?, next()?, next()?);
        if parts.next().is_some() { Err(TokenError) } else { Ok(token) }
    }
}

/// Which voters a node counts with: frames of another set are not votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ballot {
    pub(crate) generation: u64,
    pub(crate) version: u64,
    /// Of the names and of all else that the voters have to agree about.
    pub(crate) digest: u64,
}

/// What a node tells another about one election.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Election {
    pub(crate) name: Text,
    pub(crate) ballot: Ballot,
    /// The sender's term.
    pub(crate) term: u64,
    pub(crate) word: Word,
}

/// A leader has given up its lease, and names who may stand at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Release {
    pub(crate) leader: NodeName,
    pub(crate) term: u64,
}

/// `life` is the incarnation of the one who asked: an answer to a life that is over is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    /// If I stood for the term after mine, would you vote for me?
    Canvass {
        round: u64,
    },
    Canvassed {
        life: u64,
        round: u64,
        is_for: bool,
    },
    /// Vote for me, in the term of this frame.
    Stand {
        release: Option<Release>,
    },
    /// `lives` are those of all voters as far as the sender knows, in the order of their names, where votes are not kept on
    /// disk.
    Voted {
        life: u64,
        is_for: bool,
        lives: Vec<u64>,
    },
    /// I lead.
    Beat {
        number: u64,
    },
    /// In the term of this frame: if that is the beat's, the sender votes for no other leader for a while.
    Beaten {
        life: u64,
        number: u64,
    },
    /// I lead no more: stand at once.
    TakeOver,
    /// I lead no more, and hold nobody to what was promised to me.
    Resigned,
    /// Who leads?
    Ask,
    /// The greatest token that the sender has seen, and who it belongs to, unless that is over.
    Leads {
        token: Token,
        leader: Option<NodeName>,
    },
    /// I have forgotten what I voted for.
    Recover,
    /// With `has_begun`, the sender began together with this life of the receiver, which so has nothing to remember.
    Recovered {
        life: u64,
        has_begun: bool,
        lives: Vec<u64>,
    },
    /// So have I.
    Blank {
        life: u64,
    },
}

const ELECTION: u8 = 0xb0;

const CANVASS: u8 = 1;
const CANVASSED: u8 = 2;
const STAND: u8 = 3;
const VOTED: u8 = 4;
const BEAT: u8 = 5;
const BEATEN: u8 = 6;
const TAKE_OVER: u8 = 7;
const RESIGNED: u8 = 8;
const ASK: u8 = 9;
const LEADS: u8 = 10;
const RECOVER: u8 = 11;
const RECOVERED: u8 = 12;
const BLANK: u8 = 13;

impl Word {
    fn kind(&self) -> u8 {
        match self {
            Self::Canvass { .. } => CANVASS,
            Self::Canvassed { .. } => CANVASSED,
            Self::Stand { .. } => STAND,
            Self::Voted { .. } => VOTED,
            Self::Beat { .. } => BEAT,
            Self::Beaten { .. } => BEATEN,
            Self::TakeOver => TAKE_OVER,
            Self::Resigned => RESIGNED,
            Self::Ask => ASK,
            Self::Leads { .. } => LEADS,
            Self::Recover => RECOVER,
            Self::Recovered { .. } => RECOVERED,
            Self::Blank { .. } => BLANK,
        }
    }

    fn put(&self, out: &mut impl Fields) {
        out.bytes(&[self.kind()]);
        let put_lives = |out: &mut _, lives: &[u64]| lives.iter().for_each(|life| put_be64(out, *life));
        match self {
            Self::Canvass { round } => out.number(*round),
            Self::Canvassed { life, round, is_for } => {
                put_be64(out, *life);
                out.number(*round);
                out.bytes(&[u8::from(*is_for)]);
            }
            Self::Stand { release } => put_option(out, release.as_ref(), |out, Release { leader, term }| {
                put_bytes(out, leader.as_str().as_bytes());
                out.number(*term);
            }),
            Self::Voted { life, is_for, lives } => {
                put_be64(out, *life);
                out.bytes(&[u8::from(*is_for)]);
                put_lives(out, lives);
            }
            Self::Beat { number } => out.number(*number),
            Self::Beaten { life, number } => {
                put_be64(out, *life);
                out.number(*number);
            }
            Self::Leads { token, leader } => {
                token.put(out);
                put_option(out, leader.as_ref(), |out, leader| put_bytes(out, leader.as_str().as_bytes()));
            }
            Self::Recovered { life, has_begun, lives } => {
                put_be64(out, *life);
                out.bytes(&[u8::from(*has_begun)]);
                put_lives(out, lives);
            }
            Self::Blank { life } => put_be64(out, *life),
            Self::TakeOver | Self::Resigned | Self::Ask | Self::Recover => {}
        }
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        let take_lives = |body: &mut Bytes| take_all(body, VOTERS_MAX, take_be64);
        Ok(match take_u8(body)? {
            CANVASS => Self::Canvass { round: take_varint(body)? },
            CANVASSED => {
                Self::Canvassed { life: take_be64(body)?, round: take_varint(body)?, is_for: take_flag(body)? }
            }
            STAND => {
                let release = |body: &mut Bytes| {
                    let (leader, term) = (take_node_name(body)?, take_varint(body)?);
                    Ok(Release { leader, term })
                };
                Self::Stand { release: take_option(body, release)? }
            }
            VOTED => Self::Voted { life: take_be64(body)?, is_for: take_flag(body)?, lives: take_lives(body)? },
            BEAT => Self::Beat { number: take_varint(body)? },
            BEATEN => Self::Beaten { life: take_be64(body)?, number: take_varint(body)? },
            TAKE_OVER => Self::TakeOver,
            RESIGNED => Self::Resigned,
            ASK => Self::Ask,
            LEADS => Self::Leads { token: Token::take(body)?, leader: take_option(body, take_node_name)? },
            RECOVER => Self::Recover,
            RECOVERED => {
                Self::Recovered { life: take_be64(body)?, has_begun: take_flag(body)?, lives: take_lives(body)? }
            }
            BLANK => Self::Blank { life: take_be64(body)? },
            _ => return Err(WireError::Value("word of an election")),
        })
    }
}

impl Election {
    pub(super) fn has(kind: u8) -> bool {
        kind == ELECTION
    }

    pub(super) fn kind(&self) -> u8 {
        ELECTION
    }

    pub(super) fn put_fields(&self, out: &mut impl Fields) {
        let Self { name, ballot: Ballot { generation, version, digest }, term, word } = self;
        put_text(out, name);
        out.number(*generation);
        out.number(*version);
        put_be64(out, *digest);
        out.number(*term);
        word.put(out);
    }

    pub(super) fn take(body: &mut Bytes) -> Result<Self, WireError> {
        let name = take_name(body)?;
        let ballot = Ballot { generation: take_varint(body)?, version: take_varint(body)?, digest: take_be64(body)? };
        Ok(Self { name, ballot, term: take_varint(body)?, word: Word::take(body)? })
    }
}
