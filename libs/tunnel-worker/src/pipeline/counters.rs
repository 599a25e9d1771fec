//! Counters of a worker. It alone writes them, without locked instructions; any thread may read
//! them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use appliance_common::{counters::Counter, limits::MAX_NETWORKS, maps::NetworkStats};

/// Counters by [`Counter`] and traffic by network slot.
pub struct WorkerCounters {
    counters: [AtomicU64; Counter::SLOTS as usize],
    networks: Box<[Traffic]>,
    sockets: Sockets,
}

#[derive(Default)]
struct Traffic {
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
}

/// Drops of a worker's sockets, as the kernel counts them, and the worker's heartbeat.
#[derive(Default)]
pub(crate) struct Sockets {
    /// Frames that found no room in a socket's rings.
    pub rx_dropped: AtomicU64,
    /// When the worker last polled its sockets, nanoseconds of the monotonic clock.
    pub beat: AtomicU64,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        Self {
            counters: [const { AtomicU64::new(0) }; Counter::SLOTS as usize],
            networks: (0..MAX_NETWORKS).map(|_| Traffic::default()).collect(),
            sockets: Sockets::default(),
        }
    }
}

/// Only one thread adds, so a load and a store are enough.
#[inline]
fn add(cell: &AtomicU64, value: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(value), Relaxed);
}

impl WorkerCounters {
    /// The value of a counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Relaxed)
    }

    /// Traffic of the network in a slot; zero past the last.
    #[must_use]
    pub fn network(&self, slot: u32) -> NetworkStats {
        self.networks
            .get(slot as usize)
            .map_or_else(NetworkStats::default, |t| NetworkStats {
                tx_packets: t.tx_packets.load(Relaxed),
                tx_bytes: t.tx_bytes.load(Relaxed),
                rx_packets: t.rx_packets.load(Relaxed),
                rx_bytes: t.rx_bytes.load(Relaxed),
            })
    }

    pub(crate) const fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    #[inline]
    pub(super) fn count(&self, counter: Counter, packets: u64) {
        add(&self.counters[counter as usize], packets);
    }

    #[inline]
    pub(super) fn sent(&self, slot: u32, bytes: u64) {
        if let Some(traffic) = self.networks.get(slot as usize) {
            add(&traffic.tx_packets, 1);
            add(&traffic.tx_bytes, bytes);
        }
    }

    #[inline]
    pub(super) fn received(&self, slot: u32, bytes: u64) {
        if let Some(traffic) = self.networks.get(slot as usize) {
            add(&traffic.rx_packets, 1);
            add(&traffic.rx_bytes, bytes);
        }
    }
}
