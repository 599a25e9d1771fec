//! The relay on loopback, asked by TLS clients and by those who are none.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{Arc, mpsc},
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

use gateway::relay::{
    Backend, Error, Limits, Plan, Relay, Times,
    counters::{Reason, Way},
    route::{Names, Route, Table},
};
use rustls::version::{TLS12, TLS13};
use tokio::runtime::Runtime;

use crate::common::*;

/// A relay with its own threads.
struct Gateway {
    relay: Relay,
    runtime: Runtime,
}

/// One tenant, `acme`, with all below `acme.example`; and `d.example` and, for protocol `x/1`, `p.example`, nobody's. All to one
/// backend.
struct Draft {
    listen: Vec<SocketAddr>,
    limits: Limits,
    times: Times,
    tenant: u32,
    backend: Vec<SocketAddr>,
    proxy: bool,
}

impl Draft {
    fn to(backend: SocketAddr) -> Self {
        Self {
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            limits: Limits {
                connections: 1000,
                per_source: 1000,
                pipes: 1000,
            },
            times: Times {
                hello: PATIENCE,
                dial: PATIENCE,
                idle: PATIENCE,
            },
            tenant: 1000,
            backend: vec![backend],
            proxy: false,
        }
    }

    fn plan(&self) -> Plan {
        let route = |names, tenant: Option<&str>| Route {
            names,
            protocols: Vec::new(),
            tenant: tenant.map(Into::into),
            backend: "b".into(),
        };
        Plan {
            listen: self.listen.clone(),
            limits: self.limits,
            times: self.times,
            tenants: HashMap::from([("acme".into(), self.tenant)]),
            backends: HashMap::from([("b".into(), Backend::new(self.backend.clone(), self.proxy))]),
            table: Table::new(vec![
                route(Names::Below("acme.example".to_owned()), Some("acme")),
                route(Names::Exact("d.example".to_owned()), None),
                Route {
                    protocols: vec![b"x/1".to_vec()],
                    ..route(Names::Exact("p.example".to_owned()), None)
                },
            ])
            .expect("routes"),
        }
    }

    fn start(&self) -> Gateway {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let relay = {
            let _in = runtime.enter();
            Relay::start(self.plan()).expect("listen")
        };
        Gateway { relay, runtime }
    }
}

impl Gateway {
    fn at(&self) -> SocketAddr {
        self.relay.addresses()[0]
    }

    fn replan(&self, draft: &Draft) -> Result<(), Error> {
        let _in = self.runtime.enter();
        self.relay.replan(draft.plan())
    }

    fn refused(&self, reason: &'static str) -> u64 {
        let refused = &self.relay.counters().refused;
        refused.get_or_create(&Reason { reason }).get()
    }

    fn ended(&self, reason: &'static str) -> u64 {
        let ended = &self.relay.counters().ended;
        ended.get_or_create(&Reason { reason }).get()
    }

    fn bytes(&self, tenant: &str, direction: &'static str) -> u64 {
        let tenant = tenant.to_owned();
        let bytes = &self.relay.counters().bytes;
        bytes.get_or_create(&Way { tenant, direction }).get()
    }
}

/// A backend that hands over its connections.
fn handing_over() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let (sender, receiver) = mpsc::channel();
    let address = backend(move |stream| {
        // Nobody may want it any more.
        let _ = sender.send(stream);
    });
    (address, receiver)
}

fn next(connections: &mpsc::Receiver<TcpStream>) -> TcpStream {
    connections.recv_timeout(PATIENCE).expect("a connection")
}

fn reset(stream: TcpStream) {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(&stream.as_fd(), nix::sys::socket::sockopt::Linger, &linger)
        .expect("no lingering");
}

#[test]
fn tls_goes_through_to_whom_the_hello_names() {
    for (version, spliced) in [(&TLS12, true), (&TLS13, true), (&TLS13, false)] {
        for listen in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let name = "director.acme.example";
            let tls = certified(name, &[version]);
            let (to, serving) = tls_echo(tls.server);
            let mut draft = Draft::to(to);
            draft.listen = vec![SocketAddr::new(listen, 0)];
            draft.limits.pipes = if spliced { 10 } else { 0 };
            let gateway = draft.start();

            let mut client = tls_client(&tls.client, gateway.at(), name);
            let (mut noise, mut sent, mut heard) =
                (Noise::new(1), vec![0; 10_000], vec![0; 10_000]);
            for _ in 0..50 {
                noise.fill(&mut sent);
                client.write_all(&sent).expect("say");
                client.read_exact(&mut heard).expect("hear");
                assert!(heard == sent);
            }
            client.conn.send_close_notify();
            client.flush().expect("say that it is done");
            // The server says so too, after which its end is a clean one.
            assert_eq!(client.read(&mut heard).expect("its word"), 0);
            drop(client);
            serving.join().expect("a server without complaint");
            until("closed", || gateway.ended("closed") == 1);
            assert!(gateway.bytes("acme", "up") > 500_000);
            assert!(gateway.bytes("acme", "down") > 500_000);
            assert_eq!(gateway.bytes("", "up"), 0);
        }
    }
}

#[test]
fn a_server_that_is_not_the_one_named_is_noticed_by_the_client() {
    let tls = certified("d.example", &[&TLS13]);
    let other = certified("d.example", &[&TLS13]);
    let (listener, to) = listener();
    spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut server = rustls::ServerConnection::new(other.server).expect("a server");
        let _ = server.complete_io(&mut stream);
    });
    let gateway = Draft::to(to).start();
    let mut client = tls_client(&tls.client, gateway.at(), "d.example");
    let error = client
        .write_all(b"secret")
        .expect_err("another's certificate");
    assert!(error.to_string().contains("certificate"), "{error}");
}

/// 100 MiB each way, the second after the end of the first.
fn bulk(spliced: bool) {
    const LENGTH: usize = 100 << 20;
    let to = backend(|mut stream| {
        hear_noise(&mut stream, 1, LENGTH);
        assert_eq!(rest(&mut stream).expect("an end"), b"");
        send_noise(&mut stream, 2, LENGTH);
    });
    let mut draft = Draft::to(to);
    draft.limits.pipes = if spliced { 10 } else { 0 };
    let gateway = draft.start();
    let mut client = greet(gateway.at(), "d.example");
    send_noise(&mut client, 1, LENGTH);
    client.shutdown(Shutdown::Write).expect("half an end");
    hear_noise(&mut client, 2, LENGTH);
    assert_eq!(rest(&mut client).expect("an end"), b"");
    until("closed", || gateway.ended("closed") == 1);
    assert_eq!(gateway.bytes("", "down"), LENGTH as u64);
    let hello = hello("d.example", &[]).len() as u64;
    let up = gateway.bytes("", "up");
    // Hellos differ by some bytes of padding from one to the next.
    assert!(up.abs_diff(LENGTH as u64 + hello) < 600, "{up}");
    assert!(gateway.relay.unused_pipes() >= 1, "given back");
    assert_eq!(gateway.relay.counters().short_of_pipes.get(), 0);
}

#[test]
fn a_hundred_megabytes_are_the_same_bytes_spliced() {
    bulk(true);
}

#[test]
fn a_hundred_megabytes_are_the_same_bytes_copied() {
    bulk(false);
}

#[test]
fn both_ways_at_once_with_a_slow_reader_lose_nothing() {
    const LENGTH: usize = 16 << 20;
    let to = backend(|stream| {
        let mut write = stream.try_clone().expect("a clone");
        let writing = spawn(move || send_noise(&mut write, 4, LENGTH));
        let mut read = stream;
        sleep(Duration::from_millis(300));
        hear_noise(&mut read, 3, LENGTH);
        writing.join().expect("all of it");
    });
    let gateway = Draft::to(to).start();
    let client = greet(gateway.at(), "d.example");
    let mut write = client.try_clone().expect("a clone");
    let writing = spawn(move || send_noise(&mut write, 3, LENGTH));
    let mut read = client;
    sleep(Duration::from_millis(600));
    hear_noise(&mut read, 4, LENGTH);
    writing.join().expect("all of it");
}

#[test]
fn nobody_hears_what_was_said_to_another() {
    // More connections than pipes, so that pipes and buffers change hands all the time; some are cut with bytes in them.
    const CLIENTS: u64 = 30;
    const ROUNDS: u64 = 12;
    let mut draft = Draft::to(echo());
    draft.limits.pipes = 1;
    let gateway = draft.start();
    let at = gateway.at();
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|n| {
            spawn(move || {
                let mut noise = Noise::new(n);
                let mut open = greet(at, "d.example");
                for round in 0..ROUNDS {
                    let mut said = vec![0; (n * 79_193 + round * 104_729) as usize % 1_000_000 + 1];
                    noise.fill(&mut said);
                    if (n + round) % 11 == 0 {
                        let _ = open.write_all(&said);
                        if n % 2 == 0 {
                            reset(open);
                        }
                        open = greet(at, "d.example");
                    }
                    let mut write = open.try_clone().expect("a clone");
                    let saying = said.clone();
                    let saying = spawn(move || write.write_all(&saying).expect("say"));
                    let mut heard = vec![0; said.len()];
                    open.read_exact(&mut heard).expect("hear");
                    saying.join().expect("said");
                    assert!(heard == said, "client {n}, round {round}");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("heard what it said");
    }
    until("gone", || gateway.relay.connections() == 0);
    assert!(gateway.relay.unused_pipes() <= 1);
    assert!(gateway.relay.counters().short_of_pipes.get() > 0);
}

#[test]
fn each_way_ends_by_itself() {
    let (to, connections) = handing_over();
    let gateway = Draft::to(to).start();
    for backend_first in [false, true] {
        let client = greet(gateway.at(), "d.example");
        let server = next(&connections);
        let (mut first, mut second) = if backend_first {
            (server, client)
        } else {
            (client, server)
        };
        first.write_all(b"the last").expect("say");
        first.shutdown(Shutdown::Write).expect("half an end");
        assert_eq!(rest(&mut second).expect("an end"), b"the last");
        for _ in 0..3 {
            second.write_all(b"more").expect("say");
            let mut heard = [0; 4];
            first.read_exact(&mut heard).expect("hear");
            assert_eq!(&heard, b"more");
            sleep(Duration::from_millis(50));
        }
        second.shutdown(Shutdown::Write).expect("half an end");
        assert_eq!(rest(&mut first).expect("an end"), b"");
    }
    until("closed", || gateway.ended("closed") == 2);
    until("gone", || gateway.relay.connections() == 0);
}

#[test]
fn a_reset_goes_through_both_ways() {
    let (to, connections) = handing_over();
    let gateway = Draft::to(to).start();
    for backend_first in [false, true] {
        let client = greet(gateway.at(), "d.example");
        let server = next(&connections);
        let (gone, mut left) = if backend_first {
            (server, client)
        } else {
            (client, server)
        };
        reset(gone);
        let error = rest(&mut left).expect_err("not a clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    until("counted", || gateway.ended("reset") == 2);
}

/// Waits until the other end has all that was sent.
fn delivered(stream: &TcpStream) {
    nix::ioctl_read_bad!(outq, nix::libc::TIOCOUTQ, nix::libc::c_int);
    until("delivered", || {
        let mut left = 0;
        // SAFETY: the call writes an integer of this type and nothing else (tcp(7), SIOCOUTQ).
        unsafe { outq(stream.as_raw_fd(), &raw mut left) }.expect("ask");
        left == 0
    });
}

/// A client that sends for as long as it can.
fn talkative(client: &TcpStream) -> JoinHandle<()> {
    let mut write = client.try_clone().expect("a clone");
    spawn(move || {
        let block = vec![7; BLOCK];
        while write.write_all(&block).is_ok() {}
    })
}

#[test]
fn an_answer_arrives_although_the_backend_did_not_listen() {
    const LENGTH: usize = 1 << 20;
    // It answers and closes with bytes unread, as a server does that refuses a long request.
    let to = backend(|mut stream| {
        send_noise(&mut stream, 5, LENGTH);
        stream.shutdown(Shutdown::Write).expect("an end");
        delivered(&stream);
        stream.read_exact(&mut [0]).expect("one byte");
    });
    let gateway = Draft::to(to).start();
    let mut client = greet(gateway.at(), "d.example");
    let talking = talkative(&client);
    sleep(Duration::from_millis(200));
    hear_noise(&mut client, 5, LENGTH);
    assert_eq!(rest(&mut client).expect("a clean end"), b"");
    client.shutdown(Shutdown::Both).expect("an end");
    talking.join().expect("an end");
}

#[test]
fn half_an_answer_is_not_taken_for_a_whole_one() {
    let to = backend(|mut stream| {
        send_noise(&mut stream, 5, 1 << 20);
        delivered(&stream);
        // Without an end, and with bytes unread: a reset.
        stream.read_exact(&mut [0]).expect("one byte");
    });
    let gateway = Draft::to(to).start();
    for n in 1..=20 {
        let mut client = greet(gateway.at(), "d.example");
        let talking = talkative(&client);
        // The kernel tells whoever asks first, the one that talks or the one that listens; so the gateway is asked.
        let _ = rest(&mut client);
        talking.join().expect("an end");
        until("an end", || gateway.relay.connections() == 0);
        assert_eq!(gateway.ended("reset"), n);
    }
}

#[test]
fn what_comes_behind_the_hello_arrives_with_it() {
    let gateway = Draft::to(echo()).start();
    let mut client = connect(gateway.at());
    let mut wire = hello("x.acme.example", &["h2"]);
    wire.extend(b"early");
    client.write_all(&wire).expect("say");
    let mut heard = [0; 5];
    client.read_exact(&mut heard).expect("hear");
    assert_eq!(&heard, b"early");
}

#[test]
fn a_hello_in_single_bytes_is_a_hello() {
    let gateway = Draft::to(echo()).start();
    let mut client = connect(gateway.at());
    client.set_nodelay(true).expect("no delay");
    for byte in hello("d.example", &[]) {
        client.write_all(&[byte]).expect("say");
    }
    echoed(&mut client, b"and on");
}

#[test]
fn slow_and_silent_clients_are_closed_in_time() {
    let mut draft = Draft::to(echo());
    draft.times.hello = Duration::from_millis(400);
    let gateway = draft.start();
    let begun = Instant::now();
    let mut silent = connect(gateway.at());
    // One that sends a byte often enough to be waited for, if it were the pause that counts.
    let mut slow = connect(gateway.at());
    let trickle = spawn(move || {
        let mut heard = Vec::new();
        for byte in hello("d.example", &[]) {
            if slow.write_all(&[byte]).is_err() {
                break;
            }
            sleep(Duration::from_millis(20));
        }
        let _ = slow.read_to_end(&mut heard);
        heard
    });
    assert_eq!(rest(&mut silent).expect("an end"), b"", "without a word");
    assert!(begun.elapsed() >= Duration::from_millis(390));
    assert_eq!(trickle.join().expect("an end"), b"");
    assert!(begun.elapsed() < Duration::from_secs(8));
    until("counted", || gateway.refused("hello-slow") == 2);
    until("gone", || gateway.relay.connections() == 0);
    // In time is in time.
    echoed(&mut greet(gateway.at(), "d.example"), b"well");
}

#[test]
fn who_leaves_before_the_end_of_the_hello_is_counted() {
    let gateway = Draft::to(echo()).start();
    drop(connect(gateway.at()));
    let mut half = connect(gateway.at());
    half.write_all(&hello("d.example", &[])[..100])
        .expect("say");
    half.shutdown(Shutdown::Write).expect("half an end");
    assert_eq!(rest(&mut half).expect("an end"), b"");
    until("counted", || {
        gateway.refused("hello-none") == 1 && gateway.refused("hello-cut") == 1
    });
    until("gone", || gateway.relay.connections() == 0);
}

#[test]
fn garbage_is_closed_without_a_word_and_counted() {
    let gateway = Draft::to(echo()).start();
    for (wire, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "not-tls"),
        (b"\x16\x02\x00\x00\x10", "record-version"),
        (b"\x16\x03\x01\x00\x00", "record-length"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "not-a-hello"),
    ] {
        let mut client = connect(gateway.at());
        client.write_all(wire).expect("say");
        // A reset where it had not read everything.
        let heard = rest(&mut client).unwrap_or_default();
        assert_eq!(heard, b"", "{reason}");
        until(reason, || gateway.refused(reason) == 1);
    }
}

#[test]
fn a_client_that_speaks_tls_is_told_why() {
    let dead = listener().1;
    let mut draft = Draft::to(dead);
    draft.tenant = 0;
    let gateway = draft.start();
    let long = [&[22, 3, 1, 63, 0, 1, 0, 0x3e, 0xfc][..], &[0; 200]].concat();
    for (wire, number, reason) in [
        (hello("nobody.example", &[]), 112, "no-route"),
        (hello("p.example", &["h2"]), 120, "no-protocol"),
        (hello("127.0.0.1", &[]), 112, "no-server-name"),
        (hello("x.acme.example", &[]), 80, "limit-tenant"),
        (hello("d.example", &[]), 80, "backend-unreachable"),
        (
            b"\x16\x03\x01\x00\x04\x01\xff\xff\xff".to_vec(),
            50,
            "hello-too-long",
        ),
        (
            b"\x16\x03\x01\x00\x06\x01\x00\x00\x01\x03\x03".to_vec(),
            50,
            "bytes-after-hello",
        ),
        (
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03".to_vec(),
            50,
            "hello-malformed",
        ),
    ] {
        let mut client = connect(gateway.at());
        client.write_all(&wire).expect("say");
        let heard = rest(&mut client).expect("an end");
        assert_eq!(heard, [21, 3, 3, 0, 2, 2, number], "{reason}");
        until(reason, || gateway.refused(reason) == 1);
    }
    // One that is too long only by what is still to come: it is not waited for.
    let mut client = connect(gateway.at());
    client.write_all(&long).expect("say");
    sleep(Duration::from_millis(100));
    assert_eq!(gateway.refused("hello-too-long"), 1, "it fits so far");
    let mut more = records_of_padding();
    more.truncate(20_000);
    // It may be closed while it is written.
    let _ = client.write_all(&more);
    until("too long", || gateway.relay.connections() == 0);
}

/// What never ends: records of one byte each.
fn records_of_padding() -> Vec<u8> {
    [22, 3, 1, 0, 1, 0].repeat(5000)
}

#[test]
fn a_source_a_tenant_and_all_have_their_limits() {
    let mut draft = Draft::to(echo());
    draft.limits.per_source = 3;
    draft.tenant = 2;
    draft.listen = vec![
        (Ipv4Addr::LOCALHOST, 0).into(),
        (Ipv6Addr::LOCALHOST, 0).into(),
    ];
    let gateway = draft.start();
    let open = |name: &str| {
        let mut client = greet(gateway.at(), name);
        echoed(&mut client, b"well");
        client
    };
    let first = open("a.acme.example");
    let _second = open("b.acme.example");
    // The tenant's third.
    let mut third = greet(gateway.at(), "c.acme.example");
    assert_eq!(rest(&mut third).expect("an end"), [21, 3, 3, 0, 2, 2, 80]);
    until("gone", || gateway.relay.connections() == 2);
    assert_eq!(gateway.refused("limit-tenant"), 1);
    let _other = open("d.example");
    // The source's fourth.
    let mut fourth = connect(gateway.at());
    assert!(rest(&mut fourth).unwrap_or_default().is_empty());
    assert_eq!(gateway.refused("limit-source"), 1);
    // Another source, and one that went away.
    let v6 = gateway.relay.addresses()[1];
    echoed(&mut greet(v6, "d.example"), b"well");
    drop(first);
    until("gone", || gateway.relay.connections_of("acme") == 1);
    let _again = open("a.acme.example");

    draft.limits.connections = 3;
    gateway.replan(&draft).expect("a new plan");
    until("gone", || gateway.relay.connections() == 3);
    let mut fifth = connect(v6);
    assert!(rest(&mut fifth).unwrap_or_default().is_empty());
    assert_eq!(gateway.refused("limit-gateway"), 1);
}

#[test]
fn a_connection_without_a_word_ends_and_one_that_speaks_does_not() {
    let (to, connections) = handing_over();
    let mut draft = Draft::to(to);
    draft.times.idle = Duration::from_millis(500);
    let gateway = draft.start();
    let mut silent = greet(gateway.at(), "d.example");
    let mut silent_server = next(&connections);
    let mut speaks = greet(gateway.at(), "d.example");
    let mut speaks_server = next(&connections);
    for _ in 0..8 {
        // One way only.
        sleep(Duration::from_millis(200));
        speaks_server.write_all(b"x").expect("say");
        speaks.read_exact(&mut [0]).expect("hear");
    }
    for stream in [&mut silent, &mut silent_server] {
        let error = rest(stream).expect_err("not a clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(gateway.ended("idle"), 1);
    assert_eq!(gateway.relay.connections(), 1);
}

#[test]
fn the_next_address_of_a_backend_is_taken() {
    let dead = listener().1;
    let mut draft = Draft::to(dead);
    draft.backend.push(echo());
    let gateway = draft.start();
    for _ in 0..3 {
        echoed(&mut greet(gateway.at(), "d.example"), b"well");
    }
    let failures =
        gateway
            .relay
            .counters()
            .dial_failures
            .get_or_create(&gateway::relay::counters::Backend {
                backend: "b".to_owned(),
            });
    assert_eq!(
        failures.get(),
        1,
        "the one that answered is first from then on"
    );
}

#[test]
fn a_backend_that_does_not_answer_is_not_waited_for() {
    // Its queue is full: the kernel drops what comes (tcp_conn_request(), net/ipv4/tcp_input.c).
    let (full, to) = listener();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).expect("none"))
        .expect("listen");
    let _filling = TcpStream::connect(to).expect("connect");
    let mut draft = Draft::to(to);
    draft.times.dial = Duration::from_millis(300);
    let gateway = draft.start();
    let begun = Instant::now();
    let mut client = greet(gateway.at(), "d.example");
    let heard = rest(&mut client).expect("an end");
    assert_eq!(heard, [21, 3, 3, 0, 2, 2, 80]);
    assert!(
        begun.elapsed() >= Duration::from_millis(290),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(gateway.refused("backend-unreachable"), 1);
}

#[test]
fn a_backend_is_told_who_connected() {
    let (listener, to) = listener();
    let mut draft = Draft::to(to);
    draft.proxy = true;
    // A wildcard: the address that the client knows is told, not this one.
    draft.listen = vec![(Ipv4Addr::UNSPECIFIED, 0).into()];
    let gateway = draft.start();
    let port = gateway.at().port();
    let mut client = greet((Ipv4Addr::new(127, 0, 0, 9), port).into(), "d.example");
    let from = client.local_addr().expect("an address");
    let (mut server, _) = listener.accept().expect("accept");
    patient(&server);
    let mut header = [0; 28 + 12];
    server.read_exact(&mut header).expect("a header");
    assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x18");
    assert_eq!(header[16..24], [127, 0, 0, 1, 127, 0, 0, 9]);
    assert_eq!(header[24..26], from.port().to_be_bytes());
    assert_eq!(header[26..28], port.to_be_bytes());
    assert_eq!(&header[28..], b"\x02\0\x09d.example");
    server.read_exact(&mut [0]).expect("the hello behind it");
    client.write_all(b"x").expect("say");
}

#[test]
fn a_new_plan_is_for_new_connections() {
    let gateway_of = |draft: &Draft| draft.start();
    let mut draft = Draft::to(echo());
    let gateway = gateway_of(&draft);
    let old_address = gateway.at();
    let mut old = greet(old_address, "d.example");
    echoed(&mut old, b"before");

    // An address of another's: nothing of the plan is taken.
    let (_taken, taken) = listener();
    let dead = listener().1;
    draft.listen.push(taken);
    draft.backend = vec![dead];
    let error = gateway.replan(&draft).expect_err("taken");
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot listen on {taken}: ")),
        "{error}"
    );
    assert_eq!(gateway.relay.addresses(), [old_address]);
    echoed(&mut greet(old_address, "d.example"), b"as before");

    // Another address, another backend.
    draft.listen = vec![(Ipv6Addr::LOCALHOST, 0).into()];
    draft.backend = vec![backend(|mut stream| stream.write_all(b"new").expect("say"))];
    gateway.replan(&draft).expect("a new plan");
    let mut new = greet(gateway.at(), "d.example");
    assert_eq!(rest(&mut new).expect("an end"), b"new");
    echoed(&mut old, b"after");
    until("closed", || TcpStream::connect(old_address).is_err());
    echoed(&mut old, b"after that");
}

#[test]
fn draining_lets_those_go_on_that_are_there() {
    let draft = Draft::to(echo());
    let gateway = draft.start();
    let at = gateway.at();
    let mut open = greet(at, "d.example");
    echoed(&mut open, b"before");
    // One that is in the middle of its hello.
    let mut opening = connect(at);
    let hello = hello("d.example", &[]);
    opening.write_all(&hello[..50]).expect("say");
    until("both are there", || gateway.relay.connections() == 2);
    gateway.relay.drain();
    until("closed", || TcpStream::connect(at).is_err());
    assert!(gateway.relay.addresses().is_empty());
    assert!(matches!(gateway.replan(&draft), Err(Error::Draining)));
    opening.write_all(&hello[50..]).expect("say");
    echoed(&mut opening, b"well");
    echoed(&mut open, b"after");
    let wait = |time| {
        let empty = gateway.relay.empty();
        gateway
            .runtime
            .block_on(async { tokio::time::timeout(time, empty).await })
    };
    wait(Duration::from_millis(100)).expect_err("two are there");
    drop((open, opening));
    wait(PATIENCE).expect("empty");
    until("closed", || gateway.ended("closed") == 2);
}

#[test]
fn who_came_before_the_drain_is_served() {
    // More at once than are accepted in one go.
    let gateway = Draft::to(echo()).start();
    let at = gateway.at();
    let mut clients: Vec<TcpStream> = (0..100).map(|_| connect(at)).collect();
    gateway.relay.drain();
    let hello = hello("d.example", &[]);
    let empty = gateway.relay.empty();
    gateway
        .runtime
        .block_on(async { tokio::time::timeout(Duration::from_millis(200), empty).await })
        .expect_err("they are waited for");
    for client in &mut clients {
        client.write_all(&hello).expect("say");
        echoed(client, b"well");
    }
}

#[test]
fn two_families_share_a_port() {
    let mut draft = Draft::to(echo());
    // Until a port is found that is free in both.
    let (gateway, port) = loop {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|l| l.local_addr())
            .expect("a port")
            .port();
        draft.listen = vec![
            (Ipv6Addr::UNSPECIFIED, port).into(),
            (Ipv4Addr::UNSPECIFIED, port).into(),
        ];
        let runtime = Runtime::new().expect("a runtime");
        let started = {
            let _in = runtime.enter();
            Relay::start(draft.plan())
        };
        if let Ok(relay) = started {
            break (Gateway { relay, runtime }, port);
        }
    };
    for to in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ] {
        echoed(&mut greet(to, "d.example"), b"well");
    }
    until("counted", || gateway.relay.counters().accepted.get() == 2);
}

#[test]
fn names_stand_for_all_their_connections() {
    let gateway = Draft::to(echo()).start();
    let names: Vec<Arc<str>> = vec!["A.acme.example".into(), "b.c.acme.EXAMPLE".into()];
    for name in names {
        echoed(&mut greet(gateway.at(), &name), b"well");
    }
    until("gone", || gateway.relay.connections() == 0);
    assert_eq!(gateway.bytes("acme", "down"), 8);
    let mut client = connect(gateway.at());
    let hello = hello("p.example", &["h2", "x/1"]);
    client.write_all(&hello).expect("say");
    echoed(&mut client, b"well");
}
