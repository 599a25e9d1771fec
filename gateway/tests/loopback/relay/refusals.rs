//! Hellos that are refused, and limits.

use super::*;

#[test]
fn a_hello_in_single_bytes_is_accepted() {
    let gateway = Draft::to(echo()).start();
    let mut client = connect(gateway.at());
    client.set_nodelay(true).expect("no delay");
    for byte in hello("d.example", &[]) {
        client.write_all(&[byte]).expect("send");
    }
    exchange(&mut client, b"and on");
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
        let mut received = Vec::new();
        for byte in hello("d.example", &[]) {
            if slow.write_all(&[byte]).is_err() {
                break;
            }
            sleep(Duration::from_millis(20));
        }
        let _ = slow.read_to_end(&mut received);
        received
    });
    assert_eq!(rest(&mut silent).expect("an end"), b"", "without a message");
    assert!(begun.elapsed() >= Duration::from_millis(390));
    assert_eq!(trickle.join().expect("an end"), b"");
    assert!(begun.elapsed() < Duration::from_secs(8));
    until("counted", || gateway.refused("hello-slow") == 2);
    until("gone", || gateway.relay.connections() == 0);
    // In time is in time.
    exchange(&mut greet(gateway.at(), "d.example"), b"well");
}

#[test]
fn clients_that_close_within_the_hello_are_counted() {
    let gateway = Draft::to(echo()).start();
    drop(connect(gateway.at()));
    let mut half = connect(gateway.at());
    half.write_all(&hello("d.example", &[])[..100])
        .expect("send");
    half.shutdown(Shutdown::Write).expect("half an end");
    assert_eq!(rest(&mut half).expect("an end"), b"");
    until("counted", || {
        gateway.refused("hello-none") == 1 && gateway.refused("hello-cut") == 1
    });
    until("gone", || gateway.relay.connections() == 0);
}

#[test]
fn garbage_is_closed_without_an_answer() {
    let gateway = Draft::to(echo()).start();
    for (wire, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "not-tls"),
        (b"\x16\x02\x00\x00\x10", "record-version"),
        (b"\x16\x03\x01\x00\x00", "record-length"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "not-a-hello"),
    ] {
        let mut client = connect(gateway.at());
        client.write_all(wire).expect("send");
        // A reset where it had not read everything.
        let received = rest(&mut client).unwrap_or_default();
        assert_eq!(received, b"", "{reason}");
        until(reason, || gateway.refused(reason) == 1);
    }
}

#[test]
fn a_refused_tls_client_gets_an_alert() {
    let dead = listener().1;
    let mut draft = Draft::to(dead);
    draft.tenant = 0;
    let gateway = draft.start();
    let long = [&[22, 3, 1, 63, 0, 1, 0, 0x3e, 0xfc][..], &[0; 200]].concat();
    for (wire, number, reason) in [
        (hello("unknown.example", &[]), 112, "no-route"),
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
        client.write_all(&wire).expect("send");
        let received = rest(&mut client).expect("an end");
        assert_eq!(received, [21, 3, 3, 0, 2, 2, number], "{reason}");
        until(reason, || gateway.refused(reason) == 1);
    }
    // The first bytes of a hello that becomes too long later: it is not refused yet.
    let mut client = connect(gateway.at());
    client.write_all(&long).expect("send");
    sleep(Duration::from_millis(100));
    assert_eq!(
        gateway.refused("hello-too-long"),
        1,
        "it is not too long yet"
    );
    let mut more = records_of_padding();
    more.truncate(20_000);
    // It may be closed while it is written.
    let _ = client.write_all(&more);
    until("too long", || gateway.relay.connections() == 0);
}

/// An endless hello: records of one byte each.
fn records_of_padding() -> Vec<u8> {
    [22, 3, 1, 0, 1, 0].repeat(5000)
}

#[test]
fn limits_of_source_tenant_and_gateway_hold() {
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
        exchange(&mut client, b"well");
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
    // Another source address, and one whose connection has ended.
    let v6 = gateway.relay.addresses()[1];
    exchange(&mut greet(v6, "d.example"), b"well");
    drop(first);
    until("gone", || gateway.relay.connections_of("acme") == 1);
    let _again = open("a.acme.example");

    draft.limits.connections = 3;
    gateway.reconfigure(&draft).expect("a new configuration");
    until("gone", || gateway.relay.connections() == 3);
    // All are on trial: one of the source with most is evicted for another source, and not for
    // its own.
    let mut fifth = greet(v6, "d.example");
    exchange(&mut fifth, b"well");
    until("evicted", || {
        gateway.ended("evicted") == 1 && gateway.relay.connections() == 3
    });
    let mut sixth = connect(gateway.at());
    assert!(rest(&mut sixth).unwrap_or_default().is_empty());
    assert_eq!(gateway.refused("limit-gateway"), 1);
}
