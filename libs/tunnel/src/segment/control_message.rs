//! Messages between the two ends of a tunnel.

use super::InvalidSegment;

/// A message between the two ends, sealed like a packet. It does not count as content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlMessage {
    /// Asks for a [`ControlMessage::EchoReply`]. A path-MTU probe is padded to the size that it
    /// tries.
    Echo {
        /// Chosen by the sender, opaque to the receiver.
        token: u64,
        /// Bytes of the datagram (UDP payload) that carries this; zero if it is no probe.
        size: u16,
    },
    /// Answers an [`ControlMessage::Echo`].
    EchoReply {
        /// Token of the echo.
        token: u64,
        /// Size of the echo.
        size: u16,
    },
}

/// Bytes of a control message without padding: `op u8, token u64, size u16`, big-endian.
pub const CONTROL_MESSAGE_BYTES: usize = 11;

impl ControlMessage {
    /// The message as it is on the wire, without the segment header.
    #[must_use]
    pub fn to_bytes(self) -> [u8; CONTROL_MESSAGE_BYTES] {
        let (op, token, size) = match self {
            Self::Echo { token, size } => (1, token, size),
            Self::EchoReply { token, size } => (2, token, size),
        };
        let mut out = [0; CONTROL_MESSAGE_BYTES];
        out[0] = op;
        out[1..9].copy_from_slice(&token.to_be_bytes());
        out[9..].copy_from_slice(&size.to_be_bytes());
        out
    }

    /// Parses the body of a control segment. Padding behind the message must be zero.
    ///
    /// # Errors
    /// [`InvalidSegment::Control`] if it is too short, not known, or padded with other bytes.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidSegment> {
        let Some((message, padding)) = body.split_first_chunk::<CONTROL_MESSAGE_BYTES>() else {
            return Err(InvalidSegment::Control);
        };
        let &[op, ref rest @ ..] = message;
        let (Some(token), Some(size)) = (rest.first_chunk::<8>(), rest.last_chunk::<2>()) else {
            return Err(InvalidSegment::Control);
        };
        let (token, size) = (u64::from_be_bytes(*token), u16::from_be_bytes(*size));
        if padding.iter().any(|&byte| byte != 0) {
            return Err(InvalidSegment::Control);
        }
        match op {
            1 => Ok(Self::Echo { token, size }),
            2 => Ok(Self::EchoReply { token, size }),
            _ => Err(InvalidSegment::Control),
        }
    }
}
