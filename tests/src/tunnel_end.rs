//! A tenant's end of an encrypted tunnel on sockets of a lab's host. Tests use it as an attacker
//! that holds the keys of its own tunnel.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tunnel::{
    InitiationPolicy, LoadLimits, MAX_LANES, Now, PayloadKind, PeerConfig, PeerId, PeerPath,
    PeerStatus, ReassemblyLimits, SecretKey, Tunnel, segment::ControlMessage,
};
use tunnel_worker::keys::{self, OsRandom};

use crate::site::Site;

/// The keys of a tenant's end, and where it sends from and to.
#[derive(Clone, Debug)]
pub struct TunnelEndConfig {
    /// Private key of the tenant's appliance.
    pub secret: SecretKey,
    /// The other end: its public key and its address.
    pub peer: (tunnel::PublicKey, SocketAddr),
    /// How far the wall clock is ahead.
    pub ahead: Duration,
}

impl TunnelEndConfig {
    /// The end of `appliance` towards `peer`, whose tunnels arrive at `at`.
    ///
    /// # Panics
    /// If the lab has no keys for them.
    #[must_use]
    pub fn of(site: &Site, appliance: &str, peer: &str, at: SocketAddr) -> Self {
        let handle = |host| site.appliance(host).unwrap_or_else(|e| panic!("{e}"));
        let [own, other] = [appliance, peer].map(|host| {
            let handle = handle(host);
            handle.public_key().unwrap_or_else(|e| panic!("{e}"));
            keys::private(&handle.key_path()).unwrap_or_else(|e| panic!("{e}"))
        });
        Self {
            secret: own,
            peer: (other.public(), at),
            ahead: Duration::ZERO,
        }
    }
}

/// A tunnel without a session, at its own time zero.
fn tunnel(config: &TunnelEndConfig) -> (Tunnel, PeerId) {
    let mut tunnel = Tunnel::new(
        config.secret.clone(),
        LoadLimits::default(),
        ReassemblyLimits::default(),
    );
    let (key, at) = config.peer;
    let peer = tunnel.add_peer(
        tunnel::Instant::ORIGIN,
        PeerConfig {
            lanes: MAX_LANES,
            paths: vec![PeerPath::Direct(at)],
            ..PeerConfig::causeway(key, InitiationPolicy::Always)
        },
    );
    (tunnel, peer)
}

/// A tenant's end of an encrypted tunnel. It sends from one of its sockets after the other.
#[derive(Debug)]
pub struct TunnelEnd {
    tunnel: Tunnel,
    peer: PeerId,
    sockets: Vec<UdpSocket>,
    /// The socket that is used now.
    turn: usize,
    started: Instant,
    config: TunnelEndConfig,
    /// Datagrams that the kernel accepted.
    sent: u64,
}

impl TunnelEnd {
    /// An end with a socket on `host` for each address of `from`.
    ///
    /// # Panics
    /// If a socket cannot be bound.
    #[must_use]
    pub fn new(site: &Site, host: &str, from: &[SocketAddr], config: &TunnelEndConfig) -> Self {
        let at = config.peer.1;
        let sockets = from.iter().map(|local| {
            let bound = site.inside(host, || {
                let socket = UdpSocket::bind(local)?;
                socket.connect(at)?;
                socket.set_nonblocking(true)?;
                io::Result::Ok(socket)
            });
            bound.unwrap_or_else(|e| panic!("{host}: {local}: {e}"))
        });
        let sockets = sockets.collect();
        let (tunnel, peer) = tunnel(config);
        Self {
            tunnel,
            peer,
            sockets,
            turn: 0,
            started: Instant::now(),
            config: config.clone(),
            sent: 0,
        }
    }

    /// Forgets all sessions, as a new process does: the next handshake starts at once.
    pub fn restart(&mut self) {
        (self.tunnel, self.peer) = tunnel(&self.config);
        self.started = Instant::now();
    }

    /// State of the tunnel.
    ///
    /// # Panics
    /// Never: the peer is not removed.
    #[must_use]
    pub fn status(&self) -> PeerStatus {
        let status = self.tunnel.status(self.now().mono, self.peer);
        status.expect("the peer is never removed")
    }

    /// Datagrams that the kernel accepted.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends from the next socket from now on.
    pub const fn switch_socket(&mut self) {
        self.turn = (self.turn + 1) % self.sockets.len();
    }

    /// Whether a session is in use within this time.
    pub fn connects(&mut self, within: Duration) -> bool {
        let until = Instant::now() + within;
        while self.status().session_since.is_none() || !self.status().alive {
            if Instant::now() > until {
                return false;
            }
            self.pump();
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Takes what has arrived, and does what is due.
    pub fn pump(&mut self) {
        let now = self.now();
        let mut room = [0; 2048];
        for socket in &self.sockets {
            while let Ok((length, from)) = socket.recv_from(&mut room) {
                let from = PeerPath::Direct(from);
                let datagram = &mut room[..length];
                // A refused datagram is dropped, as by any end.
                let _ = self
                    .tunnel
                    .receive(now, from, datagram, &mut OsRandom, &mut |_, _| {});
            }
        }
        let (socket, sent) = (&self.sockets[self.turn], &mut self.sent);
        self.tunnel.poll(
            now,
            &mut OsRandom,
            &mut |_, bytes| *sent += u64::from(socket.send(bytes).is_ok()),
            &mut |_, _| {},
        );
    }

    /// Sends a packet into `network`; nothing without a session.
    pub fn send_packet(&mut self, network: u32, packet: &[u8]) {
        let now = self.now().mono;
        let (socket, sent) = (&self.sockets[self.turn], &mut self.sent);
        let _ = self.tunnel.send(
            now,
            self.peer,
            0,
            PayloadKind::Ip,
            network,
            packet,
            &mut |_, bytes| *sent += u64::from(socket.send(bytes).is_ok()),
        );
    }

    /// Sends a control message; nothing without a session.
    pub fn send_control(&mut self, message: ControlMessage, pad_to: usize) {
        let now = self.now().mono;
        let (socket, sent) = (&self.sockets[self.turn], &mut self.sent);
        let transmit = &mut |_: PeerPath, bytes: &[u8]| {
            *sent += u64::from(socket.send(bytes).is_ok());
        };
        self.tunnel
            .send_control(now, self.peer, message, pad_to, transmit);
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Now {
            mono: tunnel::Instant::from_nanos(self.started.elapsed().as_nanos() as u64),
            unix: unix.unwrap_or_default() + self.config.ahead,
        }
    }
}
