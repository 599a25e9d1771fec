//! The workers' ports: an AF_XDP socket on every queue of every interface, and its place in the map
//! `XSKS`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use appliance_common::limits::MAX_QUEUES;

use super::{Error, spec::PortSpec};
use crate::{
    host::{MapWrite, ProgramMaps},
    worker::Request,
};

/// Frames of each direction of a socket.
const FRAMES: u32 = 4096;
/// The previous process may not have released the queue yet.
const BIND_TIMEOUT: Duration = Duration::from_millis(500);
/// Interfaces that may have sockets: as many blocks of [`MAX_QUEUES`] slots fit `XSKS` behind slot
/// 0.
const MAX_PORTS: u16 = 15;

/// A request for one worker.
pub(super) type WorkerRequest = (usize, Request);

/// The interfaces with sockets.
pub(super) struct WorkerPorts {
    memory: xsk::Memory,
    /// By interface index: the interface's settings, and the first slot in `XSKS`.
    open: BTreeMap<u32, (PortSpec, u16)>,
    errors: BTreeMap<u32, String>,
}

impl WorkerPorts {
    pub const fn new(memory: xsk::Memory) -> Self {
        Self {
            memory,
            open: BTreeMap::new(),
            errors: BTreeMap::new(),
        }
    }

    /// Removes interfaces that are no longer wanted or have changed; returns their indices. Their
    /// sockets are to be closed before [`WorkerPorts::open_missing`]: a queue has one socket.
    pub fn remove_stale(&mut self, wanted: &BTreeMap<String, PortSpec>) -> Vec<u32> {
        let stale: Vec<u32> = self
            .open
            .iter()
            .filter(|(_, (spec, _))| !wanted.values().any(|w| w == spec))
            .map(|(ifindex, _)| *ifindex)
            .collect();
        for ifindex in &stale {
            self.open.remove(ifindex);
        }
        self.errors
            .retain(|ifindex, _| wanted.values().any(|w| w.ifindex == *ifindex));
        stale
    }

    /// Opens sockets on the interfaces that have none; the workers are to be given them.
    pub fn open_missing(
        &mut self,
        wanted: &BTreeMap<String, PortSpec>,
        workers: usize,
        maps: &mut dyn ProgramMaps,
    ) -> Vec<WorkerRequest> {
        let mut requests = Vec::new();
        for (interface, spec) in wanted {
            if self.open.contains_key(&spec.ifindex) {
                continue;
            }
            match self.open(interface, spec, workers, maps) {
                Ok((slot, mut sockets)) => {
                    requests.append(&mut sockets);
                    self.errors.remove(&spec.ifindex);
                    self.open.insert(spec.ifindex, (spec.clone(), slot));
                    tracing::info!(interface, queues = spec.queues, "AF_XDP sockets are open");
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.errors.get(&spec.ifindex) != Some(&text) {
                        tracing::warn!(
                            interface,
                            reason = text,
                            "cannot open AF_XDP sockets on the interface"
                        );
                    }
                    self.errors.insert(spec.ifindex, text);
                }
            }
        }
        requests
    }

    fn open(
        &self,
        interface: &str,
        spec: &PortSpec,
        workers: usize,
        maps: &mut dyn ProgramMaps,
    ) -> Result<(u16, Vec<WorkerRequest>), Error> {
        let failed = |source| Error::Socket {
            interface: interface.to_owned(),
            source,
        };
        let first = self.free_slot().ok_or_else(|| {
            failed(xsk::Error::Os {
                operation: "find a slot for the socket",
                source: io::Error::other("15 interfaces have sockets, the maximum"),
            })
        })?;
        if spec.queues > MAX_QUEUES {
            return Err(Error::TooManyQueues {
                interface: interface.to_owned(),
                queues: spec.queues,
            });
        }
        let queues = spec.queues.min(spec.tx_queues);
        if (queues as usize) < workers {
            return Err(Error::Queues {
                interface: interface.to_owned(),
                queues,
                workers: workers as u32,
            });
        }
        let mut sockets = Vec::new();
        // Only the first attempt waits: the caller has other things to do meanwhile.
        let timeout = if self.errors.contains_key(&spec.ifindex) {
            Duration::ZERO
        } else {
            BIND_TIMEOUT
        };
        for queue in 0..spec.queues.max(1) {
            let config = xsk::Config {
                ifindex: spec.ifindex,
                queue,
                rx_frames: FRAMES,
                tx_frames: FRAMES,
                // The kernel keeps 256 bytes before each frame for the programs.
                frame_size: if spec.mtu <= 1700 { 2048 } else { 4096 },
                memory: self.memory,
                busy_poll: None,
            };
            sockets.push(xsk::bind_within(&config, timeout).map_err(failed)?);
        }
        let mut requests = Vec::with_capacity(sockets.len());
        for (queue, (rx, tx)) in (0u32..).zip(sockets) {
            maps.apply(MapWrite::Socket {
                slot: u32::from(first) + queue,
                socket: rx.fd(),
            })
            .map_err(|error| {
                failed(xsk::Error::Os {
                    operation: "write the socket to XSKS",
                    source: io::Error::other(error),
                })
            })?;
            requests.push((
                queue as usize % workers,
                Request::OpenPort(Box::new((rx, tx))),
            ));
        }
        Ok((first, requests))
    }

    /// The first slot of a block in `XSKS` that no interface has.
    fn free_slot(&self) -> Option<u16> {
        let taken: BTreeSet<u16> = self.open.values().map(|(_, first)| *first).collect();
        (0..MAX_PORTS)
            .map(|n| 1 + n * MAX_QUEUES as u16)
            .find(|first| !taken.contains(first))
    }

    /// The first slot in `XSKS` of each interface, by interface index.
    pub fn slots(&self) -> BTreeMap<u32, u16> {
        self.open
            .iter()
            .map(|(ifindex, (_, first))| (*ifindex, *first))
            .collect()
    }

    /// Why an interface has no sockets, if it should have.
    pub fn error(&self, ifindex: u32) -> Option<&str> {
        self.errors.get(&ifindex).map(String::as_str)
    }

    /// Whether some interface has no sockets that should have.
    pub fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Interfaces without sockets, as messages for the operator.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.errors.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ifindex: u32, queues: u32) -> PortSpec {
        PortSpec {
            ifindex,
            queues,
            tx_queues: queues,
            mtu: 1500,
        }
    }

    /// Refuses every write; none is to come.
    struct NoMaps;

    impl ProgramMaps for NoMaps {
        fn apply(
            &mut self,
            write: MapWrite<'_>,
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            panic!("{write:?}")
        }
    }

    #[test]
    fn an_interface_that_changed_loses_its_sockets_and_its_slot_is_used_again() {
        let mut ports = WorkerPorts::new(xsk::Memory::Copy);
        for (ifindex, slot) in [(5, 1), (6, 65)] {
            ports.open.insert(ifindex, (port(ifindex, 1), slot));
        }
        let wanted = |queues| {
            let all = [("a", port(5, 1)), ("b", port(6, queues))];
            BTreeMap::from(all.map(|(name, spec)| (name.to_owned(), spec)))
        };
        assert!(ports.remove_stale(&wanted(1)).is_empty());
        assert_eq!(ports.free_slot(), Some(1 + 2 * MAX_QUEUES as u16));
        assert_eq!(ports.remove_stale(&wanted(2)), [6]);
        assert_eq!(ports.slots(), BTreeMap::from([(5, 1)]));
        assert_eq!(ports.free_slot(), Some(65));
    }

    #[test]
    fn more_queues_than_the_programs_know_are_refused_with_what_to_do() {
        let mut ports = WorkerPorts::new(xsk::Memory::Copy);
        let wanted = BTreeMap::from([("eth9".to_owned(), port(5, MAX_QUEUES + 8))]);
        assert!(ports.open_missing(&wanted, 2, &mut NoMaps).is_empty());
        let error = ports.error(5).expect("an error");
        assert!(error.contains("eth9 has 72 receive queues"), "{error}");
        assert!(error.contains("ethtool -L eth9 combined 64"), "{error}");
        assert!(ports.has_errors());
    }

    #[test]
    fn fewer_queues_than_workers_are_refused_with_what_to_do() {
        let mut ports = WorkerPorts::new(xsk::Memory::Copy);
        let wanted = BTreeMap::from([("eth9".to_owned(), port(5, 1))]);
        let requests = ports.open_missing(&wanted, 2, &mut NoMaps);
        assert!(requests.is_empty());
        let error = ports.error(5).expect("an error");
        assert!(error.contains("ethtool -L eth9 combined 2"), "{error}");
        assert_eq!(ports.problems().count(), 1);
        // An interface that is gone is no problem.
        ports.remove_stale(&BTreeMap::new());
        assert_eq!(ports.error(5), None);
    }
}
