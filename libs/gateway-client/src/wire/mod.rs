//! The wire format of circuits: tunnel datagrams after a circuit ID, and the messages that bind
//! ends.
//!
//! `docs/gateway.md` specifies the layout. The functions are pure.

use std::{fmt, num::NonZeroU64};

use blake2::{
    Blake2sMac,
    digest::{FixedOutput as _, KeyInit as _, Update as _, consts::U16, consts::U32},
};
pub use packet_rules::circuit::{ID_BYTES, MESSAGE_BYTES};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Length of a key.
pub const KEY_BYTES: usize = 32;
/// Version of the messages.
pub const VERSION: u8 = 1;

/// Length of the part that the tag covers.
const COVERED: usize = 48;
/// Label of the keys that ends and gateways share.
const GATEWAY_LABEL: &[u8] = b"causeway circuit at gateway 1";
/// Length of a tag and of a cookie.
const TAG_BYTES: usize = 16;

/// A circuit ID. Its third and fourth bytes are never both zero: eight zero bytes mean that a
/// message follows, and datagrams of the tunnel begin with a type, a cipher and two zero bytes. So
/// four bytes tell the three apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitId(NonZeroU64);

impl CircuitId {
    /// From a number, in network byte order; `None` if the third and fourth bytes are zero.
    #[must_use]
    pub const fn new(id: u64) -> Option<Self> {
        if id >> 32 & 0xffff == 0 {
            return None;
        }
        match NonZeroU64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number, with the first byte as the highest.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// As [`get`](Self::get), as a number that is never zero.
    #[must_use]
    pub const fn number(self) -> NonZeroU64 {
        self.0
    }

    /// The bytes on the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; ID_BYTES] {
        self.get().to_be_bytes()
    }
}

impl fmt::Display for CircuitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for CircuitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of the two ends of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The side of the first key.
    A,
    /// The side of the second key.
    B,
}

impl Side {
    /// Both sides.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 0 or 1.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The secret key of one side of a circuit: 32 random bytes. Each gateway has the key that
/// [`Key::for_gateway`] derives for it, and no other. Wiped by the drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// From bytes.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// From 44 characters of base64 (RFC 4648 section 4), as `causeway-appliance keygen` and `wg
    /// genkey` write it; `None` for other text, non-canonical encodings included.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        let digits: &[u8; 43] = text.strip_suffix('=')?.as_bytes().try_into().ok()?;
        let mut key = Self([0; KEY_BYTES]);
        let (mut bits, mut held, mut at) = (0u32, 0, 0);
        for digit in digits {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
            held += 6;
            if held >= 8 {
                held -= 8;
                key.0[at] = (bits >> held) as u8;
                at += 1;
                bits &= (1 << held) - 1;
            }
        }
        (bits == 0).then_some(key)
    }

    /// The key that the gateway of this name has in place of this key: BLAKE2s-256 of a label and
    /// the name, keyed with this key (RFC 7693). One gateway's keys say nothing about another's.
    #[must_use]
    pub fn for_gateway(&self, name: &str) -> Self {
        let mut state = Blake2sMac::<U32>::new(&self.0.into());
        state.update(GATEWAY_LABEL);
        state.update(name.as_bytes());
        Self(state.finalize_fixed().into())
    }

    /// As [`Key::from_base64`] reads it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::with_capacity(44);
        for three in self.0.chunks(3) {
            let number = (0..3).fold(0, |number, n| {
                number << 8 | usize::from(three.get(n).copied().unwrap_or(0))
            });
            for place in 0..=three.len() {
                text.push(char::from(DIGITS[number >> (18 - 6 * place) & 63]));
            }
        }
        text.push('=');
        text
    }

    /// BLAKE2s-128 of the concatenated parts with this key (RFC 7693).
    #[must_use]
    pub fn tag(&self, parts: &[&[u8]]) -> Tag {
        let mut state = Blake2sMac::<U16>::new(&self.0.into());
        for part in parts {
            state.update(part);
        }
        Tag(state.finalize_fixed().into())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        is_same(&self.0, &other.0)
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// A message authentication code of 16 bytes. Comparison takes constant time.
#[derive(Clone, Copy, Debug, Eq)]
pub struct Tag(pub [u8; TAG_BYTES]);

impl Tag {
    /// No tag: zeros.
    pub const NONE: Self = Self([0; TAG_BYTES]);
}

impl PartialEq for Tag {
    fn eq(&self, other: &Self) -> bool {
        is_same(&self.0, &other.0)
    }
}

/// Whether both are the same bytes, in a time that depends on their lengths only.
#[must_use]
pub fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y))) == 0
}

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// End to gateway: bind the side to the source of the message.
    Bind = 1,
    /// Gateway to end: bind, or unbind, again with this cookie, as a proof of the address.
    Challenge = 2,
    /// Gateway to end: the side is bound for the lifetime.
    Bound = 3,
    /// Gateway to end: the gateway stops soon; use another one. The binding stays for now.
    Move = 4,
    /// End to gateway: unbind the side, if the cookie is valid for the source of the message.
    Unbind = 5,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Bind),
            2 => Some(Self::Challenge),
            3 => Some(Self::Bound),
            4 => Some(Self::Move),
            5 => Some(Self::Unbind),
            _ => None,
        }
    }
}

/// A message between an end and a gateway, without its authentication tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    /// The side of the end, in both directions.
    pub side: Side,
    /// The circuit; with the side it selects the key.
    pub circuit: CircuitId,
    /// Nanoseconds since 1970 by the clock of the end, more than in its earlier messages. An answer
    /// repeats it.
    pub timestamp: u64,
    /// Proof that the end receives at its address: made by the gateway, repeated by the end.
    pub cookie: Tag,
    /// Lifetime of the binding, milliseconds; zero except in `Bound`.
    pub lifetime: u32,
    /// Load of the gateway; unknown except in `Bound` and `Move`.
    pub load: Load,
}

/// The load of a gateway in one byte, in steps of four thousandths of its capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load(u8);

impl Load {
    /// The gateway does not tell.
    pub const UNKNOWN: Self = Self(0);
    /// Thousandths in a step.
    const STEP: u16 = 4;

    /// From thousandths, rounded down to a step; more than 1000 is 1000.
    #[must_use]
    pub const fn from_thousandths(load: u16) -> Self {
        let load = if load > 1000 { 1000 } else { load };
        // At most 251.
        Self((load / Self::STEP) as u8 + 1)
    }

    /// As it is on the wire. Bytes of more than a full load count as one.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// In thousandths, 0 to 1000; `None`: unknown.
    #[must_use]
    pub const fn thousandths(self) -> Option<u16> {
        match self.0 {
            0 => None,
            byte => {
                let load = (byte as u16 - 1) * Self::STEP;
                Some(if load > 1000 { 1000 } else { load })
            }
        }
    }
}

impl Message {
    /// The message on the wire, with its tag.
    #[must_use]
    pub fn seal(&self, key: &Key) -> [u8; MESSAGE_BYTES] {
        let mut out = [0; MESSAGE_BYTES];
        out[8] = VERSION;
        out[9] = self.kind as u8;
        out[10] = self.side as u8;
        out[11] = self.load.0;
        out[12..20].copy_from_slice(&self.circuit.to_bytes());
        out[20..28].copy_from_slice(&self.timestamp.to_be_bytes());
        out[28..44].copy_from_slice(&self.cookie.0);
        out[44..48].copy_from_slice(&self.lifetime.to_be_bytes());
        let tag = key.tag(&[&out[..COVERED]]);
        out[COVERED..].copy_from_slice(&tag.0);
        out
    }
}

/// A message that is not authenticated yet.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'a> {
    bytes: &'a [u8; MESSAGE_BYTES],
    unverified: Message,
}

impl Sealed<'_> {
    /// The circuit that it names.
    #[must_use]
    pub const fn circuit(&self) -> CircuitId {
        self.unverified.circuit
    }

    /// The side that it names.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.unverified.side
    }

    /// The kind that it names.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.unverified.kind
    }

    /// The message, if its tag is valid under this key.
    #[must_use]
    pub fn open(&self, key: &Key) -> Option<Message> {
        let (covered, tag) = self.bytes.split_at(COVERED);
        let made = key.tag(&[covered]);
        is_same(&made.0, tag).then_some(self.unverified)
    }
}

/// A parsed datagram.
#[derive(Clone, Copy, Debug)]
pub enum Datagram<'a> {
    /// A tunnel datagram of this circuit, of at least one byte.
    Tunnel(CircuitId),
    Message(Sealed<'a>),
}

/// The datagram is neither of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither a tunnel datagram after a circuit ID nor a message")]
pub struct Malformed;

/// Parses a datagram; reads at most its first 64 bytes.
///
/// # Errors
/// [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Datagram<'_>, Malformed> {
    let id = number(bytes.get(..ID_BYTES).ok_or(Malformed)?);
    if let Some(circuit) = CircuitId::new(id) {
        return if bytes.len() > ID_BYTES {
            Ok(Datagram::Tunnel(circuit))
        } else {
            Err(Malformed)
        };
    }
    let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().map_err(|_| Malformed)?;
    if id != 0 || bytes[8] != VERSION {
        return Err(Malformed);
    }
    let mut cookie = Tag::NONE;
    cookie.0.copy_from_slice(&bytes[28..44]);
    let unverified = Message {
        kind: Kind::of(bytes[9]).ok_or(Malformed)?,
        side: match bytes[10] {
            0 => Side::A,
            1 => Side::B,
            _ => return Err(Malformed),
        },
        circuit: CircuitId::new(number(&bytes[12..20])).ok_or(Malformed)?,
        timestamp: number(&bytes[20..28]),
        cookie,
        lifetime: number(&bytes[44..48]) as u32,
        load: Load::from_byte(bytes[11]),
    };
    if unverified.kind != Kind::Bound && unverified.lifetime != 0 {
        return Err(Malformed);
    }
    if !matches!(unverified.kind, Kind::Bound | Kind::Move) && unverified.load != Load::UNKNOWN {
        return Err(Malformed);
    }
    Ok(Datagram::Message(Sealed { bytes, unverified }))
}

/// A number of at most eight bytes, in network byte order.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
