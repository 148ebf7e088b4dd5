//! Who a node is, and whom it takes for a member: by a cookie, by certificates of an own PKI, or by both.
//!
//! ```text
//!  generated cookie ─ 32 random bytes ─┐
//!                                      ├─ HKDF ─┬─ seed of the certificate authority ─ signs every node's certificate
//!  passphrase ─ Argon2id(cluster) ─────┘    │   └─ key of the HELLO proofs
//!                                      cluster name
//!
//!  PEM files ─ authorities, certificate, private key, revocation lists
//! ```
//!
//! Only plain values live here; certificates are made, read and checked in `transport/tls.rs`.

mod allowed;
mod cookie;
mod keys;
mod pem;

use std::fmt;
use std::path::Path;

pub use self::allowed::{ALLOWED_MAX, Allowed, KeyHash, KeyHashError};
pub use self::cookie::{COOKIE_MAX, Cookie, CookieError, CookieFlaw, PASSPHRASE_MIN};
pub(crate) use self::keys::{ClusterKeys, HelloKey, ProofInput, Role, certificate_name, fill_random};
pub(crate) use self::pem::{CERTIFICATES_MAX, Pem, Piece};
pub use self::pem::{IdentityError, IdentityFlaw, NamePolicy};

/// What a node shows to be taken for a member, and by what it takes others for members.
///
/// It is one of three, and all nodes of a cluster must have the same:
/// - a cookie ([`Identity::cookie`]), which closes the cluster and does not divide it: each holder may bear any name;
/// - certificates of your own PKI ([`Identity::from_pem`]), which bind each node to its name;
/// - certificates and, as a second factor, a cookie ([`Identity::with_cookie`]).
///
/// A corporate authority signs more than one cluster. So certificates alone are accepted only where they name the node
/// ([`NamePolicy::SanUri`]), or with a list of those that are allowed ([`Builder::allow`](crate::Builder::allow)).
///
/// ```no_run
/// use distribute::{Cookie, Identity, NamePolicy, Node};
///
/// # async fn start() -> Result<(), distribute::Error> {
/// let identity = Identity::from_pem("ca.pem", "shop.pem", "shop.key")?.names(NamePolicy::SanUri);
/// let shop = Node::builder("shop@10.0.0.2").identity(identity).start().await?;
/// # Ok(()) }
/// ```
///
/// # Certificates
/// X.509 version 3, for servers and for clients (or without extended key usages), with the node's names as subject
/// alternative names, and valid now: unlike those of a cookie they are checked against the clock. The key is Ed25519, ECDSA
/// (P-256, P-384) or RSA (from 2048 bits). Behind the node's own certificate may stand up to three intermediate ones. All
/// of it is checked by [`Builder::start`](crate::Builder::start), as a peer would check it.
///
/// Keys and cookies are wiped from memory when they are no longer needed, but for the copy that the TLS library works with.
#[derive(Clone)]
pub struct Identity {
    pub(crate) cookie: Option<Cookie>,
    pub(crate) pem: Option<Pem>,
}

impl Identity {
    /// Takes the cookie that all nodes of the cluster share.
    pub fn cookie(cookie: Cookie) -> Self {
        Self { cookie: Some(cookie), pem: None }
    }

    /// Reads certificates of a PKI from PEM files: the authorities whose nodes are members, this node's certificate with the
    /// intermediate ones behind it, and its private key. Their contents are checked when the node starts.
    ///
    /// # Errors
    /// [`IdentityError::Read`] if a file cannot be read, [`IdentityError::TooLarge`] if it has more than 1 MiB, and
    /// [`IdentityError::Exposed`] if users other than the owner may access the key. Outside Unix, file modes are not looked
    /// at.
    pub fn from_pem(
        authorities: impl AsRef<Path>,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, IdentityError> {
        let pem = Pem::read(authorities.as_ref(), certificate.as_ref(), key.as_ref(), false)?;
        Ok(Self { cookie: None, pem: Some(pem) })
    }

    /// Reads certificates like [`Identity::from_pem`], even if users other than the owner may access the key, and then logs
    /// a warning.
    ///
    /// This is for secrets that a container runtime mounts with a mode that cannot be chosen. Elsewhere, fix the mode.
    ///
    /// # Errors
    /// As [`Identity::from_pem`], without [`IdentityError::Exposed`].
    pub fn from_pem_shared(
        authorities: impl AsRef<Path>,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, IdentityError> {
        let pem = Pem::read(authorities.as_ref(), certificate.as_ref(), key.as_ref(), true)?;
        Ok(Self { cookie: None, pem: Some(pem) })
    }

    /// Takes certificates of a PKI as PEM texts, for programs that keep them elsewhere than in files. Their contents are
    /// checked when the node starts.
    pub fn from_pem_bytes(authorities: impl AsRef<[u8]>, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        let pem = Pem::given(authorities.as_ref(), certificate.as_ref(), key.as_ref());
        Self { cookie: None, pem: Some(pem) }
    }

    /// Demands a cookie beside the certificates: a second factor, which closes the cluster to other holders of certificates.
    /// Without certificates it replaces the cookie.
    pub fn with_cookie(mut self, cookie: Cookie) -> Self {
        self.cookie = Some(cookie);
        self
    }

    /// Sets how certificates name nodes; the default is [`NamePolicy::SanHost`]. Without certificates it has no effect.
    pub fn names(mut self, policy: NamePolicy) -> Self {
        if let Some(pem) = &mut self.pem {
            pem.names = policy;
        }
        self
    }

    /// Adds a list of revoked certificates from a file, PEM or DER, of at most 16 MiB. Without certificates it has no effect.
    ///
    /// A list speaks for the authority that signed it, also for those on the way to a node. Authorities without a list
    /// revoke nothing. A list that is due for renewal still counts.
    ///
    /// # Errors
    /// [`IdentityError::Read`] if the file cannot be read, and [`IdentityError::TooLarge`].
    pub fn crl_file(mut self, path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        if let Some(pem) = &mut self.pem {
            pem.revocations.push(Piece::read_revocations(path.as_ref())?);
        }
        Ok(self)
    }

    /// Adds a list of revoked certificates, PEM or DER; see [`Identity::crl_file`].
    pub fn crl_pem(mut self, list: impl AsRef<[u8]>) -> Self {
        if let Some(pem) = &mut self.pem {
            pem.revocations.push(Piece::given("the given revocation list", list.as_ref()));
        }
        self
    }
}

impl From<Cookie> for Identity {
    fn from(cookie: Cookie) -> Self {
        Self::cookie(cookie)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("cookie", &self.cookie).field("pem", &self.pem).finish()
    }
}

/// Why two nodes do not recognise each other.
///
/// The same values report both directions: this node refused the other, or the other refused this one. A refusal by the
/// other side is a hint, because somebody on the network path can forge it before the connection is up; an attacker can
/// prevent a connection this way, and cannot gain one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The nodes hold different cookies, or the same cookie under different cluster names, which looks the same.
    #[error(
        "the two nodes hold different cookies: copy the cluster's cookie file to this host, and check the cluster name"
    )]
    WrongCookie,
    /// The certificate comes from an authority that the other node does not know, or one node has a cookie and the other a
    /// PKI.
    #[error("a node's certificate comes from an authority that the other does not trust")]
    UnknownIssuer,
    /// The dialling side presented no certificate, so it is not a node of a cluster.
    #[error("the dialling side presented no certificate, so it is not a node")]
    NoCertificate,
    /// The certificate is malformed, or of a kind that nodes do not present: one that signed itself, one of an authority,
    /// one that is not for servers and clients, or one whose key the node does not hold.
    #[error("a certificate is not of the kind that nodes present")]
    Certificate,
    /// The node that answered is not the one that was dialled, or it calls itself otherwise than its certificate does.
    #[error("a node's certificate is for another name than the expected one: check the address of the node")]
    NameMismatch,
    /// The far side does not speak this version of the protocol, or something else than a node listens there; or one node
    /// has a cookie, and the other a PKI with keys of another kind than cookies make.
    #[error("the far side does not speak this version of the protocol")]
    Protocol,
    /// A certificate is out of date, or not valid yet.
    #[error("a certificate has expired or is not valid yet: renew it, or check the clocks of both hosts")]
    Expired,
    /// A certificate was withdrawn by its authority, or its key is blocked.
    #[error("a certificate was revoked by its authority, or its key is blocked")]
    Revoked,
    /// One of the nodes admits only those on its list, and the other is not on it.
    #[error("the node is not on the other's list of those that are allowed")]
    NotAllowed,
    /// One of the nodes demands a cookie beside the certificate, and the other does not.
    #[error("one node demands a cookie beside the certificate, the other does not")]
    ModeMismatch,
    /// The trust of one side changed while the nodes connected, and the other is no longer trusted. Dialling again tells
    /// why.
    #[error("the trust of one side changed while the nodes connected")]
    TrustChanged,
    /// The certificate is good, but the proof in HELLO is not. Where certificates come from a PKI, the nodes hold different
    /// cookies beside them. Otherwise somebody relays the connection, or the trust of one side changed while the nodes
    /// connected; then dialling again helps.
    #[error("a node could not prove that it holds the cookie")]
    Proof,
}
