//! The audit and watches as a tenant sees them: nothing of other tenants, nor of an earlier one of
//! its name, and each read of its objects by the provider.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{Server, last_use::Ahead, people::watched};

async fn entries(server: &Server, token: &str) -> Vec<Value> {
    let audit = server.get(token, "/v1/audit?limit=1000").await.expect(200);
    audit.json()["items"].as_array().expect("a list").clone()
}

/// Operation and tenant or name of the entries of reads by a user.
async fn reads(server: &Server, token: &str, user: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = entries(server, token).await;
    let reads = all
        .iter()
        .filter(|e| e["user"] == user && e["result"]["status"] == 200);
    reads
        .filter(|e| e["changes"] == json!([]) && e["operation"] != "token.create")
        .map(|e| {
            let tenant = match e["tenant"].is_null() {
                true => &e["name"],
                false => &e["tenant"],
            };
            (text(&e["operation"]), text(tenant))
        })
        .collect()
}

#[tokio::test]
async fn a_tenant_reads_nothing_of_an_earlier_one_also_if_the_clock_was_set_back() {
    let clock = Arc::new(Ahead::default());
    clock.0.store(600, Ordering::SeqCst);
    let server = Server::start_at(Arc::<Ahead>::clone(&clock)).await;
    server.fill().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let spec = json!({ "from": "web-1", "to": "web-2" });
    let body = json!({ "name": "secret", "spec": spec });
    server
        .post(&alice, "/v1/tenants/acme/policies", body)
        .await
        .expect(201);
    clock.0.store(0, Ordering::SeqCst);
    let reason = [("x-reason", "their contract ended")];
    let path = "/v1/tenants/acme?force=true";
    let gone = server.call(&server.admin, "DELETE", path, &reason, None);
    gone.await.expect(204);
    server.create("/v1/tenants", "acme", json!({})).await;
    let bob = server.user("bob", "tenant-admin", Some("acme")).await;
    let seen = entries(&server, &bob).await;
    assert_eq!(seen[0]["operation"], "tenant.create", "{seen:?}");
    assert!(seen.iter().all(|entry| entry["name"] != "secret"));
    // A clock that is set forward hides none of its own.
    clock.0.store(700, Ordering::SeqCst);
    let own = json!({ "limits": { "objects": 7 } });
    let body = json!({ "spec": own });
    let put = server.call(&server.admin, "PUT", "/v1/tenants/acme", &[], Some(&body));
    put.await.expect(200);
    let all = entries(&server, &bob).await;
    let last = all.last().expect("an entry");
    assert_eq!(last["operation"], "tenant.replace");
}

#[tokio::test]
async fn a_tenants_entries_have_no_hashes_of_what_it_does_not_see() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let spec = json!({ "vlan_pool": "pool", "networks_with_internet": 3 });
    let body = json!({ "spec": spec });
    let path = "/v1/hardware-plans/small";
    let put = server.call(&server.admin, "PUT", path, &[], Some(&body));
    put.await.expect(200);
    let seen = entries(&server, &alice).await;
    let shared = |entry: &&Value| entry["operation"] == "hardware-plan.replace";
    assert!(seen.iter().any(|entry| shared(&entry)));
    for entry in &seen {
        assert!(entry["hash"].is_null(), "{entry}");
        assert!(entry["previous"].is_null(), "{entry}");
    }
    let all = entries(&server, &server.admin).await;
    assert!(
        all.iter()
            .all(|entry| entry["hash"].is_string() && entry["previous"].is_string())
    );
}

#[tokio::test]
async fn a_tenant_sees_each_way_in_which_the_provider_reads_its_objects() {
    for (path, operation) in [
        ("/v1/tenants/acme", "tenant.get"),
        ("/v1/tenants/acme/usage", "tenant.usage"),
    ] {
        let server = Server::with_tenants().await;
        let alice = server.user("alice", "tenant-admin", Some("acme")).await;
        let eve = server.user("eve", "provider-auditor", None).await;
        server.get(&eve, path).await.expect(200);
        let expected = [(operation.to_owned(), "acme".to_owned())];
        assert_eq!(reads(&server, &alice, "eve").await, expected, "{path}");
    }
    // A dry run shows what was there before.
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let op = server.user("op", "provider-operator", None).await;
    let body = json!({ "spec": { "prefixes": ["10.1.0.0/24"] } });
    let path = "/v1/tenants/acme/networks/web-1?dry_run=true";
    let tried = server.call(&op, "PUT", path, &[], Some(&body)).await;
    tried.expect(200);
    let expected = [("network.replace".to_owned(), "acme".to_owned())];
    assert_eq!(reads(&server, &alice, "op").await, expected);
}

#[tokio::test]
async fn a_watch_of_all_tenants_is_a_read_of_each_that_it_shows() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let eve = server.user("eve", "provider-auditor", None).await;
    let seen = watched(&server, &eve, "kind=network&from=1").await;
    assert!(seen.contains("acme") && seen.contains("globex"), "{seen}");
    let expected = [("watch".to_owned(), "acme".to_owned())];
    assert_eq!(reads(&server, &alice, "eve").await, expected);
    let both: Vec<_> = ["acme", "globex"]
        .map(|tenant| ("watch".to_owned(), tenant.to_owned()))
        .into();
    assert_eq!(reads(&server, &server.admin, "eve").await, both);
}

#[tokio::test]
async fn reads_of_more_tenants_than_a_user_may_be_refused_all_have_entries() {
    let server = Server::start().await;
    let eve = server.user("eve", "provider-auditor", None).await;
    for number in 0..30 {
        let name = format!("t{number}");
        server.create("/v1/tenants", &name, json!({})).await;
    }
    for number in 0..30 {
        let path = format!("/v1/tenants/t{number}/networks");
        server.get(&eve, &path).await.expect(200);
    }
    assert_eq!(reads(&server, &server.admin, "eve").await.len(), 30);
}

/// Refused requests for another tenant are its own user's, and no entry of the other tenant.
#[tokio::test]
async fn a_tenant_sees_no_requests_of_other_tenants_users_for_it() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let bob = server.user("bob", "tenant-admin", Some("globex")).await;
    let path = "/v1/tenants/globex";
    server
        .call(&alice, "DELETE", path, &[], None)
        .await
        .expect(404);
    let body = json!({ "name": "globex", "spec": {} });
    server.post(&alice, "/v1/tenants", body).await.expect(403);
    let of_alice = |all: &[Value]| all.iter().filter(|entry| entry["user"] == "alice").count();
    let seen = entries(&server, &bob).await;
    assert_eq!(of_alice(&seen), 0, "{seen:?}");
    let seen = entries(&server, &alice).await;
    let refused = seen
        .iter()
        .filter(|e| e["result"]["status"].as_u64() >= Some(400));
    assert_eq!(refused.count(), 2, "{seen:?}");
}

#[tokio::test]
async fn a_watch_of_itself_tells_nothing_of_tenants_of_similar_names() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let mut stream = TcpStream::connect(server.address).await.expect("a stream");
    let text = format!(
        "GET /v1/watch?kind=tenant HTTP/1.1\r\nhost: d\r\nauthorization: Bearer {alice}\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut seen = String::new();
    let mut bytes = [0; 4096];
    while !seen.contains("id: ") {
        let count = stream.read(&mut bytes).await.expect("an answer");
        seen += &String::from_utf8_lossy(&bytes[..count]);
    }
    sleep(Duration::from_millis(100)).await;
    server.create("/v1/tenants", "acme-rival", json!({})).await;
    let more = timeout(Duration::from_millis(500), stream.read(&mut bytes)).await;
    assert!(more.is_err(), "{more:?}");
    let body = json!({ "spec": { "limits": { "objects": 7 } } });
    let put = server.call(&server.admin, "PUT", "/v1/tenants/acme", &[], Some(&body));
    put.await.expect(200);
    let more = timeout(Duration::from_secs(5), stream.read(&mut bytes)).await;
    let count = more.expect("an event").expect("a stream");
    let seen = String::from_utf8_lossy(&bytes[..count]).into_owned();
    assert!(seen.contains("event: change"), "{seen}");
}

/// Runs statements on the file of a store that a director has open.
fn run_sql(server: &Server, sql: &str) {
    let other = rusqlite::Connection::open(&server.path).expect("the file");
    other.execute_batch(sql).expect("the statements");
}

#[tokio::test]
async fn the_audit_is_read_while_the_store_cannot_be_written() {
    let server = Server::with_tenants().await;
    run_sql(
        &server,
        "CREATE TRIGGER full BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'full'); END;
         CREATE TRIGGER full2 BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'full'); END;",
    );
    let body = json!({ "name": "late", "spec": {} });
    let refused = server.post(&server.admin, "/v1/tenants", body.clone());
    refused.await.expect(503);
    let path = "/v1/hosts/none";
    let refused = server.call(&server.admin, "DELETE", path, &[], None);
    refused.await.expect(404);
    let all = entries(&server, &server.admin).await;
    assert!(all.len() > 5);
    run_sql(&server, "DROP TRIGGER full; DROP TRIGGER full2;");
    let made = server.post(&server.admin, "/v1/tenants", body);
    made.await.expect(201);
    let all = entries(&server, &server.admin).await;
    let operations: Vec<_> = all.iter().map(|entry| &entry["operation"]).collect();
    assert!(
        operations.contains(&&json!("host.remove")),
        "{operations:?}"
    );
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_does_not_hide_the_others() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let before = entries(&server, &server.admin).await;
    let own = entries(&server, &alice).await;
    for text in ["{\"number\": 3, garbage \"acme\"", "\"acme\"", "{}"] {
        let text = text.replace('\'', "''");
        run_sql(
            &server,
            &format!(
                "UPDATE entries SET value = '{text}' WHERE key = 'audit/{:020}'",
                3
            ),
        );
        let after = entries(&server, &server.admin).await;
        assert_eq!(after.len(), before.len());
        assert_eq!((&after[1], &after[3]), (&before[1], &before[3]));
        let seen = entries(&server, &alice).await;
        assert_eq!(seen.len(), own.len(), "{text}");
    }
    let marked = &entries(&server, &server.admin).await[2];
    assert_eq!(marked["number"], 3);
    assert!(marked["unreadable"].is_string(), "{marked}");
}
