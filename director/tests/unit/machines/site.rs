//! A director with its listener of agents, and machines that run an agent.

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
use service::restore::Restores;
use store::{Options, Sqlite};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

use super::super::Server;

/// Longest wait for what is to happen.
pub const LONG: Duration = Duration::from_secs(20);

/// The kernel's clock, some seconds ahead: that of the director and of all machines. And restores
/// of the director's machine, which a test notes.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead: Arc<AtomicI64>,
    pub restores: Restores,
}

impl Clock {
    pub fn set_ahead(&self, hours: i64) {
        self.ahead.store(hours * 3600, Ordering::SeqCst);
    }
}

impl Environment for Clock {
    fn now(&self) -> Timestamp {
        Kernel.now() + SignedDuration::from_secs(self.ahead.load(Ordering::SeqCst))
    }

    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        Kernel.fill(bytes)
    }

    fn restores(&self) -> Restores {
        self.restores.clone()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// A director with its API and its listener of agents, a gateway `gw1` and an appliance `h1` of
/// each tenant.
pub struct Site {
    pub server: Server,
    pub director: Arc<Director>,
    pub clock: Clock,
    pub folder: tempfile::TempDir,
    pub listen: SocketAddr,
    pub agents: JoinHandle<()>,
}

/// A machine that runs an agent.
pub struct Machine {
    pub folder: PathBuf,
    pub token: PathBuf,
    pub state: watch::Receiver<State>,
    pub report: watch::Sender<Option<Report>>,
    pub restores: Restores,
    pub task: JoinHandle<()>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn settings(folder: &Path, listen: &str) -> Settings {
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
    pub async fn start() -> Self {
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

    pub async fn open(
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
            .expect("a listener");
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
    pub async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    /// The same; meanwhile something is done in the folder of the store.
    pub async fn restart_after(self, meanwhile: impl FnOnce(&Path)) -> Self {
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
    pub async fn token(&self, machine: &str) -> String {
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

    pub fn machine(&self, name: &str, token: &str) -> Machine {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("token"), format!("{token}\n")).expect("a file");
        self.machine_in(folder)
    }

    /// The machine of a folder that may have an identity.
    pub fn machine_in(&self, folder: PathBuf) -> Machine {
        let token = folder.join("token");
        let restores = Restores::default();
        let settings = agent::Settings {
            folder: folder.join("agent"),
            token: token.clone(),
            version: "7.8.9".to_owned(),
            clock: Arc::new(self.clock.clone()),
            seed: 1,
            restores: restores.clone(),
        };
        let (report, reports) = watch::channel(Some(Report {
            ready: true,
            reasons: Vec::new(),
        }));
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
            restores,
            task,
        }
    }

    pub async fn identity(&self, machine: &str) -> Value {
        let path = format!("{machine}/identity");
        self.server
            .get(&self.server.admin, &path)
            .await
            .expect(200)
            .json()
    }

    /// Waits until a renewed certificate is in use.
    pub async fn renewed_is_used(&self, machine: &str) {
        for _ in 0..200 {
            let known = self.identity(machine).await;
            let expires = known["identity"]["current"]["expires"].as_str();
            let expires: Timestamp = expires.expect("a time").parse().expect("a time");
            let is_new = expires > Kernel.now() + SignedDuration::from_hours(30);
            if is_new && known["identity"].get("next").is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{}", self.identity(machine).await);
    }

    pub async fn revoke(&self, machine: &str) {
        let path = format!("{machine}/identity");
        let admin = &self.server.admin;
        self.server
            .call(admin, "DELETE", &path, &[], None)
            .await
            .expect(204);
    }

    /// Status and reason of a condition.
    pub async fn condition(&self, machine: &str, kind: &str) -> (String, String) {
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
    pub async fn wait(&self, machine: &str, kind: &str, status: &str) {
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
    pub async fn audit(&self) -> Vec<Value> {
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
    pub async fn connected(&mut self) {
        let is = |state: &State| matches!(state.phase, Phase::Connected { .. });
        let found = timeout(LONG, self.state.wait_for(is)).await;
        let is_late = found.is_err();
        drop(found);
        assert!(!is_late, "not connected: {:?}", self.state.borrow());
    }

    /// Waits until the agent is not connected: the last error.
    pub async fn failed(&mut self) -> String {
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
