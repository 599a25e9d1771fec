//! The command line against a real director on loopback.

mod commands;
mod declare;
mod order;
mod round_trip;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    body::Body,
    extract::Request,
    http::Response,
    middleware::{Next, from_fn},
};

use director::{
    Director, Kernel, api, audit_key, init,
    tls::{self, Files, Tls},
};
use store::{Options, Sqlite};
use tokio::{net::TcpListener, runtime::Runtime};

/// A director with TLS, and the command line with a context for its administrator.
pub struct Site {
    pub folder: tempfile::TempDir,
    pub director: Arc<Director>,
    pub tls: Arc<Tls>,
    pub admin: String,
    pub server: String,
    pub runtime: Runtime,
    /// Part of the method and path of changes that fail, as if the store was away.
    pub broken: Arc<Mutex<Option<&'static str>>>,
}

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub error: String,
}

impl Ran {
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Fails unless standard output has these lines, with any number of spaces between words.
    #[track_caller]
    pub fn prints(self, expected: &str) -> Self {
        let plain = |text: &str| {
            let lines = text.lines().map(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.join(" ")
            });
            lines.filter(|line| !line.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(plain(&self.out), plain(expected), "{self:#?}");
        self
    }

    /// Fails unless standard error has this text.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.error.contains(text), "{text:?} is not in {self:#?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {self:#?}"))
    }
}

impl Site {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = Runtime::new().expect("a runtime");
        let files = certificate(folder.path());
        let store = folder.path().join("store");
        let tls = Arc::new(Tls::load(files).expect("a certificate"));
        let broken = Arc::<Mutex<Option<&'static str>>>::default();
        let kept = Arc::clone(&broken);
        let breaks = from_fn(move |request: Request, next: Next| {
            let target = format!("{} {}", request.method(), request.uri());
            let broken = *kept.lock().expect("no panic");
            let is_broken = !target.contains("dry_run") && !target.starts_with("GET");
            let is_broken = is_broken && broken.is_some_and(|part| target.contains(part));
            async move {
                if !is_broken {
                    return next.run(request).await;
                }
                let answer = Response::builder().status(503);
                let body = r#"{"detail": "the store cannot be used at present"}"#;
                answer.body(Body::from(body)).expect("an answer")
            }
        });
        let (director, admin, address) = runtime.block_on(async {
            let admin = init(&store, "admin", None, &Kernel).await.expect("a store");
            let store = open(&store);
            let director = Director::new(store, Arc::new(Kernel)).await;
            let director = Arc::new(director.expect("a director"));
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("its address");
            let router = api::router(Arc::clone(&director)).layer(breaks);
            tokio::spawn(tls::serve(listener, Some(Arc::clone(&tls)), router));
            (director, admin, address)
        });
        let site = Self {
            folder,
            director,
            tls,
            admin,
            server: format!("https://{address}"),
            runtime,
            broken,
        };
        let set = format!(
            "context set lab --server {} --ca {} --token-stdin",
            site.server,
            site.path("ca.pem").display()
        );
        site.typed(&set, &format!("{}\n", site.admin)).exits(0);
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// Runs the command with these words.
    pub fn run(&self, words: &str) -> Ran {
        self.typed(words, "")
    }

    /// Runs the command with this standard input.
    pub fn typed(&self, words: &str, input: &str) -> Ran {
        let mut words: Vec<_> = words.split_whitespace().collect();
        // The administrator of the provider also declares networks of tenants.
        if words.first() == Some(&"apply") && !words.contains(&"--reason") {
            words.extend(["--reason", "test"]);
        }
        self.words(&words, input)
    }

    pub fn words(&self, words: &[&str], input: &str) -> Ran {
        let mut child = self
            .command()
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command");
        let mut stdin = child.stdin.take().expect("its input");
        // A command that fails early reads nothing.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("its output");
        Ran {
            code: output.status.code().expect("an exit code"),
            out: String::from_utf8(output.stdout).expect("text"),
            error: String::from_utf8(output.stderr).expect("text"),
        }
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
        command
            .env_clear()
            .env("XDG_CONFIG_HOME", self.folder.path());
        command
    }

    /// A host, pools, a plan, and tenants acme and globex with a subscription each.
    pub fn with_tenants() -> Self {
        let site = Self::start();
        for words in [
            r#"host create h1 -s platform=kvm -s switches=[{"name":"br0"}]"#,
            r#"vlan-pool create pool -s host=h1 -s switch=br0 -s with_internet=["101-199"]"#,
            "hardware-plan create small -s vlan_pool=pool -s networks_with_internet=2",
            "tenant create acme",
            "tenant create globex",
            "subscription create web -t acme -s hardware_plan=small",
            "subscription create web -t globex -s hardware_plan=small",
        ] {
            site.run(words).exits(0);
        }
        site
    }

    /// Signs a checkpoint of the audit.
    pub fn checkpoint(&self) {
        let key = audit_key::create(&self.path("audit-key"), &Kernel).expect("a key");
        let made = self.runtime.block_on(self.director.checkpoint(&key));
        assert!(made.expect("a checkpoint"));
    }
}

/// Opens the store as soon as the thread of `init` has closed it.
fn open(path: &Path) -> Sqlite {
    for _ in 0..250 {
        if let Ok(store) = Sqlite::open(path, Options::default()) {
            return store;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("the store is still in use");
}

/// A self-signed certificate for 127.0.0.1.
pub fn certificate(folder: &Path) -> Files {
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]);
    let signed = signed.expect("a certificate");
    let files = Files {
        certificate: folder.join("ca.pem"),
        key: folder.join("key.pem"),
    };
    std::fs::write(&files.certificate, signed.cert.pem()).expect("a file");
    std::fs::write(&files.key, signed.signing_key.serialize_pem()).expect("a file");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&files.key, private).expect("private");
    files
}
