//! Reads the server name and the protocols from a TLS ClientHello.
//!
//! The caller gives bytes as they come from the wire, in any pieces; the result depends on the
//! bytes only:
//!
//! ```text
//!   records (RFC 8446 section 5.1)          one message (section 4)
//!   ┌──────┬─────┬──────────┐               ┌──────┬────────┬───────────────────────────────┐
//!   │ 22   │ 3.x │ length   │ fragment ──▶  │ 1    │ length │ version random session suites │
//!   └──────┴─────┴──────────┘ ...           └──────┴────────┤ compression extensions        │
//!                                                           │   0: server name, 16: ALPN    │
//!                                                           └───────────────────────────────┘
//! ```
//!
//! Numbers are big-endian. Nothing is decrypted or authenticated: the client proves its identity to
//! the backend.

use thiserror::Error;

/// Longest hello: bytes on the wire, with record headers.
pub const MAX_HELLO: usize = 16 << 10;

/// Length of a record header: type, version, length.
const RECORD_HEADER: usize = 5;
/// Length of a handshake message header: type, length.
const MESSAGE_HEADER: usize = 4;
/// Longest fragment of a record (RFC 8446 section 5.1).
const MAX_FRAGMENT: usize = 1 << 14;
/// Content type of handshake records.
const HANDSHAKE: u8 = 22;
/// Handshake type.
const CLIENT_HELLO: u8 = 1;
/// Extension type (RFC 6066 section 3).
const SERVER_NAME: u16 = 0;
/// Extension type (RFC 7301 section 3.1).
const ALPN: u16 = 16;
/// The only defined type of server name.
const HOST_NAME: u8 = 0;

/// The fields of a hello that decide its route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Server name in lower case; `None`: the client sent none.
    pub name: Option<String>,
    /// Application protocols (ALPN) in the order of the client; empty: the client sent none.
    pub protocols: Vec<Vec<u8>>,
    /// Length of the hello on the wire; the client may have sent more bytes after it.
    pub bytes: usize,
}

/// State of the reader after the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// The hello is complete.
    Hello(Hello),
}

/// Why the bytes are not a hello that can be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HelloRefusal {
    /// The first record is no handshake record: the client does not speak TLS.
    #[error(
        "read a hello: record type {found} in place of a handshake record (22); the client does \
         not speak TLS"
    )]
    NotTls { found: u8 },
    /// The major version of a record is not that of TLS.
    #[error("read a hello: record version {found}.x in place of 3.x")]
    Version { found: u8 },
    /// A record is empty or too long.
    #[error("read a hello: a record has {length} bytes; 1 to {MAX_FRAGMENT} are allowed")]
    RecordLength { length: usize },
    /// The first handshake message is no ClientHello.
    #[error(
        "read a hello: the first handshake message is of type {found} in place of a ClientHello (1)"
    )]
    NotHello { found: u8 },
    /// The hello is longer than [`MAX_HELLO`].
    #[error(
        "read a hello: it is longer than {MAX_HELLO} bytes; the client must send fewer or smaller \
         extensions"
    )]
    TooLong,
    /// The last record of the hello has bytes after it.
    #[error("read a hello: {extra} bytes follow the hello in its last record")]
    Trailing { extra: usize },
    /// A field does not fit in the structure around it.
    #[error("read a hello: {field} is truncated or has a wrong length")]
    Malformed { field: &'static str },
    /// An extension is repeated (RFC 8446 section 4.2).
    #[error("read a hello: extension {extension} is repeated")]
    Twice { extension: u16 },
    /// The server name is not a DNS name.
    #[error(
        "read a hello: the server name is not a DNS name; an IP address, a dot at the end and \
         bytes outside a-z, 0-9, '-' and '_' are refused (RFC 6066 section 3)"
    )]
    Name,
}

impl HelloRefusal {
    /// Stable name for counters and logs.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotTls { .. } => "not-tls",
            Self::Version { .. } => "record-version",
            Self::RecordLength { .. } => "record-length",
            Self::NotHello { .. } => "not-a-hello",
            Self::TooLong => "hello-too-long",
            Self::Trailing { .. } => "bytes-after-hello",
            Self::Malformed { .. } => "hello-malformed",
            Self::Twice { .. } => "extension-twice",
            Self::Name => "server-name-malformed",
        }
    }
}

/// Reads a hello from the bytes of a connection, in any pieces.
#[derive(Debug, Default)]
pub struct Reader {
    /// All bytes so far.
    bytes: Vec<u8>,
    /// Number of bytes that are read.
    next: usize,
    /// Unread bytes of the present record.
    left: usize,
    /// The message so far, from the fragments of records.
    message: Vec<u8>,
    /// The final result, once there is one.
    answer: Option<Result<Hello, HelloRefusal>>,
}

impl Reader {
    /// A reader for a new connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes. The reader keeps them for the backend, whatever the result.
    ///
    /// # Errors
    /// [`HelloRefusal`], at the first byte that decides it; every later call returns the same.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, HelloRefusal> {
        self.bytes.extend_from_slice(bytes);
        if self.answer.is_none() {
            self.answer = self.read().transpose();
        }
        match &self.answer {
            None => Ok(Progress::More),
            Some(Ok(hello)) => Ok(Progress::Hello(hello.clone())),
            Some(Err(refusal)) => Err(*refusal),
        }
    }

    /// The most bytes that the caller reads before the next call of [`feed`](Self::feed).
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_HELLO.saturating_sub(self.bytes.len())
    }

    /// Whether no byte has come yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All bytes, those after the hello included.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Continues after the last bytes. Each decision depends on earlier bytes only, so the pieces
    /// do not matter. After at most [`MAX_HELLO`] bytes there is a result.
    fn read(&mut self) -> Result<Option<Hello>, HelloRefusal> {
        loop {
            if self.left == 0 && !self.record()? {
                return Ok(None);
            }
            let available = self.left.min(self.bytes.len() - self.next);
            if available == 0 {
                return Ok(None);
            }
            self.message
                .extend_from_slice(&self.bytes[self.next..self.next + available]);
            self.next += available;
            self.left -= available;
            if let Some(hello) = self.check_message()? {
                return Ok(Some(hello));
            }
        }
    }

    /// Reads the header of a record, if it is complete.
    fn record(&mut self) -> Result<bool, HelloRefusal> {
        if self.next + RECORD_HEADER >= MAX_HELLO {
            return Err(HelloRefusal::TooLong);
        }
        let rest = &self.bytes[self.next..];
        if let Some(&found) = rest.first()
            && found != HANDSHAKE
        {
            return Err(HelloRefusal::NotTls { found });
        }
        if let Some(&found) = rest.get(1)
            && found != 3
        {
            return Err(HelloRefusal::Version { found });
        }
        let Some(&[_, _, _, high, low]) = rest.first_chunk::<RECORD_HEADER>() else {
            return Ok(false);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(1..=MAX_FRAGMENT).contains(&length) {
            return Err(HelloRefusal::RecordLength { length });
        }
        self.next += RECORD_HEADER;
        self.left = length;
        Ok(true)
    }

    /// Checks the message so far, which has at least one byte.
    fn check_message(&self) -> Result<Option<Hello>, HelloRefusal> {
        let found = self.message[0];
        if found != CLIENT_HELLO {
            return Err(HelloRefusal::NotHello { found });
        }
        // The end of the record on the wire, and the length of the message at that point.
        let end = self.next + self.left;
        let then = self.message.len() + self.left;
        if end > MAX_HELLO {
            return Err(HelloRefusal::TooLong);
        }
        let Some(&[_, a, b, c]) = self.message.first_chunk::<MESSAGE_HEADER>() else {
            return Ok(None);
        };
        let length = MESSAGE_HEADER + u32::from_be_bytes([0, a, b, c]) as usize;
        if end + length.saturating_sub(then) > MAX_HELLO {
            return Err(HelloRefusal::TooLong);
        }
        if then > length {
            return Err(HelloRefusal::Trailing {
                extra: then - length,
            });
        }
        if self.message.len() < length {
            return Ok(None);
        }
        parse(&self.message[MESSAGE_HEADER..], end).map(Some)
    }
}

/// Parses the body of a complete hello (RFC 8446 section 4.1.2).
fn parse(body: &[u8], bytes: usize) -> Result<Hello, HelloRefusal> {
    let mut hello = Hello {
        name: None,
        protocols: Vec::new(),
        bytes,
    };
    let mut body = Fields(body);
    body.take(2, "the version")?;
    body.take(32, "the random")?;
    let session = body.vector8("the session id")?;
    if session.0.len() > 32 {
        return Err(HelloRefusal::Malformed {
            field: "the session id",
        });
    }
    let suites = body.vector16("the cipher suites")?;
    if suites.0.len() < 2 || !suites.0.len().is_multiple_of(2) {
        return Err(HelloRefusal::Malformed {
            field: "the cipher suites",
        });
    }
    if body.vector8("the compression methods")?.0.is_empty() {
        return Err(HelloRefusal::Malformed {
            field: "the compression methods",
        });
    }
    if body.0.is_empty() {
        // Before TLS 1.3 a hello may have no extensions (RFC 5246 section 7.4.1.2).
        return Ok(hello);
    }
    let mut extensions = body.vector16("the extensions")?;
    if !body.0.is_empty() {
        return Err(HelloRefusal::Malformed {
            field: "the end of the hello",
        });
    }
    let mut alpn = false;
    while !extensions.0.is_empty() {
        let kind = extensions.u16("an extension's number")?;
        let content = extensions.vector16("an extension")?;
        match kind {
            SERVER_NAME => {
                if hello.name.is_some() {
                    return Err(HelloRefusal::Twice { extension: kind });
                }
                hello.name = Some(server_name(content)?);
            }
            ALPN => {
                if alpn {
                    return Err(HelloRefusal::Twice { extension: kind });
                }
                alpn = true;
                hello.protocols = protocols(content)?;
            }
            _ => {}
        }
    }
    Ok(hello)
}

/// The host name of a server name list (RFC 6066 section 3).
fn server_name(mut content: Fields<'_>) -> Result<String, HelloRefusal> {
    let field = "the server name";
    let mut list = content.vector16(field)?;
    if !content.0.is_empty() {
        return Err(HelloRefusal::Malformed { field });
    }
    let mut name = None;
    while !list.0.is_empty() {
        let kind = list.take(1, field)?[0];
        // Names of every type begin with their length.
        let value = list.vector16(field)?;
        if kind == HOST_NAME && name.replace(dns_name(value.0)?).is_some() {
            return Err(HelloRefusal::Twice {
                extension: SERVER_NAME,
            });
        }
    }
    name.ok_or(HelloRefusal::Malformed { field })
}

/// A DNS name in lower case, with letters, digits, hyphens and underscores.
///
/// # Errors
/// [`HelloRefusal::Name`].
pub fn dns_name(bytes: &[u8]) -> Result<String, HelloRefusal> {
    gateway_client::dial::dns_name(bytes).ok_or(HelloRefusal::Name)
}

/// The protocol names of an ALPN extension (RFC 7301 section 3.1).
fn protocols(mut content: Fields<'_>) -> Result<Vec<Vec<u8>>, HelloRefusal> {
    let field = "the list of protocols";
    let mut list = content.vector16(field)?;
    if !content.0.is_empty() || list.0.is_empty() {
        return Err(HelloRefusal::Malformed { field });
    }
    let mut found = Vec::new();
    while !list.0.is_empty() {
        let name = list.vector8(field)?;
        if name.0.is_empty() {
            return Err(HelloRefusal::Malformed { field });
        }
        found.push(name.0.to_vec());
    }
    Ok(found)
}

/// The unread rest of a structure.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next `length` bytes.
    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], HelloRefusal> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(HelloRefusal::Malformed { field })?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, HelloRefusal> {
        let bytes = self.take(2, field)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector with a length of one byte.
    fn vector8(&mut self, field: &'static str) -> Result<Self, HelloRefusal> {
        let length = self.take(1, field)?[0];
        self.take(length.into(), field).map(Self)
    }

    /// A vector with a length of two bytes.
    fn vector16(&mut self, field: &'static str) -> Result<Self, HelloRefusal> {
        let length = self.u16(field)?;
        self.take(length.into(), field).map(Self)
    }
}

#[cfg(test)]
mod tests;
