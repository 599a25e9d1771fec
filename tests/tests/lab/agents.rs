//! Machines at the director: a gateway and an appliance enrol by tokens, through the relay of that
//! gateway, and go on while the director is away.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::site::{ENCRYPTED, Site};
use serde_json::{Value, json};

/// Host and address of the director, as the topology has them.
const DIRECTOR: &str = "director";
const ADDRESS: &str = "198.51.100.130";
/// Server name of the listener of agents, for which gw1 has a route.
const SERVER_NAME: &str = "agents.example.net";
const PORT: u16 = 6186;
const API: u16 = 6185;
/// Longest wait for what is to happen.
const LONG: Duration = Duration::from_secs(30);

/// A director in its host.
struct Director<'s> {
    site: &'s Site,
    folder: PathBuf,
    token: String,
    process: Option<lab::Process>,
}

fn program() -> PathBuf {
    match std::env::var_os("CAUSEWAY_DIRECTOR") {
        Some(path) => path.into(),
        None => lab::Paths::find()
            .gateway
            .with_file_name("causeway-director"),
    }
}

impl<'s> Director<'s> {
    fn init(site: &'s Site) -> Self {
        let folder = site.run_dir().join("director");
        fs::create_dir_all(&folder).expect("a folder");
        let at = |name: &str| folder.join(name).display().to_string();
        let config = format!(
            "[director]\nlisten = \"127.0.0.1:{API}\"\nstore = {:?}\naudit_key = {:?}\n\
             control_socket = {:?}\n\
             [agents]\nlisten = \"[::]:{PORT}\"\nprovider = \"provider.example\"\n\
             server_name = \"{SERVER_NAME}\"\nservice_addresses = [\"{ADDRESS}:{PORT}\"]\n\
             sealing_key = {:?}\n",
            at("store"),
            at("audit-key"),
            at("director.sock"),
            at("sealing-key"),
        );
        fs::write(folder.join("director.toml"), config).expect("a file");
        let mut init = Command::new(program());
        init.args(["init", "--config", &at("director.toml")]);
        let made = init.output().expect("causeway-director");
        assert!(made.status.success(), "{made:?}");
        let out = String::from_utf8_lossy(&made.stdout).into_owned();
        let token = out.split_whitespace().find(|word| word.starts_with("cwy_"));
        let token = token
            .unwrap_or_else(|| panic!("no token in {out}"))
            .to_owned();
        Self {
            site,
            folder,
            token,
            process: None,
        }
    }

    fn start(&mut self) {
        let program = program().display().to_string();
        let config = self.folder.join("director.toml").display().to_string();
        let words = [program, "run".to_owned(), "--config".to_owned(), config];
        let started = self.site.spawn(DIRECTOR, "causeway-director", &words);
        self.process = Some(started.unwrap_or_else(|e| panic!("the director: {e}")));
        let begun = Instant::now();
        while self.call("GET", "/v1/self", None).is_none() {
            assert!(begun.elapsed() < LONG, "the director does not answer");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn kill(&mut self) {
        let process = self.process.take().expect("it runs");
        process
            .kill()
            .unwrap_or_else(|e| panic!("the director: {e}"));
    }

    /// Status and body of an answer; `None` without one.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nhost: director\r\nconnection: close\r\nauthorization: \
             Bearer {}\r\nx-reason: a test\r\ncontent-length: {}\r\n",
            self.token,
            body.len()
        );
        if !body.is_empty() {
            text += "content-type: application/json\r\n";
        }
        text += &format!("\r\n{body}");
        let answered = self.site.inside(DIRECTOR, || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, API))?;
            stream.set_read_timeout(Some(LONG))?;
            stream.write_all(text.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = answered.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or_default()))
    }

    /// The body of an answer that must have this status.
    fn ok(&self, method: &str, path: &str, body: Option<&Value>, status: u16) -> Value {
        let answered = self.call(method, path, body);
        let (found, body) = answered.unwrap_or_else(|| panic!("{method} {path}: no answer"));
        assert_eq!(found, status, "{method} {path}: {body}");
        body
    }

    fn create(&self, path: &str, name: &str, spec: Value) {
        let body = json!({ "name": name, "spec": spec });
        self.ok("POST", path, Some(&body), 201);
    }

    /// Creates a token of a machine and writes it where the machine looks for it.
    fn token(&self, machine: &str, of: &str) {
        let path = format!("{machine}/enrolments");
        let made = self.ok("POST", &path, Some(&json!({ "hours": 1 })), 201);
        let token = made["token"].as_str().expect("a token");
        fs::write(self.folder.join(format!("{of}.token")), token).expect("a file");
    }

    /// Waits until a condition of a machine has this status.
    fn wait(&self, machine: &str, kind: &str, status: &str) {
        let begun = Instant::now();
        loop {
            let object = self.ok("GET", machine, None, 200);
            let mut all = object["conditions"].as_array().expect("conditions").iter();
            if all.any(|c| c["type"] == kind && c["status"] == status) {
                return;
            }
            let seen = &object["conditions"];
            assert!(
                begun.elapsed() < LONG,
                "{machine}: no {kind}={status} in {seen:#}"
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// The section of a machine's configuration.
    fn section(&self, of: &str) -> String {
        let token = self.folder.join(format!("{of}.token"));
        let folder = self.folder.join(format!("{of}.agent"));
        format!("\n[agent]\ntoken = {token:?}\nfolder = {folder:?}\n")
    }
}

const GATEWAY: &str = "/v1/gateways/gw1";
const APPLIANCE: &str = "/v1/tenants/acme/appliances/h1";

/// A field of the status of the director's agent in a daemon.
fn agent<'s>(status: &'s Value, field: &str) -> &'s str {
    status["agent"][field].as_str().unwrap_or_default()
}

#[test]
fn machines_enrol_by_tokens_through_a_gateway_and_go_on_without_the_director() {
    let Some(site) = Site::bare(lab::sites::gateways, ENCRYPTED) else {
        return;
    };
    let mut director = Director::init(&site);
    let of_gateway = director.section("gw1");
    site.configure_gateway("gw1", |config| {
        config
            + &format!(
                "\n[[backend]]\nname = \"agents\"\naddresses = [\"{ADDRESS}:{PORT}\"]\n\
                 [[route]]\nname = \"{SERVER_NAME}\"\nbackend = \"agents\"\n{of_gateway}"
            )
    });
    let of_appliance = director.section("acme");
    director.start();
    director.create(
        "/v1/gateways",
        "gw1",
        json!({ "addresses": ["192.0.2.10"] }),
    );
    let host = json!({ "platform": "kvm", "switches": [{ "name": "br0" }] });
    director.create("/v1/hosts", "h1", host);
    let pool = json!({ "host": "h1", "switch": "br0", "with_internet": ["101-199"] });
    director.create("/v1/vlan-pools", "pool", pool);
    let plan = json!({ "vlan_pool": "pool", "networks_with_internet": 2 });
    director.create("/v1/hardware-plans", "small", plan);
    director.create("/v1/tenants", "acme", json!({}));
    let subscription = json!({ "hardware_plan": "small" });
    director.create("/v1/tenants/acme/subscriptions", "web", subscription);

    // The gateway has no identity: it comes to the director itself. The appliance, behind a NAT,
    // comes through the gateway.
    site.start_cloud().unwrap_or_else(|e| panic!("{e}"));
    let waiting = site.gateway_status("gw1");
    assert!(
        agent(&waiting, "error").starts_with("write an enrolment token into "),
        "{waiting:#}"
    );
    director.token(GATEWAY, "gw1");
    director.token(APPLIANCE, "acme");
    site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
    site.configure("acme-appliance", |config| config + &of_appliance);
    let acme = site.appliance("acme-appliance").expect("it is there");
    acme.restart().unwrap_or_else(|e| panic!("{e}"));
    director.wait(GATEWAY, "Ready", "true");
    director.wait(APPLIANCE, "Ready", "true");
    let gateway = site.gateway_status("gw1");
    assert_eq!(agent(&gateway, "connected"), format!("{ADDRESS}:{PORT}"));
    assert_eq!(
        agent(&gateway, "name"),
        "spiffe://provider.example/gateway/gw1"
    );
    let appliance = site.status("acme-appliance");
    assert_eq!(
        agent(&appliance, "connected"),
        "192.0.2.10:6180",
        "{appliance:#}"
    );
    let name = "spiffe://provider.example/tenant/acme/appliance/h1";
    assert_eq!(agent(&appliance, "name"), name);
    site.over("acme-prod-a");
    site.reach("acme-prod-b", "10.1.0.10");

    // The director dies: traffic does not notice, and the daemons stay ready.
    director.kill();
    let begun = Instant::now();
    while agent(&site.status("acme-appliance"), "error").is_empty() {
        assert!(begun.elapsed() < LONG, "the appliance does not notice");
        thread::sleep(Duration::from_millis(200));
    }
    site.reach("acme-prod-b", "10.1.0.10");
    assert_eq!(site.status("acme-appliance")["ready"], true);
    director.start();
    director.wait(APPLIANCE, "Ready", "true");
    director.wait(GATEWAY, "Ready", "true");

    // A revoked identity ends the connection, and nothing else.
    director.ok("DELETE", &format!("{APPLIANCE}/identity"), None, 204);
    let begun = Instant::now();
    loop {
        let appliance = site.status("acme-appliance");
        if agent(&appliance, "error").contains("was revoked") {
            assert_eq!(appliance["ready"], true, "its work goes on");
            break;
        }
        assert!(begun.elapsed() < LONG, "{appliance:#}");
        thread::sleep(Duration::from_millis(100));
    }
    site.reach("acme-prod-b", "10.1.0.10");
}
