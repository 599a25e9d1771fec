//! Machines that enrol and connect, through real sockets and TLS.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use agent::{Phase, Report, State};
use director::{
    Director, Environment, Kernel,
    agents::{self, Settings},
    api, init,
};
use jiff::{SignedDuration, Timestamp};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use serde_json::{Value, json};
use store::{Options, Sqlite};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

use super::Server;

/// Longest wait for what is to happen.
const LONG: Duration = Duration::from_secs(20);

/// The kernel's clock, some seconds ahead: that of the director and of all machines.
#[derive(Clone, Debug, Default)]
struct Clock(Arc<AtomicI64>);

impl Clock {
    fn set_ahead(&self, hours: i64) {
        self.0.store(hours * 3600, Ordering::SeqCst);
    }
}

impl Environment for Clock {
    fn now(&self) -> Timestamp {
        Kernel.now() + SignedDuration::from_secs(self.0.load(Ordering::SeqCst))
    }

    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        Kernel.fill(bytes)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// A director with its API and its endpoint of agents, a gateway `gw1` and an appliance `h1` of
/// each tenant.
struct Site {
    server: Server,
    director: Arc<Director>,
    clock: Clock,
    folder: tempfile::TempDir,
    listen: SocketAddr,
    agents: JoinHandle<()>,
}

/// A machine that runs an agent.
struct Machine {
    folder: PathBuf,
    token: PathBuf,
    state: watch::Receiver<State>,
    report: watch::Sender<Report>,
    task: JoinHandle<()>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn settings(folder: &Path, listen: &str) -> Settings {
    Settings {
        listen: listen.parse().expect("an address"),
        provider: "provider.example".to_owned(),
        server_name: "director.provider.example".to_owned(),
        service_addresses: Vec::new(),
        sealing_key: folder.join("sealing-key"),
        grace: Duration::from_secs(7 * 86_400),
    }
}

/// A free port of the loopback interface.
async fn port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("its address")
}

async fn opened(path: &Path) -> Sqlite {
    for _ in 0..250 {
        if let Ok(store) = Sqlite::open(path, Options::default()) {
            return store;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Sqlite::open(path, Options::default()).expect("a store")
}

impl Site {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store");
        let clock = Clock::default();
        let admin = init(&path, "admin", None, &clock).await.expect("a store");
        let listen = port().await;
        let mut site = Self::open(folder, clock, listen, admin).await;
        // The first one ends after a day.
        let body = json!({ "hours": 8784 });
        let token = site
            .server
            .post(&site.server.admin, "/v1/tokens", body)
            .await
            .expect(201);
        site.server.admin = token.json()["secret"]
            .as_str()
            .expect("a secret")
            .to_owned();
        site.server.fill().await;
        let gateway = json!({ "addresses": ["203.0.113.1"] });
        site.server.create("/v1/gateways", "gw1", gateway).await;
        // Appliances come to the director itself here, and not through the gateway.
        let path = "/v1/gateways/gw1?force=true";
        let body = json!({ "spec": { "addresses": ["203.0.113.1"], "enabled": false } });
        let reason = [("x-reason", "a test")];
        let admin = &site.server.admin;
        let done = site
            .server
            .call(admin, "PUT", path, &reason, Some(&body))
            .await;
        done.expect(200);
        site
    }

    async fn open(
        folder: tempfile::TempDir,
        clock: Clock,
        listen: SocketAddr,
        admin: String,
    ) -> Self {
        let path = folder.path().join("store");
        let store = opened(&path).await;
        let director = Director::new(store, Arc::new(clock.clone())).await;
        let director = Arc::new(director.expect("a director"));
        let mut settings = settings(folder.path(), &listen.to_string());
        let own = format!("director.invalid:1,{listen}");
        let own = own.split(',').map(|text| text.parse().expect("an address"));
        settings.service_addresses = own.collect();
        let (address, agents) = agents::start(&director, settings)
            .await
            .expect("an endpoint");
        assert_eq!(address, listen);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let of_api = listener.local_addr().expect("its address");
        let router = api::router(Arc::clone(&director));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        let server = Server::at(of_api, admin, path, task);
        Self {
            server,
            director,
            clock,
            folder,
            listen,
            agents,
        }
    }

    /// Ends the director and starts another one, at the same address.
    async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    /// The same; meanwhile something is done in the folder of the store.
    async fn restart_after(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self {
            mut server,
            director,
            clock,
            folder,
            listen,
            agents,
        } = self;
        let token = server.admin.clone();
        agents.abort();
        let _ = agents.await;
        drop(director);
        server.stop().await;
        meanwhile(folder.path());
        Self::open(folder, clock, listen, token).await
    }

    /// Creates a token of a machine, by the path of its object.
    async fn token(&self, machine: &str) -> String {
        let path = format!("{machine}/enrolments");
        let made = self
            .server
            .post(&self.server.admin, &path, json!({ "hours": 1 }))
            .await;
        made.expect(201).json()["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    fn machine(&self, name: &str, token: &str) -> Machine {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("token"), format!("{token}\n")).expect("a file");
        self.machine_in(folder)
    }

    /// The machine of a folder that may have an identity.
    fn machine_in(&self, folder: PathBuf) -> Machine {
        let token = folder.join("token");
        let settings = agent::Settings {
            folder: folder.join("agent"),
            token: token.clone(),
            version: "7.8.9".to_owned(),
            clock: Arc::new(self.clock.clone()),
            seed: 1,
        };
        let (report, reports) = watch::channel(Report {
            ready: true,
            reasons: Vec::new(),
        });
        let (sender, state) = watch::channel(State::default());
        let task = tokio::spawn(async move {
            agent::run(settings, reports, sender)
                .await
                .expect("an agent");
        });
        Machine {
            folder,
            token,
            state,
            report,
            task,
        }
    }

    async fn identity(&self, machine: &str) -> Value {
        let path = format!("{machine}/identity");
        self.server
            .get(&self.server.admin, &path)
            .await
            .expect(200)
            .json()
    }

    async fn revoke(&self, machine: &str) {
        let path = format!("{machine}/identity");
        let admin = &self.server.admin;
        self.server
            .call(admin, "DELETE", &path, &[], None)
            .await
            .expect(204);
    }

    /// Status and reason of a condition.
    async fn condition(&self, machine: &str, kind: &str) -> (String, String) {
        let object = self
            .server
            .get(&self.server.admin, machine)
            .await
            .expect(200)
            .json();
        let all = object["conditions"].as_array().expect("conditions");
        let found = all.iter().find(|condition| condition["type"] == kind);
        let found = found.unwrap_or_else(|| panic!("no {kind} in {all:?}"));
        let text = |field: &str| found[field].as_str().expect("a text").to_owned();
        (text("status"), text("reason"))
    }

    /// Waits until a condition has this status.
    async fn wait(&self, machine: &str, kind: &str, status: &str) {
        for _ in 0..200 {
            let object = self
                .server
                .get(&self.server.admin, machine)
                .await
                .expect(200)
                .json();
            let mut all = object["conditions"].as_array().expect("conditions").iter();
            if all.any(|c| c["type"] == kind && c["status"] == status) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{machine} does not become {kind}={status}");
    }

    /// Entries of the audit, once it has those of accesses.
    async fn audit(&self) -> Vec<Value> {
        self.director.flush_accesses().await.expect("flushed");
        let list = self
            .server
            .get(&self.server.admin, "/v1/audit?limit=1000")
            .await;
        list.expect(200).json()["items"]
            .as_array()
            .expect("entries")
            .clone()
    }
}

impl Machine {
    /// Waits until the agent is connected.
    async fn connected(&mut self) {
        let is = |state: &State| matches!(state.phase, Phase::Connected { .. });
        let found = timeout(LONG, self.state.wait_for(is)).await;
        let is_late = found.is_err();
        drop(found);
        assert!(!is_late, "not connected: {:?}", self.state.borrow());
    }

    /// Waits until the agent is not connected: the last error.
    async fn failed(&mut self) -> String {
        let is = |state: &State| matches!(&state.phase, Phase::Connecting { error: Some(_) });
        let found = timeout(LONG, self.state.wait_for(is)).await;
        let found = found
            .unwrap_or_else(|_| panic!("no error"))
            .expect("a state");
        match &found.phase {
            Phase::Connecting { error } => error.clone().unwrap_or_default(),
            other => panic!("{other:?}"),
        }
    }
}

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
        running.report.send_replace(Report {
            ready: false,
            reasons: vec!["no uplink".into(), "no\npeer".into()],
        });
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
    assert!(error.contains("gateway/gw1 does not hold"), "{error}");
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
    machine.report.send_replace(Report {
        ready: false,
        reasons: vec!["a test".into()],
    });
    let renewed = |state: &State| {
        let until = state.identity.as_ref().map(|(_, until)| *until);
        until > Some(before.1) && matches!(state.phase, Phase::Connected { .. })
    };
    timeout(LONG, machine.state.wait_for(renewed))
        .await
        .expect("renewed")
        .expect("a state");
    site.wait(GATEWAY, "Ready", "false").await;
    let known = site.identity(GATEWAY).await;
    assert_eq!(known["identity"].get("next"), None, "it is in use: {known}");
    // A copy of the machine has the certificate of before.
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
    machine.report.send_replace(Report::default());
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
        error.contains("put back the sealing key of before"),
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
