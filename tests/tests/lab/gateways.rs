//! Gateways: what they relay over TLS, and that tenants are fenced off from each other there.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use causeway_tests::{
    end::{circuit, circuit_end, client_hello, clock, socket},
    rng::Seeded,
    series::length,
    site::{ENCRYPTED, Site},
};
use circuit_end::CircuitEnd;
use gateway_client::{
    end::{End, EndEvent},
    wire::{CircuitId, Key, Kind, Load, MESSAGE_BYTES, Message, Side, Tag},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use test_support::StopOnDrop;

const GW1: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), 6180);
/// Bits that every generated circuit id has set.
const ID_BITS: u64 = 0x0100_0001_0000_0000;
const DIRECTOR: &str = "director.example.net";
/// A server name whose backend a test runs on the director's host.
const RAW: &str = "raw.example.net";
const RAW_PORT: u16 = 7000;

/// The lab `gateways` with its gateways and the director's server running; no appliance.
fn cloud(edit: impl Fn(String) -> String) -> Option<Site> {
    let site = Site::bare(lab::sites::gateways, ENCRYPTED)?;
    site.configure_gateway("gw1", edit);
    site.start_cloud().unwrap_or_else(|e| panic!("{e}"));
    Some(site)
}

fn with_raw_backend(config: String) -> String {
    let more = config.replacen(
        "name = \"acme\"\n",
        "name = \"acme\"\nconnections = 20000\n",
        1,
    );
    more + &format!(
        "\n[limits]\nper_source = 20000\n\
             [[backend]]\nname = \"raw\"\naddresses = [\"198.51.100.130:{RAW_PORT}\"]\n\
             [[route]]\nname = \"{RAW}\"\ntenant = \"acme\"\nbackend = \"raw\"\n"
    )
}

fn raw_backend(site: &Site) -> TcpListener {
    let listener = site.inside("director", || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, RAW_PORT))
    });
    listener.unwrap_or_else(|e| panic!("director: {e}"))
}

/// Connections through gw1, their hellos sent.
fn greet(site: &Site, host: &str, count: usize) -> Vec<TcpStream> {
    let hello = client_hello(RAW);
    let one = || {
        let mut stream = TcpStream::connect_timeout(&GW1, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(&hello)?;
        Ok(stream)
    };
    let all = site.inside(host, || (0..count).map(|_| one()).collect());
    all.unwrap_or_else(|e| panic!("{host}: {e}"))
}

/// Takes the hello off a backend's connection.
fn take_hello(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let expected = client_hello(RAW);
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got)?;
    if got == expected {
        Ok(())
    } else {
        Err(io::Error::other("the backend received another hello"))
    }
}

#[test]
fn curl_and_openssl_work_through_the_relay() {
    let Some(site) = cloud(|config| config) else {
        return;
    };
    let mut page = vec![0; 20_000_000];
    let mut rng = Seeded::new(1);
    for chunk in page.chunks_mut(8) {
        chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
    }
    std::fs::write(site.www().join("page"), &page).expect("the lab's own directory");
    let (key, certificate) = site.certificate(DIRECTOR).unwrap_or_else(|e| panic!("{e}"));
    let (key, trusted) = (key.to_string_lossy(), certificate.to_string_lossy());

    // From behind a NAT, from a site without UDP, and over IPv6; the last in a tenant's name.
    let tenant = format!("acme.{DIRECTOR}");
    for (host, name, at) in [
        ("acme-prod-b", DIRECTOR, "192.0.2.10"),
        ("globex-prod-b", DIRECTOR, "192.0.2.14"),
        ("outside", tenant.as_str(), "[2001:db8:a:1::10]"),
    ] {
        let got = site.run_dir().join("got");
        site.ok(
            host,
            &[
                "curl",
                "--silent",
                "--show-error",
                "--fail",
                "--cacert",
                &trusted,
                "--resolve",
                &format!("{name}:6180:{at}"),
                "--output",
                &got.to_string_lossy(),
                &format!("https://{name}:6180/page"),
            ],
        );
        let got = std::fs::read(got).expect("what curl wrote");
        assert!(got == page, "{host}: {} bytes, or others", got.len());
    }
    assert_eq!(
        tenant_status(&site.gateway_status("gw1"), "acme")["relayed"],
        1
    );

    // openssl at both ends, with a certificate of the client's: the gateway is no party to it.
    let words = [
        "openssl",
        "s_server",
        "-accept",
        "444",
        "-rev",
        "-key",
        &key,
        "-cert",
        &trusted,
        "-Verify",
        "1",
        "-CAfile",
        &trusted,
        "-verify_return_error",
    ];
    let server = site.spawn("director", "s_server", &words);
    let server = server.unwrap_or_else(|e| panic!("{e}"));
    site.await_listener("director", 444)
        .unwrap_or_else(|e| panic!("{e}"));
    site.configure_gateway("gw2", |config| {
        config
            + &format!(
                "\n[[backend]]\nname = \"rev\"\naddresses = [\"[2001:db8:d::130]:444\"]\n\
                 [[route]]\nname = \"rev.{DIRECTOR}\"\nbackend = \"rev\"\n"
            )
    });
    let gw2 = site.gateway("gw2").unwrap_or_else(|e| panic!("{e}"));
    // Gw2 has no IPv6: it warns and continues.
    gw2.must(&["reload"]).unwrap_or_else(|e| panic!("{e}"));
    site.configure_gateway("gw2", |config| {
        config.replace("[2001:db8:d::130]:444", "198.51.100.130:444")
    });
    gw2.must(&["reload"]).unwrap_or_else(|e| panic!("{e}"));
    let request = |name: &str| {
        let script = format!(
            "(echo causeway; sleep 1) | openssl s_client -connect 192.0.2.14:6180 -servername \
             {name} -verify_hostname {name} -CAfile {trusted} -verify_return_error -cert {trusted} \
             -key {key} -quiet -no_ign_eof"
        );
        site.sh("acme-prod-b", &["sh", "-c", &script])
    };
    let out = request(&format!("rev.{DIRECTOR}"));
    assert!(
        out.stdout.contains("yawesuac"),
        "{}{}",
        out.stdout,
        out.stderr
    );
    // An unknown server name: TLS alert 112.
    let out = request("unknown.example.net");
    assert!(
        out.stderr.contains("unrecognized name"),
        "{}{}",
        out.stdout,
        out.stderr
    );
    server.kill().unwrap_or_else(|e| panic!("{e}"));
}

/// A pattern of 64-bit words derived from their offsets.
struct Pattern {
    seed: u64,
    at: u64,
}

const BLOCK: usize = 1 << 18;

impl Pattern {
    fn next(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_mut(8) {
            let word = (self.at ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            chunk.copy_from_slice(&(word ^ (word >> 29)).to_le_bytes()[..chunk.len()]);
            self.at += 1;
        }
    }
}

fn send_pattern(stream: &mut TcpStream, seed: u64, bytes: u64) -> io::Result<()> {
    let mut pattern = Pattern { seed, at: 0 };
    let mut block = vec![0; BLOCK];
    for _ in 0..bytes / BLOCK as u64 {
        pattern.next(&mut block);
        stream.write_all(&block)?;
    }
    // Then this direction is closed, and no other.
    stream.shutdown(Shutdown::Write)
}

/// Reads `bytes` of the pattern and then the end of the stream.
fn expect_pattern(stream: &mut TcpStream, seed: u64, bytes: u64) -> io::Result<()> {
    let mut pattern = Pattern { seed, at: 0 };
    let (mut block, mut wanted) = (vec![0; BLOCK], vec![0; BLOCK]);
    for number in 0..bytes / BLOCK as u64 {
        pattern.next(&mut wanted);
        stream.read_exact(&mut block)?;
        if block != wanted {
            return Err(io::Error::other(format!("block {number} is another")));
        }
    }
    match stream.read(&mut block)? {
        0 => Ok(()),
        more => Err(io::Error::other(format!("{more} bytes too many"))),
    }
}

#[test]
fn bulk_data_is_exact_and_half_closes_are_kept() {
    let Some(site) = cloud(with_raw_backend) else {
        return;
    };
    let bytes =
        length("CAUSEWAY_RELAY_BYTES", 100_000_000, 1_000_000_000).next_multiple_of(BLOCK as u64);
    let listener = raw_backend(&site);
    let began = Instant::now();
    // The whole first direction and its end. The receiver of that end then sends the other
    // direction.
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        take_hello(&mut stream)?;
        expect_pattern(&mut stream, 1, bytes)?;
        let received = Instant::now();
        send_pattern(&mut stream, 2, bytes)?;
        io::Result::Ok(received)
    });
    let mut client = greet(&site, "acme-prod-b", 1).remove(0);
    send_pattern(&mut client, 1, bytes).unwrap_or_else(|e| panic!("up: {e}"));
    let down = expect_pattern(&mut client, 2, bytes);
    let ended = Instant::now();
    let received = server.join().expect("no panic");
    let received = received.unwrap_or_else(|e| panic!("the server: {e}; the client: {down:?}"));
    down.unwrap_or_else(|e| panic!("down: {e}"));
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e6;
    println!(
        "{bytes} bytes each way: {:.0} MB/s up, {:.0} MB/s down",
        rate(received - began),
        rate(ended - received)
    );
    let status = site.gateway_status("gw1");
    let acme = tenant_status(&status, "acme");
    let hello = client_hello(RAW).len() as u64;
    assert_eq!(acme["bytes_up"], bytes + hello, "{acme}");
    assert_eq!(acme["bytes_down"], bytes, "{acme}");
}

/// Memory of a process that is in no file, bytes.
fn memory(pid: i32) -> u64 {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(path).expect("a process");
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.expect("a number") << 10
}

#[test]
fn idle_connections_cost_little() {
    let wanted = length("CAUSEWAY_IDLE_CONNECTIONS", 1000, 10_000);
    // Two for each connection, here and at the gateway, which inherits the limit.
    let files = |connections: u64| 2 * connections + 500;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let most = files(wanted).max(hard);
    let count = match setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        Ok(()) => wanted,
        // Without CAP_SYS_RESOURCE: as many as the limit leaves.
        Err(e) => {
            let count = hard.saturating_sub(files(0)) / 2;
            println!("{count} connections instead of {wanted}: {hard} open files allowed: {e}");
            assert!(
                count >= 500,
                "a limit of {hard} open files is too low for this test"
            );
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the limit");
            count
        }
    };
    let count = usize::try_from(count).expect("a number");
    let limit = |config: String| {
        let limit = format!("[limits]\nconnections = {count}\n");
        with_raw_backend(config).replacen("[limits]\n", &limit, 1)
    };
    let Some(site) = cloud(limit) else {
        return;
    };
    let listener = raw_backend(&site);
    let server = thread::spawn(move || -> io::Result<Vec<TcpStream>> {
        let mut streams = Vec::new();
        for stream in listener.incoming().take(count) {
            let mut stream = stream?;
            take_hello(&mut stream)?;
            stream.write_all(b"hello")?;
            streams.push(stream);
        }
        Ok(streams)
    });
    let process = site.gateway("gw1").and_then(|g| g.process());
    let process = process.unwrap_or_else(|e| panic!("{e}"));
    let pid = process.expect("gw1 runs").pid;
    let empty = memory(pid);
    // From several sources, as it would be.
    let sources = [
        "outside",
        "acme-prod-b",
        "globex-prod-b",
        "provider-appliance",
    ];
    let share = |n: usize| count / sources.len() + usize::from(n < count % sources.len());
    let mut clients: Vec<TcpStream> = Vec::new();
    for (number, host) in sources.into_iter().enumerate() {
        clients.extend(greet(&site, host, share(number)));
    }
    for client in &mut clients {
        let mut word = [0; 5];
        client.read_exact(&mut word).expect("a greeting");
        assert_eq!(&word, b"hello", "refused");
    }
    let mut servers = server.join().expect("no panic").expect("connections");
    let full = memory(pid);
    println!(
        "{count} idle connections: {:.1} MB in all, {:.1} MB before, {} bytes each",
        full as f64 / 1e6,
        empty as f64 / 1e6,
        full.saturating_sub(empty) / count as u64
    );
    // 10 000 of them in under 100 MB, the program itself included.
    let bound = empty + (100_000_000 - empty) * count as u64 / 10_000;
    assert!(full < bound, "{full} bytes, at most {bound}");
    assert_eq!(site.gateway_status("gw1")["connections"], count);
    // They are alive, each to its own end.
    for client in clients.iter_mut().step_by(97) {
        client
            .write_all(&client.local_addr().expect("one").port().to_be_bytes())
            .expect("send");
    }
    for server in &servers {
        server.set_nonblocking(true).expect("a socket");
    }
    let until = Instant::now() + Duration::from_secs(10);
    let mut received = 0;
    while received < count.div_ceil(97) && Instant::now() < until {
        for server in &mut servers {
            received += usize::from(server.read(&mut [0; 2]).is_ok_and(|n| n == 2));
        }
    }
    assert_eq!(received, count.div_ceil(97));
}

/// Drops by reason, of a circuit or of unknown ids.
fn dropped(site: &Site, reason: &str) -> u64 {
    let status = site.gateway_status("gw1");
    status["circuits"]["dropped"][reason].as_u64().unwrap_or(0)
}

/// Drops by reason, and those that XDP dropped before the reason was looked for, because the source
/// sent too much.
fn refused(site: &Site, reason: &str) -> u64 {
    let status = site.gateway_status("gw1");
    let dropped = &status["circuits"]["dropped"];
    [reason, "unbound-rate"]
        .iter()
        .filter_map(|reason| dropped[*reason].as_u64())
        .sum()
}

/// An honest pair of ends beside attackers, for a few seconds: of `sent` datagrams, `heard` came.
/// The attackers flood a worker with binds of acme's circuit, repeat a captured bind, and open
/// connections with a name of acme.
fn beside_attackers(
    site: &Site,
    (a, b): (&mut CircuitEnd, &mut CircuitEnd),
    captured: &[u8],
    time: Duration,
) -> (u64, u64) {
    let stop = AtomicBool::new(false);
    let hello = client_hello("acme.director.example.net");
    let id = a.circuit;
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let mut forged = End::new(id, Side::B, Key::new([5; 32]));
        let flood = socket(site, "outside", GW1);
        let replays = socket(site, "outside", GW1);
        let (stop, hello) = (&stop, &hello);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    // The queue may be full.
                    let _ = flood.send(&forged.bind(clock()));
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _ = replays.send(captured);
                thread::sleep(Duration::from_micros(500));
            }
        });
        scope.spawn(move || {
            let mut open = std::collections::VecDeque::new();
            while !stop.load(Ordering::Relaxed) {
                let connected = site.inside("outside", || {
                    TcpStream::connect_timeout(&GW1, Duration::from_secs(1))
                });
                if let Ok(mut stream) = connected {
                    let _ = stream.write_all(hello);
                    open.push_back(stream);
                }
                if open.len() > 100 {
                    open.pop_front();
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        let begun = Instant::now();
        let (mut sent, mut heard, mut renewed) = (0u64, 0u64, begun);
        let mut room = [0; 2048];
        let mut hears = |b: &mut CircuitEnd| -> u64 {
            let Ok(length) = b.socket.recv(&mut room) else {
                return 0;
            };
            if let Some(EndEvent::Send(word)) = b.end.receive(&room[..length], clock()) {
                let _ = b.socket.send(&word);
            }
            u64::from(room[..8] == id.to_bytes())
        };
        while begun.elapsed() < time {
            a.send(&sent.to_be_bytes());
            sent += 1;
            heard += hears(b);
            if renewed.elapsed() > Duration::from_secs(1) {
                renewed = Instant::now();
                a.bind();
                let _ = b.socket.send(&b.end.bind(clock()));
            }
        }
        stop.store(true, Ordering::Relaxed);
        let until = Instant::now() + Duration::from_secs(1);
        while heard < sent && Instant::now() < until {
            heard += hears(b);
        }
        (sent, heard)
    })
}

/// A tenant in a gateway's status.
fn tenant_status<'a>(status: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let tenants = status["tenants"].as_array();
    let found = tenants.into_iter().flatten().find(|t| t["name"] == name);
    found.unwrap_or_else(|| panic!("no tenant {name} in {status}"))
}

fn bound(site: &Site, circuit: CircuitId) -> serde_json::Value {
    let status = site.gateway_status("gw1");
    let list = status["circuits"]["list"].as_array();
    let found = list
        .into_iter()
        .flatten()
        .find(|c| c["id"] == circuit.to_string());
    found.map_or_else(|| panic!("{status}"), |c| c["bound"].clone())
}

/// Globex attacks acme's circuit from any address with its own keys. The circuit is not affected.
#[test]
fn attacks_of_a_tenant_on_another_circuit_fail() {
    let Some(site) = cloud(|config| config) else {
        return;
    };
    let mut a = circuit_end(&site, "acme-prod-b", GW1, "acme", Side::A);
    let mut b = circuit_end(&site, "provider-appliance", GW1, "acme", Side::B);
    let captured = a.end.bind(clock());
    a.bind();
    b.bind();
    a.send(b"from a");
    assert_eq!(b.receive().as_deref(), Some(&b"from a"[..]));
    let (acme, acme_keys) = circuit(&site, "acme");
    let (globex, own) = circuit(&site, "globex");
    let at_gw1 = |keys: [Key; 2]| keys.map(|key| key.for_gateway("gw1"));
    let gw2 = acme_keys[1].for_gateway("gw2");
    let ([key_a, _], own) = (at_gw1(acme_keys), at_gw1(own));
    let before = bound(&site, acme);
    assert!(before[0].is_string() && before[1].is_string(), "{before}");

    let evil = socket(&site, "outside", GW1);
    let mut rng = Seeded::new(99);
    let attempts = 500_usize;
    let send_all = |what: &str, reason: &str, datagrams: Vec<Vec<u8>>| {
        let was = refused(&site, reason);
        for (number, datagram) in datagrams.iter().enumerate() {
            evil.send(datagram)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            if number % 50 == 49 {
                // No more at once than a cable holds.
                thread::sleep(Duration::from_millis(2));
            }
        }
        let until = Instant::now() + Duration::from_secs(5);
        // A capture is challenged 16 times a second, which changes nothing; others are dropped.
        let challenged = if reason == "replayed" { 100 } else { 0 };
        let least = datagrams.len() as u64 - challenged;
        while refused(&site, reason) - was < least && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        let counted = refused(&site, reason) - was;
        println!(
            "{what}: {} sent, {counted} dropped as {reason}",
            datagrams.len()
        );
        assert!(
            (least..=datagrams.len() as u64).contains(&counted),
            "{what}"
        );
        assert_eq!(bound(&site, acme), before, "{what} moved an end");
    };
    let mut many = |make: &mut dyn FnMut(&mut Seeded) -> Vec<u8>| -> Vec<Vec<u8>> {
        (0..attempts).map(|_| make(&mut rng)).collect()
    };
    let message = |kind, side, circuit, key: &Key, timestamp| {
        let message = Message {
            kind,
            side,
            circuit,
            timestamp,
            cookie: Tag([9; 16]),
            lifetime: 0,
            load: Load::UNKNOWN,
        };
        message.seal(key).to_vec()
    };

    let guessed = many(&mut |rng| {
        let id = (rng.next_u64() | ID_BITS).to_be_bytes();
        [&id[..], b"a forged datagram"].concat()
    });
    send_all("guessed ids", "no-circuit", guessed);
    let guessed = many(&mut |rng| {
        let id = CircuitId::new(rng.next_u64() | ID_BITS).expect("an id");
        message(Kind::Bind, Side::A, id, &own[0], clock())
    });
    send_all("binds to guessed ids", "no-circuit", guessed);
    // An id is no secret: it is known, but no side is bound to this source.
    let known = many(&mut |_| [&acme.to_bytes()[..], b"from b"].concat());
    send_all("datagrams with acme's id", "not-bound", known);
    for (what, key) in [
        ("its own keys", own[0].clone()),
        ("a key of zeros", Key::new([0; 32])),
        ("the key of the other side", key_a.clone()),
        ("the key that another gateway has", gw2),
    ] {
        // The last key is acme's; it is valid for one side only.
        let forged = many(&mut |_| message(Kind::Bind, Side::B, acme, &key, clock()));
        send_all(
            &format!("binds of acme's side b with {what}"),
            "forged",
            forged,
        );
    }
    let guessed = many(&mut |rng| {
        let mut bind = message(Kind::Bind, Side::A, acme, &own[0], u64::MAX);
        for byte in &mut bind[MESSAGE_BYTES - 16..] {
            *byte = rng.next_u64() as u8;
        }
        bind
    });
    send_all("guessed tags", "forged", guessed);
    let forged = many(&mut |_| message(Kind::Unbind, Side::A, acme, &own[1], clock()));
    send_all("unbinds of acme's side a", "forged", forged);
    // Its own good bind, made acme's.
    let moved = many(&mut |_| {
        let mut bind = End::new(globex, Side::A, own[0].clone()).bind(clock());
        bind[12..20].copy_from_slice(&acme.to_bytes());
        bind.to_vec()
    });
    send_all("its own binds under acme's id", "forged", moved);
    send_all(
        "a bind of acme's, captured",
        "replayed",
        vec![captured.to_vec(); attempts],
    );
    for kind in [Kind::Challenge, Kind::Bound, Kind::Move] {
        let posing = many(&mut |_| message(kind, Side::A, globex, &own[0], clock()));
        send_all(
            &format!("{kind:?}, as if it were a gateway"),
            "not-for-us",
            posing,
        );
    }
    let rubbish = many(&mut |rng| {
        let length = 8 + (rng.next_u64() % 90) as usize;
        // Of a message's length it would be one of an unknown circuit.
        let length = length + usize::from(length == MESSAGE_BYTES);
        let mut bytes = vec![0; length];
        for byte in bytes.iter_mut().skip(8) {
            *byte = rng.next_u64() as u8 | 0x80;
        }
        bytes
    });
    send_all("rubbish", "malformed", rubbish);

    // Globex can only use its own circuit: both ends are its own and receive its datagrams.
    let mut own_a = circuit_end(&site, "outside", GW1, "globex", Side::A);
    own_a.bind();
    let mut own_b = circuit_end(&site, "outside", GW1, "globex", Side::B);
    own_b.bind();
    own_a.send(b"mine");
    assert_eq!(own_b.receive().as_deref(), Some(&b"mine"[..]));
    // From a bound address, with another's id.
    let all = || refused(&site, "not-bound") + dropped(&site, "bind-rate");
    let was = all();
    for _ in 0..100 {
        let datagram = [&acme.to_bytes()[..], b"from b"].concat();
        own_a.socket.send(&datagram).expect("send");
    }
    // A flood of good binds is its own affair.
    for _ in 0..200 {
        own_a.socket.send(&own_a.end.bind(clock())).expect("send");
    }
    let until = Instant::now() + Duration::from_secs(5);
    while all() <= was + 100 && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(all() > was + 100, "no limit of binds: {} more", all() - was);

    // An end ignores a message with a forged gateway address: the tag must be the gateway's.
    let forged = message(Kind::Move, Side::A, acme, &own[0], clock());
    assert_eq!(a.end.receive(&forged, clock()), None);

    // Acme's ends received nothing of the attack and still exchange datagrams.
    assert_eq!(bound(&site, acme), before);
    assert_eq!(
        (a.receive(), b.receive()),
        (None, None),
        "a datagram of the attacker was forwarded"
    );
    for n in 0..50_u8 {
        a.send(&[n]);
        assert_eq!(b.receive(), Some(vec![n]));
        b.send(&[n]);
        assert_eq!(a.receive(), Some(vec![n]));
    }
    let seconds = length("CAUSEWAY_ATTACK_SECONDS", 3, 180);
    let before_attack = refused(&site, "forged");
    let time = Duration::from_secs(seconds);
    let (sent, heard) = beside_attackers(&site, (&mut a, &mut b), &captured, time);
    let attacks = refused(&site, "forged") - before_attack;
    println!("beside {attacks} refused datagrams in {seconds} s: {heard} of {sent} came");
    assert!(attacks > 1000 * seconds, "no attack");
    assert!(heard * 100 >= sent * 99, "{heard} of {sent} came");
    let status = site.gateway_status("gw1");
    let list = status["circuits"]["list"].as_array();
    let of_acme = list
        .into_iter()
        .flatten()
        .find(|c| c["id"] == acme.to_string())
        .expect("acme's circuit");
    // A busy machine may lose one before the gateway; none may be carried that was not sent.
    let carried = of_acme["datagrams"][0].as_u64().expect("a number");
    assert!((51 + heard..=51 + sent).contains(&carried), "{of_acme}");
    assert_eq!(of_acme["datagrams"][1], 50, "{of_acme}");
    assert_eq!(of_acme["events"]["bound"], 2, "{of_acme}");
    assert!(matches!(
        own_a.bind_within(Duration::from_secs(3)),
        None | Some(EndEvent::Bound(_))
    ));
}
