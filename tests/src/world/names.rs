//! Interfaces, MAC addresses, VNIs and addresses of the fixtures.

use std::net::IpAddr;

use appliance_common::addr::{Address, from_ip};
use appliance_common::maps::{HostKey, NO_XSK};
use appliance_common::nat::Words;

use crate::packet::{Mac, ip};

/// The tunnels' interface.
pub const UPLINK: u32 = 10;
pub const TRUNK: u32 = 11;
/// An access port without tags.
pub const ACCESS: u32 = 12;
/// An interface that nothing is attached to.
pub const STRAY: u32 = 13;
/// Our MAC on [`UPLINK`].
pub const UPLINK_MAC: Mac = [0x02, 0, 0, 0, 0x10, 0x0a];
/// Our MAC on [`TRUNK`].
pub const TRUNK_MAC: Mac = [0x02, 0, 0, 0, 0x11, 0x0a];
/// Our MAC on [`ACCESS`].
pub const ACCESS_MAC: Mac = [0x02, 0, 0, 0, 0x12, 0x0a];
/// The next hop towards the peers.
pub const NEXT_HOP_MAC: Mac = [0x02, 0, 0, 0, 0x10, 0x01];
/// The machine (or replica) with host part 10, on any network.
pub const A_MAC: Mac = [0x02, 0, 0, 0xaa, 0, 0x0a];
/// The machine (or replica) with host part 11.
pub const B_MAC: Mac = [0x02, 0, 0, 0xaa, 0, 0x0b];
/// The replica with host part 10 of net2.
pub const G_MAC: Mac = [0x02, 0, 0, 0xbb, 0, 0x0a];
/// The router of the production network.
pub const ROUTER_MAC: Mac = [0x02, 0, 0, 0xaa, 0, 0x01];
/// VNI of net1, on both sides.
pub const NET1: u32 = 1001;
/// VNI of net2 at the provider: another tenant, the same addresses.
pub const NET2: u32 = 2001;
/// VNI of net3: QinQ, IPv6 underlay.
pub const NET3: u32 = 1003;
/// VNI of net4: an untagged port.
pub const NET4: u32 = 1004;
/// VNI of the tenant appliance's second network.
pub const NET2T: u32 = 1002;
/// UDP port of the tunnels.
pub const PORT: u16 = 4789;
/// UDP port of the encrypted tunnels.
pub const SECURE_PORT: u16 = 6180;
/// The session indices that workers know, in [`World::encrypted`].
pub const SESSIONS: [u32; 3] = [1, 0x0102_0304, 0xffff_fff0];
/// Largest packet of the networks over IPv4.
pub const MTU: u16 = 1450;
/// MTU of the networks' own LANs.
pub const LAN_MTU: u16 = 1500;
/// The provider's tunnel addresses.
pub const PROVIDER: &str = "203.0.113.5";
/// The provider's IPv6 tunnel address.
pub const PROVIDER6: &str = "2001:db8:f::5";
/// The first tenant's tunnel address.
pub const TENANT: &str = "10.1.0.5";
/// The second tenant's tunnel address.
pub const TENANT2: &str = "198.51.100.77";
/// The IPv6 tunnel address of the peer of net3.
pub const TENANT6: &str = "2001:db8:e::5";
/// External address of the first tenant.
pub const NAT4: &str = "192.0.2.10";
/// Likewise.
pub const NAT6: &str = "2001:db8:aa::10";
/// A public address of the first tenant, with rules.
pub const PUBLIC4: &str = "192.0.2.11";
/// Likewise.
pub const PUBLIC6: &str = "2001:db8:aa::11";
/// A public address of the first tenant, of one machine.
pub const ONE_TO_ONE4: &str = "192.0.2.12";
/// Likewise.
pub const ONE_TO_ONE6: &str = "2001:db8:aa::12";
/// A public address of the second tenant.
pub const PUBLIC2: &str = "192.0.2.20";
/// A host outside that the rule for port 8080 lists.
pub const LISTED: &str = "198.51.100.7";
/// Likewise.
pub const LISTED6: &str = "2001:db8:cc::7";
/// A host outside that no rule lists.
pub const REMOTE: &str = "203.0.114.9";
/// Likewise.
pub const REMOTE6: &str = "2001:db8:dd::9";

/// The replica in network `n` of [`World::many`]: each has a /24 of its own.
#[must_use]
pub fn many_host(n: u32) -> IpAddr {
    std::net::Ipv4Addr::from(0x0b00_000a + (n << 8)).into()
}

/// The network after `n` of [`World::many`].
#[must_use]
pub const fn many_next(n: u32, networks: u32) -> u32 {
    n % networks + 1
}

/// The four words of an address.
#[must_use]
pub fn words(text: &str) -> Words {
    words_of(&address(text))
}

/// The four words of an address in map form.
#[must_use]
pub fn words_of(address: &Address) -> Words {
    std::array::from_fn(|i| u32::from_ne_bytes(std::array::from_fn(|j| address[4 * i + j])))
}

/// The address in map form.
#[must_use]
pub fn address(text: &str) -> Address {
    from_ip(ip(text))
}

/// A key of `ENDPOINTS` and `NEIGHBOURS`.
#[must_use]
pub fn host(vni: u32, text: &str) -> HostKey {
    HostKey {
        vni,
        address: address(text),
    }
}

/// Where the sockets of an interface are in `XSKS`.
#[must_use]
pub const fn xsk_of(ifindex: u32) -> u16 {
    match ifindex {
        UPLINK => 1,
        TRUNK => 65,
        ACCESS => 129,
        _ => NO_XSK,
    }
}
