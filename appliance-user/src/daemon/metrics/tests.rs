use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::encoding::text;

use super::*;
use crate::control::{TenantStatus, WorkerStatus};

const DOCS: &str = include_str!("../../../../docs/metrics.md");

fn sample() -> Sample {
    let tunnel = serde_json::json!({
        "up": true, "transport": "udp", "gateway": "gw1", "stream": null, "public_key": "",
        "gateways": [{
            "name": "gw1", "address": "192.0.2.1:6180", "bound": true, "used": true,
            "draining": false, "down": false, "round_trip_micros": 900,
        }],
        "cipher": "aes-256-gcm", "handshake_age_seconds": 7, "handshakes": 3,
        "path_mtu": 1420, "round_trip_micros": 1500, "loss_percent": 25, "tx_packets": 10,
        "tx_bytes": 1000, "rx_packets": 20, "rx_bytes": 2000, "replays": 1, "forged": 2,
        "reassembled": 0, "reassembly_lost": 4,
    });
    let status = serde_json::json!({
        "name": "provider", "role": "provider", "version": "1.0", "ready": false,
        "not_ready": ["a reason"], "uptime_seconds": 5, "adopted": false, "pins": "",
        "tunnel_port": 0, "secure_port": 6180, "public_key": null, "local": [],
        "tls": {
            "listen": [], "fingerprint": "", "connections": 1, "refused": {"greedy-source": 14},
        },
        "interfaces": [{
            "name": "eth0", "ifindex": 2, "driver": "veth", "mac": "", "mtu": 1500, "up": true,
            "program": "uplink", "xdp_configured": "native", "xdp": "native", "adopted": false,
            "problems": [],
        }],
        "tenants": [], "networks": [{
            "name": "net1", "tenant": "acme", "vni": 1001, "peer": "site", "interface": "eth1",
            "vlan": "untagged", "mtu": 1420, "endpoints": ["10.1.0.10"], "tx_packets": 1,
            "tx_bytes": 2, "rx_packets": 3, "rx_bytes": 4,
        }],
        "peers": [{
            "name": "site", "kind": "appliance", "address": null, "ready": true,
            "detail": "up", "tunnel": tunnel,
        }],
        "neighbours": [], "user_counters": [{ "name": "send_errors", "value": 6 }],
    });
    let mut status: Status = serde_json::from_value(status).expect("a status");
    status.tenants.push(TenantStatus {
        name: "acme".to_owned(),
        mode: "full".to_owned(),
        epoch: 1,
        plan: Some("dr".to_owned()),
        rules: 2,
    });
    status.workers.push(WorkerStatus {
        index: 0,
        cpu: None,
        sealed: 1,
        delivered: 2,
        handed_over: 3,
        dropped: 4,
    });
    let counter = |name: &str, value| CounterStatus {
        name: name.to_owned(),
        value,
        help: String::new(),
    };
    Sample {
        status,
        counters: vec![counter("encapsulated", 8), counter("drop_idle", 9)],
        maps: vec![MapFill {
            map: "FLOWS",
            entries: 10,
            capacity: 131_072,
        }],
        removed: vec![("closed", 11)],
        passes: Some((13, 0.25)),
        nat_log_lost: 12,
    }
}

fn encoded(sample: Sample) -> String {
    let metrics = Metrics::default();
    metrics.set(Some(sample));
    let mut out = String::new();
    text::encode(&mut out, &metrics.registry()).expect("encoded");
    out
}

/// Series with their values, and metric names with their types.
fn parse(text: &str) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let (mut series, mut types) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').expect("a type");
            let suffix = if kind == "counter" { "_total" } else { "" };
            types.insert(format!("{name}{suffix}"), kind.to_owned());
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            let value = value.parse().expect("a number");
            assert_eq!(series.insert(name.to_owned(), value), None, "{name} twice");
        }
    }
    (series, types)
}

#[test]
fn sample_is_encoded_as_series_with_labels() {
    let text = encoded(sample());
    let (series, _) = parse(&text);
    for (name, value) in [
        ("ready", 0.0),
        ("not_ready_reasons", 1.0),
        ("maintenance", 0.0),
        ("address_conflicts", 0.0),
        ("interface_ready{interface=\"eth0\",mode=\"native\"}", 1.0),
        ("packets_total{outcome=\"encapsulated\"}", 8.0),
        ("dropped_packets_total{reason=\"idle\"}", 9.0),
        ("daemon_events_total{event=\"send_errors\"}", 6.0),
        ("tenant_mode{tenant=\"acme\",mode=\"full\"}", 1.0),
        ("tenant_mode{tenant=\"acme\",mode=\"partial\"}", 0.0),
        ("tenant_public_rules{tenant=\"acme\"}", 2.0),
        (
            "network_bytes_total{network=\"net1\",tenant=\"acme\",direction=\"rx\"}",
            4.0,
        ),
        ("network_endpoints{network=\"net1\",tenant=\"acme\"}", 1.0),
        ("peer_ready{peer=\"site\",kind=\"appliance\"}", 1.0),
        ("tunnel_up{peer=\"site\",transport=\"udp\"}", 1.0),
        ("tunnel_round_trip_seconds{peer=\"site\"}", 0.0015),
        ("tunnel_loss_ratio{peer=\"site\"}", 0.25),
        (
            "tunnel_refused_datagrams_total{peer=\"site\",reason=\"forged\"}",
            2.0,
        ),
        ("tunnel_gateways_bound{peer=\"site\"}", 1.0),
        (
            "tls_refused_connections_total{reason=\"greedy-source\"}",
            14.0,
        ),
        ("tls_refused_connections_total{reason=\"crowded\"}", 0.0),
        (
            "worker_packets_total{worker=\"0\",outcome=\"dropped\"}",
            4.0,
        ),
        ("map_entries{map=\"FLOWS\"}", 10.0),
        ("map_capacity{map=\"FLOWS\"}", 131_072.0),
        ("nat_removed_total{reason=\"closed\"}", 11.0),
        ("nat_log_lost_total", 12.0),
        ("nat_passes_total", 13.0),
        ("nat_pass_seconds", 0.25),
    ] {
        let name = format!("causeway_appliance_{name}");
        assert_eq!(series.get(&name), Some(&value), "{name} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn kernel_drops_are_counted_if_their_counters_are_there() {
    let name = "causeway_appliance_kernel_drops_counted";
    let mut sample = sample();
    let counter = CounterStatus {
        name: REDIRECT_FAILED.to_owned(),
        value: 0,
        help: String::new(),
    };
    sample.status.user_counters.push(counter);
    assert_eq!(parse(&encoded(sample)).0.get(name), Some(&1.0));
    assert_eq!(parse(&encoded(self::sample())).0.get(name), Some(&0.0));
}

fn served(metrics: &Metrics) -> BTreeMap<String, f64> {
    let mut out = String::new();
    text::encode(&mut out, &metrics.registry()).expect("encoded");
    parse(&out).0
}

#[test]
fn reloads_are_counted_from_the_start_and_no_state_is_served_before_the_first_sample() {
    let series = served(&Metrics::default());
    let names: Vec<_> = series.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "causeway_appliance_configured_timestamp_seconds",
            "causeway_appliance_reloads_total{result=\"applied\"}",
            "causeway_appliance_reloads_total{result=\"refused\"}",
            "causeway_appliance_sample_failed",
        ]
    );
}

#[test]
fn the_runtime_s_metrics_are_served() {
    let process = ProcessMetrics::default();
    let metrics = Metrics::new(process.clone());
    process.applied();
    let configured = served(&metrics)["causeway_appliance_configured_timestamp_seconds"];
    assert!(configured > 1e9, "{configured}");
}

#[test]
fn an_old_sample_is_marked_and_a_failure_begins_and_ends_once() {
    const FAILED: &str = "causeway_appliance_sample_failed";
    const AGE: &str = "causeway_appliance_sample_age_seconds";
    let metrics = Metrics::default();
    assert!(!metrics.set(Some(sample())), "no failure ends");
    assert_eq!(served(&metrics)[FAILED], 0.0);
    assert!(metrics.set(None), "one begins");
    assert!(!metrics.set(None), "it goes on");
    std::thread::sleep(std::time::Duration::from_millis(20));
    let series = served(&metrics);
    assert_eq!(series[FAILED], 1.0);
    assert!(series[AGE] >= 0.02, "{}", series[AGE]);
    assert_eq!(
        series["causeway_appliance_ready"], 0.0,
        "the old sample is served"
    );
    assert!(metrics.set(Some(sample())), "it ends");
    assert_eq!(served(&metrics)[FAILED], 0.0);
}

#[test]
fn documentation_lists_every_metric_with_its_type() {
    let (_, types) = parse(&encoded(sample()));
    let documented: BTreeMap<String, String> = DOCS
        .lines()
        .filter_map(|line| line.strip_prefix("| `causeway_appliance_"))
        .filter_map(|row| {
            let (name, rest) = row.split_once("` | ")?;
            let (kind, _) = rest.split_once(" |")?;
            Some((format!("causeway_appliance_{name}"), kind.to_owned()))
        })
        .collect();
    let of = |set: &BTreeMap<String, String>| -> BTreeSet<(String, String)> {
        set.clone().into_iter().collect()
    };
    assert_eq!(of(&types), of(&documented));
}
