//! The section `[nat]`, and the tenants' public addresses.

use std::net::IpAddr;

use appliance_common::{limits::MAX_NAT_ADDRESSES, nat::Timeouts};
use failover::{MANAGEMENT_PORT, PortRange};
use service::config::Checker;

use super::{address, is_host, is_link_local};
use crate::config::{
    IpPrefix, LogTarget, Nat, Network, Peer, PeerKind, Role, Tenant, Tunnel, Uplink, file,
};

/// Least and largest number of connections, and of mappings, that the tables may have room for.
const TABLE_SIZES: (u32, u32) = (1024, 4_194_304);
/// Longest time that a connection may be silent, seconds: 30 days.
const MAX_SILENCE: u32 = 30 * 24 * 3600;
/// The first port that is not reserved for the system (RFC 6335 section 6).
const FIRST_PORT: u16 = 1024;

/// The section `[nat]`.
pub(super) fn check(
    c: &mut Checker,
    file: &file::Nat,
    uplink: &Uplink,
    tunnel: Option<&Tunnel>,
    peers: &[Peer],
) -> Nat {
    let mut nat = Nat::default();
    for (key, value, to) in [
        ("connections", file.connections, &mut nat.connections),
        ("mappings", file.mappings, &mut nat.mappings),
    ] {
        let Some(value) = value else { continue };
        match u32::try_from(value) {
            Ok(value) if (TABLE_SIZES.0..=TABLE_SIZES.1).contains(&value) => *to = value,
            _ => c.problem(
                format!("nat.{key}"),
                format!("{value}: write {} to {}", TABLE_SIZES.0, TABLE_SIZES.1),
            ),
        }
    }
    let plain = peers.iter().any(|p| p.plain().is_some());
    if let Some(text) = &file.own_ports {
        match text.parse::<PortRange>() {
            Ok(range) => nat.own_ports = range,
            Err(error) => c.problem("nat.own_ports", error.to_string()),
        }
    }
    nat.answer_ping = file.answer_ping.unwrap_or(nat.answer_ping);
    let own = nat.own_ports;
    if own.first() < FIRST_PORT {
        c.problem(
            "nat.own_ports",
            format!(
                "{own}: ports below {FIRST_PORT} belong to the system, {MANAGEMENT_PORT} to the \
                 appliance's management: begin at {FIRST_PORT} or above"
            ),
        );
    }
    for (key, port) in [
        ("uplink.port", plain.then_some(uplink.port)),
        ("tunnel.port", tunnel.map(|t| t.port)),
    ] {
        if let Some(port) = port.filter(|port| own.contains(*port)) {
            c.problem(
                "nat.own_ports",
                format!("{own} contains {port}, which is {key}: write a range without it"),
            );
        }
    }
    nat.log = file.log.clone().map(|path| {
        if path.as_os_str() == "daemon" {
            return LogTarget::Daemon;
        }
        if !path.is_absolute() {
            let problem = format!("{path:?}: write an absolute path, or \"daemon\"");
            c.problem("nat.log", problem);
        }
        LogTarget::File(path)
    });
    timeouts(c, file, &mut nat.timeouts);
    nat
}

/// Bounds of a timeout in seconds, and the standard that sets the least.
type Bounds = (u32, u32, &'static str);

/// The timeouts of the section `[nat]`.
fn timeouts(c: &mut Checker, file: &file::Nat, t: &mut Timeouts) {
    let transitory: Bounds = (240, MAX_SILENCE, " (RFC 5382 REQ-5)");
    let settings: [(&str, Option<i64>, Bounds, &mut u32); 7] = [
        (
            "established_seconds",
            file.established_seconds,
            (7440, MAX_SILENCE, " (RFC 5382 REQ-5)"),
            &mut t.established,
        ),
        (
            "transitory_seconds",
            file.transitory_seconds,
            transitory,
            &mut t.transitory,
        ),
        (
            "closed_seconds",
            file.closed_seconds,
            // The end that closed last sends its FIN again after one second, three and seven.
            (4, 240, ""),
            &mut t.closed,
        ),
        (
            "opening_seconds",
            file.opening_seconds,
            transitory,
            &mut t.opening,
        ),
        (
            "udp_seconds",
            file.udp_seconds,
            (120, MAX_SILENCE, " (RFC 4787 REQ-5)"),
            &mut t.udp,
        ),
        (
            "udp_short_seconds",
            file.udp_short_seconds,
            (10, 120, ""),
            &mut t.udp_short,
        ),
        (
            "icmp_seconds",
            file.icmp_seconds,
            (60, MAX_SILENCE, " (RFC 5508 REQ-1)"),
            &mut t.icmp,
        ),
    ];
    for (key, value, (least, most, standard), to) in settings {
        let Some(value) = value else { continue };
        match u32::try_from(value) {
            Ok(value) if (least..=most).contains(&value) => *to = Timeouts::seconds(value),
            _ => c.problem(
                format!("nat.{key}"),
                format!("{value}: write {least}{standard} to {most}"),
            ),
        }
    }
}

/// The tenants, with public addresses that belong to no other tenant, peer or network.
pub(super) fn tenants(
    c: &mut Checker,
    tenants: &[file::Tenant],
    role: Role,
    (uplink, peers, networks): (&Uplink, &[Peer], &[Network]),
) -> Vec<Tenant> {
    let mut out: Vec<Tenant> = Vec::new();
    for tenant in tenants {
        let at = |key: &str| format!("tenant {:?}: {key}", tenant.name);
        if role == Role::Tenant && !(tenant.public.is_empty() && tenant.nat.is_empty()) {
            c.problem(
                at("public"),
                "public addresses belong to the provider's appliance: remove public and nat",
            );
        }
        let mut public: Vec<IpPrefix> = Vec::new();
        for text in &tenant.public {
            let net: IpPrefix = match text.parse() {
                Ok(net) => net,
                Err(error) => {
                    c.problem(at("public"), failover::IpPrefixError::to_string(&error));
                    continue;
                }
            };
            if net.length() == 0 || !is_host(net.address()) || is_link_local(net.address()) {
                c.problem(at("public"), format!("{net} cannot be public addresses"));
                continue;
            }
            if let Some(other) = public.iter().find(|o| o.overlaps(&net)) {
                c.problem(at("public"), format!("{net} overlaps {other}"));
            }
            for other in &out {
                if let Some(theirs) = other.public.iter().find(|t| t.overlaps(&net)) {
                    c.problem(
                        at("public"),
                        format!("{net} overlaps {theirs} of tenant {:?}", other.name),
                    );
                }
            }
            check_overlaps(c, &at("public"), net, uplink, peers, networks);
            public.push(net);
        }
        let mut nat: Vec<IpAddr> = Vec::new();
        for text in &tenant.nat {
            let Some(address) = address(c, &at("nat"), text) else {
                continue;
            };
            if !public.iter().any(|net| net.contains(address)) {
                c.problem(
                    at("nat"),
                    format!(
                        "{address} is not one of the tenant's public addresses: add it to public, \
                         or write one that is"
                    ),
                );
            }
            if nat.contains(&address) {
                c.problem(at("nat"), format!("{address} is listed twice"));
            }
            let of_family = nat.iter().filter(|a| a.is_ipv4() == address.is_ipv4());
            if of_family.count() == MAX_NAT_ADDRESSES as usize {
                let problem = format!("write at most {MAX_NAT_ADDRESSES} addresses of a family");
                c.problem(at("nat"), problem);
            }
            nat.push(address);
        }
        out.push(Tenant {
            name: tenant.name.clone(),
            public,
            nat,
        });
    }
    out
}

/// Public addresses that overlap those of the appliance, a peer or a network.
fn check_overlaps(
    c: &mut Checker,
    at: &str,
    net: IpPrefix,
    uplink: &Uplink,
    peers: &[Peer],
    networks: &[Network],
) {
    for address in uplink.local.iter().filter(|a| net.contains(**a)) {
        c.problem(
            at,
            format!(
                "{net} contains {address}, the appliance's own (uplink.local): write the addresses \
                 around it"
            ),
        );
    }
    for peer in peers {
        let addresses: Vec<IpAddr> = match &peer.kind {
            PeerKind::Vxlan(address) => vec![*address],
            PeerKind::Appliance(identity) | PeerKind::WireGuard { identity, .. } => {
                identity.addresses.iter().map(|a| a.ip()).collect()
            }
        };
        for address in addresses.into_iter().filter(|a| net.contains(*a)) {
            c.problem(
                at,
                format!(
                    "{net} contains {address}, the address of peer {:?}: write the addresses \
                     around it",
                    peer.name
                ),
            );
        }
    }
    for network in networks {
        if let Some(prefix) = network.prefixes.iter().find(|p| p.overlaps(&net)) {
            c.problem(
                at,
                format!("{net} overlaps {prefix} of network {:?}", network.name),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    const FILE: &str = r#"
[appliance]
name = "provider"
role = "provider"
[uplink]
interface = "eth0"
local = ["192.0.2.5", "2001:db8:99::5"]
[nat]
connections = 131072
udp_seconds = 120
own_ports = "20000-30000"
closed_seconds = 20
log = "/var/log/nat.jsonl"
[[tenant]]
name = "acme"
public = ["203.0.113.16/28", "2001:db8:f::/64"]
nat = ["203.0.113.16", "2001:db8:f::1"]
[[tenant]]
name = "globex"
public = ["203.0.113.32"]
[[peer]]
name = "site"
kind = "vxlan"
address = "198.51.100.5"
[[network]]
name = "net1"
tenant = "acme"
peer = "site"
vni = 1001
interface = "eth1"
prefixes = ["10.1.0.0/24"]
gateway = ["10.1.0.1"]
[[network]]
name = "net2"
tenant = "globex"
peer = "site"
vni = 1002
interface = "eth2"
prefixes = ["10.1.0.0/24"]
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("test.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn missing_keys_have_defaults() {
        let config = parse(FILE).expect("good");
        assert_eq!(config.nat.connections, 131_072);
        assert_eq!(config.nat.mappings, 262_144);
        let file = LogTarget::File("/var/log/nat.jsonl".into());
        assert_eq!(config.nat.log, Some(file));
        let daemon = FILE.replace("/var/log/nat.jsonl", "daemon");
        let daemon = parse(&daemon).expect("good").nat.log;
        assert_eq!(daemon, Some(LogTarget::Daemon));
        assert_eq!(config.nat.own_ports.to_string(), "20000-30000");
        assert_eq!(config.nat.timeouts.udp, Timeouts::seconds(120));
        assert_eq!(config.nat.timeouts.closed, Timeouts::seconds(20));
        assert_eq!(
            config.nat.timeouts.established,
            Timeouts::default().established
        );
        let acme = config.tenant_of("acme").expect("a tenant");
        assert_eq!(acme.allocation.len(), 2);
        assert_eq!(acme.networks[0].gateways.len(), 1);
        assert_eq!(acme.other_networks, ["net2"]);
        assert_eq!(config.tenant("acme").expect("a tenant").nat.len(), 2);
        let without = FILE.split("[nat]").next().expect("a head").to_owned()
            + "[[tenant]]\n"
            + FILE.split_once("[[tenant]]\n").expect("a tail").1;
        assert_eq!(parse(&without).expect("good").nat, Nat::default());
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        let cases = [
            (
                "\"203.0.113.32\"",
                "\"203.0.113.24/29\"",
                "tenant \"globex\": public: 203.0.113.24/29 overlaps 203.0.113.16/28 of tenant \
                 \"acme\"",
            ),
            (
                "\"203.0.113.32\"",
                "\"192.0.2.0/29\"",
                "tenant \"globex\": public: 192.0.2.0/29 contains 192.0.2.5, the appliance's own \
                 (uplink.local)",
            ),
            (
                "\"203.0.113.32\"",
                "\"198.51.100.0/24\"",
                "tenant \"globex\": public: 198.51.100.0/24 contains 198.51.100.5, the address of \
                 peer \"site\"",
            ),
            (
                "\"203.0.113.32\"",
                "\"10.1.0.128/25\"",
                "tenant \"globex\": public: 10.1.0.128/25 overlaps 10.1.0.0/24 of network \"net1\"",
            ),
            (
                "\"203.0.113.32\"",
                "\"203.0.113.33/31\"",
                "has host bits set: write 203.0.113.32/31",
            ),
            (
                "\"203.0.113.32\"",
                "\"203.0.113.32\", \"203.0.113.32/31\"",
                "203.0.113.32/31 overlaps 203.0.113.32",
            ),
            (
                "\"203.0.113.32\"",
                "\"224.0.0.0/8\"",
                "224.0.0.0/8 cannot be public addresses",
            ),
            (
                "[\"203.0.113.16\", ",
                "[\"203.0.113.40\", ",
                "tenant \"acme\": nat: 203.0.113.40 is not one of the tenant's public addresses",
            ),
            (
                "[\"203.0.113.16\", ",
                "[\"203.0.113.16\", \"203.0.113.16\", ",
                "tenant \"acme\": nat: 203.0.113.16 is listed twice",
            ),
            (
                "[\"203.0.113.16\", ",
                "[\"203.0.113.16\", \"203.0.113.17\", \"203.0.113.18\", \"203.0.113.19\", \
                 \"203.0.113.20\", \"203.0.113.21\", \"203.0.113.22\", \"203.0.113.23\", \
                 \"203.0.113.24\", ",
                "tenant \"acme\": nat: write at most 8 addresses of a family",
            ),
            (
                "connections = 131072",
                "connections = 1000",
                "nat.connections: 1000: write 1024 to 4194304",
            ),
            (
                "\"/var/log/nat.jsonl\"",
                "\"nat.jsonl\"",
                "nat.log: \"nat.jsonl\": write an absolute path, or \"daemon\"",
            ),
            (
                "connections = 131072",
                "mappings = 5000000",
                "nat.mappings: 5000000: write 1024 to 4194304",
            ),
            (
                "udp_seconds = 120",
                "udp_seconds = 119",
                "nat.udp_seconds: 119: write 120 (RFC 4787 REQ-5)",
            ),
            (
                "udp_seconds = 120",
                "icmp_seconds = 59",
                "write 60 (RFC 5508 REQ-1)",
            ),
            (
                "udp_seconds = 120",
                "established_seconds = 7439",
                "write 7440 (RFC 5382 REQ-5)",
            ),
            (
                "udp_seconds = 120",
                "transitory_seconds = -1",
                "write 240 (RFC 5382 REQ-5)",
            ),
            (
                "udp_seconds = 120",
                "opening_seconds = 9999999",
                "240 (RFC 5382 REQ-5) to 2592000",
            ),
            (
                "\"20000-30000\"",
                "\"4000-5000\"",
                "4000-5000 contains 4789, which is uplink.port",
            ),
            (
                "closed_seconds = 20",
                "closed_seconds = 3",
                "nat.closed_seconds: 3: write 4 to 240",
            ),
            (
                "closed_seconds = 20",
                "closed_seconds = 241",
                "nat.closed_seconds: 241: write 4 to 240",
            ),
            (
                "udp_seconds = 120",
                "udp_short_seconds = 9",
                "nat.udp_short_seconds: 9: write 10 to 120",
            ),
            ("\"20000-30000\"", "\"500-5000\"", "begin at 1024 or above"),
            ("\"20000-30000\"", "\"30000-2\"", "write 2-30000"),
            (
                "role = \"provider\"",
                "role = \"tenant\"",
                "public addresses belong to the provider's appliance",
            ),
        ];
        for (from, to, wanted) in cases {
            let text = FILE.replacen(from, to, 1);
            assert_ne!(text, FILE, "{from} is not in the file");
            let error = parse(&text).expect_err("a mistake");
            assert!(
                error.contains(wanted),
                "{to}\nerror: {error}\nexpected: {wanted}"
            );
        }
    }
}
