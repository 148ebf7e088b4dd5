//! One QUIC connection to a peer, and its streams.
//!
//! A send half that is dropped before it is finished resets its stream, because quinn would finish it, and what was
//! cut off in the middle would look whole.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, VarInt};

use super::tls::{self, Credentials, PeerCertificate, Tls};
use crate::error::ConnectError;
use crate::id::{ClusterName, NodeName};
use crate::identity::{AuthError, HelloKey};
use crate::wire::{Code, StreamKind};

/// What a link may carry at once before both sides have greeted, in bytes.
pub(crate) const GREETING_WINDOW: u32 = 16 * 1024;

/// The largest piece that a read returns.
const CHUNK_MAX: usize = 64 * 1024;

/// The most pieces that one read returns. A piece is what one packet brought: 1.4 KB where the MTU is Ethernet's.
const PIECES: usize = 45;

/// How a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// One side closed it with this code and reason.
    Closed { code: Code, reason: Vec<u8>, by_peer: bool },
    /// TLS refused, here or there.
    Auth(AuthError),
    /// It broke, or fell silent.
    Lost,
}

impl End {
    /// The close code; `None` for a link that broke.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Closed { code, .. } => Some(*code),
            Self::Auth(_) | Self::Lost => None,
        }
    }
}

/// A stream or link that can carry no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the link has ended")]
    LinkEnded,
    #[error("the peer gave the stream up")]
    Reset,
}

/// Why a datagram was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DatagramError {
    #[error("the link has ended")]
    LinkEnded,
    #[error("the path, or the peer, takes no datagram of that size")]
    TooLarge,
}

/// What QUIC knows of the way to the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) rtt: Duration,
    /// What a datagram may hold now; 0 when the peer takes none.
    pub(crate) datagram_max: usize,
    pub(crate) packets_sent: u64,
    /// Of these, as far as QUIC has found out.
    pub(crate) packets_lost: u64,
    /// Bytes of UDP payloads.
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
}

/// One QUIC connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(super) connection: quinn::Connection,
    /// What this side presented.
    own: Arc<Credentials>,
    /// The key that the peer's proof was made with.
    proved: Arc<OnceLock<HelloKey>>,
}

impl Link {
    pub(super) fn new(connection: quinn::Connection, own: Arc<Credentials>) -> Self {
        Self { connection, own, proved: Arc::default() }
    }

    /// Where the far side is now.
    pub(crate) fn address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// What this side presented when the handshake began.
    pub(crate) fn own(&self) -> &Credentials {
        &self.own
    }

    /// Whether this side would present something else by now.
    pub(crate) fn is_outdated(&self, tls: &Tls) -> bool {
        !self.own.presents_as(&tls.current())
    }

    /// What TLS knows of the far side, as far as it is trusted at this moment.
    pub(crate) fn peer(&self, tls: &Tls) -> Result<PeerCertificate, AuthError> {
        tls.peer(&self.connection)
    }

    /// Remembers the key that the peer's proof was made with.
    pub(crate) fn proved_by(&self, key: HelloKey) {
        let _ = self.proved.set(key);
    }

    /// Says why the peer would no longer be let in, at this moment.
    pub(crate) fn recheck(&self, tls: &Tls, cluster: &ClusterName, peer: &NodeName) -> Result<(), AuthError> {
        let certificate = self.peer(tls)?;
        certificate.admits(cluster, peer)?;
        match self.proved.get() {
            Some(proved) if !certificate.proofs().iter().any(|key| key.is(proved)) => Err(AuthError::WrongCookie),
            _ => Ok(()),
        }
    }

    /// A secret that only the two ends of this very link know.
    pub(crate) fn exporter(&self) -> [u8; 32] {
        tls::exporter(&self.connection)
    }

    /// Frames that came from the peer, in packets that were decrypted: it rises while the peer lives.
    pub(crate) fn signs_of_life(&self) -> u64 {
        let frames = self.connection.stats().frame_rx;
        frames.acks + frames.ping + frames.stream + frames.datagram
    }

    /// Bytes that went either way, with all that QUIC adds.
    pub(crate) fn bytes_moved(&self) -> u64 {
        let stats = self.connection.stats();
        stats.udp_tx.bytes + stats.udp_rx.bytes
    }

    /// Lets the peer open streams and send, once it has proved itself.
    pub(crate) fn raise_limits(&self, streams: u32) {
        self.connection.set_max_concurrent_uni_streams(VarInt::from_u32(streams));
        // Nobody reads further ones, so what came on them would be held for ever.
        self.connection.set_max_concurrent_bi_streams(VarInt::from_u32(0));
        // Unread lanes must not stop the others, so the connection as a whole has no window: each stream has.
        self.connection.set_receive_window(VarInt::MAX);
    }

    pub(crate) async fn open_greeting(&self) -> Result<(Sender, Receiver), StreamError> {
        let (send, recv) = self.connection.open_bi().await.map_err(|_| StreamError::LinkEnded)?;
        Ok((Sender { stream: send, is_finished: false }, Receiver { stream: recv }))
    }

    pub(crate) async fn accept_greeting(&self) -> Result<(Sender, Receiver), StreamError> {
        let (send, recv) = self.connection.accept_bi().await.map_err(|_| StreamError::LinkEnded)?;
        Ok((Sender { stream: send, is_finished: false }, Receiver { stream: recv }))
    }

    /// Opens a stream and says what it is for. Waits while the peer allows no more streams.
    pub(crate) async fn open(&self, kind: StreamKind, priority: i32) -> Result<Sender, StreamError> {
        let stream = self.connection.open_uni().await.map_err(|_| StreamError::LinkEnded)?;
        let _ = stream.set_priority(priority);
        let mut sender = Sender { stream, is_finished: false };
        sender.write(&[kind.to_byte()]).await?;
        Ok(sender)
    }

    pub(crate) async fn accept(&self) -> Result<Receiver, StreamError> {
        let stream = self.connection.accept_uni().await.map_err(|_| StreamError::LinkEnded)?;
        Ok(Receiver { stream })
    }

    /// Hands a datagram to QUIC, which holds one of full size at a time. Waits while that one waits for the path. Nothing
    /// is sent when this is dropped.
    pub(crate) async fn send_datagram_wait(&self, bytes: Bytes) -> Result<(), DatagramError> {
        self.connection.send_datagram_wait(bytes).await.map_err(|error| match error {
            quinn::SendDatagramError::ConnectionLost(_) => DatagramError::LinkEnded,
            _ => DatagramError::TooLarge,
        })
    }

    pub(crate) fn path(&self) -> Path {
        let stats = self.connection.stats();
        Path {
            rtt: stats.path.rtt,
            datagram_max: self.connection.max_datagram_size().unwrap_or(0),
            packets_sent: stats.path.sent_packets,
            packets_lost: stats.path.lost_packets,
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
        }
    }

    pub(crate) async fn read_datagram(&self) -> Result<Bytes, StreamError> {
        self.connection.read_datagram().await.map_err(|_| StreamError::LinkEnded)
    }

    /// Closes at once; what is not acknowledged may be lost.
    pub(crate) fn close(&self, code: Code, reason: &[u8]) {
        self.close_if_open(code, reason);
    }

    /// The same; false when the link had ended before.
    pub(crate) fn close_if_open(&self, code: Code, reason: &[u8]) -> bool {
        // quinn would forget why a link has ended already.
        let is_open = self.connection.close_reason().is_none();
        if is_open {
            self.connection.close(VarInt::from_u32(code.0), reason);
        }
        is_open
    }

    pub(crate) async fn closed(&self) -> End {
        end(&self.connection.closed().await)
    }
}

/// The send half of a stream.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(super) stream: quinn::SendStream,
    pub(super) is_finished: bool,
}

impl Sender {
    /// Hands all bytes to QUIC. Waits while the windows are full.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.stream.write_all(bytes).await.map_err(write_error)
    }

    /// As [`Sender::write`], without a copy.
    pub(crate) async fn write_chunk(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.stream.write_chunk(bytes).await.map_err(write_error)
    }

    /// Says that this was all.
    pub(crate) fn finish(mut self) {
        self.is_finished = true;
        let _ = self.stream.finish();
    }

    /// Says that this was all, and waits until the peer's QUIC has it.
    pub(crate) async fn finish_and_wait(mut self) -> Result<(), StreamError> {
        self.is_finished = true;
        let _ = self.stream.finish();
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(StreamError::Reset),
            Err(_) => Err(StreamError::LinkEnded),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = self.stream.reset(VarInt::from_u32(0));
        }
    }
}

fn write_error(error: quinn::WriteError) -> StreamError {
    match error {
        quinn::WriteError::Stopped(_) => StreamError::Reset,
        _ => StreamError::LinkEnded,
    }
}

/// The receive half of a stream.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: quinn::RecvStream,
}

impl Receiver {
    /// The next bytes; `None` after the last.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        match self.stream.read_chunk(CHUNK_MAX, true).await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(quinn::ReadError::Reset(_)) => Err(StreamError::Reset),
            Err(_) => Err(StreamError::LinkEnded),
        }
    }

    /// Waits for bytes, and appends all that has come, in pieces; about 64 KiB at most. False after the last.
    pub(crate) async fn read_many(&mut self, pieces: &mut VecDeque<Bytes>) -> Result<bool, StreamError> {
        let mut some: [Bytes; PIECES] = std::array::from_fn(|_| Bytes::new());
        match self.stream.read_chunks(&mut some).await {
            Ok(Some(read)) => {
                pieces.extend(some.into_iter().take(read));
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(quinn::ReadError::Reset(_)) => Err(StreamError::Reset),
            Err(_) => Err(StreamError::LinkEnded),
        }
    }

    /// Tells the peer that nobody reads on.
    pub(crate) fn stop(mut self) {
        let _ = self.stream.stop(VarInt::from_u32(0));
    }
}

fn end(error: &ConnectionError) -> End {
    if let Some(auth) = tls::classify(error) {
        return End::Auth(auth);
    }
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = u32::try_from(close.error_code.into_inner()).map_or(Code::PROTOCOL, Code);
            End::Closed { code, reason: close.reason.to_vec(), by_peer: true }
        }
        // Who closes here knows why.
        ConnectionError::LocallyClosed => End::Closed { code: Code::NORMAL, reason: Vec::new(), by_peer: false },
        ConnectionError::TransportError(_) | ConnectionError::ConnectionClosed(_) => {
            End::Closed { code: Code::PROTOCOL, reason: Vec::new(), by_peer: true }
        }
        _ => End::Lost,
    }
}

pub(super) fn connect_error(error: &ConnectionError, patience: Duration) -> ConnectError {
    match end(error) {
        End::Auth(auth) => ConnectError::Auth(auth),
        End::Lost => ConnectError::Timeout(patience),
        // QUIC's CONNECTION_REFUSED: no room for another handshake.
        End::Closed { .. } if matches!(error, ConnectionError::ConnectionClosed(close) if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED) => {
            ConnectError::Limit
        }
        End::Closed { by_peer: false, .. } => ConnectError::Shutdown,
        End::Closed { .. } => ConnectError::Protocol,
    }
}
