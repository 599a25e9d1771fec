//! Keys and values of the maps.

/// Circuits that there is always room for.
pub const MIN_CIRCUITS: u32 = 1024;
/// Places in `CIRCUITS` for each circuit: one in force, and some that were in force and still rest.
pub const SLOTS_PER_CIRCUIT: u32 = 4;
/// Places in `BUCKETS` at least.
pub const MIN_BUCKETS: u32 = 256;
/// Interfaces in `PORTS`, the VLANs on them included.
pub const MAX_PORTS: u32 = 256;
/// How long a place in a map rests before it is another's: nanoseconds. A program ends within microseconds; until then it may use what it found.
pub const SLOT_REUSE_DELAY: u64 = 1_000_000_000;
/// Likewise of a bucket: a thread of user space may take a while to take a new plan, and until then leads the program to the old one.
pub const BUCKET_REUSE_DELAY: u64 = 60 * 1_000_000_000;

/// In [`Circuit::buckets`]: there is no limit.
pub const NO_BUCKET: u32 = u32::MAX;

/// An address as it lies in a packet; IPv4 in the last word, the others zero.
pub type Address = [u32; 4];

/// Where a side is bound.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Its address.
    pub remote: Address,
    /// The gateway's, that it speaks to.
    pub local: Address,
    /// Its port.
    pub remote_port: u16,
    /// The gateway's.
    pub local_port: u16,
    /// Zero.
    pub zero: u32,
}

/// Value of the array `CIRCUITS`: a circuit with both sides bound. While `IDS` leads to it, and for [`SLOT_REUSE_DELAY`] after, nothing of it
/// changes but `expires`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circuit {
    /// Its id, as it is on the wire. Whoever came here by an entry that is another's by now sees it here.
    pub id: u64,
    /// When each side's binding ends, unless it is renewed: a store of eight bytes.
    pub expires: [u64; 2],
    /// The sides.
    pub ends: [End; 2],
    /// Places in `BUCKETS` of what its tenant may send: datagrams and bytes; or [`NO_BUCKET`].
    pub buckets: [u32; 2],
    /// Its place in `STATS`.
    pub stats: u32,
    /// 4 or 6, of both sides.
    pub family: u32,
}

/// Value of the array `BUCKETS`: tokens, kept as the moment at which all are there again (GCRA, ITU-T I.371 annex A). A cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens a second.
    pub rate: u64,
    /// How long an empty one takes to be full: nanoseconds.
    pub depth: u64,
    /// When it is full again. The program and the threads of user space change it by compare and exchange only.
    pub full_at: u64,
    /// Zero.
    pub zero: [u64; 5],
}

impl Bucket {
    /// When it is full again after `tokens` more at `now`, if it was full at `full_at`; `None`: it holds none.
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

/// Value of the per-CPU array `STATS`: what the program did with a circuit's datagrams.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Carried, by the side that sent them.
    pub datagrams: [u64; 2],
    /// Their bytes, the ids included.
    pub bytes: [u64; 2],
    /// Dropped: beyond what the tenant may send.
    pub rate: u64,
}

/// Value of `PORTS`, by the index of an interface: where the program is, or a VLAN on such an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// The interface that has the program.
    pub device: u32,
    /// The VLAN on it; 0: untagged.
    pub vlan: u16,
    /// What frames to it are to.
    pub mac: [u8; 6],
    /// Whether what came in by another interface may go out by this one: not 0.
    pub target: u32,
}

const _: () = assert!(size_of::<End>() == 40);
const _: () = assert!(size_of::<Circuit>() == 120);
const _: () = assert!(size_of::<Bucket>() == 64);
const _: () = assert!(size_of::<Stats>() == 40);
const _: () = assert!(size_of::<Port>() == 16);

/// What the program did with a frame: the place in the per-CPU array `COUNTERS`. Numbers are never reused.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Sent to the other end of its circuit.
    Forwarded = 0,
    /// Dropped: beyond what the tenant may send.
    OverRate = 1,
    /// No UDP datagram that an id fits in, or with more than one tag.
    Other = 2,
    /// To a link-layer address that is not the interface's, or the interface is not known.
    NotForUs = 3,
    /// A fragment.
    Fragment = 4,
    /// With IPv4 options.
    Options = 5,
    /// Lengths that contradict each other, or an IPv4 header whose checksum is wrong, or an IPv6 datagram without one.
    Malformed = 6,
    /// Its first four bytes are zero: a message, or malformed.
    Message = 7,
    /// No circuit with both sides bound, as far as the program is told.
    UnknownCircuit = 8,
    /// From where no side is bound, or to another address than that side speaks to.
    WrongSource = 9,
    /// A side has had its time.
    Expired = 10,
    /// Too long for the way.
    TooLong = 11,
    /// The kernel has no next hop, or not yet.
    NoNextHop = 12,
    /// The way is by an interface without the program or that takes nothing of others, or another VLAN.
    OtherInterface = 13,
    /// Several processors drew from one bucket at once, time and again.
    BucketContention = 14,
}

impl Outcome {
    /// All of them, by number.
    pub const ALL: [Self; 15] = [
        Self::Forwarded,
        Self::OverRate,
        Self::Other,
        Self::NotForUs,
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
    ];

    /// Places in `COUNTERS`.
    pub const SLOTS: u32 = 32;

    /// Its name in status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "carried",
            Self::OverRate => "rate",
            Self::Other => "other",
            Self::NotForUs => "stray",
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::Malformed => "malformed",
            Self::Message => "message",
            Self::UnknownCircuit => "unknown",
            Self::WrongSource => "source",
            Self::Expired => "expired",
            Self::TooLong => "too-long",
            Self::NoNextHop => "no-way",
            Self::OtherInterface => "elsewhere",
            Self::BucketContention => "busy",
        }
    }
}

#[cfg(feature = "user")]
mod pod {
    use super::{Bucket, Circuit, Port, Stats};

    // SAFETY: `repr(C)` of integers without padding, as the sizes above assert.
    unsafe impl aya::Pod for Circuit {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Bucket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Stats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Port {}
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
