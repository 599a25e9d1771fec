use std::path::Path;

use service::xdp::{AttachMode, Setting};

use super::*;

const GOOD: &str = r#"
[appliance]
name = "tenant"
role = "tenant"
[uplink]
interface = "eth0"
local = ["10.1.0.5"]
mtu = 1500
[[interface]]
name = "eth1"
xdp = "auto"
[[tenant]]
name = "acme"
[[peer]]
name = "provider"
kind = "vxlan"
address = "203.0.113.5"
[[network]]
name = "net1"
tenant = "acme"
peer = "provider"
vni = 1001
interface = "eth0"
prefixes = ["10.1.0.0/24", "2001:db8:1::/64"]
gateway = ["10.1.0.1", "fe80::1"]
[[network]]
name = "net2"
tenant = "acme"
peer = "provider"
vni = 1002
interface = "eth1"
vlan = "200.101"
prefixes = ["10.2.0.0/24"]
"#;

fn problems(text: &str) -> String {
    match Config::parse(text, Path::new("test.toml")) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn good_file_is_accepted_with_defaults() {
    let config = Config::parse(GOOD, Path::new("test.toml")).expect("good");
    assert_eq!(config.uplink.port, 4789);
    assert_eq!(config.networks[1].vlan.outer_ethertype, 0x88a8);
    assert_eq!(
        config.ports(),
        BTreeMap::from([
            (
                "eth0".to_owned(),
                (Setting::Only(AttachMode::Native), Kind::Combined)
            ),
            ("eth1".to_owned(), (Setting::Auto, Kind::Access)),
        ])
    );
}

#[test]
fn each_mistake_is_named_with_its_place() {
    let cases = [
        ("name = \"tenant\"", "name = \"Tenant!\"", "is not a name"),
        (
            "role = \"tenant\"",
            "role = \"both\"",
            "write \"tenant\" or \"provider\"",
        ),
        (
            "interface = \"eth0\"\nlocal",
            "interface = \"much-too-long-name\"\nlocal",
            "not an interface name",
        ),
        (
            "local = [\"10.1.0.5\"]",
            "local = [\"10.1.0.5\", \"10.1.0.6\"]",
            "at most one address of a family",
        ),
        (
            "local = [\"10.1.0.5\"]",
            "local = [\"203.0.113.5\"]",
            "this appliance's own",
        ),
        (
            "local = [\"10.1.0.5\"]",
            "local = [\"2001:db8::5\"]",
            "uplink.local has no address of this family",
        ),
        ("mtu = 1500", "mtu = 1300", "leaves 1250, below 1280"),
        ("mtu = 1500", "mtu = 9000", "an MTU here is"),
        (
            "xdp = \"auto\"",
            "xdp = \"fast\"",
            "write \"native\", \"generic\" or \"auto\"",
        ),
        ("name = \"eth1\"", "name = \"eth7\"", "no network names it"),
        (
            "tenant = \"acme\"",
            "tenant = \"acne\"",
            "there is no [[tenant]] named \"acne\"",
        ),
        (
            "peer = \"provider\"",
            "peer = \"unknown\"",
            "there is no [[peer]] named \"unknown\"",
        ),
        (
            "address = \"203.0.113.5\"",
            "address = \"203.0.113\"",
            "not an IPv4 or IPv6 address",
        ),
        (
            "address = \"203.0.113.5\"",
            "address = \"224.0.0.5\"",
            "cannot be the end of a tunnel",
        ),
        ("vni = 1001", "vni = 16777216", "a VNI is 1 to 16777215"),
        ("vni = 1001", "vni = 1002", "of network \"net1\""),
        ("vlan = \"200.101\"", "vlan = \"4095\"", "each 1 to 4094"),
        (
            "interface = \"eth1\"\nvlan = \"200.101\"",
            "interface = \"eth0\"",
            "of network \"net1\"",
        ),
        (
            "\"10.2.0.0/24\"",
            "\"10.1.0.0/16\"",
            "overlaps 10.1.0.0/24 of network \"net1\"",
        ),
        (
            "\"10.2.0.0/24\"",
            "\"10.2.0.1/24\"",
            "has host bits: write 10.2.0.0/24",
        ),
        (
            "\"10.2.0.0/24\"",
            "\"10.2.0.0/33\"",
            "the length is 1 to 32",
        ),
        ("\"10.2.0.0/24\"", "", "write 1 to 8"),
        (
            "\"10.1.0.1\", ",
            "\"10.9.0.1\", ",
            "neither inside the network's prefixes nor link-local",
        ),
        (
            "\"fe80::1\"",
            "\"10.1.0.2\"",
            "at most one gateway of a family",
        ),
        ("vni = 1001", "vni = 1001\nvnii = 3", "unknown field"),
        ("vni = 1001", "vni = 1001\nmtu = 1460", "at most 1450"),
        (
            "[uplink]",
            "state_dir = \"here\"\n[uplink]",
            "write an absolute path",
        ),
    ];
    for (from, to, expected) in cases {
        assert!(GOOD.contains(from), "the test itself: {from}");
        let message = problems(&GOOD.replacen(from, to, 1));
        assert!(
            message.contains(expected),
            "{to}\nerror: {message}\nexpected: {expected}"
        );
    }
}

#[test]
fn all_mistakes_are_listed_at_once() {
    let text = GOOD
        .replacen("vni = 1001", "vni = 0", 1)
        .replacen("role = \"tenant\"", "role = \"x\"", 1)
        .replacen("203.0.113.5", "x", 1);
    let message = problems(&text);
    assert!(
        message.contains("vni") && message.contains("role") && message.contains("address"),
        "{message}"
    );
}

#[test]
fn a_provider_keeps_tenants_off_its_uplink() {
    let message = problems(&GOOD.replacen("role = \"tenant\"", "role = \"provider\"", 1));
    assert!(
        message.contains("need an interface of their own"),
        "{message}"
    );
}

#[test]
fn two_tenants_may_have_the_same_prefixes() {
    let text = GOOD
        .replacen("[[peer]]", "[[tenant]]\nname = \"globex\"\n[[peer]]", 1)
        .replacen(
            "name = \"net2\"\ntenant = \"acme\"",
            "name = \"net2\"\ntenant = \"globex\"",
            1,
        )
        .replacen("\"10.2.0.0/24\"", "\"10.1.0.0/24\"", 1);
    assert_eq!(problems(&text), "");
}

#[test]
fn the_examples_are_good() {
    for text in [
        include_str!("../../examples/tenant.toml"),
        include_str!("../../examples/provider.toml"),
        include_str!("../../examples/provider-through-gateways.toml"),
        include_str!("../../examples/tenant-through-gateways.toml"),
    ] {
        assert_eq!(problems(text), "");
    }
}

const ENCRYPTED: &str = r#"
[appliance]
name = "provider"
role = "provider"
[uplink]
interface = "eth0"
[tunnel]
private_key_file = "/etc/causeway/tunnel.key"
[[tenant]]
name = "acme"
[[peer]]
name = "site"
public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
[[peer]]
name = "laptop"
kind = "wireguard"
public_key = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
network = "net1"
allowed = ["10.1.0.77"]
keepalive = 25
[[network]]
name = "net1"
tenant = "acme"
peer = "site"
vni = 1001
interface = "eth1"
prefixes = ["10.1.0.0/24"]
"#;

#[test]
fn encrypted_peers_have_their_defaults() {
    let config = Config::parse(ENCRYPTED, Path::new("test.toml")).expect("good");
    let tunnel = config.tunnel.as_ref().expect("a tunnel");
    assert_eq!((tunnel.port, tunnel.workers), (6180, 1));
    assert_eq!(tunnel.cipher, CipherChoice::Auto);
    assert_eq!(config.plain_peers().count(), 0);
    let PeerKind::WireGuard {
        allowed, keepalive, ..
    } = &config.peers[1].kind
    else {
        panic!("{:?}", config.peers[1]);
    };
    assert_eq!(allowed[0].to_string(), "10.1.0.77");
    assert_eq!(*keepalive, Some(Duration::from_secs(25)));
}

#[test]
fn each_mistake_about_encryption_is_named_with_its_place() {
    let tunnel = "[tunnel]\nprivate_key_file = \"/etc/causeway/tunnel.key\"\n";
    let site = "public_key = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"\n";
    let cases = [
        (tunnel, "", "needs a [tunnel] section"),
        (
            "\"/etc/causeway/tunnel.key\"",
            "\"tunnel.key\"",
            "write an absolute path",
        ),
        (
            tunnel,
            &format!("{tunnel}port = 4789\n"),
            "which plain tunnels use",
        ),
        (
            tunnel,
            &format!("{tunnel}port = 0\n"),
            "a UDP port is 1 to 65535",
        ),
        (
            tunnel,
            &format!("{tunnel}cipher = \"rot13\"\n"),
            "write \"auto\"",
        ),
        (tunnel, &format!("{tunnel}workers = 0\n"), "write 1 to 8"),
        (tunnel, &format!("{tunnel}workers = 9\n"), "write 1 to 8"),
        (tunnel, &format!("{tunnel}workers = -1\n"), "write 1 to 8"),
        (tunnel, &format!("{tunnel}cpus = [-1]\n"), "a CPU's number"),
        (
            tunnel,
            &format!("{tunnel}waiting = \"patiently\"\n"),
            "\"wake\" or \"busy\"",
        ),
        (
            tunnel,
            &format!("{tunnel}memory = \"zero\"\n"),
            "\"copy\" or \"zero-copy\"",
        ),
        (site, "", "public_key: is missing"),
        (site, "public_key = \"AQEB\"\n", "44 characters of base64"),
        (
            "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
            "is also the key of peer \"site\"",
        ),
        (
            "role = \"provider\"",
            "role = \"tenant\"",
            "the tenant's end dials",
        ),
        (
            "kind = \"wireguard\"",
            "kind = \"openvpn\"",
            "\"wireguard\" or \"vxlan\"",
        ),
        (
            "network = \"net1\"\n",
            "",
            "write the network that the peer joins",
        ),
        (
            "network = \"net1\"",
            "network = \"net9\"",
            "there is no network \"net9\"",
        ),
        (
            "[\"10.1.0.77\"]",
            "[\"10.2.0.77\"]",
            "not inside the prefixes",
        ),
        ("[\"10.1.0.77\"]", "[]", "write 1 to"),
        ("keepalive = 25", "keepalive = 0", "1 to 65535 seconds"),
        (
            "peer = \"site\"",
            "peer = \"sight\"",
            "there is no [[peer]] named \"sight\"",
        ),
        (
            site,
            &format!("{site}allowed = [\"10.1.0.1\"]\n"),
            "has no meaning for kind",
        ),
        (
            site,
            &format!("{site}address = \"203.0.113\"\n"),
            "neither an address nor address:port",
        ),
        (
            site,
            &format!("{site}preshared_key_file = \"psk\"\n"),
            "write an absolute path",
        ),
    ];
    for (from, to, wanted) in cases {
        let text = ENCRYPTED.replace(from, to);
        assert_ne!(text, ENCRYPTED, "{from} is not in the file");
        let error = problems(&text);
        assert!(
            error.contains(wanted),
            "{to}\nerror: {error}\nexpected: {wanted}"
        );
    }
}

#[test]
fn an_address_of_two_wireguard_peers_is_named_once_with_whose_it_is() {
    let another = |allowed: &str| {
        ENCRYPTED.replace(
            "[[network]]",
            &format!(
                "[[peer]]\nname = \"phone\"\nkind = \"wireguard\"\n\
                 public_key = \"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\"\n\
                 network = \"net1\"\nallowed = {allowed}\n[[network]]"
            ),
        )
    };
    let fine = another("[\"10.1.0.78\"]");
    Config::parse(&fine, Path::new("test.toml")).expect("good");
    let error = problems(&another("[\"10.1.0.76/30\"]"));
    assert!(
        error.contains("10.1.0.76/30 overlaps 10.1.0.77 of peer \"laptop\""),
        "{error}"
    );
    let own = problems(&another("[\"10.1.0.78\", \"10.1.0.78/32\"]"));
    assert_eq!(own.matches("overlaps").count(), 1, "{own}");
}

const GATEWAYS: &str = r#"
[appliance]
name = "tenant"
role = "tenant"
[uplink]
interface = "eth0"
local = ["10.1.0.5"]
[tunnel]
private_key_file = "/etc/causeway/tunnel.key"
[gateways]
pools = ["gold"]
[[gateway]]
name = "gw1"
addresses = ["192.0.2.10:6180", "[2001:db8::10]:6180"]
pool = "gold"
load = 100
[[gateway]]
name = "gw2"
addresses = ["192.0.2.14:6180"]
[[tenant]]
name = "acme"
[[peer]]
name = "provider"
public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
circuit = { id = "3f9a1c0277d1e05b", key_file = "/etc/causeway/circuit.key" }
tls.name = "acme.gateway.example.net"
tls.fingerprint = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
[[network]]
name = "net1"
tenant = "acme"
peer = "provider"
vni = 1001
interface = "eth0"
prefixes = ["10.1.0.0/24"]
"#;

#[test]
fn a_peer_is_reached_through_the_gateways_that_are_open() {
    let config = Config::parse(GATEWAYS, Path::new("test.toml")).expect("good");
    let identity = config.peers[0].identity().expect("an encrypted peer");
    let circuit = identity.circuit.as_ref().expect("a circuit");
    assert_eq!(circuit.id.to_string(), "3f9a1c0277d1e05b");
    let tls = circuit.tls.as_ref().expect("TLS");
    assert_eq!(tls.name, "acme.gateway.example.net");
    let names = |config: &Config| {
        let list = config.gateways.list();
        let names = list.candidates().iter().map(|c| (c.name.clone(), c.tier));
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&config), [("gw1".to_owned(), 0)]);
    let text = GATEWAYS.replace("pools = [\"gold\"]", "pools = [\"gold\"]\nunpooled = true");
    let config = Config::parse(&text, Path::new("test.toml")).expect("good");
    assert_eq!(
        names(&config),
        [("gw1".to_owned(), 0), ("gw2".to_owned(), 1)]
    );
    let text = GATEWAYS.replace("[gateways]\npools = [\"gold\"]", "");
    let config = Config::parse(&text, Path::new("test.toml")).expect("good");
    assert_eq!(
        names(&config),
        [("gw2".to_owned(), 0)],
        "no pool: unpooled ones only"
    );
}

#[test]
fn gateways_may_have_names_and_several_addresses() {
    let text = GATEWAYS.replace(
        "[\"192.0.2.14:6180\"]",
        "[\"GW2.example.net:6180\", \"192.0.2.14:6180\", \"192.0.2.15:6180\"]",
    );
    let config = Config::parse(&text, Path::new("test.toml")).expect("good");
    let addresses = config.gateways.all[1].addresses.iter();
    let shown: Vec<String> = addresses.map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["gw2.example.net:6180", "192.0.2.14:6180", "192.0.2.15:6180"]
    );
}

#[test]
fn what_is_wrong_with_gateways_is_named() {
    let circuit = "circuit = { id = \"3f9a1c0277d1e05b\"";
    let tls = "tls.name = \"acme.gateway.example.net\"";
    let gw2 = "addresses = [\"192.0.2.14:6180\"]";
    for (from, to, wanted) in [
        (
            "name = \"gw2\"",
            "name = \"gw1\"",
            "gateway \"gw1\": the name is used twice",
        ),
        ("name = \"gw2\"", "name = \"GW\"", "\"GW\" is not a name"),
        (
            gw2,
            "addresses = []",
            "gateway \"gw2\": addresses: is missing",
        ),
        (
            gw2,
            "addresses = [\"192.0.2.14\"]",
            "\"192.0.2.14\" is neither an address nor a name with a port",
        ),
        (
            gw2,
            "addresses = [\"192.0.2.14:0\"]",
            "a port is 1 to 65535",
        ),
        (
            gw2,
            "addresses = [\"224.0.0.1:6180\"]",
            "224.0.0.1 cannot be the address of a gateway",
        ),
        (
            gw2,
            "addresses = [\"10.1.0.5:6180\"]",
            "10.1.0.5 is this appliance's own",
        ),
        (
            gw2,
            "addresses = [\"192.0.2.10:6180\"]",
            "192.0.2.10:6180 is also gateway \"gw1\"'s",
        ),
        (
            gw2,
            "addresses = [\"gw2.example.net\"]",
            "\"gw2.example.net\" is neither an address nor a name with a port",
        ),
        (
            gw2,
            "addresses = [\"gw2.example.net:1\", \"GW2.example.net:1\"]",
            "gateway \"gw2\": addresses: gw2.example.net:1 is listed twice",
        ),
        (
            gw2,
            "addresses = [\"192.0.2.1:1\", \"192.0.2.1:2\", \"192.0.2.1:3\", \"192.0.2.1:4\", \
             \"192.0.2.1:5\", \"192.0.2.1:6\", \"192.0.2.1:7\", \"192.0.2.1:8\", \
             \"192.0.2.1:9\"]",
            "gateway \"gw2\": addresses: 9 addresses: write 8 at most",
        ),
        (
            gw2,
            "addresses = [\"[2001:db8::1]:1\"]",
            "uplink.local has no address of the same family",
        ),
        (
            "load = 100",
            "load = 1001",
            "gateway \"gw1\": load: 1001: write 0 to 1000 thousandths",
        ),
        (
            "pools = [\"gold\"]",
            "pools = [\"silver\"]",
            "no [[gateway]] is in pool \"silver\"",
        ),
        (
            "pools = [\"gold\"]",
            "pools = [\"gold\", \"gold\"]",
            "\"gold\" is listed twice",
        ),
        (
            circuit,
            "circuit = { id = \"3f9a\"",
            "16 hexadecimal digits",
        ),
        (
            circuit,
            "circuit = { id = \"3f9a000077d1e05b\"",
            "of which the 5th to the 8th are not all 0",
        ),
        (
            "/etc/causeway/circuit.key",
            "circuit.key",
            "write an absolute path",
        ),
        (
            "public_key",
            "address = \"192.0.2.1\"\npublic_key",
            "has addresses or a circuit, not both",
        ),
        (
            tls,
            "tls.name = \"acme..net\"",
            "\"acme..net\" is not a DNS name",
        ),
        (
            "ccddeeff\"",
            "ccddee\"",
            "a fingerprint is 64 hexadecimal digits",
        ),
        (
            "fingerprint = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"",
            "fingerprint = []",
            "the list is empty",
        ),
        (
            "role = \"tenant\"",
            "role = \"provider\"",
            "gateways: a provider's appliance uses every gateway",
        ),
        (
            "role = \"tenant\"",
            "role = \"provider\"",
            "the tenant's end opens tunnels over TLS; on the provider's side write [tls] listen",
        ),
        (
            "[gateways]",
            "[tls]\nlisten = [\"0.0.0.0:6443\"]\n[gateways]",
            "only the provider's end listens for tunnels over TLS",
        ),
        (
            "name = \"gw2\"\n",
            "name = \"gw2\"\nweight = 1\n",
            "unknown field `weight`",
        ),
    ] {
        let text = GATEWAYS.replace(from, to);
        assert_ne!(text, GATEWAYS, "{from} is not in the file");
        let error = problems(&text);
        assert!(
            error.contains(wanted),
            "{to}\nerror: {error}\nexpected: {wanted}"
        );
    }
    let without = |from: &str, to: &str| {
        let (a, b) = (
            GATEWAYS.find(from).expect("there"),
            GATEWAYS.find(to).expect("there"),
        );
        format!("{}{}", &GATEWAYS[..a], &GATEWAYS[b..])
    };
    for (text, wanted) in [
        (
            without("[gateways]", "[[tenant]]"),
            "there is no [[gateway]] through which to reach it",
        ),
        (
            without("[[gateway]]\nname = \"gw2\"", "[[tenant]]").replace("pools = [\"gold\"]", ""),
            "this appliance may use no [[gateway]]",
        ),
        (
            without("circuit =", "tls.name ="),
            "give the peer a circuit as well",
        ),
        (
            GATEWAYS.replace(
                "public_key",
                "kind = \"vxlan\"\naddress = \"192.0.2.1\"\npublic_key",
            ),
            "circuit: has no meaning for kind",
        ),
    ] {
        let error = problems(&text);
        assert!(error.contains(wanted), "error: {error}\nexpected: {wanted}");
    }
}

#[test]
fn provider_listens_for_tunnels_over_tls_as_configured() {
    let listen = |listen: &str| {
        ENCRYPTED.replace(
            "[[tenant]]",
            &format!("[tls]\nlisten = {listen}\n[[tenant]]"),
        )
    };
    let config =
        Config::parse(&listen("[\"0.0.0.0:6443\"]"), Path::new("test.toml")).expect("good");
    let tls_listen = |from: Vec<IpPrefix>, proxy| TlsListen {
        listen: vec!["0.0.0.0:6443".parse().expect("an address")],
        from,
        proxy,
    };
    assert_eq!(config.tls, Some(tls_listen(Vec::new(), false)));
    let more = |more: &str| listen(&format!("[\"0.0.0.0:6443\"]\n{more}"));
    let config = Config::parse(&more("proxy = true"), Path::new("test.toml")).expect("good");
    assert_eq!(config.tls, Some(tls_listen(Vec::new(), true)));
    let text = more("from = [\"192.0.2.0/28\", \"198.51.100.10\"]\nproxy = true");
    let config = Config::parse(&text, Path::new("test.toml")).expect("good");
    let from = ["192.0.2.0/28", "198.51.100.10"].map(|net| net.parse().expect("a prefix"));
    assert_eq!(config.tls, Some(tls_listen(from.to_vec(), true)));
    // [::] accepts both families.
    for (at, from) in [
        ("[::]:6443", "192.0.2.0/28"),
        ("[::]:6443", "2001:db8::10"),
        ("192.0.2.9:6443", "192.0.2.7\", \"2001:db8::10"),
        ("192.0.2.9:6443\", \"[2001:db8::9]:6443", "2001:db8::10"),
    ] {
        let text = listen(&format!("[\"{at}\"]\nfrom = [\"{from}\"]"));
        assert_eq!(problems(&text), "", "{at}, {from}");
    }
    for (text, wanted) in [
        (
            "from = [\"192.0.2.1/28\"]",
            "tls.from: \"192.0.2.1/28\" has host bits set: write 192.0.2.0/28",
        ),
        (
            "from = [\"gw1\"]",
            "tls.from: \"gw1\" is not a prefix: write an address",
        ),
        (
            "from = [\"0.0.0.0/0\"]",
            "tls.from: 0.0.0.0/0 cannot be the source of a gateway: omit tls.from",
        ),
        (
            "from = [\"192.0.2.7\", \"192.0.2.0/28\"]",
            "tls.from: 192.0.2.0/28 and 192.0.2.7 overlap; keep the larger one",
        ),
        (
            "from = [\"2001:db8::7\", \"2001:db8::10\"]",
            "tls.from: tls.from and tls.listen share no address family",
        ),
        ("proxy = \"v2\"", "expected a boolean"),
        ("proxies = true", "unknown field `proxies`"),
    ] {
        let error = problems(&more(text));
        assert!(error.contains(wanted), "error: {error}\nexpected: {wanted}");
    }
    for (text, wanted) in [
        ("[]", "is empty: write address:port, or remove [tls]"),
        (
            "[\"0.0.0.0:6443\", \"0.0.0.0:6443\"]",
            "0.0.0.0:6443 is listed twice",
        ),
        ("[\"6443\"]", "\"6443\" is not address:port"),
        ("[\"0.0.0.0:0\"]", "\"0.0.0.0:0\" is not address:port"),
    ] {
        let error = problems(&listen(text));
        assert!(error.contains(wanted), "error: {error}\nexpected: {wanted}");
    }
}

#[test]
fn metrics_are_served_only_where_an_address_is_configured() {
    let config = Config::parse(GOOD, Path::new("test.toml")).expect("good");
    assert_eq!(config.metrics, None);
    let with = |value: &str| GOOD.replacen("[uplink]", &format!("metrics = {value}\n[uplink]"), 1);
    let config = Config::parse(&with("\"[::1]:9100\""), Path::new("test.toml")).expect("good");
    assert_eq!(config.metrics, "[::1]:9100".parse().ok());
    assert!(
        problems(&with("\"9100\""))
            .contains("appliance.metrics: \"9100\" is not address:port; write one")
    );
    let open = problems(&with("\"192.0.2.9:9100\""));
    assert!(
        open.contains("192.0.2.9:9100 is open to other machines"),
        "{open}"
    );
}
