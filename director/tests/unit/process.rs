//! The director as a process: its last checkpoint, and the move of a store as text.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_causeway-director");

/// A folder with a configuration, and the director that runs there.
pub(super) struct Site {
    folder: tempfile::TempDir,
    pub(super) address: String,
    pub(super) token: String,
    pub(super) child: Option<Child>,
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Our own child.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(words: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(words)
        .output()
        .expect("the program")
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

impl Site {
    /// A configuration, without a store.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "[director]\nlisten = \"{address}\"\nstore = {:?}\naudit_key = {:?}\n\
             control_socket = {:?}\n",
            at("store"),
            at("key"),
            at("socket")
        );
        std::fs::write(at("director.toml"), text).expect("a file");
        Self {
            folder,
            address,
            token: String::new(),
            child: None,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(super) fn start(&mut self) {
        let child = Command::new(PROGRAM)
            .args(["serve", "--config", &self.text("director.toml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the program"));
        let begun = Instant::now();
        while std::net::TcpStream::connect(&self.address).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "it does not answer"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks the director to stop, and waits for its end.
    pub(super) fn stop(&mut self) {
        let mut child = self.child.take().expect("a director");
        let id = child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.expect("kill").success());
        assert!(child.wait().expect("its end").success());
    }

    async fn create_tenant(&self, name: &str) {
        let mut stream = TcpStream::connect(&self.address)
            .await
            .expect("a connection");
        let body = json!({ "name": name, "spec": {} }).to_string();
        let text = format!(
            "POST /v1/tenants HTTP/1.1\r\nhost: d\r\nconnection: close\r\nauthorization: Bearer \
             {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    }

    pub(super) fn initialised() -> Self {
        let mut site = Self::new();
        site.token = done(run(&["init", "--config", &site.text("director.toml")]));
        site.token = site.token.trim().to_owned();
        site
    }
}

pub(super) fn verified(store: &Path) -> String {
    done(run(&["verify-audit", &store.display().to_string()]))
}

#[tokio::test]
async fn the_last_entry_is_signed_at_a_stop() {
    let mut site = Site::initialised();
    site.start();
    for name in ["acme", "globex", "initech"] {
        site.create_tenant(name).await;
    }
    site.stop();
    let text = verified(&site.path("store"));
    assert!(
        text.contains("4 entries, the first 4 of them signed"),
        "{text}"
    );
}

#[tokio::test]
async fn a_store_is_moved_as_text_whole_or_not_at_all() {
    let mut site = Site::initialised();
    site.start();
    site.create_tenant("acme").await;
    let file = site.text("export");
    let socket = site.text("socket");
    let wrong = run(&["--socket", &socket, "export", "relative"]);
    assert!(!wrong.status.success());
    done(run(&["--socket", &socket, "export", &file]));
    let again = run(&["--socket", &socket, "export", &file]);
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("exists"),
        "{again:?}"
    );
    site.create_tenant("later").await;
    site.stop();
    let text = std::fs::read_to_string(&file).expect("the text");
    assert!(text.contains("{\"key\":\"tenant/acme\",\"value\":{\"metadata\":{\"name\":\"acme\""));
    let mode = std::fs::metadata(&file).expect("the file").permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );

    // A text that is not whole, or not true, makes no store.
    let mut other = Site::new();
    let config = other.text("director.toml");
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    let cut = lines[..lines.len() - 2].concat();
    let forged = text.replace(
        "\"operation\":\"tenant.create\"",
        "\"operation\":\"tenant.remove\"",
    );
    assert_ne!(forged, text);
    for (name, text) in [("cut", cut), ("forged", forged)] {
        let file = other.text(name);
        std::fs::write(&file, text).expect("a file");
        let refused = run(&["import", "--config", &config, &file]);
        assert!(!refused.status.success(), "{name}");
        assert!(!other.path("store").exists(), "{name}");
    }
    let told = done(run(&["import", "--config", &config, &file]));
    assert!(
        told.contains("2 audit entries, whose chain is good"),
        "{told}"
    );
    let again = run(&["import", "--config", &config, &file]);
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("exists"),
        "{again:?}"
    );
    let left: Vec<_> = std::fs::read_dir(other.folder.path())
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("a file")
                .file_name()
                .into_string()
                .expect("text")
        })
        .filter(|name| name.contains("import"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    other.token = site.token.clone();
    // The key that signs the audit is not in the export.
    std::fs::copy(site.path("key"), other.path("key")).expect("a copy");
    other.start();
    // "later" was made after the export.
    other.create_tenant("later").await;
    other.stop();
    let text = verified(&other.path("store"));
    assert!(
        text.contains("3 entries, the first 3 of them signed"),
        "{text}"
    );
}

#[tokio::test]
async fn health_refuses_other_methods_as_the_api_does() {
    let mut site = Site::initialised();
    site.start();
    let mut stream = TcpStream::connect(&site.address)
        .await
        .expect("a connection");
    let text = "POST /health HTTP/1.1\r\nhost: d\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    assert!(
        answer.contains("urn:causeway:problem:no-method"),
        "{answer}"
    );
}
