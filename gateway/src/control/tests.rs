use serde::de::DeserializeOwned;
use service::socket::Reply;

use super::*;

/// Asserts the JSON text of a reply byte for byte, and that a client reads the same reply from it.
fn assert_golden<T>(answer: Answer, reply: &T, golden: &str)
where
    T: DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let text = serde_json::to_string_pretty(&Reply::Ok(answer)).expect("serializable");
    assert_eq!(text + "\n", golden);
    let read: Reply<T> = serde_json::from_str(golden).expect("readable");
    let Reply::Ok(read) = read else {
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

fn counts(first: usize) -> Counts {
    Counts {
        tenants: first,
        backends: first + 1,
        routes: first + 2,
        circuits: first + 3,
    }
}

fn circuits() -> CircuitsStatus {
    CircuitsStatus {
        listen: vec![socket("198.51.100.1:6180")],
        threads: 2,
        configured: 21,
        bound: 22,
        received: 23,
        overflowed: 24,
        sent: 25,
        dropped: BTreeMap::from([(text("not-bound"), 26), (text("unbound-rate"), 27)]),
        xdp: XdpStatus {
            configured: text("auto"),
            refused: Some(text("the object cannot be loaded")),
            interfaces: vec![
                InterfaceStatus {
                    name: text("eth0"),
                    mode: text("native"),
                    refused: None,
                    target: true,
                },
                InterfaceStatus {
                    name: text("eth1"),
                    mode: text("none"),
                    refused: Some(text("another program is attached")),
                    target: false,
                },
            ],
            waiting_tenants: 29,
            frames: BTreeMap::from([(text("forwarded"), 28)]),
        },
        list: Vec::new(),
    }
}

/// Every field has a value of its own, so that no two of them can be mistaken for each other.
#[test]
fn status_tenants_and_circuits_have_their_exact_text() {
    let reply = Status {
        name: text("gw1"),
        version: text("0.1.0"),
        listen: vec![socket("198.51.100.1:6180"), socket("[2001:db8::1]:6180")],
        metrics: Some(socket("127.0.0.1:9180")),
        draining: true,
        connections: 11,
        limit: 12,
        accepted: 13,
        refused: BTreeMap::from([(text("no-route"), 14)]),
        ended: BTreeMap::from([(text("closed"), 15)]),
        load: 16,
        agent: Some(agent::Status {
            name: Some("spiffe://provider.example/gateway/gw1".to_owned()),
            certificate_until: Some("2026-12-02T04:00:00Z".to_owned()),
            connected: Some("192.0.2.40:6186".to_owned()),
            error: None,
            token: None,
        }),
        desired: DesiredStatus {
            revision: 17,
            source: Source::Applied,
            counts: counts(31),
            stored: Some(true),
        },
        circuits: circuits(),
        tenants: Vec::new(),
    };
    let answer = Answer::Status(Box::new(reply.clone()));
    assert_golden(answer, &reply, include_str!("golden/status.json"));

    let tenant = |name, limit| TenantStatus {
        name: text(name),
        connections: 41,
        limit,
        relayed: 42,
        bytes_up: 43,
        bytes_down: 44,
        datagrams: 45,
        datagram_bytes: 46,
        datagrams_dropped: 47,
        circuits: 48,
        bound: 49,
    };
    let reply = Page {
        items: vec![tenant("", None), tenant("acme", Some(100))],
        next: Some(text("acme")),
    };
    let golden = include_str!("golden/tenants.json");
    assert_golden(Answer::Tenants(reply.clone()), &reply, golden);

    let reply = Page {
        items: vec![CircuitStatus {
            id: text("3f9a1c0277d1e05b"),
            tenant: text("acme"),
            bound: [Some(socket("192.0.2.7:6180")), None],
            datagrams: [51, 52],
            bytes: [53, 54],
            fast: [55, 56],
            events: BTreeMap::from([(text("binds"), 57)]),
            dropped: BTreeMap::from([(text("rate"), 58)]),
        }],
        next: None,
    };
    let golden = include_str!("golden/circuits.json");
    assert_golden(Answer::Circuits(reply.clone()), &reply, golden);
}

#[test]
fn short_replies_have_their_exact_text() {
    let reply = Brief {
        name: text("gw1"),
        draining: false,
        connections: 1,
        bound: 2,
        revision: 3,
        load: 4,
        stored: Some(true),
    };
    let golden = include_str!("golden/brief.json");
    assert_golden(Answer::Brief(reply.clone()), &reply, golden);

    let reply = UpdateReply {
        applied: Applied {
            revision: 5,
            put: counts(61),
            removed: counts(71),
        },
        stored: true,
    };
    let golden = include_str!("golden/update.json");
    assert_golden(Answer::Update(reply), &reply, golden);
}
