//! Builders of the frames that the appliance sends itself.
//!
//! For: ARP, neighbour discovery, listener reports and IPv4 fragments. Never: input or output;
//! every function returns bytes.
//!
//! ```text
//!   arp       request, announcement (request and reply form)
//!   ndp       neighbour solicitation, unsolicited neighbour advertisement, router advertisement
//!   mld       listener report, multicast router advertisement
//!   probe     probe for an address that is to become ours; the address that a host says it has
//!   fragment  one IPv4 packet ─▶ fragments that fit an MTU
//! ```

mod arp;
mod fragment;
mod mld;
mod ndp;
mod probe;

use appliance_common::maps::Neighbour;
use appliance_common::wire::ETH_LEN;

pub use arp::{arp_announcement, arp_request};
pub use fragment::{SplitError, ipv4_lengths, split_v4};
pub use mld::{MAX_GROUPS, listener_report, multicast_router_advertisement};
pub use ndp::{
    link_local, neighbour_solicitation, router_advertisement, unsolicited_advertisement,
};
pub use probe::{address_probe, claimed_address};

/// The appliance's port on a tenant's network: interface, VLAN tags and source MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// Interface index.
    pub ifindex: u32,
    /// Outer VLAN identifier, 1 to 4094; 0 for untagged.
    pub outer: u16,
    /// Inner VLAN identifier (QinQ), 1 to 4094; 0 without a second tag.
    pub inner: u16,
    /// EtherType of the outer tag: 0x8100 or 0x88a8, host byte order. Unused for untagged frames.
    pub outer_ethertype: u16,
    /// The appliance's MAC address on the port.
    pub mac: [u8; 6],
}

/// Ports of tests.
#[cfg(test)]
pub(crate) mod testing {
    use appliance_common::wire::ETHERTYPE_8021Q;

    use super::Port;

    /// A port without tags.
    pub const UNTAGGED: Port = Port {
        ifindex: 3,
        outer: 0,
        inner: 0,
        outer_ethertype: ETHERTYPE_8021Q,
        mac: [2, 0, 0, 0, 0, 9],
    };
    /// A port with VLAN 101.
    pub const TAGGED: Port = Port {
        outer: 101,
        ..UNTAGGED
    };
}

/// The Ethernet broadcast address.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Whether a host can have this MAC address: it is neither zero nor a group address (IEEE 802
/// section 8.2.2).
#[must_use]
pub const fn is_host_mac(mac: &[u8; 6]) -> bool {
    mac[0] & 1 == 0 && !matches!(mac, [0, 0, 0, 0, 0, 0])
}

/// Starts a frame on `port` with the Ethernet header and tags, from `source` to `destination`, with
/// capacity for `payload` more bytes.
fn begin(
    port: &Port,
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: u16,
    payload: usize,
) -> Vec<u8> {
    let header = Neighbour::new(
        port.ifindex,
        destination,
        source,
        port.outer,
        port.inner,
        port.outer_ethertype,
    );
    with_ethernet_header(&header, ethertype, payload)
}

/// Starts a frame with the Ethernet header of `neighbour` and the EtherType, with capacity for
/// `payload` more bytes. A header length out of bounds is clamped.
pub(crate) fn with_ethernet_header(
    neighbour: &Neighbour,
    ethertype: u16,
    payload: usize,
) -> Vec<u8> {
    let len = usize::from(neighbour.l2_len).clamp(ETH_LEN, neighbour.l2.len());
    let mut frame = Vec::with_capacity(len + payload);
    frame.extend_from_slice(&neighbour.l2[..len - 2]);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests;
