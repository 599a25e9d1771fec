//! Bytes in both directions, and the ends of connections.

use fuzzing::Seeded;

use super::*;

#[test]
fn tls_is_relayed_to_the_named_backend() {
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
            let (mut noise, mut sent, mut received) =
                (Seeded::new(1), vec![0; 10_000], vec![0; 10_000]);
            for _ in 0..50 {
                noise.fill(&mut sent);
                client.write_all(&sent).expect("send");
                client.read_exact(&mut received).expect("receive");
                assert!(received == sent);
            }
            client.conn.send_close_notify();
            client.flush().expect("close TLS");
            // The server closes TLS too, so its end of stream is clean.
            assert_eq!(client.read(&mut received).expect("end of stream"), 0);
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
fn a_client_notices_a_wrong_server() {
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
        expect_noise(&mut stream, 1, LENGTH);
        assert_eq!(rest(&mut stream).expect("an end"), b"");
        send_noise(&mut stream, 2, LENGTH);
    });
    let mut draft = Draft::to(to);
    draft.limits.pipes = if spliced { 10 } else { 0 };
    let gateway = draft.start();
    let mut client = greet(gateway.at(), "d.example");
    send_noise(&mut client, 1, LENGTH);
    client.shutdown(Shutdown::Write).expect("half an end");
    expect_noise(&mut client, 2, LENGTH);
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
        expect_noise(&mut read, 3, LENGTH);
        writing.join().expect("all of it");
    });
    let gateway = Draft::to(to).start();
    let client = greet(gateway.at(), "d.example");
    let mut write = client.try_clone().expect("a clone");
    let writing = spawn(move || send_noise(&mut write, 3, LENGTH));
    let mut read = client;
    sleep(Duration::from_millis(600));
    expect_noise(&mut read, 4, LENGTH);
    writing.join().expect("all of it");
}

#[test]
fn connections_never_mix_bytes() {
    // More connections than pipes, so that pipes and buffers change hands all the time; some are
    // cut with bytes in them.
    const CLIENTS: u64 = 30;
    const ROUNDS: u64 = 12;
    let mut draft = Draft::to(echo());
    draft.limits.pipes = 1;
    let gateway = draft.start();
    let at = gateway.at();
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|n| {
            spawn(move || {
                let mut noise = Seeded::new(n);
                let mut open = greet(at, "d.example");
                for round in 0..ROUNDS {
                    let mut sent = vec![0; (n * 79_193 + round * 104_729) as usize % 1_000_000 + 1];
                    noise.fill(&mut sent);
                    if (n + round) % 11 == 0 {
                        let _ = open.write_all(&sent);
                        if n % 2 == 0 {
                            reset(open);
                        }
                        open = greet(at, "d.example");
                    }
                    let mut write = open.try_clone().expect("a clone");
                    let saying = sent.clone();
                    let saying = spawn(move || write.write_all(&saying).expect("send"));
                    let mut received = vec![0; sent.len()];
                    open.read_exact(&mut received).expect("receive");
                    saying.join().expect("no panic");
                    assert!(received == sent, "client {n}, round {round}");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("the client received the reply");
    }
    until("gone", || gateway.relay.connections() == 0);
    assert!(gateway.relay.unused_pipes() <= 1);
    assert!(gateway.relay.counters().short_of_pipes.get() > 0);
}

#[test]
fn each_direction_ends_independently() {
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
        first.write_all(b"the last").expect("send");
        first.shutdown(Shutdown::Write).expect("half an end");
        assert_eq!(rest(&mut second).expect("an end"), b"the last");
        for _ in 0..3 {
            second.write_all(b"more").expect("send");
            let mut received = [0; 4];
            first.read_exact(&mut received).expect("receive");
            assert_eq!(&received, b"more");
            sleep(Duration::from_millis(50));
        }
        second.shutdown(Shutdown::Write).expect("half an end");
        assert_eq!(rest(&mut first).expect("an end"), b"");
    }
    until("closed", || gateway.ended("closed") == 2);
    until("gone", || gateway.relay.connections() == 0);
}

#[test]
fn a_reset_is_relayed_in_both_directions() {
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

/// Waits until the other end has acknowledged all sent bytes.
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
fn an_answer_arrives_although_the_backend_did_not_read() {
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
    expect_noise(&mut client, 5, LENGTH);
    assert_eq!(rest(&mut client).expect("a clean end"), b"");
    client.shutdown(Shutdown::Both).expect("an end");
    talking.join().expect("an end");
}

#[test]
fn a_truncated_answer_ends_with_a_reset() {
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
        // The kernel reports the error once, to the sender or the receiver. So the test reads the
        // gateway's counters.
        let _ = rest(&mut client);
        talking.join().expect("an end");
        until("an end", || gateway.relay.connections() == 0);
        assert_eq!(gateway.ended("reset"), n);
    }
}

#[test]
fn bytes_after_the_hello_are_relayed() {
    let gateway = Draft::to(echo()).start();
    let mut client = connect(gateway.at());
    let mut wire = hello("x.acme.example", &["h2"]);
    wire.extend(b"early");
    client.write_all(&wire).expect("send");
    let mut received = [0; 5];
    client.read_exact(&mut received).expect("receive");
    assert_eq!(&received, b"early");
}
