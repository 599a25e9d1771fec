//! An end of a gateway's circuit with its socket: the gateway client of the tests.
//!
//! For: binding to a gateway, and sending and receiving tunnel datagrams through it, on loopback or
//! in a lab. Never: a tunnel, or the choice of a gateway.

use std::{
    net::UdpSocket,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gateway_client::{
    end::{End, EndEvent},
    wire::{CircuitId, Key, Side},
};

/// Read timeout of the sockets, and the time after which an end repeats its bind message.
pub const INTERVAL: Duration = Duration::from_millis(200);
/// Longest time to bind.
const BIND_TIMEOUT: Duration = Duration::from_secs(20);

/// Nanoseconds since 1970, as bind messages carry them.
#[must_use]
pub fn clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
}

fn with_timeout(socket: UdpSocket) -> UdpSocket {
    let set = socket.set_read_timeout(Some(INTERVAL));
    set.expect("set the read timeout");
    socket
}

/// An end of a circuit with its socket.
#[derive(Debug)]
pub struct CircuitEnd {
    /// Connected to the gateway, with [`INTERVAL`] as its read timeout.
    pub socket: UdpSocket,
    /// State machine of the end.
    pub end: End,
    pub circuit: CircuitId,
}

impl CircuitEnd {
    /// One side of a circuit. `socket` is connected to the gateway.
    ///
    /// # Panics
    /// If the socket refuses a read timeout.
    #[must_use]
    pub fn new(socket: UdpSocket, circuit: CircuitId, side: Side, key: Key) -> Self {
        Self {
            socket: with_timeout(socket),
            end: End::new(circuit, side, key),
            circuit,
        }
    }

    /// The end roams: it goes on with another socket, which is connected to the gateway.
    ///
    /// # Panics
    /// If the socket refuses a read timeout.
    pub fn roam(&mut self, socket: UdpSocket) {
        self.socket = with_timeout(socket);
    }

    /// Sends bind messages until the gateway decides. Returns its decision, or `None` after
    /// `timeout`.
    pub fn bind_within(&mut self, timeout: Duration) -> Option<EndEvent> {
        let begun = Instant::now();
        let mut buffer = [0; 2048];
        while begun.elapsed() < timeout {
            // A send fails while no gateway listens; a later one may succeed.
            let _ = self.socket.send(&self.end.bind(clock()));
            let until = Instant::now() + INTERVAL;
            while Instant::now() < until {
                let Ok(length) = self.socket.recv(&mut buffer) else {
                    continue;
                };
                match self.end.receive(&buffer[..length], clock()) {
                    Some(EndEvent::Send(message)) => {
                        let _ = self.socket.send(&message);
                    }
                    Some(event) => return Some(event),
                    None => {}
                }
            }
        }
        None
    }

    /// Binds.
    ///
    /// # Panics
    /// If the gateway does not answer within 20 seconds, or drains.
    #[track_caller]
    pub fn bind(&mut self) {
        let event = self.bind_within(BIND_TIMEOUT);
        assert!(matches!(event, Some(EndEvent::Bound(_))), "{event:?}");
    }

    /// Sends a tunnel datagram.
    ///
    /// # Panics
    /// If the kernel refuses it.
    #[track_caller]
    pub fn send(&self, payload: &[u8]) {
        let datagram = [&self.circuit.to_bytes(), payload].concat();
        let sent = self.socket.send(&datagram);
        sent.unwrap_or_else(|error| panic!("send: {error}"));
    }

    /// The next tunnel datagram within [`INTERVAL`]. Messages of the gateway are skipped.
    #[must_use]
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = self.socket.recv(&mut buffer).ok()?;
            if buffer[..8] == self.circuit.to_bytes() {
                return Some(buffer[8..length].to_vec());
            }
        }
    }

    /// Checks that the next tunnel datagram is `payload`.
    ///
    /// # Panics
    /// If it is another, or none arrives.
    #[track_caller]
    pub fn expect(&self, payload: &[u8]) {
        assert_eq!(self.receive().as_deref(), Some(payload));
    }
}
