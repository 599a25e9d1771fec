//! Running packets, and reading the counters and records of the programs.

use std::{collections::BTreeMap, time::Duration};

use appliance_common::{
    events::{NeighbourEvent, SlowHeader, TraceEvent},
    maps::NetworkStats,
};
use aya::{
    maps::{PerCpuArray, XskMap},
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};

use super::{Action, Harness, HarnessError, Program};
use crate::world::{ACCESS, TRUNK, UPLINK, xsk_of};

/// A ring-buffer record, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// From `NEIGHBOUR_EVENTS`.
    Neighbour(NeighbourEvent),
    /// From `SLOW_PACKETS`: header and frame.
    Slow(SlowHeader, Vec<u8>),
    /// A record that does not decode: name of the ring and the bytes.
    Garbage(&'static str, Vec<u8>),
}

impl Harness {
    /// Binds an AF_XDP socket to each interface that has a slot in `XSKS` and writes it there, as
    /// workers do. They stay open until [`Harness::close_sockets`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket or the map operation.
    pub fn bind_sockets(&mut self) -> Result<(), HarnessError> {
        for ifindex in [UPLINK, TRUNK, ACCESS] {
            let bound = xsk::bind_within(
                &xsk::Config {
                    ifindex,
                    queue: 0,
                    rx_frames: 64,
                    tx_frames: 64,
                    frame_size: 4096,
                    memory: xsk::Memory::Copy,
                    busy_poll: None,
                },
                // The kernel needs a moment to free the queue after `close_sockets`.
                Duration::from_secs(10),
            );
            let (rx, tx) = bound.map_err(|source| HarnessError::Socket {
                ifindex,
                source: Box::new(source),
            })?;
            let mut map: XskMap<_> = self
                .ebpf
                .map_mut("XSKS")
                .and_then(|m| m.try_into().ok())
                .ok_or(HarnessError::Map("XSKS"))?;
            map.set(u32::from(xsk_of(ifindex)), rx.fd(), 0)
                .map_err(|e| HarnessError::map("XSKS", e))?;
            self.sockets.push((rx, tx));
        }
        Ok(())
    }

    /// Closes the sockets; the kernel removes them from `XSKS`.
    pub fn close_sockets(&mut self) {
        self.sockets.clear();
    }

    /// Runs a packet through a program once and carries out the action, as a driver does
    /// (BPF_F_TEST_XDP_LIVE_FRAMES). Returns the frames that the sockets received, each with its
    /// interface.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it.
    pub fn run_live(
        &mut self,
        program: Program,
        ifindex: u32,
        packet: &[u8],
    ) -> Result<Vec<(u32, Vec<u8>)>, HarnessError> {
        let context = context(ifindex, 0, packet);
        self.xdp(program)?
            .test_run(TestRunOptions {
                data_in: Some(packet),
                ctx_in: Some(&context),
                attrs: TestRunAttrs::new().xdp_live_frames(1),
                ..TestRunOptions::default()
            })
            .map_err(|source| run_error(program, packet, source))?;
        let mut received = Vec::new();
        for (rx, _) in &mut self.sockets {
            let from = rx.ifindex();
            rx.receive(64, |frame| received.push((from, frame.to_vec())));
        }
        Ok(received)
    }

    fn xdp(&self, program: Program) -> Result<&Xdp, HarnessError> {
        let name = program.name();
        self.ebpf
            .program(name)
            .and_then(|p| p.try_into().ok())
            .ok_or(HarnessError::Program(name))
    }

    /// Runs a packet that arrives on `ifindex` through a program once. The packet out is in a
    /// buffer that the next run overwrites.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it, as it does for fewer than 14 bytes.
    pub fn run(
        &mut self,
        program: Program,
        ifindex: u32,
        packet: &[u8],
    ) -> Result<(Action, &[u8]), HarnessError> {
        self.run_on(program, ifindex, 0, packet)
    }

    /// As [`Harness::run`], on the receive queue `queue`; the interface must have it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it.
    pub fn run_on(
        &mut self,
        program: Program,
        ifindex: u32,
        queue: u32,
        packet: &[u8],
    ) -> Result<(Action, &[u8]), HarnessError> {
        let context = context(ifindex, queue, packet);
        // Not through the method `xdp`, which would borrow the buffer too.
        let xdp: &Xdp = self
            .ebpf
            .program(program.name())
            .and_then(|p| p.try_into().ok())
            .ok_or(HarnessError::Program(program.name()))?;
        let result = xdp
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut self.out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .map_err(|source| run_error(program, packet, source))?;
        Ok((
            result.return_value.into(),
            &self.out[..result.data_size_out as usize],
        ))
    }

    /// Counters that are not zero, by number, summed over the CPUs.
    ///
    /// # Panics
    ///
    /// When the map cannot be read.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<u32, u64> {
        // One system call for all: tests read them before and after each packet.
        let counters = self.counters.read().expect("COUNTERS is readable");
        let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("a 4-byte key"));
        let count = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("8-byte values"));
        counters
            .iter()
            .map(|(key, values)| (number(key), values.chunks(8).map(count).sum()))
            .collect()
    }

    /// Takes all records out of both rings.
    pub fn records(&mut self) -> Vec<Record> {
        let mut out = Vec::new();
        self.each_record(|record| out.push(record));
        out
    }

    /// Takes all records out of both rings, one by one.
    pub fn each_record(&mut self, mut each: impl FnMut(Record)) {
        while let Some(item) = self.events.next() {
            each(match NeighbourEvent::from_bytes(&item) {
                Some(event) if item.len() == size_of::<NeighbourEvent>() => {
                    Record::Neighbour(event)
                }
                _ => Record::Garbage("NEIGHBOUR_EVENTS", item.to_vec()),
            });
        }
        while let Some(item) = self.slow.next() {
            each(match SlowHeader::from_bytes(&item) {
                Some((header, frame)) => Record::Slow(header, frame.to_vec()),
                None => Record::Garbage("SLOW_PACKETS", item.to_vec()),
            });
        }
    }

    /// Takes the trace events out of their ring: the steps of the packets that the filter matched.
    ///
    /// # Panics
    ///
    /// When a record is not a whole event.
    pub fn trace_events(&mut self) -> Vec<TraceEvent> {
        let mut events = Vec::new();
        while let Some(record) = self.trace.next() {
            events.push(TraceEvent::from_bytes(&record).expect("a whole record"));
        }
        events
    }

    /// Traffic counts of the network in `slot`, summed over the CPUs.
    ///
    /// # Panics
    ///
    /// When the map cannot be read.
    #[must_use]
    pub fn stats(&self, slot: u32) -> NetworkStats {
        let map: PerCpuArray<_, NetworkStats> = self
            .ebpf
            .map("NETWORK_STATS")
            .and_then(|m| m.try_into().ok())
            .expect("the object has NETWORK_STATS");
        let mut sum = NetworkStats::default();
        for value in map.get(&slot, 0).expect("slot").iter() {
            sum.tx_packets += value.tx_packets;
            sum.tx_bytes += value.tx_bytes;
            sum.rx_packets += value.rx_packets;
            sum.rx_bytes += value.rx_bytes;
        }
        sum
    }
}

/// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn context(ifindex: u32, queue: u32, packet: &[u8]) -> [u8; 24] {
    let mut context = [0u8; 24];
    context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context[16..20].copy_from_slice(&queue.to_ne_bytes());
    context
}

fn run_error(program: Program, packet: &[u8], source: ProgramError) -> HarnessError {
    HarnessError::Run {
        name: program.name(),
        len: packet.len(),
        source: Box::new(source),
    }
}
