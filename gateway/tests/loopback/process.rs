//! `causeway-gateway` as a process of tests.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use gateway::control::Status;
use gateway_client::wire::{Key, Side};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    circuits::{id, key_bytes},
    common::*,
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_causeway-gateway");

/// A gateway that runs; killed when it is dropped.
pub struct Gateway {
    pub dir: TempDir,
    pub child: Child,
}

/// A configuration of one backend, for `d.example` and, tenant acme's, all below `acme.example`.
pub fn config(dir: &Path, backend: SocketAddr, gateway: &str, rest: &str) -> String {
    format!(
        "[gateway]\nname = \"gw1\"\ncontrol_socket = \"{}\"\n{gateway}\n{rest}\n\
         [[tenant]]\nname = \"acme\"\nconnections = 5\n\
         [[backend]]\nname = \"b\"\naddresses = [\"{backend}\"]\n\
         [[route]]\nname = \"d.example\"\nbackend = \"b\"\n\
         [[route]]\nbelow = \"acme.example\"\ntenant = \"acme\"\nbackend = \"b\"\n",
        dir.join("gw.sock").display()
    )
}

/// Writes the configuration, readable by its owner only, as a file with keys must be.
pub fn write_secret(dir: &Path, text: &str) {
    let path = dir.join("gw.toml");
    fs::write(&path, text).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file");
}

/// The key of a side of circuit `n`, as it is written.
pub fn key_text(n: u64, side: Side) -> String {
    Key::new(key_bytes(n, side)).to_base64()
}

/// Circuit `n` of tenant acme, as it is written.
pub fn circuit(n: u64) -> String {
    let keys = Side::BOTH.map(|side| key_text(n, side));
    format!(
        "[[circuit]]\nid = \"{}\"\ntenant = \"acme\"\nkeys = {keys:?}\n",
        id(n)
    )
}

pub const ANY_PORT: &str = "listen = [\"127.0.0.1:0\"]";

pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["run", "--config"])
        .arg(dir.join("gw.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

impl Gateway {
    /// With its configuration, once it is ready.
    pub fn start(backend: SocketAddr, gateway: &str, rest: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let text = config(dir.path(), backend, gateway, rest);
        write_secret(dir.path(), &text);
        let child = Self::ready(&dir);
        Self { dir, child }
    }

    pub fn ready(dir: &TempDir) -> Child {
        let notify = dir.path().join("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).expect("a socket");
        manager.set_read_timeout(Some(TIMEOUT)).expect("a deadline");
        let log = fs::File::create(dir.path().join("log")).expect("a file");
        let mut child = command(dir.path())
            .env("NOTIFY_SOCKET", &notify)
            .stderr(log)
            .spawn()
            .expect("start");
        let mut message = [0; 64];
        let length = loop {
            match manager.recv(&mut message) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _ = child.kill();
                    panic!("{error}: {}", log_in(dir));
                }
            }
        };
        assert_eq!(&message[..length], b"READY=1");
        child
    }

    pub fn write(&self, text: &str) {
        write_secret(self.dir.path(), text);
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("gw.sock")
    }

    pub fn cli(&self, words: &[&str]) -> Output {
        Command::new(PROGRAM)
            .args(words)
            .arg("--socket")
            .arg(self.socket())
            .output()
            .expect("run")
    }

    pub fn status(&self) -> Status {
        let output = self.cli(&["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("a status")
    }

    pub fn at(&self) -> SocketAddr {
        self.status().listen[0]
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("a process");
    }

    pub fn log(&self) -> String {
        log_in(&self.dir)
    }

    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        until("it ends", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("a status")
    }

    pub fn memory(&self) -> usize {
        let file = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let file = file.expect("a process");
        let line = file.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kilobytes = line
            .and_then(|l| l.split_whitespace().next())
            .expect("a line");
        kilobytes.parse::<usize>().expect("a number") << 10
    }

    pub fn pipes(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a process");
        let links = files.filter_map(|f| fs::read_link(f.ok()?.path()).ok());
        links
            .filter(|l| l.to_string_lossy().starts_with("pipe:"))
            .count()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
    }
}

pub fn log_in(dir: &TempDir) -> String {
    fs::read_to_string(dir.path().join("log")).expect("a log")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Response of an HTTP server: the head and the body.
pub fn get(from: SocketAddr, request: &str) -> (String, String) {
    let mut stream = connect(from);
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\n\r\n").expect("ask");
    let answer = text(&rest(&mut stream).expect("an answer"));
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}
