//! Guests with the address checks of real clients (systemd-networkd, dhcpcd, `arping -D`, the
//! kernel's duplicate address detection) behind switches that snoop multicast or inspect ARP by a
//! table of bindings.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    packet::ip,
    series,
    site::{PLAIN, SHORT_TIMEOUT, Site, frames},
};

const A: &str = "10.1.0.10";
const A6: &str = "2001:db8:1::10";
const TENANT: &str = "tenant-appliance";
const PROVIDER: &str = "provider-appliance";

fn ask(site: &Site, host: &str, words: &[&str]) {
    let appliance = site.appliance(host).unwrap_or_else(|e| panic!("{e}"));
    appliance.must(words).unwrap_or_else(|e| panic!("{e}"));
}

fn power(site: &Site, host: &str, on: bool) {
    site.power(host, on)
        .unwrap_or_else(|e| panic!("{host}: {e}"));
}

/// Switches snoop multicast from now on, each of their bridges as a querier: groups reach only the
/// ports that reported them.
fn snoop(site: &Site) {
    const SCRIPT: &str = "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 || exit 1
        for b in $(ip -o link show type bridge | cut -d' ' -f2 | tr -d :); do
            sysctl -qw net.ipv6.conf.$b.disable_ipv6=0 || exit 1
            ip link set $b type bridge mcast_snooping 1 mcast_querier 1 \
                mcast_query_response_interval 100 mcast_startup_query_interval 100 || exit 1
        done";
    for switch in &site.topology().switches {
        site.ok(&switch.name, &["sh", "-c", SCRIPT]);
    }
    // The first queries are answered within a second; from then on the bridges filter.
    thread::sleep(Duration::from_millis(3500));
}

/// The group of an address's solicitations, as `bridge mdb` writes it.
fn solicited_node(address: Ipv6Addr) -> String {
    let [.., a, b, c] = address.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low).to_string()
}

/// Whether an untagged frame tells a host at `own` MAC address that `address` is another's:
/// RFC 4862 section 5.4.
fn is_conflict(frame: &[u8], own: &str, address: Ipv6Addr) -> bool {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    let Some(packet) = frame.get(14..78).filter(|p| p[6] == 58) else {
        return false;
    };
    // The target link-layer address says where it is; a probe is its sender's.
    let mac = match packet[40] {
        ADVERTISEMENT => frame.get(80..86).unwrap_or(&frame[6..12]),
        SOLICITATION if packet[8..24] == [0; 16] => &frame[6..12],
        _ => return false,
    };
    let mac: Vec<String> = mac.iter().map(|b| format!("{b:02x}")).collect();
    frame[12..14] == [0x86, 0xdd] && mac.join(":") != own && packet[48..64] == address.octets()
}

/// Boots a host whose kernel checks its IPv6 address. Returns the capture of all that it hears
/// since, and fails if the kernel gave the address up.
fn boot(site: &Site, host: &str) -> lab::Capture {
    site.ok(host, &["ip", "link", "set", "eth0", "up"]);
    let capture = site.sniff(host, "eth0");
    power(site, host, true);
    site.wait_for_dad(host).unwrap_or_else(|e| panic!("{e}"));
    holds(site, host);
    capture
}

/// Fails unless the kernel of a host uses its IPv6 address.
fn holds(site: &Site, host: &str) {
    let shown = site.ok(host, &["ip", "-6", "address", "show", "dev", "eth0"]);
    let line = shown.lines().find(|line| line.contains(A6));
    let line = line.unwrap_or_else(|| panic!("{host} lost {A6}:\n{shown}"));
    for flag in ["dadfailed", "tentative"] {
        assert!(!line.contains(flag), "{host}: {line}");
    }
}

/// Fails if a host lost its IPv6 address, or heard that it is another's.
fn kept(site: &Site, host: &str, capture: lab::Capture) {
    holds(site, host);
    let own = site.mac(host, "eth0");
    let address: Ipv6Addr = A6.parse().expect("an address");
    let heard = frames(capture);
    let conflict = heard.iter().find(|f| is_conflict(f, &own, address));
    assert_eq!(conflict, None, "{host} must give up {A6}");
}

#[test]
fn an_ipv6_guest_keeps_its_address_in_failover_and_failback_behind_snooping_switches() {
    let options = lab::Options { dad: true, ..PLAIN };
    let Some(site) = Site::raise(lab::sites::partial, options) else {
        return;
    };
    snoop(&site);
    for host in [PROVIDER, TENANT] {
        ask(&site, host, &["mode", "partial"]);
    }
    let change = |host, verb| {
        ask(&site, host, &["endpoint", verb, "--network", "net1", A6]);
    };
    let rounds = series::length("CAUSEWAY_GUEST_ROUNDS", 1, 50);
    for round in 0..=rounds {
        // In every second round the replica boots before the appliance knows of it.
        let production = site.sniff("prod-a", "eth0");
        site.reach("prod-b", A6);
        kept(&site, "prod-a", production);
        power(&site, "prod-a", false);
        let early = round % 2 == 0;
        if early {
            change(PROVIDER, "add");
        }
        let replica = boot(&site, "replica-a");
        if !early {
            change(PROVIDER, "add");
        }
        change(TENANT, "add");
        // The group of its solicitations leads to the appliance's port only by a report.
        site.ok("prod-b", &["ip", "neigh", "flush", "dev", "eth0"]);
        site.reach("prod-b", A6);
        if early {
            let (switch, _) = site.topology().port_of(TENANT, "eth0").expect("a port");
            let groups = site.ok(&switch, &["bridge", "mdb", "show"]);
            let group = solicited_node(A6.parse().expect("an address"));
            assert!(groups.contains(&group), "{group} is not in:\n{groups}");
        }
        change(TENANT, "remove");
        change(PROVIDER, "remove");
        // It hears all rounds of announcements.
        thread::sleep(Duration::from_secs(3));
        kept(&site, "replica-a", replica);
        power(&site, "replica-a", false);
        let production = boot(&site, "prod-a");
        site.reach("prod-b", A6);
        kept(&site, "prod-a", production);
    }
}

#[test]
fn an_ipv6_guest_keeps_its_address_in_full_failover_behind_snooping_switches() {
    let options = lab::Options { dad: true, ..PLAIN };
    let Some(site) = Site::raise(lab::sites::full, options) else {
        return;
    };
    snoop(&site);
    let rounds = series::length("CAUSEWAY_GUEST_ROUNDS", 1, 50);
    for _ in 0..rounds {
        // A test of the plan: the replica boots while the tenant is idle, and hears the switch.
        let replica = boot(&site, "replica-a");
        site.mode_full("acme").unwrap_or_else(|e| panic!("{e}"));
        site.reach("replica-a", "2001:db8:1::1");
        kept(&site, "replica-a", replica);
        power(&site, "replica-a", false);
        // Again, in a mode that is in force.
        let replica = boot(&site, "replica-a");
        site.reach("replica-a", "2001:db8:1::1");
        kept(&site, "replica-a", replica);
        site.mode_idle("acme").unwrap_or_else(|e| panic!("{e}"));
        power(&site, "replica-a", false);
    }
}

/// A program that configures a host with both addresses, after it has checked that no other host
/// uses them (RFC 5227 and RFC 4862).
#[derive(Clone, Copy)]
struct Client {
    name: &'static str,
    /// Runs it in the foreground, in a mount namespace of its own.
    script: &'static str,
    /// A part of its output once it has checked the IPv4 address.
    checked: &'static str,
    /// Parts of its output when another host uses an address.
    conflicts: &'static [&'static str],
}

/// Directories and a read-only /sys of its own, as in a container: without udev.
const NETWORKD: Client = Client {
    name: "networkd",
    script: "set -e
        mount --make-rprivate /
        mount -o remount,bind,ro /sys
        mount -t tmpfs tmpfs /run/systemd
        mkdir -p /run/systemd/network /run/systemd/netif
        mkdir /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
        chown -R systemd-network:systemd-network /run/systemd/netif
        cat > /run/systemd/network/10-guest.network <<END
[Match]
Name=eth0
[Network]
IPv6AcceptRA=no
IPv6DuplicateAddressDetection=1
[Address]
Address=$A/24
DuplicateAddressDetection=both
[Address]
Address=$A6/64
END
        SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console
        export SYSTEMD_LOG_LEVEL SYSTEMD_LOG_TARGET
        exec /usr/lib/systemd/systemd-networkd",
    checked: "Successfully claimed address",
    conflicts: &["onflict", "Duplicate", "dadfailed"],
};

const DHCPCD: Client = Client {
    name: "dhcpcd",
    script: "set -e
        mount --make-rprivate /
        mkdir -p /run/dhcpcd /var/lib/dhcpcd
        mount -t tmpfs tmpfs /run/dhcpcd
        mount -t tmpfs tmpfs /var/lib/dhcpcd
        cat > /run/dhcpcd/guest.conf <<END
noipv6rs
noipv4ll
interface eth0
static ip_address=$A/24
static ip6_address=$A6/64
END
        exec dhcpcd --nobackground --debug --script /bin/true \
            --config /run/dhcpcd/guest.conf eth0",
    checked: "DAD completed for 10.1.0.10",
    conflicts: &["claims", "DAD detected"],
};

/// As scripts of network interfaces do.
const ARPING: Client = Client {
    name: "arping",
    script: "set -e
        arping -D -I eth0 -c 3 $A
        ip address add $A/24 dev eth0
        ip address add $A6/64 dev eth0
        exec sleep infinity",
    checked: "Received 0 response(s)",
    conflicts: &["reply from"],
};

/// A client in a host.
struct Configured {
    client: Client,
    process: lab::Process,
    log: PathBuf,
}

impl Client {
    /// Starts it in a host, and waits until the host uses the addresses.
    fn start(self, site: &Site, host: &str, round: u64) -> Configured {
        // Without the addresses that the host keeps while it is off.
        site.ok(host, &["ip", "address", "flush", "dev", "eth0"]);
        site.ok(host, &["ip", "link", "set", "eth0", "up"]);
        let name = format!("{}-{host}-{round}", self.name);
        let script = self.script.replace("$A6", A6).replace("$A", A);
        let words = ["unshare", "--mount", "sh", "-c", &script];
        let process = site.spawn(host, &name, &words);
        let configured = Configured {
            client: self,
            process: process.unwrap_or_else(|e| panic!("{host}: {e}")),
            log: site.log_path(&name),
        };
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let shown = site.ok(host, &["ip", "address", "show", "dev", "eth0"]);
            let has = |address: &str| {
                let mut lines = shown.lines();
                lines.any(|line| line.contains(address) && !line.contains("tentative"))
            };
            if has(&format!("{A}/")) && has(&format!("{A6}/")) {
                return configured;
            }
            let log = configured.log();
            assert!(Instant::now() < until, "{host}:\n{shown}\n{log}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Configured {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("its log")
    }

    /// Ends it; fails if it checked nothing, or saw another user of an address.
    fn stop(self, site: &Site, host: &str) {
        let shown = site.ok(host, &["ip", "address", "show", "dev", "eth0"]);
        for address in [A, A6] {
            let mut lines = shown.lines();
            let line = lines.find(|line| line.contains(&format!("{address}/")));
            let line = line.unwrap_or_else(|| panic!("{host} lost {address}:\n{shown}"));
            assert!(!line.contains("dadfailed"), "{host}: {line}");
        }
        let stopped = self.process.stop(SHORT_TIMEOUT);
        stopped.unwrap_or_else(|e| panic!("{host}: {e}"));
        let log = self.log();
        assert!(log.contains(self.client.checked), "{log}");
        let conflict = self
            .client
            .conflicts
            .iter()
            .find_map(|word| log.lines().find(|line| line.contains(word)));
        assert_eq!(conflict, None, "{host}");
        site.ok(host, &["ip", "address", "flush", "dev", "eth0"]);
        power(site, host, false);
    }
}

/// A guest that a client configures keeps its addresses in failover and failback.
fn keeps_its_addresses(client: Client) {
    let options = lab::Options { dad: true, ..PLAIN };
    let Some(site) = Site::raise(lab::sites::partial, options) else {
        return;
    };
    for host in [PROVIDER, TENANT] {
        ask(&site, host, &["mode", "partial"]);
    }
    let change = |host, verb| {
        for address in [A, A6] {
            let words = ["endpoint", verb, "--network", "net1", address];
            ask(&site, host, &words);
        }
    };
    let reach = || [A, A6].iter().for_each(|to| site.reach("prod-b", to));
    let rounds = series::length("CAUSEWAY_GUEST_ROUNDS", 1, 50);
    power(&site, "prod-a", false);
    for round in 0..=rounds {
        let early = round % 2 == 0;
        if early {
            change(PROVIDER, "add");
        }
        let replica = client.start(&site, "replica-a", round);
        if !early {
            change(PROVIDER, "add");
        }
        change(TENANT, "add");
        reach();
        // The addresses return before the replica is off, as after a test: it hears all rounds of
        // announcements.
        change(TENANT, "remove");
        change(PROVIDER, "remove");
        thread::sleep(Duration::from_secs(3));
        replica.stop(&site, "replica-a");
        let production = client.start(&site, "prod-a", round);
        reach();
        production.stop(&site, "prod-a");
    }
}

#[test]
fn a_guest_of_systemd_networkd_keeps_its_addresses_in_failover_and_failback() {
    keeps_its_addresses(NETWORKD);
}

#[test]
fn a_guest_of_dhcpcd_keeps_its_addresses_in_failover_and_failback() {
    keeps_its_addresses(DHCPCD);
}

#[test]
fn a_guest_that_asks_by_arping_keeps_its_addresses_in_failover_and_failback() {
    keeps_its_addresses(ARPING);
}

/// The provider's switch forwards ARP of the appliance's port only with bindings of address and MAC
/// that are in its table, as `ip arp inspection` does.
#[test]
fn arp_inspection_by_bindings_at_the_provider_needs_the_port_to_be_trusted() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("replica-a", "10.1.0.11");
    let (switch, _) = site.topology().port_of(PROVIDER, "eth1").expect("a port");
    let mac = site.mac(PROVIDER, "eth1");
    // The gateway's address is bound to the appliance; of the machines at the other site no
    // binding was learned.
    let rules = format!(
        "table netdev inspection {{\nchain port {{\n\
         type filter hook ingress device b101 priority 0;\n\
         arp saddr ip 10.1.0.1 arp saddr ether {mac} counter accept\n\
         ether type arp counter drop\n\
         }}\n}}\n"
    );
    site.ok(&switch, &["nft", &rules]);
    let flush = || {
        site.ok("replica-a", &["ip", "neigh", "flush", "dev", "eth0"]);
    };
    flush();
    site.unreachable("replica-a", "10.1.0.11");
    // The appliance asks with the gateway's address, whose binding is there: the replica is found.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let neighbours = site.status(PROVIDER)["neighbours"].to_string();
        if neighbours.contains(A) {
            break;
        }
        assert!(Instant::now() < until, "{neighbours}");
        thread::sleep(Duration::from_millis(100));
    }
    let shown = site.ok(&switch, &["nft", "list", "table", "netdev", "inspection"]);
    println!("{shown}");
    assert!(!shown.contains("counter packets 0 bytes 0 drop"), "{shown}");
    // The port is trusted.
    site.ok(&switch, &["nft", "delete table netdev inspection"]);
    flush();
    site.reach("replica-a", "10.1.0.11");
    site.reach("prod-b", A);
}

#[test]
fn checksums_that_no_switch_completes_are_named_in_full_failover() {
    let Some(site) = Site::raise(lab::sites::full, PLAIN) else {
        return;
    };
    site.boot_replicas("acme").unwrap_or_else(|e| panic!("{e}"));
    site.mode_full("acme").unwrap_or_else(|e| panic!("{e}"));
    let server = "198.51.100.80";
    site.reach("replica-a", server);
    let warnings = || site.status(PROVIDER)["warnings"].to_string();
    assert!(!warnings().contains("checksum"), "{}", warnings());
    // Each hop from the replica to the appliance hands its packets over as they are.
    let (switch, port) = site.topology().port_of(PROVIDER, "eth1").expect("a port");
    for port in [port.as_str(), "b101", "t101"] {
        site.ok(&switch, &["ethtool", "-K", port, "tx", "on"]);
    }
    site.ok("replica-a", &["ethtool", "-K", "eth0", "tx", "on"]);
    let socket = site.udp("replica-a", A, 40_000);
    let server: IpAddr = ip(server);
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let sent = socket.send_to(b"a question", SocketAddr::new(server, 5353));
        sent.expect("a datagram is sent");
        let to = SocketAddr::new(server, 80);
        let refused = site.connect("replica-a", to, Duration::from_millis(300));
        assert!(refused.is_err(), "a SYN without a checksum is not received");
        let warnings = warnings();
        if warnings.contains("(checksum_partial rises)")
            && warnings.contains("(checksum_partial_udp rises)")
        {
            break;
        }
        assert!(Instant::now() < until, "{warnings}");
    }
    // A host of one tenant does not make the appliance unready for all.
    let status = site.status(PROVIDER);
    assert_eq!(status["ready"], true, "{status}");
}
