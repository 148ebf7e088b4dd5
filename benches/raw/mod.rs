//! The baseline of the benchmarks: quinn with mutual TLS, and nothing else.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// The largest UDP payload that quinn tries by itself.
pub(crate) const QUINN_MTU: u16 = 1452;

/// A certificate that both ends present and trust, with its key.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn generate() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        Self { certificate: certificate.der().to_vec(), key: key.serialize_der() }
    }
}

/// What makes endpoints of one identity.
pub(crate) struct Raw {
    identity: Identity,
    roots: Arc<rustls::RootCertStore>,
    provider: Arc<rustls::crypto::CryptoProvider>,
    mtu_max: u16,
}

impl Raw {
    pub(crate) fn new(identity: Identity, mtu_max: u16) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(identity.certificate.clone())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Self { identity, roots: Arc::new(roots), provider, mtu_max }
    }

    /// An endpoint on a free port of loopback, for both directions.
    pub(crate) fn endpoint(&self) -> quinn::Endpoint {
        let mut config = quinn::EndpointConfig::default();
        config.max_udp_payload_size(self.mtu_max.max(QUINN_MTU + 20)).unwrap();
        let socket = std::net::UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let runtime = Arc::new(quinn::TokioRuntime);
        quinn::Endpoint::new(config, Some(self.server()), socket, runtime).unwrap()
    }

    pub(crate) fn client(&self) -> quinn::ClientConfig {
        let mut tls = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain(), self.key())
            .unwrap();
        tls.resumption = rustls::client::Resumption::disabled();
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut client = quinn::ClientConfig::new(Arc::new(tls));
        client.transport_config(self.transport());
        client
    }

    fn server(&self) -> quinn::ServerConfig {
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone());
        let mut tls = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(self.chain(), self.key())
            .unwrap();
        tls.send_tls13_tickets = 0;
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(self.transport());
        server
    }

    /// Quinn's defaults, but for the MTU.
    fn transport(&self) -> Arc<quinn::TransportConfig> {
        let mut discovery = quinn::MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu_max);
        let mut transport = quinn::TransportConfig::default();
        transport.mtu_discovery_config(Some(discovery));
        Arc::new(transport)
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from(self.identity.certificate.clone())]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.identity.key.clone().into())
    }
}
