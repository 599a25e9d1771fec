//! Tunnel datagrams in a TLS connection, for sites where only TLS passes: frames, and the two
//! messages before them.
//!
//! `docs/gateway.md`, "Tunnel over TLS", specifies the layout. Sockets, clocks and TLS are the
//! caller's; this is about the bytes inside.
//!
//! ```text
//!   tenant's end                                        provider's end
//!     hello ───── one frame, a bind of side a ─────────▶ open_hello: this key, this connection, not overtaken
//!     is_answer ◀──────── one frame, bound ───────────── answer
//!     Encoder ──── frames: length u16, datagram ───────▶ Decoder
//!     Decoder ◀───────────────────────────────────────── Encoder
//!     LivenessFrame::Question ─────── a frame of one byte ──────▶ Decoder: at once
//!     Decoder ◀───────────────────────────────────────── LivenessFrame::Answer
//! ```

use crate::wire::{
    CircuitId, Datagram, Key, Kind, Load, MESSAGE_BYTES, Message, Sealed, Side, Tag,
};

/// Name of the protocol in the TLS hello (ALPN, RFC 7301).
pub const ALPN: &[u8] = b"causeway-tunnel/1";
/// Label of the TLS exporter (RFC 8446 section 7.5), with an empty context. Its first 16 bytes are
/// the [`Tag`] of the connection in the hello.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-causeway-tunnel";
/// Length of the prefix of a datagram: its length in network byte order.
pub const LENGTH_BYTES: usize = 2;
/// The shortest datagram, bytes: a frame of one byte is a [`LivenessFrame`].
pub const MIN_DATAGRAM: usize = 2;
/// The longest datagram that a frame can hold, bytes.
pub const MAX_DATAGRAM: usize = u16::MAX as usize;
/// Length of the frame of a hello or answer.
pub const HELLO_BYTES: usize = LENGTH_BYTES + MESSAGE_BYTES;

/// Nanoseconds by which a hello is older than another one of its end if that overtook it; a larger
/// difference is that of two clocks.
pub const REORDER_WINDOW_NS: u64 = 5_000_000_000;

/// Space of a decoder beyond its longest frame, so that it seldom moves bytes.
const DECODER_HEADROOM: usize = 16 << 10;

/// The peer violates the protocol; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An empty frame.
    #[error("an empty frame")]
    Empty,
    /// A frame of one byte that is no [`LivenessFrame`].
    #[error("a frame of one byte with the unknown value {0}")]
    UnknownControl(u8),
    /// A frame is longer than allowed now.
    #[error("a frame of {length} bytes, where at most {longest} are allowed")]
    TooLong { length: u16, longest: u16 },
}

/// A control message between the ends of a connection, apart from the tunnel: a frame of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LivenessFrame {
    /// Asks the peer for an answer.
    Question = 1,
    /// Answers a question at once.
    Answer = 2,
}

impl LivenessFrame {
    /// Length of its frame.
    pub const FRAME_BYTES: usize = LENGTH_BYTES + 1;

    /// The frame on the wire.
    #[must_use]
    pub const fn frame(self) -> [u8; Self::FRAME_BYTES] {
        [0, 1, self as u8]
    }

    const fn read(byte: u8) -> Result<Self, Malformed> {
        match byte {
            1 => Ok(Self::Question),
            2 => Ok(Self::Answer),
            other => Err(Malformed::UnknownControl(other)),
        }
    }
}

/// A received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A datagram of the tunnel.
    Datagram(&'a [u8]),
    /// A control message.
    Control(LivenessFrame),
}

/// Splits a stream into frames. Allocates only when it is created.
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    /// Unread bytes are `start..end` of `buffer`.
    start: usize,
    end: usize,
    longest: u16,
}

impl Decoder {
    /// A decoder that at first refuses frames over `longest` bytes. Takes 80 KiB.
    #[must_use]
    pub fn new(longest: u16) -> Self {
        Self {
            buffer: vec![0; LENGTH_BYTES + MAX_DATAGRAM + DECODER_HEADROOM].into_boxed_slice(),
            start: 0,
            end: 0,
            longest,
        }
    }

    /// Allows frames of `longest` bytes from the next one on.
    pub const fn allow(&mut self, longest: u16) {
        self.longest = longest;
    }

    /// The space for received bytes; report their number by [`Decoder::filled`]. Never empty after
    /// [`Decoder::next_frame`] returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && self.buffer.len() - self.end < DECODER_HEADROOM {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Reports the number of bytes written to [`Decoder::space`].
    pub fn filled(&mut self, bytes: usize) {
        self.end = self.end.saturating_add(bytes).min(self.buffer.len());
    }

    /// The next frame; `None` if it is not complete yet.
    ///
    /// # Errors
    /// [`Malformed`]; every later call returns the same.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Malformed> {
        let Some(&[high, low]) = self.buffer[self.start..self.end].first_chunk() else {
            return Ok(None);
        };
        let length = u16::from_be_bytes([high, low]);
        if length == 0 {
            return Err(Malformed::Empty);
        }
        if length > self.longest {
            let longest = self.longest;
            return Err(Malformed::TooLong { length, longest });
        }
        let begin = self.start + LENGTH_BYTES;
        let end = begin + usize::from(length);
        if end > self.end {
            return Ok(None);
        }
        let control = match self.buffer[begin..end] {
            [byte] => Some(LivenessFrame::read(byte)?),
            _ => None,
        };
        self.start = end;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let datagram = Frame::Datagram(&self.buffer[begin..end]);
        Ok(Some(control.map_or(datagram, Frame::Control)))
    }
}

/// Collects datagrams as frames, so that many fit one TLS record. Allocates only when it is
/// created.
#[derive(Debug)]
pub struct Encoder {
    buffer: Box<[u8]>,
    used: usize,
}

impl Encoder {
    /// An encoder for `bytes` of frames.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            buffer: vec![0; bytes].into_boxed_slice(),
            used: 0,
        }
    }

    /// Adds a datagram; false if it does not fit, or is not 2 to 65535 bytes long.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let Ok(length @ 2..) = u16::try_from(datagram.len()) else {
            return false;
        };
        let Some(space) = self.buffer[self.used..].get_mut(..LENGTH_BYTES + datagram.len()) else {
            return false;
        };
        let (head, body) = space.split_at_mut(LENGTH_BYTES);
        head.copy_from_slice(&length.to_be_bytes());
        body.copy_from_slice(datagram);
        self.used += space.len();
        true
    }

    /// The collected frames.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// Whether a datagram of this length fits.
    #[must_use]
    pub const fn fits(&self, datagram: usize) -> bool {
        self.used + LENGTH_BYTES + datagram <= self.buffer.len()
    }

    /// Removes all frames, after they were sent.
    pub const fn clear(&mut self) {
        self.used = 0;
    }
}

/// Why the first frame of a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    /// The frame is no bind of side a.
    #[error("the first frame is no bind of side a")]
    NotAHello,
    /// The tag is not valid under the key of the circuit.
    #[error("the tag of the hello is not valid under the key of the circuit")]
    Forged,
    /// The cookie is that of another connection.
    #[error("the hello was made for another connection")]
    OtherConnection,
    /// A newer hello overtook it.
    #[error("a newer hello of its circuit came first")]
    Replayed,
}

/// The first frame of the tenant's end. `timestamp`: nanoseconds since 1970, more than in earlier
/// hellos. `connection`: the value of the TLS exporter.
#[must_use]
pub fn hello(circuit: CircuitId, key: &Key, timestamp: u64, connection: Tag) -> [u8; HELLO_BYTES] {
    framed(&bind(circuit, timestamp, connection).seal(key))
}

/// Parses the first frame; its circuit selects the key to open it with.
///
/// # Errors
/// [`BadHello::NotAHello`].
pub fn read_hello(frame: &[u8]) -> Result<Sealed<'_>, BadHello> {
    match crate::wire::parse(frame) {
        Ok(Datagram::Message(sealed))
            if sealed.kind() == Kind::Bind && sealed.side() == Side::A =>
        {
            Ok(sealed)
        }
        Ok(Datagram::Message(_) | Datagram::Tunnel(_)) | Err(_) => Err(BadHello::NotAHello),
    }
}

/// Authenticates a hello: its tag and its connection. The tag of a connection cannot be repeated on
/// another one, so the timestamp decides only between connections that an end opened shortly after
/// one another: the hello is refused if it is older than `newest`, that of the present connection,
/// by less than [`REORDER_WINDOW_NS`] nanoseconds. A clock that was wrong before locks no end out.
///
/// # Errors
/// [`BadHello`].
pub fn open_hello(
    sealed: &Sealed<'_>,
    key: &Key,
    connection: Tag,
    newest: Option<u64>,
) -> Result<Message, BadHello> {
    let message = sealed.open(key).ok_or(BadHello::Forged)?;
    if message.cookie != connection {
        return Err(BadHello::OtherConnection);
    }
    let age = newest.and_then(|newest| newest.checked_sub(message.timestamp));
    if age.is_some_and(|age| age < REORDER_WINDOW_NS) {
        return Err(BadHello::Replayed);
    }
    Ok(message)
}

/// The first frame of the provider's end, to a hello that [`open_hello`] accepted.
#[must_use]
pub fn answer(hello: &Message, key: &Key) -> [u8; HELLO_BYTES] {
    framed(&bound(hello).seal(key))
}

/// Whether the first frame of the provider's end answers the hello with these values.
#[must_use]
pub fn is_answer(
    frame: &[u8],
    circuit: CircuitId,
    key: &Key,
    timestamp: u64,
    connection: Tag,
) -> bool {
    let Ok(Datagram::Message(sealed)) = crate::wire::parse(frame) else {
        return false;
    };
    sealed.open(key) == Some(bound(&bind(circuit, timestamp, connection)))
}

const fn bind(circuit: CircuitId, timestamp: u64, connection: Tag) -> Message {
    Message {
        kind: Kind::Bind,
        side: Side::A,
        circuit,
        timestamp,
        cookie: connection,
        lifetime: 0,
        load: Load::UNKNOWN,
    }
}

/// The lifetime stays zero: the binding lasts as long as the connection.
const fn bound(hello: &Message) -> Message {
    Message {
        kind: Kind::Bound,
        ..*hello
    }
}

fn framed(message: &[u8; MESSAGE_BYTES]) -> [u8; HELLO_BYTES] {
    let mut frame = [0; HELLO_BYTES];
    frame[..LENGTH_BYTES].copy_from_slice(&(MESSAGE_BYTES as u16).to_be_bytes());
    frame[LENGTH_BYTES..].copy_from_slice(message);
    frame
}

/// For a fuzzer: a stream in pieces gives the same frames as the whole stream; the encoder makes
/// the same bytes of them; no random first frame is accepted. The first two bytes of `data` give
/// the cuts and the longest frame.
///
/// # Panics
/// On a finding.
pub fn fuzz(data: &[u8]) {
    let Some((&[cut, most], stream)) = data.split_first_chunk() else {
        return;
    };
    let longest = u16::from_be_bytes([most, cut | 1]);
    let (expected, end) = by_hand(stream, longest);
    let mut decoder = Decoder::new(longest);
    let mut encoder = Encoder::new(stream.len());
    let mut again = Vec::with_capacity(stream.len());
    let (mut rest, mut found, mut turn) = (stream, 0, usize::from(cut));
    let last = loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => {
                let bytes = match frame {
                    Frame::Datagram(datagram) => {
                        assert!(datagram.len() >= MIN_DATAGRAM && encoder.push(datagram));
                        again.extend_from_slice(encoder.bytes());
                        encoder.clear();
                        datagram
                    }
                    Frame::Control(control) => {
                        again.extend_from_slice(&control.frame());
                        &[control as u8]
                    }
                };
                assert_eq!(Some(&bytes), expected.get(found), "frame {found}");
                found += 1;
                if let Ok(sealed) = read_hello(bytes) {
                    let key = Key::new([cut; 32]);
                    assert_eq!(
                        open_hello(&sealed, &key, Tag([most; 16]), None),
                        Err(BadHello::Forged)
                    );
                }
                continue;
            }
            Ok(None) if rest.is_empty() => break None,
            Ok(None) => {}
            Err(malformed) => break Some(malformed),
        }
        turn = turn * 31 % 251;
        let space = decoder.space();
        assert!(!space.is_empty());
        let piece = rest.len().min(space.len()).min(turn + 1);
        space[..piece].copy_from_slice(&rest[..piece]);
        decoder.filled(piece);
        rest = &rest[piece..];
    };
    assert_eq!((found, last), (expected.len(), end));
    if let Some(malformed) = last {
        assert_eq!(decoder.next_frame(), Err(malformed), "the same again");
    }
    assert!(stream.starts_with(&again));
}

/// The frames of a whole stream.
fn by_hand(mut stream: &[u8], longest: u16) -> (Vec<&[u8]>, Option<Malformed>) {
    let mut frames = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk() {
        let length = u16::from_be_bytes(*length);
        if length == 0 {
            return (frames, Some(Malformed::Empty));
        }
        if length > longest {
            return (frames, Some(Malformed::TooLong { length, longest }));
        }
        let Some((frame, behind)) = rest.split_at_checked(usize::from(length)) else {
            break;
        };
        if let [byte] = frame
            && !(1..=2).contains(byte)
        {
            return (frames, Some(Malformed::UnknownControl(*byte)));
        }
        frames.push(frame);
        stream = behind;
    }
    (frames, None)
}

#[cfg(test)]
mod tests;
