//! The model: a second implementation of the circuits in `docs/gateway.md`.

use std::{net::SocketAddr, time::Duration};

use gateway_client::{
    end::End,
    wire::{CircuitId, Key, Kind, Load, Message, Side, Tag},
};
use gateway_core::table::{Path, Reason, Traffic};

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const LIFETIME: Duration = Duration::from_secs(10);
/// Window of cookies, seconds.
pub(super) const WINDOW: u64 = 120;
/// Messages of a side: burst, and a second.
pub(super) const BINDS: u64 = 32;
/// Challenges of a side to sources of a slot: burst, and a second.
pub(super) const CHALLENGES: u64 = 16;
/// Slots of sources.
pub(super) const SLOTS: usize = 8;
/// Limits a second: datagrams of tenant acme, bytes of tenant evil. Both divide a second into whole
/// nanoseconds.
pub(super) const DATAGRAMS: u64 = 1000;
pub(super) const BYTES: u64 = 100_000;
/// Burst of the limits.
pub(super) const BURST_TIME: Duration = Duration::from_millis(100);
/// Circuits of all plans.
pub(super) const CIRCUITS: usize = 3;
/// Addresses; the ends begin at the first six.
pub(super) const ADDRESSES: usize = 8;
/// Datagrams that the attacker records.
pub(super) const MAX_RECORDED: usize = 64;
/// Largest time of the clock of ends.
pub(super) const MAX_TIME: u64 = 1 << 62;

pub(super) fn id(circuit: usize) -> CircuitId {
    CircuitId::new((circuit as u64 + 1) << 32 | 5).expect("its first bytes are not zero")
}

/// The keys of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys(u64);

impl Keys {
    /// Keys that depend on the whole input (FNV-1a): a fuzzer sees compared values, and could
    /// otherwise put a valid message of one run into the input of the next.
    pub(super) fn of(input: &[u8]) -> Self {
        Self(input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// The key of a side, different in each generation. A fourth circuit exists in no plan.
    pub(super) fn key(self, circuit: usize, side: Side, generation: u8) -> Key {
        self.numbered(circuit as u8 * 2 + side as u8 + 1 + 16 * generation)
    }

    /// The secret of cookies.
    pub(super) fn secret(self) -> Key {
        self.numbered(0xee)
    }

    pub(super) fn numbered(self, number: u8) -> Key {
        let mut bytes = [number; 32];
        bytes[..8].copy_from_slice(&self.0.to_be_bytes());
        Key::new(bytes)
    }
}

/// The slot of a source: by its IPv4 address, mapped, or IPv6 /64.
pub(super) fn slot(secret: &Key, from: &Path) -> usize {
    let mut bytes = match from.remote.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    };
    if from.remote.is_ipv6() {
        bytes[8..].fill(0);
    }
    usize::from(secret.tag(&[&bytes]).0[0]) % SLOTS
}

/// The source address number `place`. The last two are other ports of the first two.
pub(super) fn at(place: usize) -> Path {
    let host = (place % 6) as u8 + 1;
    let port = 1000 + place as u16;
    let remote = if place.is_multiple_of(2) {
        SocketAddr::from(([192, 0, 2, host], port))
    } else {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host)], port))
    };
    Path {
        socket: (place % 2) as u16,
        local: None,
        remote,
    }
}

pub(super) fn datagram(circuit: usize, bytes: usize) -> Vec<u8> {
    let mut out = id(circuit).to_bytes().to_vec();
    out.resize(8 + bytes.max(1), 0x5a);
    out
}

/// A bucket of the model: its level as the nanoseconds until it is empty.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leaky {
    pub(super) level: u64,
    pub(super) at: u64,
}

impl Leaky {
    pub(super) fn pour(&mut self, now: Duration, cost: u64, depth: Duration) -> bool {
        let now = now.as_nanos() as u64;
        self.level = self.level.saturating_sub(now - self.at);
        self.at = now;
        let fits = self.level < depth.as_nanos() as u64;
        if fits {
            self.level += cost;
        }
        fits
    }
}

/// A side in the model.
#[derive(Clone, Debug)]
pub(super) struct KnownSide {
    pub(super) key: Key,
    /// Timestamp of the last message that was accepted from a proven address.
    pub(super) proven: u64,
    /// Differs between lives of a side, and after each bind that set its clock back.
    pub(super) epoch: u64,
    pub(super) messages: Leaky,
    pub(super) challenges: [Leaky; SLOTS],
    pub(super) bound: Option<(Path, Duration)>,
}

impl KnownSide {
    pub(super) const fn new(key: Key, epoch: u64) -> Self {
        Self {
            key,
            proven: 0,
            epoch,
            messages: Leaky { level: 0, at: 0 },
            challenges: [Leaky { level: 0, at: 0 }; SLOTS],
            bound: None,
        }
    }

    pub(super) fn live(&self, now: Duration) -> Option<Path> {
        let (path, until) = self.bound?;
        (now < until).then_some(path)
    }
}

/// A circuit in the model.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) circuit: usize,
    pub(super) tenant: &'static str,
    pub(super) sides: [KnownSide; 2],
    pub(super) drops: [u64; Reason::ALL.len()],
    pub(super) from: [Traffic; 2],
}

/// A cookie and its owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) circuit: CircuitId,
    pub(super) side: Side,
    pub(super) remote: SocketAddr,
    pub(super) window: u64,
    pub(super) epoch: u64,
    /// Whether it permits one bind with any timestamp.
    pub(super) any_time: bool,
    pub(super) cookie: Tag,
}

/// The expected action for a datagram.
#[derive(Debug)]
pub(super) enum Wanted {
    Forward(Path),
    /// An answer to this message, of this kind; whether its cookie permits any timestamp.
    Answer(Message, Kind, bool),
    Done,
    Drop(Reason),
}

/// An end, and its state in the model.
#[derive(Debug)]
pub(super) struct KnownEnd {
    pub(super) end: End,
    pub(super) circuit: usize,
    pub(super) side: Side,
    pub(super) place: usize,
    pub(super) newest: u64,
    pub(super) received: u64,
    /// Timestamps of binds that no answer has come to yet, nor to a later one.
    pub(super) outstanding: Vec<u64>,
    pub(super) challenged: bool,
    /// Timestamp of the unbind that a challenge may answer.
    pub(super) leaving: Option<u64>,
}

impl KnownEnd {
    /// An end that has sent nothing.
    pub(super) fn new(keys: Keys, circuit: usize, side: Side, place: usize) -> Self {
        Self {
            end: End::new(id(circuit), side, keys.key(circuit, side, 0)),
            circuit,
            side,
            place,
            newest: 0,
            received: 0,
            outstanding: Vec::new(),
            challenged: false,
            leaving: None,
        }
    }
}

impl Known {
    /// The expected action for a message of this circuit.
    pub(super) fn message(
        &mut self,
        now: Duration,
        bytes: &[u8],
        message: &Message,
        from: &Path,
        proof: Option<bool>,
        (draining, epoch, slot): (bool, u64, usize),
    ) -> Wanted {
        let other = self.sides[message.side.other().index()].live(now);
        let side = &mut self.sides[message.side.index()];
        if !is_tagged(bytes, &side.key) {
            return Wanted::Drop(Reason::Forged);
        }
        if !matches!(message.kind, Kind::Bind | Kind::Unbind) {
            return Wanted::Drop(Reason::NotForUs);
        }
        let depth = Duration::from_secs(1);
        let live = side.live(now);
        let unbinds = message.kind == Kind::Unbind;
        if unbinds && message.timestamp <= side.proven {
            return Wanted::Drop(Reason::Replayed);
        }
        if unbinds && live.is_none_or(|path| path.remote != from.remote) {
            return Wanted::Drop(Reason::NotBound);
        }
        // A cookie for any timestamp is for a bind only.
        if proof.is_none() || (unbinds && proof == Some(true)) {
            let is_old = message.timestamp <= side.proven;
            let challenges = &mut side.challenges[slot];
            return if message.timestamp != side.proven
                && challenges.pour(now, SECOND / CHALLENGES, depth)
            {
                Wanted::Answer(*message, Kind::Challenge, is_old)
            } else if is_old {
                Wanted::Drop(Reason::Replayed)
            } else {
                Wanted::Drop(Reason::BindRate)
            };
        }
        if proof != Some(true) && message.timestamp <= side.proven {
            return Wanted::Drop(Reason::Replayed);
        }
        if !side.messages.pour(now, SECOND / BINDS, depth) {
            return Wanted::Drop(Reason::BindRate);
        }
        side.proven = message.timestamp;
        if unbinds {
            side.bound = None;
            return Wanted::Done;
        }
        if proof == Some(true) {
            side.epoch = epoch;
        }
        if other.is_some_and(|path| path.remote == from.remote) {
            return Wanted::Drop(Reason::SameAddress);
        }
        if draining && live.is_none() {
            return Wanted::Answer(*message, Kind::Move, false);
        }
        side.bound = Some((*from, now + LIFETIME));
        let kind = if draining { Kind::Move } else { Kind::Bound };
        Wanted::Answer(*message, kind, false)
    }
}

/// A parsed datagram.
pub(super) enum Form {
    Tunnel(CircuitId),
    Message(Message),
}

/// Parses a datagram by the layout in `docs/gateway.md`.
pub(super) fn read(bytes: &[u8]) -> Option<Form> {
    let number = |at: usize, length: usize| {
        let mut out = [0; 8];
        out[8 - length..].copy_from_slice(&bytes[at..at + length]);
        u64::from_be_bytes(out)
    };
    if bytes.len() <= 8 {
        return None;
    }
    if number(0, 4) != 0 {
        return Some(Form::Tunnel(CircuitId::new(number(0, 8))?));
    }
    if bytes.len() != 64 || number(4, 5) != 1 || number(12, 4) == 0 {
        return None;
    }
    let kind = match bytes[9] {
        1 => Kind::Bind,
        2 => Kind::Challenge,
        3 => Kind::Bound,
        4 => Kind::Move,
        5 => Kind::Unbind,
        _ => return None,
    };
    let side = *Side::BOTH.get(usize::from(bytes[10]))?;
    let lifetime = number(44, 4) as u32;
    if kind != Kind::Bound && lifetime != 0 {
        return None;
    }
    if !matches!(kind, Kind::Bound | Kind::Move) && bytes[11] != 0 {
        return None;
    }
    Some(Form::Message(Message {
        kind,
        side,
        circuit: CircuitId::new(number(12, 8))?,
        timestamp: number(20, 8),
        cookie: Tag(bytes[28..44].try_into().ok()?),
        lifetime,
        load: Load::from_byte(bytes[11]),
    }))
}

/// Whether the tag of a message is valid under this key.
pub(super) fn is_tagged(bytes: &[u8], key: &Key) -> bool {
    key.tag(&[&bytes[..48]]).0 == bytes[48..64]
}
