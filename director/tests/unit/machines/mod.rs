//! Machines that enrol and connect, through real sockets and TLS.

mod restored;
mod site;

use std::{path::Path, sync::Arc, time::Duration};

use agent::{Phase, Report, State};
use director::{Environment as _, Kernel, agents};
use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Server;
use site::{LONG, Site, settings};

const GATEWAY: &str = "/v1/gateways/gw1";
const APPLIANCE: &str = "/v1/tenants/acme/appliances/h1";

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_enrols_by_its_token_alone_and_is_known_from_then_on() {
    let site = Site::start().await;
    for (machine, name, spiffe) in [
        (GATEWAY, "gw1", "spiffe://provider.example/gateway/gw1"),
        (
            APPLIANCE,
            "h1",
            "spiffe://provider.example/tenant/acme/appliance/h1",
        ),
    ] {
        let missing = site.condition(machine, "Enrolled").await;
        assert_eq!(missing, ("false".into(), "NoAgent".into()));
        let mut running = site.machine(name, &site.token(machine).await);
        running.connected().await;
        let identity = running
            .state
            .borrow()
            .identity
            .clone()
            .expect("an identity");
        assert_eq!(identity.0, spiffe);
        site.wait(machine, "Ready", "true").await;
        let known = site.identity(machine).await;
        assert_eq!(known["connection"]["version"], "7.8.9", "{known}");
        assert_eq!(known["enrolments"][0]["id"], known["identity"]["enrolment"]);
        running.report.send_replace(Some(Report {
            ready: false,
            reasons: vec!["no uplink".into(), "no\npeer".into()],
        }));
        site.wait(machine, "Ready", "false").await;
        let known = site.identity(machine).await;
        assert_eq!(
            known["connection"]["reasons"],
            json!(["no uplink", "no peer"])
        );
        drop(running);
        site.wait(machine, "Connected", "false").await;
        let unknown = site.condition(machine, "Ready").await;
        assert_eq!(unknown, ("unknown".into(), "NotConnected".into()));
        // The folder is enough for a process that starts again; the token has been used.
        let mut again = site.machine_in(site.folder.path().join(name));
        again.connected().await;
        let after = again.state.borrow().identity.clone();
        assert_eq!(after, Some(identity));
    }
    let entries = site.audit().await;
    let of = |operation: &str| {
        entries
            .iter()
            .filter(|e| e["operation"] == operation)
            .count()
    };
    assert_eq!((of("gateway.enrol"), of("appliance.enrol")), (1, 1));
    assert_eq!(of("gateway.enrolment.create"), 1);
    let text = serde_json::to_string(&entries).expect("JSON");
    assert!(!text.contains("cwy-enrol1"), "the audit shows a token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrols_one_key_once() {
    let site = Site::start().await;
    let token = site.token(GATEWAY).await;
    let mut first = site.machine("first", &token);
    first.connected().await;
    // A copy of the token, with another key.
    let mut thief = site.machine("thief", &token);
    let error = thief.failed().await;
    assert!(
        error.contains("was used at") && error.contains("by another key"),
        "{error}"
    );
    // A token that was replaced, one of another director, and one that has expired.
    let replaced = site.token(APPLIANCE).await;
    let late = site.token(APPLIANCE).await;
    let error = site.machine("replaced", &replaced).failed().await;
    assert!(error.contains("is not known"), "{error}");
    let other = Site::start().await;
    let foreign = other.token(GATEWAY).await;
    let mut parsed: identity::EnrolmentToken = foreign.parse().expect("a token");
    parsed.service_addresses = vec![gateway_client::dial::ServiceAddress::Address(site.listen)];
    let error = site
        .machine("foreign", &parsed.encode().expect("a token"))
        .failed()
        .await;
    assert!(error.contains("UnknownIssuer"), "{error}");
    site.clock.set_ahead(2);
    let error = site.machine("late", &late).failed().await;
    assert!(error.contains("has expired at"), "{error}");
    assert!(matches!(
        first.state.borrow().phase,
        Phase::Connected { .. }
    ));
    let entries = site.audit().await;
    let refused = |problem: &str| {
        let mut found = entries.iter();
        found.any(|e| e["result"]["problem"] == problem && e["name"].is_string())
    };
    assert!(
        refused("token-used") && refused("token-expired"),
        "{entries:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_of_an_enrolment_is_repeated() {
    let site = Site::start().await;
    let token = site.token(GATEWAY).await;
    let mut machine = site.machine("gw1", &token);
    machine.connected().await;
    let first = machine.state.borrow().identity.clone();
    let folder = machine.folder.clone();
    drop(machine);
    // The process died before it stored the answer: it has the key alone.
    let stored = std::fs::read_to_string(folder.join("agent/identity.json")).expect("a file");
    let stored: Value = serde_json::from_str(&stored).expect("JSON");
    let pending = json!({ "version": 1, "key": stored["key"], "token": stored["token"] });
    std::fs::remove_file(folder.join("agent/identity.json")).expect("removed");
    std::fs::write(folder.join("agent/enrolment.json"), pending.to_string()).expect("a file");
    let mut again = site.machine_in(folder);
    again.connected().await;
    assert_eq!(
        again.state.borrow().identity.clone().map(|i| i.0),
        first.map(|i| i.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_closes_the_stream_at_once_and_ends_the_certificate() {
    let site = Site::start().await;
    let mut machine = site.machine("gw1", &site.token(GATEWAY).await);
    machine.connected().await;
    let admin = &site.server.admin;
    let path = format!("{GATEWAY}/identity?dry_run=true");
    let dry = site
        .server
        .call(admin, "DELETE", &path, &[], None)
        .await
        .expect(200)
        .json();
    assert_eq!(dry["differences"][0]["kind"], "identity", "{dry}");
    assert!(matches!(
        machine.state.borrow().phase,
        Phase::Connected { .. }
    ));
    let begun = std::time::Instant::now();
    site.revoke(GATEWAY).await;
    let error = machine.failed().await;
    assert!(error.contains("was revoked"), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    // It comes again, and is refused by name.
    let folder = machine.folder.clone();
    drop(machine);
    let mut again = site.machine_in(folder);
    let error = again.failed().await;
    assert!(error.contains("gateway/gw1 is not valid"), "{error}");
    let missing = site.condition(GATEWAY, "Enrolled").await;
    assert_eq!(missing, ("false".into(), "NoAgent".into()));
    let entries = site.audit().await;
    assert!(
        entries
            .iter()
            .any(|e| e["operation"] == "gateway.identity.revoke")
    );
    let refused = entries
        .iter()
        .find(|e| e["result"]["problem"] == "certificate");
    assert_eq!(refused.expect("an entry")["name"], "gw1");
    // Another token in its file brings it back, without a restart.
    let token = site.token(GATEWAY).await;
    std::fs::write(&again.token, token).expect("a file");
    again.connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_removed_takes_its_identity_with_it() {
    let site = Site::start().await;
    let mut machine = site.machine("h1", &site.token(APPLIANCE).await);
    machine.connected().await;
    let unused = site.token(APPLIANCE).await;
    let admin = &site.server.admin;
    let path = "/v1/tenants/acme/subscriptions/web";
    site.server
        .call(admin, "DELETE", path, &[], None)
        .await
        .expect(204);
    let error = machine.failed().await;
    assert!(error.contains("was revoked"), "{error}");
    let subscription = json!({ "hardware_plan": "small" });
    site.server
        .create("/v1/tenants/acme/subscriptions", "web", subscription)
        .await;
    let known = site.identity(APPLIANCE).await;
    assert_eq!(
        known,
        json!({ "enrolments": [] }),
        "a later one is another machine"
    );
    let error = site.machine("late", &unused).failed().await;
    assert!(error.contains("is not known"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_in_the_stream_and_the_one_before_ends() {
    let site = Site::start().await;
    let mut machine = site.machine("gw1", &site.token(GATEWAY).await);
    machine.connected().await;
    let before = machine
        .state
        .borrow()
        .identity
        .clone()
        .expect("an identity");
    let copy = site.folder.path().join("copy/agent");
    std::fs::create_dir_all(&copy).expect("a folder");
    let from = machine.folder.join("agent/identity.json");
    std::fs::copy(from, copy.join("identity.json")).expect("copied");
    site.clock.set_ahead(16);
    // A report wakes the agent, as its own interval does.
    machine.report.send_replace(Some(Report {
        ready: false,
        reasons: vec!["a test".into()],
    }));
    let renewed = |state: &State| {
        let until = state.identity.as_ref().map(|(_, until)| *until);
        until > Some(before.1) && matches!(state.phase, Phase::Connected { .. })
    };
    timeout(LONG, machine.state.wait_for(renewed))
        .await
        .expect("renewed")
        .expect("a state");
    site.wait(GATEWAY, "Ready", "false").await;
    site.renewed_is_used(GATEWAY).await;
    // A copy of the machine has the previous certificate.
    let mut clone = site.machine_in(site.folder.path().join("copy"));
    let error = clone.failed().await;
    assert!(
        error.contains("another machine has a copy of it"),
        "{error}"
    );
    assert!(matches!(
        machine.state.borrow().phase,
        Phase::Connected { .. }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_renewed_for_some_days_and_no_longer() {
    let mut site = Site::start().await;
    let mut machine = site.machine("gw1", &site.token(GATEWAY).await);
    machine.connected().await;
    let folder = machine.folder.clone();
    drop(machine);
    // The appliance was off, and the director was restarted meanwhile.
    site.clock.set_ahead(24 * 5);
    site = site.restart().await;
    site.wait(GATEWAY, "Connected", "false").await;
    assert_eq!(
        site.condition(GATEWAY, "Enrolled").await.1,
        "CertificateExpired"
    );
    let mut machine = site.machine_in(folder.clone());
    machine.connected().await;
    let until = machine
        .state
        .borrow()
        .identity
        .clone()
        .expect("an identity")
        .1;
    assert!(until > site.clock.now(), "{until}");
    drop(machine);
    site.clock.set_ahead(24 * 14);
    let mut late = site.machine_in(folder.clone());
    let error = late.failed().await;
    assert!(error.contains("expired"), "{error}");
    std::fs::write(folder.join("token"), site.token(GATEWAY).await).expect("a file");
    drop(late);
    site.machine_in(folder).connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_set_back_knows_its_machines_again() {
    let mut site = Site::start().await;
    let mut machine = site.machine("gw1", &site.token(GATEWAY).await);
    machine.connected().await;
    let before = machine
        .state
        .borrow()
        .identity
        .clone()
        .expect("an identity");
    site = site
        .restart_after(|folder| {
            std::fs::copy(folder.join("store"), folder.join("backup")).expect("copied");
        })
        .await;
    site.wait(GATEWAY, "Connected", "true").await;
    site.clock.set_ahead(16);
    machine.report.send_replace(Some(Report::default()));
    let renewed = |state: &State| state.identity.as_ref().map(|(_, until)| *until) > Some(before.1);
    timeout(LONG, machine.state.wait_for(renewed))
        .await
        .expect("renewed")
        .expect("a state");
    site.wait(GATEWAY, "Connected", "true").await;
    site = site
        .restart_after(|folder| {
            std::fs::copy(folder.join("backup"), folder.join("store")).expect("copied");
        })
        .await;
    site.wait(GATEWAY, "Connected", "true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_return_after_a_restart_of_the_director() {
    let mut site = Site::start().await;
    let mut machine = site.machine("gw1", &site.token(GATEWAY).await);
    machine.connected().await;
    site = site.restart().await;
    site.wait(GATEWAY, "Connected", "true").await;
    // A second machine with a copy of the identity takes the place of the first, which returns.
    let copy = site.folder.path().join("copy/agent");
    std::fs::create_dir_all(&copy).expect("a folder");
    let from = machine.folder.join("agent/identity.json");
    std::fs::copy(from, copy.join("identity.json")).expect("copied");
    let mut second = site.machine_in(site.folder.path().join("copy"));
    second.connected().await;
    machine.state.borrow_and_update();
    let error = machine.failed().await;
    assert!(error.contains("has opened another stream"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_sealed_by_a_key_outside_the_store() {
    let site = Site::start().await;
    let key = site.folder.path().join("sealing-key");
    let kept = std::fs::read(&key).expect("a key");
    let store = std::fs::read(site.folder.path().join("store")).expect("a store");
    let wal = std::fs::read(site.folder.path().join("store-wal")).unwrap_or_default();
    let text = String::from_utf8_lossy(&kept).into_owned();
    for bytes in [&store, &wal] {
        let has = bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes());
        assert!(!has, "the store has the sealing key");
    }
    let refused = |path: &Path, provider: &str| {
        let mut settings = settings(site.folder.path(), "127.0.0.1:0");
        settings.sealing_key = path.to_owned();
        settings.provider = provider.to_owned();
        let director = Arc::clone(&site.director);
        async move {
            let started = agents::start(&director, settings).await;
            started.expect_err("refused").to_string()
        }
    };
    let error = refused(&site.folder.path().join("absent"), "provider.example").await;
    assert!(error.contains("there is no sealing key"), "{error}");
    let other = site.folder.path().join("other");
    std::fs::write(&other, "00".repeat(32)).expect("a file");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).expect("private");
    let error = refused(&other, "provider.example").await;
    assert!(
        error.contains("restore the previous sealing key"),
        "{error}"
    );
    let error = refused(&key, "other.example").await;
    assert!(
        error.contains("the authority in the store is of \"provider.example\""),
        "{error}"
    );
}

#[tokio::test]
async fn a_director_without_agents_refuses_tokens_and_says_what_to_do() {
    let server = Server::with_tenants().await;
    let path = format!("{APPLIANCE}/enrolments");
    let body = json!({ "hours": 1 });
    let answer = server
        .post(&server.admin, &path, body)
        .await
        .expect(409)
        .json();
    let detail = answer["detail"].as_str().expect("a text");
    assert!(detail.contains("write a section [agents]"), "{detail}");
    for hours in [0, 169] {
        let body = json!({ "hours": hours });
        server.post(&server.admin, &path, body).await.expect(422);
    }
    let absent = "/v1/tenants/acme/appliances/h2/identity";
    server.get(&server.admin, absent).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_before_does_not_take_the_identity_back() {
    let site = Site::start().await;
    let first = site.token(GATEWAY).await;
    let mut machine = site.machine("first", &first);
    machine.connected().await;
    // A copy of the machine's folder, without the token in use.
    let copy = site.folder.path().join("copy");
    std::fs::create_dir_all(copy.join("agent")).expect("a folder");
    let stored = std::fs::read_to_string(machine.folder.join("agent/identity.json"));
    let stored: Value = serde_json::from_str(&stored.expect("a file")).expect("JSON");
    let pending = json!({ "version": 1, "key": stored["key"], "token": stored["token"] });
    std::fs::write(copy.join("agent/enrolment.json"), pending.to_string()).expect("a file");
    std::fs::write(copy.join("token"), &first).expect("a file");
    // Another machine takes its place by another token.
    let mut second = site.machine("second", &site.token(GATEWAY).await);
    second.connected().await;
    let mut thief = site.machine_in(copy);
    let error = thief.failed().await;
    assert!(error.contains("is not known"), "{error}");
    let error = machine.failed().await;
    assert!(
        error.contains("was revoked") || error.contains("another stream"),
        "{error}"
    );
    assert!(matches!(
        second.state.borrow().phase,
        Phase::Connected { .. }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_in_the_file_costs_an_enrolled_machine_nothing() {
    let site = Site::start().await;
    let mut machine = site.machine("gw1", &site.token(GATEWAY).await);
    machine.connected().await;
    let folder = machine.folder.clone();
    drop(machine);
    for bad in ["cwy-enrol1.half".to_owned(), "nonsense".to_owned()] {
        std::fs::write(folder.join("token"), bad).expect("a file");
        let mut machine = site.machine_in(folder.clone());
        machine.connected().await;
        let told = |state: &State| state.token.is_some();
        timeout(LONG, machine.state.wait_for(told))
            .await
            .expect("told")
            .expect("a state");
        assert!(matches!(
            machine.state.borrow().phase,
            Phase::Connected { .. }
        ));
    }
    // One that ended is told, too, and another one is used later.
    let ended = site.token(GATEWAY).await;
    let good = site.token(GATEWAY).await;
    std::fs::write(folder.join("token"), ended).expect("a file");
    let mut machine = site.machine_in(folder.clone());
    machine.connected().await;
    let told = machine.state.borrow().token.clone().expect("told");
    assert!(told.contains("is not known"), "{told}");
    drop(machine);
    std::fs::write(folder.join("token"), good).expect("a file");
    let mut machine = site.machine_in(folder);
    machine.connected().await;
    assert_eq!(machine.state.borrow().token, None);
    let known = site.identity(GATEWAY).await;
    assert_eq!(
        known["enrolments"].as_array().expect("tokens").len(),
        1,
        "{known}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_hours_ahead_renews_once() {
    let site = Site::start().await;
    let mut machine = site.machine("gw1", &site.token(GATEWAY).await);
    machine.connected().await;
    let folder = machine.folder.clone();
    drop(machine);
    site.clock.set_ahead(16);
    let mut machine = site.machine_in(folder);
    let soon = Kernel.now() + SignedDuration::from_hours(30);
    let renewed = |state: &State| {
        let until = state.identity.as_ref().map(|(_, until)| *until);
        until > Some(soon)
    };
    timeout(LONG, machine.state.wait_for(renewed))
        .await
        .expect("renewed")
        .expect("a state");
    site.renewed_is_used(GATEWAY).await;
    let until = machine
        .state
        .borrow()
        .identity
        .clone()
        .expect("an identity")
        .1;
    // The director's clock, which is that of the machine here, is corrected backwards: the new
    // certificate is not valid yet, and is renewed, not more than once.
    site.clock.set_ahead(0);
    for _ in 0..20 {
        machine.report.send_replace(Some(Report::default()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = machine
        .state
        .borrow()
        .identity
        .clone()
        .expect("an identity")
        .1;
    assert_eq!(after, until);
    assert!(matches!(
        machine.state.borrow().phase,
        Phase::Connected { .. }
    ));
}
