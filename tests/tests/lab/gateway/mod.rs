//! The gateway as a process, with XDP in its interfaces' driver, and ends of circuits on both sides
//! of it.
//!
//! ```text
//!   a  .10 ── 192.0.2.0/24, 2001:db8:1::/64 ── ga  gateway  gb ── 198.51.100.0/24, 2001:db8:2::/64 ── .20  b
//! ```
//!
//! If both ends of a circuit are in `a`, frames leave by their input interface. If one is in `a`
//! and one in `b`, they are redirected.

mod refused;
mod timed;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixDatagram, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{Xdp, XdpMode, xdp::XdpLinkId},
};
use causeway_tests::{gateway::missing, harness::workspace_root, lab_lock::LabLock, skip};
use circuit_end::{CircuitEnd, clock};
use gateway_client::wire::{CircuitId, Key, Side};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(10);
const A: [&str; 2] = ["192.0.2.10", "2001:db8:1::10"];
const B: [&str; 2] = ["198.51.100.20", "2001:db8:2::20"];
/// The gateway's addresses for ends in `a` and in `b`.
const AT_A: [&str; 2] = ["192.0.2.1:6180", "[2001:db8:1::1]:6180"];
const AT_B: [&str; 2] = ["198.51.100.1:6180", "[2001:db8:2::1]:6180"];

fn built(variable: &str, file: &str) -> PathBuf {
    std::env::var_os(variable)
        .map_or_else(|| workspace_root().join("target").join(file), PathBuf::from)
}

fn program() -> PathBuf {
    built("CAUSEWAY_GATEWAY", "release/causeway-gateway")
}

/// Namespaces, their links, and a directory for the gateway's files; taken down when dropped.
struct Site {
    name: String,
    dir: tempfile::TempDir,
    /// The far ends' program: without one a veth does not wake whom XDP sends to.
    far: Ebpf,
    far_links: BTreeMap<String, XdpLinkId>,
    child: Option<Child>,
    _lab_lock: LabLock,
}

fn run(words: &str) {
    let mut parts = words.split_whitespace();
    let output = Command::new(parts.next().expect("a command"))
        .args(parts)
        .output()
        .expect("run");
    assert!(
        output.status.success(),
        "{words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Site {
    fn raise() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        for path in [program(), built("CAUSEWAY_LAB_BPF_OBJECT", "bpf/lab.bpf.o")] {
            if !path.exists() {
                skip(&format!("{} is missing", path.display()));
                return None;
            }
        }
        let far = Ebpf::load_file(built("CAUSEWAY_LAB_BPF_OBJECT", "bpf/lab.bpf.o"));
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut site = Self {
            name: format!("cwxdp{}x{count}", std::process::id()),
            dir: tempfile::tempdir().expect("a directory"),
            far: far.expect("the lab's object"),
            far_links: BTreeMap::new(),
            child: None,
            _lab_lock: LabLock::acquire(),
        };
        for host in ["gw", "a", "b"] {
            run(&format!("ip netns add {}", site.namespace(host)));
            site.ip("gw", "link set lo up");
        }
        let sides = [("a", "ga", A, AT_A), ("b", "gb", B, AT_B)];
        for (host, ours, theirs, at) in sides {
            let peer = site.namespace(host);
            site.ip(
                "gw",
                &format!("link add {ours} type veth peer name eth0 netns {peer}"),
            );
            for n in 0..2 {
                let at: SocketAddr = at[n].parse().expect("an address");
                let (length, nodad) = if n == 0 { (24, "") } else { (64, "nodad") };
                site.ip(
                    "gw",
                    &format!("addr add {}/{length} dev {ours} {nodad}", at.ip()),
                );
                site.ip(
                    host,
                    &format!("addr add {}/{length} dev eth0 {nodad}", theirs[n]),
                );
            }
            site.ip("gw", &format!("link set {ours} up"));
            site.ip(host, "link set eth0 up");
            // XDP does not finish a checksum that the stack left to the NIC.
            run(&format!("ip netns exec {peer} ethtool -K eth0 tx off"));
            site.far_end(host);
        }
        Some(site)
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    fn ip(&self, host: &str, words: &str) {
        run(&format!("ip -n {} {words}", self.namespace(host)));
    }

    fn open(&self, host: &str) -> OwnedFd {
        let path = format!("/run/netns/{}", self.namespace(host));
        fs::File::open(path).expect("a namespace").into()
    }

    /// Does something in a namespace.
    fn within<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.open(host);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("a namespace");
                work()
            });
            thread.join().expect("done")
        })
    }

    fn far_program(&mut self) -> &mut Xdp {
        let program = self.far.program_mut("far_end");
        program
            .and_then(|program| program.try_into().ok())
            .expect("a program")
    }

    /// Puts the far ends' program on one of them.
    fn far_end(&mut self, host: &str) {
        let namespace = self.open(host);
        let program = self.far_program();
        let link = std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("a namespace");
                if program.fd().is_err() {
                    program.load().expect("loaded");
                }
                program.attach("eth0", XdpMode::Driver).expect("attached")
            });
            thread.join().expect("done")
        });
        self.far_links.insert(host.to_owned(), link);
    }

    /// Takes it off.
    fn no_far_end(&mut self, host: &str) {
        let link = self.far_links.remove(host).expect("it was there");
        self.far_program().detach(link).expect("detached");
    }

    fn write(&self, circuits: &[u64], settings: &str, tenant: &str) {
        let mut text = format!(
            "[gateway]\nname = \"gw1\"\ncontrol_socket = {:?}\ndrain = 0\n\
             metrics = \"127.0.0.1:9180\"\n[circuits]\nthreads = 2\n{settings}\n[[tenant]]\n\
             name = \"acme\"\n{tenant}\n[[backend]]\nname = \"b\"\n\
             addresses = [\"192.0.2.77:443\"]\n[[route]]\nname = \"d.example\"\nbackend = \"b\"\n",
            self.socket()
        );
        for n in circuits {
            let keys = Side::BOTH.map(|side| Key::new(key(*n, side)).to_base64());
            text += &format!(
                "[[circuit]]\nid = \"{}\"\ntenant = \"acme\"\nkeys = {keys:?}\n",
                id(*n)
            );
        }
        let path = self.dir.path().join("gw.toml");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file");
    }

    /// Adds keys to the table `[gateway]` of the written configuration.
    fn amend(&self, keys: &str) {
        let drain = "drain = 0\n";
        self.edit(|text| text.replacen(drain, &format!("{drain}{keys}"), 1));
    }

    /// Removes the desired state from the written configuration. The last one that was applied is
    /// stored.
    fn without_desired(&self) {
        self.edit(|text| {
            let (local, _) = text.split_once("[[tenant]]").expect("a desired state");
            local.to_owned()
        });
        let state = self.dir.path().join("state");
        self.amend(&format!("state_dir = {state:?}\n"));
    }

    fn edit(&self, change: impl FnOnce(&str) -> String) {
        let path = self.dir.path().join("gw.toml");
        let text = fs::read_to_string(&path).expect("a file");
        fs::write(&path, change(&text)).expect("written");
    }

    /// Adds a bridge, which has no native XDP.
    fn add_bridge(&self) {
        self.ip("gw", "link add br0 type bridge");
        self.ip("gw", "addr add 203.0.113.1/24 dev br0");
        self.ip("gw", "link set br0 up");
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("gw.sock")
    }

    fn spawn(&self) -> Child {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .expect("a file");
        let namespace = self.open("gw");
        let mut command = Command::new(program());
        command
            .args(["run", "--config"])
            .arg(self.dir.path().join("gw.toml"))
            .env("CAUSEWAY_LOG", "info")
            .env(
                "CAUSEWAY_GATEWAY_BPF_OBJECT",
                causeway_tests::gateway::object_path(),
            )
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .stdin(Stdio::null())
            .stderr(log);
        // SAFETY: setns(2) is one system call.
        unsafe {
            command
                .pre_exec(move || setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(Into::into));
        }
        command.spawn().expect("started")
    }

    /// Starts the gateway and waits until it is ready.
    fn start(&mut self) {
        let notify = self.dir.path().join("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).expect("a socket");
        manager.set_read_timeout(Some(TIMEOUT)).expect("a deadline");
        self.child = Some(self.spawn());
        let mut word = [0; 64];
        let length = manager
            .recv(&mut word)
            .unwrap_or_else(|e| panic!("{e}: {}", self.log()));
        assert_eq!(&word[..length], b"READY=1", "{}", self.log());
    }

    /// Starts a gateway that must refuse its configuration. Returns its log.
    fn refused(&self) -> String {
        let _ = fs::remove_file(self.dir.path().join("log"));
        let mut child = self.spawn();
        let begun = Instant::now();
        while child.try_wait().expect("a child").is_none() {
            if begun.elapsed() > TIMEOUT {
                let _ = child.kill();
                panic!("it runs: {}", self.log());
            }
            sleep(Duration::from_millis(20));
        }
        assert!(!child.wait().expect("a child").success());
        self.log()
    }

    fn signal(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("a gateway");
        kill(Pid::from_raw(child.id() as i32), signal).expect("a signal");
        child.wait().expect("ended");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn ask(&self, words: &[&str]) -> Output {
        Command::new(program())
            .args(words)
            .arg("--socket")
            .arg(self.socket())
            .output()
            .expect("run")
    }

    fn cli(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {wrong}{}", self.log());
        printed
    }

    /// Runs a command that the gateway must refuse. Returns its error.
    fn refuses(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(!output.status.success(), "{words:?} was accepted");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn metrics(&self) -> String {
        self.within("gw", || {
            let mut stream = TcpStream::connect("127.0.0.1:9180").expect("connected");
            stream.set_read_timeout(Some(TIMEOUT)).expect("a deadline");
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .expect("asked");
            let mut page = String::new();
            stream.read_to_string(&mut page).expect("answered");
            page
        })
    }

    fn circuits(&self) -> Value {
        let mut status: Value =
            serde_json::from_str(&self.cli(&["status", "--json"])).expect("JSON");
        status["circuits"].take()
    }

    /// The interfaces with their XDP modes.
    fn xdp_modes(&self) -> Vec<(String, String)> {
        let circuits = self.circuits();
        let list = circuits["xdp"]["interfaces"].as_array().expect("a list");
        let modes = list.iter().map(|i| {
            let text = |name: &str| i[name].as_str().expect("text").to_owned();
            (text("name"), text("mode"))
        });
        modes.collect()
    }

    /// Forwarded datagrams of circuit `n` by sending side: all, and those that XDP forwarded.
    fn carried(&self, n: u64) -> ([u64; 2], [u64; 2]) {
        let circuits = self.circuits();
        let list = circuits["list"].as_array().expect("a list");
        let circuit = list.iter().find(|c| c["id"] == id(n).to_string());
        let circuit = circuit.expect("the circuit");
        let two = |name: &str| [0, 1].map(|n| circuit[name][n].as_u64().expect("a number"));
        (two("datagrams"), two("fast"))
    }

    fn end(&self, host: &str, circuit: u64, side: Side, to: &str) -> CircuitEnd {
        let key = Key::new(key(circuit, side));
        CircuitEnd::new(self.end_socket(host, to), id(circuit), side, key)
    }

    /// Both ends of a circuit, in `a` and in `b`, bound, after ten datagrams in each direction.
    #[track_caller]
    fn bound_ends(&self, circuit: u64) -> [CircuitEnd; 2] {
        let mut a = self.end("a", circuit, Side::A, AT_A[0]);
        let mut b = self.end("b", circuit, Side::B, AT_B[0]);
        a.bind();
        b.bind();
        talk(&a, &b, 10);
        [a, b]
    }

    fn end_socket(&self, host: &str, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().expect("an address");
        let own = if host == "a" { A } else { B };
        let own: IpAddr = own[usize::from(to.is_ipv6())].parse().expect("an address");
        let socket = self.within(host, || UdpSocket::bind((own, 0)).expect("a socket"));
        socket.connect(to).expect("an address");
        socket
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        for host in ["gw", "a", "b"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(host)])
                .status();
        }
    }
}

/// The id of circuit `n`, counted from one. Its third and fourth bytes may not be zero.
fn id(n: u64) -> CircuitId {
    let (high, middle) = ((n - 1) / 0xffff, (n - 1) % 0xffff + 1);
    CircuitId::new(high << 48 | middle << 32 | 0x5555_0000 | n & 0xffff).expect("an id")
}

fn key(circuit: u64, side: Side) -> [u8; 32] {
    [circuit as u8 * 2 + side as u8 + 1; 32]
}

/// Exchanges `count` datagrams in each direction.
#[track_caller]
fn talk(a: &CircuitEnd, b: &CircuitEnd, count: usize) {
    for n in 0..count {
        let bytes: Vec<u8> = (0..n % 1400 + 1).map(|m| (n + m) as u8).collect();
        a.send(&bytes);
        b.expect(&bytes);
        b.send(&bytes);
        a.expect(&bytes);
    }
}

const NATIVE: &str = "xdp = \"native\"\ninterfaces = [\"ga\", \"gb\"]";

#[test]
fn datagrams_go_through_the_driver_both_ways_and_families() {
    let Some(mut site) = Site::raise() else {
        return;
    };
    site.write(&[1, 2, 3, 4, 5], NATIVE, "");
    site.start();
    let pairs = [
        (1, ("a", AT_A[0]), ("b", AT_B[0])),
        (2, ("a", AT_A[1]), ("b", AT_B[1])),
        (3, ("a", AT_A[0]), ("a", AT_A[0])),
        (4, ("a", AT_A[1]), ("a", AT_A[1])),
        (5, ("a", AT_A[0]), ("b", AT_B[1])),
    ];
    for (circuit, (host_a, at_a), (host_b, at_b)) in pairs {
        let mut a = site.end(host_a, circuit, Side::A, at_a);
        let mut b = site.end(host_b, circuit, Side::B, at_b);
        a.bind();
        b.bind();
        talk(&a, &b, 50);
        let (all, fast) = site.carried(circuit);
        assert_eq!(all, [50; 2]);
        // User space forwards between an IPv4 end and an IPv6 end.
        let expected = if circuit == 5 { [0; 2] } else { [50; 2] };
        assert_eq!(fast, expected, "circuit {circuit}");
    }
    let circuits = site.circuits();
    assert_eq!(circuits["xdp"]["configured"], "native");
    for (n, name) in ["ga", "gb"].into_iter().enumerate() {
        assert_eq!(circuits["xdp"]["interfaces"][n]["name"], name);
        assert_eq!(circuits["xdp"]["interfaces"][n]["mode"], "native");
        assert_eq!(circuits["xdp"]["interfaces"][n]["target"], true);
    }
    assert_eq!(circuits["xdp"]["frames"]["forwarded"], 400);
    let page = site.metrics();
    for line in [
        "causeway_gateway_xdp_frames_total{outcome=\"forwarded\"} 400",
        "causeway_gateway_xdp_interface{interface=\"ga\",mode=\"native\"} 1",
        "# EOF",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}:\n{page}");
    }
    let page = site.cli(&["status"]);
    assert!(
        page.contains("XDP on ga: native\nXDP on gb: native\n"),
        "{page}"
    );
    assert!(!site.log().contains("ERROR"), "{}", site.log());
}

#[test]
fn ends_that_roam_leave_or_are_silent_are_followed() {
    let Some(mut site) = Site::raise() else {
        return;
    };
    site.write(&[1], &format!("{NATIVE}\nlifetime = 1.5"), "");
    site.start();
    let mut a = site.end("a", 1, Side::A, AT_A[0]);
    let mut b = site.end("b", 1, Side::B, AT_B[0]);
    let bind = |a: &mut CircuitEnd, b: &mut CircuitEnd| {
        a.bind();
        b.bind();
    };
    bind(&mut a, &mut b);
    talk(&a, &b, 10);
    // To another port, and to another network.
    for (host, at) in [("a", AT_A[0]), ("b", AT_B[0]), ("a", AT_A[0])] {
        a.roam(site.end_socket(host, at));
        a.send(b"from nowhere");
        assert_eq!(b.receive(), None);
        bind(&mut a, &mut b);
        talk(&a, &b, 10);
    }
    let (all, fast) = site.carried(1);
    assert_eq!((all, fast), ([40; 2], [40; 2]));
    // Longer than its lifetime, by binding again.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        bind(&mut a, &mut b);
        talk(&a, &b, 1);
        sleep(Duration::from_millis(200));
    }
    // An end unbinds: forwarding stops at once.
    a.socket.send(&a.end.unbind(clock())).expect("sent");
    sleep(Duration::from_millis(50));
    b.send(b"dropped");
    assert_eq!(a.receive(), None);
    bind(&mut a, &mut b);
    talk(&a, &b, 1);
    // An end sends no bind messages: datagrams do not extend its lifetime.
    let begun = Instant::now();
    let mut last = Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        b.send(b"still here");
        if a.receive().is_some() {
            last = Instant::now();
        }
        sleep(Duration::from_millis(5));
    }
    let lasted = (last - begun).as_secs_f64();
    assert!((1.0..1.7).contains(&lasted), "{lasted} s");
    let circuits = site.circuits();
    assert_eq!(circuits["bound"], 0);
    assert_eq!(circuits["list"][0]["events"]["moved"], 3);
    // User space counts the reason.
    let dropped = |reason: &str| {
        site.circuits()["dropped"][reason]
            .as_u64()
            .expect("a number")
    };
    // XDP drops those over the budget of a source that is not bound.
    let all = dropped("not-bound") + dropped("no-peer") + dropped("unbound-rate");
    // One each 0.2 s, the read timeout of the end that waits for them.
    assert!(all > 3, "{all}");
}

#[test]
fn a_reload_keeps_circuits_and_their_counts() {
    let Some(mut site) = Site::raise() else {
        return;
    };
    site.write(&[1], NATIVE, "");
    site.start();
    let [a, b] = site.bound_ends(1);
    site.write(&[1, 2], NATIVE, "");
    site.cli(&["reload"]);
    talk(&a, &b, 10);
    let [c, d] = site.bound_ends(2);
    assert_eq!(site.carried(1), ([20; 2], [20; 2]));
    assert_eq!(site.carried(2), ([10; 2], [10; 2]));
    // A new rate limit holds in the driver, and excess datagrams are counted.
    site.write(&[1, 2], NATIVE, "datagrams = 100");
    site.cli(&["reload"]);
    sleep(Duration::from_millis(300));
    (0..500).for_each(|_| a.send(b"x"));
    let mut received = 0;
    while b.receive().is_some() {
        received += 1;
    }
    let circuits = site.circuits();
    let dropped = circuits["dropped"]["rate"].as_u64().expect("a number");
    assert_eq!(received + dropped, 500);
    assert_eq!(circuits["xdp"]["frames"]["over-rate"], dropped);
    assert!((10..60).contains(&received), "{received}");
    // The removed circuit is gone, the other stays.
    site.write(&[2], NATIVE, "");
    site.cli(&["reload"]);
    a.send(b"dropped");
    assert_eq!(b.receive(), None);
    talk(&c, &d, 10);
    // A setting that a reload cannot change.
    site.write(&[2], "xdp = \"off\"", "");
    let error = site.refuses(&["reload"]);
    assert!(error.contains("circuits.xdp cannot be changed"), "{error}");
    talk(&c, &d, 1);
}

#[test]
fn the_configured_xdp_mode_is_used_or_the_start_fails_or_warns() {
    let Some(mut site) = Site::raise() else {
        return;
    };
    site.add_bridge();
    for (settings, problem) in [
        (
            "xdp = \"native\"\ninterfaces = [\"ga\", \"br0\"]",
            "attach XDP to br0 in native mode",
        ),
        (
            "xdp = \"native\"\ninterfaces = [\"eth7\"]",
            "there is no interface \"eth7\"",
        ),
        (
            "xdp = \"auto\"\ninterfaces = [\"eth7\"]",
            "there is no interface \"eth7\"",
        ),
        (
            "xdp = \"native\"",
            "no interface has a listen address or a default route",
        ),
        (
            "xdp = \"native\"\ninterfaces = [\"ga\"]\nbpf_object = \"/nowhere.o\"",
            "no BPF object at /nowhere.o",
        ),
    ] {
        site.write(&[1], settings, "");
        let log = site.refused();
        assert!(log.contains(problem), "{settings}: {log}");
    }
    let gro = |site: &Site, state: &str| {
        let namespace = site.namespace("gw");
        for interface in ["ga", "gb"] {
            run(&format!(
                "ip netns exec {namespace} ethtool -K {interface} gro {state}"
            ));
        }
    };
    gro(&site, "on");
    let generic = "xdp = \"generic\"\ninterfaces = [\"ga\", \"gb\"]";
    site.write(&[1], generic, "");
    let log = site.refused();
    assert!(
        log.contains("ga joins datagrams before generic XDP sees them"),
        "{log}"
    );
    gro(&site, "off");
    let named = |list: &[(&str, &str)]| {
        let list = list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        list.collect::<Vec<_>>()
    };
    let talks = |site: &Site, fast: u64| {
        let _ends = site.bound_ends(1);
        assert_eq!(site.carried(1), ([10; 2], [fast; 2]));
    };
    site.start();
    assert_eq!(
        site.xdp_modes(),
        named(&[("ga", "generic"), ("gb", "generic")])
    );
    talks(&site, 10);
    site.signal(Signal::SIGKILL);
    // XDP is attached where possible; user space forwards datagrams of other interfaces.
    site.write(&[1], "interfaces = [\"ga\", \"br0\"]", "");
    site.start();
    assert_eq!(
        site.xdp_modes(),
        named(&[("br0", "none"), ("ga", "native")])
    );
    talks(&site, 0);
    let page = site.cli(&["status"]);
    assert!(
        page.contains("XDP on br0: none, circuits use user space: attach XDP to br0"),
        "{page}"
    );
    site.signal(Signal::SIGKILL);
    // Without a list: the interfaces of the default routes.
    site.ip("gw", "route add default via 198.51.100.20");
    site.ip("gw", "route add ::/0 via 2001:db8:1::10");
    site.write(&[1], "", "");
    site.start();
    assert_eq!(
        site.xdp_modes(),
        named(&[("ga", "native"), ("gb", "native")])
    );
    talks(&site, 10);
    site.signal(Signal::SIGTERM);
    // A veth whose far end has neither a program nor GRO accepts no redirected frame. Nothing is
    // lost by that.
    site.no_far_end("b");
    site.write(&[1], "", "");
    site.start();
    let page = site.cli(&["status"]);
    assert!(
        page.contains("XDP on gb: native, but the driver cannot accept XDP redirects"),
        "{page}"
    );
    let [a, b] = site.bound_ends(1);
    assert_eq!(site.carried(1), ([10; 2], [0, 10]));
    site.far_end("b");
    site.cli(&["reload"]);
    talk(&a, &b, 10);
    assert_eq!(site.carried(1), ([20; 2], [10, 20]));
    site.signal(Signal::SIGTERM);
    // Without circuits, the program is not attached.
    site.write(&[], "xdp = \"native\"", "");
    site.start();
    assert_eq!(site.xdp_modes(), []);
    site.write(&[1], "xdp = \"native\"", "");
    site.cli(&["reload"]);
    assert_eq!(
        site.xdp_modes(),
        named(&[("ga", "native"), ("gb", "native")])
    );
    talks(&site, 10);
    site.signal(Signal::SIGKILL);
    site.write(&[1], "xdp = \"off\"", "");
    site.start();
    assert_eq!(site.xdp_modes(), []);
    talks(&site, 0);
}
