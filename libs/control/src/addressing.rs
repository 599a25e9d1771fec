//! Which addresses an object may have: one function for each kind of address.
//!
//! | kind of address | function |
//! |---|---|
//! | of a gateway, an appliance, a router, a tenant's public address | [`host_problem`] |
//! | range of public addresses | [`range_problem`] |
//! | prefix of a tenant's network | [`prefix_problem`] |
//! | machine of a tenant's network | [`machine_problem`] |
//!
//! Each returns the reason and what to write instead.

use std::{net::IpAddr, sync::LazyLock};

use failover::IpPrefix;

use crate::AddressRange;

/// Addresses that no host has, or that hosts of other links cannot reach (RFC 6890, RFC 4291).
const NO_HOSTS: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/127",
    // IPv4 addresses in another form: they would be given out twice.
    "::ffff:0.0.0.0/96",
    "64:ff9b::/96",
    "fe80::/10",
    "ff00::/8",
];

/// A part of the range that no host of other links can have.
fn without_hosts(range: AddressRange) -> Option<AddressRange> {
    static RANGES: LazyLock<Vec<AddressRange>> = LazyLock::new(|| {
        let texts = NO_HOSTS.iter();
        texts.filter_map(|text| text.parse().ok()).collect()
    });
    RANGES
        .iter()
        .find_map(|no_hosts| no_hosts.intersection(range))
}

/// Why no host can have this address and be reached by it from other links. `prefix` is that of its
/// link, where it is known.
pub(crate) fn host_problem(address: IpAddr, prefix: Option<&IpPrefix>) -> Option<String> {
    if without_hosts(IpPrefix::host(address).into()).is_some() {
        return Some(format!(
            "{address} is not a host address: write a unicast address"
        ));
    }
    let prefix = prefix.filter(|prefix| prefix.is_network_or_broadcast(address))?;
    Some(format!(
        "{address} is the network or broadcast address of {prefix}: write another address"
    ))
}

/// Why these cannot be public addresses of tenants: the part of the range in question, and the
/// reason. `prefix` is that of the uplink that they are in; without it, the provider's router
/// routes each of them. A range that is written as a prefix stands for a network.
pub(crate) fn range_problem(
    range: AddressRange,
    prefix: Option<&IpPrefix>,
) -> Option<(String, String)> {
    if let Some(part) = without_hosts(range) {
        let text = format!("{part} are not host addresses: write public addresses");
        return Some((part.to_string(), text));
    }
    let ends = [range.first(), range.last()];
    if let Some(prefix) = prefix {
        if let Some(outside) = ends.iter().find(|address| !prefix.contains(**address)) {
            let text = format!("{outside} is not in {prefix}: write addresses of the prefix");
            return Some((range.to_string(), text));
        }
        let end = ends.iter().find(|a| prefix.is_network_or_broadcast(**a))?;
        let text = format!("{end} is the network or broadcast address of {prefix}: leave it out");
        return Some((end.to_string(), text));
    }
    let written = range.prefix()?;
    if !written.is_network_or_broadcast(range.first()) {
        return None;
    }
    let hosts: Vec<_> = range.iter().take(2).collect();
    let (first, last) = (hosts.last()?, before(range.last()));
    let text = format!(
        "{} and {} are the network and broadcast address of {written}: write {first}-{last}, or \
         {}-{} if the provider's router routes each of them",
        range.first(),
        range.last(),
        range.first(),
        range.last()
    );
    Some((range.to_string(), text))
}

/// The address before an IPv4 address that is not the first of all.
fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).saturating_sub(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).saturating_sub(1).into()),
    }
}

/// Why this cannot be the prefix of a tenant's network.
pub(crate) fn prefix_problem(prefix: &IpPrefix) -> Option<String> {
    if prefix.length() == 0 {
        return Some(format!(
            "{prefix} has every address: write the prefix of the network"
        ));
    }
    let part = without_hosts((*prefix).into())?;
    Some(format!(
        "{prefix} has {part}, which are not host addresses: write the prefix of the network"
    ))
}

/// Why a machine cannot have this address in networks with these prefixes.
pub(crate) fn machine_problem(address: IpAddr, prefixes: &[&IpPrefix]) -> Option<String> {
    let Some(prefix) = prefixes.iter().find(|prefix| prefix.contains(address)) else {
        return Some(format!(
            "{address}, which is in no network of the plan: write an address of their prefixes, or \
             add its network"
        ));
    };
    let host = host_problem(address, Some(*prefix));
    host.map(|problem| format!("an address that it cannot have: {problem}"))
}

/// The network and broadcast address of a prefix; none for IPv6, and for 31 and 32 bits.
pub(crate) fn network_and_broadcast(prefix: &IpPrefix) -> Vec<IpAddr> {
    let range = AddressRange::from(*prefix);
    let ends = [range.first(), range.last()].into_iter();
    ends.filter(|end| prefix.is_network_or_broadcast(*end))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(range: &str, prefix: Option<&str>) -> Option<String> {
        let prefix = prefix.map(|text| text.parse().expect("a prefix"));
        let range = range.parse().expect("a range");
        range_problem(range, prefix.as_ref()).map(|(part, _)| part)
    }

    #[test]
    fn addresses_that_no_host_has_are_found_within_ranges() {
        for text in NO_HOSTS {
            assert!(text.parse::<AddressRange>().is_ok(), "{text}");
        }
        for (text, part) in [
            ("126.0.0.0-128.0.0.0", "127.0.0.0-127.255.255.255"),
            ("::ffff:192.0.2.10", "::ffff:192.0.2.10"),
            ("223.0.0.0-224.0.0.1", "224.0.0.0-224.0.0.1"),
            ("::1", "::1"),
            ("fe80::1-fe80::2", "fe80::1-fe80::2"),
        ] {
            assert_eq!(problem(text, None).as_deref(), Some(part), "{text}");
        }
        for good in [
            "192.0.2.0-192.0.2.255",
            "192.0.2.8/31",
            "2001:db8::/32",
            "10.0.0.1",
            "::2:0:0:0",
        ] {
            assert_eq!(problem(good, None), None, "{good}");
        }
    }

    #[test]
    fn a_range_has_no_network_or_broadcast_address() {
        for (range, prefix, part) in [
            ("192.0.2.0/24", None, "192.0.2.0/24"),
            ("192.0.2.0-192.0.2.9", Some("192.0.2.0/24"), "192.0.2.0"),
            ("192.0.2.9-192.0.2.255", Some("192.0.2.0/24"), "192.0.2.255"),
            ("192.0.2.0/25", Some("192.0.2.0/24"), "192.0.2.0"),
            ("192.0.3.9", Some("192.0.2.0/24"), "192.0.3.9"),
        ] {
            assert_eq!(problem(range, prefix).as_deref(), Some(part), "{range}");
        }
        assert_eq!(problem("192.0.2.64/26", Some("192.0.2.0/24")), None);
        let range = "203.0.113.16/28".parse().expect("a range");
        let (_, text) = range_problem(range, None).expect("a problem");
        assert!(text.contains("write 203.0.113.17-203.0.113.30,"), "{text}");
    }
}
