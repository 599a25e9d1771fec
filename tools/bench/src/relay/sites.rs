//! A client, the machine with the relay, and a backend, in network namespaces.

use std::{
    fs::File,
    process::{Command, Stdio},
    thread,
};

use anyhow::Context as _;
use causeway_tests::packet::Mac;
use nix::sched::{CloneFlags, setns};

use crate::encrypted::sites::{Sending, exec, sh};

/// The namespace of the client.
pub const CLIENT: &str = "cwrel-client";
/// The namespace of the relay.
pub const RELAY: &str = "cwrel-relay";
/// The namespace of the backend, which for UDP is the other end.
pub const BACKEND: &str = "cwrel-backend";
const NAMESPACES: [&str; 3] = [CLIENT, RELAY, BACKEND];

/// The client's address.
pub const CLIENT_IP: &str = "10.70.1.10";
/// The relay's, on the client's side.
pub const RELAY_IP: &str = "10.70.1.1";
/// The relay's, on the backend's side.
pub const RELAY_INNER_IP: &str = "10.70.2.1";
/// The backend's address.
pub const BACKEND_IP: &str = "10.70.2.20";
/// The client's link.
pub const C0: Mac = [2, 0, 0, 0, 0x70, 0x10];
/// The relay's link to the client.
pub const G0: Mac = [2, 0, 0, 0, 0x70, 0xa0];
const G1: Mac = [2, 0, 0, 0, 0x70, 0xa1];
const B0: Mac = [2, 0, 0, 0, 0x70, 0x20];
/// The number of the client's link, by which frames are sent.
pub const C0_INDEX: u32 = 70;

/// The raised namespaces; removed when dropped, and before they are raised.
///
/// ```text
///   cwrel-client        cwrel-relay           cwrel-backend
///   ┌──────┐           ┌───────────┐           ┌──────┐
///   │   c0 ├───────────┤g0       g1├───────────┤b0    │
///   └──────┘           └───────────┘           └──────┘
///   10.70.1.10     10.70.1.1   10.70.2.1       10.70.2.20
/// ```
pub struct Sites {
    sending: Sending,
}

impl Drop for Sites {
    fn drop(&mut self) {
        remove();
    }
}

fn remove() {
    for name in NAMESPACES {
        // One that is not there is as good as deleted. Not by `lab::run`: ctrl-C must not stop it.
        let _ = Command::new("ip")
            .args(["netns", "del", name])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

fn mac(m: Mac) -> String {
    m.map(|b| format!("{b:02x}")).join(":")
}

impl Sites {
    /// Raises them. Wire-like, no super-frame crosses a link and none is made by the relay's machine either.
    pub fn raise(sending: Sending) -> anyhow::Result<Self> {
        remove();
        let this = Self { sending };
        for name in NAMESPACES {
            sh(&format!("ip netns add {name}"))?;
            sh(&format!("ip -n {name} link set lo up"))?;
            for setting in [
                "net.ipv6.conf.all.disable_ipv6=1",
                "net.ipv6.conf.default.disable_ipv6=1",
                // Connections are made faster than their ports become free by themselves.
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
        // As a NIC has them: one for each processor.
        let processors = thread::available_parallelism()?;
        let queues = format!("numtxqueues {processors} numrxqueues {processors}");
        for (link, m, peer_ns, peer, index, pm) in [
            ("g0", G0, CLIENT, "c0", C0_INDEX, C0),
            ("g1", G1, BACKEND, "b0", C0_INDEX + 1, B0),
        ] {
            sh(&format!(
                "ip -n {RELAY} link add {link} index {index} address {} {queues} type veth peer name {peer} index {index} address {} {queues} netns {peer_ns}",
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
            if sending == Sending::WireLike {
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

    /// How the hosts send.
    pub const fn sending(&self) -> Sending {
        self.sending
    }
}

/// Runs `f` on a thread in a namespace. What sockets it makes stay there whatever thread uses them.
pub fn within<T: Send>(
    namespace: &str,
    f: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace)?;
            f()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Takes this thread into a namespace, for good.
pub fn enter(namespace: &str) -> anyhow::Result<()> {
    let path = format!("/run/netns/{namespace}");
    let there = File::open(&path).with_context(|| format!("open {path}"))?;
    setns(&there, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {namespace}"))
}
