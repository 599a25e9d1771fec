//! Datagrams over a connection: carried whole, dropped and counted where there is no room.

use test_support::StopOnDrop;

use super::*;

#[test]
fn datagrams_of_every_length_arrive_unchanged() {
    let mut joined = joined();
    const LENGTHS: u64 = (DATAGRAM_BYTES - MIN_DATAGRAM + 1) as u64;
    let length = |n: u64| (n % LENGTHS) as usize + MIN_DATAGRAM;
    let (a, b) = (&mut joined.a.rings[0], &mut joined.b.rings[0]);
    exchange(a, b, LENGTHS, |n| payload(n, length(n)));
    let sum: u64 = (MIN_DATAGRAM as u64..=DATAGRAM_BYTES as u64).sum();
    for end in [&joined.a, &joined.b] {
        let all = ConnectionStats {
            datagrams_in: LENGTHS,
            bytes_in: sum,
            datagrams_out: LENGTHS,
            bytes_out: sum,
            ..ConnectionStats::default()
        };
        assert_eq!(end.handle.stats(), all);
    }
    let (a, b) = (&mut joined.a.rings[0], &mut joined.b.rings[0]);
    assert!(!a.sender.push(&[]));
    assert!(!a.sender.push(&[1]), "it would be a liveness frame");
    assert!(!a.sender.push(&[0; DATAGRAM_BYTES + 1]));
    exchange(a, b, 10, |n| payload(n, 2));
    assert_eq!(joined.a.handle.stats().full_out, 3);
    assert_eq!(joined.a.circuit, circuit(1));
    assert_eq!(joined.b.circuit, circuit(1));
    assert_eq!(joined.a.peer, joined.listener.addresses()[0]);
    assert!(
        joined.tenant.event_sender.wake.read().is_ok(),
        "woken by an event"
    );
}

/// 128 MiB; a gigabyte with `CAUSEWAY_LONG=1`.
#[test]
fn a_long_transfer_is_carried_and_every_loss_is_counted() {
    const LENGTH: u64 = 1400;
    let long = std::env::var_os("CAUSEWAY_LONG").is_some_and(|v| v == "1");
    let total: usize = if long { 1 << 30 } else { 1 << 27 };
    /// More than the rings hold, so that some datagrams are dropped.
    const AHEAD: u64 = 2048;
    let mut joined = joined();
    let body = payload(1, LENGTH as usize - 8);
    let (a, b) = (&mut joined.a.rings[0], &mut joined.b.rings[0]);
    let enough = AtomicBool::new(false);
    let (mut heard, last) = (0, AtomicU64::new(0));
    // As fast as possible: datagrams without room are dropped.
    let (sent, refused) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut datagram = [&[0; 8], &body[..]].concat();
            let (mut sent, mut refused) = (0u64, 0u64);
            while !enough.load(SeqCst) {
                if sent >= last.load(SeqCst) + AHEAD {
                    a.sender.wake();
                    yield_now();
                    continue;
                }
                datagram[..8].copy_from_slice(&(sent + 1).to_be_bytes());
                if a.sender.push(&datagram) {
                    sent += 1;
                } else {
                    refused += 1;
                    yield_now();
                }
                if sent % 32 == 0 || refused > 0 {
                    a.sender.wake();
                }
            }
            a.sender.wake();
            (sent, refused)
        });
        let stop = StopOnDrop(&enough);
        let begun = Instant::now();
        let mut take = || {
            b.receiver.take(256, |came| {
                let (number, rest) = came.split_first_chunk().expect("a number");
                let number = u64::from_be_bytes(*number);
                let last = last.swap(number, SeqCst);
                assert!(number > last && *rest == body, "{number} after {last}");
                heard += 1;
            })
        };
        let mut taken = 0;
        while taken < total / LENGTH as usize {
            match take() {
                0 => yield_now(),
                some => taken += some,
            }
            assert!(begun.elapsed() < TIMEOUT * 10, "{taken} taken");
        }
        drop(stop);
        let sent = sending.join().expect("sent");
        until("all accounted for", || {
            take();
            let came = joined.b.handle.stats();
            came.datagrams_in + came.full_in == sent.0
        });
        while take() > 0 {}
        sent
    });
    let (out, came) = (joined.a.handle.stats(), joined.b.handle.stats());
    assert_eq!((out.datagrams_out, out.full_out), (sent, refused));
    assert_eq!(out.bytes_out, sent * LENGTH);
    assert_eq!((came.datagrams_in, came.bytes_in), (heard, heard * LENGTH));
    println!("{out:?} {came:?}");
}

/// A path between the ends that can be stopped.
struct StoppablePath {
    at: SocketAddr,
    stop: Arc<AtomicBool>,
    ends: mpsc::Receiver<(TcpStream, TcpStream)>,
}

fn stoppable_path(to: SocketAddr) -> StoppablePath {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let at = listener.local_addr().expect("an address");
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, ends) = mpsc::channel();
    spawn({
        let stop = Arc::clone(&stop);
        move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(to).expect("connect");
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let stop = Arc::clone(&stop);
                    spawn(move || {
                        let mut room = [0; 4096];
                        while !stop.load(Relaxed) {
                            match from.read(&mut room) {
                                Ok(bytes @ 1..) if to.write_all(&room[..bytes]).is_ok() => {}
                                Ok(_) | Err(_) => return,
                            }
                        }
                    });
                }
                let _ = sender.send((near, far));
            }
        }
    });
    StoppablePath { at, stop, ends }
}

#[test]
fn a_stalled_path_drops_datagrams_and_takes_no_memory() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let path = stoppable_path(listener.addresses()[0]);
    let _dialer = tenant.dial(dialing(path.at, fingerprint, 1));
    let (mut a, mut b) = (tenant.established(), provider.established());
    exchange(&mut a.rings[0], &mut b.rings[0], 100, |n| payload(n, 100));
    path.stop.store(true, Relaxed);
    let datagram = payload(1, 1400);
    let ring = &mut a.rings[0];
    let (mut taken, mut refused) = (0u64, 0u64);
    let begun = Instant::now();
    // The ring and the kernel's buffers fill up.
    while refused < 200_000 && begun.elapsed() < TIMEOUT {
        if ring.sender.push(&datagram) {
            taken += 1;
        } else {
            refused += 1;
        }
        ring.sender.wake();
    }
    assert_eq!(a.handle.stats().full_out, refused);
    // The kernels on the path hold the taken datagrams; the process holds one ring at most.
    assert!(taken < 100_000, "{taken} taken");
    until("counted", || {
        let out = a.handle.stats().datagrams_out;
        out <= 100 + taken && 100 + taken - out <= 256
    });
    // The connection closes at once although datagrams wait.
    let before = Instant::now();
    a.handle.close();
    assert!(matches!(tenant.closed().1, CloseReason::Requested));
    assert!(before.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_half_close_and_a_reset_close_the_connection() {
    for hard in [false, true] {
        let (tenant, provider) = (Owner::new(), Owner::new());
        let (listener, fingerprint) = provider.listen(Limits::default(), false);
        let path = stoppable_path(listener.addresses()[0]);
        let _dialer = tenant.dial(dialing(path.at, fingerprint, 1));
        let (_a, _b) = (tenant.established(), provider.established());
        let (near, far) = path.ends.recv_timeout(TIMEOUT).expect("ends");
        if hard {
            for end in [&near, &far] {
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(end, sockopt::Linger, &linger).expect("no lingering");
            }
            path.stop.store(true, Relaxed);
            for end in [&near, &far] {
                end.shutdown(Shutdown::Read).expect("the copies end");
            }
            drop((near, far));
        } else {
            // The other direction stays open.
            far.shutdown(Shutdown::Write).expect("half an end");
        }
        let (_, why) = provider.closed();
        assert!(
            matches!(why, CloseReason::Cut | CloseReason::Lost(_)),
            "{why}"
        );
        assert_eq!(listener.connections(), (0, 0));
        if hard {
            let (_, why) = tenant.closed();
            assert!(
                matches!(why, CloseReason::Cut | CloseReason::Lost(_)),
                "{why}"
            );
        }
    }
}

#[test]
fn an_end_that_breaks_the_protocol_after_its_hello_is_closed() {
    let provider = Owner::new();
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let (mut client, tag) = raw(at, fingerprint);
    let hello = stream::hello(circuit(1), &key(1), 1, tag);
    let long = [&[0x10, 0][..], &[7; 4096]].concat();
    // In one write: datagrams behind the hello are not lost.
    let all = [&hello[..], b"\x00\x02xx", &long, b"\x00\x02yy\x00\x00"].concat();
    client.write_all(&all).expect("send");
    let mut established = provider.established();
    let (_, why) = provider.closed();
    assert!(matches!(why, CloseReason::Malformed(_)), "{why}");
    let mut came = Vec::new();
    established.rings[0]
        .receiver
        .take(10, |datagram| came.push(datagram.to_vec()));
    assert_eq!(came, [b"xx", b"yy"]);
    let counted = established.handle.stats();
    assert_eq!((counted.datagrams_in, counted.too_long_in), (2, 1));
}

#[test]
fn datagrams_reach_the_ring_of_their_worker_and_wake_it() {
    let (mut tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let sleeps: Vec<Arc<AtomicBool>> = (0..2).map(|_| Arc::default()).collect();
    let wakes: Vec<Arc<EventFd>> = (0..3).map(|_| event()).collect();
    tenant.rings.steer = steer_by_lane(3);
    tenant.rings.consumers = vec![
        ThreadWaker::new(Arc::clone(&wakes[0])),
        ThreadWaker::of_sleeper(Arc::clone(&wakes[1]), Arc::clone(&sleeps[0])),
        ThreadWaker::of_sleeper(Arc::clone(&wakes[2]), Arc::clone(&sleeps[1])),
    ];
    let _dialer = tenant.dial(dialing(listener.addresses()[0], fingerprint, 1));
    let (mut a, mut b) = (tenant.established(), provider.established());
    let data = |lane: u32| [&[4, 0, 0, 0][..], &(640 + lane).to_le_bytes(), &[7; 24]].concat();
    sleeps[1].store(true, SeqCst);
    let datagrams = [
        vec![1; 148],
        vec![2; 92],
        vec![3; 64],
        data(0),
        data(1),
        data(2),
        data(4),
        vec![4, 4],
    ];
    for datagram in &datagrams {
        assert!(b.rings[0].sender.push(datagram));
    }
    b.rings[0].sender.wake();
    let total = || {
        let counted = a.handle.stats();
        (counted.datagrams_in, counted.no_ring_in)
    };
    until("come", || total() == (7, 1));
    let came = a.rings.iter_mut().map(|ring| {
        let mut came = Vec::new();
        ring.receiver
            .take(10, |datagram| came.push(datagram.to_vec()));
        came
    });
    let came: Vec<Vec<Vec<u8>>> = came.collect();
    assert_eq!(came[0], datagrams[..3]);
    assert_eq!(came[1], [data(0), vec![4, 4]]);
    assert_eq!(came[2], [data(1), data(4)]);
    until("woken", || wakes[0].read().is_ok());
    until("woken", || wakes[2].read().is_ok());
    assert!(wakes[1].read().is_err(), "it was awake");
    // Each ring sends, too.
    for n in 0..3 {
        assert!(a.rings[n].sender.push(&[n as u8; 2]));
        a.rings[n].sender.wake();
        let mut came: Vec<u8> = Vec::new();
        until("come", || {
            b.rings[0]
                .receiver
                .take(1, |datagram| came.extend(&*datagram))
                == 1
        });
        assert_eq!(came, [n as u8; 2]);
    }
}
