//! The cookie: a secret that all nodes of a cluster share, from wherever it is kept.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::keys::fill_random;
use crate::id::ClusterName;

/// The longest cookie, in bytes.
pub const COOKIE_MAX: usize = 1024;

/// The shortest passphrase that is accepted without [`Cookie::weak`], in bytes.
pub const PASSPHRASE_MIN: usize = 16;

/// The secret that all nodes of a cluster share: whoever holds it is a member, and nobody else is.
///
/// Use a generated cookie. It carries 256 random bits, and the first node to start can make it:
///
/// ```no_run
/// use distribute::Cookie;
///
/// let cookie = Cookie::load_or_generate("/var/lib/shop/cookie")?;
/// # Ok::<(), distribute::CookieError>(())
/// ```
///
/// Then copy the file to the other hosts, readable by its owner only. A passphrase is possible, but anyone who can send
/// a packet to a node receives enough to test guesses at home, about ten thousand a second on one graphics card. So short
/// and well-known passphrases are refused.
///
/// Clones share one secret, which is wiped from memory when the last of them is dropped. The text form is handed out by
/// [`Cookie::reveal`] alone: `Debug` hides it, and there is neither `Display` nor `Serialize`.
///
/// # Text
/// A generated cookie is `pk1-` and 58 letters and digits, of which the last six detect typing errors. Any other text is
/// a passphrase: at most 1024 bytes of UTF-8 without control characters and without space at either end, taken as it is,
/// without Unicode normalisation. No passphrase starts with `pk1-`.
#[derive(Clone)]
#[doc(alias = "secret")]
pub struct Cookie(Arc<Secret>);

enum Secret {
    Generated(Zeroizing<[u8; 32]>),
    Passphrase {
        text: Zeroizing<String>,
        /// What the first cluster to ask got, so that many nodes in one process pay for the stretching once.
        stretched: OnceLock<(ClusterName, Zeroizing<[u8; 32]>)>,
    },
}

/// Which texts a constructor takes.
#[derive(Clone, Copy)]
enum Accept {
    Generated,
    Strong,
    Weak,
}

impl Cookie {
    /// Makes a new cookie of 256 random bits.
    ///
    /// # Panics
    /// If the operating system gives no random bytes.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        fill_random(&mut bytes[..]);
        Self(Arc::new(Secret::Generated(bytes)))
    }

    /// Loads the cookie from a file, or generates one and creates the file, readable by its owner only.
    ///
    /// Processes that start at once on one host end up with the same cookie: the file appears complete or not at all,
    /// and never replaces another. The directory must exist, on a file system with hard links.
    ///
    /// # Errors
    /// As [`Cookie::load`], and [`CookieError::Create`] if the file cannot be written.
    pub fn load_or_generate(path: impl AsRef<Path>) -> Result<Self, CookieError> {
        let path = path.as_ref();
        match Self::load(path) {
            Err(CookieError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Self::create(path),
            loaded => loaded,
        }
    }

    /// Loads a cookie, generated or a passphrase, from a file that only its owner may access.
    ///
    /// One line break at the end of the file is not part of the cookie. Outside Unix, file modes are not looked at.
    ///
    /// # Errors
    /// [`CookieError::Read`] if the file cannot be read, [`CookieError::Exposed`] if other users may access it, and
    /// [`CookieError::Flawed`] if it holds no cookie or a weak one.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CookieError> {
        let path = path.as_ref();
        Self::read(path, |mode| Err(CookieError::Exposed { path: path.into(), mode }))
    }

    /// Loads a cookie like [`Cookie::load`], even from a file that other users may access, and then logs a warning.
    ///
    /// This is for secrets that a container runtime mounts with a mode that cannot be chosen. Elsewhere, fix the mode.
    ///
    /// # Errors
    /// As [`Cookie::load`], without [`CookieError::Exposed`].
    pub fn load_shared(path: impl AsRef<Path>) -> Result<Self, CookieError> {
        let path = path.as_ref();
        Self::read(path, |mode| {
            let mode = format_args!("{mode:o}");
            tracing::warn!(path = %path.display(), %mode, "users other than the owner may access the cookie file");
            Ok(())
        })
    }

    /// Takes a cookie, generated or a passphrase, from an environment variable.
    ///
    /// One line break at the end is not part of the cookie. Child processes inherit the variable, and some tools that
    /// report crashes print it: a file is the better place.
    ///
    /// # Errors
    /// [`CookieError::NotSet`] if there is no such variable, and [`CookieError::Flawed`] if it holds no cookie or a weak
    /// one.
    pub fn from_env(variable: impl AsRef<OsStr>) -> Result<Self, CookieError> {
        let name = variable.as_ref().to_string_lossy();
        let value = std::env::var_os(&variable).ok_or_else(|| CookieError::NotSet { variable: name.to_string() })?;
        let value = Zeroizing::new(value.into_encoded_bytes());
        Self::parse_line(&value, Accept::Strong).map_err(|flaw| flaw.found_in(format!("environment variable {name}")))
    }

    /// Takes a generated cookie as a text, for programs that keep it in a secret store.
    ///
    /// One line break at the end is not part of the cookie.
    ///
    /// # Errors
    /// [`CookieError::Flawed`] if the text is not a generated cookie.
    pub fn from_text(text: impl AsRef<str>) -> Result<Self, CookieError> {
        Self::parse_line(text.as_ref().as_bytes(), Accept::Generated).map_err(|flaw| flaw.found_in("the given text"))
    }

    /// Takes a passphrase as the cookie.
    ///
    /// Prefer [`Cookie::generate`]: see the type's documentation for what a passphrase gives away. Starting a node with a
    /// passphrase takes some 40 ms of processor time more, in debug builds up to a second.
    ///
    /// # Errors
    /// [`CookieError::Flawed`] if the passphrase has fewer than 16 bytes or fewer than 8 different ones, is a well-known
    /// default, or is no cookie text at all.
    pub fn from_passphrase(passphrase: impl AsRef<str>) -> Result<Self, CookieError> {
        Self::parse(passphrase.as_ref(), Accept::Strong).map_err(|flaw| flaw.found_in("the given passphrase"))
    }

    /// Takes a passphrase as the cookie however easy it is to guess, and logs a warning.
    ///
    /// Anyone who can send packets to a node can find a weak cookie and join the cluster. For tests and demonstrations
    /// only.
    ///
    /// # Errors
    /// [`CookieError::Flawed`] if the passphrase is empty or no cookie text at all.
    pub fn weak(passphrase: impl AsRef<str>) -> Result<Self, CookieError> {
        let text = passphrase.as_ref();
        let cookie = Self::parse(text, Accept::Weak).map_err(|flaw| flaw.found_in("the given passphrase"))?;
        if Self::parse(text, Accept::Strong).is_err() {
            tracing::warn!("the cookie is weak: whoever can reach a node can guess it and join the cluster");
        }
        Ok(cookie)
    }

    /// Returns the cookie as a text, to be written to a file or a secret store.
    ///
    /// The text is the secret. The caller sees to it that it is not logged, and the copy is not wiped from memory.
    pub fn reveal(&self) -> String {
        match &*self.0 {
            Secret::Generated(bytes) => generated_text(bytes).to_string(),
            Secret::Passphrase { text, .. } => text.to_string(),
        }
    }

    /// Returns whether deriving keys takes long enough to be kept off an async runtime.
    pub(crate) fn needs_stretching(&self) -> bool {
        matches!(*self.0, Secret::Passphrase { .. })
    }

    fn create(path: &Path) -> Result<Self, CookieError> {
        let cookie = Self::generate();
        match publish(path, &cookie) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "generated a cookie");
                Ok(cookie)
            }
            // Another process was faster. Its file is complete, because it came into place in one step like ours.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(source) => Err(CookieError::Create { path: path.into(), source }),
        }
    }

    /// Reads a file. If other users may access it, its mode is put to `exposed` first.
    fn read(path: &Path, exposed: impl FnOnce(u32) -> Result<(), CookieError>) -> Result<Self, CookieError> {
        let failed = |source| CookieError::Read { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        // The mode of the open file, not of whatever the path leads to a moment later.
        if let Some(mode) = access_of_others(&file).map_err(failed)? {
            exposed(mode)?;
        }
        // Large enough to never grow: growing would leave copies behind. Two bytes for a line break, and one that shows
        // that the cookie is too long.
        let limit = COOKIE_MAX + 3;
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 64));
        file.take(limit as u64).read_to_end(&mut bytes).map_err(failed)?;
        Self::parse_line(&bytes, Accept::Strong)
            .map_err(|flaw| flaw.found_in(format!("cookie file {}", path.display())))
    }

    fn parse_line(bytes: &[u8], accept: Accept) -> Result<Self, CookieFlaw> {
        let line = bytes.strip_suffix(b"\n").map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if line.len() > COOKIE_MAX {
            return Err(CookieFlaw::TooLong);
        }
        Self::parse(std::str::from_utf8(line).map_err(|_| CookieFlaw::NotUtf8)?, accept)
    }

    fn parse(text: &str, accept: Accept) -> Result<Self, CookieFlaw> {
        if text.is_empty() {
            return Err(CookieFlaw::Empty);
        }
        if text.len() > COOKIE_MAX {
            return Err(CookieFlaw::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(CookieFlaw::Control);
        }
        if text.trim() != text {
            return Err(CookieFlaw::Space);
        }
        // In any case of letters: a damaged cookie must not pass for a passphrase and start another cluster.
        if text.get(..GENERATED_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(GENERATED_PREFIX)) {
            let bytes = generated_bytes(text).ok_or(CookieFlaw::Damaged)?;
            return Ok(Self(Arc::new(Secret::Generated(bytes))));
        }
        match accept {
            Accept::Generated => return Err(CookieFlaw::NotGenerated),
            Accept::Strong => check_strength(text)?,
            Accept::Weak => {}
        }
        Ok(Self(Arc::new(Secret::Passphrase { text: Zeroizing::new(text.to_owned()), stretched: OnceLock::new() })))
    }

    pub(super) fn key_material(&self, cluster: &ClusterName) -> Zeroizing<[u8; 32]> {
        match &*self.0 {
            Secret::Generated(bytes) => bytes.clone(),
            Secret::Passphrase { text, stretched } => {
                let (cached_for, cached) = stretched.get_or_init(|| (cluster.clone(), stretch(text, cluster)));
                if cached_for == cluster { cached.clone() } else { stretch(text, cluster) }
            }
        }
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie([redacted])")
    }
}

/// Why there is no cookie. Nothing here tells anything about its text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CookieError {
    /// The file cannot be read; the source says why.
    #[error("cannot read cookie file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file cannot be created; the source says why. Calling again is safe.
    #[error("cannot create cookie file {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Users other than the owner may access the file. Its cookie was not used.
    #[error("cookie file {0} has mode {mode:o}, which lets other users in; run `chmod 600 {0}`", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The environment variable is not set.
    #[error("environment variable {variable} is not set; it should hold the cookie of the cluster")]
    NotSet {
        /// The variable.
        variable: String,
    },
    /// There is a text, but it cannot be the cookie.
    #[error("{place}: {flaw}")]
    Flawed {
        /// Where the text came from, in words.
        place: String,
        /// What is wrong with it.
        flaw: CookieFlaw,
    },
}

/// Why a text cannot be a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CookieFlaw {
    /// The text is empty.
    #[error("the cookie is empty")]
    Empty,
    /// The text has more than [`COOKIE_MAX`] bytes.
    #[error("the cookie has more than {COOKIE_MAX} bytes")]
    TooLong,
    /// The text is not UTF-8.
    #[error("the cookie is not UTF-8; use a generated cookie rather than raw bytes")]
    NotUtf8,
    /// The text holds a control character, perhaps a line break.
    #[error("the cookie holds a control character; it must be a single line")]
    Control,
    /// The text starts or ends with white space.
    #[error("the cookie starts or ends with white space")]
    Space,
    /// The text starts like a generated cookie, but is incomplete or altered.
    #[error("the generated cookie is incomplete or altered; copy it again, whole")]
    Damaged,
    /// The text is not a generated cookie.
    #[error("this is not a generated cookie; a passphrase goes to `Cookie::from_passphrase`")]
    NotGenerated,
    /// The passphrase has fewer than [`PASSPHRASE_MIN`] bytes.
    #[error("the passphrase has fewer than {PASSPHRASE_MIN} bytes, so it can be guessed; use a generated cookie")]
    Short,
    /// The passphrase has fewer than 8 different bytes.
    #[error(
        "the passphrase has fewer than {DISTINCT_MIN} different bytes, so it can be guessed; use a generated cookie"
    )]
    Monotonous,
    /// The passphrase is one that everybody tries first.
    #[error("the passphrase is a well-known one, so it can be guessed; use a generated cookie")]
    WellKnown,
}

impl CookieFlaw {
    fn found_in(self, place: impl Into<String>) -> CookieError {
        CookieError::Flawed { place: place.into(), flaw: self }
    }
}

/// Passphrases with fewer different bytes than this are refused.
const DISTINCT_MIN: usize = 8;

const GENERATED_PREFIX: &str = "pk1-";

/// The prefix and 256 bits in base32.
const GENERATED_BODY_LEN: usize = GENERATED_PREFIX.len() + 52;

const GENERATED_CHECK_LEN: usize = 6;

fn generated_text(bytes: &[u8; 32]) -> Zeroizing<String> {
    // Room for all of base32(SHA-256), so that the text never moves and leaves no copy.
    let mut text = Zeroizing::new(String::with_capacity(GENERATED_BODY_LEN + 52));
    text.push_str(GENERATED_PREFIX);
    BASE32_NOPAD.encode_append(bytes, &mut text);
    text.make_ascii_lowercase();
    let check = Sha256::digest(text.as_bytes());
    BASE32_NOPAD.encode_append(&check, &mut text);
    text.make_ascii_lowercase();
    text.truncate(GENERATED_BODY_LEN + GENERATED_CHECK_LEN);
    text
}

fn generated_bytes(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let body = text.get(GENERATED_PREFIX.len()..GENERATED_BODY_LEN)?;
    let body = Zeroizing::new(body.to_ascii_uppercase());
    let mut bytes = Zeroizing::new([0; 32]);
    BASE32_NOPAD.decode_mut(body.as_bytes(), &mut bytes[..]).ok()?;
    // One comparison finds wrong check characters, a wrong length, capitals, and stray bits at the end.
    (*generated_text(&bytes) == text).then_some(bytes)
}

fn check_strength(passphrase: &str) -> Result<(), CookieFlaw> {
    if passphrase.len() < PASSPHRASE_MIN {
        return Err(CookieFlaw::Short);
    }
    let mut seen = [false; 256];
    passphrase.bytes().for_each(|byte| seen[usize::from(byte)] = true);
    if seen.iter().filter(|&&seen| seen).count() < DISTINCT_MIN {
        return Err(CookieFlaw::Monotonous);
    }
    let plain: Zeroizing<String> = Zeroizing::new(
        passphrase.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect(),
    );
    if WELL_KNOWN.contains(&plain.as_str()) { Err(CookieFlaw::WellKnown) } else { Ok(()) }
}

/// Passphrases that are long enough and still the first ones to be tried, without case and punctuation.
const WELL_KNOWN: &[&str] = &[
    "0123456789abcdef",
    "01234567890123456789",
    "1234567890123456",
    "12345678901234567890",
    "1234567890abcdef",
    "abcdefghijklmnop",
    "abcdefghijklmnopqrstuvwxyz",
    "changemechangeme",
    "changethiscookie",
    "changethissecret",
    "clustercookiesecret",
    "correcthorsebatterystaple",
    "distributecookie",
    "erlangcookiesecret",
    "insertcookiehere",
    "iloveyouiloveyou",
    "mysecretcookie",
    "mysecretpassphrase",
    "mysecretpassword",
    "mysupersecretcookie",
    "mysupersecretpassword",
    "password12345678",
    "password1234567890",
    "passwordpassword",
    "placeholdercookie",
    "pleasechangeme",
    "pleasechangethis",
    "qwertyuiopasdfgh",
    "qwertyuiopasdfghjkl",
    "qwertyuiopasdfghjklzxcvbnm",
    "rabbitmqerlangcookie",
    "replacethiscookie",
    "replacewithyourcookie",
    "secretcookiesecret",
    "supersecretcookie",
    "supersecretpassphrase",
    "supersecretpassword",
    "thequickbrownfox",
    "thequickbrownfoxjumpsoverthelazydog",
    "thisisasecret",
    "thisisasecretcookie",
    "thisisnotasecret",
    "todochangethiscookie",
    "yourcookiehere",
    "yoursecretcookie",
    "yoursecretcookiehere",
    "yoursecretpassword",
];

/// Makes guessing passphrases slow: Argon2id (RFC 9106), salted with the cluster so that one table does not serve all.
fn stretch(passphrase: &str, cluster: &ClusterName) -> Zeroizing<[u8; 32]> {
    // The least that the OWASP Password Storage Cheat Sheet recommends. More would make debug builds crawl for little:
    // what protects a cluster is a cookie that cannot be guessed.
    let params = Params::new(19_456, 2, 1, Some(32)).expect("the parameters are within Argon2's limits");
    let salt = Sha256::new().chain_update(b"distribute/v1/argon2id-salt\0").chain_update(cluster.as_str()).finalize();
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), &salt[..16], &mut key[..])
        .expect("the lengths are within Argon2's limits, and there are 19 MiB of memory");
    key
}

/// Writes the cookie next to its final place and links it there, which fails if another file took the place.
fn publish(path: &Path, cookie: &Cookie) -> io::Result<()> {
    let file_name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut suffix = [0; 8];
    fill_random(&mut suffix);
    let mut draft_name = OsString::from(".");
    draft_name.push(file_name);
    draft_name.push(format!(".{}", HEXLOWER.encode(&suffix)));
    let draft = path.with_file_name(draft_name);

    let text = Zeroizing::new(cookie.reveal());
    let linked = write_private(&draft, text.as_bytes()).and_then(|()| fs::hard_link(&draft, path));
    let removed = fs::remove_file(&draft);
    linked.and(removed)?;
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        // So that a power cut does not take the name back. Not every file system can do this, and none has to.
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
    }
    Ok(())
}

fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text)?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// Returns the permission bits of a file if they let its group or others do anything.
#[cfg(unix)]
pub(super) fn access_of_others(file: &File) -> io::Result<Option<u32>> {
    use std::os::unix::fs::PermissionsExt;
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

#[cfg(not(unix))]
pub(super) fn access_of_others(_: &File) -> io::Result<Option<u32>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::keys::{ClusterKeys, ProofInput, Role};
    use super::*;
    use crate::id::NodeName;

    /// The bytes 0 to 31.
    const GENERATED: &str = "pk1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypqeeggyf";

    fn keys(cookie: &Cookie, cluster: &str) -> ClusterKeys {
        ClusterKeys::derive(cookie, &ClusterName::parse(cluster).unwrap())
    }

    #[track_caller]
    fn check(got: Result<Cookie, CookieError>, expect: Result<(), CookieFlaw>) {
        match (got, expect) {
            (Ok(_), Ok(())) => {}
            (Err(CookieError::Flawed { flaw, .. }), Err(expect)) => assert_eq!(flaw, expect),
            (got, expect) => panic!("{got:?} is not {expect:?}"),
        }
    }

    #[test]
    fn a_passphrase_is_stretched_for_each_cluster() {
        let cookie = Cookie::weak("x").unwrap();
        let (first, second) = (keys(&cookie, "a"), keys(&cookie, "b"));
        assert_ne!(first.ca_seed, second.ca_seed);
        assert_eq!(keys(&cookie, "a").ca_seed, first.ca_seed);
        assert_eq!(keys(&Cookie::weak("x").unwrap(), "b").ca_seed, second.ca_seed);
        assert_ne!(stretch("x", &ClusterName::parse("a").unwrap()), stretch("x", &ClusterName::parse("b").unwrap()));
    }

    #[test]
    fn generated_cookies_differ_and_survive_their_text() {
        let (one, two) = (Cookie::generate(), Cookie::generate());
        assert_ne!(one.reveal(), two.reveal());
        assert_eq!(one.reveal().len(), 62);
        let again = Cookie::from_text(one.reveal()).unwrap();
        assert_eq!(keys(&one, "default").ca_seed, keys(&again, "default").ca_seed);
        // It is the same cookie wherever it is read.
        let typed = Cookie::from_passphrase(one.reveal()).unwrap();
        assert_eq!(keys(&one, "default").ca_seed, keys(&typed, "default").ca_seed);
    }

    #[test]
    fn any_changed_or_missing_character_of_a_generated_cookie_is_noticed() {
        for at in GENERATED_PREFIX.len()..GENERATED.len() {
            let mut bytes = GENERATED.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'b' { b'c' } else { b'b' };
            let altered = String::from_utf8(bytes).unwrap();
            check(Cookie::from_text(&altered), Err(CookieFlaw::Damaged));
            check(Cookie::from_passphrase(&altered), Err(CookieFlaw::Damaged));
            check(Cookie::weak(&GENERATED[..at]), Err(CookieFlaw::Damaged));
        }
        check(Cookie::from_text(format!("{GENERATED}a")), Err(CookieFlaw::Damaged));
        check(Cookie::from_text(GENERATED.to_uppercase()), Err(CookieFlaw::Damaged));
        // Stray bits behind the 256th.
        check(Cookie::from_text(GENERATED.replace("dypq", "dypr")), Err(CookieFlaw::Damaged));
        check(Cookie::from_text(GENERATED.replace("dypq", "dyp1")), Err(CookieFlaw::Damaged));
    }

    #[test]
    fn a_text_that_is_not_generated_is_no_cookie_text() {
        check(Cookie::from_text("a long enough passphrase"), Err(CookieFlaw::NotGenerated));
        check(Cookie::from_text(format!("{GENERATED}\n")), Ok(()));
        check(Cookie::from_text(format!("{GENERATED}\n\n")), Err(CookieFlaw::Control));
    }

    #[test]
    fn passphrases_on_both_sides_of_each_limit() {
        check(Cookie::from_passphrase("abcdefgh1234567"), Err(CookieFlaw::Short));
        check(Cookie::from_passphrase("abcdefgh12345678"), Ok(()));
        check(Cookie::from_passphrase("abcdefgabcdefgabcdefg"), Err(CookieFlaw::Monotonous));
        check(Cookie::from_passphrase("abcdefghabcdefghabcdefgh"), Ok(()));
        let longest = "abcdefgh".repeat(128);
        check(Cookie::from_passphrase(&longest), Ok(()));
        check(Cookie::from_passphrase(longest + "a"), Err(CookieFlaw::TooLong));
        check(Cookie::from_passphrase(""), Err(CookieFlaw::Empty));
        check(Cookie::weak(""), Err(CookieFlaw::Empty));
        check(Cookie::weak("x"), Ok(()));
        check(Cookie::weak("y".repeat(1025)), Err(CookieFlaw::TooLong));
    }

    #[test]
    fn well_known_passphrases_are_refused_however_they_are_spelled() {
        check(Cookie::from_passphrase("correct horse battery staple"), Err(CookieFlaw::WellKnown));
        check(Cookie::from_passphrase("Change-Me_Change-Me"), Err(CookieFlaw::WellKnown));
        check(Cookie::from_passphrase("correct horse battery stapler"), Ok(()));
        check(Cookie::weak("correct horse battery staple"), Ok(()));
        for known in WELL_KNOWN {
            let plain = known.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            assert!(plain, "{known} is compared with a text without case and punctuation");
        }
    }

    #[test]
    fn control_characters_and_outer_space_are_refused() {
        for bad in ["abcdefgh\t12345678", "abcdefgh\x00123456789", "abcdefgh\u{7f}12345678", "abcdefgh\u{85}12345678"] {
            check(Cookie::from_passphrase(bad), Err(CookieFlaw::Control));
            check(Cookie::weak(bad), Err(CookieFlaw::Control));
        }
        check(Cookie::from_passphrase("abcdefgh12345678\n"), Err(CookieFlaw::Control));
        for bad in [" abcdefgh12345678", "abcdefgh12345678 ", "abcdefgh12345678\u{a0}"] {
            check(Cookie::from_passphrase(bad), Err(CookieFlaw::Space));
        }
        check(Cookie::from_passphrase("abcd efgh 1234 5678"), Ok(()));
    }

    #[test]
    fn unicode_is_not_normalised() {
        let composed = Cookie::weak("caf\u{e9}").unwrap();
        let decomposed = Cookie::weak("cafe\u{301}").unwrap();
        assert_ne!(keys(&composed, "default").ca_seed, keys(&decomposed, "default").ca_seed);
    }

    #[test]
    fn debug_output_and_errors_hide_secrets() {
        let cookie = Cookie::from_text(GENERATED).unwrap();
        let keys = keys(&cookie, "default");
        assert_eq!(format!("{cookie:?} {cookie:#?}"), "Cookie([redacted]) Cookie([redacted])");
        assert_eq!(format!("{keys:?}"), "ClusterKeys([redacted])");
        assert_eq!(format!("{:?}", keys.hello), "HelloKey([redacted])");
        let (name, own_spki, peer_spki) = (&NodeName::parse("a@host").unwrap(), &[0; 32], &[0; 32]);
        let input = ProofInput { exporter: &[77; 32], role: Role::Dialler, name, incarnation: 1, own_spki, peer_spki };
        assert!(!format!("{input:?}").contains("77"));
        let error = Cookie::from_passphrase("hunter2").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let error = Cookie::from_text(&GENERATED[..60]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&GENERATED[4..10]));
    }

    #[test]
    fn a_missing_variable_is_said_by_name() {
        let error = Cookie::from_env("DISTRIBUTE_NO_SUCH_VARIABLE").unwrap_err();
        assert!(error.to_string().contains("DISTRIBUTE_NO_SUCH_VARIABLE"), "{error}");
        // Cargo sets this one; it is no cookie.
        check(Cookie::from_env("CARGO_PKG_NAME"), Err(CookieFlaw::Short));
    }

    #[test]
    fn one_line_break_is_not_part_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let load = |text: &[u8]| {
            let path = dir.path().join("cookie");
            let _ = fs::remove_file(&path);
            write_raw(&path, text, 0o600);
            Cookie::load(&path)
        };
        let plain = keys(&Cookie::from_text(GENERATED).unwrap(), "default");
        for end in ["", "\n", "\r\n"] {
            let cookie = load(format!("{GENERATED}{end}").as_bytes()).unwrap();
            assert_eq!(keys(&cookie, "default").ca_seed, plain.ca_seed, "{end:?}");
        }
        for end in ["\n\n", "\r", "\n\r", "\r\r\n"] {
            check(load(format!("{GENERATED}{end}").as_bytes()), Err(CookieFlaw::Control));
        }
        check(load(b""), Err(CookieFlaw::Empty));
        check(load(b"\n"), Err(CookieFlaw::Empty));
        check(load(b"\xffbcdefgh12345678"), Err(CookieFlaw::NotUtf8));
        check(load(b"hunter2"), Err(CookieFlaw::Short));
        let longest = "abcdefgh".repeat(128);
        check(load(format!("{longest}\r\n").as_bytes()), Ok(()));
        check(load(format!("{longest}a").as_bytes()), Err(CookieFlaw::TooLong));
        check(load(format!("{longest}\r\n\n").as_bytes()), Err(CookieFlaw::TooLong));
        check(load(&[b'a'; 1 << 20]), Err(CookieFlaw::TooLong));
    }

    #[test]
    fn a_missing_or_unreadable_file_is_said_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cookie");
        let error = Cookie::load(&path).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(matches!(Cookie::load(dir.path()), Err(CookieError::Read { .. } | CookieError::Exposed { .. })));
        let nowhere = dir.path().join("missing/cookie");
        assert!(matches!(Cookie::load_or_generate(nowhere), Err(CookieError::Create { .. })));
    }

    #[test]
    fn the_generated_file_is_found_again_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cookie");
        let first = Cookie::load_or_generate(&path).unwrap();
        let second = Cookie::load_or_generate(&path).unwrap();
        assert_eq!(first.reveal(), second.reveal());
        assert_eq!(fs::read_to_string(&path).unwrap(), first.reveal() + "\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_flawed_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cookie");
        write_raw(&path, b"pk1-half", 0o600);
        check(Cookie::load_or_generate(&path), Err(CookieFlaw::Damaged));
        assert_eq!(fs::read(&path).unwrap(), b"pk1-half");
    }

    #[test]
    fn those_who_race_for_the_file_agree() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("cookie");
            let start = std::sync::Barrier::new(8);
            let cookies: Vec<String> = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            Cookie::load_or_generate(&path).unwrap().reveal()
                        })
                    })
                    .collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            assert!(cookies.iter().all(|cookie| *cookie == cookies[0]));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    /// The one that checked first and lost the race takes the winner's cookie.
    #[test]
    fn who_loses_the_race_reads_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cookie");
        let winner = Cookie::create(&path).unwrap();
        let loser = Cookie::create(&path).unwrap();
        assert_eq!(winner.reveal(), loser.reveal());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn files_are_private_or_refused_unless_shared_on_purpose() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cookie");
        let cookie = Cookie::load_or_generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);

        for exposed in [0o644, 0o640, 0o604, 0o444, 0o620, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(exposed)).unwrap();
            for refused in [Cookie::load(&path), Cookie::load_or_generate(&path)] {
                let error = refused.unwrap_err();
                assert!(matches!(error, CookieError::Exposed { mode, .. } if mode == exposed), "{error}");
                assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
            }
            assert_eq!(Cookie::load_shared(&path).unwrap().reveal(), cookie.reveal());
        }
        for private in [0o600, 0o400, 0o700] {
            fs::set_permissions(&path, fs::Permissions::from_mode(private)).unwrap();
            assert_eq!(Cookie::load(&path).unwrap().reveal(), cookie.reveal());
        }
    }

    fn write_raw(path: &Path, bytes: &[u8], mode: u32) {
        fs::write(path, bytes).unwrap();
        #[cfg(unix)]
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        #[cfg(not(unix))]
        let _ = mode;
    }
}
