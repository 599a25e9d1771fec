//! Tunnel datagrams in one TLS connection, for sites where only TLS passes: frames, and the two
//! messages in front of them.
//!
//! The layout is specified in `docs/gateway.md`, "Tunnel over TLS". Nothing here has a socket, a
//! clock or TLS: it is about the bytes inside.
//!
//! ```text
//!   tenant's end                                        provider's end
//!     hello ───── one frame, a bind of side a ─────────▶ open_hello: this key, this connection, newer than the last
//!     is_answer ◀──────── one frame, bound ───────────── answer
//!     Encoder ──── frames: length u16, datagram ───────▶ Decoder
//!     Decoder ◀───────────────────────────────────────── Encoder
//!     Word::Question ─────── a frame of one byte ──────▶ Decoder: at once
//!     Decoder ◀───────────────────────────────────────── Word::Answer
//! ```

use crate::wire::{CircuitId, Datagram, Key, Kind, MESSAGE_BYTES, Message, Sealed, Side, Tag};

/// The protocol's name in the TLS hello (ALPN, RFC 7301).
pub const ALPN: &[u8] = b"causeway-tunnel/1";
/// Label of the TLS exporter (RFC 8446 section 7.5) whose first 16 bytes are a connection's [`Tag`]
/// in its hello; the context is empty.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-causeway-tunnel";
/// Bytes in front of every datagram: its length, network byte order.
pub const LENGTH_BYTES: usize = 2;
/// The shortest datagram, bytes: a frame of one byte is a [`Word`].
pub const MIN_DATAGRAM: usize = 2;
/// The longest datagram that a frame can hold, bytes.
pub const MAX_DATAGRAM: usize = u16::MAX as usize;
/// Bytes of the frames of a hello and its answer.
pub const HELLO_BYTES: usize = LENGTH_BYTES + MESSAGE_BYTES;

/// Room that a decoder has behind its longest frame, so that it seldom moves what it holds.
const ROOM: usize = 16 << 10;

/// The stream has no next frame: whoever sends it does not speak this protocol. The connection is
/// of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A frame of no bytes.
    #[error("a frame of no bytes")]
    Empty,
    /// A frame of one byte that is no [`Word`].
    #[error("a frame of the one byte {0}, which means nothing")]
    NoWord(u8),
    /// A frame longer than may come now.
    #[error("a frame of {length} bytes where {longest} are the most")]
    TooLong {
        /// Its bytes.
        length: u16,
        /// The most.
        longest: u16,
    },
}

/// What the two ends of a connection say to each other, past the tunnel: a frame of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// Are you there?
    Question = 1,
    /// To a question, at once.
    Answer = 2,
}

impl Word {
    /// Bytes of its frame.
    pub const FRAME_BYTES: usize = LENGTH_BYTES + 1;

    /// As it is sent.
    #[must_use]
    pub const fn frame(self) -> [u8; Self::FRAME_BYTES] {
        [0, 1, self as u8]
    }

    const fn read(byte: u8) -> Result<Self, Malformed> {
        match byte {
            1 => Ok(Self::Question),
            2 => Ok(Self::Answer),
            other => Err(Malformed::NoWord(other)),
        }
    }
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// For the tunnel.
    Datagram(&'a [u8]),
    /// For this end of the connection.
    Word(Word),
}

/// Finds frames in a stream. Its memory is taken once.
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    /// What came and was not given out: `start..end` of `buffer`.
    start: usize,
    end: usize,
    longest: u16,
}

impl Decoder {
    /// One for datagrams of any length that at first takes none over `longest` bytes. Takes 80 KiB.
    #[must_use]
    pub fn new(longest: u16) -> Self {
        Self {
            buffer: vec![0; LENGTH_BYTES + MAX_DATAGRAM + ROOM].into_boxed_slice(),
            start: 0,
            end: 0,
            longest,
        }
    }

    /// From the next frame on, datagrams may have `longest` bytes.
    pub const fn allow(&mut self, longest: u16) {
        self.longest = longest;
    }

    /// Where what comes next is to be written; [`Decoder::filled`] says how much it was. Never
    /// empty after [`Decoder::next_frame`] found none.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && self.buffer.len() - self.end < ROOM {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes were written to [`Decoder::space`].
    pub fn filled(&mut self, bytes: usize) {
        self.end = self.end.saturating_add(bytes).min(self.buffer.len());
    }

    /// The next frame; `None` until more has come.
    ///
    /// # Errors
    /// [`Malformed`], from then on always.
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
        let word = match self.buffer[begin..end] {
            [byte] => Some(Word::read(byte)?),
            _ => None,
        };
        self.start = end;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let datagram = Frame::Datagram(&self.buffer[begin..end]);
        Ok(Some(word.map_or(datagram, Frame::Word)))
    }
}

/// Joins datagrams, so that many go into one TLS record. Its memory is taken once.
#[derive(Debug)]
pub struct Encoder {
    buffer: Box<[u8]>,
    used: usize,
}

impl Encoder {
    /// One for `bytes` of frames at a time.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            buffer: vec![0; bytes].into_boxed_slice(),
            used: 0,
        }
    }

    /// Adds a datagram. False, and nothing is added, when there is no room for it or it has not 2
    /// to 65535 bytes.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let Ok(length @ 2..) = u16::try_from(datagram.len()) else {
            return false;
        };
        let Some(place) = self.buffer[self.used..].get_mut(..LENGTH_BYTES + datagram.len()) else {
            return false;
        };
        let (head, body) = place.split_at_mut(LENGTH_BYTES);
        head.copy_from_slice(&length.to_be_bytes());
        body.copy_from_slice(datagram);
        self.used += place.len();
        true
    }

    /// What is to be sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// Whether there is room for a datagram of so many bytes.
    #[must_use]
    pub const fn fits(&self, datagram: usize) -> bool {
        self.used + LENGTH_BYTES + datagram <= self.buffer.len()
    }

    /// It was sent.
    pub const fn clear(&mut self) {
        self.used = 0;
    }
}

/// Why a connection's first frame does not open the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    /// It is not a bind of side a.
    #[error("the first frame is not a bind of side a")]
    NotAHello,
    /// It is not made with the circuit's key.
    #[error("the hello is not made with the circuit's key")]
    Forged,
    /// It was made for another connection.
    #[error("the hello was made for another connection")]
    OtherConnection,
    /// It is not newer than the last one.
    #[error("the hello is not newer than the last one of its circuit")]
    Replayed,
}

/// The first frame of the tenant's end. `timestamp`: nanoseconds since 1970, more than in any hello
/// before. `connection`: what the TLS exporter gives.
#[must_use]
pub fn hello(circuit: CircuitId, key: &Key, timestamp: u64, connection: Tag) -> [u8; HELLO_BYTES] {
    framed(&bind(circuit, timestamp, connection).seal(key))
}

/// What the first frame claims to be: its circuit says which key to open it with.
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

/// The message of a hello, if who sent it has the key and made it for this connection, after the
/// one of time `newest`.
///
/// # Errors
/// [`BadHello`].
pub fn open_hello(
    sealed: &Sealed<'_>,
    key: &Key,
    connection: Tag,
    newest: u64,
) -> Result<Message, BadHello> {
    let message = sealed.open(key).ok_or(BadHello::Forged)?;
    if message.cookie != connection {
        return Err(BadHello::OtherConnection);
    }
    if message.timestamp <= newest {
        return Err(BadHello::Replayed);
    }
    Ok(message)
}

/// The first frame of the provider's end, to a hello that [`open_hello`] let in.
#[must_use]
pub fn answer(hello: &Message, key: &Key) -> [u8; HELLO_BYTES] {
    framed(&bound(hello).seal(key))
}

/// Whether the first frame of the provider's end answers the hello that was made of these.
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
    }
}

/// The lifetime stays zero: it is the connection's.
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

/// For a fuzzer: a stream that comes in pieces gives the frames of the stream as a whole, those
/// joined again are what was read, and a first frame is refused or its own. The first two bytes of
/// `data` say how it is cut and what the longest frame is.
///
/// # Panics
/// When that is not so: a finding.
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
                    Frame::Word(word) => {
                        again.extend_from_slice(&word.frame());
                        &[word as u8]
                    }
                };
                assert_eq!(Some(&bytes), expected.get(found), "frame {found}");
                found += 1;
                if let Ok(sealed) = read_hello(bytes) {
                    let key = Key::new([cut; 32]);
                    assert_eq!(
                        open_hello(&sealed, &key, Tag([most; 16]), 0),
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
        assert_eq!(decoder.next_frame(), Err(malformed), "for ever");
    }
    assert!(stream.starts_with(&again));
}

/// The frames of a stream that is there as a whole.
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
            return (frames, Some(Malformed::NoWord(*byte)));
        }
        frames.push(frame);
        stream = behind;
    }
    (frames, None)
}

#[cfg(test)]
mod tests;
