//! The API through a real server: HTTP in, HTTP out.

mod audit;
mod bad_input;
mod changes;
mod claims;
mod conditions;
mod document;
mod headers;
mod kill;
mod last_use;
mod limits;
mod machines;
mod matrix;
mod offline;
mod password;
mod people;
mod process;
mod reused_names;
mod roles;
mod schema;
mod usage;
mod views;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use director::{Director, Environment, Kernel, api, init};
use serde_json::{Value, json};
use store::{Options, Sqlite};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A director that serves its API, and its first administrator's token.
pub struct Server {
    pub address: SocketAddr,
    pub admin: String,
    pub path: PathBuf,
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Answered {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::start_at(Arc::new(Kernel)).await
    }

    /// A new server with this clock.
    pub async fn start_at(clock: Arc<dyn Environment>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store");
        let admin = init(&path, "admin", None, &*clock).await.expect("a store");
        let (address, task) = serve_at(&path, clock).await;
        Self {
            address,
            admin,
            path,
            task,
            _folder: folder,
        }
    }

    /// A server of a store that is there. It has no token.
    pub async fn of(path: &std::path::Path) -> Self {
        let (address, task) = serve(path).await;
        Self {
            address,
            admin: String::new(),
            path: path.to_owned(),
            task,
            _folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// A server that runs already.
    pub fn at(
        address: SocketAddr,
        admin: String,
        path: PathBuf,
        task: tokio::task::JoinHandle<()>,
    ) -> Self {
        Self {
            address,
            admin,
            path,
            task,
            _folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Ends the server and starts another one on the same store.
    pub async fn restart(&mut self) {
        self.stop().await;
        (self.address, self.task) = serve(&self.path).await;
    }

    /// Ends the server; its store can be opened then.
    pub async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        // Connections of which the answer was read end by themselves.
        for _ in 0..100 {
            if Sqlite::open(&self.path, Options::default()).is_ok() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the store is still in use");
    }

    pub async fn call(
        &self,
        token: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Answered {
        let mut stream = TcpStream::connect(self.address)
            .await
            .expect("a connection");
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut text =
            format!("{method} {path} HTTP/1.1\r\nhost: director\r\nconnection: close\r\n");
        if !token.is_empty() {
            text += &format!("authorization: Bearer {token}\r\n");
        }
        if !body.is_empty() {
            text += "content-type: application/json\r\n";
        }
        // A change of a tenant's own objects by the provider has a reason.
        let own = ["networks", "mappings", "policies", "rules", "plans"];
        let kind = path.split(['/', '?']).nth(4).unwrap_or_default();
        let has_reason = headers.iter().any(|(name, _)| *name == "x-reason");
        if token == self.admin && method != "GET" && own.contains(&kind) && !has_reason {
            text += "x-reason: a test\r\n";
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let answer = parse(&answer);
        document::assert_documented(method, path, &answer);
        answer
    }

    pub async fn get(&self, token: &str, path: &str) -> Answered {
        self.call(token, "GET", path, &[], None).await
    }

    pub async fn post(&self, token: &str, path: &str, body: Value) -> Answered {
        self.call(token, "POST", path, &[], Some(&body)).await
    }

    /// Creates an object as the administrator.
    pub async fn create(&self, path: &str, name: &str, spec: Value) -> Value {
        let body = json!({ "name": name, "spec": spec });
        self.post(&self.admin, path, body).await.expect(201).json()
    }

    /// A host, pools, a hardware plan, and tenants acme and globex with a subscription each.
    pub async fn with_tenants() -> Self {
        let server = Self::start().await;
        server.fill().await;
        server
    }

    /// The same, in a server that has none of them.
    pub async fn fill(&self) {
        let server = self;
        let host = json!({ "platform": "kvm", "switches": [{ "name": "br0" }] });
        server.create("/v1/hosts", "h1", host).await;
        let pool = json!({ "host": "h1", "switch": "br0", "with_internet": ["101-199"] });
        server.create("/v1/vlan-pools", "pool", pool).await;
        let plan = json!({ "vlan_pool": "pool", "networks_with_internet": 2 });
        server.create("/v1/hardware-plans", "small", plan).await;
        for tenant in ["acme", "globex"] {
            server.create("/v1/tenants", tenant, json!({})).await;
            let path = format!("/v1/tenants/{tenant}/subscriptions");
            server
                .create(&path, "web", json!({ "hardware_plan": "small" }))
                .await;
        }
    }

    /// A token of a new user with this role.
    pub async fn user(&self, name: &str, role: &str, tenant: Option<&str>) -> String {
        let password = "correct horse battery";
        let mut user = json!({ "name": name, "role": role, "password": password });
        if let Some(tenant) = tenant {
            user["tenant"] = tenant.into();
        }
        self.post(&self.admin, "/v1/users", user).await.expect(201);
        let credentials = json!({ "user": name, "password": password });
        let session = self.post("", "/v1/sessions", credentials).await.expect(201);
        session.json()["secret"]
            .as_str()
            .expect("a secret")
            .to_owned()
    }
}

async fn serve(path: &std::path::Path) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    serve_at(path, Arc::new(Kernel)).await
}

async fn serve_at(
    path: &std::path::Path,
    clock: Arc<dyn Environment>,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    // The thread of the director before, or of `init`, closes the store when it ends.
    let mut opened = Sqlite::open(path, Options::default());
    for _ in 0..250 {
        if opened.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        opened = Sqlite::open(path, Options::default());
    }
    let store = opened.expect("a store");
    let director = Director::new(store, clock).await.expect("a director");
    let router = api::router(Arc::new(director));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, router).await;
    });
    (address, task)
}

fn parse(text: &str) -> Answered {
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines
        .next()
        .expect("a status")
        .split(' ')
        .nth(1)
        .expect("a number");
    let headers = lines.filter_map(|line| line.split_once(": "));
    Answered {
        status: status.parse().expect("a number"),
        headers: headers
            .filter(|(name, _)| *name != "date")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        text: body.to_owned(),
    }
}
