//! Counters of a connection. A leaf: it depends on no other module.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Traffic of a connection. Bytes are those of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Datagrams received and put into a ring.
    pub datagrams_in: u64,
    /// Bytes of those.
    pub bytes_in: u64,
    /// Datagrams taken from rings and given to TLS.
    pub datagrams_out: u64,
    /// Bytes of those.
    pub bytes_out: u64,
    /// Received and dropped: the ring was full.
    pub full_in: u64,
    /// Received and dropped: longer than [`DATAGRAM_BYTES`](super::DATAGRAM_BYTES).
    pub too_long_in: u64,
    /// Received and dropped: steered to a ring that does not exist.
    pub no_ring_in: u64,
    /// Not taken for sending: the ring was full, the connection closed, or the datagram's length
    /// not allowed.
    pub full_out: u64,
}

impl ConnectionStats {
    /// Datagrams dropped, in both directions.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.full_in + self.too_long_in + self.no_ring_in + self.full_out
    }
}

/// The same, as the threads count.
#[derive(Debug, Default)]
pub(super) struct SharedStats {
    pub datagrams_in: AtomicU64,
    pub bytes_in: AtomicU64,
    pub datagrams_out: AtomicU64,
    pub bytes_out: AtomicU64,
    pub full_in: AtomicU64,
    pub too_long_in: AtomicU64,
    pub no_ring_in: AtomicU64,
    pub full_out: AtomicU64,
}

impl SharedStats {
    pub fn get(&self) -> ConnectionStats {
        ConnectionStats {
            datagrams_in: self.datagrams_in.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            datagrams_out: self.datagrams_out.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            full_in: self.full_in.load(Relaxed),
            too_long_in: self.too_long_in.load(Relaxed),
            no_ring_in: self.no_ring_in.load(Relaxed),
            full_out: self.full_out.load(Relaxed),
        }
    }
}
