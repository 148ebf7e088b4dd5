//! What a peer that keeps no rules does to a link, for tests of those that must bear it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quinn::VarInt;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

use super::link::{Sender, StreamError};
use super::tls::{self, Tls};
use super::{Endpoint, Link};
use crate::error::ConnectError;
use crate::id::NodeName;

impl Endpoint {
    /// Dials with any TLS configuration.
    pub(crate) async fn dial_as(&self, tls: QuicClientConfig, address: SocketAddr) -> Result<Link, ConnectError> {
        let mut client = quinn::ClientConfig::new(Arc::new(tls));
        client.transport_config(self.transport.clone());
        let connecting = self.quinn.connect_with(client, address, tls::SERVER_NAME).expect("a good address");
        let connected = connecting.await.map_err(|error| super::link::connect_error(&error, self.handshake_timeout));
        connected.map(|connection| Link::new(connection, tls::tests::nobody()))
    }

    /// Accepts with any TLS configuration.
    pub(crate) fn serve_as(&self, tls: QuicServerConfig) {
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(self.transport.clone());
        *self.posing.lock().unwrap() = Some(Arc::new(server));
    }

    /// Sends a first packet, and lets whoever holds the result decide how long it is repeated.
    pub(crate) fn knock(&self, tls: &Tls, address: SocketAddr, expected: &NodeName) -> Knock {
        let mut client = quinn::ClientConfig::new(Arc::new(tls.dial(Some(expected)).0));
        client.transport_config(self.transport.clone());
        Knock { _connecting: self.quinn.connect_with(client, address, tls::SERVER_NAME).expect("a good address") }
    }
}

/// A handshake that began.
#[derive(Debug)]
pub(crate) struct Knock {
    _connecting: quinn::Connecting,
}

impl Link {
    /// Opens a stream that says nothing yet.
    pub(crate) async fn open_mute(&self) -> Result<Sender, StreamError> {
        let stream = self.connection.open_uni().await.map_err(|_| StreamError::LinkEnded)?;
        Ok(Sender { stream, is_finished: false })
    }

    pub(crate) fn send_datagram(&self, bytes: Bytes) -> bool {
        self.connection.send_datagram(bytes).is_ok()
    }

    /// Closes with any code, as far as QUIC has them.
    pub(crate) fn close_as(&self, code: u64, reason: &[u8]) {
        self.connection.close(VarInt::from_u64(code).expect("a code of QUIC"), reason);
    }
}

/// Sends datagrams to a socket, past QUIC.
#[cfg(feature = "sim")]
pub(crate) fn spray(host: &super::fabric::Host, to: SocketAddr, datagrams: impl IntoIterator<Item = Vec<u8>>) {
    let socket = host.bind(0).expect("a free port");
    for contents in datagrams {
        let transmit =
            quinn::udp::Transmit { destination: to, ecn: None, contents: &contents, segment_size: None, src_ip: None };
        let _ = socket.try_send(&transmit);
    }
}
