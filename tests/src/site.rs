//! Labs for tests: always taken down, also after a panic; their logs are shown on failure.
//!
//! Functions panic with their observations instead of returning errors, because a lab that fails is
//! a failed test.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{lab_lock::LabLock, skip};
use lab::{Lab, Options, Output, Paths, Scoped, Topology};

/// Time for a command that should be quick.
pub const SHORT_TIMEOUT: Duration = Duration::from_secs(20);

/// Links as the kernel makes them, encrypted tunnels; no duplicate address detection, which takes
/// one to two seconds for each lab and is the subject of one test alone.
pub const ENCRYPTED: Options = Options {
    wan_mtu: 1500,
    lan_mtu: 1500,
    offloads: true,
    dad: false,
    encrypted: true,
    workers: 1,
};

/// The same with VXLAN tunnels.
pub const PLAIN: Options = Options {
    encrypted: false,
    ..ENCRYPTED
};

/// A lab with its appliances running, and the lock of its test.
#[derive(Debug)]
pub struct Site {
    lab: Scoped,
    _lab_lock: LabLock,
}

impl std::ops::Deref for Site {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show();
            return;
        }
        let errors = self.errors();
        if !errors.is_empty() {
            self.show();
            panic!("errors were logged:\n{}", errors.join("\n"));
        }
    }
}

/// Why labs cannot be raised here, if they cannot.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let paths = Paths::find();
    for (path, hint) in [
        (&paths.appliance, "cargo build -p appliance-user"),
        (&paths.gateway, "cargo build -p causeway-gateway"),
        (&paths.bpf_object, "cargo xtask build-ebpf"),
        (&paths.lab_bpf_object, "cargo xtask build-ebpf"),
    ] {
        if !path.exists() {
            return Some(format!("{} is missing; run `{hint}`", path.display()));
        }
    }
    for tool in ["ip", "ping", "ethtool"] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|d| d.join(tool).exists()));
        if !found {
            return Some(format!(
                "`{tool}` is missing; `cargo xtask setup` installs it"
            ));
        }
    }
    None
}

impl Site {
    /// The lab `partial` with plain tunnels and both appliances ready; `None` after saying why,
    /// where that is impossible.
    #[must_use]
    pub fn partial() -> Option<Self> {
        Self::raise(lab::sites::partial, PLAIN)
    }

    /// The lab `two-tenants` with plain tunnels and its appliances ready.
    #[must_use]
    pub fn two_tenants() -> Option<Self> {
        Self::raise(lab::sites::two_tenants, PLAIN)
    }

    /// The lab `full` with plain tunnels, its appliances ready and both sites failed over whole.
    #[must_use]
    pub fn full() -> Option<Self> {
        let site = Self::raise(lab::sites::full, PLAIN)?;
        for failover in &site.topology().failovers {
            if let Err(e) = site.fail_over_site(&failover.tenant) {
                panic!("failing {} over: {e}", failover.tenant);
            }
        }
        Some(site)
    }

    /// The lab `partial` with encrypted tunnels, both appliances ready.
    #[must_use]
    pub fn encrypted() -> Option<Self> {
        Self::raise(lab::sites::partial, ENCRYPTED)
    }

    /// Waits until a host's first tunnel has this path MTU, and returns the tunnel's status. The
    /// search starts up to a second after the session: when the peer has answered an echo.
    pub fn await_path_mtu(&self, host: &str, bytes: u16) -> serde_json::Value {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let tunnel = self.status(host)["peers"][0]["tunnel"].clone();
            if tunnel["path_mtu"] == bytes {
                return tunnel;
            }
            assert!(Instant::now() < until, "{host}: {tunnel}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A topology, its appliances ready.
    #[must_use]
    pub fn raise(topology: fn(Options) -> Topology, options: Options) -> Option<Self> {
        let site = Self::bare(topology, options)?;
        if let Err(e) = site.lab.start_appliances() {
            panic!("starting the appliances: {e}");
        }
        Some(site)
    }

    /// A topology without appliances, for a test that changes their configuration first.
    #[must_use]
    pub fn bare(topology: fn(Options) -> Topology, options: Options) -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        let lab_lock = LabLock::acquire();
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-{count}", lab::TEST_PREFIX, std::process::id());
        let lab = Lab::up(topology(options), &name, Paths::find())
            .unwrap_or_else(|e| panic!("raising the lab: {e}"));
        Some(Self {
            lab: Scoped::new(lab),
            _lab_lock: lab_lock,
        })
    }

    /// Lines of level ERROR, and panics, in the daemons' logs.
    fn errors(&self) -> Vec<String> {
        let appliances = self.topology().appliances.iter();
        let appliances = appliances.filter_map(|a| self.appliance(&a.host).ok());
        let gateways = self.topology().cloud.gateways.iter();
        let gateways = gateways.filter_map(|g| self.gateway(&g.host).ok());
        appliances
            .map(|a| (a.host().to_owned(), a.log_path()))
            .chain(gateways.map(|g| (g.host().to_owned(), g.log_path())))
            .flat_map(|(host, log)| {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                log.lines()
                    .filter(|l| l.contains(" ERROR ") || l.contains("panicked at"))
                    .map(|l| format!("{host}: {l}"))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Prints what one needs to see why a test failed: logs, counters, neighbours of every host.
    pub fn show(&self) {
        for appliance in &self.topology().appliances {
            let Ok(handle) = self.appliance(&appliance.host) else {
                continue;
            };
            println!("==== {}: log", appliance.host);
            println!("{}", handle.log_tail(60));
            let mut questions = vec![&["status"][..], &["counters"], &["endpoint", "list"]];
            if !self.topology().failovers.is_empty() {
                questions.extend([&["rule", "list"][..], &["flows"]]);
            }
            for words in questions {
                println!("==== {}: {}", appliance.host, words.join(" "));
                match handle.cli(words) {
                    Ok(o) => println!("{}{}", o.stdout, o.stderr),
                    Err(e) => println!("{e}"),
                }
            }
        }
        for gateway in &self.topology().cloud.gateways {
            let Ok(handle) = self.gateway(&gateway.host) else {
                continue;
            };
            println!("==== {}: log", gateway.host);
            println!("{}", handle.log_tail(40));
            println!("==== {}: status", gateway.host);
            match handle.cli(&["status"]) {
                Ok(o) => println!("{}{}", o.stdout, o.stderr),
                Err(e) => println!("{e}"),
            }
        }
        for host in &self.topology().hosts {
            let text = |words: &[&str]| match self.exec(&host.name, words, SHORT_TIMEOUT) {
                Ok(o) => o.stdout,
                Err(e) => e.to_string(),
            };
            println!(
                "==== {}: addresses\n{}",
                host.name,
                text(&["ip", "-br", "address"])
            );
            println!(
                "==== {}: neighbours\n{}",
                host.name,
                text(&["ip", "neighbour"])
            );
        }
    }

    /// Runs a command in a host and returns its output; any status is accepted.
    pub fn sh(&self, host: &str, words: &[&str]) -> Output {
        self.exec(host, words, SHORT_TIMEOUT)
            .unwrap_or_else(|e| panic!("{host}: {}: {e}", words.join(" ")))
    }

    /// Runs a command in a host that must succeed; its output.
    pub fn ok(&self, host: &str, words: &[&str]) -> String {
        self.must(host, words, SHORT_TIMEOUT)
            .unwrap_or_else(|e| panic!("{host}: {}: {e}", words.join(" ")))
    }

    /// Waits until `from` gets an answer to a ping from `to`, for at most five seconds, and then
    /// expects ten in a row to be answered.
    pub fn reach(&self, from: &str, to: &str) {
        let until = Instant::now() + Duration::from_secs(5);
        while !self
            .sh(from, &["ping", "-n", "-c", "1", "-W", "1", to])
            .ok()
        {
            assert!(Instant::now() < until, "{from} does not reach {to}");
        }
        // ping(8) exits twice the longest round trip after its last request. A busy machine can be
        // slower than that, and a late reply is not a lost one.
        let report = self
            .ping_count(
                from,
                crate::packet::ip(to),
                lab::Probe::Echo,
                Duration::from_millis(20),
                10,
            )
            .unwrap_or_else(|e| panic!("{from}: {to}: {e}"));
        assert!(
            report.lost().is_empty(),
            "{from} reaches {to} with losses: {}",
            report.summary()
        );
    }

    /// Expects three pings to stay unanswered.
    pub fn unreachable(&self, from: &str, to: &str) {
        let out = self.sh(from, &["ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", to]);
        assert!(
            out.stdout.contains(" 100% packet loss"),
            "{from} reaches {to}:\n{}",
            out.stdout
        );
    }

    /// A UDP socket of a host.
    pub fn udp(&self, host: &str, address: &str, port: u16) -> UdpSocket {
        let at = SocketAddr::new(crate::packet::ip(address), port);
        let socket = self
            .inside(host, || UdpSocket::bind(at))
            .unwrap_or_else(|e| panic!("{host}: binding {at}: {e}"));
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a timeout of a socket");
        socket
    }

    /// Runs `work` in a host's network namespace.
    ///
    /// # Errors
    ///
    /// The error of `work`.
    pub fn inside<T: Send>(
        &self,
        host: &str,
        work: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> std::io::Result<T> {
        let mut result = None;
        let slot = &mut result;
        self.within(host, move || {
            *slot = Some(work());
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{host}: {e}"));
        result.expect("the work was done")
    }

    /// Sends `bytes` over TCP from one host to an address of another and returns the time it took.
    /// The far end must receive exactly these bytes.
    pub fn tcp(&self, from: &str, to: &str, address: &str, bytes: usize) -> Duration {
        let transfer = Transfer::start(self, from, to, address, bytes);
        transfer.finish()
    }

    /// Neighbour entries of a host: address to MAC, those with one.
    pub fn neighbours(&self, host: &str) -> BTreeMap<IpAddr, String> {
        let text = self.ok(host, &["ip", "-j", "neighbour"]);
        let all: serde_json::Value = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{host}: `ip -j neighbour`: {e}: {text}"));
        all.as_array()
            .into_iter()
            .flatten()
            .filter_map(|n| {
                Some((
                    n["dst"].as_str()?.parse().ok()?,
                    n["lladdr"].as_str()?.to_owned(),
                ))
            })
            .collect()
    }

    /// The MAC of a host's NIC.
    pub fn mac(&self, host: &str, link: &str) -> String {
        let text = self.ok(host, &["ip", "-j", "link", "show", link]);
        let links: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{host}: {e}: {text}"));
        links[0]["address"].as_str().expect("a MAC").to_owned()
    }

    /// A counter of an appliance, by its stable name.
    pub fn counter(&self, appliance: &str, name: &str) -> u64 {
        let all = self
            .appliance(appliance)
            .and_then(|a| a.json(&["counters", "--json"]))
            .unwrap_or_else(|e| panic!("{appliance}: counters: {e}"));
        find_number(&all, name)
            .unwrap_or_else(|| panic!("{appliance} has no counter {name}: {all}"))
    }

    /// The status of an appliance.
    pub fn status(&self, appliance: &str) -> serde_json::Value {
        self.appliance(appliance)
            .and_then(|a| a.json(&["status", "--json"]))
            .unwrap_or_else(|e| panic!("{appliance}: status: {e}"))
    }

    /// Rewrites an appliance's configuration file.
    pub fn configure(&self, appliance: &str, edit: impl FnOnce(String) -> String) {
        let handle = self.appliance(appliance).unwrap_or_else(|e| panic!("{e}"));
        let path = handle.config_path();
        if !path.exists() {
            handle
                .write_config()
                .unwrap_or_else(|e| panic!("{appliance}: {e}"));
        }
        let edited = edit(text(&path));
        std::fs::write(&path, edited).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    pub fn gateway_status(&self, gateway: &str) -> serde_json::Value {
        self.gateway(gateway)
            .and_then(|g| g.status())
            .unwrap_or_else(|e| panic!("{gateway}: status: {e}"))
    }

    /// Rewrites a gateway's configuration file; it stays its owner's.
    pub fn configure_gateway(&self, gateway: &str, edit: impl FnOnce(String) -> String) {
        let handle = self.gateway(gateway).unwrap_or_else(|e| panic!("{e}"));
        let path = handle.config_path();
        if !path.exists() {
            handle
                .write_config()
                .unwrap_or_else(|e| panic!("{gateway}: {e}"));
        }
        let edited = edit(text(&path));
        std::fs::write(&path, edited).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Captures on a NIC.
    pub fn sniff(&self, host: &str, link: &str) -> lab::Capture {
        self.capture(host, link, None)
            .unwrap_or_else(|e| panic!("{host}: capturing on {link}: {e}"))
    }

    /// Fails a machine over and waits until its replica's addresses are usable.
    pub fn over(&self, machine: &str) -> lab::Switchover {
        self.fail_over(machine)
            .unwrap_or_else(|e| panic!("failing {machine} over: {e}"))
    }

    /// Fails a machine back.
    pub fn back(&self, machine: &str) -> lab::Switchover {
        self.fail_back(machine)
            .unwrap_or_else(|e| panic!("failing {machine} back: {e}"))
    }
}

/// A TCP connection to a [`lab::Greeter`] that sends numbers, and gets them back, all the time.
#[derive(Debug)]
pub struct Conversation {
    what: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<(u64, Duration)>>,
}

impl Conversation {
    /// Connects, waits for the greeting, and sends a number every 20 ms after the previous one was
    /// echoed. Gives up after 15 s of silence.
    pub fn start(site: &Site, from: &str, to: &str, port: u16) -> Self {
        let at = SocketAddr::new(crate::packet::ip(to), port);
        let what = format!("conversation {from} → {at}");
        let stream = site
            .connect(from, at, Duration::from_secs(5))
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            stream.set_read_timeout(Some(Duration::from_secs(15)))?;
            stream.set_nodelay(true)?;
            let mut lines = BufReader::new(&stream);
            let mut line = String::new();
            lines.read_line(&mut line)?;
            let (mut number, mut longest) = (0u64, Duration::ZERO);
            while !stopping.load(Ordering::Relaxed) {
                let began = Instant::now();
                (&stream).write_all(format!("{number}\n").as_bytes())?;
                line.clear();
                if lines.read_line(&mut line)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                if line.trim_end() != number.to_string() {
                    return Err(std::io::Error::other(format!(
                        "sent {number}, received {line:?}"
                    )));
                }
                number += 1;
                longest = longest.max(began.elapsed());
                thread::sleep(Duration::from_millis(20));
            }
            Ok((number, longest))
        });
        Self { what, stop, thread }
    }

    /// Whether the connection is still open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Closes the connection. Returns the number of replies and the longest round trip.
    ///
    /// # Errors
    ///
    /// If the connection ended earlier.
    pub fn finish(self) -> std::io::Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().expect("no panic in a conversation");
        println!("{}: {result:?}", self.what);
        result
    }
}

/// The number of a member `name` at any depth, or the value of an object with that name.
fn find_number(value: &serde_json::Value, name: &str) -> Option<u64> {
    match value {
        serde_json::Value::Object(map) => {
            if let Some(n) = map.get(name).and_then(serde_json::Value::as_u64) {
                return Some(n);
            }
            if map.get("name").and_then(|n| n.as_str()) == Some(name) {
                return map.get("value").and_then(serde_json::Value::as_u64);
            }
            map.values().find_map(|v| find_number(v, name))
        }
        serde_json::Value::Array(all) => all.iter().find_map(|v| find_number(v, name)),
        _ => None,
    }
}

/// A TCP transfer under way.
#[derive(Debug)]
pub struct Transfer {
    what: String,
    began: Instant,
    sender: JoinHandle<std::io::Result<u64>>,
    receiver: JoinHandle<std::io::Result<(u64, u64)>>,
    bytes: u64,
}

/// The byte of the pattern at an offset.
fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 24) as u8
}

impl Transfer {
    /// Starts a transfer at full speed.
    pub fn start(site: &Site, from: &str, to: &str, address: &str, bytes: usize) -> Self {
        Self::paced(site, from, to, address, bytes, Duration::ZERO)
    }

    /// Starts a transfer that pauses after each 64 KiB. It fills no queue, so every lost packet is
    /// due to the code under test.
    pub fn paced(
        site: &Site,
        from: &str,
        to: &str,
        address: &str,
        bytes: usize,
        pause: Duration,
    ) -> Self {
        let what = format!("TCP {from} → {to} at {address}");
        let at = SocketAddr::new(crate::packet::ip(address), 0);
        let listener = site
            .inside(to, || TcpListener::bind(at))
            .unwrap_or_else(|e| panic!("{what}: listening: {e}"));
        let at = listener.local_addr().expect("a bound socket");
        let receiver = thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(15)))?;
            let (mut got, mut wrong) = (0u64, 0u64);
            let mut buffer = vec![0; 1 << 16];
            loop {
                let n = stream.read(&mut buffer)?;
                if n == 0 {
                    return Ok((got, wrong));
                }
                for byte in &buffer[..n] {
                    wrong += u64::from(*byte != pattern(got));
                    got += 1;
                }
            }
        });
        let mut stream = site
            .inside(from, || {
                TcpStream::connect_timeout(&at, Duration::from_secs(10))
            })
            .unwrap_or_else(|e| panic!("{what}: connecting: {e}"));
        let began = Instant::now();
        let sender = thread::spawn(move || {
            stream.set_write_timeout(Some(Duration::from_secs(15)))?;
            let mut sent = 0u64;
            let mut buffer = vec![0; 1 << 16];
            while sent < bytes as u64 {
                let n = buffer.len().min(bytes - sent as usize);
                for (i, byte) in buffer[..n].iter_mut().enumerate() {
                    *byte = pattern(sent + i as u64);
                }
                stream.write_all(&buffer[..n])?;
                sent += n as u64;
                if !pause.is_zero() {
                    thread::sleep(pause);
                }
            }
            Ok(sent)
        });
        Self {
            what,
            began,
            sender,
            receiver,
            bytes: bytes as u64,
        }
    }

    /// Waits for its end and expects every byte to have arrived.
    pub fn finish(self) -> Duration {
        let sent = self.sender.join().expect("no panic in the sender");
        let got = self.receiver.join().expect("no panic in the receiver");
        match (sent, got) {
            (Ok(sent), Ok((got, wrong))) => {
                assert!(
                    sent == self.bytes && got == sent && wrong == 0,
                    "{}: {sent} bytes sent, {got} received, {wrong} of them wrong",
                    self.what
                );
            }
            (sent, got) => panic!("{}: sender {sent:?}, receiver {got:?}", self.what),
        }
        self.began.elapsed()
    }
}

pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The frames of a capture.
pub fn frames(capture: lab::Capture) -> Vec<Vec<u8>> {
    capture
        .stop()
        .unwrap_or_else(|e| panic!("capture: {e}"))
        .into_iter()
        .map(|f| f.bytes)
        .collect()
}

/// Whether `needle` is in `hay`.
#[must_use]
pub fn holds(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}
