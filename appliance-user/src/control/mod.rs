//! The control socket: requests and replies, one JSON value a line, for root only.
//!
//! Field names are an interface: they stay as they are.

pub mod render;
mod reply;
pub mod rules;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use failover::Rule;
pub use reply::{
    Answer, Connections, Done, Endpoints, EndpointsAdded, EndpointsRemoved, MaintenanceStatus,
    ModeStatus, NEIGHBOURS_PAGE, OBJECTS_PAGE, RULES_PAGE, RuleStatus, RulesAdded, RulesChecked,
    RulesRemoved, STATUS_ENDPOINTS, STATUS_PAGE,
};
use serde::{Deserialize, Serialize};
pub use service::socket::RequestRefusal;
use service::{
    desired::Position,
    socket::{Access, Socket},
};

use crate::config::desired::Update;

/// The control socket of the appliance.
pub static SOCKET: Socket = Socket {
    name: "appliance",
    one: "an appliance",
    setting: "appliance.control_socket",
    // Room for every endpoint of an appliance at once.
    max_request: 8 << 20,
    access: Access::Root,
};

/// A reply of the daemon.
pub type Reply = service::socket::Reply<Answer>;

/// A request to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Get the state of the daemon, without tenants, networks, peers and neighbours.
    Status {},
    /// Get a page of the tenants, in the order of names.
    Tenants {
        /// [`Page::next`](service::socket::Page::next) of the page before.
        #[serde(default)]
        after: Option<String>,
    },
    /// Get a page of the networks, in the order of names.
    Networks {
        /// [`Page::next`](service::socket::Page::next) of the page before.
        #[serde(default)]
        after: Option<String>,
    },
    /// Get a page of the peers, in the order of names.
    Peers {
        /// [`Page::next`](service::socket::Page::next) of the page before.
        #[serde(default)]
        after: Option<String>,
    },
    /// Get a page of the neighbours, in the order of VNIs and addresses.
    Neighbours {
        /// [`Page::next`](service::socket::Page::next) of the page before.
        #[serde(default)]
        after: Option<String>,
    },
    /// Show packets by counter.
    Counters {},
    /// Show the mode of tenants, or switch one.
    Mode {
        /// The tenant; may be left out where there is only one.
        tenant: Option<String>,
        /// The mode to switch to; left out: only show.
        mode: Option<String>,
        /// The text of the plan of a full failover.
        #[serde(default)]
        plan: Option<String>,
        /// End a partial failover for the full one.
        #[serde(default)]
        force: bool,
        /// Turn the partial failover into the full one.
        #[serde(default)]
        promote: bool,
        /// Do not ask whether the addresses to take over are in use.
        #[serde(default)]
        take_over: bool,
    },
    /// Show or switch maintenance, in which new failovers are refused.
    Maintenance {
        /// Left out: only show.
        on: Option<bool>,
    },
    /// Add public IP rules.
    RuleAdd {
        /// The tenant; may be left out where there is only one.
        tenant: Option<String>,
        /// The rules; all or none.
        rules: Vec<Rule>,
        /// Do not ask whether new public addresses are in use.
        #[serde(default)]
        take_over: bool,
    },
    /// Remove public IP rules.
    RuleRemove {
        /// The tenant; may be left out where there is only one.
        tenant: Option<String>,
        /// Their names; all or none.
        names: Vec<String>,
    },
    /// Get a page of the public IP rules in force, in the order of tenants and names.
    RuleList {
        /// Only those of this tenant.
        tenant: Option<String>,
        /// [`Page::next`](service::socket::Page::next) of the page before.
        #[serde(default)]
        after: Option<String>,
    },
    /// Check whether public IP rules could be added; nothing changes.
    RuleCheck {
        /// The tenant; may be left out where there is only one.
        tenant: Option<String>,
        rules: Vec<Rule>,
    },
    /// Fail addresses over.
    EndpointAdd {
        network: String,
        /// The addresses; all or none.
        addresses: Vec<IpAddr>,
    },
    /// Return addresses to production.
    EndpointRemove {
        network: String,
        /// The addresses; all or none.
        addresses: Vec<IpAddr>,
    },
    /// List failed-over addresses.
    EndpointList {
        /// Only those of this network.
        network: Option<String>,
    },
    /// Put a snapshot or delta of the desired state in force, whole or not at all.
    Apply { update: Box<Update> },
    /// Get a page of the desired state in force.
    Desired {
        /// `next` of the page before.
        #[serde(default)]
        after: Option<String>,
        /// Whether it has the keys that updates brought.
        #[serde(default)]
        keys: bool,
    },
    /// Start a packet trace.
    TraceStart(crate::trace::PacketFilter),
    /// Read the steps since the last request; a trace ends 5 s after the last request.
    TraceNext {},
    /// Stop the packet trace.
    TraceStop {},
    /// List connections of full failover, sorted by bytes.
    Flows {
        /// Only those of this tenant.
        tenant: Option<String>,
        /// Only this IP protocol.
        protocol: Option<u8>,
        /// Only those with this address, before or after translation.
        address: Option<IpAddr>,
        /// Only those with this port, likewise.
        port: Option<u16>,
        /// Number of connections at most.
        top: usize,
    },
    /// Reload the configuration file.
    Reload {},
}

/// Reply to [`Request::Status`]. Field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    /// `tenant` or `provider`.
    pub role: String,
    /// This program's version.
    pub version: String,
    /// Whether everything that the configuration asks for is in force.
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready: Vec<String>,
    /// Whether new failovers are refused.
    #[serde(default)]
    pub maintenance: bool,
    /// Source and revision of tenants, gateways, peers and networks.
    #[serde(default)]
    pub desired: Position,
    /// The director's agent, if it is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<agent::Status>,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Whether the daemon adopted the maps of an earlier process.
    pub adopted: bool,
    /// Directory of the pins of maps and links.
    pub pins: String,
    /// UDP port of the plain tunnels; 0 without any.
    pub tunnel_port: u16,
    /// UDP port of the encrypted tunnels; 0 without any.
    pub secure_port: u16,
    /// Public key of the appliance, base64.
    pub public_key: Option<String>,
    /// The listener for tunnels over TLS.
    pub tls: Option<TlsStatus>,
    /// Tunnel addresses of the appliance.
    pub local: Vec<IpAddr>,
    /// Interfaces with XDP.
    pub interfaces: Vec<InterfaceStatus>,
    /// Empty in a reply: see [`Request::Tenants`].
    pub tenants: Vec<TenantStatus>,
    /// Empty in a reply: see [`Request::Networks`].
    pub networks: Vec<NetworkStatus>,
    /// Traffic that does not cross between the sites.
    #[serde(default)]
    pub not_carried: NotCarriedStatus,
    /// Empty in a reply: see [`Request::Peers`].
    pub peers: Vec<PeerStatus>,
    /// DNS names of gateways.
    #[serde(default)]
    pub gateway_names: Vec<GatewayNameStatus>,
    /// Workers of the encrypted tunnels.
    #[serde(default)]
    pub workers: Vec<WorkerStatus>,
    /// Hosts of the networks. Empty in a reply: see [`Request::Neighbours`].
    pub neighbours: Vec<NeighbourStatus>,
    /// Other machines that use addresses of the appliance.
    #[serde(default)]
    pub conflicts: Vec<ConflictStatus>,
    /// Problems that do not make the daemon unready: all of the configuration is in force.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Counters of the daemon, by stable name.
    pub user_counters: Vec<CounterStatus>,
}

/// An interface that the configuration names, and how the program is attached there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    /// Its index.
    pub ifindex: Option<u32>,
    pub driver: String,
    /// Its MAC address.
    pub mac: String,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Whether it is up and has carrier.
    pub up: bool,
    /// The program on it.
    pub program: Option<String>,
    /// The XDP mode of the configuration.
    pub xdp_configured: String,
    /// The XDP mode it got.
    pub xdp: Option<String>,
    /// Whether its link was adopted from an earlier process.
    pub adopted: bool,
    pub problems: Vec<String>,
}

/// A tenant in its mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    pub name: String,
    pub mode: String,
    /// Raised at each switch.
    pub epoch: u32,
    /// The plan of a full failover.
    #[serde(default)]
    pub plan: Option<String>,
    /// Number of public IP rules in force.
    #[serde(default)]
    pub rules: usize,
}

/// A network, where it is attached, and its tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    pub name: String,
    pub tenant: String,
    pub vni: u32,
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

/// Traffic that does not cross between the sites: the appliance is a proxy and no bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCarriedStatus {
    /// How networks are stretched: `proxy`. Empty in a reply of an earlier version.
    pub mode: String,
    /// Kinds of traffic that this mode refuses.
    pub refused: Vec<String>,
    /// Packets of these kinds, and others than IP, that were dropped: the counter
    /// `drop_not_carried`. Those on ports that the kernel shares are the kernel's, and not counted.
    pub dropped: u64,
}

/// A peer, and whether packets can be sent to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub name: String,
    /// `appliance`, `wireguard` or `vxlan`.
    pub kind: String,
    /// Address that its tunnel goes to, once known.
    pub address: Option<SocketAddr>,
    /// Whether packets can be sent to it; always true of a WireGuard peer, which may be away.
    pub ready: bool,
    /// Why it is down, or its next hop.
    pub detail: String,
    /// State of its encrypted tunnel.
    pub tunnel: Option<TunnelStatus>,
}

/// An encrypted tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// Whether there is a session and the peer answers.
    pub up: bool,
    /// Transport: `udp`, `tls`, or empty without a path.
    pub transport: String,
    /// The gateway that it goes through; empty without one.
    pub gateway: String,
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
    /// Share of the last 32 echoes that were lost, per cent.
    pub loss_percent: u32,
    /// Datagrams sent.
    pub tx_packets: u64,
    /// Their bytes, of UDP payload.
    pub tx_bytes: u64,
    /// Authentic datagrams received.
    pub rx_packets: u64,
    /// Their bytes, of UDP payload.
    pub rx_bytes: u64,
    /// Datagrams and handshakes refused as seen before, or too old to tell.
    pub replays: u64,
    /// Datagrams refused as not authentic.
    pub forged: u64,
    /// Packets reassembled from fragments.
    pub reassembled: u64,
    /// Packets dropped because fragments of them were missing.
    pub reassembly_lost: u64,
}

/// The listener for tunnels over TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStatus {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// SHA-256 of the appliance's certificate, hexadecimal, which tenants pin.
    pub fingerprint: String,
    /// Open tunnels.
    pub connections: usize,
    /// Refused connections, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// The TLS connection of a tunnel, and its traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// The other end: the gateway, or with `tls.proxy` its client.
    pub peer: SocketAddr,
    /// Datagrams to the other end.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Datagrams from the other end.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Datagrams dropped in both directions, most of them for full queues.
    pub dropped: u64,
}

/// A DNS name of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayNameStatus {
    pub name: String,
    /// Its addresses, by the last lookup that had any.
    pub addresses: Vec<IpAddr>,
    /// Seconds since that lookup; `None`: there was none.
    pub age_seconds: Option<u64>,
    /// Why the last lookup failed, if it did; the addresses stay.
    pub error: Option<String>,
}

/// A gateway, for one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayStatus {
    pub name: String,
    /// Its address and port.
    pub address: SocketAddr,
    /// Whether this end is bound there.
    pub bound: bool,
    /// Whether the tunnel goes through it.
    pub used: bool,
    /// Whether it drains, to stop.
    pub draining: bool,
    /// Whether this end, which chooses the gateway, takes it to be down.
    pub down: bool,
    /// Newest round-trip time, microseconds.
    pub round_trip_micros: Option<u64>,
}

/// A worker thread, which seals and opens packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number, and that of its queue of every interface.
    pub index: u32,
    /// Its CPU; `null`: the kernel's choice.
    pub cpu: Option<usize>,
    /// Packets that it sealed.
    pub sealed: u64,
    /// Packets that it opened and delivered to hosts.
    pub delivered: u64,
    /// Packets of other workers' lanes that arrived on its queues.
    pub handed_over: u64,
    /// Packets that it dropped.
    pub dropped: u64,
}

/// A host of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourStatus {
    pub network: String,
    pub address: IpAddr,
    /// Its MAC address, once known.
    pub mac: Option<String>,
    /// The state of its entry.
    pub state: String,
    /// Seconds in that state.
    pub age_seconds: u64,
}

/// Another machine that uses an address of the appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictStatus {
    pub address: IpAddr,
    /// Its network; empty on the uplink.
    pub network: String,
    /// The interface on which the other machine was seen.
    pub interface: String,
    /// The tags there, as text.
    pub vlan: String,
    /// The other machine's MAC address.
    pub mac: String,
    /// The appliance's MAC address there.
    pub own_mac: String,
    /// Seconds since it was first seen.
    pub age_seconds: u64,
    /// Seconds since it was last seen.
    pub seen_seconds: u64,
    /// Its messages with the address.
    pub claims: u64,
    /// The appliance's announcements in defence.
    pub defences: u64,
}

/// A counter of the programs or of the daemon, with its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStatus {
    /// Its stable name.
    pub name: String,
    /// Its value since the map was created.
    pub value: u64,
    /// Its meaning.
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
        assert!(
            matches!(rules, Request::RuleAdd { rules, take_over: false, .. } if rules.len() == 1)
        );
    }
}
