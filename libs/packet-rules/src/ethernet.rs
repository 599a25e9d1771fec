//! EtherTypes, host byte order (IEEE 802 numbers, IANA).

/// IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// 802.1Q customer tag.
pub const ETHERTYPE_8021Q: u16 = 0x8100;
/// 802.1ad service tag.
pub const ETHERTYPE_8021AD: u16 = 0x88a8;
/// IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
