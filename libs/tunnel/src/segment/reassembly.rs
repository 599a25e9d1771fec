//! Reassembly of packets from fragments, within bounded memory.

use std::time::Duration;

use super::{Header, InvalidSegment, PayloadKind};
use crate::time::Instant;

/// Limits of reassembly for one peer and lane. It allocates `slots × (max_packet + 64)` bytes,
/// once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReassemblyLimits {
    /// Packets that are reassembled at the same time. A new packet replaces the oldest.
    pub slots: usize,
    /// Longest packet that is reassembled, bytes.
    pub max_packet: usize,
    /// Time after its first fragment at which an incomplete packet is dropped.
    pub timeout: Duration,
}

impl Default for ReassemblyLimits {
    /// 32 packets of 9216 bytes, 500 ms: 290 KiB.
    fn default() -> Self {
        Self {
            slots: 32,
            max_packet: 9216,
            timeout: Duration::from_millis(500),
        }
    }
}

/// Counters of reassembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReassemblyStats {
    /// Packets reassembled.
    pub completed: u64,
    /// Packets dropped because fragments did not come in time.
    pub timed_out: u64,
    /// Packets dropped to make room for newer ones.
    pub evicted: u64,
    /// Fragments refused.
    pub refused: u64,
}

/// Reassembles packets from their fragments, in any order.
pub struct Reassembler {
    limits: ReassemblyLimits,
    /// Counter of each packet's first fragment; separate, so that a search touches little memory.
    bases: Box<[u64]>,
    slots: Box<[Slot]>,
    buffer: Box<[u8]>,
    stats: ReassemblyStats,
}

#[derive(Clone, Copy)]
struct Slot {
    /// One bit per fragment that has come; zero if the slot is free.
    have: u16,
    session: u32,
    header: Header,
    /// Bytes of the packet, known once the last fragment has come.
    len: usize,
    since: Instant,
}

const FREE: Slot = Slot {
    have: 0,
    session: 0,
    header: Header::whole(PayloadKind::Ip, 0),
    len: 0,
    since: Instant::ORIGIN,
};

impl std::fmt::Debug for Reassembler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reassembler")
            .field("limits", &self.limits)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Reassembler {
    /// Allocates the memory that `limits` allow, at least one slot.
    #[must_use]
    pub fn new(limits: ReassemblyLimits) -> Self {
        let limits = ReassemblyLimits {
            slots: limits.slots.max(1),
            max_packet: limits.max_packet.max(1),
            ..limits
        };
        Self {
            limits,
            bases: vec![0; limits.slots].into(),
            slots: vec![FREE; limits.slots].into(),
            buffer: vec![0; limits.slots * limits.max_packet].into(),
            stats: ReassemblyStats::default(),
        }
    }

    /// Counters since this was made.
    #[must_use]
    pub const fn stats(&self) -> ReassemblyStats {
        self.stats
    }

    /// Number of incomplete packets.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.slots.iter().filter(|slot| slot.have != 0).count()
    }

    /// Takes an authentic fragment that was sealed as `counter` of `session`. Yields the packet if
    /// it is complete; it is valid until the next call.
    ///
    /// # Errors
    /// [`InvalidSegment`] if the fragment is refused. If it contradicts another fragment, the whole
    /// packet is dropped.
    pub fn offer(
        &mut self,
        now: Instant,
        session: u32,
        counter: u64,
        header: Header,
        body: &[u8],
    ) -> Result<Option<&[u8]>, InvalidSegment> {
        self.place(now, session, counter, header, body)
            .inspect_err(|_| self.stats.refused += 1)
            .map(|done| {
                done.map(|(slot, len)| {
                    self.stats.completed += 1;
                    let from = slot * self.limits.max_packet;
                    &self.buffer[from..from + len]
                })
            })
    }

    fn place(
        &mut self,
        now: Instant,
        session: u32,
        counter: u64,
        header: Header,
        body: &[u8],
    ) -> Result<Option<(usize, usize)>, InvalidSegment> {
        let stride = usize::from(header.stride);
        let offset = usize::from(header.index) * stride;
        let limit = self.limits.max_packet;
        if header.is_whole() || !header.fits(body) {
            return Err(InvalidSegment::FragmentFields);
        }
        // The shortest packet with these fields: all fragments but the last, and one byte.
        if offset + body.len() > limit || usize::from(header.last) * stride + 1 > limit {
            return Err(InvalidSegment::TooLong { limit });
        }
        let base = counter
            .checked_sub(u64::from(header.index))
            .ok_or(InvalidSegment::FragmentFields)?;
        let at = match self.find(session, base) {
            Some(at) if now.since(self.slots[at].since) < self.limits.timeout => at,
            Some(at) => {
                self.stats.timed_out += 1;
                self.open(at, now, session, base, header);
                at
            }
            None => {
                let at = self.make_room(now);
                self.open(at, now, session, base, header);
                at
            }
        };
        let slot = &mut self.slots[at];
        let bit = 1_u16 << header.index;
        let same = (
            slot.header.kind,
            slot.header.network,
            slot.header.stride,
            slot.header.last,
        ) == (header.kind, header.network, header.stride, header.last);
        if !same || slot.have & bit != 0 {
            *slot = FREE;
            return Err(InvalidSegment::Conflict);
        }
        slot.have |= bit;
        if header.index == header.last {
            slot.len = offset + body.len();
        }
        let from = at * limit + offset;
        self.buffer[from..from + body.len()].copy_from_slice(body);
        let all = if header.last == 15 {
            u16::MAX
        } else {
            (1 << (header.last + 1)) - 1
        };
        if slot.have != all {
            return Ok(None);
        }
        let len = slot.len;
        *slot = FREE;
        Ok(Some((at, len)))
    }

    /// Drops packets whose fragments did not come in time.
    pub fn expire(&mut self, now: Instant) {
        for slot in &mut self.slots {
            if slot.have != 0 && now.since(slot.since) >= self.limits.timeout {
                *slot = FREE;
                self.stats.timed_out += 1;
            }
        }
    }

    fn find(&self, session: u32, base: u64) -> Option<usize> {
        self.bases
            .iter()
            .zip(&self.slots)
            .position(|(&at, slot)| at == base && slot.have != 0 && slot.session == session)
    }

    /// A free slot, or the oldest one.
    fn make_room(&mut self, now: Instant) -> usize {
        let mut oldest = 0;
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.have == 0 {
                return at;
            }
            if slot.since < self.slots[oldest].since {
                oldest = at;
            }
        }
        if now.since(self.slots[oldest].since) >= self.limits.timeout {
            self.stats.timed_out += 1;
        } else {
            self.stats.evicted += 1;
        }
        oldest
    }

    fn open(&mut self, at: usize, now: Instant, session: u32, base: u64, header: Header) {
        self.bases[at] = base;
        self.slots[at] = Slot {
            have: 0,
            session,
            header,
            len: 0,
            since: now,
        };
    }
}
