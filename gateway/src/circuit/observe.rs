//! Reads counters and circuits from the threads of circuits, for status, metrics and drains.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, sync_channel},
    },
    time::Duration,
};

use gateway_client::wire::CircuitId;
use gateway_common::maps::Outcome;
use nix::sys::eventfd::EventFd;

use super::{
    fast::Fast,
    socket::{Command, Totals},
    table::{CircuitState, Drops, Reason, TenantCounts, Traffic},
};

/// Time that a thread has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Counters of all circuits together and of each tenant's.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The tenants with circuits.
    pub tenants: BTreeMap<Arc<str>, TenantCounts>,
    /// Dropped datagrams without a circuit.
    pub drops: Drops,
    /// Counters of all datagrams.
    pub totals: Totals,
    /// Number of bound sides.
    pub bound: usize,
    /// Number of circuits.
    pub circuits: usize,
}

/// Counters of all circuits together, and each circuit.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// In the order of IDs.
    pub circuits: Vec<CircuitState>,
    /// Dropped datagrams without a circuit.
    pub drops: Drops,
    /// Counters of all datagrams.
    pub totals: Totals,
    /// Number of bound sides.
    pub bound: usize,
}

/// A page of circuits.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The ID before the first one.
    pub after: Option<CircuitId>,
    /// Of this tenant only.
    pub tenant: Option<Arc<str>>,
    /// Circuits at most.
    pub limit: usize,
}

/// The answer of a thread: its part of a summary, and the tenants and indices of its XDP counters.
pub(super) type SummaryPart = (Summary, Vec<(Arc<str>, u32)>);
/// The answer of a thread: its circuits of a page, and the indices of their XDP counters.
pub(super) type PagePart = Vec<(CircuitState, Option<u32>)>;

/// Reads the state of all circuits from their threads.
#[derive(Clone, Debug)]
pub struct Observer {
    pub(super) workers: Vec<(Sender<Command>, Arc<EventFd>)>,
    pub(super) fast: Option<Arc<Fast>>,
}

impl Observer {
    /// Asks every thread. One that does not answer in time is left out.
    fn ask<T>(&self, command: impl Fn(SyncSender<T>) -> Command) -> Vec<T> {
        let asked = self.workers.iter().map(|(commands, waker)| {
            let (answer, answered) = sync_channel(1);
            let _ = commands.send(command(answer));
            let _ = waker.write(1);
            answered
        });
        let asked: Vec<Receiver<T>> = asked.collect();
        asked
            .into_iter()
            .filter_map(|answered| answered.recv_timeout(PATIENCE).ok())
            .collect()
    }

    /// Number of bound sides.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.ask(Command::Bound).into_iter().sum()
    }

    /// The counters of all circuits together, and of each tenant's.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut all = Summary::default();
        let outcomes = self.fast.as_ref().and_then(|fast| fast.outcomes().ok());
        for (outcome, count) in outcomes.into_iter().flatten() {
            let reason = match outcome {
                Outcome::NoCircuit => Some(Reason::NoCircuit),
                Outcome::BadDatagram => Some(Reason::Malformed),
                _ => None,
            };
            if let Some(reason) = reason {
                all.drops[reason as usize] += count;
                all.totals.received += count;
            } else if outcome == Outcome::UnboundRate {
                all.totals.unbound_rate += count;
                all.totals.received += count;
            }
        }
        for (part, stats) in self.ask(Command::Summary) {
            for (name, counts) in part.tenants {
                *all.tenants.entry(name).or_default() += &counts;
            }
            for (sum, count) in all.drops.iter_mut().zip(part.drops) {
                *sum += count;
            }
            all.totals.received += part.totals.received;
            all.totals.sent += part.totals.sent;
            all.totals.full += part.totals.full;
            all.totals.refused += part.totals.refused;
            all.totals.unreadable += part.totals.unreadable;
            all.totals.overflowed += part.totals.overflowed;
            all.bound += part.bound;
            all.circuits += part.circuits;
            // Read here and not on the threads, which have datagrams to serve.
            for (tenant, place) in stats {
                let Some((from, rate)) = self.fast_counts(place) else {
                    continue;
                };
                let carried: u64 = from.iter().map(|traffic| traffic.datagrams).sum();
                all.totals.sent += carried;
                all.totals.received += carried + rate;
                let counts = all.tenants.entry(tenant).or_default();
                for (side, traffic) in from.into_iter().enumerate() {
                    counts.counts.from[side] += traffic;
                    counts.fast[side] += traffic;
                }
                counts.counts.drops[Reason::Rate as usize] += rate;
            }
        }
        all
    }

    /// The circuits of a page, in the order of IDs.
    #[must_use]
    pub fn page(&self, query: &Query) -> Vec<CircuitState> {
        let parts = self.ask(|answer| Command::Page(query.clone(), answer));
        let mut all: PagePart = parts.into_iter().flatten().collect();
        all.sort_unstable_by_key(|(circuit, _)| circuit.id);
        all.truncate(query.limit);
        let circuits = all.into_iter().map(|(mut circuit, place)| {
            if let Some((from, rate)) = place.and_then(|place| self.fast_counts(place)) {
                circuit.fast = from;
                for (side, traffic) in from.into_iter().enumerate() {
                    circuit.counts.from[side] += traffic;
                }
                circuit.counts.drops[Reason::Rate as usize] += rate;
            }
            circuit
        });
        circuits.collect()
    }

    /// Datagrams and bytes of a circuit that XDP forwarded, by side, and the number that it dropped
    /// for the rate.
    fn fast_counts(&self, place: u32) -> Option<([Traffic; 2], u64)> {
        match self.fast.as_ref()?.stats(place) {
            Ok(stats) => Some((
                [0, 1].map(|side| Traffic {
                    datagrams: stats.datagrams[side],
                    bytes: stats.bytes[side],
                }),
                stats.rate,
            )),
            Err(error) => {
                tracing::warn!(%error, "cannot read the XDP counters; the status leaves them out");
                None
            }
        }
    }

    /// The XDP program, if it is loaded.
    #[must_use]
    pub const fn fast(&self) -> Option<&Arc<Fast>> {
        self.fast.as_ref()
    }
}
