//! Circuits on loopback: ends that bind, roam and unbind, and attackers.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use gateway::circuit::{
    socket::{Circuits, Error, Setup, State},
    table::Reason,
};
use gateway_client::{
    end::{End, EndEvent},
    wire::{CircuitId, Key, Load, Side},
};
use gateway_model::{Changes, Circuit, Tenant};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};

use circuit_end::{CircuitEnd, INTERVAL, clock};
use fuzzing::Seeded;

use crate::common::*;

const V4: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

pub fn v6() -> SocketAddr {
    (Ipv6Addr::LOCALHOST, 0).into()
}

pub fn id(n: u64) -> CircuitId {
    CircuitId::new(n << 32 | n).expect("an id")
}

pub fn key_bytes(circuit: u64, side: Side) -> [u8; 32] {
    [circuit as u8 * 2 + side as u8 + 1; 32]
}

fn tenant(name: &str, datagrams: Option<u64>) -> (Arc<str>, Option<Tenant>) {
    let limits = Tenant {
        connections: 1,
        datagrams,
        bytes: None,
    };
    (name.into(), Some(limits))
}

fn circuit(n: u64, tenant: &str) -> (CircuitId, Option<Circuit>) {
    let keys = Side::BOTH.map(|side| Key::new(key_bytes(n, side)));
    let tenant = tenant.into();
    (id(n), Some(Circuit { tenant, keys }))
}

/// Circuits 1 to 3, the last of tenant evil.
fn plan() -> Changes {
    Changes {
        tenants: vec![tenant("acme", None), tenant("evil", None)],
        circuits: vec![circuit(1, "acme"), circuit(2, "acme"), circuit(3, "evil")],
        ..Changes::default()
    }
}

fn start(listen: &[SocketAddr], threads: usize) -> Circuits {
    Circuits::start(Setup::new(TIMEOUT, threads), listen, &plan()).expect("listen")
}

/// One side of a circuit, towards the gateway at `to`.
pub fn circuit_end(circuit: u64, side: Side, to: SocketAddr) -> CircuitEnd {
    let key = Key::new(key_bytes(circuit, side));
    CircuitEnd::new(socket_to(to), id(circuit), side, key)
}

fn socket_to(to: SocketAddr) -> UdpSocket {
    let from: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let socket = UdpSocket::bind((from, 0)).expect("a socket");
    socket.set_read_timeout(Some(INTERVAL)).expect("a deadline");
    // Connected: the kernel delivers datagrams of this address alone.
    socket.connect(to).expect("an address");
    socket
}

/// Both ends of a circuit, bound.
fn joined(circuit: u64, a: SocketAddr, b: SocketAddr) -> [CircuitEnd; 2] {
    let mut ends = [(Side::A, a), (Side::B, b)].map(|(side, to)| circuit_end(circuit, side, to));
    for end in &mut ends {
        end.bind();
    }
    ends
}

fn dropped(state: &State, reason: Reason) -> u64 {
    let of_circuits = state
        .circuits
        .iter()
        .map(|c| c.counts.drops[reason as usize]);
    of_circuits.sum::<u64>() + state.drops[reason as usize]
}

#[test]
fn ends_learn_the_load_of_the_gateway() {
    let gateway = start(&[V4], 2);
    let at = gateway.addresses()[0];
    let mut all: Vec<CircuitEnd> = (1..=3).flat_map(|n| joined(n, at, at)).collect();
    assert!(all.iter().all(|end| end.end.load().is_none()));
    gateway.set_load(Load::from_thousandths(400));
    for end in &mut all {
        let until = Instant::now() + TIMEOUT;
        while end.end.load().is_none() && Instant::now() < until {
            end.bind();
        }
        assert_eq!(end.end.load(), Some(400));
    }
}

#[test]
fn ends_of_any_address_family_exchange_datagrams() {
    for threads in [1, 3] {
        let gateway = start(&[V4, v6()], threads);
        let at = gateway.addresses();
        for circuit in 1..=3 {
            for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let [a, b] = joined(circuit, at[a], at[b]);
                a.send(b"from a");
                b.expect(b"from a");
                b.send(b"from b");
                a.expect(b"from b");
                let long = vec![7; 9000];
                a.send(&long);
                b.expect(&long);
            }
        }
        let state = gateway.state();
        assert_eq!((state.circuits.len(), state.bound), (3, 6));
        for circuit in &state.circuits {
            assert_eq!(circuit.counts.from.map(|t| t.datagrams), [8, 4]);
            assert_eq!(circuit.counts.from[1].bytes, 4 * 14);
            let events = circuit.counts.events;
            assert_eq!((events.bound, events.moved), (2, 6));
        }
    }
}

#[test]
fn a_reply_has_the_address_of_the_request_as_its_source() {
    let gateway = start(&[(Ipv4Addr::UNSPECIFIED, 0).into()], 1);
    let port = gateway.addresses()[0].port();
    // The ends' sockets are connected, so they receive from these addresses only.
    let [a, b] = joined(
        1,
        (Ipv4Addr::new(127, 0, 0, 2), port).into(),
        (Ipv4Addr::new(127, 0, 0, 3), port).into(),
    );
    a.send(b"to 2");
    b.expect(b"to 2");
    b.send(b"to 3");
    a.expect(b"to 3");
}

#[test]
fn a_roaming_end_is_reached_after_its_bind() {
    let gateway = start(&[V4], 1);
    let at = gateway.addresses()[0];
    let [mut a, b] = joined(1, at, at);
    a.roam(socket_to(at));
    a.send(b"from nowhere");
    b.send(b"dropped");
    assert_eq!(b.receive(), None);
    assert_eq!(a.receive(), None);
    a.bind();
    b.send(b"delivered");
    a.expect(b"delivered");
    a.send(b"from somewhere");
    b.expect(b"from somewhere");
    let state = gateway.state();
    assert_eq!(state.circuits[0].counts.events.moved, 1);
    assert_eq!(dropped(&state, Reason::NotBound), 1);
    assert_eq!(
        state.circuits[0].bound[0],
        Some(a.socket.local_addr().expect("an address"))
    );
}

#[test]
fn a_silent_end_becomes_unbound() {
    let setup = Setup::new(Duration::from_millis(600), 1);
    let gateway = Circuits::start(setup, &[V4], &plan()).expect("listen");
    let at = gateway.addresses()[0];
    let [mut a, mut b] = joined(1, at, at);
    for _ in 0..8 {
        sleep(Duration::from_millis(150));
        assert_eq!(a.bind_within(TIMEOUT), Some(EndEvent::Bound(600)));
        // Datagrams alone do not keep it.
        b.send(b"still here");
    }
    let state = gateway.state();
    assert_eq!(state.circuits[0].bound[1], None);
    assert_eq!(state.circuits[0].counts.events.expired, 1);
    assert!(dropped(&state, Reason::NotBound) >= 1);
    while a.receive().is_some() {}
    a.send(b"dropped");
    assert_eq!(b.receive(), None);
    a.bind();
    b.bind();
    a.send(b"delivered");
    b.expect(b"delivered");
    // An end that unbinds does not wait for its lifetime to expire.
    b.socket.send(&b.end.unbind(clock())).expect("send");
    until("gone", || gateway.state().bound == 1);
}

#[test]
fn ends_bind_again_within_a_second_after_a_restart() {
    let gateway = start(&[V4], 2);
    let at = gateway.addresses()[0];
    let [mut a, mut b] = joined(1, at, at);
    let old = a.end.bind(clock());
    drop(gateway);
    let gateway = start(&[at], 2);
    let begun = Instant::now();
    a.bind();
    b.bind();
    assert!(begun.elapsed() < Duration::from_secs(1));
    a.send(b"again");
    b.expect(b"again");
    // A message captured before the restart is refused as a replay.
    let thief = socket_to(at);
    thief.send(&old).expect("send");
    until("challenged, which binds nothing", || {
        gateway.state().circuits[0].counts.events.challenged == 3
    });
    b.send(b"to a");
    a.expect(b"to a");
}

#[test]
fn attackers_are_dropped_without_an_answer() {
    let gateway = start(&[V4], 2);
    let at = gateway.addresses()[0];
    let [mut a, b] = joined(1, at, at);
    let attacker = socket_to(at);
    let begun = Instant::now();
    let sent_before = gateway.state().totals.sent;
    let mut tried = 0;
    let mut attempt = |bytes: &[u8]| {
        attacker.send(bytes).expect("send");
        tried += 1;
        // Waits for the gateway, so that its receive buffer does not overflow.
        if tried % 32 == 0 {
            until("seen", || gateway.state().totals.received >= tried);
        }
    };
    let captured = a.end.bind(clock());
    a.socket.send(&captured).expect("send");
    let mut noise = Seeded::new(7);
    for n in 0..2000u64 {
        let mut bytes = vec![0; (n % 100) as usize];
        noise.fill(&mut bytes);
        match n % 8 {
            // Random bytes; on guessed circuits; on a known one.
            0 => {}
            1 => bytes.splice(0..0, id(n).to_bytes()).for_each(drop),
            2 => bytes.splice(0..0, id(1).to_bytes()).for_each(drop),
            3 => bytes.splice(0..0, [0; 8]).for_each(drop),
            // A captured message; one with a changed bit.
            4 => bytes = captured.to_vec(),
            5 => {
                bytes = captured.to_vec();
                bytes[(n / 8 % 64) as usize] ^= 1 << (n / 512 % 8);
            }
            // Signed with the keys of the attacker's circuit: for another circuit, and for an
            // unknown one.
            6 => {
                let key = Key::new(key_bytes(3, Side::A));
                bytes = End::new(id(1), Side::A, key).bind(clock()).to_vec();
            }
            _ => {
                let key = Key::new(key_bytes(3, Side::A));
                bytes = End::new(id(n), Side::A, key).bind(clock()).to_vec();
            }
        }
        attempt(&bytes);
    }
    let mut buffer = [0; 2048];
    // Copies of a true bind are challenged 16 times a second, which binds nothing.
    let mut challenges = 0;
    while let Ok(length) = attacker.recv(&mut buffer) {
        assert_eq!((length, buffer[9]), (64, 2), "a challenge");
        challenges += 1;
    }
    let most = 17 + 16 * begun.elapsed().as_secs();
    assert!(challenges <= most, "{challenges} challenges");
    let state = gateway.state();
    let answered = state.totals.sent - sent_before;
    // A's own bind, unless a copy was first: that one was challenged and moved nothing.
    assert_eq!(answered, 1 + challenges, "{state:#?}");
    for reason in [
        Reason::Malformed,
        Reason::NoCircuit,
        Reason::Forged,
        Reason::Replayed,
        Reason::NotBound,
    ] {
        assert!(dropped(&state, reason) >= 200, "{reason:?}: {state:#?}");
    }
    a.send(b"after the attack");
    b.expect(b"after the attack");
    a.bind();
    b.send(b"after the attack");
    a.expect(b"after the attack");
}

#[test]
fn a_first_bind_has_one_short_answer() {
    let gateway = start(&[V4], 1);
    let at = gateway.addresses()[0];
    let mut end = End::new(id(1), Side::A, Key::new(key_bytes(1, Side::A)));
    let bind = end.bind(clock());
    let (first, second) = (socket_to(at), socket_to(at));
    let mut buffer = [0; 2048];
    first.send(&bind).expect("send");
    assert_eq!(first.recv(&mut buffer).expect("a challenge"), bind.len());
    // A copy elsewhere has one as well, which is of no use at the first address.
    let mut copied = [0; 2048];
    second.send(&bind).expect("send");
    assert_eq!(second.recv(&mut copied).expect("a challenge"), bind.len());
    assert_ne!(copied[28..44], buffer[28..44], "another cookie");
    for socket in [&first, &second] {
        assert!(socket.recv(&mut copied).is_err(), "answered once");
    }
    // The cookie is valid for the first address.
    let Some(EndEvent::Send(message)) = end.receive(&buffer[..bind.len()], clock()) else {
        panic!("not a challenge");
    };
    second.send(&message).expect("send");
    second.recv(&mut buffer).expect("another challenge");
    assert_eq!(gateway.state().bound, 0);
    assert_eq!(gateway.state().circuits[0].counts.events.challenged, 3);
}

#[test]
fn each_tenant_has_its_own_rate() {
    let mut gateway = start(&[V4], 2);
    // A limit is changed in its place: no thread gets a command.
    let limited = Changes {
        tenants: vec![tenant("acme", Some(1000))],
        ..Changes::default()
    };
    assert_eq!(gateway.change(&limited), 0);
    let at = gateway.addresses()[0];
    let [a, b] = joined(1, at, at);
    let [c, d] = joined(2, at, at);
    let [e, f] = joined(3, at, at);
    let begun = Instant::now();
    let mut rounds = 0u64;
    while begun.elapsed() < Duration::from_millis(500) {
        for peer in [&a, &c, &e] {
            peer.send(b"x");
        }
        f.expect(b"x");
        rounds += 1;
    }
    let state = gateway.state();
    let elapsed = begun.elapsed().as_secs_f64();
    let carried: Vec<u64> = state
        .circuits
        .iter()
        .map(|c| c.counts.from[0].datagrams)
        .collect();
    assert_eq!(carried[2], rounds);
    let share = (elapsed + 0.1) * 1000.0 + 2.0;
    let both = (carried[0] + carried[1]) as f64;
    assert!(both <= share, "{carried:?} in {elapsed} s");
    if rounds > 1500 {
        assert!(both >= 400.0, "{carried:?} in {elapsed} s");
    }
    // Excess datagrams are dropped, not queued.
    assert!(dropped(&state, Reason::Rate) + carried[0] + carried[1] <= rounds * 2);
    drop((b, d));
}

#[test]
fn a_new_plan_drops_no_circuit() -> Result<(), Error> {
    let mut gateway = start(&[V4], 2);
    let at = gateway.addresses()[0];
    let [a, b] = joined(1, at, at);
    let [c, d] = joined(2, at, at);
    let stop = Arc::new(AtomicBool::new(false));
    let talking = spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                a.send(&n.to_be_bytes());
                b.expect(&n.to_be_bytes());
                n += 1;
            }
            n
        }
    });
    // Addresses and circuits are added and removed.
    for n in 0..20 {
        let changed = if n % 2 == 0 {
            (id(2), None)
        } else {
            circuit(2, "acme")
        };
        let change = Changes {
            circuits: vec![changed],
            ..Changes::default()
        };
        assert_eq!(gateway.change(&change), 1, "one thread has the circuit");
        let listen = [V4, v6()];
        let prepared = gateway.prepare(&listen[..1 + n % 2])?;
        gateway.take(prepared, TIMEOUT);
        assert_eq!(gateway.addresses().len(), 1 + n % 2);
        sleep(Duration::from_millis(10));
    }
    stop.store(true, Ordering::Relaxed);
    let talked = talking.join().expect("no datagram is lost");
    assert!(talked > 100, "{talked}");
    // A circuit that was removed and added has no bound ends.
    c.send(b"x");
    assert_eq!(d.receive(), None);
    // A failed change has no effect.
    let held = UdpSocket::bind(V4).expect("a socket");
    let taken = held.local_addr().expect("an address");
    let Err(error) = gateway.prepare(&[V4, taken]) else {
        panic!("it is taken");
    };
    let wanted = format!("cannot listen on {taken} (UDP): ");
    assert!(error.to_string().starts_with(&wanted), "{error}");
    assert_eq!(gateway.state().circuits.len(), 3);
    Ok(())
}

#[test]
fn a_draining_gateway_orders_ends_to_move() {
    let gateway = start(&[V4], 2);
    let at = gateway.addresses()[0];
    let [mut a, b] = joined(1, at, at);
    gateway.drain();
    let mut buffer = [0; 2048];
    for peer in [&mut a, &mut { b }] {
        let length = peer.socket.recv(&mut buffer).expect("a message");
        assert_eq!(
            peer.end.receive(&buffer[..length], clock()),
            Some(EndEvent::Move)
        );
    }
    let mut late = circuit_end(2, Side::A, at);
    assert_eq!(late.bind_within(TIMEOUT), Some(EndEvent::Move));
    assert_eq!(a.bind_within(TIMEOUT), Some(EndEvent::Move));
    let state = gateway.state();
    assert_eq!(state.bound, 2);
    a.socket.send(&a.end.unbind(clock())).expect("send");
    until("gone", || gateway.state().bound == 1);
}

/// Sends `count` numbered random datagrams of `size` bytes, at most 64 of them in flight, singly or
/// joined by GSO. Each must arrive unchanged and in order.
fn carry(a: &CircuitEnd, b: &CircuitEnd, count: u64, size: usize, joined: usize) -> Duration {
    const WINDOW: u64 = 64;
    let received = AtomicU64::new(0);
    let payload = |n: u64| {
        let mut bytes = vec![0; size];
        Seeded::new(n + 1).fill(&mut bytes);
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        bytes
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while n < count {
                let more = (count - n).min(joined as u64);
                if n + more > received.load(Ordering::Acquire) + WINDOW {
                    std::thread::yield_now();
                    assert!(begun.elapsed() < TIMEOUT * 3, "lost");
                    continue;
                }
                let mut bytes = Vec::new();
                for n in n..n + more {
                    bytes.extend_from_slice(&a.circuit.to_bytes());
                    bytes.extend_from_slice(&payload(n));
                }
                send_joined(&a.socket, &bytes, size + 8).expect("send");
                n += more;
            }
        });
        let mut buffer = vec![0; 1 << 16];
        for n in 0..count {
            let length = loop {
                match b.socket.recv(&mut buffer) {
                    Ok(length) if buffer[..8] == b.circuit.to_bytes() => break length,
                    Ok(_) => {}
                    Err(error) => assert!(begun.elapsed() < TIMEOUT * 3, "{n}: {error}"),
                }
            };
            assert!(buffer[8..length] == payload(n), "datagram {n} differs");
            received.store(n + 1, Ordering::Release);
        }
    });
    begun.elapsed()
}

fn send_joined(socket: &UdpSocket, bytes: &[u8], size: usize) -> io::Result<()> {
    let size = size as u16;
    let segments = [ControlMessage::UdpGsoSegments(&size)];
    let control = if bytes.len() > usize::from(size) {
        &segments[..]
    } else {
        &[]
    };
    sendmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::empty(),
        None,
    )?;
    Ok(())
}

#[test]
fn bytes_stay_in_order_under_load() {
    let gateway = start(&[V4, v6()], 2);
    let at = gateway.addresses();
    for (from, to) in [(at[0], at[0]), (at[0], at[1]), (at[1], at[1])] {
        let [a, b] = joined(1, from, to);
        for (size, joined, count) in [(56, 1, 10_000), (56, 32, 20_000), (1392, 32, 20_000)] {
            let took = carry(&a, &b, count, size, joined);
            println!(
                "{from} to {to}, {size} bytes, {joined} at once, a window of 64: {:.0} datagrams a \
                 second",
                count as f64 / took.as_secs_f64()
            );
        }
    }
    let state = gateway.state();
    assert_eq!(state.circuits[0].counts.from[0].datagrams, 150_000);
    let totals = state.totals;
    assert_eq!((totals.full, totals.refused, totals.unreadable), (0, 0, 0));
}

#[test]
fn throughput() {
    let gateway = start(&[V4], 1);
    let at = gateway.addresses()[0];
    for (size, joined_at) in [(64usize, 1usize), (64, 64), (1400, 1), (1400, 46)] {
        let [a, b] = joined(1, at, at);
        setsockopt(&b.socket, sockopt::RcvBuf, &(8 << 20)).expect("buffer");
        setsockopt(&b.socket, sockopt::UdpGroSegment, &true).expect("GRO");
        let before = gateway.state().totals;
        let stop = AtomicBool::new(false);
        let received = AtomicU64::new(0);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let datagram = [&a.circuit.to_bytes()[..], &vec![7; size - 8]].concat();
                let bytes = datagram.repeat(joined_at);
                while !stop.load(Ordering::Relaxed) {
                    // A full queue is expected in a flood.
                    let _ = send_joined(&a.socket, &bytes, size);
                }
            });
            scope.spawn(|| {
                let mut buffer = vec![0; 1 << 16];
                while !stop.load(Ordering::Relaxed) {
                    let length = b.socket.recv(&mut buffer).unwrap_or(0);
                    received.fetch_add((length / size) as u64, Ordering::Relaxed);
                }
            });
            sleep(Duration::from_millis(700));
            stop.store(true, Ordering::Relaxed);
        });
        let elapsed = begun.elapsed().as_secs_f64();
        let after = gateway.state().totals;
        println!(
            "{size} bytes, {joined_at} at once: {:.0} received per second, {:.0} sent, {:.0} \
             delivered",
            (after.received - before.received) as f64 / elapsed,
            (after.sent - before.sent) as f64 / elapsed,
            received.load(Ordering::Relaxed) as f64 / elapsed,
        );
        assert!(received.load(Ordering::Relaxed) > 0);
    }
}
