//! EtherTypes, host byte order (IEEE 802 numbers, IANA).

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// 802.1Q customer tag.
pub const ETHERTYPE_8021Q: u16 = 0x8100;
/// 802.1ad service tag.
pub const ETHERTYPE_8021AD: u16 = 0x88a8;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
