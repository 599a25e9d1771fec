//! Our tunnel and another WireGuard, each in a network namespace, a veth between them.
//!
//! ```text
//!   cwi-ours                                             cwi-theirs
//!   ┌──────────────────────────────┐                     ┌──────────────────────────────────┐
//!   │ Ours: tunnel::Tunnel,        │ wire         wire   │ wireguard-go or boringtun-cli    │
//!   │   a UDP socket, the clocks,  ├─────── veth ────────┤   set up by `wg`                 │
//!   │   OS randomness, ICMP echo   │ 192.0.2.1        .2 │ cwi0: the kernel's stack, `ping` │
//!   │ inside 10.77.0.1, fd77::1    │ 2001:db8:77::1  ::2 │ inside 10.77.0.2, fd77::2        │
//!   └──────────────────────────────┘                     └──────────────────────────────────┘
//! ```
//!
//! [`Ours`] is a minimal WireGuard around a sans-IO [`tunnel::Tunnel`]: a thread that waits for
//! datagrams and deadlines, and a queue for packets that wait for a session.
//! Functions panic with their observations. A testbed that a failing test drops prints the logs and
//! state of both ends.

mod ours;

use std::{
    fmt::Write as _,
    fs::File,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lab::{Output, within_namespace};
use nix::fcntl::{Flock, FlockArg};
use tunnel::{LoadLimits, PublicKey, SecretKey};

pub use self::ours::{Datagram, Ours, State};
use crate::{lab_lock::LabLock, skip};

/// Time for a command that should be quick.
const SHORT_TIMEOUT: Duration = Duration::from_secs(20);
/// Lock of the testbeds, one of which runs at a time: namespaces, the interface and its UAPI socket
/// have one name each.
const LOCK_FILE: &str = "/run/causeway-wireguard.lock";
const OURS: &str = "cwi-ours";
const THEIRS: &str = "cwi-theirs";
/// Their interface; also the name of their UAPI socket, which no namespace hides.
const INTERFACE: &str = "cwi0";
/// UDP port of either end.
const PORT: u16 = 51820;

/// Another WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// `wireguard-go`, as Debian packages it.
    WireguardGo,
    /// `boringtun-cli`, as `cargo xtask test` installs it.
    Boringtun,
}

impl Implementation {
    /// The name of its program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-cli",
        }
    }

    /// Path of its program.
    fn find(self) -> Option<PathBuf> {
        let built = crate::harness::workspace_root()
            .join("target/tools/bin")
            .join(self.program());
        std::env::var_os("CAUSEWAY_BORINGTUN")
            .map(PathBuf::from)
            .filter(|_| self == Self::Boringtun)
            .into_iter()
            .chain([built])
            .chain(in_path(self.program()))
            .find(|path| path.exists())
    }

    fn command(self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", THEIRS]).arg(program);
        match self {
            Self::WireguardGo => command
                .env("WG_PROCESS_FOREGROUND", "1")
                .env("LOG_LEVEL", "verbose")
                .args(["-f", INTERFACE]),
            Self::Boringtun => command.env("NO_COLOR", "1").args([
                INTERFACE,
                "--foreground",
                "--verbosity",
                "debug",
                "--disable-drop-privileges",
            ]),
        };
        command
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.exists())
}

/// The program, or the reason why the testbed cannot run here.
fn find(implementation: Implementation) -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err("/dev/net/tun is missing; the kernel needs CONFIG_TUN".to_owned());
    }
    for tool in ["ip", "ping", "wg"] {
        if in_path(tool).is_none() {
            return Err(format!(
                "`{tool}` is missing; `cargo xtask setup` installs it"
            ));
        }
    }
    implementation.find().ok_or_else(|| {
        format!(
            "`{}` is missing; `cargo xtask setup` installs it",
            implementation.program()
        )
    })
}

/// The family of addresses of the datagrams between the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Underlay {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The address and port of our end.
    #[must_use]
    pub const fn ours(self) -> SocketAddr {
        self.at(1)
    }

    /// The address and port of their end.
    #[must_use]
    pub const fn theirs(self) -> SocketAddr {
        self.at(2)
    }

    const fn at(self, host: u16) -> SocketAddr {
        let ip = match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, host as u8)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, host)),
        };
        SocketAddr::new(ip, PORT)
    }
}

/// Addresses inside the tunnel, one of each family.
#[must_use]
pub const fn inside(host: u16) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, host as u8)),
        IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host)),
    ]
}

/// Host number of our end, outside and inside.
pub const OUR_HOST: u16 = 1;
/// Host number of their end, outside and inside.
pub const THEIR_HOST: u16 = 2;

/// Configuration of the two ends.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Addresses outside.
    pub underlay: Underlay,
    /// Our end has their endpoint address, so it may initiate.
    pub we_know_them: bool,
    /// Their end has our endpoint address, so it may initiate.
    pub they_know_us: bool,
    /// The shared key as we have it.
    pub our_psk: Option<[u8; 32]>,
    /// The shared key as they have it.
    pub their_psk: Option<[u8; 32]>,
    /// Our end has their right public key, not another.
    pub we_have_their_key: bool,
    /// Their end has our right public key, not another.
    pub they_have_our_key: bool,
    /// Our bounds on handshakes.
    pub load: LoadLimits,
    /// Our timers.
    pub timers: tunnel::TimerConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            underlay: Underlay::V4,
            we_know_them: true,
            they_know_us: true,
            our_psk: None,
            their_psk: None,
            we_have_their_key: true,
            they_have_our_key: true,
            load: LoadLimits::default(),
            timers: tunnel::TimerConfig::wireguard(),
        }
    }
}

/// Both ends and the wire between them; gone when dropped.
#[derive(Debug)]
pub struct Testbed {
    /// Our end.
    pub ours: Ours,
    /// Their end.
    pub theirs: Theirs,
    // Last, so that the ends are gone before their namespaces are.
    _wire: Wire,
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show();
        }
    }
}

impl Testbed {
    /// Raises both ends; `None` after saying why, where that is impossible.
    #[must_use]
    pub fn raise(implementation: Implementation, setup: Setup) -> Option<Self> {
        let program = match find(implementation) {
            Ok(program) => program,
            Err(why) => {
                skip(&why);
                return None;
            }
        };
        let wire = Wire::raise();
        let mut random = Os::open();
        let secret = SecretKey::generate(&mut random);
        let their_secret = SecretKey::generate(&mut random);
        let stranger = SecretKey::generate(&mut random).public();
        let theirs = Theirs::start(
            implementation,
            program,
            wire.dir.clone(),
            Config {
                secret: their_secret.clone(),
                peer: if setup.they_have_our_key {
                    secret.public()
                } else {
                    stranger
                },
                psk: setup.their_psk,
                endpoint: setup.they_know_us.then(|| setup.underlay.ours()),
            },
        );
        let ours = Ours::start(
            random,
            secret,
            if setup.we_have_their_key {
                their_secret.public()
            } else {
                stranger
            },
            &setup,
        );
        Some(Self {
            ours,
            theirs,
            _wire: wire,
        })
    }

    /// Prints what one needs to see why a test failed.
    pub fn show(&self) {
        println!("==== ours\n{}", self.ours.report());
        println!("==== theirs\n{}", self.theirs.report());
        for namespace in [OURS, THEIRS] {
            for what in [
                &["-s", "address"][..],
                &["neighbour"],
                &["-6", "route"],
                &["route"],
            ] {
                let out = attempt(in_namespace(namespace, "ip").args(what));
                println!("==== {namespace}: ip {}\n{out}", what.join(" "));
            }
        }
    }
}

/// The namespaces and the veth.
#[derive(Debug)]
struct Wire {
    dir: PathBuf,
    _testbed: Flock<File>,
    _lab_lock: LabLock,
}

impl Wire {
    fn raise() -> Self {
        let file = File::create(LOCK_FILE).expect("root may write to /run");
        let testbed = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| e)
            .expect("a lock on a file of our own");
        let lab_lock = LabLock::acquire();
        remove_namespaces();
        let dir = PathBuf::from("/run/cwi");
        // Remains of a killed run.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let wire = Self {
            dir,
            _testbed: testbed,
            _lab_lock: lab_lock,
        };
        for namespace in [OURS, THEIRS] {
            must(Command::new("ip").args(["netns", "add", namespace]));
            must(in_namespace(namespace, "ip").args(["link", "set", "lo", "up"]));
        }
        must(Command::new("ip").args([
            "link", "add", "wire", "netns", OURS, "type", "veth", "peer", "name", "wire", "netns",
            THEIRS,
        ]));
        for (namespace, host) in [(OURS, OUR_HOST), (THEIRS, THEIR_HOST)] {
            let v4 = format!("{}/24", Underlay::V4.at(host).ip());
            let v6 = format!("{}/64", Underlay::V6.at(host).ip());
            must(in_namespace(namespace, "ip").args(["address", "add", &v4, "dev", "wire"]));
            must(
                in_namespace(namespace, "ip").args(["address", "add", &v6, "dev", "wire", "nodad"]),
            );
            must(in_namespace(namespace, "ip").args(["link", "set", "wire", "up"]));
        }
        // IPv6 is usable up to a second later, when the kernel has noticed the carrier.
        for underlay in Underlay::ALL {
            for (namespace, to) in [(OURS, underlay.theirs()), (THEIRS, underlay.ours())] {
                must(in_namespace(namespace, "ping").args([
                    "-n",
                    "-q",
                    "-c",
                    "1",
                    "-i",
                    "0.02",
                    "-w",
                    "5",
                    &to.ip().to_string(),
                ]));
            }
        }
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        remove_namespaces();
        // The next run tries again.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn remove_namespaces() {
    for namespace in [OURS, THEIRS] {
        if Path::new("/run/netns").join(namespace).exists() {
            let out = attempt(Command::new("ip").args(["netns", "delete", namespace]));
            if !out.is_empty() {
                println!("removing {namespace}: {out}");
            }
        }
    }
}

fn in_namespace(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

fn run(command: &mut Command) -> Output {
    lab::run(command, SHORT_TIMEOUT).unwrap_or_else(|e| panic!("{e}"))
}

fn must(command: &mut Command) -> String {
    let out = run(command);
    assert!(
        out.ok(),
        "{command:?}: status {}\n{}{}",
        out.status,
        out.stdout,
        out.stderr
    );
    out.stdout
}

/// Output of a command, or its error.
fn attempt(command: &mut Command) -> String {
    match lab::run(command, SHORT_TIMEOUT) {
        Ok(out) => format!("{}{}", out.stdout, out.stderr),
        Err(e) => e.to_string(),
    }
}

/// Waits until `done`, looking every two milliseconds; panics with `what` after `within`.
fn wait_until(what: &str, within: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < within,
            "{what} did not happen within {within:?}"
        );
        thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

/// The operating system's randomness.
#[derive(Debug)]
struct Os(File);

impl Os {
    fn open() -> Self {
        Self(File::open("/dev/urandom").expect("every Linux has /dev/urandom"))
    }
}

impl tunnel::Random for Os {
    fn fill(&mut self, out: &mut [u8]) {
        self.0
            .read_exact(out)
            .expect("/dev/urandom never ends or fails");
    }
}

/// Configuration of their end.
#[derive(Debug)]
struct Config {
    secret: SecretKey,
    peer: PublicKey,
    psk: Option<[u8; 32]>,
    endpoint: Option<SocketAddr>,
}

/// The other WireGuard.
#[derive(Debug)]
pub struct Theirs {
    implementation: Implementation,
    program: PathBuf,
    dir: PathBuf,
    config: Config,
    process: Option<Child>,
}

/// A peer as `wg show dump` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TheirStatus {
    /// Our endpoint in its status.
    pub endpoint: String,
    /// Time of the last handshake, seconds since 1970; zero without one.
    pub latest_handshake: u64,
    /// Bytes received, as it counts them.
    pub received: u64,
    /// Bytes sent, as it counts them.
    pub sent: u64,
}

impl Theirs {
    fn start(
        implementation: Implementation,
        program: PathBuf,
        dir: PathBuf,
        config: Config,
    ) -> Self {
        let mut theirs = Self {
            implementation,
            program,
            dir,
            config,
            process: None,
        };
        theirs.launch();
        theirs
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("theirs.log")
    }

    fn launch(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log in a directory of our own");
        let errors = log.try_clone().expect("another handle of the log");
        let mut command = self.implementation.command(&self.program);
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        // SAFETY: the closure only makes a system call.
        unsafe {
            command.pre_exec(|| {
                // A test that is killed leaves nothing running.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        // A socket that a killed process left must not pass for the new one's.
        let socket = PathBuf::from(format!("/var/run/wireguard/{INTERFACE}.sock"));
        let _ = std::fs::remove_file(&socket);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        self.process = Some(child);
        let path = self.dir.join("theirs.conf");
        let mut text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = {}/32, {}/128\n",
            *self.config.secret.expose_base64(),
            self.config.peer,
            inside(OUR_HOST)[0],
            inside(OUR_HOST)[1],
        );
        if let Some(psk) = self.config.psk {
            // A shared key is written as any key is.
            let psk = SecretKey::from_bytes(&psk);
            let _ = writeln!(text, "PresharedKey = {}", *psk.expose_base64());
        }
        if let Some(endpoint) = self.config.endpoint {
            let _ = writeln!(text, "Endpoint = {endpoint}");
        }
        std::fs::write(&path, text).expect("a file in a directory of our own");
        let mut output = String::new();
        let begun = Instant::now();
        loop {
            // Its socket appears some time after it starts.
            if socket.exists() {
                let out = run(in_namespace(THEIRS, "wg")
                    .args(["setconf", INTERFACE])
                    .arg(&path));
                if out.ok() {
                    break;
                }
                output = out.stderr;
            }
            let ended = self
                .process
                .as_mut()
                .is_some_and(|p| !matches!(p.try_wait(), Ok(None)));
            assert!(
                !ended && begun.elapsed() < SHORT_TIMEOUT,
                "{} refuses its configuration: {output}\n{}",
                self.implementation.program(),
                self.log()
            );
            thread::sleep(Duration::from_millis(2));
        }
        let [v4, v6] = inside(THEIR_HOST);
        for words in [
            &["address", "add", &format!("{v4}/24"), "dev", INTERFACE][..],
            &[
                "address",
                "add",
                &format!("{v6}/64"),
                "dev",
                INTERFACE,
                "nodad",
            ],
            &["link", "set", INTERFACE, "mtu", "1420", "up"],
        ] {
            must(in_namespace(THEIRS, "ip").args(words));
        }
    }

    /// SIGKILL by pid; returns when the process is gone and its interface with it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().expect("a child of ours can be killed");
            child.wait().expect("a child of ours can be awaited");
        }
    }

    /// Ends it without warning and starts it again with the same keys.
    pub fn restart(&mut self) {
        self.kill();
        wait_until("the end of their interface", SHORT_TIMEOUT, || {
            !run(in_namespace(THEIRS, "ip").args(["link", "show", INTERFACE])).ok()
        });
        self.launch();
    }

    /// Pings from their kernel: `count` echoes of `packet` bytes of IP, as fast as `interval`; how
    /// many answers the kernel got, and what `ping` printed.
    ///
    /// The kernel counts, because `ping` stays only two round trips after its last echo and takes
    /// an answer that is later for lost.
    #[must_use]
    pub fn ping(&self, to: IpAddr, count: u32, interval: &str, packet: usize) -> (u32, String) {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let size = packet.saturating_sub(headers).to_string();
        let before = echo_replies(to);
        let out = run(in_namespace(THEIRS, "ping").args([
            "-n",
            "-q",
            "-c",
            &count.to_string(),
            "-i",
            interval,
            "-s",
            &size,
            "-W",
            "1",
            &to.to_string(),
        ]));
        let until = Instant::now() + Duration::from_secs(2);
        let replies = loop {
            let replies = echo_replies(to).saturating_sub(before);
            if replies >= count || Instant::now() >= until {
                break replies;
            }
            thread::sleep(Duration::from_millis(20));
        };
        (replies, format!("{}{}", out.stdout, out.stderr))
    }

    /// Pings from their kernel until one is answered, for at most `within`.
    pub fn await_reply(&self, to: IpAddr, within: Duration) -> Duration {
        let begun = Instant::now();
        let out = run(in_namespace(THEIRS, "ping").args([
            "-n",
            "-q",
            "-i",
            "0.02",
            // Ends at the first answer.
            "-c",
            "1",
            "-w",
            &within.as_secs().to_string(),
            &to.to_string(),
        ]));
        assert!(
            out.ok(),
            "their end does not reach {to} within {within:?}:\n{}{}",
            out.stdout,
            out.stderr
        );
        begun.elapsed()
    }

    /// A UDP socket at their address, on another port.
    #[must_use]
    pub fn socket(&self, underlay: Underlay) -> UdpSocket {
        bind(THEIRS, SocketAddr::new(underlay.theirs().ip(), 0))
    }

    /// Its status of our end.
    #[must_use]
    pub fn status(&self) -> TheirStatus {
        let dump = must(in_namespace(THEIRS, "wg").args(["show", INTERFACE, "dump"]));
        let Some(peer) = dump.lines().nth(1) else {
            panic!("`wg show dump` names no peer:\n{dump}");
        };
        let fields: Vec<_> = peer.split('\t').collect();
        let number = |at: usize| fields.get(at).and_then(|f| f.parse().ok()).unwrap_or(0);
        TheirStatus {
            endpoint: fields.get(2).unwrap_or(&"").to_string(),
            latest_handshake: number(4),
            received: number(5),
            sent: number(6),
        }
    }

    /// The text of its log file so far; empty if there is none.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn report(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines.split_at(lines.len().saturating_sub(200)).1.join("\n");
        let shown = attempt(in_namespace(THEIRS, "wg").args(["show", INTERFACE]));
        format!("{}\n{shown}\n{tail}", self.program.display())
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // A child that cannot be killed has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Echo replies that their kernel took since it has the namespace, of the family of `like`.
fn echo_replies(like: IpAddr) -> u32 {
    let (file, name) = match like {
        IpAddr::V4(_) => ("/proc/net/snmp", "InEchoReps"),
        IpAddr::V6(_) => ("/proc/net/snmp6", "Icmp6InEchoReplies"),
    };
    let text = must(in_namespace(THEIRS, "cat").arg(file));
    let mut rows = text.lines().map(|row| row.split_whitespace());
    let value = match like {
        // A row of names and a row of values.
        IpAddr::V4(_) => loop {
            let (Some(names), Some(values)) = (rows.next(), rows.next()) else {
                break None;
            };
            if let Some((_, value)) = names.zip(values).find(|(n, _)| *n == name) {
                break Some(value);
            }
        },
        IpAddr::V6(_) => rows.find_map(|mut row| {
            let found = row.next() == Some(name);
            row.next().filter(|_| found)
        }),
    };
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("{file} has no {name}:\n{text}"))
}

fn bind(namespace: &str, at: SocketAddr) -> UdpSocket {
    let mut socket = None;
    let slot = &mut socket;
    within_namespace(namespace, move || {
        *slot = Some(UdpSocket::bind(at));
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e}"));
    socket
        .expect("the work was done")
        .unwrap_or_else(|e| panic!("{namespace}: binding {at}: {e}"))
}
