//! Timeouts, backends, changes of configuration and drains.

use super::*;

#[test]
fn only_idle_connections_are_ended() {
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
        speaks_server.write_all(b"x").expect("send");
        speaks.read_exact(&mut [0]).expect("receive");
    }
    for stream in [&mut silent, &mut silent_server] {
        let error = rest(stream).expect_err("not a clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(gateway.ended("idle"), 1);
    assert_eq!(gateway.relay.connections(), 1);
}

#[test]
fn the_next_address_of_a_backend_is_tried() {
    let dead = listener().1;
    let mut draft = Draft::to(dead);
    draft.backend.push(echo());
    let gateway = draft.start();
    for _ in 0..3 {
        exchange(&mut greet(gateway.at(), "d.example"), b"well");
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
fn a_silent_backend_is_given_up_after_the_timeout() {
    // Its queue is full: the kernel drops further SYNs (tcp_conn_request(), net/ipv4/tcp_input.c).
    let (full, to) = listener();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).expect("none"))
        .expect("listen");
    let _filling = TcpStream::connect(to).expect("connect");
    let mut draft = Draft::to(to);
    draft.times.dial = Duration::from_millis(300);
    let gateway = draft.start();
    let begun = Instant::now();
    let mut client = greet(gateway.at(), "d.example");
    let received = rest(&mut client).expect("an end");
    assert_eq!(received, [21, 3, 3, 0, 2, 2, 80]);
    assert!(
        begun.elapsed() >= Duration::from_millis(290),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(gateway.refused("backend-unreachable"), 1);
}

#[test]
fn a_backend_gets_a_proxy_header() {
    let (listener, to) = listener();
    let mut draft = Draft::to(to);
    draft.proxy = true;
    // A wildcard: the PROXY header has the address that the client connected to, not this one.
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
    client.write_all(b"x").expect("send");
}

#[test]
fn a_new_plan_applies_to_new_connections() {
    let gateway_of = |draft: &Draft| draft.start();
    let mut draft = Draft::to(echo());
    let gateway = gateway_of(&draft);
    let old_address = gateway.at();
    let mut old = greet(old_address, "d.example");
    exchange(&mut old, b"before");

    // An address of another's: nothing of the configuration is taken.
    let (_taken, taken) = listener();
    let dead = listener().1;
    draft.listen.push(taken);
    draft.backend = vec![dead];
    let error = gateway.reconfigure(&draft).expect_err("taken");
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot listen on {taken}: ")),
        "{error}"
    );
    assert_eq!(gateway.relay.addresses(), [old_address]);
    exchange(&mut greet(old_address, "d.example"), b"as before");

    // Another address, another backend.
    draft.listen = vec![(Ipv6Addr::LOCALHOST, 0).into()];
    draft.backend = vec![backend(|mut stream| {
        stream.write_all(b"new").expect("send")
    })];
    gateway.reconfigure(&draft).expect("a new configuration");
    let mut new = greet(gateway.at(), "d.example");
    assert_eq!(rest(&mut new).expect("an end"), b"new");
    exchange(&mut old, b"after");
    until("closed", || TcpStream::connect(old_address).is_err());
    exchange(&mut old, b"after that");
}

#[test]
fn draining_keeps_existing_connections() {
    let mut draft = Draft::to(echo());
    let gateway = draft.start();
    let at = gateway.at();
    let mut open = greet(at, "d.example");
    exchange(&mut open, b"before");
    // One that is in the middle of its hello.
    let mut opening = connect(at);
    let hello = hello("d.example", &[]);
    opening.write_all(&hello[..50]).expect("send");
    until("both are there", || gateway.relay.connections() == 2);
    gateway.relay.drain();
    until("closed", || TcpStream::connect(at).is_err());
    assert!(gateway.relay.addresses().is_empty());
    // Another configuration, but no other address.
    gateway.reconfigure(&draft).expect("a configuration");
    assert!(gateway.relay.addresses().is_empty());
    draft.listen = vec![(Ipv6Addr::LOCALHOST, 0).into()];
    assert!(matches!(gateway.reconfigure(&draft), Err(Error::Draining)));
    opening.write_all(&hello[50..]).expect("send");
    exchange(&mut opening, b"well");
    exchange(&mut open, b"after");
    let wait = |time| {
        let empty = gateway.relay.empty();
        gateway
            .runtime
            .block_on(async { tokio::time::timeout(time, empty).await })
    };
    wait(Duration::from_millis(100)).expect_err("two are there");
    drop((open, opening));
    wait(TIMEOUT).expect("empty");
    until("closed", || gateway.ended("closed") == 2);
}

#[test]
fn connections_in_the_accept_queue_are_served() {
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
        client.write_all(&hello).expect("send");
        exchange(client, b"well");
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
            Relay::start(draft.config())
        };
        if let Ok(relay) = started {
            break (Gateway { relay, runtime }, port);
        }
    };
    for to in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ] {
        exchange(&mut greet(to, "d.example"), b"well");
    }
    until("counted", || gateway.relay.counters().accepted.get() == 2);
}

#[test]
fn limits_count_connections_of_all_names() {
    let gateway = Draft::to(echo()).start();
    let names: Vec<Arc<str>> = vec!["A.acme.example".into(), "b.c.acme.EXAMPLE".into()];
    for name in names {
        exchange(&mut greet(gateway.at(), &name), b"well");
    }
    until("gone", || gateway.relay.connections() == 0);
    assert_eq!(gateway.bytes("acme", "down"), 8);
    let mut client = connect(gateway.at());
    let hello = hello("p.example", &["h2", "x/1"]);
    client.write_all(&hello).expect("send");
    exchange(&mut client, b"well");
}
