//! PROXY headers from listed senders: bytes of any kind, compared with a simple parser, and headers
//! that are made and read again.

use std::net::{IpAddr, SocketAddr};

use fuzzing::Input;
use gateway_client::proxy_header::{HEAD_BYTES, MAX_BODY_BYTES, body_length, client, header};

/// Reads the input as a header, or as the addresses and the name of one.
pub fn proxy(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() {
        made(&mut input);
    } else {
        read(input.rest());
    }
}

/// The outcome of a header: `None` if it is none, else the client.
fn parse(bytes: &[u8]) -> Option<Option<SocketAddr>> {
    let number = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let length = usize::from(number(14)?);
    if bytes[..12] != *b"\r\n\r\n\0\r\nQUIT\n" || length > 1024 {
        return None;
    }
    match (bytes[12], bytes[13]) {
        (0x20, _) => Some(None),
        (0x21, 0x11) if length >= 12 => {
            let ip: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
            Some(Some(SocketAddr::new(IpAddr::from(ip), number(24)?)))
        }
        (0x21, 0x21) if length >= 36 => {
            let ip: [u8; 16] = bytes.get(16..32)?.try_into().ok()?;
            Some(Some(SocketAddr::new(IpAddr::from(ip), number(48)?)))
        }
        (0x21, 0x11 | 0x21) => None,
        (0x21, _) => Some(None),
        _ => None,
    }
}

fn read(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return;
    };
    let Ok(length) = body_length(head) else {
        assert_eq!(parse(bytes), None, "{bytes:02x?}");
        return;
    };
    assert!(length <= MAX_BODY_BYTES);
    // A reader waits for the whole body.
    if let Some(body) = rest.get(..length) {
        assert_eq!(client(head, body).ok(), parse(bytes), "{bytes:02x?}");
    }
}

fn made(input: &mut Input<'_>) {
    let [from, to] = [0, 1].map(|_| {
        let ip = if input.flag() {
            IpAddr::from(input.array::<4>())
        } else {
            IpAddr::from(input.array::<16>())
        };
        SocketAddr::new(ip, input.u16())
    });
    let name = String::from_utf8_lossy(input.rest());
    let name: String = name.chars().take(200).collect();
    let bytes = header(from, to, &name);
    let (head, body) = bytes.split_first_chunk::<HEAD_BYTES>().expect("a header");
    assert_eq!(body_length(head), Ok(body.len()));
    let canonical = from.ip().to_canonical();
    let is_common = canonical.is_ipv4() == to.ip().to_canonical().is_ipv4();
    let wanted = is_common.then(|| SocketAddr::new(canonical, from.port()));
    assert_eq!(client(head, body), Ok(wanted));
}
