//! The relays that are compared.

use std::{
    net::{SocketAddrV4, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use circuit_end::CircuitEnd;
use gateway_client::{
    end::EndEvent,
    wire::{CircuitId, Key, Side},
};

use crate::{
    report::figures::Role,
    rig::{
        command::{command, exec, lacks, output},
        netns::within,
        process::Running,
    },
};

use super::{
    sites::{BACKEND, BACKEND_IP, CLIENT, CLIENT_IP, RELAY, RELAY_INNER_IP, RELAY_IP},
    turn,
};

/// The relay's port, TCP and UDP.
const PORT: u16 = 6180;
/// Source port of the client's datagrams.
pub const CLIENT_PORT: u16 = 4000;
/// UDP port of the backend.
pub const END_PORT: u16 = 9000;
/// TCP port of the backend.
pub const BACKEND_PORT: u16 = 9443;
/// Server name in the TLS hello.
pub const NAME: &str = "gateway.example.net";
/// Time that a contender has to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A circuit and the keys of its sides.
const CIRCUIT: u64 = 0x3f9a_1c02_77d1_e05b;
const KEYS: [&str; 2] = [
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
];
/// Path of nginx's stream module in Debian's package.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A relay, or a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The kernel forwards packets: the cost of the topology without a relay.
    Forward,
    /// `causeway-gateway`, all of it in user space.
    Gateway,
    /// `causeway-gateway` with its circuits in XDP.
    GatewayXdp,
    /// TURN channels.
    Coturn,
    /// nginx's stream module.
    Nginx,
    Socat,
    Haproxy,
}

/// The client's socket and the header of its relayed datagrams.
pub struct Relayed {
    /// The header in front of the payload, by the length of both in bytes.
    pub head: fn(usize) -> Vec<u8>,
    /// Bytes of the header that do not arrive.
    pub spent: usize,
    /// Destination.
    pub to: SocketAddrV4,
    /// Sockets of both ends, kept open.
    pub _sockets: [UdpSocket; 2],
}

impl Contender {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 7] = [
        Self::Forward,
        Self::Gateway,
        Self::GatewayXdp,
        Self::Coturn,
        Self::Nginx,
        Self::Socat,
        Self::Haproxy,
    ];

    /// Its name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "kernel forwarding",
            Self::Gateway => "causeway",
            Self::GatewayXdp => "causeway, XDP",
            Self::Coturn => "coturn",
            Self::Nginx => "nginx stream",
            Self::Socat => "socat",
            Self::Haproxy => "haproxy",
        }
    }

    /// Its role in the comparison.
    pub const fn role(self) -> Role {
        match self {
            Self::Forward => Role::Floor,
            Self::Gateway | Self::GatewayXdp => Role::Causeway,
            Self::Coturn | Self::Nginx | Self::Socat | Self::Haproxy => Role::Peer,
        }
    }

    /// Whether it relays datagrams.
    pub const fn has_udp(self) -> bool {
        !matches!(self, Self::Haproxy)
    }

    /// Whether it relays connections by the server name in their TLS hello.
    pub const fn has_tcp(self) -> bool {
        matches!(
            self,
            Self::Forward | Self::Gateway | Self::Nginx | Self::Haproxy
        )
    }

    /// Whether it sends by XDP. Then only an XDP program sees its frames arrive.
    pub const fn sends_by_xdp(self) -> bool {
        matches!(self, Self::GatewayXdp)
    }

    /// The reason why it cannot run on this machine.
    pub fn missing(self) -> Option<String> {
        let needed: &[&str] = match self {
            Self::Forward => &[],
            Self::Gateway | Self::GatewayXdp => return self.gateway_refuses(),
            Self::Coturn => &["turnserver"],
            Self::Nginx => &["nginx", NGINX_STREAM],
            Self::Socat => &["socat"],
            Self::Haproxy => &["haproxy"],
        };
        lacks("relay", needed)
    }

    /// The reason why the gateway refuses its configuration.
    fn gateway_refuses(self) -> Option<String> {
        let checked = || -> anyhow::Result<()> {
            let object = object();
            ensure!(
                self == Self::Gateway || object.exists(),
                "{} is missing; `cargo xtask build-ebpf` makes it",
                object.display()
            );
            let running = Running::new()?;
            self.write_gateway(&running)?;
            let mut check = Command::new(gateway());
            check.arg("check").arg(running.directory().join(CONFIG));
            let output = check
                .output()
                .with_context(|| format!("start {}", gateway().display()))?;
            let message = [output.stdout, output.stderr].concat();
            let message = String::from_utf8_lossy(&message)
                .trim()
                .replace('\n', " / ");
            ensure!(output.status.success(), "not available: {message}");
            Ok(())
        };
        checked().err().map(|error| format!("{error:#}"))
    }

    fn write_gateway(self, running: &Running) -> anyhow::Result<()> {
        let circuits = match self {
            Self::GatewayXdp => format!(
                "xdp = \"native\"\ninterfaces = [\"g0\", \"g1\"]\nbpf_object = {:?}",
                object()
            ),
            _ => "xdp = \"off\"".to_owned(),
        };
        let text = format!(
            "[gateway]\nname = \"bench\"\nlisten = [\"0.0.0.0:{PORT}\"]\ncontrol_socket = \"{}\"\n\
             [limits]\nper_source = 100000\n\
             [circuits]\nlifetime = 600\n{circuits}\n\
             [[tenant]]\nname = \"acme\"\nconnections = 100000\n\
             [[circuit]]\nid = \"{CIRCUIT:016x}\"\ntenant = \"acme\"\nkeys = {KEYS:?}\n\
             [[backend]]\nname = \"b\"\naddresses = [\"{BACKEND_IP}:{BACKEND_PORT}\"]\n\
             [[route]]\nname = \"{NAME}\"\ntenant = \"acme\"\nbackend = \"b\"\n",
            socket(running).display()
        );
        running.write(CONFIG, &text)?;
        // The file contains keys.
        let path = running.directory().join(CONFIG);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// Starts it in its namespace.
    pub fn up(self) -> anyhow::Result<Running> {
        let mut running = Running::new()?;
        let path = |name: &str| running.directory().join(name).display().to_string();
        let start = match self {
            Self::Forward => {
                exec(RELAY, "sysctl -qw net.ipv4.ip_forward=1")?;
                return Ok(running);
            }
            Self::Gateway | Self::GatewayXdp => {
                self.write_gateway(&running)?;
                let mut start = command(RELAY, gateway());
                start.args(["run", "--config", &path(CONFIG)]);
                start
            }
            Self::Coturn => {
                let mut start = command(RELAY, "turnserver");
                start.args(
                    format!(
                        "-n --no-auth --no-tls --no-dtls --no-cli --no-stdout-log --realm bench \
                         --listening-ip {RELAY_IP} --listening-port {PORT} --relay-ip \
                         {RELAY_INNER_IP} --log-file {} --pidfile {} --userdb {}",
                        path("turn.log"),
                        path("turn.pid"),
                        path("turn.db"),
                    )
                    .split_whitespace(),
                );
                start
            }
            Self::Nginx => {
                // As its manual recommends: one worker per processor, each with its own sockets.
                let text = format!(
                    "load_module {NGINX_STREAM};\ndaemon off;\nuser root;\nworker_processes auto;\n\
                     pid {};\nerror_log {} error;\n\
                     events {{ worker_connections 20000; }}\n\
                     stream {{\n\
                     map $ssl_preread_server_name $to {{ {NAME} {BACKEND_IP}:{BACKEND_PORT}; }}\n\
                     server {{ listen {PORT} reuseport backlog=4096; ssl_preread on; \
                     proxy_pass $to; proxy_timeout 600s; proxy_buffer_size 64k; }}\n\
                     server {{ listen {PORT} udp reuseport; proxy_pass {BACKEND_IP}:{END_PORT}; \
                     proxy_timeout 600s; }}\n\
                     }}\n",
                    path("nginx.pid"),
                    path("nginx-error.log"),
                );
                running.write(CONFIG, &text)?;
                let mut start = command(RELAY, "nginx");
                start.args(["-e", "stderr", "-c", &path(CONFIG)]);
                start
            }
            Self::Socat => {
                let mut start = command(RELAY, "socat");
                start.args([
                    "-T600".to_owned(),
                    format!("UDP4-LISTEN:{PORT},bind={RELAY_IP},reuseaddr,fork"),
                    format!("UDP4:{BACKEND_IP}:{END_PORT}"),
                ]);
                start
            }
            Self::Haproxy => {
                let text = format!(
                    "global\n maxconn 4000\n\
                     defaults\n mode tcp\n timeout connect 3s\n timeout client 600s\n \
                     timeout server 600s\n option splice-auto\n\
                     frontend f\n bind :{PORT} backlog 4096\n tcp-request inspect-delay 5s\n\
                     \x20tcp-request content accept if {{ req.ssl_hello_type 1 }}\n\
                     \x20use_backend b if {{ req.ssl_sni -i {NAME} }}\n\
                     backend b\n server s {BACKEND_IP}:{BACKEND_PORT}\n",
                );
                running.write(CONFIG, &text)?;
                let mut start = command(RELAY, "haproxy");
                start.args(["-db", "-f", &path(CONFIG)]);
                start
            }
        };
        let mut start = start;
        running.start("relay", &mut start)?;
        Ok(running)
    }

    /// The address to which clients connect.
    pub fn tcp(self) -> anyhow::Result<SocketAddrV4> {
        Ok(match self {
            Self::Forward => SocketAddrV4::new(BACKEND_IP.parse()?, BACKEND_PORT),
            _ => SocketAddrV4::new(RELAY_IP.parse()?, PORT),
        })
    }

    /// Waits until it accepts connections.
    pub fn await_tcp(self) -> anyhow::Result<()> {
        let to = self.tcp()?;
        until("accepts connections", || {
            Ok(within(CLIENT, || Ok(TcpStream::connect(to)?)).is_ok())
        })
    }

    /// Sets up the relaying of datagrams, and waits until one arrives.
    pub fn relay(self) -> anyhow::Result<Relayed> {
        let socket = |namespace, ip: &str, port| {
            let address: SocketAddrV4 = format!("{ip}:{port}").parse()?;
            within(namespace, || {
                let socket = UdpSocket::bind(address)?;
                socket.set_read_timeout(Some(Duration::from_millis(100)))?;
                Ok(socket)
            })
        };
        let client = socket(CLIENT, CLIENT_IP, CLIENT_PORT)?;
        let end = socket(BACKEND, BACKEND_IP, END_PORT)?;
        let port: SocketAddrV4 = format!("{RELAY_IP}:{PORT}").parse()?;
        let inner: SocketAddrV4 = format!("{RELAY_INNER_IP}:{PORT}").parse()?;
        let there: SocketAddrV4 = format!("{BACKEND_IP}:{END_PORT}").parse()?;
        let mut to = port;
        let head: fn(usize) -> Vec<u8> = match self {
            Self::Forward => {
                to = there;
                |_| Vec::new()
            }
            Self::Gateway | Self::GatewayXdp => {
                bind(&client, port, Side::A)?;
                bind(&end, inner, Side::B)?;
                |_| CIRCUIT.to_be_bytes().to_vec()
            }
            Self::Coturn => {
                turn::channel(&client, port, there)?;
                |bytes| turn::header(bytes - 4)
            }
            Self::Nginx | Self::Socat => |_| Vec::new(),
            Self::Haproxy => bail!("it relays no datagrams"),
        };
        let bytes = 64;
        let mut datagram = head(bytes);
        datagram.resize(bytes, 0x5a);
        let mut buffer = [0; 2048];
        until("relays a datagram", || {
            // An error means that it does not listen yet.
            let _ = client.send_to(&datagram, to);
            match end.recv(&mut buffer) {
                Ok(_) => Ok(true),
                Err(error) if turn::is_patient(&error) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })?;
        Ok(Relayed {
            head,
            spent: if self == Self::Coturn { 4 } else { 0 },
            to,
            _sockets: [client, end],
        })
    }
}

const CONFIG: &str = "relay.conf";

/// The gateway program.
fn gateway() -> PathBuf {
    std::env::var_os("CAUSEWAY_GATEWAY").map_or_else(
        || PathBuf::from("target/release/causeway-gateway"),
        PathBuf::from,
    )
}

/// The object with the gateway's XDP program.
fn object() -> PathBuf {
    let path = lab::Paths::find().gateway_bpf_object;
    std::path::absolute(&path).unwrap_or(path)
}

/// The gateway's control socket.
fn socket(running: &Running) -> PathBuf {
    running.directory().join("gateway.sock")
}

/// Frames that the gateway's XDP program has carried.
pub fn carried(running: &Running) -> anyhow::Result<u64> {
    let mut status = Command::new(gateway());
    status.args(["status", "--json", "--socket"]);
    let text = output(status.arg(socket(running)))?;
    let status: serde_json::Value = serde_json::from_str(&text)?;
    let xdp = &status["circuits"]["xdp"];
    let carried = xdp["frames"]["forwarded"].as_u64();
    carried.with_context(|| format!("the status has no count of carried frames: {xdp}"))
}

fn until(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !holds()? {
        lab::interrupt::check()?;
        ensure!(
            begun.elapsed() < START_TIMEOUT,
            "within {} s it never {what}",
            START_TIMEOUT.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Binds a side of the circuit to a socket's address, and connects the socket to the gateway.
fn bind(socket: &UdpSocket, to: SocketAddrV4, side: Side) -> anyhow::Result<()> {
    let circuit = CircuitId::new(CIRCUIT).context("a circuit's id")?;
    let key = Key::from_base64(KEYS[side.index()]).context("a key")?;
    socket.connect(to)?;
    let mut end = CircuitEnd::new(socket.try_clone()?, circuit, side, key);
    let event = end.bind_within(START_TIMEOUT);
    ensure!(
        matches!(event, Some(EndEvent::Bound(_))),
        "an end was not bound: {event:?}"
    );
    Ok(())
}
