//! Keys and values of the maps.

/// Least capacity of `IDS`.
pub const MIN_CIRCUITS: u32 = 1024;
/// Slots in `CIRCUITS` per circuit: one in use, and some that are not reused yet.
pub const SLOTS_PER_CIRCUIT: u32 = 4;
/// Least capacity of `BUCKETS`.
pub const MIN_BUCKETS: u32 = 256;
/// Capacity of `PORTS`: interfaces, including those of VLANs.
pub const MAX_PORTS: u32 = 256;
/// How long a released map slot is not reused, nanoseconds. A program ends within microseconds, and
/// until then may use what it found.
pub const SLOT_REUSE_DELAY: u64 = 1_000_000_000;

/// An address in network byte order; an IPv4 address is in the last word, the others are zero.
pub type Address = [u32; 4];

/// The addresses of one bound side of a circuit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Its address.
    pub remote: Address,
    /// The gateway's address that it sends to.
    pub local: Address,
    pub remote_port: u16,
    pub local_port: u16,
    /// Padding, always zero.
    pub zero: u32,
}

/// Value of the array `CIRCUITS`: a circuit with both sides bound. While `IDS` leads to it, and for
/// [`SLOT_REUSE_DELAY`] after, only `expires` changes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circuit {
    /// Its ID, as on the wire. Shows that a slot was recycled after it was found.
    pub id: u64,
    /// When the binding of each side expires unless it is renewed. Stored eight bytes at a time.
    pub expires: [u64; 2],
    /// The sides.
    pub ends: [End; 2],
    /// Slots in `BUCKETS` of its tenant's limits: datagrams and bytes.
    pub buckets: [u32; 2],
    /// Its slot in `STATS`.
    pub stats: u32,
    /// IP version of both sides, 4 or 6.
    pub family: u32,
}

/// Value of the array `BUCKETS`: a token bucket, kept as the time when it is full again (GCRA,
/// ITU-T I.371 annex A). One cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens per second; 0: no limit.
    pub rate: u64,
    /// How long an empty bucket takes to fill, nanoseconds.
    pub depth: u64,
    /// When it is full again. The program and the threads of user space change it by compare and
    /// exchange only.
    pub full_at: u64,
    /// Padding, always zero.
    pub zero: [u64; 5],
}

impl Bucket {
    /// When the bucket is full again after `tokens` are taken at `now`, if it was full at
    /// `full_at`; `None` if it is empty.
    #[inline(always)]
    #[must_use]
    pub const fn after(rate: u64, depth: u64, full_at: u64, now: u64, tokens: u64) -> Option<u64> {
        if rate == 0 {
            return None;
        }
        let from = if full_at > now { full_at } else { now };
        if from - now >= depth {
            return None;
        }
        Some(from + tokens * 1_000_000_000 / rate)
    }
}

/// An address that a side is bound to; zeros: it is not bound.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    pub address: Address,
    /// Network byte order; never zero for a bound side.
    pub port: u16,
    /// Padding, always zero.
    pub zero: u16,
}

/// Value of the hash `KNOWN`, by circuit ID as on the wire: a configured circuit. Its token buckets
/// are times when they are full again, as in [`Bucket`]. The program changes them by compare and
/// exchange; user space keeps them when a side moves ([`Known::with_remotes`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub remotes: [Remote; 2],
    /// Messages of each bound side.
    pub bound: [u64; 2],
    /// Messages of sources that are not bound.
    pub messages: u64,
    /// Tunnel datagrams of sources that are not bound.
    pub datagrams: u64,
    /// Messages of each source that is not bound ([`Admission::pair`]).
    pub pairs: [u64; PAIR_BUCKETS],
}

impl Known {
    /// The entry with other addresses. Its buckets stay as full as they are: an end that moves
    /// often gets no more messages to user space than one that stays.
    #[must_use]
    pub const fn with_remotes(self, remotes: [Remote; 2]) -> Self {
        Self { remotes, ..self }
    }
}

/// An address of `gateway.listen`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// Zeros: every address of the family.
    pub address: Address,
    /// Network byte order.
    pub port: u16,
    /// Padding, always zero.
    pub zero: u16,
    /// IP version, 4 or 6; 0: the entry is not used.
    pub family: u32,
}

/// Listen addresses that admission knows. Datagrams to others are all passed.
pub const MAX_LISTEN: usize = 8;

/// The one value of the array `ADMISSION`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Random, so that a sender cannot choose the bucket of another one.
    pub secret: [u64; 2],
    pub listen: [Listen; MAX_LISTEN],
    /// Datagrams a second of one source that is not bound ([`source_rate`]).
    pub source_rate: u64,
    /// Datagrams a second of all sources that are not bound ([`unbound_rate`]).
    pub unbound_rate: u64,
    /// Not 0: `KNOWN` has every configured circuit.
    pub complete: u32,
    /// Padding, always zero.
    pub zero: u32,
}

impl Admission {
    /// The bucket of a source, an IPv4 address or an IPv6 /64, in `SOURCES`.
    #[inline(always)]
    #[must_use]
    pub const fn source(secret: [u64; 2], family: u32, source: &Address) -> u32 {
        hash(secret, family, source, 0) & (SOURCE_BUCKETS - 1)
    }

    /// The bucket of a source in [`Known::pairs`] of the circuit `id` at the time `now`,
    /// nanoseconds. It is another one every 4.3 seconds: sources that share one now seldom share
    /// the next one.
    #[inline(always)]
    #[must_use]
    pub const fn pair(secret: [u64; 2], family: u32, source: &Address, id: u64, now: u64) -> usize {
        let period = now >> PAIR_PERIOD_SHIFT;
        hash(secret, family, source, id ^ period) as usize & (PAIR_BUCKETS - 1)
    }
}

/// 24 bits of an address and a number, which senders cannot predict without the secret.
#[inline(always)]
const fn hash(secret: [u64; 2], family: u32, source: &Address, number: u64) -> u32 {
    let address = if family == 4 {
        source[3] as u64
    } else {
        // A /64 belongs to one site.
        (source[0] as u64) << 32 | source[1] as u64
    };
    let mut hash = address ^ secret[0];
    hash = (hash ^ hash >> 32 ^ number).wrapping_mul(HASH_FACTOR);
    hash = (hash ^ hash >> 32 ^ secret[1]).wrapping_mul(HASH_FACTOR);
    (hash >> 40) as u32
}

/// An odd number of many ones and zeros: 2^64 divided by the golden ratio.
const HASH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Entries of `SOURCES`; a power of two.
pub const SOURCE_BUCKETS: u32 = 1 << 13;
/// Buckets of each circuit for the messages of sources that are not bound; a power of two. A flood
/// that knows one ID uses up none of another circuit.
pub const PAIR_BUCKETS: usize = 8;
/// Time for which a source keeps its bucket of a circuit: 2 to the power of this, nanoseconds.
const PAIR_PERIOD_SHIFT: u32 = 32;
/// Messages a second from a source that is bound, for each circuit and side; the burst is that of a
/// second.
pub const BOUND_RATE: u64 = 128;
/// Messages a second that user space gets of one circuit from sources that are not bound to it; the
/// burst is that of a second.
pub const CIRCUIT_RATE: u64 = 64;
/// The part of [`CIRCUIT_RATE`] that one source gets; the burst is that of a second. An end that
/// tries to bind sends fewer.
pub const PAIR_RATE: u64 = 16;
/// Tunnel datagrams a second that user space gets of one circuit from sources that are not bound to
/// it; the burst is that of a second. It only counts them.
pub const CIRCUIT_DATAGRAM_RATE: u64 = 8;
/// The part of [`unbound_rate`] that one source gets.
const SOURCE_PART: u64 = 4;

/// Datagrams a second of all sources that are not bound, at a gateway for `circuits`; the burst is
/// that of a second. Enough for two messages of each end within two seconds after a restart of the
/// gateway. A core handles about 800 000.
#[must_use]
pub const fn unbound_rate(circuits: usize) -> u64 {
    let rate = circuits.saturating_mul(2);
    if rate < 16_384 {
        16_384
    } else if rate > 262_144 {
        262_144
    } else {
        rate as u64
    }
}

/// Datagrams a second that user space gets from one source, an IPv4 address or an IPv6 /64, that is
/// not bound to the circuit; the burst is that of a second. The appliance of a provider binds all
/// circuits of a gateway at once.
#[must_use]
pub const fn source_rate(circuits: usize) -> u64 {
    unbound_rate(circuits) / SOURCE_PART
}

/// Value of the per-CPU array `STATS`: the traffic of a circuit through the program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams forwarded, by the side that sent them.
    pub datagrams: [u64; 2],
    /// Their payload bytes, including the ID.
    pub bytes: [u64; 2],
    /// Datagrams dropped because the tenant exceeded its rate.
    pub rate: u64,
}

/// Value of `PORTS`, by interface index: an interface with the program, or a VLAN on one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// The interface with the program.
    pub device: u32,
    /// The VLAN identifier on it; 0: untagged.
    pub vlan: u16,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Not 0: it accepts redirects from other interfaces.
    pub target: u32,
}

const _: () = assert!(size_of::<End>() == 40);
const _: () = assert!(size_of::<Circuit>() == 120);
const _: () = assert!(size_of::<Bucket>() == 64);
const _: () = assert!(size_of::<Stats>() == 40);
const _: () = assert!(size_of::<Port>() == 16);
const _: () = assert!(size_of::<Known>() == 136);
const _: () = assert!(size_of::<Listen>() == 24);
const _: () = assert!(size_of::<Admission>() == 232);

/// The outcome of a frame in the program: the index in the per-CPU array `COUNTERS`. Numbers are
/// never reused.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Sent to the other end of its circuit.
    Forwarded = 0,
    /// Dropped: the tenant exceeded its rate.
    OverRate = 1,
    /// Passed: no UDP datagram long enough for an ID, or more than one VLAN tag. To a listen
    /// address: [`Outcome::BadDatagram`], as for the next four.
    Other = 2,
    /// Passed: not to the interface's MAC address, or the interface is unknown.
    ForeignMac = 3,
    /// Passed: a fragment.
    Fragment = 4,
    /// Passed: IPv4 options.
    Options = 5,
    /// Passed: contradictory lengths, a wrong IPv4 header checksum, or IPv6 without a UDP checksum.
    Malformed = 6,
    /// Passed: the first four bytes are zero, so it is a message or malformed.
    Message = 7,
    /// Passed: no published circuit with both sides bound has this ID.
    UnknownCircuit = 8,
    /// Passed: the addresses and ports are those of no bound side.
    WrongSource = 9,
    /// Passed: the binding of a side has expired.
    Expired = 10,
    /// Passed: longer than the route's MTU.
    TooLong = 11,
    /// Passed: the kernel has no next hop, or its MAC address is not resolved.
    NoNextHop = 12,
    /// Passed: the output interface has no program or accepts no redirects, or it is another VLAN.
    OtherInterface = 13,
    /// Passed: several CPUs contended for one bucket too often.
    BucketContention = 14,
    /// Dropped: no configured circuit has the ID.
    NoCircuit = 15,
    /// Dropped: sources that are not bound sent too much.
    UnboundRate = 16,
    /// Dropped: to a listen address, and no message and no datagram of a circuit, or not with plain
    /// headers: IPv4 options, IPv6 extension headers, a first fragment, contradictory lengths.
    BadDatagram = 17,
}

impl Outcome {
    /// Every outcome, by number.
    pub const ALL: [Self; 18] = [
        Self::Forwarded,
        Self::OverRate,
        Self::Other,
        Self::ForeignMac,
        Self::Fragment,
        Self::Options,
        Self::Malformed,
        Self::Message,
        Self::UnknownCircuit,
        Self::WrongSource,
        Self::Expired,
        Self::TooLong,
        Self::NoNextHop,
        Self::OtherInterface,
        Self::BucketContention,
        Self::NoCircuit,
        Self::UnboundRate,
        Self::BadDatagram,
    ];

    /// Entries of `COUNTERS`.
    pub const SLOTS: u32 = 32;

    /// The name in status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::OverRate => "over-rate",
            Self::Other => "other",
            Self::ForeignMac => "foreign-mac",
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::Malformed => "malformed",
            Self::Message => "message",
            Self::UnknownCircuit => "unknown-circuit",
            Self::WrongSource => "wrong-source",
            Self::Expired => "expired",
            Self::TooLong => "too-long",
            Self::NoNextHop => "no-next-hop",
            Self::OtherInterface => "other-interface",
            Self::BucketContention => "bucket-contention",
            Self::NoCircuit => "no-circuit",
            Self::UnboundRate => "unbound-rate",
            Self::BadDatagram => "bad-datagram",
        }
    }
}

#[cfg(feature = "user")]
mod pod {
    use super::{Admission, Bucket, Circuit, Known, Port, Stats};

    // SAFETY: `repr(C)` of integers without padding, as the sizes above assert.
    unsafe impl aya::Pod for Circuit {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Bucket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Stats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Port {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Known {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Admission {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_their_numbers() {
        for (n, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, n);
        }
        assert!(Outcome::ALL.len() <= Outcome::SLOTS as usize);
    }

    #[test]
    fn an_outcome_has_the_name_of_its_variant() {
        for outcome in Outcome::ALL {
            let mut name = String::new();
            for c in format!("{outcome:?}").chars() {
                if c.is_uppercase() && !name.is_empty() {
                    name.push('-');
                }
                name.extend(c.to_lowercase());
            }
            assert_eq!(outcome.name(), name);
        }
    }

    /// Takes a message from the buckets of a source and of its circuit, in the order of the
    /// program.
    struct Admitted {
        secret: [u64; 2],
        circuit: Known,
    }

    impl Admitted {
        fn new(seed: u64) -> Self {
            Self {
                secret: [seed.wrapping_mul(HASH_FACTOR), !seed],
                circuit: Known::default(),
            }
        }

        fn passes(&mut self, now: u64, source: u32) -> bool {
            const SECOND: u64 = 1_000_000_000;
            let place = Admission::pair(self.secret, 4, &[0, 0, 0, source], 77, now);
            let take = |full_at: &mut u64, rate| {
                let next = Bucket::after(rate, SECOND, *full_at, now, 1);
                *full_at = next.unwrap_or(*full_at);
                next.is_some()
            };
            take(&mut self.circuit.pairs[place], PAIR_RATE)
                && take(&mut self.circuit.messages, CIRCUIT_RATE)
        }
    }

    #[test]
    fn a_flood_of_one_source_leaves_its_circuit_room_for_an_end() {
        const SECONDS: u64 = 60;
        let (mut all, mut longest) = (0, 0);
        for seed in 1..=20 {
            let mut admitted = Admitted::new(seed);
            let (mut flood, mut last) = (0, 0);
            // A message of the flood each millisecond, and one of the end each 80 ms, as it tries
            // to bind.
            for millis in 0..SECONDS * 1000 {
                let now = millis * 1_000_000;
                flood += u64::from(admitted.passes(now, 0x0b00_0001));
                if millis % 80 == 79 && admitted.passes(now, 0xc000_020a) {
                    all += 1;
                    longest = longest.max(millis - last);
                    last = millis;
                }
            }
            // A new bucket every 4.3 s, full at first.
            assert!(flood <= (SECONDS + SECONDS / 4 + 2) * PAIR_RATE, "{flood}");
        }
        let sent = 20 * SECONDS * 1000 / 80;
        assert!(all * 100 > sent * 80, "{all} of {sent} of the end's");
        assert!(longest < 10_000, "no message of an end for {longest} ms");
    }

    #[test]
    fn sources_spread_over_the_buckets() {
        let secret = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        let most = |buckets: usize, places: &mut dyn Iterator<Item = usize>| {
            let mut counts = vec![0; buckets];
            places.for_each(|place| counts[place] += 1);
            counts.into_iter().max()
        };
        let sources = || (0..2048u32).map(|n| [0x2001, n.swap_bytes(), 1, 2]);
        let mut alone = sources().map(|at| Admission::source(secret, 6, &at) as usize);
        assert!(most(SOURCE_BUCKETS as usize, &mut alone) < Some(8));
        let mut of_circuit = sources().map(|at| Admission::pair(secret, 6, &at, 77, 5));
        assert!(most(PAIR_BUCKETS, &mut of_circuit) < Some(320));
        let source = [0, 0, 0, 0x0102_0304];
        let ids = (0..2048u64).map(|n| (n << 32 | 5).swap_bytes());
        let mut of_source = ids.map(|id| Admission::pair(secret, 4, &source, id, 5));
        assert!(most(PAIR_BUCKETS, &mut of_source) < Some(320));
        let times = (0..2048u64).map(|n| n << PAIR_PERIOD_SHIFT);
        let mut over_time = times.map(|now| Admission::pair(secret, 4, &source, 77, now));
        assert!(most(PAIR_BUCKETS, &mut over_time) < Some(320));
        // All addresses of a /64 are one source.
        let [a, b] = [3, 4].map(|n| Admission::pair(secret, 6, &[1, 2, n, n], 77, 5));
        assert_eq!(a, b);
    }

    #[test]
    fn an_entry_with_other_addresses_keeps_the_fill_of_its_buckets() {
        let before = Known {
            bound: [1, 2],
            messages: 3,
            datagrams: 4,
            pairs: [6; PAIR_BUCKETS],
            ..Known::default()
        };
        let remote = Remote {
            port: 5,
            ..Remote::default()
        };
        let after = before.with_remotes([remote; 2]);
        assert_eq!(after.remotes, [remote; 2]);
        assert_eq!(
            (after.bound, after.messages, after.datagrams, after.pairs),
            ([1, 2], 3, 4, [6; PAIR_BUCKETS])
        );
    }

    #[test]
    fn a_flood_gets_the_rate_and_the_depth_once() {
        let (mut full_at, mut given) = (0, 0);
        for now in (0..1_000_000_000).step_by(1000) {
            if let Some(next) = Bucket::after(1000, 100_000_000, full_at, now, 1) {
                (full_at, given) = (next, given + 1);
            }
        }
        assert!((1099..=1101).contains(&given), "{given}");
        assert_eq!(Bucket::after(0, 1, 0, 5, 1), None);
    }
}
