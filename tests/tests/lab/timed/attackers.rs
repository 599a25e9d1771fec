//! Attackers at a gateway, one kind after the other, each beside an honest tenant: two ends of a
//! circuit that exchange datagrams and renew their binds, and a client of the tenant over TLS.
//!
//! The attackers know the ID of the honest circuit and the tenant's server name, have captured
//! messages, and have a circuit of their own. `CAUSEWAY_ATTACK_SECONDS` is the time of each kind.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    end::{circuit, circuit_end, client_hello, clock, socket},
    series::length,
    site::{ENCRYPTED, Site},
};
use circuit_end::CircuitEnd;
use gateway_client::{
    end::{End, EndEvent},
    wire::{CircuitId, Key, Kind, Load, Message, Side, Tag},
};
use test_support::StopOnDrop;

const GW1: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), 6180);
const PROVIDER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
/// The attacker's addresses.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const SECOND_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 65);
const NAME: &str = "raw.example.net";
const BACKEND_PORT: u16 = 7000;
/// Binds of an honest end, one a second as ends do, with room for a few that are lost.
const RENEWAL: Duration = Duration::from_secs(1);
/// 1 January 2099, nanoseconds since 1970.
const YEAR_2099: u64 = 4_070_908_800_000_000_000;

/// Knowledge and means of an attacker.
struct Attacker<'a> {
    site: &'a Site,
    stop: &'a AtomicBool,
    /// The honest circuit, and a bind of its side a.
    circuit: CircuitId,
    captured: &'a [u8],
    /// Where the honest side b is.
    victim: SocketAddr,
    sent: &'a AtomicU64,
}

impl Attacker<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn socket(&self) -> UdpSocket {
        socket(self.site, "outside", GW1)
    }

    /// Sends datagrams of `make`, `burst` each two milliseconds.
    fn flood(&self, burst: usize, mut make: impl FnMut() -> Vec<u8>) {
        let sockets: Vec<_> = (0..8).map(|_| self.socket()).collect();
        let mut n = 0;
        while self.goes_on() {
            for _ in 0..burst {
                // The queue may be full.
                if sockets[n % sockets.len()].send(&make()).is_ok() {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                }
                n += 1;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Forged binds of the honest circuit: all go to the thread that serves it.
    fn bind_flood(&self) {
        let mut end = End::new(self.circuit, Side::B, Key::new([5; 32]));
        self.flood(200, || end.bind(clock()).to_vec());
    }

    /// One captured bind again and again, from other addresses.
    fn replays(&self) {
        self.flood(20, || self.captured.to_vec());
    }

    /// Datagrams of the honest circuit's ID from an unbound source.
    fn datagrams(&self) {
        let datagram = [&self.circuit.to_bytes()[..], &[9; 64]].concat();
        self.flood(200, || datagram.clone());
    }

    /// Nine bytes that look like the begin of a message.
    fn short(&self) {
        self.flood(200, || vec![0; 9]);
    }

    /// Its own circuit with the clock of 2099, and then of today.
    fn clock_of_2099(&self) {
        let (circuit, keys) = circuit(self.site, "globex");
        let key = keys[0].for_gateway("gw1");
        let mut end = CircuitEnd::new(self.socket(), circuit, Side::A, key);
        while self.goes_on() {
            for ahead in 0..50u64 {
                let time = YEAR_2099 + clock() + ahead;
                let _ = end.socket.send(&end.end.bind(time));
                self.sent.fetch_add(1, Ordering::Relaxed);
                let mut room = [0; 256];
                if let Ok(length) = end.socket.recv(&mut room)
                    && let Some(EndEvent::Send(answer)) = end.end.receive(&room[..length], time + 1)
                {
                    let _ = end.socket.send(&answer);
                }
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Valid binds of its own circuit, and datagrams, from two ports in turn.
    fn two_ports(&self) {
        self.move_between([self.socket(), self.socket()]);
    }

    /// The same from two addresses.
    fn two_addresses(&self) {
        self.move_between([FIRST_ADDRESS, SECOND_ADDRESS].map(|address| {
            let bound = self.site.inside("outside", || {
                let socket = UdpSocket::bind((address, 0))?;
                socket.connect(GW1)?;
                Ok(socket)
            });
            bound.unwrap_or_else(|e| panic!("{address}: {e}"))
        }));
    }

    fn move_between(&self, sockets: [UdpSocket; 2]) {
        let (circuit, keys) = circuit(self.site, "globex");
        // Each source has a cookie of its own.
        let mut ends = sockets.map(|socket| {
            let end = End::new(circuit, Side::A, keys[0].for_gateway("gw1"));
            socket.set_nonblocking(true).expect("a socket");
            (socket, end)
        });
        let datagram = [&circuit.to_bytes()[..], &[9; 64]].concat();
        let mut room = [0; 256];
        while self.goes_on() {
            // 100 000 a second, if the machine can.
            for n in 0..200 {
                let (socket, end) = &mut ends[n % 2];
                let sent = if n % 4 < 2 {
                    socket.send(&end.bind(clock()))
                } else {
                    socket.send(&datagram)
                };
                self.sent
                    .fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
            }
            for (socket, end) in &mut ends {
                while let Ok(length) = socket.recv(&mut room) {
                    if let Some(EndEvent::Send(answer)) = end.receive(&room[..length], clock()) {
                        let _ = socket.send(&answer);
                    }
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Binds and unbinds of its own circuit, valid, from where it is bound.
    fn valid_messages(&self) {
        let (circuit, keys) = circuit(self.site, "globex");
        let key = keys[0].for_gateway("gw1");
        let mut end = CircuitEnd::new(self.socket(), circuit, Side::A, key);
        while self.goes_on() {
            // It may be refused, after that many.
            let _ = end.bind_within(Duration::from_millis(500));
            for n in 0..20_000 {
                if !self.goes_on() {
                    return;
                }
                let message = match n % 1000 {
                    999 => end.end.unbind(clock()),
                    _ => end.end.bind(clock()),
                };
                let sent = end.socket.send(&message).is_ok();
                self.sent.fetch_add(u64::from(sent), Ordering::Relaxed);
                if n % 200 == 199 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            // An answer that has arrived meanwhile is none to the next bind.
            let mut room = [0; 256];
            let _ = end.socket.set_nonblocking(true);
            while end.socket.recv(&mut room).is_ok() {}
            let _ = end.socket.set_nonblocking(false);
        }
    }

    /// Challenges, moves and answers to the honest end, from the gateway's address.
    fn spoofed_challenges(&self) {
        let raw = self.site.inside("outside", raw_socket);
        let raw = raw.unwrap_or_else(|e| panic!("a raw socket: {e}"));
        let mut number = 0u64;
        while self.goes_on() {
            for kind in [Kind::Challenge, Kind::Bound, Kind::Move] {
                number += 1;
                let message = Message {
                    kind,
                    side: Side::B,
                    circuit: self.circuit,
                    timestamp: clock() - number % 2_000_000_000,
                    cookie: Tag([number as u8; 16]),
                    lifetime: 30,
                    load: Load::UNKNOWN,
                };
                let bytes = message.seal(&Key::new([6; 32]));
                if spoof(&raw, GW1, self.victim, &bytes).is_ok() {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Connections with the name of the honest tenant that send no more than their hello.
    fn hello_flood(&self) {
        let hello = client_hello(NAME);
        let mut open = std::collections::VecDeque::new();
        while self.goes_on() {
            let connected = self.site.inside("outside", || {
                TcpStream::connect_timeout(&GW1, Duration::from_secs(1))
            });
            if let Ok(mut stream) = connected
                && stream.write_all(&hello).is_ok()
            {
                self.sent.fetch_add(1, Ordering::Relaxed);
                open.push_back(stream);
            }
            if open.len() > 500 {
                open.pop_front();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A socket whose datagrams have an IPv4 header of their own.
fn raw_socket() -> io::Result<OwnedFd> {
    use nix::libc;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 255) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a UDP datagram with any source. IPv4 needs no UDP checksum; the kernel fills in that of
/// the header.
fn spoof(raw: &OwnedFd, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else {
        return Err(io::Error::other("IPv4 only"));
    };
    let length = (8 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    for word in [from.port(), to.port(), length, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(payload);
    let address = nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(destination, 0));
    let flags = nix::sys::socket::MsgFlags::empty();
    nix::sys::socket::sendto(raw.as_raw_fd(), &packet, &address, flags)?;
    Ok(())
}

/// An attack that runs until it is stopped.
type Attack = fn(&Attacker<'_>);

/// Datagrams and connections of the honest tenant.
#[derive(Debug, Default)]
struct Honest {
    sent: u64,
    heard: u64,
    connections: u64,
    served: u64,
}

/// The ends exchange datagrams and renew their binds. The network delivers each bind of side b
/// again, at once and later.
fn exchange(a: &mut CircuitEnd, b: &mut CircuitEnd, time: Duration) -> (u64, u64) {
    let id = a.circuit.to_bytes();
    let begun = Instant::now();
    let (mut sent, mut heard, mut renewed) = (0u64, 0u64, begun);
    let mut old: Vec<Vec<u8>> = Vec::new();
    let mut room = [0; 2048];
    // Messages between datagrams must not hold up the next one: the socket's buffer would overflow.
    let mut hear = |b: &mut CircuitEnd, old: &mut Vec<Vec<u8>>| -> u64 {
        while let Ok(length) = b.socket.recv(&mut room) {
            if room[..8] == id {
                return 1;
            }
            if let Some(EndEvent::Send(message)) = b.end.receive(&room[..length], clock()) {
                let _ = b.socket.send(&message);
                let _ = b.socket.send(&message);
                old.push(message.to_vec());
            }
        }
        0
    };
    while begun.elapsed() < time {
        a.send(&sent.to_be_bytes());
        sent += 1;
        heard += hear(b, &mut old);
        if renewed.elapsed() > RENEWAL {
            renewed = Instant::now();
            a.bind();
            let bind = b.end.bind(clock());
            let _ = b.socket.send(&bind);
            for delayed in old.iter().rev().take(8) {
                let _ = b.socket.send(delayed);
            }
            old.push(bind.to_vec());
        }
    }
    let until = Instant::now() + Duration::from_secs(1);
    while heard < sent && Instant::now() < until {
        heard += hear(b, &mut old);
    }
    (sent, heard)
}

/// The tenant's client over TLS: whether its backend answers within two seconds.
fn is_served(site: &Site) -> bool {
    let ask = || -> io::Result<()> {
        let timeout = Duration::from_secs(2);
        let mut stream =
            site.inside("acme-prod-b", || TcpStream::connect_timeout(&GW1, timeout))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(&client_hello(NAME))?;
        stream.read_exact(&mut [0; 2])
    };
    ask().is_ok()
}

/// A backend that answers a hello, and closes after a second, as all must that do not know their
/// client.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming().map_while(Result::ok) {
        thread::spawn(move || {
            let mut stream = stream;
            let mut room = [0; 512];
            if stream.read(&mut room).is_ok_and(|read| read > 0) {
                let _ = stream.write_all(b"ok");
            }
            thread::sleep(Duration::from_secs(1));
        });
    }
}

#[test]
fn an_honest_tenant_loses_less_than_one_per_cent_beside_each_attacker() {
    let Some(site) = Site::bare(lab::sites::gateways, ENCRYPTED) else {
        return;
    };
    site.configure_gateway("gw1", |config| {
        let director = "198.51.100.130";
        config
            + &format!(
                "\n[[backend]]\nname = \"raw\"\naddresses = [\"{director}:{BACKEND_PORT}\"]\n\
                 [[route]]\nname = \"{NAME}\"\ntenant = \"acme\"\nbackend = \"raw\"\n"
            )
    });
    let second = format!("{SECOND_ADDRESS}/32");
    site.ok("outside", &["ip", "address", "add", &second, "dev", "lo"]);
    let first = FIRST_ADDRESS.to_string();
    site.ok("cloud", &["ip", "route", "add", &second, "via", &first]);
    site.start_cloud().unwrap_or_else(|e| panic!("{e}"));
    let listener = site.inside("director", || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, BACKEND_PORT))
    });
    let listener = listener.unwrap_or_else(|e| panic!("director: {e}"));
    thread::spawn(move || serve(&listener));

    let mut a = circuit_end(&site, "acme-prod-b", GW1, "acme", Side::A);
    let mut b = circuit_end(&site, "provider-appliance", GW1, "acme", Side::B);
    let captured = a.end.bind(clock());
    a.bind();
    b.bind();
    let port = b.socket.local_addr().expect("bound").port();
    let victim = SocketAddr::from((PROVIDER, port));
    let seconds = length("CAUSEWAY_ATTACK_SECONDS", 3, 180);
    let attacks: [(&str, Attack); 10] = [
        ("binds aimed at one worker", |a| a.bind_flood()),
        ("captured binds", |a| a.replays()),
        ("datagrams of an unbound source", |a| a.datagrams()),
        ("short datagrams", |a| a.short()),
        ("a clock of 2099", |a| a.clock_of_2099()),
        ("two ports", |a| a.two_ports()),
        ("two addresses", |a| a.two_addresses()),
        ("valid binds and unbinds", |a| a.valid_messages()),
        ("spoofed challenges", |a| a.spoofed_challenges()),
        ("hellos with the tenant's name", |a| a.hello_flood()),
    ];
    let mut failed = Vec::new();
    for (what, attack) in attacks {
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let attacker = Attacker {
            site: &site,
            stop: &stop,
            circuit: a.circuit,
            captured: &captured,
            victim,
            sent: &sent,
        };
        let honest = thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| attack(&attacker));
            let client = scope.spawn(|| {
                let (mut connections, mut served) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    connections += 1;
                    served += u64::from(is_served(&site));
                    thread::sleep(Duration::from_millis(20));
                }
                (connections, served)
            });
            let (sent, heard) = exchange(&mut a, &mut b, Duration::from_secs(seconds));
            stop.store(true, Ordering::Relaxed);
            let (connections, served) = client.join().expect("no panic");
            Honest {
                sent,
                heard,
                connections,
                served,
            }
        });
        let attacks = sent.load(Ordering::Relaxed);
        println!("{what}: {attacks} in {seconds} s, {honest:?}");
        assert!(attacks > 10 * seconds, "no attack: {what}");
        let is_good = honest.heard * 100 >= honest.sent * 99
            && honest.served * 100 >= honest.connections * 99;
        if !is_good {
            failed.push(format!("{what}: {honest:?}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    // The end with the clock of 2099 is served with today's.
    let mut globex = circuit_end(&site, "outside", GW1, "globex", Side::A);
    globex.bind();
    // None was moved by what posed as the gateway.
    a.send(b"still here");
    assert_eq!(b.receive().as_deref(), Some(&b"still here"[..]));
}
