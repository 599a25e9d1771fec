//! The four messages on the wire (WireGuard white paper, sections 5.4.2 to 5.4.7).
//!
//! Numbers are little-endian. Parsing checks the length, the type and the reserved bytes, and
//! nothing else: a parsed [`Message`] may be of any sender.

use thiserror::Error;

/// Bytes of a handshake initiation, type 1.
pub const INITIATION_BYTES: usize = 148;
/// Bytes of a handshake response, type 2.
pub const RESPONSE_BYTES: usize = 92;
/// Bytes of a cookie reply, type 3.
pub const COOKIE_REPLY_BYTES: usize = 64;
/// Bytes in front of the sealed part of a data message, type 4.
pub const DATA_HEADER_BYTES: usize = 16;
/// Bytes of an authentication tag.
pub const TAG_BYTES: usize = 16;
/// Bytes that a data message adds to its plaintext.
pub const DATA_OVERHEAD: usize = DATA_HEADER_BYTES + TAG_BYTES;
/// Longest datagram of UDP over IPv4 (RFC 768, RFC 791), bytes of UDP payload.
pub const MAX_DATAGRAM: usize = 65_507;

/// Type byte of a handshake initiation.
pub const TYPE_INITIATION: u8 = 1;
/// Type byte of a handshake response.
pub const TYPE_RESPONSE: u8 = 2;
/// Type byte of a cookie reply.
pub const TYPE_COOKIE_REPLY: u8 = 3;
/// Type byte of a data message.
pub const TYPE_DATA: u8 = 4;

/// Bytes of mac1 and mac2, which are the last of an initiation or a response.
const MACS_BYTES: usize = 32;

/// The datagram is none of the four messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The length is wrong for the type.
    #[error("parse message: message type {kind} cannot have {len} bytes; drop the datagram")]
    Length {
        /// The type byte; zero if the datagram is empty.
        kind: u8,
        /// Bytes of the datagram.
        len: usize,
    },
    /// The type is not known.
    #[error("parse message: unknown message type {kind}; drop the datagram")]
    Type {
        /// The type byte.
        kind: u8,
    },
    /// Reserved bytes are not zero, or the cipher is not known.
    #[error("parse message: reserved bytes of message type {kind} are set; drop the datagram")]
    Reserved {
        /// The type byte.
        kind: u8,
    },
}

/// A datagram by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Type 1, initiator to responder.
    Initiation(Initiation<'a>),
    /// Type 2, responder to initiator.
    Response(Response<'a>),
    /// Type 3, from an end under load to the sender of a handshake message.
    CookieReply(CookieReply<'a>),
    /// Type 4, in either direction.
    Data(Data<'a>),
}

/// A handshake initiation: `type u8, reserved [u8; 3], sender u32, ephemeral [u8; 32],
/// static [u8; 48], timestamp [u8; 28], mac1 [u8; 16], mac2 [u8; 16]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initiation<'a>(&'a [u8; INITIATION_BYTES]);

/// A handshake response: `type u8, reserved [u8; 3], sender u32, receiver u32,
/// ephemeral [u8; 32], empty [u8; 16], mac1 [u8; 16], mac2 [u8; 16]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a>(&'a [u8; RESPONSE_BYTES]);

/// A cookie reply: `type u8, reserved [u8; 3], receiver u32, nonce [u8; 24], cookie [u8; 32]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieReply<'a>(&'a [u8; COOKIE_REPLY_BYTES]);

/// A data message: `type u8, cipher u8, reserved [u8; 2], receiver u32, counter u64, sealed [u8]`.
///
/// `cipher` is WireGuard's first reserved byte: zero is ChaCha20-Poly1305 and exactly WireGuard,
/// one is AES-256-GCM. A change on the way is noticed, because the other cipher has another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data<'a> {
    /// Cipher number, see [`crate::Cipher::wire_id`].
    pub cipher: u8,
    /// Index of the session's lane, chosen by the receiver.
    pub receiver: u32,
    /// Counter, from which the nonce is made.
    pub counter: u64,
    /// Ciphertext and tag, at least [`TAG_BYTES`] long.
    pub sealed: &'a [u8],
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..]
        .first_chunk()
        .expect("callers stay inside a message of checked length")
}

impl<'a> Message<'a> {
    /// Parses a datagram.
    ///
    /// # Errors
    /// [`Malformed`] if it is none of the four messages.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let len = datagram.len();
        let Some(&[kind, cipher, r1, r2]) = datagram.first_chunk::<4>() else {
            return Err(Malformed::Length {
                kind: datagram.first().copied().unwrap_or(0),
                len,
            });
        };
        let wrong_length = Malformed::Length { kind, len };
        if !(TYPE_INITIATION..=TYPE_DATA).contains(&kind) {
            return Err(Malformed::Type { kind });
        }
        if r1 != 0 || r2 != 0 || cipher > u8::from(kind == TYPE_DATA) {
            return Err(Malformed::Reserved { kind });
        }
        match kind {
            TYPE_INITIATION => datagram
                .try_into()
                .map(|m| Self::Initiation(Initiation(m)))
                .map_err(|_| wrong_length),
            TYPE_RESPONSE => datagram
                .try_into()
                .map(|m| Self::Response(Response(m)))
                .map_err(|_| wrong_length),
            TYPE_COOKIE_REPLY => datagram
                .try_into()
                .map(|m| Self::CookieReply(CookieReply(m)))
                .map_err(|_| wrong_length),
            _ => Data::parse(datagram).map(Self::Data),
        }
    }
}

impl<'a> Data<'a> {
    /// Parses a data message, the only type that packet workers handle.
    ///
    /// # Errors
    /// [`Malformed`] if it is no data message.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let len = datagram.len();
        if !(DATA_OVERHEAD..=MAX_DATAGRAM).contains(&len) {
            return Err(Malformed::Length {
                kind: datagram.first().copied().unwrap_or(0),
                len,
            });
        }
        let [kind, cipher, r1, r2] = *array_at::<4>(datagram, 0);
        if kind != TYPE_DATA {
            return Err(Malformed::Type { kind });
        }
        if r1 != 0 || r2 != 0 || cipher > 1 {
            return Err(Malformed::Reserved { kind });
        }
        Ok(Self {
            cipher,
            receiver: u32_at(datagram, 4),
            counter: u64_at(datagram, 8),
            sealed: &datagram[DATA_HEADER_BYTES..],
        })
    }

    /// Writes the header of a data message into the first [`DATA_HEADER_BYTES`] bytes of `out`.
    pub(crate) fn write_header(
        out: &mut [u8; DATA_HEADER_BYTES],
        cipher: u8,
        receiver: u32,
        counter: u64,
    ) {
        out[..4].copy_from_slice(&[TYPE_DATA, cipher, 0, 0]);
        out[4..8].copy_from_slice(&receiver.to_le_bytes());
        out[8..].copy_from_slice(&counter.to_le_bytes());
    }
}

impl<'a> Initiation<'a> {
    /// Index that the initiator chose for the session.
    #[must_use]
    pub fn sender(&self) -> u32 {
        u32_at(self.0, 4)
    }

    /// The Noise message inside: ephemeral, static and timestamp.
    pub(crate) fn noise(&self) -> &'a [u8] {
        &self.0[8..INITIATION_BYTES - MACS_BYTES]
    }

    /// The whole message.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8; INITIATION_BYTES] {
        self.0
    }
}

impl<'a> Response<'a> {
    /// Index that the responder chose for the session.
    #[must_use]
    pub fn sender(&self) -> u32 {
        u32_at(self.0, 4)
    }

    /// Index of the initiation that this answers.
    #[must_use]
    pub fn receiver(&self) -> u32 {
        u32_at(self.0, 8)
    }

    /// The Noise message inside: ephemeral and the empty payload's tag.
    pub(crate) fn noise(&self) -> &'a [u8] {
        &self.0[12..RESPONSE_BYTES - MACS_BYTES]
    }

    /// The whole message.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8; RESPONSE_BYTES] {
        self.0
    }
}

impl<'a> CookieReply<'a> {
    /// Index of the handshake message that this answers.
    #[must_use]
    pub fn receiver(&self) -> u32 {
        u32_at(self.0, 4)
    }

    /// Nonce of the sealed cookie.
    pub(crate) fn nonce(&self) -> &'a [u8; 24] {
        array_at(self.0, 8)
    }

    /// The sealed cookie: sixteen bytes and a tag.
    pub(crate) fn cookie(&self) -> &'a [u8; 32] {
        array_at(self.0, 32)
    }

    /// Composes a cookie reply.
    pub(crate) fn compose(
        receiver: u32,
        nonce: &[u8; 24],
        cookie: &[u8; 32],
    ) -> [u8; COOKIE_REPLY_BYTES] {
        let mut out = [0; COOKIE_REPLY_BYTES];
        out[0] = TYPE_COOKIE_REPLY;
        out[4..8].copy_from_slice(&receiver.to_le_bytes());
        out[8..32].copy_from_slice(nonce);
        out[32..].copy_from_slice(cookie);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_type_has_exactly_its_length() {
        for (kind, right) in [(1_u8, 148), (2, 92), (3, 64)] {
            for len in 4..400 {
                let mut bytes = vec![0; len];
                bytes[0] = kind;
                assert_eq!(
                    Message::parse(&bytes).is_ok(),
                    len == right,
                    "type {kind}, {len} bytes"
                );
            }
        }
        assert!(Message::parse(&[4; 3]).is_err());
        let mut data = [0; 32];
        data[0] = 4;
        assert!(matches!(Message::parse(&data), Ok(Message::Data(_))));
        assert!(Message::parse(&data[..31]).is_err());
    }

    #[test]
    fn reserved_bytes_are_refused() {
        let mut message = [0; 148];
        message[0] = 1;
        message[1] = 1;
        assert_eq!(
            Message::parse(&message),
            Err(Malformed::Reserved { kind: 1 })
        );
        let mut data = [0; 48];
        data[..2].copy_from_slice(&[4, 2]);
        assert_eq!(Message::parse(&data), Err(Malformed::Reserved { kind: 4 }));
        data[1] = 1;
        assert!(Message::parse(&data).is_ok());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::parse(&bytes);
            let _ = Data::parse(&bytes);
        }

        #[test]
        fn data_headers_read_as_written(receiver: u32, counter: u64, cipher in 0_u8..=1) {
            let mut message = [0; 32];
            Data::write_header(message.first_chunk_mut().unwrap(), cipher, receiver, counter);
            let data = Data::parse(&message).unwrap();
            let fields = (data.cipher, data.receiver, data.counter);
            prop_assert_eq!(fields, (cipher, receiver, counter));
        }
    }
}
