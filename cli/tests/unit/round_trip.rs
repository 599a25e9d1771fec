//! An export, applied to an empty director, makes the same objects, whatever was done before.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::SystemTime,
};

use control::{KINDS, Scope};
use director::api;
use serde_json::{Value, json};

use super::Site;

/// Sequences of a run, and operations of each.
const SEQUENCES: u64 = 8;
const OPERATIONS: u64 = 250;

/// A director that is also served without TLS, so that thousands of requests are quick.
struct Source {
    site: Site,
    address: SocketAddr,
}

impl Source {
    fn start() -> Self {
        let site = Site::start();
        let router = api::router(site.director.clone());
        let address = site.runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
            let listener = listener.expect("a port");
            let address = listener.local_addr().expect("its address");
            tokio::spawn(async move {
                let _ = axum::serve(listener, router).await;
            });
            address
        });
        Self { site, address }
    }

    /// Sends a request: the status and the body.
    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: d\r\nconnection: close\r\nauthorization: Bearer \
             {}\r\nx-reason: round trip\r\ncontent-type: application/json\r\ncontent-length: \
             {}\r\n\r\n{body}",
            self.site.admin,
            body.len()
        );
        stream.write_all(text.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).expect("a status");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let body = serde_json::from_str(body).unwrap_or_default();
        (status.parse().expect("a number"), body)
    }

    fn list(&self, path: &str) -> Vec<Value> {
        let (status, body) = self.call("GET", &format!("{path}?limit=1000"), &Value::Null);
        assert_eq!(status, 200, "{path}: {body}");
        body["items"].as_array().expect("a list").clone()
    }

    /// Owner, spec and status of all objects, by path.
    fn objects(&self) -> BTreeMap<String, Value> {
        let tenants = self.list("/v1/tenants");
        let tenants: Vec<_> = tenants
            .iter()
            .filter_map(|tenant| tenant["metadata"]["name"].as_str())
            .collect();
        let mut all = BTreeMap::new();
        for info in KINDS {
            let collections = match info.scope {
                Scope::Provider => vec![info.collection("")],
                Scope::Tenant => tenants.iter().map(|of| info.collection(of)).collect(),
            };
            for collection in collections {
                for object in self.list(&collection) {
                    let name = object["metadata"]["name"].as_str().expect("a name");
                    let mut spec = object["spec"].clone();
                    if info.kind == "address" {
                        spec["address"] = object["status"]["address"].clone();
                    }
                    let owner = &object["metadata"]["owner"];
                    let kept = json!({ "owner": owner, "spec": spec, "status": object["status"] });
                    all.insert(format!("{collection}/{name}"), kept);
                }
            }
        }
        all
    }
}

/// Applies the export of a director to an empty one, and compares all objects of both.
#[track_caller]
fn round_trip(source: &Source, what: &str) {
    let export = source.site.run("export").exits(0).out;
    let file = source.site.write("export.toml", &export);
    let file = file.display().to_string();
    let diff = source.site.run(&format!("diff -f {file}"));
    assert_eq!(diff.code, 0, "{what}: {diff:#?}\n{export}");
    let target = Source::start();
    let applied = target.site.run(&format!("apply -f {file}"));
    assert_eq!(applied.code, 0, "{what}: {}\n{export}", applied.error);
    let again = target.site.run("export").exits(0).out;
    assert_eq!(again, export, "{what}");
    let (before, after) = (source.objects(), target.objects());
    for (path, object) in &before {
        assert_eq!(Some(object), after.get(path), "{what}: {path}\n{export}");
    }
    assert_eq!(before.len(), after.len(), "{what}");
    let diff = target.site.run(&format!("diff -f {file}"));
    assert_eq!(diff.code, 0, "{what}: {diff:#?}");
}

#[test]
fn disabled_tenants_limits_and_gaps_in_numbers_are_restored() {
    let source = Site::with_tenants();
    let run = |words: &str| source.run(words).exits(0);
    run(r#"address-pool create public -s ranges=["192.0.2.10-192.0.2.19"]"#);
    for name in ["one", "two"] {
        run(&format!("address create {name} -t acme -s pool=public"));
    }
    // web-1 stays, as it is in use; web-2 goes, and web-3 comes.
    let change = |words: &str| source.run(&format!("{words} --reason set-up")).exits(0);
    change(r#"network set web-1 -t acme --prefix 10.1.0.0/24 --gateway 10.1.0.1"#);
    change(r#"network set web-2 -t globex --prefix 10.1.0.0/24 --owner site"#);
    run("hardware-plan set small -s networks_with_internet=1");
    run("hardware-plan set small -s networks_with_internet=2");
    change("mapping create lan -t acme -s production=LAN -s replica=web-1");
    change("policy allow web-1 web-3 -t acme");
    run("tenant set globex --lease-ends 2020-01-01T00:00:00Z");
    run("tenant set acme -s enabled=false -s limits={\"public_addresses\":0,\"objects\":1}");
    let export = run("export").out;
    let file = source.write("export.toml", &export);
    let target = Site::start();
    target.run(&format!("apply -f {}", file.display())).exits(0);
    assert_eq!(target.run("export").exits(0).out, export);
    let networks = target.run("network list -t acme").exits(0).out;
    assert!(
        networks.contains("web-3") && !networks.contains("web-2"),
        "{networks}"
    );
    let vlans = |site: &Site| site.run("network list --all-tenants").exits(0).out;
    assert_eq!(vlans(&target), vlans(&source));
    let tenant = target.run("tenant get acme --json").exits(0).json();
    assert_eq!(
        tenant["spec"]["limits"],
        json!({ "public_addresses": 0, "objects": 1 })
    );
    // The next network has the next number there, too.
    let grown = "hardware-plan set small -s networks_with_internet=3";
    for site in [&source, &target] {
        site.run(grown).exits(0);
    }
    assert_eq!(vlans(&target), vlans(&source));
}

/// Numbers that follow from a seed (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<'v, T>(&mut self, values: &'v [T]) -> &'v T {
        &values[self.below(values.len() as u64) as usize]
    }
}

/// Objects of a tenant that its rules, policies and plans refer to.
#[derive(Default)]
struct Known {
    networks: Vec<Value>,
    addresses: Vec<Value>,
    rules: Vec<Value>,
}

impl Known {
    fn of(source: &Source, tenant: &str) -> Self {
        let list = |kind: &str| {
            let path = format!("/v1/tenants/{tenant}/{kind}?limit=1000");
            let (_, body) = source.call("GET", &path, &Value::Null);
            body["items"].as_array().cloned().unwrap_or_default()
        };
        Self {
            networks: list("networks"),
            addresses: list("addresses"),
            rules: list("rules"),
        }
    }

    /// The name of a network: mostly of one that is there.
    fn network(&self, n: &mut Numbers) -> String {
        if self.networks.is_empty() || n.one_in(6) {
            return network(n);
        }
        let found = &n.pick(&self.networks)["metadata"]["name"];
        found.as_str().expect("a name").to_owned()
    }

    /// An address of a machine: mostly within a prefix that is there.
    fn machine(&self, n: &mut Numbers) -> String {
        let prefixes = self.networks.iter().filter_map(|network| {
            let prefix = network["spec"]["prefixes"][0].as_str()?;
            prefix.strip_suffix("0/24")
        });
        let prefixes: Vec<_> = prefixes.collect();
        let last = 10 + n.below(6);
        match prefixes.is_empty() || n.one_in(6) {
            true => format!("10.{}.0.{last}", n.below(6)),
            false => format!("{}{last}", n.pick(&prefixes)),
        }
    }

    /// A public address: mostly one of the tenant's.
    fn public(&self, n: &mut Numbers) -> String {
        if self.addresses.is_empty() || n.one_in(6) {
            return format!("192.0.2.{}", 10 + n.below(80));
        }
        let found = &n.pick(&self.addresses)["status"]["address"];
        found.as_str().expect("an address").to_owned()
    }
}

/// A random spec of a kind. Many contradict what is there, and are refused.
fn spec(kind: &str, known: &Known, n: &mut Numbers) -> Value {
    let range = |n: &mut Numbers, first: u64, size: u64| {
        let first = first + n.below(size);
        format!("{first}-{}", first + n.below(size))
    };
    let maybe = |n: &mut Numbers, field: &str, value: Value, spec: &mut Value| {
        if n.one_in(2) {
            spec[field] = value;
        }
    };
    match kind {
        "host" => {
            let mut switches = vec![json!({ "name": "br0" }), json!({ "name": "br1" })];
            if n.one_in(3) {
                switches[1]["trunk"] = "shared".into();
            }
            json!({ "platform": "kvm", "switches": switches })
        }
        "vlan-pool" => {
            let (host, switch) = (n.below(2), n.below(2));
            let mut spec = json!({ "host": format!("h{host}"), "switch": format!("br{switch}"),
                "with_internet": [range(n, 100, 40)] });
            let without = json!([range(n, 300, 40)]);
            maybe(n, "without_internet", without, &mut spec);
            spec
        }
        "address-pool" => {
            let (first, size) = (10 + n.below(60), n.below(20));
            json!({ "ranges": [format!("192.0.2.{first}-192.0.2.{}", first + size)] })
        }
        "hardware-plan" => {
            let (pool, with, without) = (n.below(3), n.below(5), n.below(3));
            json!({ "vlan_pool": format!("vlan-pool-{pool}"), "networks_with_internet": with,
                "networks_without_internet": without })
        }
        "gateway" => {
            let (address, enabled, drain) = (n.below(6), !n.one_in(4), n.one_in(4));
            json!({ "addresses": [format!("203.0.113.{}", address + 1)], "enabled": enabled,
                "drain": drain })
        }
        "gateway-pool" => {
            let gateway = n.below(3);
            json!({ "gateways": [format!("gateway-{gateway}")], "description": "p" })
        }
        "tenant" => {
            let mut spec = json!({ "enabled": !n.one_in(5), "gateway_fallback": n.one_in(2) });
            if n.one_in(6) {
                spec["lease_ends"] =
                    (*n.pick(&["2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])).into();
            }
            if n.one_in(4) {
                let (addresses, objects) = (n.below(3), n.below(5));
                spec["limits"] = json!({ "public_addresses": addresses, "objects": objects });
            }
            if n.one_in(4) {
                let pool = n.below(2);
                spec["gateway_pools"] = json!([format!("gateway-pool-{pool}")]);
            }
            spec
        }
        "subscription" => {
            let plan = n.below(3);
            let mut spec = json!({ "hardware_plan": format!("hardware-plan-{plan}") });
            let (addresses, uplink) = (json!(n.below(4)), spec_uplink(n));
            maybe(n, "public_addresses", addresses, &mut spec);
            if n.one_in(3) {
                spec["appliance"] = json!({ "uplink": uplink });
            }
            spec
        }
        "network" => {
            if n.one_in(5) {
                return json!({});
            }
            let part = n.below(6);
            let mut spec = json!({ "prefixes": [format!("10.{part}.0.0/24")] });
            maybe(n, "gateways", json!([format!("10.{part}.0.1")]), &mut spec);
            spec
        }
        "appliance" => json!({ "uplink": spec_uplink(n), "description": "by hand" }),
        "address" => {
            let mut spec = json!({ "pool": format!("address-pool-{}", n.below(2)) });
            if n.one_in(3) {
                spec["address"] = format!("192.0.2.{}", 10 + n.below(80)).into();
            }
            spec
        }
        "mapping" => {
            let (production, network) = (n.below(4), known.network(n));
            json!({ "production": format!("LAN {production}"), "replica": network })
        }
        "policy" => {
            let (from, to, both) = (known.network(n), known.network(n), n.one_in(2));
            json!({ "from": from, "to": to, "both": both })
        }
        "rule" => {
            let (public, port, machine) = (known.public(n), 80 + n.below(3), known.machine(n));
            json!({ "public_ip": public, "public_port": port, "internal_ip": machine })
        }
        _ => {
            let (first, machine) = (known.network(n), n.below(4));
            let mut spec = json!({ "networks": [{ "name": first }],
                "vms": [{ "name": format!("vm{machine}") }] });
            if !known.rules.is_empty() {
                let rules = json!([n.pick(&known.rules)["metadata"]["name"]]);
                maybe(n, "rules", rules, &mut spec);
            }
            if n.one_in(2) {
                spec["vms"][0]["addresses"] = json!([known.machine(n)]);
            }
            spec
        }
    }
}

fn spec_uplink(n: &mut Numbers) -> Value {
    match n.below(3) {
        0 => json!({ "method": "dhcp" }),
        _ => json!({ "method": "static", "address": format!("198.51.100.{}", 10 + n.below(4)),
            "prefix_length": 24, "router": "198.51.100.1" }),
    }
}

fn network(n: &mut Numbers) -> String {
    format!("subscription-{}-{}", n.below(3), 1 + n.below(6))
}

/// Makes a random change: whether the director accepted it.
fn operate(source: &Source, n: &mut Numbers) -> bool {
    let info = n.pick(KINDS);
    let tenant = format!("tenant-{}", n.below(3));
    let collection = info.collection(&tenant);
    let known = match info.kind {
        "network" | "mapping" | "policy" | "rule" | "plan" => Known::of(source, &tenant),
        _ => Known::default(),
    };
    let name = match info.kind {
        "network" => known.network(n),
        "host" | "appliance" => format!("h{}", n.below(2)),
        kind => format!("{kind}-{}", n.below(3)),
    };
    let mut body = json!({ "spec": spec(info.kind, &known, n) });
    if n.one_in(6) {
        body["owner"] = (*n.pick(&["site", "other"])).into();
    }
    let one = format!("{collection}/{name}?force={}", n.one_in(4));
    let (status, answer) = match n.below(10) {
        0 => source.call("DELETE", &one, &Value::Null),
        1..5 => source.call("PUT", &format!("{one}&take_over=true"), &body),
        _ => {
            body["name"] = name.into();
            source.call("POST", &collection, &body)
        }
    };
    assert!(status < 500 || status == 507, "{one}: {status} {answer}");
    status < 300
}

#[test]
fn any_sequence_of_changes_survives_a_round_trip() {
    let clock = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.expect("a time").as_nanos() as u64
    };
    let given = std::env::var("CAUSEWAY_SEED").ok();
    let seed = given.map_or_else(clock, |text| text.parse().expect("a number"));
    println!("CAUSEWAY_SEED={seed}");
    let mut accepted = 0;
    for sequence in 0..SEQUENCES {
        let what = format!("CAUSEWAY_SEED={seed}, sequence {sequence}");
        let mut numbers = Numbers(seed.wrapping_add(sequence.wrapping_mul(0x9e37_79b9)) | 1);
        let source = Source::start();
        // Each kind after those that it refers to, so that there is something to change.
        for info in KINDS {
            for name in 0..3 {
                let tenant = format!("tenant-{}", numbers.below(3));
                let known = Known::of(&source, &tenant);
                let spec = spec(info.kind, &known, &mut numbers);
                let name = match info.kind {
                    "host" => format!("h{name}"),
                    kind => format!("{kind}-{name}"),
                };
                let body = json!({ "name": name, "spec": spec });
                source.call("POST", &info.collection(&tenant), &body);
            }
        }
        let mut done = 0;
        for _ in 0..OPERATIONS {
            done += u64::from(operate(&source, &mut numbers));
        }
        accepted += done;
        round_trip(&source, &what);
    }
    println!(
        "{accepted} changes of {} were accepted",
        SEQUENCES * OPERATIONS
    );
    assert!(accepted > SEQUENCES * OPERATIONS / 20, "{accepted}");
}
