//! A client, a machine with the relay, and a backend, in network namespaces.

use std::thread;

use anyhow::Context as _;
use causeway_tests::packet::Mac;

use crate::rig::{
    command::{exec, sh},
    netns::{Namespaces, mac, within},
    offloads::Offloads,
};

/// Namespace of the client.
pub const CLIENT: &str = "cwrel-client";
/// Namespace of the relay.
pub const RELAY: &str = "cwrel-relay";
/// Namespace of the backend, the other end for UDP.
pub const BACKEND: &str = "cwrel-backend";
const NAMESPACES: [&str; 3] = [CLIENT, RELAY, BACKEND];

/// The client's address.
pub const CLIENT_IP: &str = "10.70.1.10";
/// The relay's address on the client's side.
pub const RELAY_IP: &str = "10.70.1.1";
/// The relay's address on the backend's side.
pub const RELAY_INNER_IP: &str = "10.70.2.1";
/// The backend's address.
pub const BACKEND_IP: &str = "10.70.2.20";
/// MAC of the client's link.
pub const C0: Mac = [2, 0, 0, 0, 0x70, 0x10];
/// MAC of the relay's link to the client.
pub const G0: Mac = [2, 0, 0, 0, 0x70, 0xa0];
const G1: Mac = [2, 0, 0, 0, 0x70, 0xa1];
const B0: Mac = [2, 0, 0, 0, 0x70, 0x20];
/// Index of the client's link.
pub const C0_INDEX: u32 = 70;

/// The three namespaces. Removed when dropped, and before they are made.
///
/// ```text
///   cwrel-client        cwrel-relay           cwrel-backend
///   ┌──────┐           ┌───────────┐           ┌──────┐
///   │   c0 ├───────────┤g0       g1├───────────┤b0    │
///   └──────┘           └───────────┘           └──────┘
///   10.70.1.10     10.70.1.1   10.70.2.1       10.70.2.20
/// ```
pub struct Sites {
    _namespaces: Namespaces,
    offloads: Offloads,
}

impl Sites {
    /// Makes the namespaces. With offloads off no super-frame crosses a link, and the relay's
    /// machine makes none either.
    pub fn raise(offloads: Offloads) -> anyhow::Result<Self> {
        let this = Self {
            _namespaces: Namespaces::make(&NAMESPACES)?,
            offloads,
        };
        for name in NAMESPACES {
            for setting in [
                "net.ipv6.conf.all.disable_ipv6=1",
                "net.ipv6.conf.default.disable_ipv6=1",
                // Connections are opened faster than the kernel frees their ports by default.
                "net.ipv4.tcp_tw_reuse=1",
                "net.ipv4.ip_local_port_range=10000-65000",
            ] {
                let (key, value) = setting.split_once('=').context("a setting")?;
                let value = value.replace('-', " ");
                within(name, || {
                    let path = format!("/proc/sys/{}", key.replace('.', "/"));
                    std::fs::write(&path, &value).with_context(|| path.clone())
                })?;
            }
        }
        // One queue per processor, as a NIC has.
        let processors = thread::available_parallelism()?;
        let queues = format!("numtxqueues {processors} numrxqueues {processors}");
        for (link, m, peer_ns, peer, index, pm) in [
            ("g0", G0, CLIENT, "c0", C0_INDEX, C0),
            ("g1", G1, BACKEND, "b0", C0_INDEX + 1, B0),
        ] {
            sh(&format!(
                "ip -n {RELAY} link add {link} index {index} address {} {queues} type veth \
                 peer name {peer} index {index} address {} {queues} netns {peer_ns}",
                mac(m),
                mac(pm)
            ))?;
        }
        for (ns, link, address) in [
            (CLIENT, "c0", CLIENT_IP),
            (RELAY, "g0", RELAY_IP),
            (RELAY, "g1", RELAY_INNER_IP),
            (BACKEND, "b0", BACKEND_IP),
        ] {
            sh(&format!("ip -n {ns} link set {link} up"))?;
            sh(&format!("ip -n {ns} address add {address}/24 dev {link}"))?;
            if offloads == Offloads::Off {
                let off = "tx off tso off gso off gro off tx-udp-segmentation off";
                exec(ns, &format!("ethtool -K {link} {off}"))?;
            }
        }
        for (ns, link, address, m) in [
            (CLIENT, "c0", RELAY_IP, G0),
            (RELAY, "g0", CLIENT_IP, C0),
            (RELAY, "g1", BACKEND_IP, B0),
            (BACKEND, "b0", RELAY_INNER_IP, G1),
        ] {
            sh(&format!(
                "ip -n {ns} neigh replace {address} dev {link} lladdr {} nud permanent",
                mac(m)
            ))?;
        }
        sh(&format!("ip -n {CLIENT} route add default via {RELAY_IP}"))?;
        sh(&format!(
            "ip -n {BACKEND} route add default via {RELAY_INNER_IP}"
        ))?;
        Ok(this)
    }

    /// Offloads of the hosts' NICs.
    pub const fn offloads(&self) -> Offloads {
        self.offloads
    }
}
