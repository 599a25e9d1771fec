use std::net::SocketAddr;

use appliance_common::limits::MAX_ENDPOINTS;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use service::{
    desired::{Position, Source},
    socket::MAX_LINE,
};

use super::*;
use crate::config::desired::Counts;
use crate::control::{
    ConflictStatus, GatewayNameStatus, GatewayStatus, InterfaceStatus, NetworkStatus,
    NotCarriedStatus, PeerStatus, Reply, RequestRefusal, StreamStatus, TenantStatus, TlsStatus,
    TunnelStatus, WorkerStatus,
};

/// Asserts the JSON of a reply, and that a client reads the same reply from it.
fn assert_wire<T>(answer: Answer, reply: &T, expected: Value)
where
    T: DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let wire = serde_json::to_value(Reply::Ok(answer)).expect("serializable");
    assert_eq!(wire, json!({ "ok": expected }));
    let read: service::socket::Reply<T> = serde_json::from_value(wire).expect("readable");
    let service::socket::Reply::Ok(read) = read else {
        panic!("an error");
    };
    assert_eq!(read, *reply);
}

macro_rules! assert_replies {
    ($($variant:ident($reply:expr) => $json:expr;)*) => {
        $(
            let reply = $reply;
            assert_wire(Answer::$variant(reply.clone()), &reply, $json);
        )*
    };
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The JSON of version 0.1 before the replies had types.
#[test]
fn replies_have_their_documented_fields() {
    let rule = Rule::from_line("web", "203.0.113.20:443/tcp -> 10.1.0.10:8443").expect("good");
    assert_replies! {
        Modes(vec![ModeStatus {
            name: "acme".to_owned(),
            mode: "full".to_owned(),
            epoch: 3,
            plan: Some("berlin".to_owned()),
            changes: None,
        }]) => json!([{
            "name": "acme", "mode": "full", "epoch": 3, "plan": "berlin", "changes": null
        }]);
        Modes(vec![ModeStatus {
            name: "acme".to_owned(),
            mode: "idle".to_owned(),
            epoch: 0,
            plan: None,
            changes: Some(vec!["a".to_owned()]),
        }]) => json!([{
            "name": "acme", "mode": "idle", "epoch": 0, "plan": null, "changes": ["a"]
        }]);
        Maintenance(MaintenanceStatus { maintenance: true }) => json!({ "maintenance": true });
        RulesAdded(RulesAdded { added: vec!["web".to_owned()] }) => json!({ "added": ["web"] });
        RulesRemoved(RulesRemoved {
            removed: vec!["web".to_owned()],
        }) => json!({ "removed": ["web"] });
        Rules(Page {
            items: vec![RuleStatus { tenant: "acme".to_owned(), rule: rule.clone() }],
            next: Some("acme web".to_owned()),
        }) => json!({ "items": [{ "tenant": "acme", "rule": rule }], "next": "acme web" });
        RulesChecked(RulesChecked {
            tenant: "acme".to_owned(),
            rules: 2,
            refused: vec!["no".to_owned()],
        }) => json!({ "tenant": "acme", "rules": 2, "refused": ["no"] });
        EndpointsAdded(EndpointsAdded {
            network: "net1".to_owned(),
            added: vec![ip("10.1.0.10")],
        }) => json!({ "network": "net1", "added": ["10.1.0.10"] });
        EndpointsRemoved(EndpointsRemoved {
            network: "net1".to_owned(),
            removed: vec![ip("2001:db8::1")],
        }) => json!({ "network": "net1", "removed": ["2001:db8::1"] });
        Endpoints(Endpoints::from([
            ("net1".to_owned(), vec![ip("10.1.0.10")]),
            ("net2".to_owned(), Vec::new()),
        ])) => json!({ "net1": ["10.1.0.10"], "net2": [] });
        Connections(Connections {
            total: 0,
            connections: Vec::new(),
        }) => json!({ "total": 0, "connections": [] });
        Applied(Applied {
            revision: 7,
            put: Counts { tenants: 1, gateways: 2, peers: 3, networks: 4 },
            removed: Counts::default(),
        }) => json!({
            "revision": 7,
            "put": { "tenants": 1, "gateways": 2, "peers": 3, "networks": 4 },
            "removed": { "tenants": 0, "gateways": 0, "peers": 0, "networks": 0 },
        });
        Done(Done::Following) => json!("following");
        Done(Done::Stopped) => json!("stopped");
        Done(Done::Reloaded) => json!("reloaded");
    }
    let refusal = Reply::Error(RequestRefusal::new("conflict", "no"));
    assert_eq!(
        serde_json::to_string(&refusal).expect("serializable"),
        r#"{"error":{"code":"conflict","message":"no"}}"#
    );
}

/// Asserts the JSON text of a reply byte for byte, and that a client reads the same reply from it.
fn assert_golden<T>(answer: Answer, reply: &T, golden: &str)
where
    T: DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let text = serde_json::to_string_pretty(&Reply::Ok(answer)).expect("serializable");
    assert_eq!(text + "\n", golden);
    let read: service::socket::Reply<T> = serde_json::from_str(golden).expect("readable");
    let service::socket::Reply::Ok(read) = read else {
        panic!("an error");
    };
    assert_eq!(read, *reply);
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// Every field has a value of its own, so that no two of them can be mistaken for each other.
fn tunnel() -> TunnelStatus {
    TunnelStatus {
        up: true,
        transport: text("tls"),
        gateway: text("gw1"),
        gateways: vec![GatewayStatus {
            name: text("gw1"),
            address: socket("192.0.2.1:6180"),
            bound: true,
            used: true,
            draining: false,
            down: false,
            round_trip_micros: Some(900),
        }],
        stream: Some(StreamStatus {
            peer: socket("192.0.2.1:6180"),
            tx_packets: 11,
            tx_bytes: 12,
            rx_packets: 13,
            rx_bytes: 14,
            dropped: 15,
        }),
        public_key: text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
        cipher: text("aes-256-gcm"),
        handshake_age_seconds: Some(7),
        handshakes: 3,
        path_mtu: 1420,
        round_trip_micros: Some(1500),
        loss_percent: 25,
        tx_packets: 21,
        tx_bytes: 22,
        rx_packets: 23,
        rx_bytes: 24,
        replays: 25,
        forged: 26,
        reassembled: 27,
        reassembly_lost: 28,
    }
}

fn interfaces() -> Vec<InterfaceStatus> {
    vec![
        InterfaceStatus {
            name: text("eth0"),
            ifindex: Some(2),
            driver: text("ixgbe"),
            mac: text("02:00:00:00:00:01"),
            mtu: 1500,
            up: true,
            program: Some(text("uplink")),
            xdp_configured: text("auto"),
            xdp: Some(text("native")),
            adopted: true,
            problems: Vec::new(),
        },
        InterfaceStatus {
            name: text("eth1"),
            ifindex: None,
            driver: String::new(),
            mac: String::new(),
            mtu: 0,
            up: false,
            program: None,
            xdp_configured: text("native"),
            xdp: None,
            adopted: false,
            problems: vec![text("there is no such interface")],
        },
    ]
}

fn status() -> Status {
    Status {
        name: text("site-one"),
        role: text("provider"),
        version: text("0.1.0"),
        ready: false,
        agent: Some(agent::Status {
            name: Some("spiffe://provider.example/tenant/acme/appliance/h1".to_owned()),
            certificate_until: Some("2026-12-02T04:00:00Z".to_owned()),
            connected: None,
            error: Some("no service address of the director answers".to_owned()),
            token: None,
        }),
        not_ready: vec![text("peer acme: no handshake yet")],
        maintenance: true,
        desired: Position {
            source: Source::Applied,
            revision: 7,
        },
        uptime_seconds: 5,
        adopted: true,
        pins: text("/sys/fs/bpf/causeway/v7"),
        tunnel_port: 4789,
        secure_port: 6180,
        public_key: Some(text("//////////////////////////////////////////8=")),
        tls: Some(TlsStatus {
            listen: vec![socket("[2001:db8::5]:6443")],
            fingerprint: text("00ff"),
            connections: 1,
            refused: BTreeMap::from([(text("no-key"), 2)]),
        }),
        local: vec![ip("203.0.113.5"), ip("2001:db8::5")],
        interfaces: interfaces(),
        tenants: vec![TenantStatus {
            name: text("acme"),
            mode: text("full"),
            epoch: 4,
            plan: Some(text("berlin")),
            rules: 6,
        }],
        networks: vec![NetworkStatus {
            name: text("office"),
            tenant: text("acme"),
            vni: 1001,
            peer: text("acme-site"),
            interface: text("eth1"),
            vlan: text("101"),
            mtu: 1420,
            endpoints: vec![ip("10.1.0.10")],
            tx_packets: 31,
            tx_bytes: 32,
            rx_packets: 33,
            rx_bytes: 34,
        }],
        not_carried: NotCarriedStatus {
            mode: text("proxy"),
            refused: vec![text("broadcast"), text("multicast")],
            dropped: 35,
        },
        peers: vec![
            PeerStatus {
                name: text("acme-site"),
                kind: text("appliance"),
                address: Some(socket("198.51.100.5:6180")),
                ready: true,
                detail: text("up"),
                tunnel: Some(tunnel()),
            },
            PeerStatus {
                name: text("globex-site"),
                kind: text("vxlan"),
                address: None,
                ready: false,
                detail: text("no route"),
                tunnel: None,
            },
        ],
        gateway_names: vec![GatewayNameStatus {
            name: text("gw1.example.net"),
            addresses: vec![ip("192.0.2.1"), ip("2001:db8::1")],
            age_seconds: Some(8),
            error: Some(text("no answer")),
        }],
        workers: vec![WorkerStatus {
            index: 1,
            cpu: Some(3),
            sealed: 41,
            delivered: 42,
            handed_over: 43,
            dropped: 44,
        }],
        neighbours: Vec::new(),
        conflicts: vec![ConflictStatus {
            address: ip("10.1.0.1"),
            network: text("office"),
            interface: text("eth1"),
            vlan: text("untagged"),
            mac: text("02:00:00:00:00:02"),
            own_mac: text("02:00:00:00:00:01"),
            age_seconds: 51,
            seen_seconds: 52,
            claims: 53,
            defences: 54,
        }],
        warnings: vec![text("eth0: GRO is on")],
        user_counters: vec![counter()],
    }
}

fn counter() -> CounterStatus {
    CounterStatus {
        name: text("drop_quota"),
        value: 61,
        help: text("Dropped: the quota is used up."),
    }
}

#[test]
fn status_counters_neighbours_and_steps_have_their_exact_text() {
    let reply = status();
    let answer = Answer::Status(Box::new(reply.clone()));
    assert_golden(answer, &reply, include_str!("golden/status.json"));

    let reply = vec![counter()];
    let golden = include_str!("golden/counters.json");
    assert_golden(Answer::Counters(reply.clone()), &reply, golden);

    let neighbour = |address, mac: Option<&str>, state| NeighbourStatus {
        network: text("office"),
        address: ip(address),
        mac: mac.map(text),
        state: text(state),
        age_seconds: 7,
    };
    let reply = Page {
        items: vec![
            neighbour("10.1.0.7", Some("02:00:00:00:00:07"), "reachable"),
            neighbour("2001:db8::7", None, "incomplete"),
        ],
        next: Some(text("1001 2001:db8::7")),
    };
    let golden = include_str!("golden/neighbours.json");
    assert_golden(Answer::Neighbours(reply.clone()), &reply, golden);

    let reply = vec![Step {
        at: 71,
        packet: text("3.72"),
        program: text("access"),
        step: text("verdict"),
        interface: text("eth1"),
        action: text("drop"),
        counted: vec![text("arp_requests"), text("drop_host_absent")],
        len: 73,
        frame: text("02:00:00:00:00:07 > ff:ff:ff:ff:ff:ff, ARP"),
    }];
    let golden = include_str!("golden/steps.json");
    assert_golden(Answer::Steps(reply.clone()), &reply, golden);
}

#[test]
fn status_says_that_broadcast_and_multicast_are_refused_in_proxy_mode() {
    let printed = crate::control::render::status(&status());
    let line = "proxy mode: broadcast and multicast between the sites are refused \
                (drop_not_carried: 35)\n";
    assert!(printed.contains(line), "{printed}");
    // An earlier daemon does not say.
    let mut earlier = serde_json::to_value(status()).expect("serializable");
    let fields = earlier.as_object_mut().expect("an object");
    fields.remove("not_carried").expect("the field");
    let earlier: Status = serde_json::from_value(earlier).expect("readable");
    assert!(!crate::control::render::status(&earlier).contains("mode:"));
}

/// The longest lists fit one reply: all endpoints of an appliance, a page of rules with the
/// longest descriptions, a page of neighbours, networks, tenants or peers.
#[test]
fn the_longest_lists_fit_one_reply() {
    let address = ip("2fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    let name = "n".repeat(64);
    let addresses = vec![address; MAX_ENDPOINTS as usize];
    let endpoints = Answer::Endpoints(Endpoints::from([(name.clone(), addresses)]));
    let rule = Rule::from_line(
        &name,
        &format!("[{address}]:65535/both -> [{address}]:65535"),
    )
    .and_then(|rule| rule.with_description(&"\u{1f600}".repeat(256)))
    .expect("good");
    let row = RuleStatus {
        tenant: name.clone(),
        rule,
    };
    let rules = Answer::Rules(Page {
        items: vec![row; RULES_PAGE],
        next: Some(name.repeat(2)),
    });
    let neighbour = NeighbourStatus {
        network: name.clone(),
        address,
        mac: Some("00:11:22:33:44:55".to_owned()),
        state: "unreachable".to_owned(),
        age_seconds: u64::MAX,
    };
    let neighbours = Answer::Neighbours(Page {
        items: vec![neighbour; NEIGHBOURS_PAGE],
        next: Some(name),
    });
    let Status {
        tenants,
        mut networks,
        peers,
        ..
    } = status();
    networks[0].endpoints = vec![address; STATUS_ENDPOINTS / STATUS_PAGE];
    let networks = Answer::Networks(Page {
        items: vec![networks[0].clone(); STATUS_PAGE],
        next: None,
    });
    let tenants = Answer::Tenants(Page {
        items: vec![tenants[0].clone(); STATUS_PAGE],
        next: None,
    });
    let peers = Answer::Peers(Page {
        items: vec![peers[0].clone(); STATUS_PAGE],
        next: None,
    });
    for list in [endpoints, rules, neighbours, networks, tenants, peers] {
        let bytes = serde_json::to_string(&list).expect("serializable").len();
        assert!((bytes as u64) < MAX_LINE / 2, "{bytes} bytes");
    }
}
