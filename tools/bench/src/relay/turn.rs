//! The part of TURN that opens a channel through a server (RFC 8656, RFC 8489), without
//! authentication.

use std::{
    io,
    net::{SocketAddrV4, UdpSocket},
};

use anyhow::{Context as _, ensure};

const COOKIE: u32 = 0x2112_a442;
const ALLOCATE: u16 = 0x0003;
const CHANNEL_BIND: u16 = 0x0009;
/// Bit in the type of a success response.
const SUCCESS: u16 = 0x0100;
const CHANNEL_NUMBER: u16 = 0x000c;
const LIFETIME: u16 = 0x000d;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const REQUESTED_TRANSPORT: u16 = 0x0019;
/// The lowest channel number.
const CHANNEL: u16 = 0x4000;

/// Allocates an address at the server and binds a channel from the socket to `peer`.
pub fn channel(socket: &UdpSocket, server: SocketAddrV4, peer: SocketAddrV4) -> anyhow::Result<()> {
    let attributes = [
        attribute(REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
        attribute(LIFETIME, &600u32.to_be_bytes()),
    ];
    ask(socket, server, ALLOCATE, &attributes.concat()).context("allocate")?;
    let [high, low] = CHANNEL.to_be_bytes();
    let attributes = [
        attribute(CHANNEL_NUMBER, &[high, low, 0, 0]),
        attribute(XOR_PEER_ADDRESS, &xored(peer)),
    ];
    ask(socket, server, CHANNEL_BIND, &attributes.concat()).context("bind a channel")
}

/// The header in front of `bytes` of channel data.
pub fn header(bytes: usize) -> Vec<u8> {
    [CHANNEL.to_be_bytes(), (bytes as u16).to_be_bytes()].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = value.len() as u16;
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), value].concat()
}

/// An address in the form of XOR-PEER-ADDRESS: exclusive-or with the magic cookie.
fn xored(address: SocketAddrV4) -> Vec<u8> {
    let [high, low, ..] = COOKIE.to_be_bytes();
    let port = address.port() ^ u16::from_be_bytes([high, low]);
    let ip = u32::from(*address.ip()) ^ COOKIE;
    [&[0, 1][..], &port.to_be_bytes(), &ip.to_be_bytes()].concat()
}

fn request(kind: u16, attributes: &[u8]) -> Vec<u8> {
    let length = attributes.len() as u16;
    [
        &kind.to_be_bytes()[..],
        &length.to_be_bytes(),
        &COOKIE.to_be_bytes(),
        &[kind as u8; 12],
        attributes,
    ]
    .concat()
}

fn ask(
    socket: &UdpSocket,
    server: SocketAddrV4,
    kind: u16,
    attributes: &[u8],
) -> anyhow::Result<()> {
    let request = request(kind, attributes);
    let mut answer = [0; 1500];
    // The server may not listen yet.
    for _ in 0..50 {
        // ICMP may have refused the attempt before.
        let _ = socket.send_to(&request, server);
        loop {
            match socket.recv(&mut answer) {
                // An answer to an earlier request that was sent twice.
                Ok(bytes) if bytes < 20 || answer[4..20] != request[4..20] => {}
                Ok(_) => {
                    let found = u16::from_be_bytes([answer[0], answer[1]]);
                    ensure!(
                        found == kind | SUCCESS,
                        "the server answered with type {found:#06x}"
                    );
                    return Ok(());
                }
                Err(error) if is_patient(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    anyhow::bail!("the server did not answer")
}

/// Whether the request should be sent again.
pub fn is_patient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_layout_of_the_rfcs() {
        // RFC 5769 section 2.2 has 192.0.2.1:32853 in this form.
        let address = "192.0.2.1:32853".parse().unwrap();
        assert_eq!(xored(address), [0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let bytes = request(ALLOCATE, &attribute(REQUESTED_TRANSPORT, &[17, 0, 0, 0]));
        assert_eq!(bytes[..8], [0, 3, 0, 8, 0x21, 0x12, 0xa4, 0x42]);
        assert_eq!(bytes[20..], [0, 0x19, 0, 4, 17, 0, 0, 0]);
        assert_eq!(header(18), [0x40, 0, 0, 18]);
    }
}
