//! Probes for an address that is to become the appliance's, and the answers of hosts.

use appliance_common::addr::{Address, UNSPECIFIED, as_v4, v4_mapped};
use appliance_common::wire::{ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPV6_LEN};
use packet_rules::icmp::{NEIGHBOUR_ADVERTISEMENT, OPTION_TARGET_LINK};

use super::{Port, arp, ndp};

/// Offset of the sender's MAC address in an ARP message.
const ARP_SENDER: usize = 8;

/// An ARP probe (RFC 5227 section 2.1.1) or a solicitation of duplicate address detection (RFC 4862
/// section 5.4.2). Only for an address that the appliance is about to use, and where it has no
/// other address to ask with: a host that probes for the same address must take it for a conflict.
#[must_use]
pub fn address_probe(port: &Port, target: &Address) -> Vec<u8> {
    match as_v4(target) {
        Some(target) => arp::arp_request(port, [0; 4], target, None),
        None => ndp::solicitation_without_option(port, &UNSPECIFIED, target),
    }
}

/// The address that the sender of an untagged frame says it has, and its MAC address: the sender of
/// an ARP message, the target of a neighbour advertisement. `None` for any other frame.
#[must_use]
pub fn claimed_address(frame: &[u8]) -> Option<(Address, [u8; 6])> {
    let body = frame.get(ETH_LEN..)?;
    let source: [u8; 6] = *frame.get(6..)?.first_chunk()?;
    match u16::from_be_bytes(*frame.get(12..)?.first_chunk()?) {
        ETHERTYPE_ARP => {
            let is_ethernet_ipv4 = body.get(..6)? == [0, 1, 8, 0, 6, 4];
            let mac = *body.get(ARP_SENDER..)?.first_chunk()?;
            let sender = *body.get(ARP_SENDER + 6..)?.first_chunk()?;
            (is_ethernet_ipv4 && sender != [0; 4]).then(|| (v4_mapped(sender), mac))
        }
        ETHERTYPE_IPV6 => {
            let message = body.get(IPV6_LEN..)?;
            let is_advertisement = body.get(6..8)? == [IPPROTO_ICMPV6, 255]
                && message.get(..2)? == [NEIGHBOUR_ADVERTISEMENT, 0];
            let target = *message.get(8..)?.first_chunk()?;
            let option = message
                .get(24..32)
                .filter(|o| o[..2] == [OPTION_TARGET_LINK, 1]);
            let mac = option.and_then(|o| o[2..].first_chunk().copied());
            is_advertisement.then(|| (target, mac.unwrap_or(source)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::testing::UNTAGGED as PORT;
    use crate::frame::{arp_announcement, unsolicited_advertisement};

    #[test]
    fn claims_are_read_from_arp_and_advertisements_only() {
        let v6 = [0x20; 16];
        let arp = arp_announcement(&PORT, [10, 1, 0, 7], [6; 6], true);
        assert_eq!(
            claimed_address(&arp),
            Some((v4_mapped([10, 1, 0, 7]), [6; 6]))
        );
        let nd = unsolicited_advertisement(&PORT, &v6, [6; 6], false);
        assert_eq!(claimed_address(&nd), Some((v6, [6; 6])));
        let without_option = &nd[..ETH_LEN + IPV6_LEN + 24];
        assert_eq!(claimed_address(without_option), Some((v6, PORT.mac)));
        for probe in [v4_mapped([10, 1, 0, 7]), v6] {
            assert_eq!(claimed_address(&address_probe(&PORT, &probe)), None);
        }
        for length in 0..ETH_LEN + IPV6_LEN + 24 {
            assert_eq!(claimed_address(&nd[..length]), None, "{length}");
        }
    }
}
