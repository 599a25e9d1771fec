//! The maps that user space writes, as typed values to compare, and in text for failure messages.

use std::fmt::Write as _;

use appliance_common::{
    addr::{Address, to_ip},
    counters::Counter,
    limits::{MAX_NETWORKS, MAX_PEERS, MAX_TENANTS},
    maps::{
        Attachment, AttachmentKey, Config, Endpoint, HostKey, Neighbour, Network, Peer,
        PeerAddress, Session, SessionKey, Tenant, Tunnel, TunnelKey,
    },
};
use aya::{
    Pod,
    maps::{Array, HashMap},
};

use super::{Harness, Program};
use crate::dump;

/// The maps that user space writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub config: Vec<Config>,
    pub networks: Vec<Network>,
    pub tenants: Vec<Tenant>,
    pub peers: Vec<Peer>,
    pub attachments: Vec<(AttachmentKey, Attachment)>,
    pub tunnels: Vec<(TunnelKey, Tunnel)>,
    pub endpoints: Vec<(HostKey, Endpoint)>,
    pub neighbours: Vec<(HostKey, Neighbour)>,
    pub sessions: Vec<(SessionKey, Session)>,
    pub peer_addresses: Vec<(Address, PeerAddress)>,
}

impl Snapshot {
    /// The same without the flags that programs set in neighbours.
    #[must_use]
    pub fn without_marks(mut self) -> Self {
        use appliance_common::maps::neighbour_flags::{CONFIRMED, USED};
        for (_, neighbour) in &mut self.neighbours {
            neighbour.flags &= !(CONFIRMED | USED);
        }
        self
    }
}

/// The stable name of counter `number`.
#[must_use]
pub fn counter_name(number: u32) -> String {
    Counter::ALL
        .iter()
        .find(|c| **c as u32 == number)
        .map_or_else(|| format!("#{number}"), |c| c.name().to_owned())
}

impl Harness {
    /// The maps that user space writes, to compare two states.
    ///
    /// # Panics
    ///
    /// When a map cannot be read.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            config: self.read_array::<Config>("CONFIG", 1),
            networks: self.read_array::<Network>("NETWORKS", MAX_NETWORKS),
            tenants: self.read_array::<Tenant>("TENANTS", MAX_TENANTS),
            peers: self.read_array::<Peer>("PEERS", MAX_PEERS),
            attachments: self.read_hash::<AttachmentKey, Attachment>("ATTACHMENTS"),
            tunnels: self.read_hash::<TunnelKey, Tunnel>("TUNNELS"),
            endpoints: self.read_hash::<HostKey, Endpoint>("ENDPOINTS"),
            neighbours: self.read_hash::<HostKey, Neighbour>("NEIGHBOURS"),
            sessions: self.read_hash::<SessionKey, Session>("SESSIONS"),
            peer_addresses: self.read_hash::<Address, PeerAddress>("PEER_ADDRESSES"),
        }
    }

    fn read_array<V: Pod>(&self, name: &'static str, len: u32) -> Vec<V> {
        let map: Array<_, V> = self
            .ebpf
            .map(name)
            .and_then(|m| m.try_into().ok())
            .expect("the harness filled it");
        (0..len)
            .map(|i| map.get(&i, 0).expect("an array has all its slots"))
            .collect()
    }

    fn read_hash<K: Pod + Ord, V: Pod>(&self, name: &'static str) -> Vec<(K, V)> {
        let map: HashMap<_, K, V> = self
            .ebpf
            .map(name)
            .and_then(|m| m.try_into().ok())
            .expect("the harness filled it");
        let mut all: Vec<_> = map
            .iter()
            .map(|e| e.expect("no entry is deleted meanwhile"))
            .collect();
        all.sort_by_key(|e| e.0);
        all
    }

    /// All maps and counters in text, for a failure message.
    #[must_use]
    pub fn describe(&self) -> String {
        let s = self.snapshot();
        let mut out = String::new();
        let _ = writeln!(out, "CONFIG {:?}", s.config[0]);
        for (k, v) in &s.attachments {
            let _ = writeln!(
                out,
                "ATTACHMENTS if {} vlan {}.{} -> slot {} flags {} mac {:02x?} xsk {}",
                k.ifindex, k.outer, k.inner, v.network, v.flags, v.mac, v.xsk
            );
        }
        for (i, n) in s.networks.iter().enumerate().filter(|(_, n)| n.flags != 0) {
            let _ = writeln!(
                out,
                "NETWORKS[{i}] vni {} tenant {} peer {} flags {} mtu {} gateways {} {}",
                n.vni,
                n.tenant,
                n.peer,
                n.flags,
                n.mtu,
                to_ip(&n.gateway_v4),
                to_ip(&n.gateway_v6)
            );
        }
        for (i, t) in s.tenants.iter().enumerate().filter(|(_, t)| t.epoch != 0) {
            let _ = writeln!(out, "TENANTS[{i}] mode {} epoch {}", t.mode, t.epoch);
        }
        for (i, p) in s.peers.iter().enumerate().filter(|(_, p)| p.flags != 0) {
            let _ = writeln!(
                out,
                "PEERS[{i}] if {} flags {} header {:02x?}",
                p.ifindex,
                p.flags,
                &p.header[..usize::from(p.header_len).min(70)]
            );
        }
        for (k, v) in &s.tunnels {
            let _ = writeln!(
                out,
                "TUNNELS vni {} from {} -> slot {}",
                k.vni,
                to_ip(&k.peer),
                v.network
            );
        }
        for (k, _) in &s.endpoints {
            let _ = writeln!(out, "ENDPOINTS vni {} {}", k.vni, to_ip(&k.address));
        }
        for (k, v) in &s.neighbours {
            let _ = writeln!(
                out,
                "NEIGHBOURS vni {} {} -> if {} flags {} {:02x?}",
                k.vni,
                to_ip(&k.address),
                v.ifindex,
                v.flags,
                &v.l2[..usize::from(v.l2_len).min(22)]
            );
        }
        for (k, _) in &s.sessions {
            let _ = writeln!(out, "SESSIONS {k:#010x}");
        }
        for (k, _) in &s.peer_addresses {
            let _ = writeln!(out, "PEER_ADDRESSES {}", to_ip(k));
        }
        for (i, n) in self.counters() {
            let _ = writeln!(out, "COUNTERS {} = {n}", counter_name(i));
        }
        out
    }

    /// A packet and the maps in text, for a failure message.
    #[must_use]
    pub fn describe_run(&self, program: Program, ifindex: u32, packet: &[u8]) -> String {
        format!(
            "program {} on interface {ifindex}\npacket in, {} bytes:\n{}maps:\n{}",
            program.name(),
            packet.len(),
            dump::hex(packet),
            self.describe()
        )
    }
}
