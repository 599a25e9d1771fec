//! Handshake messages over UDP: a socket of the kernel on each of our addresses.
//!
//! ```text
//!   socket ─▶ receive ─▶ classify ─▶ a gateway's message | a handshake message with the path it came by
//!   send ◀── frame ◀── message and path
//! ```

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
};

use appliance_common::wire::CIRCUIT_ID_LEN;
use tokio::net::UdpSocket;
use tunnel::{Instant, PeerPath};

use super::{Error, retry::Retry};
use crate::pipeline::circuit_id;

/// Datagrams taken from a socket before other work is done.
const BATCH: usize = 256;
/// Bytes of the longest handshake message.
const MAX_HANDSHAKE_LEN: usize = 148;
/// Bytes of the longest message on the tunnel's port: a handshake message behind a circuit's ID,
/// and one byte more, so that a longer one is not taken for it.
pub(super) const MAX_MESSAGE_LEN: usize = CIRCUIT_ID_LEN + MAX_HANDSHAKE_LEN + 1;

/// A datagram on the tunnel's port.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming<'d> {
    /// A gateway's message about a circuit.
    Gateway(&'d [u8]),
    /// A handshake message.
    Handshake {
        /// The path by which it came.
        path: PeerPath,
        /// The message, without the circuit's ID.
        message: &'d [u8],
    },
}

/// Tells a gateway's message from a handshake message. Messages of gateways begin with eight zero
/// bytes.
pub(super) fn classify(from: SocketAddr, datagram: &[u8]) -> Incoming<'_> {
    if datagram.starts_with(&[0; 8]) {
        return Incoming::Gateway(datagram);
    }
    match circuit_id(datagram) {
        None => Incoming::Handshake {
            path: PeerPath::Direct(from),
            message: datagram,
        },
        Some(id) => Incoming::Handshake {
            path: PeerPath::Circuit { gateway: from, id },
            message: &datagram[CIRCUIT_ID_LEN..],
        },
    }
}

/// A handshake message with the circuit's ID in front of it.
pub(super) struct CircuitFrame {
    bytes: [u8; CIRCUIT_ID_LEN + MAX_HANDSHAKE_LEN],
    len: usize,
}

impl CircuitFrame {
    /// `None` when the message is longer than any handshake message.
    pub fn new(id: std::num::NonZeroU64, message: &[u8]) -> Option<Self> {
        let mut bytes = [0; CIRCUIT_ID_LEN + MAX_HANDSHAKE_LEN];
        let len = CIRCUIT_ID_LEN + message.len();
        let (head, body) = bytes.get_mut(..len)?.split_at_mut(CIRCUIT_ID_LEN);
        head.copy_from_slice(&id.get().to_be_bytes());
        body.copy_from_slice(message);
        Some(Self { bytes, len })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The sockets, by our address.
pub(super) struct HandshakeSockets {
    port: u16,
    sockets: BTreeMap<IpAddr, UdpSocket>,
    bind_errors: BTreeMap<IpAddr, String>,
    retry: Retry,
    send_errors: u64,
}

impl HandshakeSockets {
    /// Without sockets, for this UDP port.
    pub fn new(port: u16) -> Self {
        Self {
            port,
            sockets: BTreeMap::new(),
            bind_errors: BTreeMap::new(),
            retry: Retry::default(),
            send_errors: 0,
        }
    }

    /// Opens a socket on each of these addresses, and closes all others. An address that cannot be
    /// bound is tried again at the next call, and by [`HandshakeSockets::bind_again`].
    pub fn bind(&mut self, now: Instant, locals: &[IpAddr]) {
        self.sockets.retain(|local, _| locals.contains(local));
        self.bind_errors.retain(|local, _| locals.contains(local));
        for local in locals {
            if self.sockets.contains_key(local) {
                continue;
            }
            match bind_udp(SocketAddr::new(*local, self.port)) {
                Ok(socket) => {
                    self.bind_errors.remove(local);
                    self.sockets.insert(*local, socket);
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.bind_errors.get(local) != Some(&text) {
                        tracing::warn!(reason = text, "cannot receive handshakes on this address");
                    }
                    self.bind_errors.insert(*local, text);
                }
            }
        }
        self.retry.attempted(now, self.bind_errors.is_empty());
    }

    /// Tries the addresses again that could not be bound, if it is time for that.
    pub fn bind_again(&mut self, now: Instant) {
        if self.retry.is_due(now) {
            let sockets = self.sockets.keys();
            let locals: Vec<_> = sockets.chain(self.bind_errors.keys()).copied().collect();
            self.bind(now, &locals);
        }
    }

    /// Waits until a socket has a datagram; for ever without sockets.
    pub async fn readable(&self) {
        let mut waiting: Vec<_> = self
            .sockets
            .values()
            .map(|socket| Box::pin(socket.readable()))
            .collect();
        if waiting.is_empty() {
            std::future::pending::<()>().await;
        }
        std::future::poll_fn(|context| {
            for one in &mut waiting {
                if one.as_mut().poll(context).is_ready() {
                    return std::task::Poll::Ready(());
                }
            }
            std::task::Poll::Pending
        })
        .await;
    }

    /// Passes received datagrams, at most 256 of each socket, to `handle`.
    pub fn receive(&self, mut handle: impl FnMut(SocketAddr, &[u8])) {
        let mut buffer = [0; 2048];
        for socket in self.sockets.values() {
            for _ in 0..BATCH {
                let Ok((bytes, from)) = socket.try_recv_from(&mut buffer) else {
                    break;
                };
                handle(from, &buffer[..bytes]);
            }
        }
    }

    /// Sends a datagram from a socket of the destination's family. A failure is counted; the
    /// control half repeats the attempt with back-off.
    pub fn send(&mut self, to: SocketAddr, datagram: &[u8]) {
        let socket = self
            .sockets
            .iter()
            .find(|(local, _)| local.is_ipv4() == to.is_ipv4());
        let sent = match socket {
            Some((_, socket)) => socket.try_send_to(datagram, to),
            None => Err(io::Error::from(io::ErrorKind::AddrNotAvailable)),
        };
        if let Err(error) = sent {
            self.send_errors += 1;
            tracing::debug!(%to, %error, "cannot send a handshake message");
        }
    }

    /// Counts a message that another transport could not send.
    pub const fn count_send_error(&mut self) {
        self.send_errors += 1;
    }

    /// Messages that could not be sent.
    pub const fn send_errors(&self) -> u64 {
        self.send_errors
    }

    /// Addresses that could not be bound, as messages for the operator.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.bind_errors.values()
    }
}

fn bind_udp(address: SocketAddr) -> Result<UdpSocket, Error> {
    let failed = |source| Error::Bind { address, source };
    let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    UdpSocket::from_std(socket).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, num::NonZeroU64};

    use super::*;

    const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 6180);

    #[test]
    fn a_handshake_message_is_told_from_a_gateway_s_and_from_one_of_a_circuit() {
        assert_eq!(classify(FROM, &[0; 64]), Incoming::Gateway(&[0; 64]));
        let handshake = [1, 0, 0, 0, 7, 7, 7, 7, 9];
        let path = PeerPath::Direct(FROM);
        let message = &handshake[..];
        assert_eq!(
            classify(FROM, message),
            Incoming::Handshake { path, message }
        );
        let id = NonZeroU64::new(0x0000_0001_0000_0001 | 5 << 32).expect("an ID");
        let frame = CircuitFrame::new(id, message).expect("short enough");
        let path = PeerPath::Circuit { gateway: FROM, id };
        assert_eq!(
            classify(FROM, frame.as_bytes()),
            Incoming::Handshake { path, message }
        );
    }

    #[test]
    fn a_message_longer_than_a_handshake_has_no_frame() {
        let id = NonZeroU64::MIN;
        assert!(CircuitFrame::new(id, &[1; MAX_HANDSHAKE_LEN]).is_some());
        assert!(CircuitFrame::new(id, &[1; MAX_HANDSHAKE_LEN + 1]).is_none());
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_bound_is_a_problem_until_it_is_gone() {
        let taken = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let port = taken.local_addr().expect("an address").port();
        let mut sockets = HandshakeSockets::new(port);
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        sockets.bind(at(0), &[Ipv4Addr::LOCALHOST.into()]);
        let problem = sockets.problems().next().expect("a problem");
        assert!(problem.contains("another program"), "{problem}");
        sockets.bind_again(at(600));
        assert_eq!(sockets.problems().count(), 1, "still in use");
        drop(taken);
        sockets.bind_again(at(700));
        assert_eq!(sockets.problems().count(), 1, "not due yet");
        sockets.bind_again(at(2000));
        assert_eq!(sockets.problems().count(), 0);
        sockets.bind(at(2000), &[]);
        sockets.send(FROM, b"x");
        assert_eq!(sockets.send_errors(), 1, "no socket of the family");
    }
}
