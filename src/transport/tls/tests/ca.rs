//! Authorities that sign whatever a test wants. Integration tests use it too.

#![allow(dead_code, reason = "not all who include it use all of it")]

use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType, SerialNumber,
    SignatureAlgorithm,
};

/// An authority: the root of a PKI, or one below it.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    /// From this one up to below the root: what stands behind a node's certificate.
    intermediates: Vec<Vec<u8>>,
    root: Vec<u8>,
}

/// A node's certificate with its key, and what stands behind it.
pub(crate) struct Signed {
    /// DER, the node's own first.
    pub(crate) chain: Vec<Vec<u8>>,
    /// PKCS#8.
    pub(crate) key: Vec<u8>,
    pub(crate) serial: u64,
}

impl Signed {
    pub(crate) fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }

    pub(crate) fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key)
    }
}

impl Ca {
    pub(crate) fn root(name: &str) -> Self {
        let params = authority(name);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self { params, key, intermediates: Vec::new(), root }
    }

    /// An authority below this one.
    pub(crate) fn below(&self, name: &str, alter: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority(name);
        alter(&mut params);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let own = params.signed_by(&key, &self.issuer()).unwrap().der().to_vec();
        let intermediates = [vec![own], self.intermediates.clone()].concat();
        Self { params, key, intermediates, root: self.root.clone() }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub(crate) fn root_pem(&self) -> String {
        pem("CERTIFICATE", &self.root)
    }

    /// Signs a certificate as nodes have them, for these hosts and URIs.
    pub(crate) fn sign(&self, hosts: &[&str], uris: &[&str]) -> Signed {
        self.sign_altered(hosts, uris, |_| {})
    }

    pub(crate) fn sign_altered(
        &self,
        hosts: &[&str],
        uris: &[&str],
        alter: impl FnOnce(&mut CertificateParams),
    ) -> Signed {
        self.sign_key(&PKCS_ECDSA_P256_SHA256, hosts, uris, alter)
    }

    pub(crate) fn sign_key(
        &self,
        algorithm: &'static SignatureAlgorithm,
        hosts: &[&str],
        uris: &[&str],
        alter: impl FnOnce(&mut CertificateParams),
    ) -> Signed {
        let (mut params, serial) = leaf(hosts, uris);
        alter(&mut params);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let own = params.signed_by(&key, &self.issuer()).unwrap().der().to_vec();
        Signed { chain: [vec![own], self.intermediates.clone()].concat(), key: key.serialize_der(), serial }
    }

    /// A list of revoked certificates of this authority, PEM.
    pub(crate) fn revoke(&self, serials: &[u64]) -> String {
        pem("X509 CRL", &self.revoke_der(serials))
    }

    pub(crate) fn revoke_der(&self, serials: &[u64]) -> Vec<u8> {
        let day = rcgen::date_time_ymd(2024, 1, 1);
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: day,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: day,
            // Long ago: an old list still counts.
            next_update: rcgen::date_time_ymd(2024, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer()).unwrap().der().to_vec()
    }
}

/// A certificate that nobody but its own key has signed.
pub(crate) fn self_signed(hosts: &[&str]) -> Signed {
    let (mut params, serial) = leaf(hosts, &[]);
    params.distinguished_name.push(DnType::CommonName, "myself");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    Signed { chain: vec![params.self_signed(&key).unwrap().der().to_vec()], key: key.serialize_der(), serial }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2999, 1, 1);
    params
}

fn leaf(hosts: &[&str], uris: &[&str]) -> (CertificateParams, u64) {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let host = |host: &&str| match host.parse() {
        Ok(ip) => SanType::IpAddress(ip),
        Err(_) => SanType::DnsName((*host).try_into().unwrap()),
    };
    let uri = |uri: &&str| SanType::URI((*uri).try_into().unwrap());
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = hosts.iter().map(host).chain(uris.iter().map(uri)).collect();
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from(serial));
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2999, 1, 1);
    (params, serial)
}

/// DER as a text (RFC 7468).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let lines: String = body.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}
