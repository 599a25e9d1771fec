//! Gateways by DNS name: the tunnel comes up, and follows the name to another machine.

use std::{
    thread,
    time::{Duration, Instant},
};

use causeway_tests::site::{ENCRYPTED, Site, text};

const NAME: &str = "gw1.example.net";
const APPLIANCES: [&str; 2] = ["tenant-appliance", "provider-appliance"];
/// More than two intervals of lookups.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(80);

/// The configuration with one gateway, `gw1`, by its name.
fn by_name(config: &str) -> String {
    let mut sections: Vec<String> = Vec::new();
    for line in config.lines() {
        if line.starts_with('[') || sections.is_empty() {
            sections.push(String::new());
        }
        let section = sections.last_mut().expect("pushed above");
        if line.starts_with("addresses = ") && section.starts_with("[[gateway]]") {
            *section += &format!("addresses = [\"{NAME}:6180\"]");
        } else {
            *section += line;
        }
        section.push('\n');
    }
    let others = |s: &String| !s.starts_with("[[gateway]]") || s.contains("name = \"gw1\"");
    sections.into_iter().filter(others).collect()
}

fn resolve_to(site: &Site, address: &str) {
    for appliance in APPLIANCES {
        let hosts = format!("127.0.0.1 localhost\n{address} {NAME}\n");
        site.write_hosts(appliance, &hosts)
            .unwrap_or_else(|e| panic!("{e}"));
    }
}

#[track_caller]
fn until(what: &str, site: &Site, holds: impl Fn(&serde_json::Value) -> bool) {
    let began = Instant::now();
    for appliance in APPLIANCES {
        loop {
            let status = site.status(appliance);
            if holds(&status) {
                break;
            }
            let names = &status["gateway_names"];
            assert!(
                began.elapsed() < LOOKUP_TIMEOUT,
                "{appliance}: never {what}: {names}"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn resolved(status: &serde_json::Value, address: &str) -> bool {
    let name = &status["gateway_names"][0];
    name["name"] == NAME && name["addresses"] == serde_json::json!([address])
}

fn uses(status: &serde_json::Value, address: &str) -> bool {
    let gateways = status["peers"][0]["tunnel"]["gateways"].as_array();
    let mut gateways = gateways.into_iter().flatten();
    let is_used = |g: &serde_json::Value| g["used"] == true && g["address"] == address;
    status["ready"] == true && gateways.any(is_used)
}

#[test]
fn a_tunnel_follows_the_name_of_its_gateway() {
    let Some(site) = Site::bare(lab::sites::partial_by_gateways, ENCRYPTED) else {
        return;
    };
    // The second machine is the same gateway: it has its name and its keys.
    site.configure_gateway("gw1", |config| config);
    let first = text(&site.gateway("gw1").expect("gw1").config_path());
    site.configure_gateway("gw2", |own| {
        let socket = |text: &str| {
            let mut lines = text.lines();
            let line = lines.find(|line| line.starts_with("control_socket"));
            line.expect("a control socket").to_owned()
        };
        first.replace(&socket(&first), &socket(&own))
    });
    resolve_to(&site, "192.0.2.10");
    site.start_cloud().unwrap_or_else(|e| panic!("{e}"));
    // The tenant's end is ready with the tunnel, and the provider's then. Its configuration has the
    // fingerprint of the running provider.
    let [tenant, provider] = APPLIANCES.map(|name| site.appliance(name).expect("an appliance"));
    site.configure(provider.host(), |config| by_name(&config));
    provider.launch().unwrap_or_else(|e| panic!("{e}"));
    site.configure(tenant.host(), |config| by_name(&config));
    tenant.start().unwrap_or_else(|e| panic!("{e}"));
    provider.await_ready().unwrap_or_else(|e| panic!("{e}"));
    site.over("prod-a");
    site.reach("prod-b", "10.1.0.10");
    until("at the first machine", &site, |status| {
        resolved(status, "192.0.2.10") && uses(status, "192.0.2.10:6180")
    });

    // The name has no address any more: the tunnel stays as it is.
    for appliance in APPLIANCES {
        site.write_hosts(appliance, "127.0.0.1 localhost\n")
            .unwrap_or_else(|e| panic!("{e}"));
    }
    until("a failed lookup", &site, |status| {
        let name = &status["gateway_names"][0];
        name["error"].is_string() && resolved(status, "192.0.2.10")
    });
    site.reach("prod-b", "10.1.0.10");

    // A new process uses the last addresses until DNS answers.
    tenant.kill().unwrap_or_else(|e| panic!("{e}"));
    tenant.start().unwrap_or_else(|e| panic!("{e}"));
    let status = site.status(tenant.host());
    assert!(resolved(&status, "192.0.2.10"), "{status}");
    assert_eq!(
        status["gateway_names"][0]["age_seconds"],
        serde_json::Value::Null
    );
    site.reach("prod-b", "10.1.0.10");

    // It has another address: the end stays at the first machine while that works, and moves when
    // it stops.
    resolve_to(&site, "192.0.2.14");
    until("the other address", &site, |status| {
        resolved(status, "192.0.2.14")
    });
    until("at the first machine still", &site, |status| {
        uses(status, "192.0.2.10:6180")
    });
    site.reach("prod-b", "10.1.0.10");
    site.gateway("gw1")
        .and_then(|gateway| gateway.kill())
        .unwrap_or_else(|e| panic!("{e}"));
    until("at the second machine", &site, |status| {
        uses(status, "192.0.2.14:6180")
    });
    site.reach("prod-b", "10.1.0.10");
}
