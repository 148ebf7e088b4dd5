//! The authority of a cookie, for as long as it takes to sign one certificate.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::{PrivatePkcs8KeyDer, TrustAnchor};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Leaf, provider};
use crate::id::{ClusterName, NodeName};
use crate::identity::{IdentityError, certificate_name, fill_random};

pub(super) struct Authority {
    pub(super) params: CertificateParams,
    pub(super) key: Zeroizing<KeyPair>,
    pub(super) anchor: TrustAnchor<'static>,
}

/// The part of an Ed25519 public key's SPKI before the key itself (RFC 8410, section 4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl Authority {
    pub(super) fn from_seed(seed: &[u8; 32]) -> Result<Self, IdentityError> {
        // The seed as PKCS#8, version 1 (RFC 8410, section 7).
        let mut der = Zeroizing::new([0; 48]);
        der[..16].copy_from_slice(&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20]);
        der[16..].copy_from_slice(seed);
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(&der[..])).map_err(cannot_make)?;
        let key = Zeroizing::new(key);

        let mut params = CertificateParams::default();
        // The same for all clusters: strangers see it in every certificate.
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "distribute cluster");
        params.serial_number = Some(SerialNumber::from_slice(&[1]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        valid_forever(&mut params);

        let certificate = params.self_signed(&*key).map_err(cannot_make)?;
        let anchor = webpki::anchor_from_trusted_cert(certificate.der()).map_err(cannot_make)?.to_owned();
        Ok(Self { params, key, anchor })
    }

    /// What is left of the authority: enough to check what it signed.
    pub(super) fn into_anchor(self) -> TrustAnchor<'static> {
        self.anchor
    }

    /// Makes a certificate for a fresh random key.
    pub(super) fn new_leaf(&self, cluster: &ClusterName, node: &NodeName) -> Result<Leaf, IdentityError> {
        self.sign(leaf_params(certificate_name(cluster, node)))
    }

    pub(super) fn sign(&self, params: CertificateParams) -> Result<Leaf, IdentityError> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ED25519).map_err(cannot_make)?);
        let issuer = Issuer::from_params(&self.params, &*self.key);
        let certificate = params.signed_by(&*key, &issuer).map_err(cannot_make)?;
        let signer = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key.serialized_der()));
        Ok(Leaf {
            spki: Sha256::digest(key.subject_public_key_info()).into(),
            key: Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer.map_err(cannot_make)?)),
            not_after: None,
        })
    }

    /// Makes another certificate for the key of one that a node has.
    pub(super) fn sign_again(
        &self,
        leaf: &Leaf,
        cluster: &ClusterName,
        node: &NodeName,
    ) -> Result<Leaf, IdentityError> {
        let spki = leaf.key.key.public_key().ok_or_else(|| IdentityError::Tls("the key has no public part".into()))?;
        let raw = spki.strip_prefix(&ED25519_SPKI[..]).unwrap_or_default();
        let raw = raw.try_into().map_err(|_| IdentityError::Tls("the key is not an Ed25519 key".into()))?;
        let issuer = Issuer::from_params(&self.params, &*self.key);
        let params = leaf_params(certificate_name(cluster, node));
        let certificate = params.signed_by(&Ed25519Public(raw), &issuer).map_err(cannot_make)?;
        let key = CertifiedKey::new(vec![certificate.der().clone()], leaf.key.key.clone());
        Ok(Leaf { spki: leaf.spki, key: Arc::new(key), not_after: None })
    }
}

/// A public key without its private one.
struct Ed25519Public([u8; 32]);

impl PublicKeyData for Ed25519Public {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

pub(super) fn leaf_params(dns_name: String) -> CertificateParams {
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

/// Of a cookie's own certificates, which hold nothing that a user gave.
fn cannot_make(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}
