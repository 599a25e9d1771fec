//! `causeway-gateway` as an operator has it: files, signals, commands.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    process::Command,
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use circuit_end::clock;
use gateway_client::{end::EndEvent, wire::Side};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};

use crate::{circuits::circuit_end, common::*, process::*};

#[test]
fn status_and_metrics_report_connections() {
    let gateway = Gateway::start(
        echo(),
        &format!("{ANY_PORT}\nmetrics = \"127.0.0.1:0\""),
        "",
    );
    let mode = fs::metadata(gateway.socket())
        .expect("a socket")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let at = gateway.at();
    let mut open = greet(at, "x.acme.example");
    exchange(&mut open, b"12345");
    let mut stranger = connect(at);
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("send");
    let _ = rest(&mut stranger);
    until("refused", || gateway.status().refused["not-tls"] == 1);

    let status = gateway.status();
    assert_eq!((status.name.as_str(), status.draining), ("gw1", false));
    assert_eq!((status.accepted, status.connections), (2, 1));
    assert_eq!(status.tenants.len(), 2);
    let acme = &status.tenants[1];
    assert_eq!(
        (acme.name.as_str(), acme.connections, acme.limit),
        ("acme", 1, Some(5))
    );
    assert_eq!((acme.relayed, acme.bytes_down), (1, 5));
    let page = text(&gateway.cli(&["status"]).stdout);
    assert!(
        page.contains("gw1: running") && page.contains("refused not-tls: 1"),
        "{page}"
    );

    let metrics = status.metrics.expect("an address");
    let (head, body) = get(metrics, "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for line in [
        "causeway_gateway_connections_total 2",
        "causeway_gateway_refused_total{reason=\"not-tls\"} 1",
        "causeway_gateway_refused_total{reason=\"hello-slow\"} 0",
        "causeway_gateway_open_connections{tenant=\"acme\"} 1",
        "causeway_gateway_relayed_total{tenant=\"acme\"} 1",
        "causeway_gateway_relayed_bytes_total{tenant=\"acme\",direction=\"down\"} 5",
        "# EOF",
    ] {
        assert!(body.lines().any(|l| l == line), "{line} is not in\n{body}");
    }
    assert!(get(metrics, "GET /").0.starts_with("HTTP/1.1 404 "));
    assert!(get(metrics, "POST /metrics").0.starts_with("HTTP/1.1 405 "));
    drop(open);
    until("closed", || gateway.status().ended["closed"] == 1);
}

#[test]
fn a_reload_applies_and_connections_stay() {
    let gateway = Gateway::start(echo(), ANY_PORT, "");
    let at = gateway.at();
    let mut open = greet(at, "d.example");
    exchange(&mut open, b"before");
    let other = backend(|mut stream| stream.write_all(b"other").expect("send"));
    let new = config(gateway.dir.path(), other, ANY_PORT, "").replace("d.example", "e.example");
    gateway.write(&new);
    gateway.signal(Signal::SIGHUP);
    until("the new route", || {
        rest(&mut greet(at, "e.example")).is_ok_and(|received| received == b"other")
    });
    let mut gone = greet(at, "d.example");
    assert_eq!(rest(&mut gone).expect("an alert"), [21, 3, 3, 0, 2, 2, 112]);
    exchange(&mut open, b"after");

    // A bad configuration, with both errors.
    let bad = new
        .replace("backend = \"b\"", "backend = \"c\"")
        .replace("gw1", "GW");
    gateway.write(&bad);
    gateway.signal(Signal::SIGHUP);
    until("refused", || {
        gateway
            .log()
            .contains("reload refused; the running configuration stays in force")
    });
    let output = gateway.cli(&["reload"]);
    assert!(!output.status.success());
    let output = text(&output.stderr);
    assert!(output.contains("3 problems:"), "{output}");
    assert_eq!(
        output.matches("there is no backend \"c\"").count(),
        2,
        "{output}"
    );
    assert_eq!(
        rest(&mut greet(at, "e.example")).expect("as before"),
        b"other"
    );
    exchange(&mut open, b"and after that");
    assert_eq!(gateway.status().name, "gw1");

    // A setting that cannot change while the gateway runs.
    gateway.write(&new.replacen("gw.sock", "other.sock", 1));
    let output = text(&gateway.cli(&["reload"]).stderr);
    assert!(
        output.contains("gateway.control_socket cannot be changed"),
        "{output}"
    );
    // Settings that can change: another tenant, metrics and another address.
    let (held, taken) = listener();
    let more = new
        .replace(
            "[[backend]]",
            "[[tenant]]\nname = \"umbrella\"\n[[backend]]",
        )
        .replace(
            ANY_PORT,
            "listen = [\"127.0.0.1:0\", \"[::1]:0\"]\nmetrics = \"TAKEN\"",
        );
    gateway.write(&more.replace("TAKEN", &taken.to_string()));
    let output = text(&gateway.cli(&["reload"]).stderr);
    assert!(
        output.contains(&format!("cannot serve metrics on {taken}")),
        "{output}"
    );
    assert_eq!(gateway.status().listen, [at]);
    drop(held);
    gateway.write(&more.replace("TAKEN", "127.0.0.1:0"));
    assert!(gateway.cli(&["reload"]).status.success());
    let status = gateway.status();
    assert_eq!(status.listen.len(), 2);
    assert_eq!(status.listen[0], at);
    assert_eq!(status.tenants[2].name, "umbrella");
    let first = status.metrics.expect("an address");
    assert!(get(first, "GET /metrics").1.contains("# EOF"));
    gateway.write(&more.replace("metrics = \"TAKEN\"", ""));
    assert!(gateway.cli(&["reload"]).status.success());
    assert_eq!(gateway.status().metrics, None);
    until("closed", || TcpStream::connect(first).is_err());
}

#[test]
fn sigterm_lets_connections_end() {
    let mut gateway = Gateway::start(echo(), ANY_PORT, "");
    let at = gateway.at();
    let mut open = greet(at, "d.example");
    exchange(&mut open, b"before");
    gateway.signal(Signal::SIGTERM);
    until("closed", || TcpStream::connect(at).is_err());
    exchange(&mut open, b"after");
    let status = gateway.status();
    assert!(status.draining && status.listen.is_empty());
    for command in ["reload", "drain", "undrain"] {
        let output = gateway.cli(&[command]);
        assert!(!output.status.success());
        let output = text(&output.stderr);
        assert!(output.contains("the gateway stops"), "{output}");
    }
    assert!(gateway.child.try_wait().expect("a child").is_none());
    drop(open);
    assert!(gateway.ends().success());
    assert!(!gateway.socket().exists());
}

/// Under `Restart=always` a process that ends after a drain is started again and takes
/// connections.
#[test]
fn a_drained_gateway_stays_drained_until_undrain() {
    let mut gateway = Gateway::start(echo(), ANY_PORT, &circuit(1));
    let status = gateway.status();
    let (at, udp) = (status.listen[0], status.circuits.listen[0]);
    let mut open = greet(at, "d.example");
    exchange(&mut open, b"before");
    let output = gateway.cli(&["drain"]);
    let said = text(&output.stdout);
    assert!(
        said.starts_with("gw1: draining; 1 connections left\n"),
        "{said}"
    );
    // It has no state_dir.
    assert!(
        said.contains("not stored: a restart accepts connections again"),
        "{said}"
    );
    until("closed", || TcpStream::connect(at).is_err());
    let mut end = circuit_end(1, Side::A, udp);
    assert_eq!(end.bind_within(TIMEOUT), Some(EndEvent::Move));
    exchange(&mut open, b"after");
    drop(open);
    until("drained", || gateway.log().contains("drained; `undrain`"));
    sleep(Duration::from_millis(300));
    assert!(gateway.child.try_wait().expect("a child").is_none());
    let output = gateway.cli(&["undrain"]);
    assert_eq!(text(&output.stdout), "gw1: accepts connections\n");
    assert!(!gateway.status().draining);
    exchange(&mut greet(at, "d.example"), b"again");
    assert_eq!(end.bind_within(TIMEOUT), Some(EndEvent::Bound(30_000)));
    // A stop of a drained gateway needs no second signal.
    assert!(gateway.cli(&["drain"]).status.success());
    gateway.signal(Signal::SIGTERM);
    let mut status = None;
    gateway.write(&config(gateway.dir.path(), echo(), ANY_PORT, ""));
    until(
        "it ends when the binding has expired, or by another signal",
        || {
            gateway.signal(Signal::SIGTERM);
            status = gateway.child.try_wait().expect("a child");
            status.is_some()
        },
    );
    assert!(status.expect("a status").success());
}

#[test]
fn the_drain_ends_after_its_time() {
    // Its patience ends.
    let mut gateway = Gateway::start(echo(), &format!("{ANY_PORT}\ndrain = 0.4"), "");
    let mut open = greet(gateway.at(), "d.example");
    exchange(&mut open, b"before");
    let begun = Instant::now();
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.ends().success());
    assert!(begun.elapsed() >= Duration::from_millis(390));
    assert!(rest(&mut open).unwrap_or_default().is_empty());
    // A second signal ends the drain.
    let mut gateway = Gateway::start(echo(), &format!("{ANY_PORT}\ndrain = 3600"), "");
    let mut open = greet(gateway.at(), "d.example");
    exchange(&mut open, b"before");
    gateway.signal(Signal::SIGTERM);
    until("draining", || gateway.status().draining);
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.ends().success());
}

#[test]
fn a_killed_gateway_binds_its_port_again_at_once() {
    let mut gateway = Gateway::start(echo(), ANY_PORT, "");
    let at = gateway.at();
    let mut open: Vec<_> = (0..5).map(|_| greet(at, "d.example")).collect();
    open.iter_mut().for_each(|c| exchange(c, b"before"));
    // A fixed port instead of one that the kernel assigns.
    let listen = format!("listen = [\"{at}\"]");
    gateway.write(&config(gateway.dir.path(), echo(), &listen, ""));
    gateway.signal(Signal::SIGKILL);
    assert!(!gateway.ends().success());
    let begun = Instant::now();
    gateway.child = Gateway::ready(&gateway.dir);
    exchange(&mut greet(at, "d.example"), b"after");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    // A second gateway refuses to start.
    let output = command(gateway.dir.path()).output().expect("run");
    assert!(!output.status.success());
    let output = text(&output.stderr);
    assert!(
        output.contains("a gateway is already running: it answers at "),
        "{output}"
    );
    assert_eq!(gateway.status().listen, [at]);
}

/// Both addresses listen until the old one is closed, for TCP and UDP.
#[test]
fn a_wildcard_address_gives_way_to_one_address_and_back() {
    let mut gateway = Gateway::start(echo(), ANY_PORT, &circuit(1));
    let port = gateway.at().port();
    let set = |gateway: &Gateway, listen: &str| {
        let listen = format!("listen = [\"{listen}\"]");
        let new = config(gateway.dir.path(), echo(), &listen, &circuit(1));
        write_secret(gateway.dir.path(), &new);
    };
    // A fixed port instead of one that the kernel assigns.
    let at: SocketAddr = ([127, 0, 0, 1], port).into();
    let everywhere = format!("0.0.0.0:{port}");
    set(&gateway, &everywhere);
    gateway.signal(Signal::SIGKILL);
    assert!(!gateway.ends().success());
    gateway.child = Gateway::ready(&gateway.dir);
    let mut open = greet(at, "d.example");
    for listen in [at.to_string(), everywhere] {
        set(&gateway, &listen);
        let output = gateway.cli(&["reload"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let status = gateway.status();
        let wanted = [listen.parse().expect("an address")];
        assert_eq!(status.listen, wanted);
        assert_eq!(status.circuits.listen, wanted);
        exchange(&mut greet(at, "d.example"), b"new");
        exchange(&mut open, b"as before");
        let mut end = circuit_end(1, Side::A, at);
        assert_eq!(end.bind_within(TIMEOUT), Some(EndEvent::Bound(30_000)));
        let other: SocketAddr = ([127, 0, 0, 2], port).into();
        let is_everywhere = wanted[0].ip().is_unspecified();
        until("the old address is closed", || {
            TcpStream::connect(other).is_ok() == is_everywhere
        });
    }
    // An address of another process is refused still, and nothing changes.
    let (_held, taken) = listener();
    set(&gateway, &taken.to_string());
    let output = text(&gateway.cli(&["reload"]).stderr);
    assert!(
        output.contains(&format!("cannot listen on {taken}")),
        "{output}"
    );
    exchange(&mut greet(at, "d.example"), b"still there");
}

#[test]
fn check_lists_every_problem() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("gw.toml");
    let good = config(dir.path(), ([192, 0, 2, 1], 443).into(), "", "");
    fs::write(&file, &good).expect("write");
    let check = || {
        Command::new(PROGRAM)
            .arg("check")
            .arg(&file)
            .output()
            .expect("run")
    };
    let output = check();
    assert!(output.status.success());
    assert!(text(&output.stdout).ends_with("gw.toml: good: 1 tenants, 1 backends, 0 circuits\n"));
    fs::write(&file, good.replace("gw1", "GW").replace("443", "0")).expect("write");
    let output = check();
    assert!(!output.status.success());
    let output = text(&output.stderr);
    assert!(
        output.contains("2 problems:\n  - gateway.name: ")
            && output.contains("\n  - backend \"b\": "),
        "{output}"
    );
}

#[test]
fn a_command_survives_a_closed_pipe() {
    let gateway = Gateway::start(echo(), ANY_PORT, &circuit(1));
    let file = gateway.dir.path().join("gw.toml");
    let file = file.to_str().expect("a path");
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["check", file],
        &["reload"],
        &["drain"],
        &["undrain"],
    ] {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(PROGRAM);
        command.args(words).stdout(writer);
        if words[0] != "check" {
            command.arg("--socket").arg(gateway.socket());
        }
        let output = command.output().expect("run");
        assert_eq!(text(&output.stderr), "", "{words:?}");
        assert_eq!(output.status.code(), Some(0), "{words:?}");
    }
}

#[test]
fn errors_at_the_start_name_the_cause() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = |gateway: &str, rest: &str, files: u32| {
        let text = config(dir.path(), ([192, 0, 2, 1], 443).into(), gateway, rest);
        fs::write(dir.path().join("gw.toml"), text).expect("write");
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "ulimit -n {files} && exec \"$0\" run --config \"$1\""
            ))
            .arg(PROGRAM)
            .arg(dir.path().join("gw.toml"))
            .output()
            .expect("run");
        assert!(!output.status.success());
        self::text(&output.stderr)
    };
    let output = start(ANY_PORT, "[limits]\nconnections = 500", 1000);
    let others = 128 + gateway::relay::Relay::files(1);
    let (needed, most) = ((500 + 64) * 2 + others, (1000 - 64 * 2 - others) / 2);
    let wanted = format!(
        "limits.connections: 500 need {needed} open files, and 1000 are allowed: write {most} at \
         most, or raise the limit"
    );
    assert!(output.contains(&wanted), "{output}\nexpected: {wanted}");
    let (_held, taken) = listener();
    let output = start(&format!("listen = [\"{taken}\"]"), "", 1000);
    assert!(
        output.contains(&format!("cannot listen on {taken}: ")),
        "{output}"
    );
    assert!(
        !dir.path().join("gw.sock").exists(),
        "a failed start removes its socket"
    );
    fs::write(dir.path().join("gw.sock"), "mine").expect("write");
    let output = start(ANY_PORT, "", 1000);
    assert!(
        output.contains("exists and is not a socket; move it away"),
        "{output}"
    );
    // No gateway runs.
    let output = Command::new(PROGRAM)
        .args(["status", "--socket", "/no-such-directory/gw.sock"])
        .output()
        .expect("run");
    assert!(
        text(&output.stderr)
            .contains("cannot connect to the gateway at /no-such-directory/gw.sock: ")
    );
}

#[test]
fn the_control_socket_refuses_unknown_requests() {
    let gateway = Gateway::start(echo(), ANY_PORT, "");
    let ask = |line: &str| {
        let mut stream =
            std::os::unix::net::UnixStream::connect(gateway.socket()).expect("connect");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a deadline");
        stream.write_all(line.as_bytes()).expect("ask");
        stream.shutdown(std::net::Shutdown::Write).expect("an end");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    assert!(ask("{\"request\":\"status\"}\n").starts_with("{\"ok\":{\"name\":\"gw1\""));
    for line in ["hello\n", "{\"request\":\"fly\"}\n", "{}\n"] {
        assert!(
            ask(line).starts_with("{\"error\":{\"code\":\"bad-request\""),
            "{line}"
        );
    }
    let long = ask(&"x".repeat(1 << 20));
    assert!(long.is_empty() || long.contains("bad-request"), "{long}");
    assert_eq!(
        ask("{\"request\":\"status\"}\n{\"request\":\"status\"}\n")
            .lines()
            .count(),
        2
    );
    // A live one is not replaced, a dead one is.
    drop(UnixListener::bind(gateway.dir.path().join("dead")).expect("a socket"));
    let dead = gateway.dir.path().join("dead");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _in = runtime.enter();
    service::socket::bind(&gateway::control::SOCKET, &dead).expect("a dead one");
    service::socket::bind(&gateway::control::SOCKET, &gateway.socket()).expect_err("a live one");
}

#[test]
fn idle_connections_are_small_and_hold_no_pipe() {
    const WARM: usize = 100;
    const IDLE: usize = 2000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a limit");
    assert!(
        hard as usize > 3 * IDLE,
        "raise the limit of open files, it is {hard}"
    );
    let (listener, to) = listener();
    spawn(move || {
        let mut open = Vec::new();
        loop {
            let mut stream = accept(&listener);
            // Enough bytes that the relay needs a pipe.
            let answering = stream.write_all(&[7; 50_000]);
            answering.expect("answer");
            open.push(stream);
        }
    });
    let gateway = Gateway::start(to, ANY_PORT, "[limits]\nper_source = 5000");
    let at = gateway.at();
    let mut open = Vec::new();
    let mut more = |count: usize| {
        for _ in 0..count {
            let mut client = greet(at, "d.example");
            let mut received = [0; 50_000];
            client.read_exact(&mut received).expect("receive");
            assert_eq!(received, [7; 50_000]);
            open.push(client);
        }
    };
    more(WARM);
    let before = gateway.memory();
    more(IDLE);
    sleep(Duration::from_millis(200));
    assert_eq!(gateway.status().connections, WARM + IDLE);
    let each = gateway.memory().saturating_sub(before) / IDLE;
    println!(
        "{each} bytes a connection, {} pipe ends in all",
        gateway.pipes()
    );
    // 10 000 in under 100 MB.
    assert!(each < 10_000, "{each} bytes a connection");
    assert!(
        (2..=128).contains(&gateway.pipes()),
        "{} pipe ends",
        gateway.pipes()
    );
}

#[test]
fn circuits_are_configured_and_reported() {
    let anywhere = format!("{ANY_PORT}\nmetrics = \"127.0.0.1:0\"");
    let mut gateway = Gateway::start(echo(), &anywhere, &circuit(1));
    let status = gateway.status();
    let at = status.circuits.listen[0];
    let mut a = circuit_end(1, Side::A, at);
    let mut b = circuit_end(1, Side::B, at);
    assert_eq!(
        [&mut a, &mut b].map(|end| end.bind_within(TIMEOUT)),
        [Some(EndEvent::Bound(30_000)); 2]
    );
    a.send(b"12345");
    b.expect(b"12345");
    a.socket.send(b"not of a circuit").expect("send");
    let status = gateway.status();
    let circuits = &status.circuits;
    assert_eq!((circuits.bound, circuits.dropped["no-circuit"]), (2, 1));
    // No program is attached to the loopback; status reports it.
    assert_eq!(circuits.xdp.configured, "auto");
    assert!(circuits.xdp.refused.is_some() && circuits.xdp.interfaces.is_empty());
    let one = &circuits.list[0];
    assert_eq!(
        (one.id.as_str(), one.tenant.as_str()),
        ("0000000100000001", "acme")
    );
    assert_eq!((one.datagrams, one.bytes), ([1, 0], [13, 0]));
    assert_eq!(one.bound[0], a.socket.local_addr().ok());
    assert_eq!((one.events["bound"], one.events["challenged"]), (2, 2));
    let acme = &status.tenants[1];
    assert_eq!((acme.circuits, acme.bound), (1, 2));
    assert_eq!(
        (acme.datagrams, acme.datagram_bytes, acme.datagrams_dropped),
        (1, 13, 0)
    );
    let page = text(&gateway.cli(&["status"]).stdout);
    assert!(
        page.contains("1 circuits, 2 ends bound; 6 datagrams received, 5 sent"),
        "{page}"
    );
    assert!(page.contains("\ncircuits use user space: "), "{page}");
    let (_, body) = get(status.metrics.expect("an address"), "GET /metrics");
    for line in [
        "causeway_gateway_datagrams_received_total 6",
        "causeway_gateway_datagrams_dropped_total{tenant=\"\",reason=\"no-circuit\"} 1",
        "causeway_gateway_reloads_total{result=\"applied\"} 0",
        "causeway_gateway_circuits{tenant=\"acme\"} 1",
        "causeway_gateway_circuit_datagrams_total{tenant=\"acme\",from=\"a\"} \
         1",
        "causeway_gateway_circuit_bytes_total{tenant=\"acme\",from=\"a\"} \
         13",
        "causeway_gateway_circuit_events_total{tenant=\"acme\",event=\"bound\"} \
         2",
        "causeway_gateway_circuit_bound{tenant=\"acme\"} 2",
        "# EOF",
    ] {
        assert!(body.lines().any(|l| l == line), "{line}:\n{body}");
    }
    let documented = include_str!("../../../docs/metrics.md");
    for line in body.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        let suffix = if kind == "counter" { "_total" } else { "" };
        let row = format!("| `{name}{suffix}` | {kind} |");
        assert!(documented.contains(&row), "docs/metrics.md lacks {row}");
    }

    // Another circuit is added; existing ones continue.
    let dir = gateway.dir.path();
    let more = config(dir, echo(), &anywhere, &(circuit(1) + &circuit(2)));
    gateway.write(&more);
    assert!(gateway.cli(&["reload"]).status.success());
    b.send(b"on");
    a.expect(b"on");
    let mut c = circuit_end(2, Side::A, at);
    assert_eq!(c.bind_within(TIMEOUT), Some(EndEvent::Bound(30_000)));
    gateway.write(&more.replace("[[tenant]]", "[circuits]\nthreads = 63\n[[tenant]]"));
    let output = text(&gateway.cli(&["reload"]).stderr);
    assert!(
        output.contains("circuits.threads cannot be changed"),
        "{output}"
    );
    assert!(!gateway.log().contains(&key_text(1, Side::A)));

    // It drains until the last has left.
    gateway.signal(Signal::SIGTERM);
    let mut buffer = [0; 2048];
    let length = a.socket.recv(&mut buffer).expect("a message");
    assert_eq!(
        a.end.receive(&buffer[..length], clock()),
        Some(EndEvent::Move)
    );
    a.send(b"still");
    b.expect(b"still");
    assert_eq!(
        circuit_end(2, Side::B, at).bind_within(TIMEOUT),
        Some(EndEvent::Move)
    );
    for peer in [&mut a, &mut b, &mut c] {
        assert!(gateway.child.try_wait().expect("a child").is_none());
        let message = peer.end.unbind(clock());
        peer.socket.send(&message).expect("send");
    }
    assert!(gateway.ends().success());
}

#[test]
fn ends_bind_again_within_a_second_after_a_kill() {
    let mut gateway = Gateway::start(echo(), ANY_PORT, &circuit(1));
    // A free port for TCP and UDP.
    let (_held, free) = listener();
    drop(_held);
    let listen = format!("listen = [\"{free}\"]");
    gateway.write(&config(gateway.dir.path(), echo(), &listen, &circuit(1)));
    assert!(gateway.cli(&["reload"]).status.success());
    let (mut a, mut b) = (circuit_end(1, Side::A, free), circuit_end(1, Side::B, free));
    a.bind();
    b.bind();
    gateway.signal(Signal::SIGKILL);
    assert!(!gateway.ends().success());
    let begun = Instant::now();
    let binding = spawn(move || {
        a.bind();
        b.bind();
        (a, b, Instant::now())
    });
    gateway.child = Gateway::ready(&gateway.dir);
    let ready = Instant::now();
    let (a, b, bound) = binding.join().expect("bound");
    println!(
        "ready after {:?}, bound {:?} later",
        ready - begun,
        bound.saturating_duration_since(ready)
    );
    assert!(bound.saturating_duration_since(ready) < Duration::from_secs(1));
    a.send(b"again");
    b.expect(b"again");
}
