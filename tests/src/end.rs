//! What tests say to gateways: a TLS hello, and the messages of a circuit's end.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gateway_client::{
    end::{End, EndEvent},
    wire::{CircuitId, Key, Side},
};

use crate::site::Site;

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_millis(200);
/// How long an end is given to bind.
const PATIENCE: Duration = Duration::from_secs(10);

/// The hello of a TLS client that asks for `name`: nothing in it is random, and nothing follows it
/// that a server would like.
#[must_use]
pub fn client_hello(name: &str) -> Vec<u8> {
    fn with_length<const N: usize>(bytes: &[u8]) -> Vec<u8> {
        let length = bytes.len().to_be_bytes();
        [&length[length.len() - N..], bytes].concat()
    }
    let host = [&[0][..], &with_length::<2>(name.as_bytes())].concat();
    let server_name = [&[0, 0][..], &with_length::<2>(&with_length::<2>(&host))].concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &with_length::<1>(&[]),
        &with_length::<2>(&[0x13, 0x01]),
        &with_length::<1>(&[0]),
        &with_length::<2>(&server_name),
    ]
    .concat();
    let handshake = [&[1][..], &with_length::<3>(&body)].concat();
    [&[22, 3, 1][..], &with_length::<2>(&handshake)].concat()
}

/// Nanoseconds since 1970.
#[must_use]
pub fn clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
}

/// An end of a circuit, on a host of a lab.
#[derive(Debug)]
pub struct Peer {
    /// Connected to the gateway.
    pub socket: UdpSocket,
    /// What it says and believes.
    pub end: End,
    /// Its circuit.
    pub circuit: CircuitId,
}

impl Peer {
    /// That side of a tenant's circuit, on `host`, towards the gateway at `to`.
    #[must_use]
    pub fn new(site: &Site, host: &str, to: SocketAddr, tenant: &str, side: Side) -> Self {
        let (circuit, keys) = circuit(site, tenant);
        Self {
            socket: socket(site, host, to),
            end: End::new(circuit, side, keys[side.index()].clone()),
            circuit,
        }
    }

    /// Binds, as often as it takes, and says what it heard last; `None`: nothing within `patience`.
    pub fn bind_within(&mut self, patience: Duration) -> Option<EndEvent> {
        let begun = Instant::now();
        let mut room = [0; 2048];
        while begun.elapsed() < patience {
            // A gateway that is not there may be there at the next.
            let _ = self.socket.send(&self.end.bind(clock()));
            let until = Instant::now() + ANSWER;
            while Instant::now() < until {
                let Ok(length) = self.socket.recv(&mut room) else {
                    continue;
                };
                match self.end.receive(&room[..length], clock()) {
                    Some(EndEvent::Send(word)) => {
                        let _ = self.socket.send(&word);
                    }
                    Some(heard) => return Some(heard),
                    None => {}
                }
            }
        }
        None
    }

    /// Binds.
    #[track_caller]
    pub fn bind(&mut self) {
        let heard = self.bind_within(PATIENCE);
        assert!(matches!(heard, Some(EndEvent::Bound(_))), "{heard:?}");
    }

    /// Sends a tunnel datagram.
    #[track_caller]
    pub fn send(&self, payload: &[u8]) {
        let datagram = [&self.circuit.to_bytes(), payload].concat();
        let sent = self.socket.send(&datagram);
        sent.unwrap_or_else(|e| panic!("sending: {e}"));
    }

    /// The next tunnel datagram; messages pass by.
    #[must_use]
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut room = vec![0; 1 << 16];
        loop {
            let length = self.socket.recv(&mut room).ok()?;
            if room[..8] == self.circuit.to_bytes() {
                return Some(room[8..length].to_vec());
            }
        }
    }
}

/// A UDP socket of a host that hears only the gateway at `to`.
#[must_use]
pub fn socket(site: &Site, host: &str, to: SocketAddr) -> UdpSocket {
    let made = site.inside(host, || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.connect(to)?;
        io::Result::Ok(socket)
    });
    made.unwrap_or_else(|e| panic!("{host}: {e}"))
}

/// Id and keys of a tenant's circuit, as the lab drew them.
#[must_use]
pub fn circuit(site: &Site, tenant: &str) -> (CircuitId, [Key; 2]) {
    let drawn = site.circuit(tenant).unwrap_or_else(|e| panic!("{e}"));
    let id = u64::from_str_radix(&drawn.id, 16)
        .ok()
        .and_then(CircuitId::new);
    let keys = drawn
        .keys
        .map(|text| Key::from_base64(&text).expect("a key"));
    (id.expect("an id"), keys)
}
