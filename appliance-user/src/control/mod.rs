//! The control socket: one JSON request a line, one JSON reply a line, for root only.

pub mod render;
pub mod rules;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use failover::Rule;
use serde::{Deserialize, Serialize};
pub use service::socket::Refusal;
use service::socket::{Access, Socket};

/// The appliance's.
pub static SOCKET: Socket = Socket {
    name: "appliance",
    one: "an appliance",
    setting: "appliance.control_socket",
    // Room for every endpoint of an appliance at once.
    max_request: 8 << 20,
    access: Access::Root,
};

/// What the appliance answers.
pub type Reply = service::socket::Reply<serde_json::Value>;

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Everything the appliance knows of itself.
    Status,
    /// Packets by counter.
    Counters,
    /// The mode of tenants, or a switch.
    Mode {
        /// The tenant; may be left out where there is only one.
        tenant: Option<String>,
        /// The mode to switch to; left out: only tell.
        mode: Option<String>,
        /// The text of the plan of a full failover.
        #[serde(default)]
        plan: Option<String>,
        /// A full failover may end a partial one.
        #[serde(default)]
        force: bool,
        /// A partial failover becomes the full one.
        #[serde(default)]
        promote: bool,
    },
    /// Whether new failovers are refused, or a switch of it.
    Maintenance {
        /// Left out: only tell.
        on: Option<bool>,
    },
    /// Public IP rules come.
    RuleAdd {
        /// The tenant; may be left out where there is only one.
        tenant: Option<String>,
        /// The rules; all or none.
        rules: Vec<Rule>,
    },
    /// Public IP rules go.
    RuleRemove {
        /// The tenant; may be left out where there is only one.
        tenant: Option<String>,
        /// Their names; all or none.
        names: Vec<String>,
    },
    /// Public IP rules in force.
    RuleList {
        /// Of one tenant only.
        tenant: Option<String>,
    },
    /// What adding public IP rules would be refused for; nothing changes.
    RuleCheck {
        /// The tenant; may be left out where there is only one.
        tenant: Option<String>,
        /// The rules.
        rules: Vec<Rule>,
    },
    /// Addresses fail over.
    EndpointAdd {
        /// The network.
        network: String,
        /// The addresses; all or none.
        addresses: Vec<IpAddr>,
    },
    /// Addresses go back.
    EndpointRemove {
        /// The network.
        network: String,
        /// The addresses; all or none.
        addresses: Vec<IpAddr>,
    },
    /// Failed-over addresses.
    EndpointList {
        /// Of one network only.
        network: Option<String>,
    },
    /// Follow packets.
    TraceStart(crate::trace::PacketFilter),
    /// Steps of packets that are followed, since the last time; it ends where nobody asks for 5 s.
    TraceNext,
    /// Follow no packets any more.
    TraceStop,
    /// Connections of full failover, those that move most bytes first.
    Flows {
        /// Of this tenant only.
        tenant: Option<String>,
        /// Of this protocol only, IP's number.
        protocol: Option<u8>,
        /// With this address only, before or after translation.
        address: Option<IpAddr>,
        /// With this port only, likewise.
        port: Option<u16>,
        /// How many at most.
        top: usize,
        /// As text for a person.
        #[serde(default)]
        text: bool,
    },
    /// Read the configuration file again.
    Reload,
}

/// Reply to [`Request::Status`]. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The appliance's name.
    pub name: String,
    /// `tenant` or `provider`.
    pub role: String,
    /// This program's version.
    pub version: String,
    /// Whether everything that the configuration asks for is in force.
    pub ready: bool,
    /// What is missing, when not.
    pub not_ready: Vec<String>,
    /// Whether new failovers are refused.
    #[serde(default)]
    pub maintenance: bool,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Whether the maps of an earlier process were adopted.
    pub adopted: bool,
    /// Where maps and links are pinned.
    pub pins: String,
    /// UDP port of the plain tunnels; 0: there are none.
    pub tunnel_port: u16,
    /// UDP port of the encrypted tunnels; 0: there are none.
    pub secure_port: u16,
    /// Our identity in encrypted tunnels, base64.
    pub public_key: Option<String>,
    /// Where tunnels over TLS may arrive.
    pub tls: Option<TlsStatus>,
    /// Our tunnel addresses.
    pub local: Vec<IpAddr>,
    /// Interfaces with XDP.
    pub interfaces: Vec<InterfaceStatus>,
    /// Tenants.
    pub tenants: Vec<TenantStatus>,
    /// Networks.
    pub networks: Vec<NetworkStatus>,
    /// Peers.
    pub peers: Vec<PeerStatus>,
    /// Workers of the encrypted tunnels.
    #[serde(default)]
    pub workers: Vec<WorkerStatus>,
    /// Resolved hosts.
    pub neighbours: Vec<NeighbourStatus>,
    /// What user space counted, by stable name.
    pub user_counters: Vec<CounterStatus>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: Option<u32>,
    /// Its driver.
    pub driver: String,
    /// Its MAC address.
    pub mac: String,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Whether it is up and has carrier.
    pub up: bool,
    /// The program on it.
    pub program: Option<String>,
    /// The XDP mode asked for.
    pub xdp_asked: String,
    /// The XDP mode it got.
    pub xdp: Option<String>,
    /// Whether its link was adopted from an earlier process.
    pub adopted: bool,
    /// What stands in its way.
    pub problems: Vec<String>,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// Its name.
    pub name: String,
    /// Its mode.
    pub mode: String,
    /// Raised at each switch.
    pub epoch: u32,
    /// The plan of a full failover.
    #[serde(default)]
    pub plan: Option<String>,
    /// How many public IP rules are in force.
    #[serde(default)]
    pub rules: usize,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// Its VNI.
    pub vni: u32,
    /// Its peer.
    pub peer: String,
    /// The interface of its port.
    pub interface: String,
    /// The port's tags, as text.
    pub vlan: String,
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// Failed-over addresses.
    pub endpoints: Vec<IpAddr>,
    /// Packets into the tunnel.
    pub tx_packets: u64,
    /// Bytes of IP into the tunnel.
    pub tx_bytes: u64,
    /// Packets out of the tunnel.
    pub rx_packets: u64,
    /// Bytes of IP out of the tunnel.
    pub rx_bytes: u64,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// `appliance`, `wireguard` or `vxlan`.
    pub kind: String,
    /// Where its tunnel goes, once known.
    pub address: Option<SocketAddr>,
    /// Whether packets can be sent to it; a WireGuard peer, which comes and goes, always is.
    pub ready: bool,
    /// Why it is down, or how it is up.
    pub detail: String,
    /// Of an encrypted tunnel.
    pub tunnel: Option<TunnelStatus>,
}

/// An encrypted tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// Whether there is a session and the peer answers.
    pub up: bool,
    /// What carries it: `udp`, `tls`, or nothing while it has no way.
    pub carrier: String,
    /// The gateway by which it goes; empty for none.
    pub via: String,
    /// The gateways of its circuit.
    pub gateways: Vec<GatewayStatus>,
    /// Its TLS connection, if there is one.
    pub stream: Option<StreamStatus>,
    /// The peer's identity, base64.
    pub public_key: String,
    /// Cipher for sending.
    pub cipher: String,
    /// Seconds since the last handshake.
    pub handshake_age_seconds: Option<u64>,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Longest IP packet on the path, bytes.
    pub path_mtu: usize,
    /// Round-trip time, smoothed, microseconds.
    pub round_trip_micros: Option<u64>,
    /// Of the last 32 echoes, how many were lost, per cent.
    pub loss_percent: u32,
    /// Datagrams sent.
    pub tx_packets: u64,
    /// Their bytes, of UDP payload.
    pub tx_bytes: u64,
    /// Authentic datagrams received.
    pub rx_packets: u64,
    /// Their bytes, of UDP payload.
    pub rx_bytes: u64,
    /// Datagrams and handshakes refused because they were seen before, or too old to tell.
    pub replays: u64,
    /// Datagrams refused because they were not authentic.
    pub forged: u64,
    /// Packets put together again from pieces.
    pub rejoined: u64,
    /// Packets given up because pieces were missing.
    pub rejoin_lost: u64,
}

/// Where tunnels over TLS may arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStatus {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// SHA-256 of our certificate, hexadecimal: what tenants pin.
    pub fingerprint: String,
    /// Tunnels that there are.
    pub connections: usize,
    /// Connections that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// A tunnel's TLS connection, and what it carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// The other end: the gateway, or with `tls.proxy` who connected to it.
    pub peer: SocketAddr,
    /// Datagrams to the other end.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Datagrams from the other end.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Datagrams that found no room, both ways.
    pub dropped: u64,
}

/// A gateway, for one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Its name.
    pub name: String,
    /// Its address and port.
    pub address: SocketAddr,
    /// Whether our end is bound there.
    pub bound: bool,
    /// Whether the tunnel goes by it.
    pub used: bool,
    /// Whether it is about to stop.
    pub draining: bool,
    /// Whether it is taken to be down, where our end chooses.
    pub down: bool,
    /// Time to it and back, newest, microseconds.
    pub round_trip_micros: Option<u64>,
}

/// A thread that seals and opens packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number: it has this queue of every interface.
    pub index: u32,
    /// The CPU it stays on; `null`: the kernel's choice.
    pub cpu: Option<usize>,
    /// Packets that it sealed.
    pub sealed: u64,
    /// Packets that it opened and sent to their hosts.
    pub delivered: u64,
    /// Packets of other workers' lanes that came to its queues.
    pub handed_over: u64,
    /// Packets that it dropped.
    pub dropped: u64,
}

/// A host of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourStatus {
    /// Its network.
    pub network: String,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address, once known.
    pub mac: Option<String>,
    /// The state of its entry.
    pub state: String,
    /// Seconds in that state.
    pub age_seconds: u64,
}

/// A counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStatus {
    /// Its stable name.
    pub name: String,
    /// Its value since it was made.
    pub value: u64,
    /// What it means.
    #[serde(default)]
    pub help: String,
}

/// A MAC address as text.
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_documented() {
        let add: Request = serde_json::from_str(
            r#"{"request":"endpoint-add","network":"net1","addresses":["10.1.0.10","2001:db8:1::10"]}"#,
        )
        .expect("documented form");
        assert!(matches!(add, Request::EndpointAdd { addresses, .. } if addresses.len() == 2));
        assert!(serde_json::from_str::<Request>(r#"{"request":"reboot"}"#).is_err());
        assert!(
            serde_json::from_str::<Request>(
                r#"{"request":"endpoint-add","network":"n","addresses":["x"]}"#
            )
            .is_err()
        );
        let mode: Request =
            serde_json::from_str(r#"{"request":"mode","tenant":null,"mode":"idle"}"#)
                .expect("the form before full failover");
        assert!(matches!(
            mode,
            Request::Mode {
                plan: None,
                force: false,
                ..
            }
        ));
        let rules: Request = serde_json::from_str(
            r#"{"request":"rule-add","tenant":"acme","rules":[{"name":"web","public_ip":"203.0.113.20","public_port":443,
                "internal_ip":"10.1.0.10"}]}"#,
        )
        .expect("documented form");
        assert!(matches!(rules, Request::RuleAdd { rules, .. } if rules.len() == 1));
        assert_eq!(
            serde_json::to_string(&Reply::Error(Refusal::new("conflict", "no"))).expect("plain"),
            r#"{"error":{"code":"conflict","message":"no"}}"#
        );
    }
}
