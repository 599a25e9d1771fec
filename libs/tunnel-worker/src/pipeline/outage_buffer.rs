//! The newest TCP segment of each flow, kept while its tunnel is silent or down.
//!
//! After an outage of minutes a sender's next retransmission is up to two minutes away (RFC 6298
//! section 2.5 lets the timer grow to 60 s and more; Linux to 120 s, `TCP_RTO_MAX`). The buffer
//! sends its last segment again as soon as the tunnel works, the receiver acknowledges it, and the
//! connection continues at once. TCP expects duplicate segments of a network (RFC 9293 section
//! 3.4).

use std::time::Duration;

use appliance_common::wire::{IPPROTO_TCP, IPV4_LEN, IPV6_LEN};
use packet_rules::tcp::{FIN, SYN};
use tunnel::Instant;

/// Flows kept; of two flows with the same slot, the newer one stays.
const SLOTS: usize = 1024;
/// Bytes of a slot.
pub(super) const BYTES: usize = 2048;
/// How long a segment is kept: the maximum segment lifetime (RFC 9293 section 3.4.2).
const LIFETIME: Duration = Duration::from_secs(120);

/// The kept segments. 2 MiB, of which pages never used take no memory.
pub(super) struct OutageBuffer {
    slots: Box<[Slot]>,
    bytes: Box<[u8]>,
}

#[derive(Clone, Copy)]
struct Slot {
    /// Bytes kept; zero: free.
    len: usize,
    peer: u32,
    since: Instant,
}

impl OutageBuffer {
    pub fn new() -> Self {
        let free = Slot {
            len: 0,
            peer: 0,
            since: Instant::ORIGIN,
        };
        Self {
            slots: vec![free; SLOTS].into(),
            bytes: vec![0; SLOTS * BYTES].into(),
        }
    }

    /// Keeps `frame`, as the programs handed it over, if the packet at `at` in it is a TCP segment.
    /// A segment that its sender would repeat replaces the kept one; a mere acknowledgement only
    /// fills an empty slot (the other end's segment may have arrived before this end could send).
    /// `hash` is that of its flow. Returns whether the frame is kept.
    pub fn keep(&mut self, now: Instant, peer: u32, hash: u32, frame: &[u8], at: usize) -> bool {
        let place = hash as usize % SLOTS;
        let fits = match frame.get(at..).map(kind) {
            Some(Kind::SentAgain) => true,
            Some(Kind::Acknowledgement) => self.slots[place].len == 0,
            Some(Kind::Other) | None => false,
        };
        if frame.len() > BYTES || !fits {
            return false;
        }
        self.slots[place] = Slot {
            len: frame.len(),
            peer,
            since: now,
        };
        self.bytes[place * BYTES..][..frame.len()].copy_from_slice(frame);
        true
    }

    /// Takes the segments of a peer, one after the other from slot `from` on: the slot, and the
    /// frame if it is not too old. `None` when there is no more.
    pub fn take(&mut self, now: Instant, peer: u32, from: usize) -> Option<(usize, Option<&[u8]>)> {
        let place =
            (from..SLOTS).find(|at| self.slots[*at].len > 0 && self.slots[*at].peer == peer)?;
        let slot = &mut self.slots[place];
        let len = std::mem::take(&mut slot.len);
        let fresh = now.since(slot.since) < LIFETIME;
        Some((place, fresh.then(|| &self.bytes[place * BYTES..][..len])))
    }

    /// Removes the segments of a peer.
    pub fn forget(&mut self, peer: u32) {
        for slot in &mut self.slots {
            if slot.peer == peer {
                slot.len = 0;
            }
        }
    }
}

/// The kind of a packet: whether its sender repeats it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A TCP segment with data, SYN or FIN: sent again until acknowledged.
    SentAgain,
    /// Another TCP segment: sent once.
    Acknowledgement,
    /// No TCP segment, or a part of one.
    Other,
}

fn kind(packet: &[u8]) -> Kind {
    let (at, end, protocol) = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= IPV4_LEN => {
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff;
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let protocol = if fragment == 0 { packet[9] } else { 0 };
            (usize::from(packet[0] & 0x0f) * 4, total, protocol)
        }
        Some(6) if packet.len() >= IPV6_LEN => {
            let total = IPV6_LEN + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            (IPV6_LEN, total, packet[6])
        }
        _ => return Kind::Other,
    };
    let Some(&[offset, flags]) = packet.get(at + 12..).and_then(<[u8]>::first_chunk) else {
        return Kind::Other;
    };
    if protocol != IPPROTO_TCP {
        Kind::Other
    } else if flags & (FIN | SYN) != 0 || at + usize::from(offset >> 4) * 4 < end {
        Kind::SentAgain
    } else {
        Kind::Acknowledgement
    }
}
