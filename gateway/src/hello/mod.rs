//! A TLS ClientHello, read for the server it names and nothing else.
//!
//! Bytes are given as they come off the wire, in any pieces; the answer depends on the bytes alone:
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
//! Numbers are big-endian. Nothing is decrypted, and nothing is believed: whoever wrote the name proves
//! who he is to the backend, not here.

use thiserror::Error;

/// Longest hello, bytes on the wire, headers of records included.
pub const MAX_HELLO: usize = 16 << 10;

/// Bytes of a record's header: type, version, length.
const RECORD_HEADER: usize = 5;
/// Bytes of a handshake message's header: type, length.
const MESSAGE_HEADER: usize = 4;
/// Bytes of a record's fragment at most (RFC 8446 section 5.1).
const MAX_FRAGMENT: usize = 1 << 14;
/// Content type of handshake records.
const HANDSHAKE: u8 = 22;
/// Type of the message.
const CLIENT_HELLO: u8 = 1;
/// Number of the extension (RFC 6066 section 3).
const SERVER_NAME: u16 = 0;
/// Number of the extension (RFC 7301 section 3.1).
const ALPN: u16 = 16;
/// The only kind of server name there is.
const HOST_NAME: u8 = 0;
/// Bytes of a DNS name at most, without the dot at its end (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
/// Bytes of one label at most.
const MAX_LABEL: usize = 63;

/// What a hello asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The server's DNS name, in lower case; `None`: none was sent.
    pub name: Option<String>,
    /// Application protocols (ALPN) in the client's order; empty: none were sent.
    pub protocols: Vec<Vec<u8>>,
    /// Bytes of the hello on the wire; more may have come behind it.
    pub bytes: usize,
}

/// What is known after the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// The hello is whole.
    Hello(Hello),
}

/// Why bytes are not a hello that can be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A record of another type: not TLS, or not its beginning.
    #[error("read a hello: content type {found} where a handshake record (22) begins; speak TLS")]
    NotTls {
        /// The byte.
        found: u8,
    },
    /// A major version that is none of TLS.
    #[error("read a hello: record version {found}.x; TLS has 3")]
    Version {
        /// The byte.
        found: u8,
    },
    /// A fragment without bytes, or with more than a record may have.
    #[error("read a hello: a record of {length} bytes; 1 to {MAX_FRAGMENT} are allowed")]
    RecordLength {
        /// Its length.
        length: usize,
    },
    /// A handshake message of another type.
    #[error(
        "read a hello: handshake message {found} comes first; a client begins with a hello (1)"
    )]
    NotHello {
        /// The byte.
        found: u8,
    },
    /// More bytes than a hello may have here.
    #[error("read a hello: it is longer than {MAX_HELLO} bytes; offer fewer or smaller extensions")]
    TooLong,
    /// Something else in the hello's last record.
    #[error("read a hello: {extra} bytes follow in its record; nothing may before the answer")]
    Trailing {
        /// Bytes of it.
        extra: usize,
    },
    /// A field that does not fit in what is around it.
    #[error("read a hello: {field} is cut short, too long or of a wrong length")]
    Malformed {
        /// Which.
        field: &'static str,
    },
    /// An extension that may be there once is there again (RFC 8446 section 4.2).
    #[error("read a hello: extension {extension} is there twice")]
    Twice {
        /// Its number.
        extension: u16,
    },
    /// A server name that no host has.
    #[error(
        "read a hello: the server name is not a DNS name; an IP address, a dot at the end and bytes outside \
         a-z, 0-9, '-' and '_' are refused (RFC 6066 section 3)"
    )]
    Name,
}

impl Refusal {
    /// For counters and logs; never changes its meaning.
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

/// Reads a hello from the bytes of a connection, given in any pieces.
#[derive(Debug, Default)]
pub struct Reader {
    /// Everything given.
    bytes: Vec<u8>,
    /// How many of them are taken over.
    next: usize,
    /// Bytes of the record at hand that are not.
    left: usize,
    /// Fragments of the message so far.
    message: Vec<u8>,
    /// The answer, once there is one: it does not change any more.
    answer: Option<Result<Hello, Refusal>>,
}

impl Reader {
    /// A reader at the beginning of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes. They are kept, for the backend, whatever the answer.
    ///
    /// # Errors
    /// [`Refusal`], at the first byte that makes it certain; and the same ever after.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, Refusal> {
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

    /// How many more bytes a hello may take: what a caller reads at most before it feeds them.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_HELLO.saturating_sub(self.bytes.len())
    }

    /// Whether nothing has been given yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Everything that was given, what came behind the hello included.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Goes on where the last bytes ended. Each decision hangs on the bytes before it alone, so pieces do not
    /// matter; and there is one after [`MAX_HELLO`] bytes at the latest.
    fn read(&mut self) -> Result<Option<Hello>, Refusal> {
        loop {
            if self.left == 0 && !self.record()? {
                return Ok(None);
            }
            let there = self.left.min(self.bytes.len() - self.next);
            if there == 0 {
                return Ok(None);
            }
            self.message
                .extend_from_slice(&self.bytes[self.next..self.next + there]);
            self.next += there;
            self.left -= there;
            if let Some(hello) = self.look()? {
                return Ok(Some(hello));
            }
        }
    }

    /// Reads a record's header, if it is there.
    fn record(&mut self) -> Result<bool, Refusal> {
        if self.next + RECORD_HEADER >= MAX_HELLO {
            return Err(Refusal::TooLong);
        }
        let rest = &self.bytes[self.next..];
        if let Some(&found) = rest.first()
            && found != HANDSHAKE
        {
            return Err(Refusal::NotTls { found });
        }
        if let Some(&found) = rest.get(1)
            && found != 3
        {
            return Err(Refusal::Version { found });
        }
        let Some(&[_, _, _, high, low]) = rest.first_chunk::<RECORD_HEADER>() else {
            return Ok(false);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(1..=MAX_FRAGMENT).contains(&length) {
            return Err(Refusal::RecordLength { length });
        }
        self.next += RECORD_HEADER;
        self.left = length;
        Ok(true)
    }

    /// Looks at the message so far, of which there is a byte.
    fn look(&self) -> Result<Option<Hello>, Refusal> {
        let found = self.message[0];
        if found != CLIENT_HELLO {
            return Err(Refusal::NotHello { found });
        }
        // Where the record ends on the wire, and how much of the message there is then.
        let end = self.next + self.left;
        let then = self.message.len() + self.left;
        if end > MAX_HELLO {
            return Err(Refusal::TooLong);
        }
        let Some(&[_, a, b, c]) = self.message.first_chunk::<MESSAGE_HEADER>() else {
            return Ok(None);
        };
        let length = MESSAGE_HEADER + u32::from_be_bytes([0, a, b, c]) as usize;
        if end + length.saturating_sub(then) > MAX_HELLO {
            return Err(Refusal::TooLong);
        }
        if then > length {
            return Err(Refusal::Trailing {
                extra: then - length,
            });
        }
        if self.message.len() < length {
            return Ok(None);
        }
        parse(&self.message[MESSAGE_HEADER..], end).map(Some)
    }
}

/// The body of a whole hello (RFC 8446 section 4.1.2).
fn parse(body: &[u8], bytes: usize) -> Result<Hello, Refusal> {
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
        return Err(Refusal::Malformed {
            field: "the session id",
        });
    }
    let suites = body.vector16("the cipher suites")?;
    if suites.0.len() < 2 || !suites.0.len().is_multiple_of(2) {
        return Err(Refusal::Malformed {
            field: "the cipher suites",
        });
    }
    if body.vector8("the compression methods")?.0.is_empty() {
        return Err(Refusal::Malformed {
            field: "the compression methods",
        });
    }
    if body.0.is_empty() {
        // Before TLS 1.3 extensions may be missing altogether (RFC 5246 section 7.4.1.2).
        return Ok(hello);
    }
    let mut extensions = body.vector16("the extensions")?;
    if !body.0.is_empty() {
        return Err(Refusal::Malformed {
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
                    return Err(Refusal::Twice { extension: kind });
                }
                hello.name = Some(server_name(content)?);
            }
            ALPN => {
                if alpn {
                    return Err(Refusal::Twice { extension: kind });
                }
                alpn = true;
                hello.protocols = protocols(content)?;
            }
            _ => {}
        }
    }
    Ok(hello)
}

/// The one host name of a server name list (RFC 6066 section 3).
fn server_name(mut content: Fields<'_>) -> Result<String, Refusal> {
    let field = "the server name";
    let mut list = content.vector16(field)?;
    if !content.0.is_empty() {
        return Err(Refusal::Malformed { field });
    }
    let mut name = None;
    while !list.0.is_empty() {
        let kind = list.take(1, field)?[0];
        // Every kind, also one to come, begins with its length.
        let value = list.vector16(field)?;
        if kind == HOST_NAME && name.replace(dns_name(value.0)?).is_some() {
            return Err(Refusal::Twice {
                extension: SERVER_NAME,
            });
        }
    }
    name.ok_or(Refusal::Malformed { field })
}

/// A DNS name in lower case. An underscore is none of a host's letters, yet in use.
pub(crate) fn dns_name(bytes: &[u8]) -> Result<String, Refusal> {
    if bytes.len() > MAX_NAME {
        return Err(Refusal::Name);
    }
    let mut last: &[u8] = &[];
    for label in bytes.split(|byte| *byte == b'.') {
        let fits = (1..=MAX_LABEL).contains(&label.len())
            && label
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !fits {
            return Err(Refusal::Name);
        }
        last = label;
    }
    // No top-level domain is a number, but the end of every IPv4 address is.
    if last.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Name);
    }
    Ok(bytes
        .iter()
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect())
}

/// The protocol names (RFC 7301 section 3.1).
fn protocols(mut content: Fields<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
    let field = "the list of protocols";
    let mut list = content.vector16(field)?;
    if !content.0.is_empty() || list.0.is_empty() {
        return Err(Refusal::Malformed { field });
    }
    let mut found = Vec::new();
    while !list.0.is_empty() {
        let name = list.vector8(field)?;
        if name.0.is_empty() {
            return Err(Refusal::Malformed { field });
        }
        found.push(name.0.to_vec());
    }
    Ok(found)
}

/// What is left of a structure.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next `length` bytes.
    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Refusal::Malformed { field })?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, Refusal> {
        let bytes = self.take(2, field)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What stands behind one byte of length.
    fn vector8(&mut self, field: &'static str) -> Result<Self, Refusal> {
        let length = self.take(1, field)?[0];
        self.take(length.into(), field).map(Self)
    }

    /// What stands behind two bytes of length.
    fn vector16(&mut self, field: &'static str) -> Result<Self, Refusal> {
        let length = self.u16(field)?;
        self.take(length.into(), field).map(Self)
    }
}

#[cfg(test)]
mod tests;
