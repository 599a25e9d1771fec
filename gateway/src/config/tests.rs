use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use gateway_core::route::Table;
use gateway_model::Model;
use service::{config::Checker, xdp::Setting};

use super::*;

const GOOD: &str = r#"
[gateway]
name = "gw1"
listen = ["192.0.2.1:6180", "[2001:db8::1]:6180"]
metrics = "127.0.0.1:9180"
[relay]
hello_timeout = 0.5
[[tenant]]
name = "acme"
connections = 100
[[backend]]
name = "director"
addresses = ["198.51.100.5:443", "[2001:db8::5]:443"]
proxy = true
[[route]]
name = "Director.example.net"
backend = "director"
[[route]]
below = "acme.example.net"
protocols = ["h2"]
tenant = "acme"
backend = "director"
[[circuit]]
id = "0123456789abcdef"
tenant = "acme"
keys = ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "//ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("test.toml")).map_err(|error| error.to_string())
}

#[test]
fn a_good_file_is_accepted_with_defaults() {
    let config = parse(GOOD).expect("good");
    assert_eq!(config.local.times.hello, Duration::from_millis(500));
    assert_eq!(config.local.times.dial, Duration::from_secs(3));
    assert_eq!(config.local.times.idle, Duration::from_secs(600));
    assert_eq!(config.local.drain, Duration::from_secs(30));
    assert_eq!(
        config.local.control_socket,
        Path::new("/run/causeway-gateway/gateway.sock")
    );
    assert_eq!(
        (config.local.connections, config.local.per_source),
        (None, 256)
    );
    let circuits = &config.local.circuits;
    assert_eq!(
        (circuits.lifetime, circuits.threads),
        (Duration::from_secs(30), None)
    );
    assert_eq!(
        (circuits.xdp, &circuits.interfaces),
        (Some(Setting::Auto), &None)
    );
    assert_eq!((circuits.capacity, config.local.tenants), (4096, 4096));
    assert_eq!(config.local.state_dir, None);
    assert!(
        !format!("{config:?}").contains("AAEC"),
        "keys are not printed"
    );
    assert!(config.local.spliced);
    let model = model(&config);
    let (id, circuit) = model.circuits().next().expect("a circuit");
    assert_eq!(
        (id.get(), &*circuit.tenant),
        (0x0123_4567_89ab_cdef, "acme")
    );
    let (name, tenant) = model.tenants().next().expect("a tenant");
    assert_eq!((&**name, tenant.connections), ("acme", 100));
    assert_eq!((tenant.datagrams, tenant.bytes), (None, None));
    assert!(model.backends().all(|(_, backend)| backend.proxy));
    let ids: Vec<&str> = model.routes().map(|(id, _)| &**id).collect();
    assert_eq!(ids, ["*.acme.example.net [h2]", "director.example.net"]);
    let table = table(&model);
    let tenant_of = |name: &str| {
        let route = table.find(&hello_of(name)).expect("a route");
        route.tenant.as_deref().map(str::to_owned)
    };
    assert_eq!(tenant_of("director.example.net"), None);
    assert_eq!(tenant_of("x.acme.example.net").as_deref(), Some("acme"));
}

/// The desired state of a file.
fn model(config: &Config) -> Model {
    let mut model = Model::default();
    let mut c = Checker::new();
    let objects = config.desired.as_ref().expect("a desired state");
    let prepared = model.prepare_file(&mut c, objects, &config.local.bounds());
    drop(model.commit(c.finish(prepared).expect("good")));
    model
}

fn table(model: &Model) -> Table {
    Table::new(model.routes().map(|(_, route)| Arc::clone(route))).expect("no conflict")
}

fn hello_of(name: &str) -> gateway_core::hello::Hello {
    gateway_core::hello::Hello {
        name: Some(name.to_owned()),
        protocols: vec![b"h2".to_vec()],
        bytes: 0,
    }
}

#[test]
fn without_listen_every_address_is_listened_on() {
    let text = GOOD.replace(
        "listen = [\"192.0.2.1:6180\", \"[2001:db8::1]:6180\"]\n",
        "",
    );
    let config = parse(&text).expect("good");
    let wanted: Vec<SocketAddr> = ["0.0.0.0:6180", "[::]:6180"]
        .iter()
        .map(|a| a.parse().expect("an address"))
        .collect();
    assert_eq!(config.local.listen, wanted);
}

#[test]
fn each_problem_is_named_with_its_key() {
    for (from, to, message) in [
        (
            "name = \"gw1\"",
            "name = \"GW 1\"",
            "gateway.name: \"GW 1\" is not a name",
        ),
        (
            "\"192.0.2.1:6180\"",
            "\"192.0.2.1\"",
            "gateway.listen: \"192.0.2.1\" is not an address and a port",
        ),
        (
            "\"192.0.2.1:6180\"",
            "\"[::ffff:192.0.2.1]:6180\"",
            "write it as IPv4, 192.0.2.1",
        ),
        (
            "\"192.0.2.1:6180\"",
            "\"224.0.0.1:6180\"",
            "is not the address of a machine",
        ),
        (
            "\"192.0.2.1:6180\"",
            "\"192.0.2.1:6180\", \"0.0.0.0:6180\"",
            "0.0.0.0:6180 and 192.0.2.1:6180 accept the same connections",
        ),
        (
            "listen = [\"192.0.2.1:6180\", \"[2001:db8::1]:6180\"]",
            "listen = []",
            "gateway.listen: an empty list",
        ),
        (
            "127.0.0.1:9180",
            "192.0.2.9:9180",
            "gateway.metrics: 192.0.2.9:9180 is open to other machines",
        ),
        (
            "\"192.0.2.1:6180\"",
            "\"0.0.0.0:9180\"",
            "gateway.metrics: 127.0.0.1:9180 is an address of gateway.listen",
        ),
        (
            "[relay]",
            "control_socket = \"gw.sock\"\n[relay]",
            "gateway.control_socket: \"gw.sock\": write an absolute path",
        ),
        (
            "[relay]",
            "drain = -1\n[relay]",
            "gateway.drain: -1 seconds: write 0 to 86400",
        ),
        (
            "hello_timeout = 0.5",
            "hello_timeout = 0",
            "relay.hello_timeout: 0 seconds: write 0.1 to 60",
        ),
        (
            "hello_timeout = 0.5",
            "hello_timeout = nan",
            "relay.hello_timeout: NaN seconds",
        ),
        (
            "hello_timeout = 0.5",
            "transfer = \"teleport\"",
            "relay.transfer: \"teleport\": write \"splice\" or \"copy\"",
        ),
        (
            "hello_timeout = 0.5",
            "way = \"copy\"",
            "relay.way: the key is named relay.transfer now; write that instead",
        ),
        (
            "[relay]",
            "[limits]\nconnections = 0\n[relay]",
            "limits.connections: 0: write 1 to 1048576",
        ),
        (
            "[relay]",
            "[limits]\nper_source = -3\n[relay]",
            "limits.per_source: -3: write 1 to",
        ),
        (
            "connections = 100",
            "connections = 0",
            "tenant \"acme\": connections: 0: write 1",
        ),
        (
            "[[backend]]",
            "[[tenant]]\nname = \"acme\"\n[[backend]]",
            "tenant \"acme\": is defined twice",
        ),
        (
            "name = \"director\"",
            "name = \"\"",
            "backend \"\": name: \"\" is not a name",
        ),
        (
            "[[route]]\nname",
            "[[backend]]\nname = \"director\"\naddresses = [\"192.0.2.7:1\"]\n[[route]]\nname",
            "backend \"director\": is defined twice",
        ),
        (
            "\"198.51.100.5:443\", \"[2001:db8::5]:443\"",
            "",
            "backend \"director\": addresses: 0 addresses: write 1 to 16",
        ),
        (
            "198.51.100.5:443",
            "198.51.100.5:0",
            "\"198.51.100.5:0\": a port is 1 to 65535",
        ),
        (
            "198.51.100.5:443",
            "0.0.0.0:443",
            "0.0.0.0:443 is not an address to connect to",
        ),
        (
            "198.51.100.5:443",
            "192.0.2.1:6180",
            "192.0.2.1:6180 is an address of this gateway",
        ),
        (
            "[2001:db8::5]:443",
            "198.51.100.5:443",
            "198.51.100.5:443 is listed twice",
        ),
        (
            "Director.example.net",
            "*.example.net",
            "route \"*.example.net\": name: \"*.example.net\" is not a DNS name",
        ),
        ("Director.example.net", "192.0.2.1", "is not a DNS name"),
        (
            "name = \"Director.example.net\"",
            "",
            "route \"?\": write either name",
        ),
        (
            "below = ",
            "name = \"x.example\"\nbelow = ",
            "route \"x.example [h2]\": write either name",
        ),
        (
            "protocols = [\"h2\"]",
            "protocols = [\"\"]",
            "route \"*.acme.example.net []\": protocols: \"\": a protocol has 1",
        ),
        (
            "protocols = [\"h2\"]",
            "protocols = [\"a\", \"a\"]",
            "protocols: \"a\" is listed twice",
        ),
        (
            "tenant = \"acme\"",
            "tenant = \"acne\"",
            "route \"*.acme.example.net [h2]\": tenant: there is no tenant \"acne\"",
        ),
        (
            "tenant = \"acme\"\nbackend = \"director\"",
            "backend = \"dire\"",
            "route \"*.acme.example.net [h2]\": backend: there is no backend \"dire\"",
        ),
        (
            "[[route]]\nbelow",
            "[[route]]\nname = \"director.EXAMPLE.net\"\nbackend = \"director\"\n[[route]]\nbelow",
            "route \"director.example.net again\": route \"director.example.net\" matches the same \
             hellos",
        ),
        (
            "0123456789abcdef",
            "00000000ffffffff",
            "circuit \"00000000ffffffff\": id: write 16 hexadecimal digits, of which the 5th to \
             the 8th are not all 0",
        ),
        (
            "0123456789abcdef",
            "+123456789abcdef",
            "circuit \"+123456789abcdef\": id: write 16",
        ),
        (
            "tenant = \"acme\"\nkeys",
            "tenant = \"acne\"\nkeys",
            "circuit \"0123456789abcdef\": tenant: there is no tenant \"acne\"",
        ),
        (
            "\"//ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"",
            "",
            "circuit \"0123456789abcdef\": keys: 1 keys: write one for each side",
        ),
        (
            "//ECAwQF",
            "//ECAwQ",
            "keys: key 2 is not 32 bytes in base64",
        ),
        ("//ECAwQF", "AAECAwQF", "keys: key 2 is used twice"),
        (
            "[[circuit]]",
            "[[circuit]]\nid = \"0123456789ABCDEF\"\ntenant = \"acme\"\nkeys = []\n[[circuit]]",
            "circuit \"0123456789abcdef\": is defined twice",
        ),
        (
            "[relay]",
            "[circuits]\nlifetime = 0\n[relay]",
            "circuits.lifetime: 0 seconds: write 0.5 to 3600",
        ),
        (
            "[relay]",
            "[circuits]\nthreads = 0\n[relay]",
            "circuits.threads: 0: write 1 to 64",
        ),
        (
            "connections = 100",
            "datagrams = 0",
            "tenant \"acme\": datagrams: 0: write 1",
        ),
        (
            "connections = 100",
            "datagram_bytes = -5",
            "tenant \"acme\": datagram_bytes: -5: write 1",
        ),
        (
            "hello_timeout",
            "helo_timeout",
            "unknown field `helo_timeout`",
        ),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let error = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
        assert!(error.contains(message), "{to}: {error}");
        assert!(error.starts_with("test.toml: "), "{error}");
    }
    let no_route = &GOOD[..GOOD.find("[[route]]").expect("a route")];
    let error = parse(no_route).expect_err("no route");
    assert!(
        error.contains("route: there is no route and no circuit"),
        "{error}"
    );
    let long = GOOD.replace(
        "[relay]",
        &format!("control_socket = \"/{}\"\n[relay]", "x".repeat(107)),
    );
    let error = parse(&long).expect_err("too long");
    assert!(
        error.contains("108 bytes: the path of a socket has at most 107"),
        "{error}"
    );
    let wild = GOOD
        .replace("192.0.2.1:6180", "0.0.0.0:6180")
        .replace("198.51.100.5:443", "127.0.0.1:6180");
    let error = parse(&wild).expect_err("a loop");
    assert!(
        error.contains("127.0.0.1:6180 is an address of this gateway"),
        "{error}"
    );
}

#[test]
fn every_problem_is_listed_at_once() {
    let text = GOOD
        .replace("name = \"gw1\"", "name = \"GW\"")
        .replace("127.0.0.1:9180", "nowhere")
        .replacen("tenant = \"acme\"", "tenant = \"none\"", 1);
    let error = parse(&text).expect_err("three");
    assert!(
        error.starts_with("test.toml: 3 problems:\n  - gateway.name: "),
        "{error}"
    );
    assert_eq!(error.lines().count(), 4, "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/no-such-directory/gw.toml")).expect_err("none");
    assert!(
        error
            .to_string()
            .starts_with("cannot read /no-such-directory/gw.toml: ")
    );
}

#[test]
fn the_documented_file_is_accepted() {
    let page = include_str!("../../../docs/gateway.md");
    let file = page
        .split("```")
        .nth(1)
        .and_then(|f| f.strip_prefix("toml"));
    let file = file.expect("a file");
    let config = parse(file).expect("good");
    let model = model(&config);
    let counts = model.counts();
    assert_eq!(
        (counts.tenants, counts.backends, counts.circuits),
        (1, 2, 1)
    );
    let (_, acme) = model.tenants().next().expect("a tenant");
    assert_eq!(
        (acme.datagrams, acme.bytes),
        (Some(100_000), Some(125_000_000))
    );
    // The documented defaults are the defaults.
    let bare = parse(&GOOD.replace("hello_timeout = 0.5", "")).expect("good");
    assert_eq!(
        (config.local.times, config.local.drain),
        (bare.local.times, bare.local.drain)
    );
    assert_eq!(config.local.per_source, bare.local.per_source);
    assert_eq!(config.local.circuits.lifetime, bare.local.circuits.lifetime);
    let spelled = parse(&file.replace("\n# ", "\n")).expect("good");
    assert_eq!(spelled.local.listen, config.local.listen);
    assert_eq!(spelled.local.control_socket, config.local.control_socket);
    assert_eq!(spelled.local.tenants, config.local.tenants);
    assert_eq!(
        spelled.local.circuits.capacity,
        config.local.circuits.capacity
    );
}

#[test]
fn the_example_is_accepted() {
    let config = parse(include_str!("../../examples/gateway.toml")).expect("good");
    let counts = model(&config).counts();
    assert_eq!((counts.tenants, counts.backends), (1, 2));
}

#[test]
fn a_file_with_keys_must_not_be_readable_by_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("gw.toml");
    std::fs::write(&path, GOOD).expect("write");
    let mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, mode).expect("a file");
        Config::load(&path)
    };
    mode(0o640).expect("good");
    let remedy = format!("(mode 644): run `chmod o= {}`", path.display());
    let error = mode(0o644).expect_err("open").to_string();
    assert!(error.contains(&remedy), "{error}");
    // With the other problems.
    std::fs::write(&path, GOOD.replace("name = \"gw1\"", "name = \"GW\"")).expect("write");
    let error = mode(0o644).expect_err("open").to_string();
    assert!(error.contains("2 problems:\n  - gateway.name: "), "{error}");
    assert!(error.contains(&remedy), "{error}");
}

#[test]
fn xdp_settings_are_accepted_or_refused() {
    let with = |circuits: &str| {
        parse(&GOOD.replace("[[tenant]]", &format!("[circuits]\n{circuits}\n[[tenant]]")))
    };
    for xdp in Setting::ALL.map(Some).into_iter().chain([None]) {
        let name = xdp.map_or("off", Setting::name);
        let config = with(&format!("xdp = {name:?}")).expect("good");
        assert_eq!(config.local.circuits.xdp, xdp);
        assert_eq!(config.local.circuits.xdp_name(), name);
    }
    let config = with("xdp = \"native\"\ninterfaces = [\"eth0\", \"eth1.5\"]").expect("good");
    let names = ["eth0", "eth1.5"].map(str::to_owned).to_vec();
    assert_eq!(config.local.circuits.interfaces, Some(names));
    for (circuits, message) in [
        ("xdp = \"fast\"", "circuits.xdp: \"fast\": write"),
        (
            "interfaces = []",
            "circuits.interfaces: 0 interfaces: write 1 to 32",
        ),
        ("interfaces = [\"a/b\"]", "\"a/b\" is not an interface name"),
        (
            "interfaces = [\"0123456789abcdef\"]",
            "is not an interface name",
        ),
        (
            "interfaces = [\"eth0\", \"eth0\"]",
            "\"eth0\" is listed twice",
        ),
        (
            "xdp = \"off\"\ninterfaces = [\"eth0\"]",
            "leave one of the keys out",
        ),
    ] {
        let error = with(circuits).expect_err("bad");
        assert!(error.contains(message), "{circuits}: {error}");
    }
}

/// The default addresses work on a machine without IPv6; configured ones are not
/// changed.
#[test]
fn the_default_addresses_follow_the_families_of_the_machine() {
    let default = GOOD.replace(
        "listen = [\"192.0.2.1:6180\", \"[2001:db8::1]:6180\"]\n",
        "",
    );
    let mut config = parse(&default).expect("good");
    assert!(!config.local.drop_missing_family(|| true));
    assert_eq!(config.local.listen.len(), 2);
    assert!(config.local.drop_missing_family(|| false));
    assert_eq!(
        config.local.listen,
        ["0.0.0.0:6180".parse().expect("an address")]
    );
    let mut config = parse(GOOD).expect("good");
    assert!(!config.local.drop_missing_family(|| false));
    assert_eq!(config.local.listen.len(), 2);
}

/// The examples of both ends and of the gateway are one installation: the ends bind,
/// and the tunnel over TLS finds the provider's appliance.
#[test]
fn the_examples_bind_to_each_other() {
    use gateway_client::{
        end::{End, EndEvent},
        wire::{CircuitId, Key, Side},
    };
    use gateway_core::{
        hello::Hello,
        table::{self, Action, Change, CircuitPlan, Tenant},
    };

    let config = parse(include_str!("../../examples/gateway.toml")).expect("good");
    let examples = [
        include_str!("../../../appliance-user/examples/tenant-through-gateways.toml"),
        include_str!("../../../appliance-user/examples/provider-through-gateways.toml"),
    ];
    let [tenant, provider] = examples.map(|text| text.parse::<toml::Table>().expect("TOML"));
    let keys = [
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
    ];
    let model = model(&config);
    let mut table = table::Table::new(Key::new([1; 32]));
    let acme = Arc::new(Tenant::unlimited("acme"));
    let put = model.circuits().map(|(id, circuit)| CircuitPlan {
        id,
        tenant: Arc::clone(&acme),
        keys: circuit.keys.clone(),
    });
    table.change(Change {
        put: put.collect(),
        ..Change::default()
    });
    for (side, file) in Side::BOTH.into_iter().zip([&tenant, &provider]) {
        let mut gateways = file["gateway"].as_array().expect("gateways").iter();
        let known = gateways.any(|gateway| gateway["name"].as_str() == Some(&*config.local.name));
        assert!(known, "{} is none of its gateways", config.local.name);
        let id = file["peer"][0]["circuit"]["id"].as_str().expect("an id");
        let id = CircuitId::new(u64::from_str_radix(id, 16).expect("digits")).expect("an id");
        let key = Key::from_base64(keys[side.index()]).expect("a key");
        let mut end = End::new(id, side, key.for_gateway(&config.local.name));
        let from = table::Path {
            socket: 0,
            local: None,
            remote: ([192, 0, 2, 1], 1000 + side as u16).into(),
        };
        let mut word = end.bind(1);
        let mut heard = None;
        while !matches!(heard, Some(EndEvent::Bound(_))) {
            let Action::Answer(answer) = table.handle(Duration::ZERO, &word, &from) else {
                panic!("no answer to {side:?}");
            };
            heard = end.receive(&answer, 1);
            match heard {
                Some(EndEvent::Send(next)) => word = next,
                heard => assert!(matches!(heard, Some(EndEvent::Bound(_))), "{heard:?}"),
            }
        }
    }
    let hello = Hello {
        name: tenant["peer"][0]["tls"]["name"].as_str().map(str::to_owned),
        protocols: vec![b"causeway-tunnel/1".to_vec()],
        bytes: 0,
    };
    let routes = self::table(&model);
    let route = routes.find(&hello).expect("a route");
    let backend = model.backends().find(|(name, _)| **name == route.backend);
    let (_, backend) = backend.expect("a backend");
    let tls = &provider["tls"];
    assert_eq!(Some(backend.proxy), tls["proxy"].as_bool());
    let listen: SocketAddr = tls["listen"][0]
        .as_str()
        .expect("text")
        .parse()
        .expect("an address");
    assert!(
        backend
            .addresses
            .iter()
            .all(|at| at.port() == listen.port())
    );
}
