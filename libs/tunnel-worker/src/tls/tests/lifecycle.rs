//! Beginnings and ends of connections: dialers, replacement, close.

use gateway_client::pool::Failure;

use super::*;

#[test]
fn a_newer_connection_replaces_the_older() {
    let mut joined = joined();
    let (tenant, provider) = (&joined.tenant, &joined.provider);
    let at = joined.listener.addresses()[0];
    let other = tenant.dial(dialing(at, joined.fingerprint, 2));
    let (mut c, mut d) = (tenant.established(), provider.established());
    let again = tenant.dial(dialing(at, joined.fingerprint, 1));
    let mut new = None;
    let mut closed = None;
    for _ in 0..2 {
        match provider.next() {
            ConnectionEvent::Established(established) => new = Some(established),
            ConnectionEvent::Closed { id, reason, .. } => closed = Some((id, reason)),
            failed => panic!("{failed:?}"),
        }
    }
    let (id, why) = closed.expect("closed");
    assert!(matches!(why, CloseReason::Replaced), "{why}");
    assert_eq!(id, joined.b.id);
    let (mut old, mut newer) = (None, None);
    for _ in 0..2 {
        match tenant.next() {
            ConnectionEvent::Established(established) => newer = Some(established),
            ConnectionEvent::Closed { id, reason, .. } => old = Some((id, reason)),
            failed => panic!("{failed:?}"),
        }
    }
    let (id, why) = old.expect("closed");
    assert!(matches!(why, CloseReason::ByPeer), "{why}");
    assert_eq!(id, joined.a.id);
    let (mut a, mut b) = (newer.expect("a new one"), new.expect("a new one"));
    exchange(&mut a.rings[0], &mut b.rings[0], 1000, |n| payload(n, 900));
    // The connection of another circuit is not affected.
    exchange(&mut c.rings[0], &mut d.rings[0], 1000, |n| payload(n, 90));
    // The rings of the old connection take and give nothing.
    let ring = &mut joined.a.rings[0];
    assert!(!ring.sender.push(b"xy"));
    ring.sender.wake();
    assert_eq!(ring.receiver.take(1, |_| ()), 0);
    assert_eq!(joined.a.handle.stats().full_out, 1);
    let stats = joined.listener.stats();
    assert_eq!((stats.established, stats.replaced), (3, 1));
    assert_eq!(joined.listener.connections(), (2, 0));
    // Dropping a dialer that has finished changes nothing.
    drop((other, again));
    exchange(&mut a.rings[0], &mut b.rings[0], 10, |n| payload(n, 900));
}

#[test]
fn a_close_at_either_end_is_reported_at_the_other() {
    let tenant_closes = joined();
    drop(tenant_closes.a);
    assert!(matches!(
        tenant_closes.tenant.closed().1,
        CloseReason::Requested
    ));
    let (id, why) = tenant_closes.provider.closed();
    assert!(matches!(why, CloseReason::ByPeer), "{why}");
    assert_eq!(id, tenant_closes.b.id);
    assert_eq!(tenant_closes.listener.connections(), (0, 0));

    let mut provider_closes = joined();
    // Established connections outlive the listener.
    drop(provider_closes.listener);
    let (a, b) = (&mut provider_closes.a, &mut provider_closes.b);
    exchange(&mut a.rings[0], &mut b.rings[0], 100, |n| payload(n, 100));
    drop(provider_closes.b);
    assert!(matches!(
        provider_closes.tenant.closed().1,
        CloseReason::ByPeer
    ));

    let removed = joined();
    removed.listener.set_circuits(circuits(&[1, 2]));
    sleep(Duration::from_millis(50));
    assert!(removed.provider.events.try_recv().is_err(), "unchanged");
    let mut other = circuits(&[2]);
    other.insert(circuit(1), key(77));
    removed.listener.set_circuits(other);
    assert!(matches!(removed.provider.closed().1, CloseReason::Removed));
    assert!(matches!(removed.tenant.closed().1, CloseReason::ByPeer));
}

#[test]
fn a_dialer_names_the_error_of_each_address_and_tries_the_next() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let refusing = {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        socket.local_addr().expect("an address")
    };
    let mut two = dialing(refusing, fingerprint, 1);
    two.race = race(&[refusing, at]);
    let _dialer = tenant.dial(two);
    let failed = tenant.next();
    let ConnectionEvent::AddressFailed {
        address, failure, ..
    } = failed
    else {
        panic!("{failed:?}");
    };
    assert_eq!((address, failure), (refusing, Failure::Unreachable));
    assert_eq!(tenant.established().peer, at);
    drop(provider.established());

    // One address accepts connections and sends nothing; another one speaks HTTP.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let web = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let mut all = dialing(refusing, fingerprint, 1);
    let others = [&silent, &web].map(|one| one.local_addr().expect("an address"));
    all.race = race(&[refusing, others[0], others[1]]);
    all.timeout = Duration::from_secs(1);
    spawn(move || {
        let (mut socket, _) = web.accept().expect("accept");
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        sleep(TIMEOUT);
    });
    tenant.closed();
    let _second = tenant.dial(all);
    let why = match tenant.next() {
        ConnectionEvent::Failed {
            error: DialError::Exhausted(attempts),
            ..
        } => attempts,
        other => panic!("{other:?}"),
    };
    assert!(matches!(why[0].error, DialStepError::Connect(_)), "{why:?}");
    assert!(matches!(why[1].error, DialStepError::Slow(_)), "{why:?}");
    assert!(matches!(why[2].error, DialStepError::Tls(_)), "{why:?}");
    let said = DialError::Exhausted(why).to_string();
    assert!(
        said.contains("refused") && said.contains("; 127.0.0.1"),
        "{said}"
    );

    let mut bad = dialing(at, fingerprint, 1);
    bad.name = "192.0.2.1".to_owned();
    let started = TlsAttempt::start(bad, tenant.rings.clone(), tenant.event_sender.clone());
    assert!(matches!(started, Err(DialStartError::Name(_))));
}

#[test]
fn a_dropped_dialer_ends_its_attempt_at_once() {
    let tenant = Owner::new();
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let at = silent.local_addr().expect("an address");
    let fingerprint = Identity::generate(NAME).expect("one").fingerprint();
    let dialer = tenant.dial(dialing(at, fingerprint, 1));
    let (mut accepted, _) = silent.accept().expect("accept");
    let before = Instant::now();
    drop(dialer);
    assert!(matches!(
        tenant.next(),
        ConnectionEvent::Failed {
            error: DialError::Cancelled,
            ..
        }
    ));
    assert!(before.elapsed() < Duration::from_secs(2));
    patient(&accepted);
    let mut hello = Vec::new();
    accepted.read_to_end(&mut hello).expect("an end");
}
