//! Where a worker's pipeline sends: sockets, rings of TLS connections, other workers, and the
//! manager.

use std::num::NonZeroU64;

use appliance_common::{events::SlowHeader, limits::SLOW_PACKET_BYTES};

use super::{EVENTS, UnresolvedPacket, handover::HandoverSender};
use crate::{
    pipeline::{Event, PacketSink, Sent},
    tls::{DATAGRAM_BYTES, RingSender},
};

/// Places of the event ring that are kept free of reports that hosts are in use.
const RESERVED: usize = EVENTS / 2;

/// The sending halves.
pub(super) struct Outputs {
    pub sockets: Vec<xsk::Tx>,
    /// By circuit.
    pub rings: Vec<(NonZeroU64, RingSender)>,
    /// By number of the worker; `None` at its own.
    pub workers: Vec<Option<HandoverSender>>,
    /// A datagram for a ring is sealed here first.
    datagram: Box<[u8; DATAGRAM_BYTES]>,
    events: rtrb::Producer<Event>,
    unresolved: rtrb::Producer<UnresolvedPacket>,
    /// The manager has something to take.
    pub needs_notify: bool,
    /// An event found no room.
    pub event_lost: bool,
}

impl Outputs {
    /// Without sockets and rings.
    pub fn new(
        events: rtrb::Producer<Event>,
        unresolved: rtrb::Producer<UnresolvedPacket>,
        workers: Vec<Option<HandoverSender>>,
    ) -> Self {
        Self {
            sockets: Vec::with_capacity(64),
            rings: Vec::with_capacity(64),
            workers,
            datagram: Box::new([0; DATAGRAM_BYTES]),
            events,
            unresolved,
            needs_notify: false,
            event_lost: false,
        }
    }
}

impl PacketSink for Outputs {
    #[inline]
    fn transmit(&mut self, ifindex: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        match self.sockets.iter_mut().find(|tx| tx.ifindex() == ifindex) {
            Some(tx) => tx.transmit(write),
            None => Sent::Full,
        }
    }

    fn transmit_tls(
        &mut self,
        circuit: NonZeroU64,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Sent {
        let ring = self.rings.iter_mut().find(|(of, _)| *of == circuit);
        let Some((_, ring)) = ring else {
            return Sent::Full;
        };
        let datagram = &mut self.datagram[..];
        match write(datagram).and_then(|len| datagram.get(..len)) {
            None => Sent::Abandoned,
            Some(datagram) if ring.push(datagram) => Sent::Queued,
            Some(_) => Sent::Full,
        }
    }

    fn event(&mut self, event: Event) {
        let free = self.events.slots();
        match event {
            Event::HostUsed { .. } if free < RESERVED => return,
            Event::Activity { .. } if free < RESERVED / 2 => {
                self.event_lost = true;
                return;
            }
            _ => {}
        }
        if self.events.push(event).is_err() {
            self.event_lost = true;
        }
        self.needs_notify = true;
    }

    fn unresolved(&mut self, header: &SlowHeader, packet: &[u8]) -> bool {
        let Ok(mut chunk) = self.unresolved.write_chunk_uninit(1) else {
            return false;
        };
        let (first, _) = chunk.as_mut_slices();
        let Some(record) = first.first_mut() else {
            return false;
        };
        let record = record.as_mut_ptr();
        let len = packet.len().min(SLOW_PACKET_BYTES);
        // SAFETY: `record` is one record of the ring that is ours to write; the header is written
        // whole, and of the data, whose bytes may hold anything, the first `len` and zeros behind
        // them.
        unsafe {
            (&raw mut (*record).header).write(*header);
            let data = (&raw mut (*record).data).cast::<u8>();
            data.copy_from_nonoverlapping(packet.as_ptr(), len);
            data.add(len).write_bytes(0, SLOW_PACKET_BYTES - len);
            chunk.commit_all();
        }
        self.needs_notify = true;
        true
    }

    #[inline]
    fn hand_over(&mut self, worker: u32, frame: &[u8]) -> bool {
        match self.workers.get_mut(worker as usize) {
            Some(Some(other)) => other.hand_over(frame),
            Some(None) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use appliance_common::{events::SlowReason, maps::HostKey};

    use super::*;

    fn outputs(
        events: usize,
    ) -> (
        Outputs,
        rtrb::Consumer<Event>,
        rtrb::Consumer<UnresolvedPacket>,
    ) {
        let (events_in, events) = rtrb::RingBuffer::new(events);
        let (unresolved_in, unresolved) = rtrb::RingBuffer::new(1);
        let outputs = Outputs::new(events_in, unresolved_in, Vec::new());
        (outputs, events, unresolved)
    }

    #[test]
    fn host_reports_leave_room_for_others() {
        let (mut outputs, events, _unresolved) = outputs(EVENTS);
        let key = HostKey {
            vni: 1,
            address: [0; 16],
        };
        for _ in 0..EVENTS {
            outputs.event(Event::HostUsed { key });
        }
        assert_eq!(events.slots(), EVENTS - RESERVED + 1);
        assert!(!outputs.event_lost, "a later one says the same");
        outputs.event(Event::SessionConfirmed { peer: 0, index: 1 });
        assert_eq!(events.slots(), EVENTS - RESERVED + 2);
    }

    #[test]
    fn an_unresolved_packet_is_copied_with_zeros_behind_it() {
        let (mut outputs, _events, mut unresolved) = outputs(1);
        let header = SlowHeader {
            vni: 7,
            ifindex: 0,
            len: 3,
            reason: SlowReason::Unresolved as u16,
            l3: 0,
            next_hop: [1; 16],
        };
        assert!(outputs.unresolved(&header, b"abc"));
        assert!(!outputs.unresolved(&header, b"abc"), "the ring is full");
        assert!(outputs.needs_notify);
        let packet = unresolved.pop().expect("a packet");
        assert_eq!((packet.packet(), packet.header.vni), (&b"abc"[..], 7));
        assert!(packet.data[3..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn without_a_socket_or_ring_nothing_is_sent() {
        let (mut outputs, _events, _unresolved) = outputs(1);
        assert_eq!(outputs.transmit(5, |_| Some(1)), Sent::Full);
        let circuit = NonZeroU64::MIN;
        assert_eq!(outputs.transmit_tls(circuit, |_| Some(1)), Sent::Full);
        assert!(!outputs.hand_over(3, b"x"));
    }
}
