//! Certificates of an own PKI, as they are kept: read here, understood in `transport/tls/pki.rs`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::cookie::access_of_others;

/// The most certificates that a node presents: its own, and the intermediate ones behind it.
pub(crate) const CERTIFICATES_MAX: usize = 4;

/// The largest file of certificates or keys, in bytes.
const PEM_MAX: u64 = 1 << 20;

/// The largest list of revoked certificates, in bytes.
const REVOCATIONS_MAX: u64 = 16 << 20;

/// How a certificate of a PKI names the node that it is for. Checked for both ends of each link.
///
/// Whoever holds the key of a certificate may come as any node that it is for, in place of that node as well. Only
/// [`SanUri`](Self::SanUri) makes that one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NamePolicy {
    /// The host of the node's name is among the DNS names or IP addresses of the certificate: each node of a host may bear
    /// any name there. A wildcard stands for the hosts that it matches.
    #[default]
    SanHost,
    /// One of the certificate's URIs is `distribute://<cluster>/<name>`, with the full name of the node and its port, as in
    /// `distribute://default/shop@10.0.0.2:4370`. What is not ASCII in a name is percent-encoded.
    SanUri,
    /// Any certificate of the authorities is for any node. The cookie, or a list of allowed keys, is then all that tells
    /// members from others.
    AnyInCa,
}

/// All parts of a PKI identity, as they were given.
#[derive(Clone)]
pub(crate) struct Pem {
    pub(crate) authorities: Piece,
    pub(crate) certificate: Piece,
    pub(crate) key: Piece,
    pub(crate) revocations: Vec<Piece>,
    pub(crate) names: NamePolicy,
    /// The key's file may be open to other users.
    is_shared: bool,
}

/// One text, and where it came from. Clones share the text, which is wiped with the last of them.
#[derive(Clone)]
pub(crate) struct Piece {
    origin: Origin,
    bytes: Arc<Zeroizing<Vec<u8>>>,
}

#[derive(Clone)]
enum Origin {
    File(PathBuf),
    Given(&'static str),
}

impl Pem {
    pub(super) fn read(
        authorities: &Path,
        certificate: &Path,
        key: &Path,
        is_shared: bool,
    ) -> Result<Self, IdentityError> {
        Ok(Self {
            authorities: Piece::read(authorities, PEM_MAX)?,
            certificate: Piece::read(certificate, PEM_MAX)?,
            key: Piece::read_key(key, is_shared)?,
            revocations: Vec::new(),
            names: NamePolicy::default(),
            is_shared,
        })
    }

    pub(super) fn given(authorities: &[u8], certificate: &[u8], key: &[u8]) -> Self {
        Self {
            authorities: Piece::given("the given authorities", authorities),
            certificate: Piece::given("the given certificate", certificate),
            key: Piece::given("the given key", key),
            revocations: Vec::new(),
            names: NamePolicy::default(),
            is_shared: false,
        }
    }

    /// Reads the same files again. Lists of revocations that came from no file stay as they are.
    ///
    /// # Errors
    /// As at first, and [`IdentityError::NoFiles`] if the certificates did not come from files.
    pub(crate) fn read_again(&self) -> Result<Self, IdentityError> {
        let (Origin::File(authorities), Origin::File(certificate), Origin::File(key)) =
            (&self.authorities.origin, &self.certificate.origin, &self.key.origin)
        else {
            return Err(IdentityError::NoFiles);
        };
        let again = |piece: &Piece| match &piece.origin {
            Origin::File(path) => Piece::read_revocations(path),
            Origin::Given(_) => Ok(piece.clone()),
        };
        Ok(Self {
            revocations: self.revocations.iter().map(again).collect::<Result<_, _>>()?,
            names: self.names,
            ..Self::read(authorities, certificate, key, self.is_shared)?
        })
    }

    /// The same without the private key: enough to read the files again.
    pub(crate) fn without_key(&self) -> Self {
        let key = Piece { origin: self.key.origin.clone(), bytes: Arc::default() };
        Self { key, ..self.clone() }
    }
}

/// Nothing of the contents.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem")
            .field("authorities", &self.authorities.place())
            .field("certificate", &self.certificate.place())
            .field("key", &self.key.place())
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Piece {
    pub(super) fn given(what: &'static str, bytes: &[u8]) -> Self {
        Self { origin: Origin::Given(what), bytes: Arc::new(Zeroizing::new(bytes.to_vec())) }
    }

    pub(super) fn read_revocations(path: &Path) -> Result<Self, IdentityError> {
        Self::read(path, REVOCATIONS_MAX)
    }

    fn read(path: &Path, max: u64) -> Result<Self, IdentityError> {
        let file = File::open(path).map_err(|source| IdentityError::Read { path: path.into(), source })?;
        Self::take(path, file, max)
    }

    fn read_key(path: &Path, is_shared: bool) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Read { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        // The mode of the open file, not of whatever the path leads to a moment later.
        if let Some(mode) = access_of_others(&file).map_err(failed)? {
            if !is_shared {
                return Err(IdentityError::Exposed { path: path.into(), mode });
            }
            let mode = format_args!("{mode:o}");
            tracing::warn!(path = %path.display(), %mode, "users other than the owner may access the private key");
        }
        Self::take(path, file, PEM_MAX)
    }

    fn take(path: &Path, file: File, max: u64) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Read { path: path.into(), source };
        let size = file.metadata().map_err(failed)?.len();
        // With room for all of it and more, because growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(size.min(max) as usize + 64));
        file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > max {
            return Err(IdentityError::TooLarge { path: path.into(), max });
        }
        Ok(Self { origin: Origin::File(path.into()), bytes: Arc::new(bytes) })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where it came from, in words.
    pub(crate) fn place(&self) -> String {
        match &self.origin {
            Origin::File(path) => path.display().to_string(),
            Origin::Given(what) => (*what).to_owned(),
        }
    }

    /// Says that this piece is at fault.
    pub(crate) fn flawed(&self, flaw: IdentityFlaw) -> IdentityError {
        IdentityError::Flawed { place: self.place(), flaw }
    }
}

/// Why a node has no identity. Nothing here tells anything about keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file cannot be read; the source says why.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is too large to hold what it should.
    #[error("{} has more than {max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        max: u64,
    },
    /// Users other than the owner may access the private key. It was not used.
    #[error("key file {0} has mode {mode:o}, which lets other users in; run `chmod 600 {0}`", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// What was read cannot be used.
    #[error("{place}: {flaw}")]
    Flawed {
        /// The file, or what was given in place of one.
        place: String,
        /// What is wrong with it.
        flaw: IdentityFlaw,
    },
    /// Certificates alone, without anything that tells members of the cluster from other holders of certificates.
    #[error(
        "certificates alone would let in whoever the authority signed: add a cookie (`with_cookie`), names as URIs \
         (`NamePolicy::SanUri`), or a list of allowed nodes (`Builder::allow`; of keys, for `NamePolicy::AnyInCa`)"
    )]
    TooOpen,
    /// The identity did not come from files, so there is nothing to read again.
    #[error("the certificates did not come from files")]
    NoFiles,
    /// The TLS library refused what it was given, or could not make a certificate.
    #[error("cannot make the node's TLS identity: {0}")]
    Tls(String),
}

/// What is wrong with certificates, a key, or a list of revocations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityFlaw {
    /// It is not PEM.
    #[error("this is not PEM")]
    NotPem,
    /// There is no certificate in it.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// There are more certificates than a node may present, or authorities than it may trust.
    #[error("there are more than {max} certificates in it")]
    TooMany {
        /// Those allowed.
        max: usize,
    },
    /// There is no private key in it.
    #[error("there is no private key in it; it must be PKCS#8, PKCS#1 or SEC1, and not encrypted")]
    NoKey,
    /// A certificate cannot be read.
    #[error("a certificate cannot be read; it must be X.509 version 3")]
    Malformed,
    /// The private key is of a kind that is not supported.
    #[error("the private key is not an Ed25519, ECDSA or RSA key that the TLS provider supports")]
    KeyKind,
    /// The private key is not that of the certificate.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// What is given as an authority is not one.
    #[error("a certificate in it is not that of an authority; it would be trusted as one")]
    NotAuthority,
    /// The node's certificate is that of an authority.
    #[error("the node's certificate is that of an authority; sign one for the node with it")]
    IsAuthority,
    /// None of the authorities signed the node's certificate.
    #[error("none of the given authorities signed the node's certificate, or an intermediate certificate is missing")]
    UnknownIssuer,
    /// The node's certificate, or an intermediate one, has expired.
    #[error("the certificate has expired, or an intermediate one has")]
    Expired,
    /// The node's certificate, or an intermediate one, is not valid yet.
    #[error("the certificate is not valid yet, or an intermediate one is not")]
    NotYetValid,
    /// The node's certificate, or an intermediate one, was revoked.
    #[error("the certificate was revoked")]
    Revoked,
    /// The certificate is not for both servers and clients.
    #[error("the certificate is not for servers and clients: it needs both extended key usages, or none")]
    Usages,
    /// The certificate does not name the node.
    #[error("the certificate is not for this node: it needs {wanted} as a subject alternative name")]
    Name {
        /// The name that is missing.
        wanted: String,
    },
    /// A list of revocations cannot be read.
    #[error("the list of revocations cannot be read; it must be a complete, direct X.509 version 2 list")]
    Revocations,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The parts of an identity in files.
    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["ca", "cert", "key"] {
                fs::write(dir.path().join(name), name).unwrap();
            }
            let files = Self(dir);
            files.set_mode(0o600);
            files
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn set_mode(&self, mode: u32) {
            #[cfg(unix)]
            fs::set_permissions(self.at("key"), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            #[cfg(not(unix))]
            let _ = mode;
        }

        fn read(&self, is_shared: bool) -> Result<Pem, IdentityError> {
            Pem::read(&self.at("ca"), &self.at("cert"), &self.at("key"), is_shared)
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_key_is_private_or_refused_unless_shared_on_purpose() {
        let files = Files::new();
        for exposed in [0o644, 0o640, 0o604, 0o444, 0o620, 0o602] {
            files.set_mode(exposed);
            let error = files.read(false).unwrap_err();
            assert!(matches!(error, IdentityError::Exposed { mode, .. } if mode == exposed), "{error}");
            assert!(error.to_string().contains(&format!("chmod 600 {}", files.at("key").display())), "{error}");
            assert!(files.read(true).is_ok());
        }
        for private in [0o600, 0o400, 0o700] {
            files.set_mode(private);
            assert_eq!(files.read(false).unwrap().key.bytes(), b"key");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_too_large_is_said_by_name() {
        let files = Files::new();
        for name in ["ca", "cert", "key"] {
            let path = files.at(name);
            fs::remove_file(&path).unwrap();
            let error = files.read(false).unwrap_err();
            assert!(matches!(&error, IdentityError::Read { path: told, .. } if *told == path), "{error}");
            fs::write(&path, vec![b'x'; PEM_MAX as usize + 1]).unwrap();
            files.set_mode(0o600);
            let error = files.read(false).unwrap_err();
            assert!(matches!(&error, IdentityError::TooLarge { path: told, .. } if *told == path), "{error}");
            fs::write(&path, vec![b'x'; PEM_MAX as usize]).unwrap();
            assert!(files.read(false).is_ok());
        }
    }

    #[test]
    fn the_same_files_are_read_again_with_what_is_in_them_now() {
        let files = Files::new();
        let mut pem = files.read(false).unwrap();
        pem.names = NamePolicy::SanUri;
        fs::write(files.at("crl"), "old").unwrap();
        pem.revocations.push(Piece::read_revocations(&files.at("crl")).unwrap());
        pem.revocations.push(Piece::given("the given revocation list", b"fixed"));
        let kept = pem.without_key();
        assert_eq!((kept.key.bytes(), kept.certificate.bytes()), (&b""[..], &b"cert"[..]));

        for name in ["ca", "cert", "key", "crl"] {
            fs::write(files.at(name), format!("new {name}")).unwrap();
        }
        let again = kept.read_again().unwrap();
        assert_eq!(again.authorities.bytes(), b"new ca");
        assert_eq!(again.certificate.bytes(), b"new cert");
        assert_eq!(again.key.bytes(), b"new key");
        assert_eq!(again.revocations[0].bytes(), b"new crl");
        assert_eq!(again.revocations[1].bytes(), b"fixed");
        assert_eq!(again.names, NamePolicy::SanUri);
        assert!(matches!(Pem::given(b"", b"", b"").read_again(), Err(IdentityError::NoFiles)));
    }

    #[test]
    fn debug_output_shows_where_and_not_what() {
        let text = format!("{:?}", Pem::given(b"one", b"two", b"three"));
        assert!(text.contains("the given key"), "{text}");
        assert!(!["one", "two", "three"].iter().any(|secret| text.contains(secret)), "{text}");
    }
}
