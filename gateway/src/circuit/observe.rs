//! Reads counters and circuits from the threads of circuits, for status, metrics and drains.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use gateway_common::maps::Outcome;
use nix::sys::eventfd::EventFd;

use super::{
    command::Command,
    fast::Fast,
    report::{PagePart, Query, Summary, SummaryPart},
    table::{CircuitState, Reason, Traffic},
};

/// Time that all threads together have to answer. The control loop waits for them.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);

/// The last report of a thread.
#[derive(Debug, Default)]
pub(super) struct Reported {
    summary: Mutex<Arc<SummaryPart>>,
    bound: AtomicUsize,
}

/// A thread of circuits, as an observer asks it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<EventFd>,
    pub(super) reported: Arc<Reported>,
}

/// Reads the state of all circuits from their threads.
#[derive(Clone, Debug)]
pub struct Observer {
    pub(super) workers: Vec<Asked>,
    pub(super) fast: Option<Arc<Fast>>,
}

impl Observer {
    /// Asks every thread; `None` for one that does not answer in time.
    fn ask<T>(&self, command: impl Fn(SyncSender<T>) -> Command) -> Vec<Option<T>> {
        let asked = self.workers.iter().map(|worker| {
            let (answer, answered) = sync_channel(1);
            let _ = worker.commands.send(command(answer));
            let _ = worker.waker.write(1);
            answered
        });
        let asked: Vec<Receiver<T>> = asked.collect();
        let end = Instant::now() + REPLY_TIMEOUT;
        asked
            .into_iter()
            .map(|answered| {
                let left = end.saturating_duration_since(Instant::now());
                answered.recv_timeout(left).ok()
            })
            .collect()
    }

    /// Number of bound sides. A thread that does not answer in time counts with what it reported
    /// last.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.count_bound().0
    }

    /// Whether no side is bound: `false` also if a thread does not answer in time.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count_bound() == (0, true)
    }

    /// The number of bound sides, and whether every thread has answered.
    fn count_bound(&self) -> (usize, bool) {
        let answers = self.ask(Command::Bound);
        let is_whole = answers.iter().all(Option::is_some);
        let counts = self.workers.iter().zip(answers).map(|(worker, answer)| {
            let last = &worker.reported.bound;
            if let Some(bound) = answer {
                last.store(bound, Ordering::Relaxed);
            }
            last.load(Ordering::Relaxed)
        });
        (counts.sum(), is_whole)
    }

    /// The newest report of each thread, and the number of those that did not answer in time.
    fn parts(&self) -> (Vec<Arc<SummaryPart>>, usize) {
        let answers = self.ask(Command::Summary);
        let late = answers.iter().filter(|answer| answer.is_none()).count();
        let parts = self.workers.iter().zip(answers).map(|(worker, answer)| {
            let last = worker.reported.summary.lock();
            let mut last = last.unwrap_or_else(PoisonError::into_inner);
            if let Some(part) = answer {
                worker.reported.bound.store(part.0.bound, Ordering::Relaxed);
                *last = Arc::new(part);
            }
            Arc::clone(&last)
        });
        (parts.collect(), late)
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
        let (parts, late) = self.parts();
        all.late = late;
        if late > 0 {
            tracing::warn!(
                late,
                "circuit threads did not answer in time; reporting their previous counters"
            );
        }
        for part in parts {
            let (part, stats) = &*part;
            for (name, counts) in &part.tenants {
                *all.tenants.entry(Arc::clone(name)).or_default() += counts;
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
                let Some((from, rate)) = self.fast_counts(*place) else {
                    continue;
                };
                let carried: u64 = from.iter().map(|traffic| traffic.datagrams).sum();
                all.totals.sent += carried;
                all.totals.received += carried + rate;
                let counts = all.tenants.entry(Arc::clone(tenant)).or_default();
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
        let mut all: PagePart = parts.into_iter().flatten().flatten().collect();
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use nix::sys::eventfd::EfdFlags;

    use super::*;
    use crate::circuit::table::TenantCounts;

    /// A thread that answers each question once, and none later.
    fn slow() -> Observer {
        let (commands, received) = channel();
        let waker = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for command in received {
                match command {
                    Command::Summary(answer) if kept.is_empty() => {
                        let tenants = [("acme".into(), TenantCounts::default())].into();
                        let summary = Summary {
                            tenants,
                            bound: 7,
                            circuits: 9,
                            ..Summary::default()
                        };
                        answer.send((summary, Vec::new())).expect("heard");
                        kept.push(None);
                    }
                    other => kept.push(Some(other)),
                }
            }
        });
        Observer {
            workers: vec![Asked {
                commands,
                waker: Arc::new(waker),
                reported: Arc::default(),
            }],
            fast: None,
        }
    }

    /// A drain must not take a slow thread for an empty one, nor metrics its counters for zero.
    #[test]
    fn a_slow_thread_keeps_its_last_values() {
        let observer = slow();
        let summary = observer.summary();
        assert_eq!((summary.bound, summary.circuits, summary.late), (7, 9, 0));
        let begun = Instant::now();
        let summary = observer.summary();
        assert_eq!((summary.bound, summary.circuits, summary.late), (7, 9, 1));
        assert!(summary.tenants.contains_key("acme"));
        assert_eq!(observer.bound(), 7);
        assert!(!observer.is_empty());
        // One that has never reported is not empty either.
        let silent = slow();
        assert_eq!(silent.bound(), 0);
        assert!(!silent.is_empty());
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_time_to_answer_is_that_of_all_threads() {
        let mut observer = slow();
        let worker = observer.workers[0].clone();
        observer.workers.extend((0..9).map(|_| worker.clone()));
        let begun = Instant::now();
        assert!(!observer.is_empty());
        assert!(begun.elapsed() < REPLY_TIMEOUT * 3);
    }
}
