//! Liveness probes: answers, and the reports of an end that does not answer.

use gateway_client::pool::Failure;

use super::*;

/// A path between the ends that can be paused and slowed down.
struct Path {
    at: SocketAddr,
    stopped: Arc<AtomicBool>,
    /// Bytes to the provider each millisecond.
    pace: Arc<AtomicU64>,
}

/// A path with small buffers: datagrams that it does not carry wait at the tenant's end.
fn path(to: SocketAddr) -> Path {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    setsockopt(&listener, sockopt::TcpMaxSeg, &1400).expect("short segments");
    setsockopt(&listener, sockopt::RcvBuf, &(16 << 10)).expect("a small buffer");
    let at = listener.local_addr().expect("an address");
    let path = Path {
        at,
        stopped: Arc::default(),
        pace: Arc::new(AtomicU64::new(u64::MAX)),
    };
    let (stopped, pace) = (Arc::clone(&path.stopped), Arc::clone(&path.pace));
    spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let far = TcpStream::connect(to).expect("connect");
            for (from, to, paced) in [(&near, &far, true), (&far, &near, false)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let (stopped, pace) = (Arc::clone(&stopped), Arc::clone(&pace));
                let pace = move || if paced { pace.load(SeqCst) } else { u64::MAX };
                spawn(move || pass(&from, &to, &stopped, pace));
            }
        }
    });
    path
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, stopped: &AtomicBool, pace: impl Fn() -> u64) {
    let mut room = [0; 4096];
    loop {
        let most = pace().min(room.len() as u64) as usize;
        let Ok(bytes @ 1..) = from.read(&mut room[..most]) else {
            let _ = to.shutdown(Shutdown::Write);
            return;
        };
        while stopped.load(SeqCst) {
            sleep(Duration::from_millis(1));
        }
        if to.write_all(&room[..bytes]).is_err() {
            return;
        }
        if most < room.len() {
            sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn an_unresponsive_end_is_reported_as_stalled_and_then_as_resumed() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let path = path(listener.addresses()[0]);
    let _dialer = tenant.dial(dialing(path.at, fingerprint, 1));
    let (mut a, mut b) = (tenant.established(), provider.established());
    // Neither idle nor busy connections are reported, and probes do not count as datagrams.
    sleep(Duration::from_secs(1));
    exchange(&mut a.rings[0], &mut b.rings[0], 2000, |n| payload(n, 900));
    assert!(tenant.events.try_recv().is_err());
    assert_eq!(b.handle.stats().datagrams_in, 2000);
    for _ in 0..3 {
        path.stopped.store(true, SeqCst);
        let stopped = Instant::now();
        let silent = tenant.next();
        assert!(
            matches!(
                silent,
                ConnectionEvent::Stalled { circuit: of, id } if of == circuit(1) && id == a.id
            ),
            "{silent:?}"
        );
        let took = stopped.elapsed();
        println!("silent after {} ms", took.as_millis());
        assert!(took < Duration::from_millis(1500), "{took:?}");
        sleep(Duration::from_millis(300));
        assert!(tenant.events.try_recv().is_err(), "reported once");
        path.stopped.store(false, SeqCst);
        let heard = tenant.next();
        assert!(
            matches!(heard, ConnectionEvent::Resumed { id, .. } if id == a.id),
            "{heard:?}"
        );
        sleep(Duration::from_millis(500));
    }
    exchange(&mut a.rings[0], &mut b.rings[0], 100, |n| payload(n, 900));
    // The provider answers probes and sends none, so it reports no silence.
    assert!(provider.events.try_recv().is_err());
}

/// One success of three is enough: the machine of the test may be busy.
#[test]
fn a_slow_path_with_full_queues_is_not_reported_as_stalled() {
    let mut tries = (0..3).map(|_| {
        let (came, told) = filled();
        println!("{came} datagrams; {told:?}");
        assert!(came > 100, "{came}");
        told.is_empty()
    });
    assert!(tries.any(|quiet| quiet), "reported each time");
}

/// Fills a slow path for four seconds. Returns the number of datagrams that arrived, and the
/// events. Then stops the path, and waits for the report.
fn filled() -> (usize, Vec<ConnectionEvent>) {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let path = path(listener.addresses()[0]);
    let _dialer = tenant.dial(dialing(path.at, fingerprint, 1));
    let (mut a, mut b) = (tenant.established(), provider.established());
    sleep(Duration::from_millis(500));
    // At about 500 kB/s the datagrams that wait at the tenant's end take a third of a second and
    // more. Only answers come back.
    path.pace.store(500, SeqCst);
    let begun = Instant::now();
    let (mut came, mut told) = (0, Vec::new());
    while begun.elapsed() < Duration::from_secs(4) {
        while a.rings[0].sender.push(&[7; 1400]) {}
        a.rings[0].sender.wake();
        came += b.rings[0].receiver.take(256, |_| ());
        told.extend(tenant.events.try_recv());
        sleep(Duration::from_millis(1));
    }
    // A stopped path is reported although datagrams wait.
    path.stopped.store(true, SeqCst);
    let stopped = Instant::now();
    while !matches!(tenant.next(), ConnectionEvent::Stalled { .. }) {}
    println!("silent after {} ms", stopped.elapsed().as_millis());
    (came, told)
}

#[test]
fn probes_are_answered_at_once_and_a_flood_of_probes_with_few_answers() {
    let provider = Owner::new();
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let (mut client, tag) = raw(listener.addresses()[0], fingerprint);
    let hello = stream::hello(circuit(1), &key(1), 1, tag);
    client.write_all(&hello).expect("send");
    let mut answer = [0; stream::HELLO_BYTES];
    client.read_exact(&mut answer).expect("an answer");
    let established = provider.established();
    let mut frame = [0; LivenessFrame::FRAME_BYTES];
    for _ in 0..100 {
        client
            .write_all(&LivenessFrame::Question.frame())
            .expect("send");
        client.read_exact(&mut frame).expect("an answer");
        assert_eq!(frame, LivenessFrame::Answer.frame());
    }
    // Answers without a probe are ignored.
    client
        .write_all(&LivenessFrame::Answer.frame())
        .expect("send");
    // At most three answers for each read: far fewer than probes.
    let flood = LivenessFrame::Question.frame().repeat(5000);
    for _ in 0..20 {
        client.write_all(&flood).expect("send");
    }
    client.write_all(b"\x00\x02ok").expect("send");
    let mut ring = established.rings.into_iter().next().expect("a ring");
    until("come", || ring.receiver.take(1, |_| ()) == 1);
    client
        .sock
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a deadline");
    let mut answers = 0;
    while client.read_exact(&mut frame).is_ok() {
        assert_eq!(frame, LivenessFrame::Answer.frame());
        answers += 1;
    }
    println!("{answers} answers to 100000 probes");
    assert!((1..=20_000).contains(&answers), "{answers}");
    assert!(
        provider.events.try_recv().is_err(),
        "the connection is still open"
    );
}

#[test]
fn an_unknown_frame_of_one_byte_ends_the_connection() {
    for (behind_hello, frame) in [
        (true, b"\x00\x01\x03"),
        (true, b"\x00\x01\x00"),
        (false, b"\x00\x01\x01"),
    ] {
        let provider = Owner::new();
        let (listener, fingerprint) = provider.listen(Limits::default(), false);
        let (mut client, tag) = raw(listener.addresses()[0], fingerprint);
        if behind_hello {
            let hello = stream::hello(circuit(1), &key(1), 1, tag);
            client.write_all(&hello).expect("send");
            let mut answer = [0; stream::HELLO_BYTES];
            client.read_exact(&mut answer).expect("an answer");
            let _there = provider.established();
            client.write_all(frame).expect("send");
            let (_, why) = provider.closed();
            assert!(
                matches!(why, CloseReason::Malformed(_) | CloseReason::Requested),
                "{why}"
            );
        } else {
            client.write_all(frame).expect("send");
            until("counted", || {
                listener.stats().refused(RefusalReason::NotAHello) == 1
            });
        }
        assert!(is_closed(&mut client));
    }
}

#[test]
fn an_unresponsive_address_delays_no_other() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    // Connections to these wait in a full queue.
    let full: Vec<_> = (0..2).map(|_| crowded()).collect();
    let mut all = dialing(full[0].0, fingerprint, 1);
    all.race = race(&[full[0].0, full[1].0, listener.addresses()[0]]);
    let begun = Instant::now();
    let _dialer = tenant.dial(all);
    // They had their time before the third was tried, and are tried last the next time.
    for (address, _) in &full {
        let failed = tenant.next();
        assert!(
            matches!(failed, ConnectionEvent::AddressFailed {
                address: at, failure: Failure::Silent, .. }
                if at == *address),
            "{failed:?}"
        );
    }
    let established = tenant.established();
    let took = begun.elapsed();
    println!("the third after {} ms", took.as_millis());
    assert_eq!(established.peer, listener.addresses()[0]);
    assert!(took < Duration::from_millis(1500), "{took:?}");
    // No address answers: all time out in parallel.
    let mut none = dialing(full[0].0, fingerprint, 2);
    let settings = RaceSettings {
        attempt_timeout: Duration::from_secs(1),
        ..RaceSettings::default()
    };
    none.race = Race::new(full.iter().map(|(at, _)| *at), settings);
    let begun = Instant::now();
    let _dialer = tenant.dial(none);
    let why = tenant.failed();
    assert!(matches!(why, DialStepError::NoAnswer(_)), "{why:?}");
    assert!(begun.elapsed() < Duration::from_millis(1900));
}

/// An address whose queue of connections is full, so that it answers no SYN; and the sockets that
/// fill it.
fn crowded() -> (SocketAddr, (OwnedFd, Vec<TcpStream>)) {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
    };
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .expect("a socket");
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("bind");
    listen(&fd, Backlog::new(0).expect("none")).expect("listen");
    let at: SockaddrIn = getsockname(fd.as_raw_fd()).expect("an address");
    let at = SocketAddr::new(at.ip().into(), at.port());
    let soon = Duration::from_millis(100);
    let queued = std::iter::from_fn(|| TcpStream::connect_timeout(&at, soon).ok()).collect();
    (at, (fd, queued))
}

#[test]
fn an_abandoned_attempt_ends_unless_its_hello_was_sent() {
    let tenant = Owner::new();
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let identity = Identity::generate(NAME).expect("one");
    let at = silent.local_addr().expect("an address");
    let dialer = tenant.dial(dialing(at, identity.fingerprint(), 1));
    let (_accepted, _) = silent.accept().expect("accept");
    dialer.cancel_before_hello();
    let cancelled = tenant.next();
    assert!(
        matches!(
            cancelled,
            ConnectionEvent::Failed {
                error: DialError::Cancelled,
                ..
            }
        ),
        "{cancelled:?}"
    );

    // The other end has accepted the hello, and closed the earlier connection.
    let (hello_came, hello) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let server = config::server(&identity).expect("a server");
    let serving = spawn(move || {
        let (socket, _) = silent.accept().expect("accept");
        patient(&socket);
        let server = rustls::ServerConnection::new(server).expect("a server");
        let mut tls = StreamOwned::new(server, socket);
        let mut hello = [0; stream::HELLO_BYTES];
        tls.read_exact(&mut hello).expect("a hello");
        hello_came.send(()).expect("the test waits");
        goes.recv().expect("the test goes on");
        let sealed = stream::read_hello(&hello[2..]).expect("a hello");
        let message = sealed.open(&key(1)).expect("its key");
        let answer = stream::answer(&message, &key(1));
        tls.write_all(&answer).expect("an answer");
        // Probes, until the connection is closed.
        while tls.read(&mut hello).is_ok_and(|bytes| bytes > 0) {}
    });
    let dialer = tenant.dial(dialing(at, identity.fingerprint(), 1));
    hello.recv_timeout(TIMEOUT).expect("a hello");
    dialer.cancel_before_hello();
    sleep(Duration::from_millis(50));
    go.send(()).expect("the server waits");
    let established = tenant.established();
    drop(established);
    assert!(matches!(tenant.closed().1, CloseReason::Requested));
    serving.join().expect("served");
}

#[test]
fn a_gateway_that_stalls_in_the_handshake_delays_no_other() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    // Only the kernel of this gateway answers.
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let at = listener.addresses()[0];
    let dead = socket.local_addr().expect("an address");
    let mut dialing = dialing(dead, fingerprint, 1);
    dialing.race = race(&[dead, at]);
    let begun = Instant::now();
    let _dialer = tenant.dial(dialing);
    let established = tenant.established();
    assert_eq!(established.peer, at);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(provider.established());
}

#[test]
fn simultaneous_connections_wait_for_a_free_thread() {
    const MANY: usize = 12;
    let provider = Owner::new();
    let limits = Limits {
        pending: 2,
        ..Limits::default()
    };
    let (listener, fingerprint) = provider.listen(limits, false);
    let at = listener.addresses()[0];
    let tenants: Vec<Owner> = (0..MANY).map(|_| Owner::new()).collect();
    // Several dialers share a circuit, and a newer connection replaces an older one. Each dialer
    // must get an answer.
    let _dialers: Vec<_> = (1..)
        .zip(&tenants)
        .map(|(n, tenant)| tenant.dial(dialing(at, fingerprint, n % 3 + 1)))
        .collect();
    for tenant in &tenants {
        match tenant.next() {
            ConnectionEvent::Established(_) => {}
            // The hello is older than another one of this circuit: its timestamp is set before it
            // waits.
            ConnectionEvent::Failed { error, .. } => {
                let said = error.to_string();
                assert!(said.contains("did not accept the circuit"), "{said}");
            }
            other => panic!("{other:?}"),
        }
    }
    for reason in [RefusalReason::Crowded, RefusalReason::GreedySource] {
        assert_eq!(listener.stats().refused(reason), 0, "{reason:?}");
    }
}
