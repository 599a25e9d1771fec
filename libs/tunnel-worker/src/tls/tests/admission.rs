//! Connections that the listener or the dialer refuses.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};

use super::*;

#[test]
fn each_of_several_pinned_certificates_is_accepted() {
    let provider = Owner::new();
    let (listener, presented) = provider.listen(Limits::default(), false);
    let other = Identity::generate(NAME).expect("one").fingerprint();
    // A provider changes its certificate while its tenants pin both.
    for (n, pinned) in [(1, vec![other, presented]), (2, vec![presented, other])] {
        let mut dialing = dialing(listener.addresses()[0], presented, n);
        dialing.fingerprints = pinned;
        let tenant = Owner::new();
        let _dialer = tenant.dial(dialing);
        tenant.established();
    }
    let tenant = Owner::new();
    let mut neither = dialing(listener.addresses()[0], presented, 3);
    neither.fingerprints = vec![other, Identity::generate(NAME).expect("one").fingerprint()];
    let _dialer = tenant.dial(neither);
    let error = tenant.failed().to_string();
    assert!(error.contains(&format!("not {other} or ")), "{error}");
}

#[test]
fn an_unpinned_certificate_is_refused_and_named() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, presented) = provider.listen(Limits::default(), false);
    let pinned = Identity::generate(NAME).expect("one").fingerprint();
    let _dialer = tenant.dial(dialing(listener.addresses()[0], pinned, 1));
    let step = tenant.failed();
    let said = step.to_string();
    assert!(
        matches!(step, DialStepError::Fingerprint { .. }),
        "{step:?}"
    );
    assert!(said.contains(&presented.to_string()), "{said}");
    assert!(said.contains(&pinned.to_string()), "{said}");
    until("counted", || {
        listener.stats().refused(RefusalReason::Tls) == 1
    });
}

#[test]
fn peers_without_the_circuits_key_are_refused() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let mut wrong = dialing(at, fingerprint, 1);
    wrong.key = key(2);
    let _first = tenant.dial(wrong);
    assert!(matches!(tenant.failed(), DialStepError::Refused));
    let _second = tenant.dial(dialing(at, fingerprint, 9));
    assert!(matches!(tenant.failed(), DialStepError::Refused));
    let refused = |reason| listener.stats().refused(reason);
    until("counted", || {
        refused(RefusalReason::Forged) + refused(RefusalReason::NoCircuit) == 2
    });
    let stats = listener.stats();
    assert_eq!(stats.refused(RefusalReason::Forged), 1);
    assert_eq!((stats.accepted, stats.established), (2, 0));
    // The dialer refuses a server that answers without the key.
    let identity = Identity::generate(NAME).expect("one");
    let fingerprint = identity.fingerprint();
    let server = config::server(&identity).expect("a server");
    let (at, serving) = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let at = listener.local_addr().expect("an address");
        let serving = spawn(move || {
            let (socket, _) = listener.accept().expect("accept");
            patient(&socket);
            let server = rustls::ServerConnection::new(server).expect("a server");
            let mut tls = StreamOwned::new(server, socket);
            let mut hello = [0; stream::HELLO_BYTES];
            tls.read_exact(&mut hello).expect("a hello");
            // The dialer's own hello, sent back.
            tls.write_all(&hello).expect("an answer");
            let _ = tls.read(&mut hello);
        });
        (at, serving)
    };
    let _third = tenant.dial(dialing(at, fingerprint, 1));
    assert!(matches!(tenant.failed(), DialStepError::WrongAnswer));
    serving.join().expect("served");
}

#[test]
fn replayed_and_relayed_hellos_are_refused() {
    let provider = Owner::new();
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let (mut first, tag) = raw(at, fingerprint);
    let hello = stream::hello(circuit(1), &key(1), 1000, tag);
    first.write_all(&hello).expect("send");
    let mut answer = [0; stream::HELLO_BYTES];
    first.read_exact(&mut answer).expect("an answer");
    assert!(stream::is_answer(
        &answer[2..],
        circuit(1),
        &key(1),
        1000,
        tag
    ));
    let established = provider.established();

    let tries = [
        // The same bytes on another connection; new hellos with the same and an older timestamp.
        (Some(hello), 0, RefusalReason::OtherConnection),
        (None, 1000, RefusalReason::Replayed),
        (None, 999, RefusalReason::Replayed),
    ];
    for (captured, timestamp, reason) in tries {
        let (mut next, tag) = raw(at, fingerprint);
        let hello = captured.unwrap_or_else(|| stream::hello(circuit(1), &key(1), timestamp, tag));
        next.write_all(&hello).expect("send");
        let before = Instant::now();
        assert!(is_closed(&mut next), "{reason:?}");
        assert!(before.elapsed() < Duration::from_secs(4), "at once");
        until("counted", || listener.stats().refused(reason) >= 1);
    }
    until("counted", || {
        listener.stats().refused(RefusalReason::Replayed) == 2
    });
    // The first connection is not affected.
    assert_eq!(listener.connections(), (1, 0));
    first.write_all(b"\x00\x03abc").expect("send");
    let mut ring = established.rings.into_iter().next().expect("a ring");
    let mut came: Vec<u8> = Vec::new();
    until("come", || {
        ring.receiver.take(1, |datagram| came.extend(&*datagram)) == 1
    });
    assert_eq!(came, b"abc");
}

/// A tenant that was connected with a clock in 2099 connects with the right time, while the old
/// connection is still there and after it has ended.
#[test]
fn a_clock_of_2099_locks_no_tenant_out() {
    const YEAR_2099: u64 = 4_070_908_800_000_000_000;
    let provider = Owner::new();
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let mut open = Vec::new();
    for timestamp in [YEAR_2099, 1_700_000_000_000_000_000, YEAR_2099] {
        let (mut stream, tag) = raw(at, fingerprint);
        let hello = stream::hello(circuit(1), &key(1), timestamp, tag);
        stream.write_all(&hello).expect("send");
        let mut answer = [0; stream::HELLO_BYTES];
        stream.read_exact(&mut answer).expect("an answer");
        let answer = &answer[2..];
        assert!(stream::is_answer(
            answer,
            circuit(1),
            &key(1),
            timestamp,
            tag
        ));
        open.push(stream);
    }
    open.clear();
    until("closed", || listener.connections() == (0, 0));
    let (mut stream, tag) = raw(at, fingerprint);
    let hello = stream::hello(circuit(1), &key(1), 1_700_000_000_000_000_000, tag);
    stream.write_all(&hello).expect("send");
    let mut answer = [0; stream::HELLO_BYTES];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(listener.stats().refused(RefusalReason::Replayed), 0);
}

#[test]
fn garbage_and_silence_are_closed_in_time_and_counted() {
    let provider = Owner::new();
    let limits = Limits {
        authenticate: Duration::from_secs(2),
        ..Limits::default()
    };
    let (listener, fingerprint) = provider.listen(limits, false);
    let at = listener.addresses()[0];
    let connect = || {
        let socket = TcpStream::connect(at).expect("connect");
        patient(&socket);
        socket
    };
    let counted = |reason| listener.stats().refused(reason);
    let begun = Instant::now();
    // Silent clients: before and after the TLS handshake.
    let mut silent = connect();
    let (mut mute, _) = raw(at, fingerprint);
    // A client that sends byte by byte gets no more time.
    let trickling = connect();
    let trickle = spawn({
        let mut socket = trickling.try_clone().expect("a socket");
        move || {
            for byte in [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 1, 1, 1, 1, 1] {
                sleep(Duration::from_millis(100));
                if socket.write_all(&[byte]).is_err() {
                    return;
                }
            }
        }
    });
    for _ in 0..20 {
        let mut garbage = connect();
        let _ = garbage.write_all(&payload(7, 3000));
        while !is_closed(&mut garbage) {}
    }
    until("counted", || counted(RefusalReason::Tls) == 20);
    let frames: [&[u8]; 4] = [
        b"\x00\x00",
        b"\x00\x03abc",
        b"\xff\xff",
        &[&[0, 64][..], &[7; 64]].concat(),
    ];
    for frame in frames {
        let (mut client, _) = raw(at, fingerprint);
        client.write_all(frame).expect("send");
        assert!(is_closed(&mut client));
    }
    until("counted", || counted(RefusalReason::NotAHello) == 4);
    assert!(is_closed(&mut silent) && is_closed(&mut mute));
    trickle.join().expect("no panic");
    until("counted", || counted(RefusalReason::Slow) == 3);
    assert!(begun.elapsed() < TIMEOUT);
    // A client that closes the connection before its hello is complete.
    drop(connect());
    until("counted", || counted(RefusalReason::Gone) == 1);
    until("gone", || listener.connections() == (0, 0));
    assert!(provider.events.try_recv().is_err());
}

#[test]
fn an_older_tls_and_another_protocol_are_refused() {
    let provider = Owner::new();
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let attempt = |config: Arc<rustls::ClientConfig>| {
        let name = NAME.try_into().expect("a name");
        let mut tls = ClientConnection::new(config, name).expect("a client");
        let mut socket = TcpStream::connect(at).expect("connect");
        patient(&socket);
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        let mut stream = StreamOwned::new(tls, socket);
        match is_closed(&mut stream) {
            true => Ok(()),
            false => Err(io::Error::other("it sent data")),
        }
    };
    let config = |alpn: &[&[u8]]| {
        let mut config = (*config::client(&[fingerprint]).expect("a client")).clone();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    };
    attempt(config(&[])).expect("closed, but TLS");
    attempt(config(&[b"h2"])).expect_err("an alert");
    until("counted", || {
        listener.stats().refused(RefusalReason::Protocol) == 2
    });
    let mut old = rustls::ClientConfig::builder_with_protocol_versions(&[&TLS12])
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    old.alpn_protocols = vec![ALPN.to_vec()];
    let error = attempt(Arc::new(old)).expect_err("an alert");
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    until("counted", || {
        listener.stats().refused(RefusalReason::Tls) == 1
    });
}

#[test]
fn strangers_do_not_keep_out_an_end_with_a_key() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let limits = Limits {
        connections: 2,
        pending: 4,
        pending_per_source: 4,
        waiting: 32,
        authenticate: TIMEOUT,
    };
    let (listener, fingerprint) = provider.listen(limits, false);
    let at = listener.addresses()[0];
    let mut strangers = Vec::new();
    for n in 1..=12 {
        strangers.push(TcpStream::connect(at).expect("connect"));
        until("accepted", || listener.stats().accepted == n);
        until("bounded", || listener.connections().1 <= 4);
    }
    let _one = tenant.dial(dialing(at, fingerprint, 1));
    let (_a, _b) = (tenant.established(), provider.established());
    let refused = |reason| listener.stats().refused(reason);
    until("counted", || refused(RefusalReason::GreedySource) >= 9);
    for stranger in &mut strangers[..8] {
        patient(stranger);
        assert!(is_closed(stranger), "the oldest are closed");
    }
    // The limit is reached; a circuit with a connection may still replace it.
    let _two = tenant.dial(dialing(at, fingerprint, 2));
    let (_c, _d) = (tenant.established(), provider.established());
    let _three = tenant.dial(dialing(at, fingerprint, 3));
    assert!(matches!(tenant.failed(), DialStepError::Refused));
    until("counted", || refused(RefusalReason::Full) == 1);
    let _again = tenant.dial(dialing(at, fingerprint, 2));
    until("replaced", || listener.stats().replaced == 1);
    drop(listener);
}

/// A connection to `at` from 127.0.0.`n`.
fn connect_from(n: u8, at: SocketAddr) -> TcpStream {
    let (family, kind) = (AddressFamily::Inet, SockType::Stream);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    let source = SocketAddr::from(([127, 0, 0, n], 0));
    bind(socket.as_raw_fd(), &SockaddrStorage::from(source)).expect("a source");
    connect(socket.as_raw_fd(), &SockaddrStorage::from(at)).expect("connected");
    TcpStream::from(socket)
}

/// Silent connections of one source, many more than may authenticate, and more all the time, do not
/// delay the end of another source.
#[test]
fn a_flood_of_one_source_does_not_delay_others() {
    const FLOOD: u64 = 400;
    let (tenant, provider) = (Owner::new(), Owner::new());
    let limits = Limits {
        pending: 8,
        pending_per_source: 8,
        waiting: 32,
        ..Limits::default()
    };
    let (listener, fingerprint) = provider.listen(limits, false);
    let at = listener.addresses()[0];
    let mut flood: Vec<TcpStream> = (0..FLOOD).map(|_| connect_from(2, at)).collect();
    let stopped = Arc::new(AtomicBool::new(false));
    let flooding = spawn({
        let stopped = Arc::clone(&stopped);
        move || {
            while !stopped.load(SeqCst) {
                drop(connect_from(2, at));
            }
        }
    });
    let _dialer = tenant.dial(dialing(at, fingerprint, 1));
    let (_a, _b) = (tenant.established(), provider.established());
    stopped.store(true, SeqCst);
    flooding.join().expect("no panic");
    // Those of the flood were not waited for.
    let stats = listener.stats();
    assert_eq!(stats.refused(RefusalReason::Slow), 0, "{stats:?}");
    assert!(stats.refused(RefusalReason::GreedySource) > 0, "{stats:?}");
    assert_eq!(stats.refused(RefusalReason::Crowded), 0, "{stats:?}");
    assert!(
        listener.connections().1 <= 16,
        "{:?}",
        listener.connections()
    );
    flood.clear();
}
