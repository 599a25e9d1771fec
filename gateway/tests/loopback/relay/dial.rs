//! Backends that are slow, gone or back; PROXY headers of listed senders; strangers and a tenant's
//! limit; access records.

use gateway_client::proxy_header;

use super::*;

/// A listener whose accept queue is full: it does not answer (tcp_conn_request(),
/// net/ipv4/tcp_input.c).
fn silent() -> (TcpListener, SocketAddr, TcpStream) {
    let (full, at) = listener();
    let none = nix::sys::socket::Backlog::new(0).expect("none");
    nix::sys::socket::listen(&full, none).expect("listen");
    let filling = TcpStream::connect(at).expect("connect");
    (full, at, filling)
}

/// A silent address costs one client a quarter of a second and the next ones nothing, a
/// reload forgets nothing, and all return to the preferred address.
#[test]
fn a_silent_address_delays_one_client_and_is_preferred_again_when_it_works() {
    let (full, at, filling) = silent();
    let mut draft = Draft::to(at);
    draft.backend.push(echo());
    let gateway = draft.start();
    let greeted = || {
        let begun = Instant::now();
        exchange(&mut greet(gateway.at(), "d.example"), b"well");
        begun.elapsed()
    };
    let first = greeted();
    assert!(
        first >= Duration::from_millis(240) && first < Duration::from_secs(2),
        "{first:?}"
    );
    gateway.reconfigure(&draft).expect("a new configuration");
    for _ in 0..5 {
        let next = greeted();
        assert!(next < Duration::from_millis(200), "{next:?}");
    }
    // It works again.
    drop(filling);
    let served = spawn(move || {
        drop(full.accept());
        full.accept().expect("a connection").0
    });
    until("the preferred address is used", || {
        let _client = greet(gateway.at(), "d.example");
        sleep(Duration::from_millis(100));
        served.is_finished()
    });
}

#[test]
fn a_client_that_leaves_ends_the_dial() {
    let (_full, at, _filling) = silent();
    let gateway = Draft::to(at).start();
    let client = greet(gateway.at(), "d.example");
    until("it is there", || gateway.relay.connections() == 1);
    let begun = Instant::now();
    drop(client);
    until("gone", || gateway.relay.connections() == 0);
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(gateway.refused("client-gone"), 1);
}

/// Behind a load balancer, limits and backends see the client.
#[test]
fn a_listed_sender_names_the_client() {
    let (listener, to) = listener();
    let mut draft = Draft::to(to);
    draft.proxy = true;
    draft.proxy_from = vec!["127.0.0.0/8".parse().expect("a prefix")];
    draft.limits.per_source = 1;
    let gateway = draft.start();
    let from = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    let open = |client: &str| {
        let mut stream = connect(gateway.at());
        let header = proxy_header::header(from(client), gateway.at(), "");
        stream.write_all(&header).expect("say");
        stream.write_all(&hello("d.example", &[])).expect("say");
        stream
    };
    let mut first = open("192.0.2.1:1000");
    let (mut server, _) = listener.accept().expect("accept");
    patient(&server);
    let mut header = [0; 28 + 12];
    server.read_exact(&mut header).expect("a header");
    assert_eq!(header[16..20], [192, 0, 2, 1]);
    assert_eq!(header[24..26], 1000u16.to_be_bytes());
    let hello_bytes = hello("d.example", &[]).len();
    server
        .read_exact(&mut vec![0; hello_bytes])
        .expect("the hello");
    server.write_all(b"well").expect("say");
    first.read_exact(&mut [0; 4]).expect("hear");
    // Its source is full; another one is not.
    assert!(
        rest(&mut open("192.0.2.1:1001"))
            .unwrap_or_default()
            .is_empty()
    );
    assert_eq!(gateway.refused("limit-source"), 1);
    let _second = open("192.0.2.2:1000");
    let (second_server, _) = listener.accept().expect("accept");
    drop(second_server);
    // Without a header it is refused.
    let mut bare = greet(gateway.at(), "d.example");
    assert!(rest(&mut bare).unwrap_or_default().is_empty());
    assert_eq!(gateway.refused("proxy-header"), 1);
    // An end is an end behind a header, too.
    drop(server);
    assert_eq!(rest(&mut first).expect("an end"), b"");
    drop(first);
    until("closed", || gateway.ended("closed") >= 1);
}

/// A source that knows a tenant's name keeps no tenant out.
#[test]
fn a_flood_of_hellos_leaves_a_tenant_its_limit() {
    let mut draft = Draft::to(echo());
    draft.tenant = 4;
    draft.times.trial = Duration::from_millis(300);
    draft.listen = vec![(Ipv4Addr::UNSPECIFIED, 0).into()];
    let gateway = draft.start();
    let port = gateway.at().port();
    let open_from = |host: u8| {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::empty(),
            None,
        )
        .expect("a socket");
        let own = nix::sys::socket::SockaddrIn::new(127, 0, 0, host, 0);
        nix::sys::socket::bind(socket.as_raw_fd(), &own).expect("bind");
        let to = nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, port);
        nix::sys::socket::connect(socket.as_raw_fd(), &to).expect("connect");
        let mut stream = TcpStream::from(socket);
        patient(&stream);
        stream
            .write_all(&hello("a.acme.example", &[]))
            .expect("say");
        stream
    };
    let mut honest = open_from(2);
    exchange(&mut honest, b"well");
    sleep(Duration::from_millis(400));
    // Backends close those of strangers; this one does not, so their trial is long.
    draft.times.trial = Duration::from_secs(60);
    gateway.reconfigure(&draft).expect("a new configuration");
    let flood: Vec<TcpStream> = (0..20).map(|_| open_from(66)).collect();
    until("the flood has all it can get", || {
        gateway.relay.connections_of("acme") == 5
    });
    // Another honest one of the tenant comes in, and the first is undisturbed.
    let mut second = open_from(3);
    exchange(&mut second, b"well");
    exchange(&mut honest, b"still");
    until("a stranger gave way", || gateway.ended("evicted") == 1);
    drop(flood);
}

#[test]
fn each_connection_leaves_an_access_record() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("access.jsonl");
    let mut draft = Draft::to(echo());
    draft.access_log = Some(path.clone());
    let gateway = draft.start();
    let mut client = greet(gateway.at(), "a.acme.example");
    let from = client.local_addr().expect("an address");
    exchange(&mut client, b"12345");
    drop(client);
    let mut stranger = greet(gateway.at(), "unknown.example");
    let _ = rest(&mut stranger);
    let lines = || {
        let text = std::fs::read_to_string(&path).expect("a file");
        let lines = text.lines().map(|l| serde_json::from_str(l).expect("JSON"));
        lines.collect::<Vec<serde_json::Value>>()
    };
    until("written", || lines().len() == 1);
    let record = &lines()[0];
    for (key, value) in [
        ("client", from.to_string().as_str()),
        ("tenant", "acme"),
        ("backend", "b"),
        ("name", "a.acme.example"),
        ("end", "closed"),
    ] {
        assert_eq!(record[key], value, "{key}");
    }
    let up = hello("a.acme.example", &[]).len() + 5;
    assert_eq!(
        (record["up"].as_u64(), record["down"].as_u64()),
        (Some(up as u64), Some(5))
    );
    // It is opened again by a reload, after it was moved away.
    std::fs::rename(&path, dir.path().join("old")).expect("moved");
    gateway.reconfigure(&draft).expect("a new configuration");
    drop(greet(gateway.at(), "d.example"));
    until("written to the new file", || lines().len() == 1);
    draft.access_log = Some(dir.path().join("no/such"));
    let error = gateway
        .reconfigure(&draft)
        .expect_err("no such folder")
        .to_string();
    assert!(
        error.starts_with("relay.access_log: cannot open "),
        "{error}"
    );
}
