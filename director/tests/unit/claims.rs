//! Stores whose claims contradict the objects, and backups whose audit was altered: they are not
//! used, by any command.

use std::{fs, path::PathBuf};

use control::Transaction;
use serde_json::{Value, json};
use store::{Export, Store as _};

use super::{
    Server,
    offline::{Site, open},
};

/// A site whose store has networks and an address, its first token, and no server.
async fn filled() -> (Site, String) {
    let site = Site::new();
    let token = site.run("init");
    let mut server = Server::of(&site.path("store")).await;
    server.admin.clone_from(&token);
    server.fill().await;
    let pool = json!({ "ranges": ["192.0.2.10-192.0.2.99"] });
    server.create("/v1/address-pools", "public", pool).await;
    let path = "/v1/tenants/acme/addresses";
    server.create(path, "a1", json!({ "pool": "public" })).await;
    server.stop().await;
    (site, token)
}

/// Changes values of the closed store below a prefix, or deletes them.
async fn damage(site: &Site, prefix: &str, change: impl Fn(&str) -> Option<String>) -> usize {
    let store = open(&site.path("store"));
    let entries = store.snapshot(prefix).await.expect("a snapshot").entries;
    let mut transaction = Transaction::default();
    for entry in entries {
        match change(&entry.value) {
            Some(value) if value == entry.value => {}
            Some(value) => drop(transaction.put.insert(entry.key, value)),
            None => drop(transaction.delete.insert(entry.key)),
        }
    }
    let count = transaction.changes().count();
    store.commit(transaction, None).await.expect("a commit");
    count
}

/// Each command that reads the store, a backup or an export of it refuses, and makes no store.
async fn all_refuse(site: &Site, text: &str) {
    let export = site.path("export");
    let store = open(&site.path("store"));
    let taken = Export::of(&store).await.expect("an export");
    taken.write_file(&export).expect("a file");
    drop(store);
    let backup = site.backup("damaged");
    let store = site.path("store");
    site.fails("check --store", text);
    let away: PathBuf = site.path("away");
    fs::rename(&store, &away).expect("renamed");
    site.fails(&format!("restore {backup}"), text);
    site.fails(&format!("import {}", export.display()), text);
    assert!(!store.exists());
    fs::rename(&away, &store).expect("renamed");
    fs::remove_file(export).expect("it is there");
    fs::remove_file(backup).expect("it is there");
}

#[tokio::test]
async fn a_store_without_its_claims_is_refused_until_they_are_made_again() {
    let (site, token) = filled().await;
    site.run("check --store");
    assert_eq!(damage(&site, "claim/", |_| None).await, 5);
    all_refuse(&site, "causeway-director repair-claims").await;
    site.fails("serve", "this claim is missing");
    let told = site.run("repair-claims");
    assert!(told.ends_with(": 5 claims written or deleted"), "{told}");
    let again = site.run("repair-claims");
    assert!(again.ends_with(": 0 claims written or deleted"), "{again}");
    site.run("check --store");

    // A further tenant gets VLANs that no other tenant has.
    let mut server = Server::of(&site.path("store")).await;
    server.admin.clone_from(&token);
    server.create("/v1/tenants", "initech", json!({})).await;
    let spec = json!({ "hardware_plan": "small" });
    let path = "/v1/tenants/initech/subscriptions";
    server.create(path, "web", spec).await;
    let mut vlans = Vec::new();
    for tenant in ["acme", "globex", "initech"] {
        let path = format!("/v1/tenants/{tenant}/networks");
        let networks = server.get(&token, &path).await.expect(200).json();
        let networks = networks["items"].as_array().expect("a list").clone();
        vlans.extend(networks.iter().filter_map(|n| n["status"]["vlan"].as_u64()));
    }
    vlans.sort_unstable();
    assert_eq!(vlans, [101, 102, 103, 104, 105, 106]);
    let audit = server.get(&token, "/v1/audit?limit=1000").await.expect(200);
    assert!(audit.text.contains("claims.repair"), "{}", audit.text);
}

#[tokio::test]
async fn claims_of_other_objects_are_refused_and_made_again() {
    let (site, _) = filled().await;
    let rename = |value: &str| Some(value.replace("\"globex\"", "\"acme\""));
    assert_eq!(damage(&site, "claim/", rename).await, 2);
    all_refuse(&site, "contradict the objects (2 times)").await;
    site.fails("serve", "contradict the objects");
    site.run("repair-claims");
    site.run("check --store");
}

#[tokio::test]
async fn networks_with_one_vlan_are_refused_and_not_repaired() {
    let (site, _) = filled().await;
    let change = |value: &str| {
        let mut network: Value = serde_json::from_str(value).expect("JSON");
        network["status"]["vlan"] = 101.into();
        Some(network.to_string())
    };
    damage(&site, "network/globex/", change).await;
    site.fails("serve", "both have");
    site.fails("repair-claims", "contradict each other");
}

#[tokio::test]
async fn an_altered_audit_is_neither_restored_nor_imported() {
    let (site, _) = filled().await;
    let alter = |value: &str| Some(value.replace("tenant.create", "tenant.remove"));
    assert_eq!(damage(&site, "audit/", alter).await, 2);
    all_refuse(&site, "its audit is not whole").await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_neither_restored_nor_imported() {
    let (site, _) = filled().await;
    let alter = |value: &str| Some(value.replace("\"enabled\"", "\"later\""));
    assert_eq!(damage(&site, "tenant/", alter).await, 2);
    all_refuse(&site, "cannot be read").await;
}

/// Changes the spec of objects below a prefix.
async fn edit(site: &Site, prefix: &str, change: impl Fn(&mut Value)) -> usize {
    let edited = |text: &str| {
        let mut value: Value = serde_json::from_str(text).ok()?;
        change(&mut value["spec"]);
        Some(value.to_string())
    };
    damage(site, prefix, edited).await
}

/// Objects that no change would have made, such as a rule of port 22, are refused by each command.
#[tokio::test]
async fn objects_that_break_the_rules_of_changes_are_refused() {
    let (site, token) = filled().await;
    let mut server = Server::of(&site.path("store")).await;
    server.admin.clone_from(&token);
    let pool = json!({ "ranges": ["192.0.2.200-192.0.2.210"] });
    server.create("/v1/address-pools", "second", pool).await;
    for number in [1, 2] {
        let body = json!({ "spec": { "prefixes": [format!("10.{number}.0.0/24")] } });
        let path = format!("/v1/tenants/acme/networks/web-{number}");
        let token = &server.admin;
        server
            .call(token, "PUT", &path, &[], Some(&body))
            .await
            .expect(200);
    }
    let rule = json!({ "public_ip": "192.0.2.10", "public_port": 443, "internal_ip": "10.1.0.10" });
    server.create("/v1/tenants/acme/rules", "r", rule).await;
    server.stop().await;
    site.run("check --store");

    let port = |value: Value| move |spec: &mut Value| spec["public_port"] = value.clone();
    for (prefix, change, text) in [
        (
            "rule/acme/r",
            Box::new(port(json!("20-30"))) as Box<dyn Fn(&mut Value)>,
            "contains port 22",
        ),
        (
            "rule/acme/r",
            Box::new(port(json!(22))),
            "rule \"r\" of tenant \"acme\"",
        ),
        (
            "network/acme/web-2",
            Box::new(|spec| spec["prefixes"] = json!(["10.1.0.0/16"])),
            "overlaps 10.1.0.0/16 of network \"web-2\"",
        ),
        (
            "network/acme/web-1",
            Box::new(|spec| spec["prefixes"] = json!([])),
            "internal_ip: 10.1.0.10 is in no network",
        ),
        (
            "address-pool/second",
            Box::new(|spec| spec["ranges"] = json!(["192.0.2.50-192.0.2.60"])),
            "of pool \"second\"",
        ),
    ] {
        let store = open(&site.path("store"));
        let before = store.snapshot(prefix).await.expect("a snapshot").entries;
        drop(store);
        assert_eq!(edit(&site, prefix, change).await, 1);
        all_refuse(&site, text).await;
        site.fails("serve", text);
        let restored = |_: &str| Some(before[0].value.clone());
        assert_eq!(damage(&site, prefix, restored).await, 1);
        site.run("check --store");
    }
}
