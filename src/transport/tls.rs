//! TLS: this node's certificate, and the check of everybody else's.
//!
//! ```text
//!  cookie ── authority key ──signs── leaf of this process (random key, names the node by a hash)
//!                 │
//!                 └── trust anchor ──checks── leaf of the peer, in both directions
//!
//!  PEM files ── certificate and key ── leaf of this node; authorities ──check── chain of the peer
//! ```
//!
//! With a cookie, the authority's key comes from the cookie, so all nodes of a cluster trust the same authority without
//! exchanging anything; it signs one certificate per process and is dropped.
//!
//! What a node presents and whom it trusts is one value, [`Credentials`], which is replaced as a whole under endpoints that
//! are running. Each handshake takes the one of its beginning, and its [`Link`](super::Link) keeps it: the leaf that a link
//! presented is the one that its proof in HELLO speaks of. Peers are judged by the one of the moment.
//!
//! TLS 1.3 is the only version (RFC 8446, as QUIC demands in RFC 9001). There is neither resumption nor 0-RTT: rustls does
//! not ask the verifier again when a session is resumed, so a peer that lost its trust would come back in.
//!
//! A refusal travels as a TLS alert and becomes the QUIC error `0x100 + alert` (RFC 9001, section 4.8). The verifiers
//! use one alert for each [`AuthError`] and never one with details, because the text of the error is sent to the peer.

mod authority;
mod pki;
#[cfg(test)]
pub(crate) mod tests;
mod trust;
mod verifier;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as provider;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring as provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, ServerConfig};
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;

use self::authority::Authority;
use self::pki::Pki;
use self::trust::{EPOCHS_MAX, Epoch, Roots, Trust};
use self::verifier::Verifier;
use crate::error::TrustError;
use crate::id::{ClusterName, NodeName};
use crate::identity::{
    ALLOWED_MAX, Allowed, AuthError, ClusterKeys, HelloKey, IdentityError, KeyHash, NamePolicy, Pem, fill_random,
};
use crate::wire::{Code, Mode};

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("distribute needs a TLS provider: enable the feature `aws-lc-rs` or `ring`");

/// The protocol and its version (RFC 7301). Everything that all nodes must agree on hangs on it.
pub(crate) const ALPN: &[u8] = b"distribute/1";

/// What to give quinn as the name of the server. It is not sent, and certificates are not checked against it.
pub(crate) const SERVER_NAME: &str = "node.distribute.invalid";

/// The most keys that a node blocks.
const BLOCKED_MAX: usize = 4096;

/// Names our use of the exported keying material (RFC 8446, section 7.5).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-distribute-hello-v1";

/// This node's side of TLS: what it presents and whom it trusts, at each moment. Cloning is cheap and shares both.
#[derive(Clone)]
pub(crate) struct Tls(Arc<Inner>);

struct Inner {
    cluster: ClusterName,
    node: NodeName,
    present: RwLock<Arc<Credentials>>,
    /// Held over a change: what it began from is what it replaces.
    changing: Mutex<()>,
}

/// What a node presents and whom it trusts, at one moment.
pub(crate) struct Credentials {
    /// Rises with each change.
    version: u64,
    leaf: Arc<Leaf>,
    /// The key of this node's proofs in HELLO; `None` without a cookie.
    hello: Option<HelloKey>,
    trust: Arc<Trust>,
    /// For arrivals.
    server: Arc<QuicServerConfig>,
    /// Where the certificates came from, if they are of a PKI.
    pem: Option<Pem>,
}

/// A certificate with its key.
struct Leaf {
    key: Arc<CertifiedKey>,
    /// SHA-256 of the public key.
    spki: [u8; 32],
    /// When it is no longer valid; `None` for never.
    not_after: Option<UnixTime>,
}

impl Tls {
    /// Makes or checks this node's certificate, and trusts nodes with the same cookie, or with certificates of the same PKI.
    ///
    /// The name is the full one: with the port that the node was bound to. The keys are those of the cookie, if there is
    /// one.
    pub(crate) fn new(
        cluster: &ClusterName,
        node: &NodeName,
        keys: Option<ClusterKeys>,
        pem: Option<Pem>,
        allowed: Option<Allowed>,
    ) -> Result<Self, IdentityError> {
        let hello = keys.as_ref().map(|keys| keys.hello.clone());
        let (leaf, roots) = match (&keys, &pem) {
            (_, Some(pem)) => {
                let pki = Pki::read(pem)?;
                let leaf = pki.own_leaf(pem, cluster, node, now())?;
                (leaf, Roots::Pki { pki: Arc::new(pki), proofs: hello.iter().cloned().collect() })
            }
            (Some(keys), None) => {
                let authority = Authority::from_seed(&keys.ca_seed)?;
                let leaf = authority.new_leaf(cluster, node)?;
                (leaf, Roots::Cookies(vec![Epoch { anchor: authority.into_anchor(), hello: keys.hello.clone() }]))
            }
            (None, None) => unreachable!("a builder without an identity does not start"),
        };
        let trust = Trust::new(roots, allowed.map(Arc::new), Arc::default());
        if !trust.tells_members(hello.is_some()) {
            return Err(IdentityError::TooOpen);
        }
        if pem.as_ref().is_some_and(|pem| pem.names == NamePolicy::AnyInCa) {
            tracing::warn!("certificates do not name nodes here: each holder of one may bear any name");
        }
        let pem = pem.as_ref().map(Pem::without_key);
        let present = Credentials::new(1, Arc::new(leaf), hello, trust, pem);
        let inner = Inner {
            cluster: cluster.clone(),
            node: node.clone(),
            present: RwLock::new(Arc::new(present)),
            changing: Mutex::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// What holds at this moment.
    pub(crate) fn current(&self) -> Arc<Credentials> {
        // Writers only ever replace the whole value, so a poisoned lock still holds a good one.
        self.0.present.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rises with each change.
    pub(crate) fn version(&self) -> u64 {
        self.current().version
    }

    /// Whether nodes prove their membership with certificates, with a cookie, or with both.
    pub(crate) fn mode(&self) -> Mode {
        self.current().mode()
    }

    /// What tells this life of the node from others of the same name and incarnation.
    pub(crate) fn life_key(&self) -> [u8; 32] {
        let present = self.current();
        life_key(present.mode(), present.leaf.spki)
    }

    /// The hash of the key in this node's certificate.
    pub(crate) fn key(&self) -> KeyHash {
        KeyHash::from_bytes(self.current().leaf.spki)
    }

    /// When this node's certificate is no longer valid; `None` for never.
    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        let not_after = self.current().leaf.not_after?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
    }

    /// For how long this node's certificate is still valid; zero when it no longer is, and `None` when it always is.
    pub(crate) fn validity_left(&self) -> Option<Duration> {
        let not_after = self.current().leaf.not_after?;
        Some(Duration::from_secs(not_after.as_secs().saturating_sub(now().as_secs())))
    }

    /// Which nodes are let in; `None` for all members.
    pub(crate) fn allowed(&self) -> Option<Allowed> {
        self.current().trust.allowed().cloned()
    }

    /// How many cookies are accepted.
    pub(crate) fn cookies(&self) -> usize {
        self.current().trust.proofs().count()
    }

    /// Whether a node of that name may be let in, as far as its name tells.
    pub(crate) fn may_admit(&self, name: &NodeName) -> bool {
        // Whether another node has its own name, a node asks by dialling that.
        *name == self.0.node || self.current().trust.allowed().is_none_or(|allowed| allowed.may_admit_name(name))
    }

    /// The configuration of one dial, and what it is made from. With a name, no other node is taken for the one that was
    /// dialled.
    pub(crate) fn dial(&self, expected: Option<&NodeName>) -> (QuicClientConfig, Arc<Credentials>) {
        let own = self.current();
        let expected = expected.map(|node| (self.0.cluster.clone(), node.clone()));
        let mut config = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(&own.trust, expected)))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.leaf.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        config.cert_compressors.clear();
        config.cert_decompressors.clear();
        let config =
            QuicClientConfig::try_from(config).expect("the provider has the cipher suite of QUIC's first packets");
        (config, own)
    }

    /// Checks the certificate of a connected peer against what is trusted at this moment.
    ///
    /// TLS checked it too, but the trust may have changed since; calling this again later tells whether a connection that
    /// is up would still be let in.
    pub(crate) fn peer(&self, connection: &quinn::Connection) -> Result<PeerCertificate, AuthError> {
        let chain = connection.peer_identity().ok_or(AuthError::NoCertificate)?;
        let chain = chain.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| AuthError::NoCertificate)?;
        let trust = self.current().trust.clone();
        let proofs = trust.judge(&chain, now())?;
        let leaf = chain.into_iter().next().ok_or(AuthError::NoCertificate)?;
        let certificate = EndEntityCert::try_from(&leaf).map_err(|_| AuthError::Certificate)?;
        let spki = Sha256::digest(certificate.subject_public_key_info()).into();
        Ok(PeerCertificate { leaf, spki, proofs, trust })
    }

    /// Accepts a cookie beside those that are accepted. False when it was already.
    pub(crate) fn accept(&self, keys: &ClusterKeys) -> Result<bool, TrustError> {
        self.change(|now| {
            match now.is_accepted(keys) {
                Err(TrustError::NotAccepted) => {}
                Ok(()) => return Ok(None),
                Err(error) => return Err(error),
            }
            if now.trust.proofs().count() >= EPOCHS_MAX {
                return Err(TrustError::TooManyCookies { max: EPOCHS_MAX });
            }
            let mut roots = now.trust.roots().clone();
            match &mut roots {
                Roots::Cookies(epochs) => {
                    let anchor = Authority::from_seed(&keys.ca_seed)?.into_anchor();
                    epochs.push(Epoch { anchor, hello: keys.hello.clone() });
                }
                Roots::Pki { proofs, .. } => proofs.push(keys.hello.clone()),
            }
            Ok(Some(now.with_trust(now.trust.with_roots(roots))))
        })
    }

    /// Presents a cookie that is accepted. The key of the certificate stays the same. False when it was presented already.
    pub(crate) fn present(&self, keys: &ClusterKeys) -> Result<bool, TrustError> {
        self.change(|now| {
            now.is_accepted(keys)?;
            if now.hello.as_ref().is_some_and(|own| own.is(&keys.hello)) {
                return Ok(None);
            }
            let leaf = match now.trust.roots() {
                Roots::Cookies(_) => {
                    let authority = Authority::from_seed(&keys.ca_seed)?;
                    Arc::new(authority.sign_again(&now.leaf, &self.0.cluster, &self.0.node)?)
                }
                Roots::Pki { .. } => now.leaf.clone(),
            };
            Ok(Some(Credentials::new(
                now.version + 1,
                leaf,
                Some(keys.hello.clone()),
                now.trust.again(),
                now.pem.clone(),
            )))
        })
    }

    /// Accepts a cookie no longer.
    pub(crate) fn forget(&self, keys: &ClusterKeys) -> Result<bool, TrustError> {
        self.change(|now| {
            now.is_accepted(keys)?;
            if now.hello.as_ref().is_some_and(|own| own.is(&keys.hello)) {
                return Err(TrustError::Presented);
            }
            let mut roots = now.trust.roots().clone();
            match &mut roots {
                Roots::Cookies(epochs) => epochs.retain(|epoch| !epoch.hello.is(&keys.hello)),
                Roots::Pki { proofs, .. } => proofs.retain(|key| !key.is(&keys.hello)),
            }
            Ok(Some(now.with_trust(now.trust.with_roots(roots))))
        })
    }

    /// Takes other certificates: this node's, and those of the authorities, with their revocations.
    pub(crate) fn reload(&self, pem: &Pem) -> Result<bool, TrustError> {
        if self.mode() == Mode::Cookie {
            return Err(TrustError::NoCertificates);
        }
        // Checked before the lock is taken: it takes its time.
        let pki = Arc::new(Pki::read(pem)?);
        let leaf = Arc::new(pki.own_leaf(pem, &self.0.cluster, &self.0.node, now())?);
        self.change(|now| {
            let Roots::Pki { proofs, .. } = now.trust.roots() else { return Err(TrustError::NoCertificates) };
            let trust = now.trust.with_roots(Roots::Pki { pki, proofs: proofs.clone() });
            if !trust.tells_members(now.hello.is_some()) {
                return Err(IdentityError::TooOpen.into());
            }
            // Links that present the very same certificate need no exchange.
            let leaf = if leaf.key.cert == now.leaf.key.cert { now.leaf.clone() } else { leaf };
            Ok(Some(Credentials::new(now.version + 1, leaf, now.hello.clone(), trust, Some(pem.without_key()))))
        })
    }

    /// Where the certificates came from; `None` if they come from a cookie.
    pub(crate) fn pem(&self) -> Option<Pem> {
        self.current().pem.clone()
    }

    /// Sets which nodes are let in; `None` for all members.
    pub(crate) fn set_allowed(&self, allowed: Option<Allowed>) -> Result<bool, TrustError> {
        if allowed.as_ref().is_some_and(|allowed| allowed.len() > ALLOWED_MAX) {
            return Err(TrustError::TooMany { max: ALLOWED_MAX });
        }
        self.change(|now| {
            if now.trust.allowed() == allowed.as_ref() {
                return Ok(None);
            }
            let trust = now.trust.with_allowed(allowed.map(Arc::new));
            if !trust.tells_members(now.hello.is_some()) {
                return Err(IdentityError::TooOpen.into());
            }
            Ok(Some(now.with_trust(trust)))
        })
    }

    /// Refuses whoever holds that key, or does so no longer.
    pub(crate) fn set_blocked(&self, key: KeyHash, is_blocked: bool) -> Result<bool, TrustError> {
        self.change(|now| {
            let mut blocked = BTreeSet::clone(now.trust.blocked());
            let is_changed = if is_blocked { blocked.insert(key) } else { blocked.remove(&key) };
            if blocked.len() > BLOCKED_MAX {
                return Err(TrustError::TooMany { max: BLOCKED_MAX });
            }
            Ok(is_changed.then(|| now.with_trust(now.trust.with_blocked(Arc::new(blocked)))))
        })
    }

    /// Replaces what holds, unless there is nothing to change. True when it was replaced.
    fn change(
        &self,
        change: impl FnOnce(&Credentials) -> Result<Option<Credentials>, TrustError>,
    ) -> Result<bool, TrustError> {
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = change(&self.current())? else { return Ok(false) };
        *self.0.present.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(true)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("cluster", &self.0.cluster).finish_non_exhaustive()
    }
}

impl Credentials {
    fn new(version: u64, leaf: Arc<Leaf>, hello: Option<HelloKey>, trust: Trust, pem: Option<Pem>) -> Self {
        let trust = Arc::new(trust);
        let server = Arc::new(server_config(&leaf, &trust));
        Self { version, leaf, hello, trust, server, pem }
    }

    /// The same, with another trust.
    fn with_trust(&self, trust: Trust) -> Self {
        Self::new(self.version + 1, self.leaf.clone(), self.hello.clone(), trust, self.pem.clone())
    }

    /// Says why nothing can be done with a cookie, if it is not one of those that are accepted.
    fn is_accepted(&self, keys: &ClusterKeys) -> Result<(), TrustError> {
        if self.hello.is_none() {
            return Err(TrustError::NoCookies);
        }
        let is_accepted = self.trust.proofs().any(|key| key.is(&keys.hello));
        if is_accepted { Ok(()) } else { Err(TrustError::NotAccepted) }
    }

    /// The configuration of arrivals.
    pub(super) fn server(&self) -> Arc<QuicServerConfig> {
        self.server.clone()
    }

    pub(crate) fn mode(&self) -> Mode {
        match (self.trust.roots(), &self.hello) {
            (Roots::Cookies(_), _) => Mode::Cookie,
            (Roots::Pki { .. }, None) => Mode::Pki,
            (Roots::Pki { .. }, Some(_)) => Mode::Both,
        }
    }

    /// The SHA-256 of the public key in the certificate.
    pub(crate) fn spki(&self) -> &[u8; 32] {
        &self.leaf.spki
    }

    /// The key of this node's own proofs; `None` if it makes none.
    pub(crate) fn hello_key(&self) -> Option<&HelloKey> {
        self.hello.as_ref()
    }

    /// Whether both present the same to a peer.
    pub(crate) fn presents_as(&self, other: &Self) -> bool {
        let is_same_key = match (&self.hello, &other.hello) {
            (Some(one), Some(other)) => one.is(other),
            (None, None) => true,
            _ => false,
        };
        is_same_key && Arc::ptr_eq(&self.leaf, &other.leaf)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("version", &self.version).finish_non_exhaustive()
    }
}

/// What belongs to one life of a node and to no other. A certificate of a PKI outlives a process, and is renewed under one
/// that runs: it tells names, not lives.
fn life_key(mode: Mode, spki: [u8; 32]) -> [u8; 32] {
    match mode {
        Mode::Cookie => spki,
        Mode::Pki | Mode::Both => [0; 32],
    }
}

/// A certificate that a peer proved to own, and that was checked.
#[derive(Clone)]
pub(crate) struct PeerCertificate {
    leaf: CertificateDer<'static>,
    spki: [u8; 32],
    proofs: Vec<HelloKey>,
    trust: Arc<Trust>,
}

impl PeerCertificate {
    /// Returns the SHA-256 of the public key.
    pub(crate) fn spki(&self) -> &[u8; 32] {
        &self.spki
    }

    /// Returns what tells the peer's life from others of the same name and incarnation.
    pub(crate) fn life_key(&self) -> [u8; 32] {
        let mode = if matches!(self.trust.roots(), Roots::Cookies(_)) { Mode::Cookie } else { Mode::Pki };
        life_key(mode, self.spki)
    }

    /// Returns a hash of the certificate: another certificate of the same node has another.
    pub(crate) fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.leaf).into()
    }

    /// Returns the keys of which the peer's proof must be made with one: that of the epoch that its certificate belongs to,
    /// or those of the cookies that are accepted beside certificates. Empty where no proof is demanded.
    pub(crate) fn proofs(&self) -> &[HelloKey] {
        &self.proofs
    }

    /// Says why this is no certificate for that node, or why the node is not let in.
    pub(crate) fn admits(&self, cluster: &ClusterName, node: &NodeName) -> Result<(), AuthError> {
        let leaf = EndEntityCert::try_from(&self.leaf).map_err(|_| AuthError::Certificate)?;
        self.trust.admits(&leaf, self.spki, cluster, node)
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprint = data_encoding::HEXLOWER.encode(&self.spki[..8]);
        f.debug_struct("PeerCertificate").field("fingerprint", &fingerprint).finish_non_exhaustive()
    }
}

/// Returns keying material that both ends of this connection know, and nobody else.
///
/// If the peer broke the TLS session since the handshake, the connection is about to close, and the material is random:
/// no proof over it is ever accepted.
pub(crate) fn exporter(connection: &quinn::Connection) -> [u8; 32] {
    let mut material = [0; 32];
    if connection.export_keying_material(&mut material, EXPORTER_LABEL, b"").is_err() {
        fill_random(&mut material);
    }
    material
}

/// Returns what the end of a connection says about authentication, if it says something about it.
///
/// It does not matter which of the two ends refused the other.
pub(crate) fn classify(error: &quinn::ConnectionError) -> Option<AuthError> {
    let code = match error {
        quinn::ConnectionError::VersionMismatch => return Some(AuthError::Protocol),
        quinn::ConnectionError::TransportError(error) => error.code,
        quinn::ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return None,
    };
    let alert = u64::from(code).checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok())?;
    // RFC 8446, section 6.2.
    match alert {
        40 | 70 | 120 => Some(AuthError::Protocol), // handshake_failure, protocol_version, no_application_protocol
        42 => Some(AuthError::NameMismatch),        // bad_certificate
        43 | 46 => Some(AuthError::Certificate),    // unsupported_certificate, certificate_unknown
        44 => Some(AuthError::Revoked),             // certificate_revoked
        45 => Some(AuthError::Expired),             // certificate_expired
        48 => Some(AuthError::UnknownIssuer),       // unknown_ca
        49 => Some(AuthError::NotAllowed),          // access_denied
        51 => Some(AuthError::WrongCookie),         // decrypt_error: a signature by another authority
        116 => Some(AuthError::NoCertificate),      // certificate_required
        _ => None,
    }
}

/// The other direction of [`classify`]: rustls chooses the alert by the error.
fn refusal(error: AuthError) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        AuthError::WrongCookie => CertificateError::BadSignature,
        AuthError::UnknownIssuer => CertificateError::UnknownIssuer,
        AuthError::NameMismatch => CertificateError::NotValidForName,
        AuthError::Expired => CertificateError::Expired,
        AuthError::Revoked => CertificateError::Revoked,
        AuthError::NotAllowed => CertificateError::ApplicationVerificationFailure,
        _ => CertificateError::InvalidPurpose,
    })
}

/// How a link is closed whose peer is refused only once it has said its name.
pub(crate) fn refusal_code(error: &AuthError) -> Code {
    match error {
        AuthError::NameMismatch => Code::NAME_MISMATCH,
        AuthError::NotAllowed => Code::NOT_ALLOWED,
        _ => Code::TRUST_CHANGED,
    }
}

/// The configuration of the listening side.
fn server_config(leaf: &Leaf, trust: &Arc<Trust>) -> QuicServerConfig {
    let config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(Arc::new(Verifier::new(trust, None)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.key.clone())));
    harden(config)
}

/// A configuration of the listening side that lets nobody in: for an endpoint whose arrivals bring their own.
pub(super) fn closed_config() -> QuicServerConfig {
    let config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
    harden(config)
}

fn harden(mut config: ServerConfig) -> QuicServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // A stranger gets no application data before its certificate was checked.
    config.send_half_rtt_data = false;
    // Another crate in the program may have switched compression on in rustls.
    config.cert_compressors.clear();
    config.cert_decompressors.clear();
    QuicServerConfig::try_from(config).expect("the provider has the cipher suite of QUIC's first packets")
}

/// The cryptography, named outright: the process-wide default is undefined when both providers are compiled in.
fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

fn now() -> UnixTime {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    UnixTime::since_unix_epoch(since_epoch)
}
