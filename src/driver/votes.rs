//! The votes of one node on disk: a directory, and in it a file for each election.
//!
//! A file is replaced as a whole: written beside it, flushed, put in its place, and the directory flushed. So whenever the
//! machine stops there is the vote before or the vote after. What cannot be read is an error for ever: a voter that began anew
//! might vote twice in a term. Whoever gives a directory from a backup back has forgotten, too, and nothing here can tell.
//!
//! ```text
//! "distvote"  format: u16  cluster  node  election  set  term: u64  choice  led: 0 | 1 set  seen: u64  SHA-256 of all before
//! text:   length: u16, bytes
//! set:    version: u64, count: u8, names
//! choice: 0 | 1 name | 2, for nobody, for that voter, unknown
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str;
use std::sync::Arc;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

use crate::error::VoteError;
use crate::id::{ClusterName, NodeName};
use crate::proto::election::{Choice, Set, Vote};

const MAGIC: &[u8; 8] = b"distvote";

/// The format that is written, and the only one that is read.
const FORMAT: u16 = 1;

const DIGEST: usize = 32;

/// A vote of the greatest size is not half as large.
const FILE_MAX: u64 = 64 * 1024;

/// Where one node keeps its votes. Nobody else does as long as this is there.
#[derive(Debug)]
pub(crate) struct VoteDir {
    path: PathBuf,
    cluster: ClusterName,
    node: NodeName,
    _locked: File,
}

fn io_error(path: &Path, error: &io::Error) -> VoteError {
    VoteError::Io { path: path.to_owned(), kind: error.kind(), message: error.to_string() }
}

impl VoteDir {
    /// Takes the directory, which has to be there: one that is not may be a volume that was not mounted.
    pub(crate) fn open(path: &Path, cluster: ClusterName, node: NodeName) -> Result<Self, VoteError> {
        let lock = path.join("lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
        let file = opened.map_err(|error| io_error(&lock, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), cluster, node, _locked: file }),
            Err(TryLockError::WouldBlock) => Err(VoteError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(io_error(&lock, &error)),
        }
    }

    /// The name of an election may hold what a file's name may not.
    fn file(&self, election: &str) -> PathBuf {
        let digest = Sha256::digest(election);
        self.path.join(format!("{}.vote", BASE32_NOPAD.encode(&digest[..20]).to_ascii_lowercase()))
    }

    /// The vote that was written last; `None` when there is none.
    pub(crate) fn load(&self, election: &str) -> Result<Option<Vote>, VoteError> {
        let path = self.file(election);
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path, &error)),
        };
        if size > FILE_MAX {
            return Err(VoteError::NotAVote(path));
        }
        let bytes = fs::read(&path).map_err(|error| io_error(&path, &error))?;
        self.decode(&path, election, &bytes).map(Some)
    }

    /// Writes a vote in place of the one before. Once it returns, the vote outlives a crash of the machine. Blocks.
    pub(crate) fn store(&self, election: &str, vote: &Vote) -> Result<(), VoteError> {
        let (path, bytes) = (self.file(election), self.encode(election, vote));
        let beside = path.with_extension("new");
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(|error| io_error(&beside, &error))?;
        fs::rename(&beside, &path).map_err(|error| io_error(&path, &error))?;
        self.flush().map_err(|error| io_error(&self.path, &error))
    }

    #[cfg(unix)]
    fn flush(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// There a directory cannot be flushed, and need not be.
    #[cfg(not(unix))]
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn encode(&self, election: &str, vote: &Vote) -> Vec<u8> {
        let Vote { set, term, choice, led, seen } = vote;
        let mut out = MAGIC.to_vec();
        out.extend(FORMAT.to_be_bytes());
        for text in [self.cluster.as_str(), self.node.as_str(), election] {
            put_text(&mut out, text);
        }
        put_set(&mut out, set);
        out.extend(term.to_be_bytes());
        match choice {
            Choice::Nobody => out.push(0),
            Choice::For(voter) => {
                out.push(1);
                put_text(&mut out, voter.as_str());
            }
            Choice::Unknown => out.push(2),
        }
        out.push(u8::from(led.is_some()));
        if let Some(led) = led {
            put_set(&mut out, led);
        }
        out.extend(seen.to_be_bytes());
        let digest = Sha256::digest(&out);
        out.extend(digest);
        out
    }

    fn decode(&self, path: &Path, election: &str, bytes: &[u8]) -> Result<Vote, VoteError> {
        let damaged = || VoteError::Damaged(path.to_owned());
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            // Nothing, or a piece of the beginning, is what is left of a vote.
            let is_cut = MAGIC.starts_with(bytes);
            return Err(if is_cut { damaged() } else { VoteError::NotAVote(path.to_owned()) });
        };
        let (format, _) = rest.split_first_chunk().ok_or_else(damaged)?;
        let found = u16::from_be_bytes(*format);
        if found != FORMAT {
            return Err(VoteError::Format { path: path.to_owned(), found, known: FORMAT });
        }
        let (content, digest) = bytes.split_last_chunk::<DIGEST>().ok_or_else(damaged)?;
        if Sha256::digest(content).as_slice() != digest {
            return Err(damaged());
        }
        let mut content = Reader(content.get(MAGIC.len() + size_of::<u16>()..).unwrap_or_default());
        for expected in [self.cluster.as_str(), self.node.as_str(), election] {
            let found = content.text().ok_or_else(damaged)?;
            if found != expected {
                let (found, expected) = (found.to_owned(), expected.to_owned());
                return Err(VoteError::Foreign { path: path.to_owned(), found, expected });
            }
        }
        content.vote().filter(|_| content.0.is_empty()).ok_or_else(damaged)
    }
}

/// Names are shorter than 2^16 bytes.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

fn put_set(out: &mut Vec<u8>, Set { version, names }: &Set) {
    out.extend(version.to_be_bytes());
    out.push(names.len() as u8);
    names.iter().for_each(|name| put_text(out, name.as_str()));
}

/// What has not been read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    fn number(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = u16::from_be_bytes(self.chunk()?);
        let (text, rest) = self.0.split_at_checked(len.into())?;
        self.0 = rest;
        str::from_utf8(text).ok()
    }

    fn name(&mut self) -> Option<NodeName> {
        NodeName::parse(self.text()?).ok()
    }

    fn set(&mut self) -> Option<Arc<Set>> {
        let (version, [count]) = (self.number()?, self.chunk()?);
        let names = (0..count).map(|_| self.name()).collect::<Option<_>>()?;
        Some(Arc::new(Set { version, names }))
    }

    fn vote(&mut self) -> Option<Vote> {
        let (set, term) = (self.set()?, self.number()?);
        let choice = match self.chunk()? {
            [0] => Choice::Nobody,
            [1] => Choice::For(self.name()?),
            [2] => Choice::Unknown,
            _ => return None,
        };
        let led = match self.chunk()? {
            [0] => None,
            [1] => Some(self.set()?),
            _ => return None,
        };
        Some(Vote { set, term, choice, led, seen: self.number()? })
    }
}

#[cfg(test)]
mod tests;
