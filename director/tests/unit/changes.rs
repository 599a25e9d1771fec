//! Changes: revisions, dry runs, repeated requests, refusals, and the audit.

use director::audit::{self, Head, Trust};
use serde_json::{Value, json};
use store::{Options, Sqlite, Store as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Duration, timeout},
};

use super::Server;

#[tokio::test]
async fn a_change_names_the_revision_that_it_is_made_on() {
    let server = Server::with_tenants().await;
    let path = "/v1/hardware-plans/small";
    let before = server.get(&server.admin, path).await.expect(200);
    let tag = before.header("etag").expect("a tag").to_owned();
    let body = json!({ "spec": { "vlan_pool": "pool", "networks_with_internet": 3 } });
    let put = async |tag: &str| {
        let headers = [("if-match", tag)];
        server
            .call(&server.admin, "PUT", path, &headers, Some(&body))
            .await
    };
    put("\"1\"").await.expect(412);
    let after = put(&tag).await.expect(200);
    assert_ne!(after.header("etag"), Some(tag.as_str()));
    put(&tag).await.expect(412);
    let again = server.get(&server.admin, path).await.expect(200);
    assert_eq!(again.json(), after.json());
    assert_eq!(again.json()["metadata"]["generation"], 2);
    let networks = server
        .get(&server.admin, "/v1/tenants/acme/networks")
        .await
        .json();
    assert_eq!(
        networks["items"].as_array().expect("a list").len(),
        3,
        "it has grown in use"
    );
}

#[tokio::test]
async fn a_dry_run_tells_the_differences_and_changes_nothing() {
    let server = Server::with_tenants().await;
    let body = json!({ "name": "b", "spec": { "hardware_plan": "small" } });
    let path = "/v1/tenants/acme/subscriptions?dry_run=true";
    let refused = server
        .post(&server.admin, path, body)
        .await
        .expect(409)
        .json();
    assert_eq!(refused["conflicts"][0]["name"], "web");
    let plan = json!({ "spec": { "vlan_pool": "pool", "networks_with_internet": 3 } });
    let path = "/v1/hardware-plans/small?dry_run=true";
    let run = server
        .call(&server.admin, "PUT", path, &[], Some(&plan))
        .await
        .expect(200)
        .json();
    let created: Vec<_> = run["differences"]
        .as_array()
        .expect("differences")
        .iter()
        .filter(|d| d["change"] == "created" && d["kind"] == "network")
        .map(|d| (d["tenant"].as_str(), d["name"].as_str()))
        .collect();
    let expected = [
        (Some("acme"), Some("web-3")),
        (Some("globex"), Some("web-3")),
    ];
    assert_eq!(created, expected);
    let networks = server
        .get(&server.admin, "/v1/tenants/acme/networks")
        .await
        .json();
    assert_eq!(networks["items"].as_array().expect("a list").len(), 2);
}

#[tokio::test]
async fn a_repeated_request_is_carried_out_once() {
    let mut server = Server::with_tenants().await;
    let body = json!({ "name": "initech", "spec": {} });
    let key = [("idempotency-key", "1b4e")];
    let admin = server.admin.clone();
    let first = server
        .call(&admin, "POST", "/v1/tenants", &key, Some(&body))
        .await
        .expect(201);
    let again = server
        .call(&admin, "POST", "/v1/tenants", &key, Some(&body))
        .await;
    assert_eq!(again, first);
    server.restart().await;
    let again = server
        .call(&admin, "POST", "/v1/tenants", &key, Some(&body))
        .await;
    assert_eq!(again, first, "after a restart, too");
    server
        .call(&admin, "POST", "/v1/tenants", &[], Some(&body))
        .await
        .expect(409);
    let other = json!({ "name": "other", "spec": {} });
    server
        .call(&admin, "POST", "/v1/tenants", &key, Some(&other))
        .await
        .expect(422);
}

#[tokio::test]
async fn a_repeated_request_that_changed_nothing_gets_the_same_answer() {
    let mut server = Server::with_tenants().await;
    let admin = server.admin.clone();
    let path = "/v1/tenants/acme";
    let found = server.get(&admin, path).await.expect(200);
    let same = json!({ "spec": found.json()["spec"] });
    let key = [("idempotency-key", "same")];
    let first = server.call(&admin, "PUT", path, &key, Some(&same)).await;
    let first = first.expect(200);
    assert_eq!(
        first.header("etag"),
        found.header("etag"),
        "nothing has changed"
    );
    let other = json!({ "spec": { "description": "renamed" } });
    let changed = server.call(&admin, "PUT", path, &[], Some(&other)).await;
    let changed = changed.expect(200);
    // Carried out again, it would undo that change.
    let again = server.call(&admin, "PUT", path, &key, Some(&same)).await;
    assert_eq!(again, first);
    server.restart().await;
    let again = server.call(&admin, "PUT", path, &key, Some(&same)).await;
    assert_eq!(again, first, "after a restart, too");
    let now = server.get(&admin, path).await.expect(200);
    assert_eq!(now.header("etag"), changed.header("etag"));
    server
        .call(&admin, "PUT", path, &key, Some(&other))
        .await
        .expect(422);
    // A request that changes nothing has no entry of the audit, and the refusal has one.
    let audit = server.get(&admin, "/v1/audit?limit=1000").await;
    let audit = audit.expect(200).json();
    let entries = audit["items"].as_array().expect("a list").iter();
    let replaced = entries.filter(|entry| entry["operation"] == "tenant.replace");
    let statuses: Vec<_> = replaced.map(|e| e["result"]["status"].clone()).collect();
    assert_eq!(statuses, [200, 422]);
}

#[tokio::test]
async fn bad_requests_get_one_clear_error() {
    let server = Server::with_tenants().await;
    for (method, path, body, status, text) in [
        (
            "GET",
            "/v1/nothing",
            None,
            404,
            "there is nothing at this path",
        ),
        ("PATCH", "/v1/hosts", None, 405, "use GET, POST"),
        (
            "GET",
            "/v1/hosts?x=1",
            None,
            400,
            "its parameters are: limit, page",
        ),
        ("GET", "/v1/hosts?limit=0", None, 400, "1 to 1000"),
        (
            "GET",
            "/v1/hosts?page=zz",
            None,
            400,
            "the `next` of the page before",
        ),
        (
            "POST",
            "/v1/hosts?dry_run=1",
            Some(json!({"name": "h", "spec": {"platform": "kvm"}})),
            400,
            "true or false",
        ),
        (
            "POST",
            "/v1/hosts",
            Some(json!({})),
            422,
            "missing field `name`",
        ),
        (
            "POST",
            "/v1/hosts",
            Some(json!({"name": "h", "spec": {"platform": 1}})),
            422,
            "spec",
        ),
        (
            "POST",
            "/v1/hosts",
            Some(json!({"name": "H", "spec": {"platform": "kvm"}})),
            422,
            "a to z",
        ),
        (
            "POST",
            "/v1/tenants/acme/rules",
            Some(json!({"name": "ssh", "spec": {
            "public_ip": "203.0.113.1", "public_port": 22, "internal_ip": "10.1.0.9"}})),
            422,
            "22 is refused",
        ),
        ("DELETE", "/v1/hosts/h1", None, 409, "vlan-pool"),
        ("GET", "/v1/watch?kind=x", None, 400, "is no kind"),
    ] {
        let answer = server
            .call(&server.admin, method, path, &[], body.as_ref())
            .await;
        let problem = answer.expect(status);
        assert_eq!(
            problem.header("content-type"),
            Some("application/problem+json")
        );
        let problem = problem.json();
        let detail = problem["detail"].as_str().expect("a detail");
        let text = if text == "spec" { "invalid type" } else { text };
        assert!(detail.contains(text), "{method} {path}: {detail}");
        assert_eq!(problem["status"], status);
    }
}

#[tokio::test]
async fn every_change_has_an_audit_entry_and_the_chain_holds() {
    let mut server = Server::with_tenants().await;
    let acme = server.user("alice", "tenant-admin", Some("acme")).await;
    let network = json!({ "spec": { "prefixes": ["10.1.0.0/24"] } });
    let reason = [("x-reason", "ticket 7")];
    let path = "/v1/tenants/acme/networks/web-1";
    server
        .call(&acme, "PUT", path, &reason, Some(&network))
        .await
        .expect(200);
    let all = server
        .get(&server.admin, "/v1/audit")
        .await
        .expect(200)
        .json();
    let last = all["items"]
        .as_array()
        .expect("a list")
        .last()
        .expect("an entry")
        .clone();
    assert_eq!(last["user"], "alice");
    assert_eq!(last["reason"], "ticket 7");
    assert_eq!(last["operation"], "network.replace");
    assert_eq!(last["changes"][0]["fields"][0]["field"], "spec.prefixes");
    let own = server.get(&acme, "/v1/audit").await.expect(200);
    assert!(!own.text.contains("globex"), "{}", own.text);
    assert!(
        own.text.contains("subscription.create"),
        "the provider's changes, too"
    );

    server.stop().await;
    let store = Sqlite::open(&server.path, Options::default()).expect("a store");
    let head = store.snapshot(audit::HEAD).await.expect("a head");
    let head: Head = serde_json::from_str(&head.entries[0].value).expect("a head");
    let entries = store
        .snapshot(audit::PREFIX)
        .await
        .expect("entries")
        .entries;
    let texts: Vec<_> = entries.iter().map(|entry| entry.value.as_str()).collect();
    assert_eq!(
        audit::verify(texts.iter().copied(), [], &head, &Trust::default()),
        Ok((texts.len() as u64, None))
    );
    let altered: Vec<_> = texts
        .iter()
        .map(|text| text.replace("alice", "mallory"))
        .collect();
    audit::verify(
        altered.iter().map(String::as_str),
        [],
        &head,
        &Trust::default(),
    )
    .expect_err("altered");
    audit::verify(texts[1..].iter().copied(), [], &head, &Trust::default())
        .expect_err("the first is missing");
    audit::verify(
        texts[..texts.len() - 1].iter().copied(),
        [],
        &head,
        &Trust::default(),
    )
    .expect_err("the last is missing");
}

#[tokio::test]
async fn a_watch_resumes_at_the_last_event() {
    let server = Server::with_tenants().await;
    let from = server.get(&server.admin, "/v1/tenants").await.json()["revision"].clone();
    server.create("/v1/tenants", "initech", json!({})).await;
    server.create("/v1/tenants", "umbrella", json!({})).await;
    let read = async |from: &Value, names: &[&str]| {
        let mut stream = TcpStream::connect(server.address)
            .await
            .expect("a connection");
        let text = format!(
            "GET /v1/watch?kind=tenant HTTP/1.1\r\nhost: d\r\nauthorization: Bearer {}\r\n\
             last-event-id: {from}\r\n\r\n",
            server.admin
        );
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut found = String::new();
        while !names.iter().all(|name| found.contains(name)) {
            let mut bytes = [0; 4096];
            let read = timeout(Duration::from_secs(10), stream.read(&mut bytes)).await;
            let count = read.expect("within 10 s").expect("events");
            assert!(count > 0, "{found}");
            found += &String::from_utf8_lossy(&bytes[..count]);
        }
        found
    };
    let first = read(&from, &["initech", "umbrella"]).await;
    let id = first
        .split("id: ")
        .nth(2)
        .expect("an id")
        .lines()
        .next()
        .expect("a line");
    let resumed = read(&id.parse::<u64>().expect("a number").into(), &["umbrella"]).await;
    assert!(!resumed.contains("initech"), "{resumed}");
}

#[tokio::test]
async fn a_forced_change_needs_a_reason() {
    let server = Server::with_tenants().await;
    let path = "/v1/tenants/acme?force=true";
    let delete = async |path: &str, headers: &[(&str, &str)]| {
        server
            .call(&server.admin, "DELETE", path, headers, None)
            .await
    };
    let refused = delete(path, &[]).await.expect(400);
    assert!(refused.text.contains("X-Reason"), "{refused:?}");
    assert_eq!(refused.json()["type"], "urn:causeway:problem:reason");
    // A dry run changes nothing; without force, no rule is overruled.
    delete("/v1/tenants/acme?force=true&dry_run=true", &[])
        .await
        .expect(200);
    delete("/v1/tenants/acme?force=false", &[])
        .await
        .expect(409);
    server
        .get(&server.admin, "/v1/tenants/acme")
        .await
        .expect(200);
    delete(path, &[("x-reason", "their contract ended")])
        .await
        .expect(204);
    let audit = server
        .get(&server.admin, "/v1/audit?limit=1000")
        .await
        .expect(200)
        .json();
    let last = audit["items"].as_array().and_then(|items| items.last());
    assert_eq!(last.expect("an entry")["reason"], "their contract ended");
}
