//! Two tenants with the same subnet behind one provider appliance.

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use causeway_tests::{
    packet::ip,
    site::{ENCRYPTED, Site, frames, holds},
};

const TENANTS: [&str; 2] = ["acme", "globex"];

/// A mark that is in no other bytes.
fn mark(tenant: &str, part: &str) -> Vec<u8> {
    format!("<<{tenant}:{part}:5f0e2c>>").into_bytes()
}

#[test]
fn equal_subnets_never_meet() {
    let Some(site) = Site::two_tenants() else {
        return;
    };
    never_meet(&site);
}

#[test]
fn equal_subnets_never_meet_on_one_encrypted_port() {
    let Some(site) = Site::raise(lab::sites::two_tenants, ENCRYPTED) else {
        return;
    };
    never_meet(&site);
    let provider = site.status("provider-appliance");
    assert_eq!(provider["secure_port"], 6180, "{provider}");
    for peer in provider["peers"].as_array().into_iter().flatten() {
        assert_eq!(peer["tunnel"]["up"], true, "{peer}");
    }
}

fn never_meet(site: &Site) {
    let hosts = |tenant: &str| ["prod-a", "prod-b", "replica-a"].map(|h| format!("{tenant}-{h}"));
    let captures: BTreeMap<String, (&str, lab::Capture)> = TENANTS
        .into_iter()
        .flat_map(|t| hosts(t).map(|h| (t, h)))
        .map(|(t, h)| {
            let capture = site.sniff(&h, "eth0");
            (h, (t, capture))
        })
        .collect();
    // One after the other, so that for a while only one tenant is failed over.
    for tenant in TENANTS {
        site.over(&format!("{tenant}-prod-a"));
        for other in TENANTS {
            let from = format!("{other}-prod-b");
            site.reach(&from, "10.1.0.10");
            site.reach(&from, "2001:db8:1::10");
        }
    }
    for (replica, production) in [
        ("10.1.0.10", "10.1.0.11"),
        ("2001:db8:1::10", "2001:db8:1::11"),
    ] {
        // The same addresses and ports at the same time; only the content differs.
        let ends: Vec<_> = TENANTS
            .iter()
            .map(|t| {
                (
                    *t,
                    site.udp(&format!("{t}-prod-b"), production, 6000),
                    site.udp(&format!("{t}-replica-a"), replica, 6000),
                )
            })
            .collect();
        for round in 0..50 {
            for (tenant, here, there) in &ends {
                let out = mark(tenant, &format!("out{round}"));
                let back = mark(tenant, &format!("back{round}"));
                here.send_to(&out, SocketAddr::new(ip(replica), 6000))
                    .unwrap_or_else(|e| panic!("{tenant}: {e}"));
                there
                    .send_to(&back, SocketAddr::new(ip(production), 6000))
                    .unwrap_or_else(|e| panic!("{tenant}: {e}"));
            }
            for (tenant, here, there) in &ends {
                for (socket, expected) in [
                    (there, mark(tenant, &format!("out{round}"))),
                    (here, mark(tenant, &format!("back{round}"))),
                ] {
                    let mut buffer = [0; 200];
                    let (n, _) = socket
                        .recv_from(&mut buffer)
                        .unwrap_or_else(|e| panic!("{tenant}, round {round}: {e}"));
                    assert_eq!(
                        String::from_utf8_lossy(&buffer[..n]),
                        String::from_utf8_lossy(&expected),
                        "{tenant} received a packet of the other tenant"
                    );
                }
            }
        }
    }
    for tenant in TENANTS {
        site.tcp(
            &format!("{tenant}-prod-b"),
            &format!("{tenant}-replica-a"),
            "10.1.0.10",
            2 << 20,
        );
    }
    // One machine fails back; the other stays failed over.
    site.back("acme-prod-a");
    site.reach("acme-prod-b", "10.1.0.10");
    site.reach("globex-prod-b", "10.1.0.10");
    assert_eq!(
        site.neighbours("acme-prod-b").get(&ip("10.1.0.10")),
        Some(&site.mac("acme-prod-a", "eth0")),
        "acme's machine is itself again"
    );
    thread::sleep(Duration::from_millis(200));

    let mut own = BTreeMap::new();
    for (host, (tenant, capture)) in captures {
        for frame in frames(capture) {
            for other in TENANTS {
                if holds(&frame, format!("<<{other}:").as_bytes()) {
                    assert_eq!(
                        other,
                        tenant,
                        "{host} saw a packet of {other}:\n{}",
                        causeway_tests::dump::hex(&frame)
                    );
                    *own.entry(host.clone()).or_insert(0) += 1;
                }
            }
        }
    }
    println!("marked frames seen, all of the own tenant: {own:?}");
    for tenant in TENANTS {
        assert!(
            own.get(&format!("{tenant}-replica-a"))
                .is_some_and(|n| *n >= 200),
            "the captures saw the traffic: {own:?}"
        );
    }
}
