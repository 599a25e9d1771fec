//! Desired states that are applied to a running gateway, and kept.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use gateway_client::{end::EndEvent, wire::Side};
use nix::sys::signal::Signal;

use crate::{
    circuits::{circuit_end, id},
    common::*,
    process::*,
};

/// A configuration without a desired state, with a folder for the stored one.
fn local(dir: &Path, listen: &str) -> String {
    format!(
        "[gateway]\nname = \"gw1\"\ncontrol_socket = \"{}\"\nstate_dir = \"{}\"\n{listen}\n",
        dir.join("gw.sock").display(),
        dir.join("state").display()
    )
}

/// A snapshot of one tenant, its circuit 1, and a route to a backend.
fn snapshot(revision: u64, backend: SocketAddr) -> String {
    let keys = Side::BOTH.map(|side| key_text(1, side));
    format!(
        "{{\"snapshot\":{{\"revision\":{revision},\"objects\":{{\
         \"tenants\":{{\"acme\":{{\"connections\":5}}}},\
         \"backends\":{{\"b\":{{\"addresses\":[\"{backend}\"]}}}},\
         \"routes\":{{\"r\":{{\"name\":\"d.example\",\"tenant\":\"acme\",\"backend\":\"b\"}}}},\
         \"circuits\":{{\"{}\":{{\"tenant\":\"acme\",\"keys\":{keys:?}}}}}}}}}}}",
        id(1)
    )
}

fn delta(base: u64, rest: &str) -> String {
    let revision = base + 1;
    format!("{{\"delta\":{{\"base\":{base},\"revision\":{revision},{rest}}}}}")
}

impl Gateway {
    /// A gateway that has no state until one is applied.
    fn start_local() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        write_secret(dir.path(), &local(dir.path(), ANY_PORT));
        let child = Self::ready(&dir);
        Self { dir, child }
    }

    /// Applies an update; its output, or its error.
    fn apply(&self, update: &str) -> Result<String, String> {
        let file = self.dir.path().join("update.json");
        fs::write(&file, update).expect("write");
        let output = self.cli(&["apply", file.to_str().expect("a path")]);
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    fn desired(&self) -> String {
        let output = self.cli(&["desired", "--keys"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Kills it and starts it again at a fixed port; returns its address.
    fn start_again(&mut self) -> SocketAddr {
        self.signal(Signal::SIGKILL);
        assert!(!self.ends().success());
        self.child = Self::ready(&self.dir);
        self.at()
    }
}

#[test]
fn a_state_is_applied_without_a_file_and_outlives_the_process() {
    let mut gateway = Gateway::start_local();
    let at = gateway.at();
    let mut refused = greet(at, "d.example");
    assert_eq!(
        rest(&mut refused).expect("an alert"),
        [21, 3, 3, 0, 2, 2, 112]
    );
    let page = text(&gateway.cli(&["status"]).stdout);
    assert!(
        page.contains("no desired state: everything is refused"),
        "{page}"
    );

    let output = gateway.apply(&snapshot(3, echo())).expect("applied");
    assert_eq!(
        output,
        "tenants: 1 added or changed, 0 removed\nbackends: 1 added or changed, 0 removed\n\
         routes: 1 added or changed, 0 removed\ncircuits: 1 added or changed, 0 removed\n\
         revision 3 is in force; stored\n"
    );
    let mut open = greet(at, "d.example");
    exchange(&mut open, b"before");
    let udp = gateway.status().circuits.listen[0];
    let (mut a, mut b) = (circuit_end(1, Side::A, udp), circuit_end(1, Side::B, udp));
    a.bind();
    b.bind();
    a.send(b"12345");
    b.expect(b"12345");

    // The same again changes nothing; a delta changes what it names.
    let output = gateway.apply(&gateway.desired()).expect("repeated");
    assert_eq!(output, "revision 3 is in force; stored\n");
    let put = "\"put\":{\"tenants\":{\"acme\":{\"connections\":7},\"umbrella\":{}}}";
    let output = gateway.apply(&delta(3, put)).expect("applied");
    assert!(
        output.starts_with("tenants: 2 added or changed, 0 removed\n"),
        "{output}"
    );
    a.send(b"still");
    b.expect(b"still");
    exchange(&mut open, b"after");

    // A refused update leaves the state as it is.
    let before = gateway.desired();
    for (update, wanted) in [
        (
            delta(3, put).replace('7', "8"),
            "revision 4 is in force with other contents",
        ),
        (
            delta(9, put),
            "the delta changes revision 9, and revision 4 is in force",
        ),
        (snapshot(3, echo()), "revision 3 is older than revision 4"),
        (
            snapshot(u64::MAX, echo()),
            "revision 18446744073709551615 is too high: use 1 to 9007199254740992",
        ),
        (
            delta(
                4,
                "\"remove\":{\"tenants\":[\"acme\"],\"backends\":[\"b\"]}",
            ),
            "3 problems:\n  - route \"r\": tenant: there is no tenant \"acme\"",
        ),
        (
            delta(
                4,
                "\"put\":{\"backends\":{\"b\":{\"addresses\":[\"nowhere\"]},\"c\":{\
                \"addresses\":[\"192.0.2.1:1\"]}}}",
            ),
            "1 problem:\n  - backend \"b\": addresses: \"nowhere\" is neither",
        ),
        (
            "{\"delta\":{}}".to_owned(),
            "neither a snapshot nor a delta",
        ),
    ] {
        let error = gateway.apply(&update).expect_err(wanted);
        assert!(error.contains(wanted), "{error}");
    }
    assert_eq!(gateway.desired(), before);
    exchange(&mut greet(at, "d.example"), b"as before");
    let status = gateway.status();
    assert_eq!(
        (status.desired.revision, status.desired.stored),
        (4, Some(true))
    );
    assert_eq!(status.tenants.len(), 3);
    assert_eq!(status.tenants[1].limit, Some(7));

    // A killed gateway has the state again.
    gateway.write(&local(gateway.dir.path(), &format!("listen = [\"{at}\"]")));
    let again = gateway.start_again();
    assert_eq!(again, at);
    assert_eq!(gateway.desired(), before);
    exchange(&mut greet(at, "d.example"), b"again");
    let remove = "\"remove\":{\"circuits\":[\"0000000100000001\"]}";
    gateway.apply(&delta(4, remove)).expect("applied");
    gateway.start_again();
    assert_eq!(gateway.status().desired.revision, 5);
    assert_eq!(gateway.status().circuits.configured, 0);
    assert!(!gateway.log().contains(&key_text(1, Side::A)));
}

#[test]
fn a_refused_update_is_short_however_many_problems_it_has() {
    let gateway = Gateway::start_local();
    gateway.apply(&snapshot(1, echo())).expect("applied");
    let before = gateway.log().len();
    let keys = Side::BOTH.map(|side| key_text(1, side));
    let circuits: Vec<String> = (1..=20_000_u64)
        .map(|n| {
            let id = (n + 4) << 32;
            format!("\"{id:016x}\":{{\"tenant\":\"umbrella\",\"keys\":{keys:?}}}")
        })
        .collect();
    let put = format!("\"put\":{{\"circuits\":{{{}}}}}", circuits.join(","));
    let error = gateway.apply(&delta(1, &put)).expect_err("no such tenant");
    assert!(
        error.contains(" problems:\n  - circuits.capacity: "),
        "{error}"
    );
    assert!(error.trim_end().ends_with(" more"), "{error}");
    assert!(error.len() < 20_000, "{} bytes", error.len());
    until("the log", || {
        let log = gateway.log();
        log.contains("update refused; keeping the state in force")
    });
    let log = gateway.log();
    assert!(
        log[before..].contains(" problems, first: circuits.capacity: "),
        "{log}"
    );
    assert!(log.len() - before < 2000, "{log}");
}

#[test]
fn a_file_with_a_desired_state_decides_until_it_has_none() {
    let mut gateway = Gateway::start_local();
    let dir = gateway.dir.path().to_owned();
    let at = gateway.at();
    gateway.apply(&snapshot(9, echo())).expect("applied");
    let desired = "[[tenant]]\nname = \"other\"\n[[backend]]\nname = \"x\"\naddresses = \
        [\"192.0.2.1:1\"]\n[[route]]\nname = \"e.example\"\nbackend = \"x\"\n";
    gateway.write(&(local(&dir, ANY_PORT) + desired));
    assert!(gateway.cli(&["reload"]).status.success());
    let status = gateway.status();
    assert_eq!(
        (status.desired.source.name(), status.desired.revision),
        ("file", 0)
    );
    assert_eq!(status.tenants[1].name, "other");
    let error = gateway
        .apply(&snapshot(10, echo()))
        .expect_err("the file decides");
    assert!(error.contains("remove [[tenant]], [[circuit]]"), "{error}");
    // Without it, what is in force stays, over a restart as well, until another is applied.
    gateway.write(&local(&dir, ANY_PORT));
    assert!(gateway.cli(&["reload"]).status.success());
    assert_eq!(gateway.status().tenants[1].name, "other");
    gateway.write(&local(&dir, &format!("listen = [\"{at}\"]")));
    gateway.start_again();
    assert_eq!(gateway.status().tenants[1].name, "other");
    gateway.apply(&snapshot(1, echo())).expect("applied");
    exchange(&mut greet(at, "d.example"), b"again");

    // A machine without room for the stored state says so.
    gateway.signal(Signal::SIGKILL);
    assert!(!gateway.ends().success());
    let more = "[circuits]\ncapacity = 1\n[limits]\ntenants = 1\n";
    gateway.write(&(local(&dir, ANY_PORT) + more));
    gateway.child = Gateway::ready(&gateway.dir);
    let put = "\"put\":{\"tenants\":{\"umbrella\":{}}}";
    let error = gateway.apply(&delta(1, put)).expect_err("too many");
    assert!(
        error.contains("limits.tenants: 1: the state has 2 tenants; raise limits.tenants"),
        "{error}"
    );
}

#[test]
fn check_finds_that_the_stored_state_does_not_fit_the_file() {
    let mut gateway = Gateway::start_local();
    let dir = gateway.dir.path().to_owned();
    let check = || {
        let mut check = Command::new(PROGRAM);
        check.arg("check").arg(dir.join("gw.toml"));
        let output = check.env_remove("STATE_DIRECTORY").output().expect("run");
        let said = text(&output.stdout) + &text(&output.stderr);
        (output.status.success(), said)
    };
    let (good, said) = check();
    assert!(good && said.ends_with("is used: none yet\n"), "{said}");
    gateway.apply(&snapshot(9, echo())).expect("applied");
    let put = "\"put\":{\"tenants\":{\"umbrella\":{}}}";
    gateway.apply(&delta(9, put)).expect("applied");
    let (good, said) = check();
    let stored = "is used: revision 10, 2 tenants, 1 backends, 1 circuits\n";
    assert!(good && said.ends_with(stored), "{said}");
    let tight = local(&dir, ANY_PORT) + "[limits]\ntenants = 1\n";
    gateway.write(&tight);
    let (good, said) = check();
    let problem = "limits.tenants: 1: the state has 2 tenants; raise limits.tenants";
    assert!(!good && said.contains(problem), "{said}");
    // As `run` says.
    gateway.signal(Signal::SIGKILL);
    assert!(!gateway.ends().success());
    let output = command(&dir).output().expect("run");
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains(problem), "{said}");
    // A state that `check` may not read is a hint.
    gateway.write(&tight.replace("gw.sock\"\nstate_dir", "gw.sock\"\n# state_dir"));
    let (good, said) = check();
    let hint = "is used: not checked: gateway.state_dir is not set";
    assert!(good && said.contains(hint), "{said}");
    // One that is cut off is used up to there.
    gateway.write(&local(&dir, ANY_PORT));
    let stored = dir.join("state/desired.jsonl");
    let whole = fs::read(&stored).expect("a file");
    fs::write(&stored, &whole[..whole.len() - 5]).expect("cut off");
    let (good, said) = check();
    let lost = "is used: revision 9, 1 tenants, 1 backends, 1 circuits; later revisions are lost: \
        the last line is incomplete\n";
    assert!(good && said.ends_with(lost), "{said}");
    // One that no start can use is a problem.
    fs::write(&stored, "{\"version\":1,\"snap").expect("damaged");
    let (good, said) = check();
    let moved = "state/desired.jsonl.unreadable, and refuses everything until `apply`";
    assert!(
        !good && said.contains("cannot be read: it has no complete line"),
        "{said}"
    );
    assert!(said.contains(moved), "{said}");
    assert!(stored.exists(), "`check` changes nothing");
    fs::remove_file(&stored).expect("a file");
    fs::create_dir(&stored).expect("a folder");
    let (good, said) = check();
    let start = "the gateway would not start: cannot read ";
    assert!(!good && said.contains(start), "{said}");
}

#[test]
fn what_could_not_be_stored_is_stored_once_the_disk_takes_it() {
    let mut gateway = Gateway::start_local();
    let (state, away) = ["state", "away"]
        .map(|name| gateway.dir.path().join(name))
        .into();
    gateway.apply(&snapshot(1, echo())).expect("applied");
    fs::rename(&state, &away).expect("a folder");
    let output = gateway.apply(&snapshot(2, echo())).expect("applied");
    let lost = "revision 2 is in force; not stored: a restart loses it\n";
    assert!(output.ends_with(lost), "{output}");
    let drained = text(&gateway.cli(&["drain"]).stdout);
    assert!(drained.contains("not stored"), "{drained}");
    assert_eq!(gateway.status().desired.stored, Some(false));
    fs::rename(&away, &state).expect("a folder");
    // Without another update.
    until("it is stored", || {
        gateway.status().desired.stored == Some(true) && state.join("draining").exists()
    });
    let log = gateway.log();
    assert!(log.contains("the state in force is stored now"), "{log}");
    gateway.signal(Signal::SIGKILL);
    assert!(!gateway.ends().success());
    gateway.child = Gateway::ready(&gateway.dir);
    let status = gateway.status();
    assert_eq!((status.desired.revision, status.draining), (2, true));
}

#[test]
fn a_drain_outlives_the_process_until_undrain() {
    let mut gateway = Gateway::start_local();
    let at = gateway.at();
    gateway.apply(&snapshot(1, echo())).expect("applied");
    gateway.write(&local(gateway.dir.path(), &format!("listen = [\"{at}\"]")));
    assert!(gateway.cli(&["drain"]).status.success());
    gateway.signal(Signal::SIGKILL);
    assert!(!gateway.ends().success());
    gateway.child = Gateway::ready(&gateway.dir);
    let status = gateway.status();
    assert!(status.draining && status.listen.is_empty());
    TcpStream::connect(at).expect_err("it drains");
    let udp = status.circuits.listen[0];
    let mut end = circuit_end(1, Side::A, udp);
    assert_eq!(end.bind_within(TIMEOUT), Some(EndEvent::Move));
    // A draining gateway takes updates: it is to be ready when it is needed again.
    let put = "\"put\":{\"tenants\":{\"acme\":{\"connections\":9}}}";
    gateway.apply(&delta(1, put)).expect("applied");
    assert!(gateway.cli(&["undrain"]).status.success());
    exchange(&mut greet(at, "d.example"), b"again");
    assert_eq!(end.bind_within(TIMEOUT), Some(EndEvent::Bound(30_000)));
    gateway.start_again();
    exchange(&mut greet(at, "d.example"), b"and after a restart");
    // A stop is no drain of the operator.
    gateway.signal(Signal::SIGTERM);
    gateway.signal(Signal::SIGTERM);
    gateway.ends();
    gateway.child = Gateway::ready(&gateway.dir);
    assert!(!gateway.status().draining);
}
