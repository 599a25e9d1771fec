//! The header in which a gateway names the client of a connection: PROXY protocol version 2
//! (haproxy's proxy-protocol.txt, section 2.2).

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Instant,
};

use nix::poll::PollFlags;

use super::{close_reason::CloseReason, link::HandshakeError, thread_control::ThreadControl};

/// `signature [u8; 12], version and command u8, family u8, length u16`.
const HEAD: usize = 16;
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of addresses and TLVs at most: a gateway's have 36 and a name of up to 256.
const MAX_BODY: usize = 1024;

/// The connection does not begin with such a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidHeader;

/// Length of the body behind the head, bytes.
fn length(head: &[u8; HEAD]) -> Result<usize, InvalidHeader> {
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let ours = head.starts_with(&SIGNATURE) && matches!(head[12], 0x20 | 0x21);
    if ours && length <= MAX_BODY {
        Ok(length)
    } else {
        Err(InvalidHeader)
    }
}

/// The client's address; `None` when the header names none.
fn source(head: &[u8; HEAD], body: &[u8]) -> Result<Option<SocketAddr>, InvalidHeader> {
    // LOCAL: the proxy itself connected.
    if head[12] == 0x20 {
        return Ok(None);
    }
    let (ip, port): (IpAddr, _) = match head[13] {
        0x11 => {
            let addresses: &[u8; 12] = body.first_chunk().ok_or(InvalidHeader)?;
            let &[a, b, c, d, .., p0, p1, _, _] = addresses;
            (Ipv4Addr::new(a, b, c, d).into(), [p0, p1])
        }
        0x21 => {
            let addresses: &[u8; 36] = body.first_chunk().ok_or(InvalidHeader)?;
            let mut octets = [0; 16];
            octets.copy_from_slice(&addresses[..16]);
            (
                Ipv6Addr::from(octets).into(),
                [addresses[32], addresses[33]],
            )
        }
        _ => return Ok(None),
    };
    Ok(Some(SocketAddr::new(ip, u16::from_be_bytes(port))))
}

/// Reads the header, and no byte behind it.
pub(super) fn read(
    mut socket: &TcpStream,
    control: &ThreadControl,
    deadline: Instant,
) -> Result<Result<Option<SocketAddr>, InvalidHeader>, HandshakeError> {
    let mut read_exact = |mut buffer: &mut [u8]| {
        while !buffer.is_empty() {
            if control.stop_reason().is_some() {
                return Err(HandshakeError::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(HandshakeError::Slow);
            }
            match socket.read(buffer) {
                Ok(0) => return Err(CloseReason::Cut.into()),
                Ok(bytes) => buffer = &mut buffer[bytes..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    control.wait(socket, PollFlags::POLLIN, Some(deadline));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(CloseReason::Lost(error).into()),
            }
        }
        Ok(())
    };
    let mut head = [0; HEAD];
    read_exact(&mut head)?;
    let length = match length(&head) {
        Ok(length) => length,
        Err(no) => return Ok(Err(no)),
    };
    let mut body = [0; MAX_BODY];
    read_exact(&mut body[..length])?;
    Ok(source(&head, &body[..length]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &[u8]) -> Result<Option<SocketAddr>, InvalidHeader> {
        let (head, body) = header.split_first_chunk().ok_or(InvalidHeader)?;
        source(head, body.get(..length(head)?).ok_or(InvalidHeader)?)
    }

    #[test]
    fn a_header_names_the_client() {
        let v4 = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x18\xc0\x00\x02\x01\xc6\x33\x64\x07\xc3\x50\x18\x24\x02\x00\x09d.example";
        assert_eq!(parse(v4), Ok(Some("192.0.2.1:50000".parse().unwrap())));
        let mut v6 = v4[..12].to_vec();
        v6.extend([0x21, 0x21, 0, 36, 0x20, 0x01, 0x0d, 0xb8]);
        v6.extend([0; 11]);
        v6.push(1);
        v6.extend([0; 16]);
        v6.extend([0, 80, 0x18, 0x24]);
        assert_eq!(parse(&v6), Ok(Some("[2001:db8::1]:80".parse().unwrap())));
        let mut local = v4.to_vec();
        local[12] = 0x20;
        assert_eq!(parse(&local), Ok(None));
    }

    #[test]
    fn anything_else_is_refused() {
        let header = |version: u8, family: u8, length: u16, body: &[u8]| {
            let mut header = SIGNATURE.to_vec();
            header.extend([version, family]);
            header.extend(length.to_be_bytes());
            header.extend(body);
            header
        };
        let all = [0; 2000];
        assert_eq!(parse(&header(0x21, 0x11, 11, &all)), Err(InvalidHeader));
        assert_eq!(parse(&header(0x21, 0x21, 35, &all)), Err(InvalidHeader));
        assert_eq!(parse(&header(0x11, 0x11, 12, &all)), Err(InvalidHeader));
        assert_eq!(parse(&header(0x21, 0x11, 1025, &all)), Err(InvalidHeader));
        assert_eq!(parse(&header(0x21, 0x31, 12, &all)), Ok(None), "a socket");
        assert_eq!(
            parse(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03______"),
            Err(InvalidHeader)
        );
    }
}
