//! PROXY protocol version 2 (haproxy's proxy-protocol.txt, section 2.2): the header in which a
//! gateway gives a backend the address of the client.
//!
//! `signature [u8; 12], version and command u8, family u8, length u16, addresses, ports u16, TLVs`;
//! numbers are big-endian. The gateway adds the server name that the client asked for
//! (`PP2_TYPE_AUTHORITY`, section 2.2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of the fixed part: signature, version and command, family, length.
pub const HEAD_BYTES: usize = 16;
/// Longest accepted rest. That of a gateway has 36 bytes of addresses, and a name of up to 256
/// bytes.
pub const MAX_BODY_BYTES: usize = 1024;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// Version 2, command LOCAL: the header has no addresses.
const LOCAL: u8 = 0x20;
const TCP_OVER_V4: u8 = 0x11;
const TCP_OVER_V6: u8 = 0x21;
const AUTHORITY: u8 = 0x02;

/// The bytes are no header of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header of version 2")]
pub struct NoHeader;

/// The header of a connection from `client` to the gateway's `local` address, for the server name
/// `name`.
#[must_use]
pub fn header(client: SocketAddr, local: SocketAddr, name: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + name.len());
    let (command, family) = match (client.ip().to_canonical(), local.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            (PROXY, TCP_OVER_V4)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            (PROXY, TCP_OVER_V6)
        }
        // Without a common family the backend uses the addresses of its own connection.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => (LOCAL, 0),
    };
    if command == PROXY {
        body.extend(client.port().to_be_bytes());
        body.extend(local.port().to_be_bytes());
    }
    // A DNS name has at most 253 bytes.
    if let Ok(length) = u16::try_from(name.len()) {
        body.push(AUTHORITY);
        body.extend(length.to_be_bytes());
        body.extend(name.as_bytes());
    }
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend((body.len() as u16).to_be_bytes());
    header.extend(body);
    header
}

/// The number of bytes after the fixed part.
///
/// # Errors
/// [`NoHeader`].
pub fn body_length(head: &[u8; HEAD_BYTES]) -> Result<usize, NoHeader> {
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let known = head.starts_with(&SIGNATURE) && matches!(head[12], LOCAL | PROXY);
    if known && length <= MAX_BODY_BYTES {
        Ok(length)
    } else {
        Err(NoHeader)
    }
}

/// The address of the client; `None` when the header has none.
///
/// # Errors
/// [`NoHeader`].
pub fn client(head: &[u8; HEAD_BYTES], body: &[u8]) -> Result<Option<SocketAddr>, NoHeader> {
    if head[12] == LOCAL {
        return Ok(None);
    }
    let (ip, port): (IpAddr, _) = match head[13] {
        TCP_OVER_V4 => {
            let addresses: &[u8; 12] = body.first_chunk().ok_or(NoHeader)?;
            let &[a, b, c, d, .., p0, p1, _, _] = addresses;
            (Ipv4Addr::new(a, b, c, d).into(), [p0, p1])
        }
        TCP_OVER_V6 => {
            let addresses: &[u8; 36] = body.first_chunk().ok_or(NoHeader)?;
            let mut octets = [0; 16];
            octets.copy_from_slice(&addresses[..16]);
            let port = [addresses[32], addresses[33]];
            (Ipv6Addr::from(octets).into(), port)
        }
        _ => return Ok(None),
    };
    Ok(Some(SocketAddr::new(ip, u16::from_be_bytes(port))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn parse(header: &[u8]) -> Result<Option<SocketAddr>, NoHeader> {
        let (head, body) = header.split_first_chunk().ok_or(NoHeader)?;
        client(head, body.get(..body_length(head)?).ok_or(NoHeader)?)
    }

    #[test]
    fn headers_are_those_of_the_specification() {
        let v4 = header(at("192.0.2.1:50000"), at("198.51.100.7:6180"), "d.example");
        let mut wanted =
            b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x18".to_vec();
        wanted.extend(b"\xc0\x00\x02\x01\xc6\x33\x64\x07\xc3\x50\x18\x24\x02\x00\x09d.example");
        assert_eq!(v4, wanted);
        let v6 = header(at("[2001:db8::1]:1"), at("[2001:db8::2]:6180"), "");
        assert_eq!(v6[12..16], [0x21, 0x21, 0, 36 + 3]);
        assert_eq!(v6[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!((v6[31], v6[47]), (1, 2));
        assert_eq!(v6[48..], [0, 1, 0x18, 0x24, 2, 0, 0]);
        let mapped = header(
            at("[::ffff:192.0.2.1]:50000"),
            at("198.51.100.7:6180"),
            "d.example",
        );
        assert_eq!(mapped, v4);
        let mixed = header(at("[2001:db8::1]:1"), at("198.51.100.7:6180"), "");
        assert_eq!(mixed[12..], [0x20, 0, 0, 3, 2, 0, 0]);
        for (made, client) in [
            (v4, Some(at("192.0.2.1:50000"))),
            (v6, Some(at("[2001:db8::1]:1"))),
            (mixed, None),
        ] {
            assert_eq!(parse(&made), Ok(client));
        }
    }

    #[test]
    fn other_bytes_are_no_header() {
        let header = |version: u8, family: u8, length: u16, body: &[u8]| {
            let mut header = SIGNATURE.to_vec();
            header.extend([version, family]);
            header.extend(length.to_be_bytes());
            header.extend(body);
            header
        };
        let all = [0; 2000];
        assert_eq!(parse(&header(0x21, 0x11, 11, &all)), Err(NoHeader));
        assert_eq!(parse(&header(0x21, 0x21, 35, &all)), Err(NoHeader));
        assert_eq!(parse(&header(0x11, 0x11, 12, &all)), Err(NoHeader));
        assert_eq!(parse(&header(0x21, 0x11, 1025, &all)), Err(NoHeader));
        assert_eq!(parse(&header(0x21, 0x31, 12, &all)), Ok(None), "a socket");
        assert_eq!(
            parse(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03______"),
            Err(NoHeader)
        );
    }
}
