//! Bytes between nodes: quinn, rustls and rcgen are named here and nowhere else.
//!
//! An [`Endpoint`] binds a socket of a [`Network`] and turns dials and arrivals into [`Link`]s whose two ends have
//! authenticated each other by TLS. What travels on a link is not known here.

#[cfg(feature = "sim")]
pub(crate) mod fabric;
pub(crate) mod link;
#[cfg(test)]
pub(crate) mod rogue;
pub(crate) mod tls;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::VarInt;

use self::tls::Tls;
use crate::config::Config;
use crate::error::ConnectError;
use crate::id::{HostName, NodeName};
use crate::identity::AuthError;

pub(crate) use self::link::Link;

/// Where a node's datagrams travel: the system's network, or one in memory.
///
/// The default is the system's. With feature `sim`, a `sim::Host` becomes a network too.
#[derive(Clone, Default)]
pub struct Network(Kind);

#[derive(Clone, Default)]
enum Kind {
    #[default]
    System,
    #[cfg(feature = "sim")]
    Fabric(fabric::Host),
}

impl Network {
    /// Returns the system's network.
    pub fn system() -> Self {
        Self(Kind::System)
    }

    /// Whether blocking work may go to another thread: never under a paused clock.
    pub(crate) fn allows_blocking(&self) -> bool {
        matches!(self.0, Kind::System)
    }

    /// What to bind for all addresses of this machine.
    pub(crate) fn all_addresses(&self) -> IpAddr {
        match &self.0 {
            // An IPv6 socket takes IPv4 too, where the system has IPv6 at all.
            Kind::System => match std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
                Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
                Err(_) => Ipv4Addr::UNSPECIFIED.into(),
            },
            #[cfg(feature = "sim")]
            Kind::Fabric(host) => host.ip(),
        }
    }

    /// All addresses of a host, as of now.
    async fn resolve(&self, host: &HostName, port: u16) -> Vec<SocketAddr> {
        match (&self.0, host) {
            (_, HostName::Ip(ip)) => vec![(*ip, port).into()],
            (Kind::System, HostName::Dns(name)) => {
                tokio::net::lookup_host((name.as_str(), port)).await.map(Iterator::collect).unwrap_or_default()
            }
            #[cfg(feature = "sim")]
            (Kind::Fabric(fabric), HostName::Dns(name)) => {
                fabric.resolve(name).into_iter().map(|ip| (ip, port).into()).collect()
            }
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::System => f.write_str("Network::System"),
            #[cfg(feature = "sim")]
            Kind::Fabric(host) => write!(f, "Network::Fabric({})", host.ip()),
        }
    }
}

#[cfg(feature = "sim")]
impl From<fabric::Host> for Network {
    fn from(host: fabric::Host) -> Self {
        Self(Kind::Fabric(host))
    }
}

#[cfg(feature = "sim")]
impl From<&fabric::Host> for Network {
    fn from(host: &fabric::Host) -> Self {
        host.clone().into()
    }
}

/// A bound socket that dials and accepts links.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    quinn: quinn::Endpoint,
    network: Network,
    transport: Arc<quinn::TransportConfig>,
    handshake_timeout: Duration,
    identity: Arc<OnceLock<Tls>>,
    /// How a test lets arrivals in, in place of the identity.
    #[cfg(test)]
    posing: Arc<std::sync::Mutex<Option<Arc<quinn::ServerConfig>>>>,
}

impl Endpoint {
    /// Binds the socket. It neither dials nor accepts until [`Endpoint::identify`].
    pub(crate) fn bind(network: Network, address: SocketAddr, config: &Config) -> io::Result<Self> {
        let mut endpoint = quinn::EndpointConfig::default();
        endpoint.supported_versions(vec![1]);
        endpoint.max_udp_payload_size(config.mtu_max.max(1472)).map_err(io::Error::other)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let quinn = match &network.0 {
            Kind::System => quinn::Endpoint::new(endpoint, None, std::net::UdpSocket::bind(address)?, runtime)?,
            #[cfg(feature = "sim")]
            Kind::Fabric(host) => {
                if !address.ip().is_unspecified() && address.ip() != host.ip() {
                    return Err(io::ErrorKind::AddrNotAvailable.into());
                }
                quinn::Endpoint::new_with_abstract_socket(endpoint, None, host.bind(address.port())?, runtime)?
            }
        };
        Ok(Self {
            quinn,
            network,
            transport: Arc::new(transport(config)),
            handshake_timeout: config.handshake_timeout,
            identity: Arc::default(),
            #[cfg(test)]
            posing: Arc::default(),
        })
    }

    /// Gives the endpoint its identity; from now on it accepts.
    pub(crate) fn identify(&self, tls: &Tls, config: &Config) {
        let _ = self.identity.set(tls.clone());
        // Each arrival is let in by what holds at that moment. What the endpoint itself has stays for its life, and with it
        // the key of its retry tokens.
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls::closed_config()));
        let mut tokens = quinn::ValidationTokenConfig::default();
        tokens.sent(0);
        server
            .transport_config(self.transport.clone())
            .validation_token_config(tokens)
            .max_incoming(config.incoming_max)
            .incoming_buffer_size(config.incoming_buffer as u64)
            .incoming_buffer_size_total(config.incoming_buffer_total as u64);
        self.quinn.set_server_config(Some(server));
    }

    /// Whether blocking work may go to another thread.
    pub(crate) fn allows_blocking(&self) -> bool {
        self.network.allows_blocking()
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.quinn.local_addr()
    }

    /// All addresses where a node may be, as of now.
    pub(crate) async fn resolve(&self, name: &NodeName) -> Vec<SocketAddr> {
        self.resolve_host(&name.host(), name.port()).await
    }

    /// All addresses of a host, as of now.
    pub(crate) async fn resolve_host(&self, host: &HostName, port: u16) -> Vec<SocketAddr> {
        self.network.resolve(host, port).await
    }

    /// Dials one address. The far side proves that it is `expected`.
    pub(crate) async fn dial(&self, tls: &Tls, address: SocketAddr, expected: &NodeName) -> Result<Link, ConnectError> {
        self.dial_expecting(tls, address, Some(expected)).await
    }

    /// Dials one address, where any node of the cluster will do.
    pub(crate) async fn dial_anyone(&self, tls: &Tls, address: SocketAddr) -> Result<Link, ConnectError> {
        self.dial_expecting(tls, address, None).await
    }

    async fn dial_expecting(
        &self,
        tls: &Tls,
        address: SocketAddr,
        expected: Option<&NodeName>,
    ) -> Result<Link, ConnectError> {
        if !may_be_dialled(address) {
            return Err(ConnectError::BadAddress(address));
        }
        let (client, own) = tls.dial(expected);
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        client.version(1).transport_config(self.transport.clone());
        let connecting = self.quinn.connect_with(client, address, tls::SERVER_NAME).map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => ConnectError::Shutdown,
            _ => ConnectError::BadAddress(address),
        })?;
        match tokio::time::timeout(self.handshake_timeout, connecting).await {
            Err(_) => Err(ConnectError::Timeout(self.handshake_timeout)),
            Ok(Err(error)) => Err(link::connect_error(&error, self.handshake_timeout)),
            Ok(Ok(connection)) => Ok(Link::new(connection, own)),
        }
    }

    /// The next arrival; `None` once the endpoint is closed.
    pub(crate) async fn accept(&self) -> Option<Arrival> {
        self.quinn.accept().await.map(|incoming| Arrival { incoming, endpoint: self.clone() })
    }

    /// Gives the socket up for another that nobody knows.
    fn let_go(&self) {
        // quinn also keeps the socket before the present one.
        for _ in 0..2 {
            let _ = match &self.network.0 {
                Kind::System => {
                    std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|any| self.quinn.rebind(any))
                }
                #[cfg(feature = "sim")]
                Kind::Fabric(host) => host.bind(0).and_then(|any| self.quinn.rebind_abstract(any)),
            };
        }
    }

    /// Closes what is left, and waits until the last word is said or the time is over.
    pub(crate) async fn close(&self, patience: Duration) {
        self.quinn.close(VarInt::from_u32(crate::wire::Code::SHUTDOWN.0), b"");
        if tokio::time::timeout(patience, self.quinn.wait_idle()).await.is_err() {
            // quinn keeps the socket for a connection that its peer closed with its first packet, until the idle time-out. The
            // port is to be free for the next node.
            self.let_go();
        }
    }
}

/// A first packet from somebody.
#[derive(Debug)]
pub(crate) struct Arrival {
    incoming: quinn::Incoming,
    endpoint: Endpoint,
}

impl Arrival {
    pub(crate) fn address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Whether the sender has shown that it receives what is sent to its address.
    pub(crate) fn is_proven(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Turns it away: there is no room.
    pub(crate) fn refuse(self) {
        self.incoming.refuse();
    }

    /// Turns it away without a word.
    pub(crate) fn ignore(self) {
        self.incoming.ignore();
    }

    /// Has the sender come again with a proof of its address, which it does not have yet.
    pub(crate) fn retry(self) {
        if let Err(error) = self.incoming.retry() {
            error.into_incoming().ignore();
        }
    }

    /// Completes the TLS handshake, with what this node presents and whom it trusts at this moment. Without a reason it was
    /// not refused, but took too long or was given up.
    pub(crate) async fn accept(self) -> Result<Link, Option<AuthError>> {
        let Self { incoming, endpoint } = self;
        let Some(own) = endpoint.identity.get().map(Tls::current) else { return Err(None) };
        let mut server = quinn::ServerConfig::with_crypto(own.server());
        server.transport_config(endpoint.transport.clone());
        let server = Arc::new(server);
        #[cfg(test)]
        let server = endpoint.posing.lock().unwrap().clone().unwrap_or(server);
        let patience = endpoint.handshake_timeout;
        // The endpoint is not kept from closing by those who are still about to come in.
        drop(endpoint);
        let connecting = incoming.accept_with(server).map_err(|error| refused(&error))?;
        match tokio::time::timeout(patience, connecting).await {
            Err(_) => Err(None),
            Ok(Err(error)) => Err(refused(&error)),
            Ok(Ok(connection)) => Ok(Link::new(connection, own)),
        }
    }
}

/// Why a handshake was refused, here or there; `None` when it was not.
fn refused(error: &quinn::ConnectionError) -> Option<AuthError> {
    let is_broken = matches!(error, quinn::ConnectionError::TransportError(_));
    tls::classify(error).or_else(|| is_broken.then_some(AuthError::Protocol))
}

/// A member may not turn this node into a scanner of places where no node can be.
fn may_be_dialled(address: SocketAddr) -> bool {
    let is_broadcast = matches!(address.ip(), IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast() && !is_broadcast
}

/// QUIC's own settings. Where they differ from quinn's, a stranger or a crowd is the reason.
fn transport(config: &Config) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    let idle = VarInt::try_from(config.quic_idle_timeout.as_millis() as u64).unwrap_or(VarInt::MAX);
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(config.mtu_max);
    transport
        .max_idle_timeout(Some(idle.into()))
        .keep_alive_interval(None)
        // Before HELLO: the greeting stream, and room for no more than a greeting.
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(link::GREETING_WINDOW))
        .stream_receive_window(VarInt::from_u32(config.stream_window))
        .send_window(config.send_window.into())
        .datagram_receive_buffer_size(Some(config.datagram_buffer))
        // Room for one of full size: what waits, waits where it is known what goes first.
        .datagram_send_buffer_size(config.mtu_max.into())
        .allow_spin(false)
        .mtu_discovery_config(Some(mtu));
    transport
}
