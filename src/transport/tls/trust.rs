//! Whose certificates are accepted.

use std::collections::{BTreeSet, VecDeque};
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext,
};

use super::pki::Pki;
use super::provider;
use crate::id::{ClusterName, NodeName};
use crate::identity::{Allowed, AuthError, HelloKey, KeyHash, NamePolicy, certificate_name};

/// The most epochs that a node trusts at a time: a rotation needs two, and handshakes cost more with each.
pub(super) const EPOCHS_MAX: usize = 4;

/// Whose certificates are accepted, and which of these nodes are let in.
pub(super) struct Trust {
    roots: Roots,
    algorithms: WebPkiSupportedAlgorithms,
    allowed: Option<Arc<Allowed>>,
    blocked: Arc<BTreeSet<KeyHash>>,
    /// Chains that were accepted a moment ago: each link's is judged by TLS and again at its greeting. A change of the trust
    /// is another `Trust`, which remembers nothing.
    accepted: Mutex<VecDeque<Accepted>>,
}

/// Who signs nodes.
#[derive(Clone)]
pub(super) enum Roots {
    /// The authorities of cookies. Several epochs let a cluster change its cookie node by node.
    Cookies(Vec<Epoch>),
    /// Those of a PKI, and the cookies that are accepted beside it.
    Pki { pki: Arc<Pki>, proofs: Vec<HelloKey> },
}

/// One cookie's share of the trust.
#[derive(Clone)]
pub(super) struct Epoch {
    pub(super) anchor: TrustAnchor<'static>,
    pub(super) hello: HelloKey,
}

/// The hash of a chain, the epoch that it belongs to, and when that was found.
type Accepted = ([u8; 32], usize, UnixTime);

/// How many accepted chains are remembered: as many as may be in their handshake.
const ACCEPTED_MAX: usize = 128;

/// For how many seconds one is, which is as long as a handshake takes at most.
const ACCEPTED_FOR: u64 = 5;

impl Trust {
    pub(super) fn new(roots: Roots, allowed: Option<Arc<Allowed>>, blocked: Arc<BTreeSet<KeyHash>>) -> Self {
        let algorithms = match &roots {
            Roots::Cookies(epochs) => {
                assert!((1..=EPOCHS_MAX).contains(&epochs.len()), "a node trusts one to four epochs");
                ed25519()
            }
            Roots::Pki { .. } => provider::default_provider().signature_verification_algorithms,
        };
        Self { roots, algorithms, allowed, blocked, accepted: Mutex::default() }
    }

    pub(super) fn with_roots(&self, roots: Roots) -> Self {
        Self::new(roots, self.allowed.clone(), self.blocked.clone())
    }

    pub(super) fn with_allowed(&self, allowed: Option<Arc<Allowed>>) -> Self {
        Self::new(self.roots.clone(), allowed, self.blocked.clone())
    }

    pub(super) fn with_blocked(&self, blocked: Arc<BTreeSet<KeyHash>>) -> Self {
        Self::new(self.roots.clone(), self.allowed.clone(), blocked)
    }

    pub(super) fn again(&self) -> Self {
        self.with_roots(self.roots.clone())
    }

    pub(super) fn roots(&self) -> &Roots {
        &self.roots
    }

    pub(super) fn allowed(&self) -> Option<&Allowed> {
        self.allowed.as_deref()
    }

    pub(super) fn blocked(&self) -> &BTreeSet<KeyHash> {
        &self.blocked
    }

    pub(super) fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }

    /// The keys of the cookies that are accepted.
    pub(super) fn proofs(&self) -> Box<dyn Iterator<Item = &HelloKey> + '_> {
        match &self.roots {
            Roots::Cookies(epochs) => Box::new(epochs.iter().map(|epoch| &epoch.hello)),
            Roots::Pki { proofs, .. } => Box::new(proofs.iter()),
        }
    }

    /// Whether anything tells members from other holders of certificates.
    pub(super) fn tells_members(&self, has_cookie: bool) -> bool {
        let Roots::Pki { pki, .. } = &self.roots else { return true };
        has_cookie
            || match pki.names() {
                NamePolicy::SanUri => true,
                NamePolicy::SanHost => self.allowed.is_some(),
                // Any certificate is for any name, so names tell nothing.
                NamePolicy::AnyInCa => self.allowed().is_some_and(Allowed::demands_keys),
            }
    }

    /// Returns the keys that may have made the peer's proof, or why its certificate is refused.
    ///
    /// Both directions ask the same: a node's certificate serves it as dialler and as responder.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Vec<HelloKey>, AuthError> {
        let mut hash = Sha256::new();
        for certificate in chain {
            hash.update((certificate.len() as u64).to_be_bytes());
            hash.update(certificate);
        }
        let hash = hash.finalize().into();
        if let Some(at) = self.accepted_lately(&hash, now) {
            return Ok(self.proofs_of(at));
        }
        let at = self.epoch_of(chain, now)?;
        // Those of a PKI expire, so they are looked at each time.
        if matches!(self.roots, Roots::Cookies(_)) {
            let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
            accepted.truncate(ACCEPTED_MAX - 1);
            accepted.push_front((hash, at, now));
        }
        Ok(self.proofs_of(at))
    }

    fn epoch_of(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<usize, AuthError> {
        let (leaf, rest) = chain.split_first().ok_or(AuthError::NoCertificate)?;
        self.check_size(chain)?;
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| AuthError::Certificate)?;
        let at = match &self.roots {
            Roots::Cookies(epochs) => self.judge_by_cookies(epochs, &leaf, now)?,
            Roots::Pki { pki, .. } => {
                pki.judge(&leaf, rest, now)?;
                0
            }
        };
        let key = KeyHash::from_bytes(Sha256::digest(leaf.subject_public_key_info()).into());
        if self.blocked.contains(&key) {
            return Err(AuthError::Revoked);
        }
        if self.allowed().is_some_and(|allowed| !allowed.may_admit_key(key)) {
            return Err(AuthError::NotAllowed);
        }
        Ok(at)
    }

    fn check_size(&self, chain: &[CertificateDer<'_>]) -> Result<(), AuthError> {
        let (count, size) = match &self.roots {
            // The authority signs nodes itself. More certificates are more to parse, and nothing that a node would send.
            Roots::Cookies(_) => (1, usize::MAX),
            Roots::Pki { .. } => (crate::identity::CERTIFICATES_MAX, super::pki::CERTIFICATE_MAX),
        };
        let is_fine = chain.len() <= count && chain.iter().all(|certificate| certificate.len() <= size);
        if is_fine { Ok(()) } else { Err(AuthError::Certificate) }
    }

    fn judge_by_cookies(&self, epochs: &[Epoch], leaf: &EndEntityCert<'_>, now: UnixTime) -> Result<usize, AuthError> {
        let mut refused = AuthError::UnknownIssuer;
        for (at, epoch) in epochs.iter().enumerate() {
            let anchor = slice::from_ref(&epoch.anchor);
            match leaf.verify_for_usage(self.algorithms.all, anchor, &[], now, Usages::Both, None, None) {
                Ok(_) => return Ok(at),
                Err(webpki::Error::UnknownIssuer) => {}
                Err(webpki::Error::InvalidSignatureForPublicKey) => refused = AuthError::WrongCookie,
                Err(error) => refused = refused_for(&error),
            }
        }
        Err(refused)
    }

    fn proofs_of(&self, at: usize) -> Vec<HelloKey> {
        match &self.roots {
            Roots::Cookies(epochs) => epochs.get(at).map(|epoch| epoch.hello.clone()).into_iter().collect(),
            Roots::Pki { proofs, .. } => proofs.clone(),
        }
    }

    fn accepted_lately(&self, hash: &[u8; 32], now: UnixTime) -> Option<usize> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, at, then) = accepted.iter().find(|(accepted, ..)| accepted == hash)?;
        (now.as_secs().checked_sub(then.as_secs())? <= ACCEPTED_FOR).then_some(*at)
    }

    /// Says why a certificate is not for that node, or why the node is not let in.
    pub(super) fn admits(
        &self,
        leaf: &EndEntityCert<'_>,
        spki: [u8; 32],
        cluster: &ClusterName,
        node: &NodeName,
    ) -> Result<(), AuthError> {
        let is_named = match &self.roots {
            Roots::Cookies(_) => only_dns_name(leaf) == Some(&*certificate_name(cluster, node)),
            Roots::Pki { pki, .. } => pki.is_for(leaf, cluster, node),
        };
        if !is_named {
            return Err(AuthError::NameMismatch);
        }
        match self.allowed() {
            Some(allowed) if !allowed.admits(node, KeyHash::from_bytes(spki)) => Err(AuthError::NotAllowed),
            _ => Ok(()),
        }
    }
}

/// What an error of the chain's check means to those who refuse it.
pub(super) fn refused_for(error: &webpki::Error) -> AuthError {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => AuthError::Expired,
        webpki::Error::CertRevoked => AuthError::Revoked,
        webpki::Error::UnknownIssuer => AuthError::UnknownIssuer,
        _ => AuthError::Certificate,
    }
}

/// Demands that a certificate is for servers and for clients (RFC 5280, section 4.2.1.12).
#[derive(Clone, Copy)]
pub(super) enum Usages {
    /// It must say so.
    Both,
    /// It may say nothing about it.
    BothOrNone,
}

impl ExtendedKeyUsageValidator for Usages {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        // The object identifiers 1.3.6.1.5.5.7.3.1 and 1.3.6.1.5.5.7.3.2.
        const SERVER: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
        const CLIENT: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
        let (mut server, mut client, mut any) = (false, false, false);
        for purpose in purposes {
            let purpose = purpose?;
            any = true;
            server |= purpose == KeyPurposeId::new(SERVER);
            client |= purpose == KeyPurposeId::new(CLIENT);
        }
        if server && client || !any && matches!(self, Self::BothOrNone) {
            return Ok(());
        }
        let required = KeyUsage::required(if server { CLIENT } else { SERVER });
        Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present: Vec::new() }))
    }
}

/// Returns the DNS name of a certificate that has exactly one. It may be a wildcard, which equals no node's name.
fn only_dns_name<'a>(certificate: &EndEntityCert<'a>) -> Option<&'a str> {
    let mut names = certificate.valid_dns_names();
    let name = names.next()?;
    names.next().is_none().then_some(name)
}

/// The one signature algorithm that nodes with a cookie use.
fn ed25519() -> WebPkiSupportedAlgorithms {
    let mapping = provider::default_provider().signature_verification_algorithms.mapping;
    let at = mapping.iter().position(|(scheme, _)| *scheme == SignatureScheme::ED25519);
    let ed25519 = &mapping[at.expect("the provider has Ed25519")];
    WebPkiSupportedAlgorithms { all: ed25519.1, mapping: slice::from_ref(ed25519) }
}
