//! TLS: this node's certificate, and the check of everybody else's.
//!
//! ```text
//!  cookie ── authority key ──signs── leaf of this process (random key, names the node by a hash)
//!                 │
//!                 └── trust anchor ──checks── leaf of the peer, in both directions
//! ```
//!
//! The authority's key comes from the cookie, so all nodes of a cluster trust the same authority without exchanging
//! anything; it signs one certificate per process and is dropped. What is checked is a [`Trust`]: the epochs whose
//! certificates are accepted. Every handshake reads it anew, so it can change under endpoints that are running.
//!
//! TLS 1.3 is the only version (RFC 8446, as QUIC demands in RFC 9001). There is neither resumption nor 0-RTT: rustls does
//! not ask the verifier again when a session is resumed, so a peer that lost its trust would come back in.
//!
//! A refusal travels as a TLS alert and becomes the QUIC error `0x100 + alert` (RFC 9001, section 4.8). The verifiers
//! use one alert for each [`AuthError`] and never one with details, because the text of the error is sent to the peer.

use std::collections::VecDeque;
use std::fmt;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, SanType, SerialNumber,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as provider;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring as provider;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, PeerIncompatible, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext,
};
use zeroize::Zeroizing;

use crate::id::{ClusterName, NodeName};
use crate::identity::{AuthError, ClusterKeys, HelloKey, certificate_name, fill_random};

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("distribute needs a TLS provider: enable the feature `aws-lc-rs` or `ring`");

/// The protocol and its version (RFC 7301). Everything that all nodes must agree on hangs on it.
pub(crate) const ALPN: &[u8] = b"distribute/1";

/// What to give quinn as the name of the server. It is not sent, and certificates are not checked against it.
pub(crate) const SERVER_NAME: &str = "node.distribute.invalid";

/// The most epochs that a node trusts at a time: a rotation needs two, and handshakes cost more with each.
const EPOCHS_MAX: usize = 4;

/// Names our use of the exported keying material (RFC 8446, section 7.5).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-distribute-hello-v1";

/// This node's side of TLS: the certificate it presents, and what it trusts. Cloning is cheap and shares both.
#[derive(Clone)]
pub(crate) struct Tls {
    cluster: ClusterName,
    leaf: Arc<Leaf>,
    trust: TrustCell,
}

/// What the verifiers of running endpoints read at every handshake.
type TrustCell = Arc<RwLock<Arc<Trust>>>;

impl Tls {
    /// Makes this process's certificate and trusts those of nodes with the same keys.
    ///
    /// The name is the full one: with the port that the node was bound to.
    pub(crate) fn from_cookie(keys: &ClusterKeys, cluster: &ClusterName, node: &NodeName) -> Result<Self, TlsError> {
        let authority = Authority::from_seed(&keys.ca_seed)?;
        let leaf = authority.sign(leaf_params(certificate_name(cluster, node)), keys.hello.clone())?;
        let epoch = Epoch { anchor: authority.anchor, hello: keys.hello.clone() };
        Ok(Self {
            cluster: cluster.clone(),
            leaf: Arc::new(leaf),
            trust: Arc::new(RwLock::new(Arc::new(Trust::new(vec![epoch])))),
        })
    }

    /// Returns the configuration of the listening side.
    pub(crate) fn server_config(&self) -> QuicServerConfig {
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(self.verifier(None))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.leaf.key.clone())));
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

    /// Returns the configuration of one dial. With a name, no other node is taken for the one that was dialled.
    pub(crate) fn client_config(&self, expected: Option<&NodeName>) -> QuicClientConfig {
        let expected = expected.map(|node| certificate_name(&self.cluster, node));
        let mut config = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(expected))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.leaf.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        config.cert_compressors.clear();
        config.cert_decompressors.clear();
        QuicClientConfig::try_from(config).expect("the provider has the cipher suite of QUIC's first packets")
    }

    /// Checks the certificate of a connected peer against what is trusted at this moment.
    ///
    /// TLS checked it too, but the trust may have changed since; calling this again later tells whether a connection that
    /// is up would still be let in.
    pub(crate) fn peer(&self, connection: &quinn::Connection) -> Result<PeerCertificate, AuthError> {
        let chain = connection.peer_identity().ok_or(AuthError::NoCertificate)?;
        let chain = chain.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| AuthError::NoCertificate)?;
        let (leaf, rest) = chain.split_first().ok_or(AuthError::NoCertificate)?;
        let trust = current(&self.trust);
        let epoch = trust.judge(leaf, rest, now())?;
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| AuthError::Certificate)?;
        Ok(PeerCertificate {
            spki: Sha256::digest(certificate.subject_public_key_info()).into(),
            dns_name: only_dns_name(&certificate).map(str::to_owned),
            hello: epoch.hello.clone(),
        })
    }

    /// Returns the SHA-256 of the public key in this node's certificate.
    pub(crate) fn own_spki(&self) -> &[u8; 32] {
        &self.leaf.spki
    }

    /// Returns the key of this node's own proofs: that of the epoch of its certificate.
    pub(crate) fn hello_key(&self) -> &HelloKey {
        &self.leaf.hello
    }

    fn verifier(&self, expected: Option<String>) -> Arc<Verifier> {
        Arc::new(Verifier { trust: self.trust.clone(), expected })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// A certificate that a peer proved to own, and that was checked.
#[derive(Clone)]
pub(crate) struct PeerCertificate {
    spki: [u8; 32],
    dns_name: Option<String>,
    hello: HelloKey,
}

impl PeerCertificate {
    /// Returns the SHA-256 of the public key. It is another one for each life of a node.
    pub(crate) fn spki(&self) -> &[u8; 32] {
        &self.spki
    }

    /// Returns the key that the peer's proof must be made with: that of the epoch that its certificate belongs to.
    pub(crate) fn hello_key(&self) -> &HelloKey {
        &self.hello
    }

    /// Returns whether the certificate is for this node and no other.
    pub(crate) fn names(&self, cluster: &ClusterName, node: &NodeName) -> bool {
        self.dns_name.as_deref() == Some(&*certificate_name(cluster, node))
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
        _ => CertificateError::InvalidPurpose,
    })
}

/// Why this node's certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The certificate could not be signed.
    #[error("cannot make this node's certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library does not take the key.
    #[error("cannot use this node's key")]
    Key(#[from] rustls::Error),
    /// The authority's own certificate cannot be trusted.
    #[error("cannot trust the cluster's authority")]
    Anchor(#[from] webpki::Error),
}

/// Whose certificates are accepted. Several epochs let a cluster change its cookie node by node.
struct Trust {
    accept: Vec<Epoch>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Certificates that were accepted a moment ago: each link's is judged by TLS and again at its greeting. A change of
    /// the trust is another `Trust`, which remembers nothing.
    accepted: Mutex<VecDeque<Accepted>>,
}

/// A certificate's hash, the epoch that it belongs to, and when that was found.
type Accepted = ([u8; 32], usize, UnixTime);

/// How many accepted certificates are remembered: as many as may be in their handshake.
const ACCEPTED_MAX: usize = 128;

/// For how many seconds one is, which is as long as a handshake takes at most.
const ACCEPTED_FOR: u64 = 5;

/// One cookie's share of the trust.
struct Epoch {
    anchor: TrustAnchor<'static>,
    hello: HelloKey,
}

impl Trust {
    fn new(accept: Vec<Epoch>) -> Self {
        assert!((1..=EPOCHS_MAX).contains(&accept.len()), "a node trusts one to four epochs");
        Self { accept, algorithms: ed25519(), accepted: Mutex::default() }
    }

    /// Returns the epoch that a presented certificate belongs to, or why it is refused.
    ///
    /// Both directions ask the same: a node's certificate serves it as dialler and as responder.
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<&Epoch, AuthError> {
        // The authority signs nodes itself. More certificates are more to parse, and nothing that a node would send.
        if !rest.is_empty() {
            return Err(AuthError::Certificate);
        }
        let hash: [u8; 32] = Sha256::digest(leaf).into();
        if let Some(at) = self.accepted_lately(&hash, now) {
            return Ok(&self.accept[at]);
        }
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| AuthError::Certificate)?;
        let mut refused = AuthError::UnknownIssuer;
        for (at, epoch) in self.accept.iter().enumerate() {
            let anchor = slice::from_ref(&epoch.anchor);
            match leaf.verify_for_usage(self.algorithms.all, anchor, &[], now, BothUsages, None, None) {
                Ok(_) => {
                    let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
                    accepted.truncate(ACCEPTED_MAX - 1);
                    accepted.push_front((hash, at, now));
                    return Ok(epoch);
                }
                Err(webpki::Error::UnknownIssuer) => {}
                Err(webpki::Error::InvalidSignatureForPublicKey) => refused = AuthError::WrongCookie,
                Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => {
                    refused = AuthError::Expired;
                }
                Err(webpki::Error::CertRevoked) => refused = AuthError::Revoked,
                Err(_) => refused = AuthError::Certificate,
            }
        }
        Err(refused)
    }

    fn accepted_lately(&self, hash: &[u8; 32], now: UnixTime) -> Option<usize> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, at, then) = accepted.iter().find(|(accepted, ..)| accepted == hash)?;
        (now.as_secs().checked_sub(then.as_secs())? <= ACCEPTED_FOR).then_some(*at)
    }
}

/// Demands that a certificate says that it is for servers and for clients (RFC 5280, section 4.2.1.12).
struct BothUsages;

impl ExtendedKeyUsageValidator for BothUsages {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        // The object identifiers 1.3.6.1.5.5.7.3.1 and 1.3.6.1.5.5.7.3.2.
        const SERVER: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
        const CLIENT: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
        let (mut server, mut client) = (false, false);
        for purpose in purposes {
            let purpose = purpose?;
            server |= purpose == KeyPurposeId::new(SERVER);
            client |= purpose == KeyPurposeId::new(CLIENT);
        }
        if server && client {
            return Ok(());
        }
        let required = KeyUsage::required(if server { CLIENT } else { SERVER });
        Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present: Vec::new() }))
    }
}

/// Asks the trust of the moment, for rustls. One type for both directions, so that they cannot come apart.
struct Verifier {
    trust: TrustCell,
    /// The name in the certificate of the node that is dialled, if it is known.
    expected: Option<String>,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        current(&self.trust).judge(leaf, rest, now).map_err(refusal)?;
        if let Some(expected) = &self.expected {
            let leaf = EndEntityCert::try_from(leaf).map_err(|_| refusal(AuthError::Certificate))?;
            if only_dns_name(&leaf) != Some(expected) {
                return Err(refusal(AuthError::NameMismatch));
            }
        }
        Ok(())
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &current(&self.trust).algorithms)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        current(&self.trust).algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        current(&self.trust).algorithms.supported_schemes()
    }
}

/// What this process presents to peers.
struct Leaf {
    key: Arc<CertifiedKey>,
    spki: [u8; 32],
    hello: HelloKey,
}

/// The cluster's certificate authority, for as long as it takes to sign one certificate.
struct Authority {
    params: CertificateParams,
    key: Zeroizing<KeyPair>,
    anchor: TrustAnchor<'static>,
}

impl Authority {
    fn from_seed(seed: &[u8; 32]) -> Result<Self, TlsError> {
        // The seed as PKCS#8, version 1 (RFC 8410, section 7).
        let mut der = Zeroizing::new([0; 48]);
        der[..16].copy_from_slice(&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20]);
        der[16..].copy_from_slice(seed);
        let key = Zeroizing::new(KeyPair::try_from(&PrivatePkcs8KeyDer::from(&der[..]))?);

        let mut params = CertificateParams::default();
        // The same for all clusters: strangers see it in every certificate.
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "distribute cluster");
        params.serial_number = Some(SerialNumber::from_slice(&[1]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        valid_forever(&mut params);

        let certificate = params.self_signed(&*key)?;
        let anchor = webpki::anchor_from_trusted_cert(certificate.der())?.to_owned();
        Ok(Self { params, key, anchor })
    }

    /// Signs a certificate for a fresh random key.
    fn sign(&self, params: CertificateParams, hello: HelloKey) -> Result<Leaf, TlsError> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ED25519)?);
        let issuer = Issuer::from_params(&self.params, &*self.key);
        let certificate = params.signed_by(&*key, &issuer)?;
        let signer = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key.serialized_der()))?;
        Ok(Leaf {
            spki: Sha256::digest(key.subject_public_key_info()).into(),
            key: Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer)),
            hello,
        })
    }
}

fn leaf_params(dns_name: String) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names =
        vec![SanType::DnsName(dns_name.try_into().expect("a hash and a fixed suffix are a DNS name"))];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    // It would be a hash of the authority's key, by which strangers could tell clusters apart.
    params.use_authority_key_identifier_extension = false;
    let mut serial = [0; 16];
    fill_random(&mut serial);
    // Positive, and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    valid_forever(&mut params);
    params
}

/// A wrong clock must not break a cluster, so the life of a certificate is that of its process and of the cookie.
fn valid_forever(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    // 99991231 stands for "no expiration" (RFC 5280, section 4.1.2.5).
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
}

/// Returns the DNS name of a certificate that has exactly one. It may be a wildcard, which equals no node's name.
fn only_dns_name<'a>(certificate: &EndEntityCert<'a>) -> Option<&'a str> {
    let mut names = certificate.valid_dns_names();
    let name = names.next()?;
    names.next().is_none().then_some(name)
}

/// The cryptography, named outright: the process-wide default is undefined when both providers are compiled in.
fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// The one signature algorithm that nodes with a cookie use.
fn ed25519() -> WebPkiSupportedAlgorithms {
    let mapping = provider::default_provider().signature_verification_algorithms.mapping;
    let at = mapping.iter().position(|(scheme, _)| *scheme == SignatureScheme::ED25519);
    let ed25519 = &mapping[at.expect("the provider has Ed25519")];
    WebPkiSupportedAlgorithms { all: ed25519.1, mapping: slice::from_ref(ed25519) }
}

fn current(trust: &TrustCell) -> Arc<Trust> {
    // Writers only ever replace the whole value, so a poisoned lock still holds a good one.
    trust.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn now() -> UnixTime {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    UnixTime::since_unix_epoch(since_epoch)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use quinn::{Connection, ConnectionError, Endpoint, TransportErrorCode};
    use rcgen::PKCS_ECDSA_P256_SHA256;
    use rustls::AlertDescription;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::WebPkiClientVerifier;

    use super::*;
    use crate::identity::{Cookie, ProofInput, Role};

    #[tokio::test]
    async fn two_nodes_of_a_cluster_authenticate_each_other() {
        let cookie = Cookie::generate();
        let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
        let met = meet(b.server_config(), a.client_config(Some(&node("b@host")))).await;
        let (dialler, responder) = (met.dialler.unwrap(), met.responder.unwrap());

        let (seen_by_a, seen_by_b) = (a.peer(&dialler).unwrap(), b.peer(&responder).unwrap());
        assert_eq!((seen_by_a.spki(), seen_by_b.spki()), (b.own_spki(), a.own_spki()));
        assert_ne!(a.own_spki(), b.own_spki());
        assert!(seen_by_a.names(&cluster(), &node("b@host")));
        assert!(seen_by_b.names(&cluster(), &node("a@host")));
        assert!(!seen_by_b.names(&cluster(), &node("b@host")));
        assert!(!seen_by_b.names(&ClusterName::parse("other").unwrap(), &node("a@host")));

        let exported = exporter(&dialler);
        assert_eq!(exported, exporter(&responder));
        let (name, own_spki, peer_spki) = (&node("a@host"), a.own_spki(), seen_by_a.spki());
        let input = ProofInput { exporter: &exported, role: Role::Dialler, name, incarnation: 1, own_spki, peer_spki };
        assert!(seen_by_b.hello_key().verify(&input, &a.hello_key().proof(&input)));

        // Nothing but the protocol is told in clear.
        let clear = responder.handshake_data().unwrap().downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
        assert_eq!((clear.protocol.as_deref(), &clear.server_name), (Some(ALPN), &None));
    }

    #[tokio::test]
    async fn every_connection_exports_another_key() {
        let cookie = Cookie::generate();
        let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
        let first = meet(b.server_config(), a.client_config(None)).await.dialler.unwrap();
        let second = meet(b.server_config(), a.client_config(None)).await.dialler.unwrap();
        assert_ne!(exporter(&first), exporter(&second));
    }

    #[tokio::test]
    async fn another_cookie_is_refused_by_the_dialler() {
        let (a, b) = (tls(&Cookie::generate(), "a@host"), tls(&Cookie::generate(), "b@host"));
        let met = meet(b.server_config(), a.client_config(None)).await;
        met.dialler_refuses(0x133, AuthError::WrongCookie);
    }

    #[tokio::test]
    async fn another_cluster_name_is_another_cookie() {
        let cookie = Cookie::generate();
        let other = ClusterName::parse("other").unwrap();
        let keys = ClusterKeys::derive(&cookie, &other);
        let (a, b) = (tls(&cookie, "a@host"), Tls::from_cookie(&keys, &other, &node("b@host")).unwrap());
        let met = meet(b.server_config(), a.client_config(None)).await;
        met.dialler_refuses(0x133, AuthError::WrongCookie);
    }

    #[tokio::test]
    async fn a_dialler_without_certificate_is_refused() {
        let server = tls(&Cookie::generate(), "b@host");
        let met = meet(server.server_config(), rogue_client(None, &[ALPN])).await;
        met.responder_refuses(0x174, AuthError::NoCertificate).await;
    }

    #[tokio::test]
    async fn a_dialler_that_does_not_check_the_server_is_refused() {
        let (server, stranger) = (tls(&Cookie::generate(), "b@host"), tls(&Cookie::generate(), "a@host"));
        let met = meet(server.server_config(), rogue_client(Some(&stranger), &[ALPN])).await;
        met.responder_refuses(0x133, AuthError::WrongCookie).await;
    }

    #[tokio::test]
    async fn a_copied_certificate_is_worth_nothing_without_its_key() {
        let cookie = Cookie::generate();
        let (server, member) = (tls(&cookie, "b@host"), tls(&cookie, "a@host"));
        let thief = tls(&Cookie::generate(), "a@host")
            .presenting(|own| CertifiedKey::new(member.leaf.key.cert.clone(), own.key.clone()));
        let met = meet(server.server_config(), rogue_client(Some(&thief), &[ALPN])).await;
        met.responder_refuses(0x133, AuthError::WrongCookie).await;
        let met = meet(thief.server_config(), server.client_config(None)).await;
        met.dialler_refuses(0x133, AuthError::WrongCookie);
    }

    #[tokio::test]
    async fn another_protocol_or_none_is_refused_even_with_the_cookie() {
        let cookie = Cookie::generate();
        let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
        for protocols in [&[b"h3".as_slice()][..], &[b"distribute/2"], &[]] {
            let met = meet(b.server_config(), rogue_client(Some(&a), protocols)).await;
            met.responder_refuses(0x178, AuthError::Protocol).await;
        }
        for protocols in [&[b"h3".as_slice()][..], &[]] {
            let met = meet(rogue_server(&b, protocols), a.client_config(None)).await;
            met.responder_refuses(0x178, AuthError::Protocol).await;
        }
    }

    #[tokio::test]
    async fn another_quic_version_is_refused() {
        let cookie = Cookie::generate();
        let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
        let mut only_v1 = quinn::EndpointConfig::default();
        only_v1.supported_versions(vec![1]);
        let socket = std::net::UdpSocket::bind(LOOPBACK).unwrap();
        let runtime = quinn::default_runtime().unwrap();
        let server = quinn::ServerConfig::with_crypto(Arc::new(b.server_config()));
        let server = Endpoint::new(only_v1, Some(server), socket, runtime).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(a.client_config(None)));
        config.version(0xff00_001d);
        let client = Endpoint::client(LOOPBACK).unwrap();
        let dial = client.connect_with(config, server.local_addr().unwrap(), SERVER_NAME).unwrap();
        assert_eq!(classify(&dial.await.unwrap_err()), Some(AuthError::Protocol));
    }

    #[tokio::test]
    async fn another_node_than_the_dialled_one_is_refused_and_told_no_names() {
        let cookie = Cookie::generate();
        let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
        let met = meet(b.server_config(), a.client_config(Some(&node("c@host")))).await;
        met.dialler_refuses(0x12a, AuthError::NameMismatch);
        let Err(ConnectionError::ConnectionClosed(close)) = &met.responder else { panic!("{:?}", met.responder) };
        let reason = String::from_utf8_lossy(&close.reason);
        assert!(!reason.contains(".invalid"), "{reason}");
    }

    #[tokio::test]
    async fn a_certificate_for_many_names_is_for_none() {
        let cookie = Cookie::generate();
        let a = tls(&cookie, "a@host");
        let dns = |name: String| SanType::DnsName(name.try_into().unwrap());
        let right = certificate_name(&cluster(), &node("b@host"));
        for names in [
            vec![dns("*.node.distribute.invalid".to_owned())],
            vec![dns(right.clone()), dns(certificate_name(&cluster(), &node("c@host")))],
            vec![],
        ] {
            let b = signed(&cookie, "b@host", |params| params.subject_alt_names = names);
            let met = meet(b.server_config(), a.client_config(Some(&node("b@host")))).await;
            met.dialler_refuses(0x12a, AuthError::NameMismatch);
            let met = meet(a.server_config(), b.client_config(None)).await;
            let seen = a.peer(met.responder.as_ref().unwrap()).unwrap();
            assert!(!seen.names(&cluster(), &node("b@host")));
        }
    }

    #[tokio::test]
    async fn more_than_one_certificate_is_refused() {
        let cookie = Cookie::generate();
        let a = tls(&cookie, "a@host");
        let own_authority = authority(&cookie).params.self_signed(&*authority(&cookie).key).unwrap();
        for extra in [own_authority.der().clone(), a.leaf.key.cert[0].clone(), CertificateDer::from(vec![0x30, 0])] {
            let b = tls(&cookie, "b@host")
                .presenting(|own| CertifiedKey::new(vec![own.cert[0].clone(), extra.clone()], own.key.clone()));
            let met = meet(a.server_config(), b.client_config(None)).await;
            met.responder_refuses(0x12b, AuthError::Certificate).await;
            let met = meet(b.server_config(), a.client_config(None)).await;
            met.dialler_refuses(0x12b, AuthError::Certificate);
        }
    }

    #[tokio::test]
    async fn certificates_of_another_kind_are_refused_although_the_authority_signed_them() {
        use ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};
        let cookie = Cookie::generate();
        let a = tls(&cookie, "a@host");
        let kinds: [fn(&mut CertificateParams); 6] = [
            |params| params.extended_key_usages = vec![],
            |params| params.extended_key_usages = vec![ServerAuth],
            |params| params.extended_key_usages = vec![ClientAuth],
            |params| params.extended_key_usages = vec![CodeSigning],
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        ];
        for alter in kinds {
            let b = signed(&cookie, "b@host", alter);
            let met = meet(a.server_config(), b.client_config(None)).await;
            met.responder_refuses(0x12b, AuthError::Certificate).await;
            let met = meet(b.server_config(), a.client_config(None)).await;
            met.dialler_refuses(0x12b, AuthError::Certificate);
        }
        let any_purpose_more = |params: &mut CertificateParams| params.extended_key_usages.push(CodeSigning);
        let b = signed(&cookie, "b@host", any_purpose_more);
        assert!(meet(a.server_config(), b.client_config(None)).await.responder.is_ok());
    }

    #[tokio::test]
    async fn a_certificate_out_of_date_is_refused() {
        let cookie = Cookie::generate();
        let a = tls(&cookie, "a@host");
        let dates: [fn(&mut CertificateParams); 2] = [
            |params| params.not_after = rcgen::date_time_ymd(1971, 1, 1),
            |params| params.not_before = rcgen::date_time_ymd(9999, 1, 1),
        ];
        for alter in dates {
            let b = signed(&cookie, "b@host", alter);
            let met = meet(a.server_config(), b.client_config(None)).await;
            met.responder_refuses(0x12d, AuthError::Expired).await;
        }
    }

    #[tokio::test]
    async fn a_certificate_that_comes_from_no_cookie_is_refused() {
        let a = tls(&Cookie::generate(), "a@host");
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let certificate = leaf_params("b.example".to_owned()).self_signed(&key).unwrap();
        let b = tls(&Cookie::generate(), "b@host").presenting(|_| {
            let signer = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key.serialized_der())).unwrap();
            CertifiedKey::new(vec![certificate.der().clone()], signer)
        });
        let met = meet(a.server_config(), rogue_client(Some(&b), &[ALPN])).await;
        met.responder_refuses(0x130, AuthError::UnknownIssuer).await;
        let met = meet(b.server_config(), a.client_config(None)).await;
        met.dialler_refuses(0x130, AuthError::UnknownIssuer);
    }

    #[test]
    fn the_authority_is_no_node() {
        let cookie = Cookie::generate();
        let a = tls(&cookie, "a@host");
        let authority = authority(&cookie);
        let certificate = authority.params.self_signed(&*authority.key).unwrap();
        let judged = current(&a.trust).judge(certificate.der(), &[], now()).map(|_| ());
        assert_eq!(judged, Err(AuthError::Certificate));
    }

    #[tokio::test]
    async fn only_ed25519_is_spoken() {
        let cookie = Cookie::generate();
        let a = tls(&cookie, "a@host");
        assert_eq!(ServerCertVerifier::supported_verify_schemes(&*a.verifier(None)), [SignatureScheme::ED25519]);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let authority = authority(&cookie);
        let issuer = Issuer::from_params(&authority.params, &*authority.key);
        let certificate = leaf_params("b.example".to_owned()).signed_by(&key, &issuer).unwrap();
        let b = tls(&cookie, "b@host").presenting(|_| {
            let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            CertifiedKey::new(vec![certificate.der().clone()], provider::sign::any_ecdsa_type(&der).unwrap())
        });
        let met = meet(b.server_config(), a.client_config(None)).await;
        met.responder_refuses(0x128, AuthError::Protocol).await;
        let met = meet(a.server_config(), b.client_config(None)).await;
        met.responder_refuses(0x174, AuthError::NoCertificate).await;
    }

    #[tokio::test]
    async fn a_rotation_passes_without_a_moment_of_refusal() {
        let (old, new) = (Cookie::generate(), Cookie::generate());
        let states = [
            ("before", tls(&old, "a@host")),
            ("accepts both", tls(&old, "b@host").trusting(&[&old, &new])),
            ("presents the new one", tls(&new, "c@host").trusting(&[&old, &new])),
            ("after", tls(&new, "d@host")),
        ];
        for (i, (dialling, dialler)) in states.iter().enumerate() {
            for (j, (responding, responder)) in states.iter().enumerate() {
                let met = meet(responder.server_config(), dialler.client_config(None)).await;
                if i.abs_diff(j) <= 1 || (1..=2).contains(&i) && (1..=2).contains(&j) {
                    let seen = responder.peer(met.responder.as_ref().unwrap()).unwrap();
                    // The proof is checked with the key of the dialler's epoch, whichever that is.
                    let input = some_input(&seen);
                    let proof = dialler.hello_key().proof(&input);
                    assert!(seen.hello_key().verify(&input, &proof), "{dialling} to {responding}");
                } else if dialler.accepts(responder) {
                    met.responder_refuses(0x133, AuthError::WrongCookie).await;
                } else {
                    met.dialler_refuses(0x133, AuthError::WrongCookie);
                }
            }
        }
    }

    #[tokio::test]
    async fn trust_changes_under_a_running_endpoint() {
        let (old, new) = (Cookie::generate(), Cookie::generate());
        let (a, b) = (tls(&old, "a@host"), tls(&old, "b@host"));
        let mesh = Mesh::new(b.server_config(), rogue_client(Some(&a), &[ALPN]));
        let before = mesh.meet().await.responder.unwrap();
        assert!(b.peer(&before).is_ok());
        b.trust(&[&old, &new]);
        assert!(b.peer(&before).is_ok());
        b.trust(&[&new]);
        assert_eq!(b.peer(&before).unwrap_err(), AuthError::WrongCookie);
        mesh.meet().await.responder_refuses(0x133, AuthError::WrongCookie).await;
    }

    /// The dialler keeps tickets, and would send early data if it ever got one.
    #[tokio::test]
    async fn a_dialler_that_lost_its_trust_cannot_resume() {
        let (old, new) = (Cookie::generate(), Cookie::generate());
        let (a, b) = (tls(&old, "a@host"), tls(&old, "b@host"));
        let mesh = Mesh::new(b.server_config(), rogue_client(Some(&a), &[ALPN]));
        for _ in 0..2 {
            let met = mesh.meet().await;
            let _open = met.responder.as_ref().unwrap().open_uni().await.unwrap().write_all(b"x").await;
            met.dialler.as_ref().unwrap().accept_uni().await.unwrap();
            let again = mesh.dial();
            assert!(again.into_0rtt().is_err(), "there was a ticket");
            mesh.drain().await;
        }
        b.trust(&[&new]);
        mesh.meet().await.responder_refuses(0x133, AuthError::WrongCookie).await;
    }

    /// A server that hands out tickets is checked anew at each dial.
    #[tokio::test]
    async fn a_responder_that_lost_its_trust_cannot_resume() {
        let (old, new) = (Cookie::generate(), Cookie::generate());
        let (a, b) = (tls(&old, "a@host"), tls(&old, "b@host"));
        let mesh = Mesh::new(rogue_server(&b, &[ALPN]), a.client_config(None));
        let met = mesh.meet().await;
        let _open = met.responder.as_ref().unwrap().open_uni().await.unwrap().write_all(b"x").await;
        met.dialler.as_ref().unwrap().accept_uni().await.unwrap();
        a.trust(&[&new]);
        mesh.meet().await.dialler_refuses(0x133, AuthError::WrongCookie);
    }

    #[test]
    fn golden_anchor() {
        let keys = cookie_of_bytes_0_to_31();
        let anchor = Authority::from_seed(&ClusterKeys::derive(&keys, &cluster()).ca_seed).unwrap().anchor;
        // Public keys by Python's `cryptography`.
        assert_eq!(
            data_encoding::HEXLOWER.encode(&anchor.subject_public_key_info),
            "300506032b6570032100cccb2b43cba50b2ecab10e17d9007dc7eb2bf8ce18134916eda743593d55cd6e"
        );
        assert_eq!(
            data_encoding::HEXLOWER.encode(&anchor.subject),
            "311b301906035504030c126469737472696275746520636c7573746572"
        );
    }

    #[test]
    fn a_certificate_tells_neither_the_cluster_nor_the_name() {
        let cookie = cookie_of_bytes_0_to_31();
        let (one, two) = (tls(&cookie, "secretname@host"), tls(&cookie, "secretname@host"));
        let (one, two) = (&one.leaf.key.cert[0], &two.leaf.key.cert[0]);
        assert_ne!(one, two);
        assert!(one.len() < 450, "{} bytes", one.len());
        let anchor = authority(&cookie).anchor;
        let public_key = &anchor.subject_public_key_info[10..];
        let spki = [&[0x30, 0x2a], &anchor.subject_public_key_info[..]].concat();
        let hashes: [[u8; 32]; 3] = [
            Sha256::digest(public_key).into(),
            Sha256::digest(&spki).into(),
            Sha256::digest(&anchor.subject_public_key_info).into(),
        ];
        let holds = |part: &[u8]| one.windows(part.len()).any(|window| window == part);
        assert!(holds(&anchor.subject));
        assert!(!holds(b"secretname"));
        assert!(!holds(&public_key[..8]));
        for hash in hashes {
            assert!(!holds(&hash[..8]));
        }
    }

    #[test]
    fn certificates_are_good_at_any_time() {
        let tls = tls(&Cookie::generate(), "a@host");
        for seconds in [0, 1 << 31, 1 << 32, 4_102_444_800, 250_000_000_000] {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            assert!(current(&tls.trust).judge(&tls.leaf.key.cert[0], &[], time).is_ok(), "{seconds}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        let tls = tls(&Cookie::generate(), "a@host");
        let trust = current(&tls.trust);
        let good = tls.leaf.key.cert[0].to_vec();
        for end in 0..good.len() {
            assert!(trust.judge(&CertificateDer::from(&good[..end]), &[], now()).is_err(), "{end}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut altered = good.clone();
                altered[at] ^= 1 << bit;
                assert!(trust.judge(&CertificateDer::from(altered), &[], now()).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    /// What is recorded today stays closed to a quantum computer.
    #[cfg(feature = "aws-lc-rs")]
    #[test]
    fn the_first_key_exchange_is_post_quantum() {
        assert_eq!(crypto().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }

    #[test]
    #[should_panic(expected = "one to four epochs")]
    fn no_more_than_four_epochs() {
        let cookies: Vec<Cookie> = (0..5).map(|_| Cookie::generate()).collect();
        tls(&cookies[0], "a@host").trust(&cookies.iter().collect::<Vec<_>>());
    }

    #[test]
    fn each_refusal_is_understood_by_the_other_side() {
        for error in [
            AuthError::WrongCookie,
            AuthError::UnknownIssuer,
            AuthError::Certificate,
            AuthError::NameMismatch,
            AuthError::Expired,
            AuthError::Revoked,
        ] {
            let rustls::Error::InvalidCertificate(certificate) = refusal(error.clone()) else { unreachable!() };
            let code = TransportErrorCode::crypto(AlertDescription::from(certificate).into());
            assert_eq!(classify(&ConnectionError::TransportError(code.into())), Some(error));
        }
    }

    #[test]
    fn what_is_not_about_authentication_is_not_classified() {
        let closed = |code: u32| {
            let close = quinn::ApplicationClose { error_code: code.into(), reason: Default::default() };
            ConnectionError::ApplicationClosed(close)
        };
        let errors = [
            ConnectionError::TimedOut,
            ConnectionError::Reset,
            ConnectionError::LocallyClosed,
            closed(0x133),
            ConnectionError::TransportError(TransportErrorCode::PROTOCOL_VIOLATION.into()),
            // internal_error, and the first code beyond the alerts.
            ConnectionError::TransportError(TransportErrorCode::crypto(80).into()),
        ];
        for error in errors {
            assert_eq!(classify(&error), None, "{error:?}");
        }
    }

    #[tokio::test]
    async fn debug_output_tells_nothing_that_depends_on_the_cookie() {
        let cookie = Cookie::generate();
        let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
        assert_eq!(format!("{a:?}"), "Tls { cluster: default, .. }");
        assert_eq!(format!("{:?}", a.verifier(Some("x".to_owned()))), "Verifier { .. }");
        let met = meet(b.server_config(), a.client_config(None)).await;
        let peer = format!("{:?}", b.peer(met.responder.as_ref().unwrap()).unwrap());
        let fingerprint = data_encoding::HEXLOWER.encode(&a.own_spki()[..8]);
        assert_eq!(peer, format!("PeerCertificate {{ fingerprint: {fingerprint:?}, .. }}"));
    }

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn node(name: &str) -> NodeName {
        NodeName::parse(name).unwrap()
    }

    fn cluster() -> ClusterName {
        ClusterName::default()
    }

    fn cookie_of_bytes_0_to_31() -> Cookie {
        Cookie::from_text("pk1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypqeeggyf").unwrap()
    }

    fn tls(cookie: &Cookie, name: &str) -> Tls {
        Tls::from_cookie(&ClusterKeys::derive(cookie, &cluster()), &cluster(), &node(name)).unwrap()
    }

    fn authority(cookie: &Cookie) -> Authority {
        Authority::from_seed(&ClusterKeys::derive(cookie, &cluster()).ca_seed).unwrap()
    }

    /// A member whose certificate is signed like all others, but was altered before.
    fn signed(cookie: &Cookie, name: &str, alter: impl FnOnce(&mut CertificateParams)) -> Tls {
        let mut tls = tls(cookie, name);
        let mut params = leaf_params(certificate_name(&cluster(), &node(name)));
        alter(&mut params);
        tls.leaf = authority(cookie).sign(params, tls.hello_key().clone()).unwrap().into();
        tls
    }

    fn some_input(peer: &PeerCertificate) -> ProofInput<'_> {
        static NAME: std::sync::LazyLock<NodeName> = std::sync::LazyLock::new(|| node("x@host"));
        let own_spki = peer.spki();
        ProofInput {
            exporter: &[0; 32],
            role: Role::Dialler,
            name: &NAME,
            incarnation: 1,
            own_spki,
            peer_spki: &[0; 32],
        }
    }

    impl Tls {
        fn presenting(mut self, alter: impl FnOnce(&CertifiedKey) -> CertifiedKey) -> Self {
            let Leaf { key, spki, hello } = &*self.leaf;
            self.leaf = Arc::new(Leaf { key: alter(key).into(), spki: *spki, hello: hello.clone() });
            self
        }

        fn trusting(self, cookies: &[&Cookie]) -> Self {
            self.trust(cookies);
            self
        }

        fn trust(&self, cookies: &[&Cookie]) {
            let epoch = |cookie: &&Cookie| {
                let keys = ClusterKeys::derive(cookie, &cluster());
                Epoch { anchor: Authority::from_seed(&keys.ca_seed).unwrap().anchor, hello: keys.hello }
            };
            *self.trust.write().unwrap() = Arc::new(Trust::new(cookies.iter().map(epoch).collect()));
        }

        fn accepts(&self, other: &Self) -> bool {
            current(&self.trust).judge(&other.leaf.key.cert[0], &[], now()).is_ok()
        }
    }

    /// A client that takes any server, resumes whenever it can, and presents what it is given.
    pub(crate) fn rogue_client(identity: Option<&Tls>, protocols: &[&[u8]]) -> QuicClientConfig {
        let builder = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible));
        let mut config = match identity {
            Some(tls) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(tls.leaf.key.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::in_memory_sessions(16);
        config.enable_early_data = true;
        config.try_into().unwrap()
    }

    /// A server that takes any client, and hands out tickets for early data.
    pub(crate) fn rogue_server(identity: &Tls, protocols: &[&[u8]]) -> QuicServerConfig {
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_client_cert_verifier(WebPkiClientVerifier::no_client_auth())
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.leaf.key.clone())));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.max_early_data_size = u32::MAX;
        config.try_into().unwrap()
    }

    #[derive(Debug)]
    struct Gullible;

    impl ServerCertVerifier for Gullible {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }

    /// Two endpoints on this host, one of which dials the other.
    struct Mesh {
        client: Endpoint,
        server: Endpoint,
    }

    /// How a connection began at both ends.
    struct Met {
        dialler: Result<Connection, ConnectionError>,
        responder: Result<Connection, ConnectionError>,
        /// Dropping the endpoints would close the connections.
        _mesh: (Endpoint, Endpoint),
    }

    async fn meet(server: QuicServerConfig, client: QuicClientConfig) -> Met {
        Mesh::new(server, client).meet().await
    }

    impl Mesh {
        fn new(server: QuicServerConfig, client: QuicClientConfig) -> Self {
            let server = Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(server)), LOOPBACK).unwrap();
            let mut dialling = Endpoint::client(LOOPBACK).unwrap();
            dialling.set_default_client_config(quinn::ClientConfig::new(Arc::new(client)));
            Self { client: dialling, server }
        }

        fn dial(&self) -> quinn::Connecting {
            self.client.connect(self.server.local_addr().unwrap(), SERVER_NAME).unwrap()
        }

        async fn accept(&self) -> Result<Connection, ConnectionError> {
            self.server.accept().await.unwrap().accept()?.await
        }

        async fn meet(&self) -> Met {
            let (dialler, responder) = tokio::join!(self.dial(), self.accept());
            Met { dialler, responder, _mesh: (self.client.clone(), self.server.clone()) }
        }

        /// Takes the next dial and forgets it.
        async fn drain(&self) {
            let _ = self.accept().await;
        }
    }

    impl Met {
        #[track_caller]
        fn dialler_refuses(&self, code: u64, error: AuthError) {
            let dialler = self.dialler.as_ref().unwrap_err();
            let responder = self.responder.as_ref().unwrap_err();
            assert!(matches!(dialler, ConnectionError::TransportError(_)), "{dialler:?}");
            assert!(matches!(responder, ConnectionError::ConnectionClosed(_)), "{responder:?}");
            for end in [dialler, responder] {
                assert_eq!((code_of(end), classify(end).as_ref()), (code, Some(&error)), "{end:?}");
            }
        }

        /// The dialler may believe that it is connected, until it hears of the refusal.
        async fn responder_refuses(&self, code: u64, error: AuthError) {
            let dialler = match &self.dialler {
                Ok(connection) => &connection.closed().await,
                Err(error) => error,
            };
            let responder = self.responder.as_ref().unwrap_err();
            assert!(matches!(responder, ConnectionError::TransportError(_)), "{responder:?}");
            assert!(matches!(dialler, ConnectionError::ConnectionClosed(_)), "{dialler:?}");
            for end in [dialler, responder] {
                assert_eq!((code_of(end), classify(end).as_ref()), (code, Some(&error)), "{end:?}");
            }
        }
    }

    fn code_of(error: &ConnectionError) -> u64 {
        match error {
            ConnectionError::TransportError(error) => error.code.into(),
            ConnectionError::ConnectionClosed(close) => close.error_code.into(),
            other => panic!("{other:?} has no transport error code"),
        }
    }
}
