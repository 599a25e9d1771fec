//! PROXY protocol version 2: tells the backend who connected (haproxy's proxy-protocol.txt, section
//! 2.2).
//!
//! `signature [u8; 12], version and command u8, family u8, length u16, addresses, ports u16, TLVs`;
//! numbers are big-endian. The server name that the client asked for goes along
//! (`PP2_TYPE_AUTHORITY`, section 2.2.2).

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// A connection whose ends have no common family: the backend takes the addresses of its own
/// (command LOCAL).
const LOCAL: u8 = 0x20;
const TCP_OVER_V4: u8 = 0x11;
const TCP_OVER_V6: u8 = 0x21;
const AUTHORITY: u8 = 0x02;

/// The header of a connection from `client` to our `local` address, for `name`.
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
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => (LOCAL, 0),
    };
    if command == PROXY {
        body.extend(client.port().to_be_bytes());
        body.extend(local.port().to_be_bytes());
    }
    // A DNS name has 253 bytes at most.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
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
    }
}
