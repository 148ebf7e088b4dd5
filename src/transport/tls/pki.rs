//! An own PKI: reads its PEM texts, checks this node's certificate as a peer would, and then those of peers.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, DnsName, PrivateKeyDer, ServerName, TrustAnchor, UnixTime,
};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, ExpirationPolicy, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::trust::{Usages, refused_for};
use super::{Leaf, provider};
use crate::id::{ClusterName, HostName, NodeName};
use crate::identity::{AuthError, CERTIFICATES_MAX, IdentityError, IdentityFlaw, NamePolicy, Pem, Piece};

/// The largest certificate that is looked at, in bytes. Ordinary ones have one or two thousand.
pub(super) const CERTIFICATE_MAX: usize = 16 * 1024;

/// The most authorities that a node trusts.
const AUTHORITIES_MAX: usize = 64;

/// Beyond any date that a certificate can bear.
const END_OF_TIME: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));

/// Whom the authorities of a PKI have signed.
pub(super) struct Pki {
    anchors: Vec<TrustAnchor<'static>>,
    revocations: Vec<CertRevocationList<'static>>,
    names: NamePolicy,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pki {
    /// Reads the authorities and their revocations.
    pub(super) fn read(pem: &Pem) -> Result<Self, IdentityError> {
        let authorities = certificates(&pem.authorities, AUTHORITIES_MAX)?;
        let anchors = authorities.iter().map(anchor).collect::<Result<_, _>>();
        let lists = pem.revocations.iter().map(revocations);
        Ok(Self {
            anchors: anchors.map_err(|flaw| pem.authorities.flawed(flaw))?,
            revocations: lists.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect(),
            names: pem.names,
            algorithms: provider::default_provider().signature_verification_algorithms,
        })
    }

    pub(super) fn names(&self) -> NamePolicy {
        self.names
    }

    /// Reads this node's certificate and key, and checks them as a peer would.
    pub(super) fn own_leaf(
        &self,
        pem: &Pem,
        cluster: &ClusterName,
        node: &NodeName,
        now: UnixTime,
    ) -> Result<Leaf, IdentityError> {
        let chain = certificates(&pem.certificate, CERTIFICATES_MAX)?;
        let flawed = |flaw| pem.certificate.flawed(flaw);
        let (leaf, rest) = chain.split_first().ok_or_else(|| flawed(IdentityFlaw::NoCertificate))?;
        if chain.iter().any(|certificate| certificate.len() > CERTIFICATE_MAX) {
            return Err(flawed(IdentityFlaw::Malformed));
        }
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| flawed(IdentityFlaw::Malformed))?;
        self.verify(&leaf, rest, now).map_err(|error| flawed(flaw(&error)))?;
        if !self.is_for(&leaf, cluster, node) {
            let wanted = match self.names {
                NamePolicy::SanUri => format!("the URI {}", uri_of(cluster, node)),
                _ => format!("the host of {node}"),
            };
            return Err(flawed(IdentityFlaw::Name { wanted }));
        }
        let key = PrivateKeyDer::from_pem_slice(pem.key.bytes()).map_err(|_| pem.key.flawed(IdentityFlaw::NoKey))?;
        let signer = provider::default_provider().key_provider.load_private_key(key);
        let signer = signer.map_err(|_| pem.key.flawed(IdentityFlaw::KeyKind))?;
        let spki = Sha256::digest(leaf.subject_public_key_info()).into();
        let not_after = self.not_after(&leaf, rest);
        let key = CertifiedKey::new(chain.clone(), signer);
        key.keys_match().map_err(|_| pem.key.flawed(IdentityFlaw::KeyMismatch))?;
        Ok(Leaf { key: Arc::new(key), spki, not_after })
    }

    /// Says why a peer's certificate is refused.
    pub(super) fn judge(
        &self,
        leaf: &EndEntityCert<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), AuthError> {
        self.verify(leaf, rest, now).map_err(|error| match error {
            // One that signed itself has no issuer whom anybody could know.
            webpki::Error::UnknownIssuer if leaf.issuer() == leaf.subject() => AuthError::Certificate,
            // Another authority of the same name.
            webpki::Error::InvalidSignatureForPublicKey => AuthError::UnknownIssuer,
            error => refused_for(&error),
        })
    }

    fn verify(
        &self,
        leaf: &EndEntityCert<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let lists: Vec<_> = self.revocations.iter().collect();
        // An authority without a list revokes nothing, and an old list tells more than none.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let algorithms = self.algorithms.all;
        leaf.verify_for_usage(algorithms, &self.anchors, rest, now, Usages::BothOrNone, revocation, None).map(drop)
    }

    /// Whether a certificate is for that node.
    pub(super) fn is_for(&self, leaf: &EndEntityCert<'_>, cluster: &ClusterName, node: &NodeName) -> bool {
        match self.names {
            NamePolicy::SanHost => {
                let host = match node.host() {
                    HostName::Ip(ip) => Some(ServerName::IpAddress(ip.into())),
                    HostName::Dns(name) => DnsName::try_from(name).ok().map(ServerName::DnsName),
                };
                host.is_some_and(|host| leaf.verify_is_valid_for_subject_name(&host).is_ok())
            }
            NamePolicy::SanUri => {
                let wanted = uri_of(cluster, node);
                leaf.valid_uri_names().any(|uri| uri == wanted)
            }
            NamePolicy::AnyInCa => true,
        }
    }

    /// Until when a good chain stays good.
    fn not_after(&self, leaf: &EndEntityCert<'_>, rest: &[CertificateDer<'_>]) -> Option<UnixTime> {
        // The check says when what it finds expired did so; the node's own certificate comes first.
        let own = expired_at(&self.verify(leaf, rest, END_OF_TIME))?;
        Some(expired_at(&self.verify(leaf, rest, own)).map_or(own, |earlier| earlier.min(own)))
    }
}

/// The certificates of a PEM text.
fn certificates(piece: &Piece, max: usize) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(piece.bytes()) {
        certificates.push(certificate.map_err(|_| piece.flawed(IdentityFlaw::NotPem))?);
        if certificates.len() > max {
            return Err(piece.flawed(IdentityFlaw::TooMany { max }));
        }
    }
    if certificates.is_empty() {
        return Err(piece.flawed(IdentityFlaw::NoCertificate));
    }
    Ok(certificates)
}

/// A trusted authority. Whatever is trusted may sign, so nothing else than an authority is to be.
fn anchor(certificate: &CertificateDer<'static>) -> Result<TrustAnchor<'static>, IdentityFlaw> {
    let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|_| IdentityFlaw::Malformed)?.to_owned();
    let is_authority = match EndEntityCert::try_from(certificate) {
        Ok(parsed) => {
            // Whether it is one is looked at after its dates, and before who signed it.
            let check = |at| parsed.verify_for_usage(&[], &[], &[], at, Usages::BothOrNone, None, None).map(drop);
            let last_day = expired_at(&check(END_OF_TIME)).ok_or(IdentityFlaw::Malformed)?;
            matches!(check(last_day), Err(webpki::Error::CaUsedAsEndEntity))
        }
        // Authorities may be restricted in ways that no node is.
        Err(webpki::Error::UnsupportedCriticalExtension) => true,
        Err(_) => false,
    };
    if is_authority { Ok(anchor) } else { Err(IdentityFlaw::NotAuthority) }
}

/// The lists of a text, which is PEM, or DER and then one list.
fn revocations(piece: &Piece) -> Result<Vec<CertRevocationList<'static>>, IdentityError> {
    let list = |der: &[u8]| {
        let list = BorrowedCertRevocationList::from_der(der).and_then(|list| list.to_owned());
        list.map(CertRevocationList::from).map_err(|_| piece.flawed(IdentityFlaw::Revocations))
    };
    let sections: Result<Vec<_>, pem::Error> = CertificateRevocationListDer::pem_slice_iter(piece.bytes()).collect();
    match sections {
        Ok(sections) if !sections.is_empty() => sections.iter().map(|section| list(section)).collect(),
        _ => Ok(vec![list(piece.bytes())?]),
    }
}

fn expired_at(verified: &Result<(), webpki::Error>) -> Option<UnixTime> {
    match verified {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(*not_after),
        _ => None,
    }
}

fn flaw(error: &webpki::Error) -> IdentityFlaw {
    match error {
        webpki::Error::CertExpired { .. } => IdentityFlaw::Expired,
        webpki::Error::CertNotValidYet { .. } => IdentityFlaw::NotYetValid,
        webpki::Error::CertRevoked => IdentityFlaw::Revoked,
        webpki::Error::CaUsedAsEndEntity => IdentityFlaw::IsAuthority,
        webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => IdentityFlaw::Usages,
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => IdentityFlaw::UnknownIssuer,
        _ => IdentityFlaw::Malformed,
    }
}

/// The URI in the certificate of a node (RFC 3986). Names hold no `/`; what is not ASCII, or means something else in a URI,
/// is percent-encoded.
fn uri_of(cluster: &ClusterName, node: &NodeName) -> String {
    let mut uri = format!("distribute://{cluster}/");
    for byte in node.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'@' | b':' | b'[' | b']' => {
                uri.push(char::from(byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}
