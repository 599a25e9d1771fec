//! Clients of gateways in a lab: a TLS hello, and ends of circuits.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

pub use circuit_end::clock;
use circuit_end::{CircuitEnd, INTERVAL};
use gateway_client::wire::{CircuitId, Key, Side};

use crate::site::Site;

/// A TLS hello with the server name `name`. It is always the same, and no handshake can follow it.
#[must_use]
pub fn client_hello(name: &str) -> Vec<u8> {
    fn with_length<const N: usize>(bytes: &[u8]) -> Vec<u8> {
        let length = bytes.len().to_be_bytes();
        [&length[length.len() - N..], bytes].concat()
    }
    let host = [&[0][..], &with_length::<2>(name.as_bytes())].concat();
    let server_name = [&[0, 0][..], &with_length::<2>(&with_length::<2>(&host))].concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &with_length::<1>(&[]),
        &with_length::<2>(&[0x13, 0x01]),
        &with_length::<1>(&[0]),
        &with_length::<2>(&server_name),
    ]
    .concat();
    let handshake = [&[1][..], &with_length::<3>(&body)].concat();
    [&[22, 3, 1][..], &with_length::<2>(&handshake)].concat()
}

/// One side of a tenant's circuit, on `host`, towards the gateway at `to`.
#[must_use]
pub fn circuit_end(
    site: &Site,
    host: &str,
    to: SocketAddr,
    tenant: &str,
    side: Side,
) -> CircuitEnd {
    let (circuit, keys) = circuit(site, tenant);
    let key = keys[side.index()].for_gateway(&gateway_at(site, to));
    CircuitEnd::new(socket(site, host, to), circuit, side, key)
}

/// A UDP socket on `host`, connected to the gateway at `to`.
#[must_use]
pub fn socket(site: &Site, host: &str, to: SocketAddr) -> UdpSocket {
    let made = site.inside(host, || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(INTERVAL))?;
        socket.connect(to)?;
        io::Result::Ok(socket)
    });
    made.unwrap_or_else(|e| panic!("{host}: {e}"))
}

/// The name of the gateway at an address.
fn gateway_at(site: &Site, at: SocketAddr) -> String {
    let topology = site.topology();
    let mut gateways = topology.cloud.gateways.iter();
    let found = gateways.find(|g| topology.addresses_of(&g.host).any(|ip| ip == at.ip()));
    found.map_or_else(|| panic!("no gateway at {at}"), |g| g.host.clone())
}

/// Id and keys of a tenant's circuit, as the lab generated them. Each gateway has other keys:
/// [`Key::for_gateway`].
#[must_use]
pub fn circuit(site: &Site, tenant: &str) -> (CircuitId, [Key; 2]) {
    let generated = site.circuit(tenant).unwrap_or_else(|e| panic!("{e}"));
    let id = u64::from_str_radix(&generated.id, 16)
        .ok()
        .and_then(CircuitId::new);
    let keys = generated
        .keys
        .map(|text| Key::from_base64(&text).expect("a key"));
    (id.expect("an id"), keys)
}
