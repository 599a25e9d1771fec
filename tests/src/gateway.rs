//! The gateway's program, loaded and filled by the gateway's own code, in a network namespace of
//! this thread.
//!
//! ```text
//!   ends A, B ─ bind ─▶ Table ─ changed ─▶ Publisher ─▶ maps ┐
//!   frame ───────────────────────────────────────────────────┴▶ BPF_PROG_TEST_RUN ─▶ action, frame, outcome
//! ```

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use gateway::circuit::{
    clock,
    fast::{Fast, Publisher, Size},
    rate::Bucket,
    table::{Action, Change, CircuitPlan, Path, Table, Tenant},
};
use gateway_client::{
    end::{End, EndEvent},
    wire::{CircuitId, Key, Side},
};
use gateway_common::maps::{Outcome, Port, Stats};

use crate::{
    harness::{self, workspace_root},
    iproute,
    packet::{Mac, frame, mac_text, udp},
    skip,
};

/// The interface on which frames arrive.
pub const IN: u32 = 11;
/// Another interface with the program, of a smaller MTU.
pub const OUT: u32 = 12;
/// VLAN 5 on [`IN`], as the FIB knows it.
pub const VLAN: u32 = 13;
/// An interface without the program.
pub const STRAY: u32 = 14;
/// The VLAN's identifier.
pub const VID: u16 = 5;
/// MTU of [`OUT`].
pub const SMALL_MTU: usize = 1400;
pub const PORT: u16 = 6180;

/// The gateway's MAC address on an interface.
#[must_use]
pub const fn gateway_mac(ifindex: u32) -> Mac {
    [2, 0, 0, 0, 0xf0, ifindex as u8]
}

/// The MAC address of the neighbour that has this address.
#[must_use]
pub fn neighbour_mac(ip: IpAddr) -> Mac {
    let last = match ip {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    [2, 0, 0, 0, 0xee, last]
}

/// Interfaces, the gateway's addresses there, and resolved neighbours.
const NETWORKS: [(u32, [&str; 2], &[&str]); 4] = [
    (
        IN,
        ["192.0.2.1/24", "2001:db8:1::1/64"],
        &[
            "192.0.2.10",
            "192.0.2.11",
            "2001:db8:1::10",
            "2001:db8:1::11",
        ],
    ),
    (
        OUT,
        ["198.51.100.1/24", "2001:db8:2::1/64"],
        &["198.51.100.20", "2001:db8:2::20"],
    ),
    (
        VLAN,
        ["203.0.113.1/24", "2001:db8:3::1/64"],
        &[
            "203.0.113.30",
            "203.0.113.31",
            "2001:db8:3::30",
            "2001:db8:3::31",
        ],
    ),
    (STRAY, ["10.9.0.1/24", "2001:db8:9::1/64"], &["10.9.0.40"]),
];

/// The addresses of one side of a circuit: its own and the gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideAddress {
    /// Its address.
    pub remote: SocketAddr,
    /// The gateway's.
    pub local: SocketAddr,
}

impl SideAddress {
    /// From text, at the gateway's port.
    ///
    /// # Panics
    /// If the text is not an address.
    #[must_use]
    pub fn new(remote: &str, local: &str) -> Self {
        let ip: IpAddr = local.parse().expect("an address");
        Self {
            remote: remote.parse().expect("an address and a port"),
            local: SocketAddr::new(ip, PORT),
        }
    }

    /// As the table knows it: socket 0 is IPv4's, socket 1 IPv6's, both of all addresses.
    #[must_use]
    pub fn path(&self) -> Path {
        Path {
            socket: self.remote.is_ipv6().into(),
            local: Some(self.local.ip()),
            remote: self.remote,
        }
    }

    /// The IP packet that it sends.
    #[must_use]
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        udp(
            self.remote.ip(),
            self.local.ip(),
            self.remote.port(),
            self.local.port(),
            payload,
        )
    }

    /// The frame that it sends, untagged, to [`IN`].
    #[must_use]
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        self.tagged(&[], payload)
    }

    /// The frame that it sends to [`IN`], with VLAN tags.
    #[must_use]
    pub fn tagged(&self, tags: &[(u16, u16)], payload: &[u8]) -> Vec<u8> {
        let from = neighbour_mac(self.remote.ip());
        frame(gateway_mac(IN), from, tags, &self.packet(payload))
    }
}

/// The id of circuit `n`.
///
/// # Panics
/// Never.
#[must_use]
pub fn id(n: u64) -> CircuitId {
    CircuitId::new((n << 32) | 0xabcd_0000 | n).expect("not zero")
}

/// Payload of a datagram of circuit `n`: the id and some bytes.
#[must_use]
pub fn payload(n: u64, length: usize) -> Vec<u8> {
    let mut bytes = id(n).to_bytes().to_vec();
    bytes.extend((0..length).map(|n| n as u8));
    bytes
}

/// The gateway's program, its maps, and the table that decides their contents.
pub struct GatewayHarness {
    /// The program and its maps.
    pub fast: Arc<Fast>,
    /// The gateway's table of circuits.
    pub table: Table,
    publisher: Publisher,
    /// The tenant of all circuits.
    pub tenant: Arc<Tenant>,
    ends: BTreeMap<(u64, usize), End>,
    timestamp: u64,
    program: OwnedFd,
}

/// Entries of `PORTS`. `target` is 1 if frames may be redirected to [`OUT`], else 0.
#[must_use]
pub fn ports(target: u32) -> BTreeMap<u32, Port> {
    let ports = [(IN, IN, 0), (OUT, OUT, 0), (IN, VLAN, VID)];
    let ports = ports.map(|(device, ifindex, vlan)| {
        let mac = gateway_mac(ifindex);
        let port = Port {
            device,
            vlan,
            mac,
            target,
        };
        (ifindex, port)
    });
    ports.into()
}

/// Path of the BPF object: `CAUSEWAY_GATEWAY_BPF_OBJECT`, or in `target` of the workspace.
#[must_use]
pub fn object_path() -> PathBuf {
    std::env::var_os("CAUSEWAY_GATEWAY_BPF_OBJECT").map_or_else(
        || workspace_root().join("target/bpf/gateway.bpf.o"),
        PathBuf::from,
    )
}

/// The reason why these tests cannot run here; `None` if they can.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let path = object_path();
    (!path.exists()).then(|| {
        format!(
            "{} is missing; run `cargo xtask build-ebpf`",
            path.display()
        )
    })
}

impl GatewayHarness {
    /// With so many circuits of the tenant `acme`, which has these limits; `None` after saying why,
    /// where that is impossible.
    ///
    /// # Panics
    /// When it fails although everything that is needed is there.
    #[must_use]
    pub fn new(
        circuits: u64,
        lifetime: Duration,
        datagrams: Option<u64>,
        bytes: Option<u64>,
    ) -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        namespace();
        let size = Size {
            circuits: circuits as usize,
            tenants: 1,
        };
        let fast = match Fast::load(&object_path(), size) {
            Ok(fast) => Arc::new(fast),
            Err(error) => panic!("{error}: {error:?}"),
        };
        fast.set_ports(&ports(1)).expect("PORTS");
        let fd = fast.with_program(|program| {
            let fd = program.fd().expect("loaded");
            fd.as_fd().try_clone_to_owned().expect("a descriptor")
        });
        let depth = Duration::from_millis(100);
        let bucket = |rate: Option<u64>| {
            let bucket = Bucket::new(rate.unwrap_or(0), depth);
            assert!(fast.share(&bucket), "room");
            bucket
        };
        let tenant = Arc::new(Tenant {
            name: "acme".into(),
            datagrams: bucket(datagrams),
            bytes: bucket(bytes),
        });
        let mut table = Table::new(Key::new([9; 32]));
        table.set_lifetime(lifetime);
        let mut harness = Self {
            table,
            publisher: Publisher::new(Arc::clone(&fast)),
            fast,
            tenant,
            ends: BTreeMap::new(),
            timestamp: 1,
            program: fd.expect("a program"),
        };
        harness.change(1..=circuits, []);
        Some(harness)
    }

    /// Puts and removes circuits.
    pub fn change(
        &mut self,
        put: impl IntoIterator<Item = u64>,
        removed: impl IntoIterator<Item = u64>,
    ) {
        let put = put.into_iter().map(|n| plan_of(n, &self.tenant));
        let change = Change {
            put: put.collect(),
            removed: removed.into_iter().map(id).collect(),
        };
        change
            .removed
            .iter()
            .for_each(|id| self.publisher.remove(*id));
        self.table.change(change);
        self.publish();
    }

    /// Publishes the table's changes to the program.
    pub fn publish(&mut self) {
        self.table.report_changes(|bound| {
            self.publisher.publish(bound, |path| {
                SocketAddr::new(path.local.expect("ours"), PORT)
            });
        });
    }

    fn end(&mut self, circuit: u64, side: Side) -> &mut End {
        self.ends
            .entry((circuit, side.index()))
            .or_insert_with(|| End::new(id(circuit), side, key(circuit, side)))
    }

    /// Binds a side of a circuit.
    ///
    /// # Panics
    /// When the table refuses.
    pub fn bind(&mut self, circuit: u64, side: Side, address: &SideAddress) {
        self.timestamp += 1000;
        let timestamp = self.timestamp;
        let mut message = self.end(circuit, side).bind(timestamp);
        loop {
            let action = self.table.handle(clock(), &message, &address.path());
            let Action::Answer(answer) = action else {
                panic!("{action:?} for a bind");
            };
            match self.end(circuit, side).receive(&answer, timestamp) {
                Some(EndEvent::Send(next)) => message = next,
                Some(EndEvent::Bound(_)) => break,
                other => panic!("{other:?} for a bind"),
            }
        }
        self.publish();
    }

    /// Binds both.
    pub fn join(&mut self, circuit: u64, addresses: &[SideAddress; 2]) {
        for (side, address) in std::iter::zip(Side::BOTH, addresses) {
            self.bind(circuit, side, address);
        }
    }

    /// Unbinds a side.
    ///
    /// # Panics
    /// When the table refuses.
    pub fn unbind(&mut self, circuit: u64, side: Side, address: &SideAddress) {
        self.timestamp += 1000;
        let timestamp = self.timestamp;
        let message = self.end(circuit, side).unbind(timestamp);
        let action = self.table.handle(clock(), &message, &address.path());
        assert_eq!(action, Action::Done);
        self.publish();
    }

    /// The program's counts of a circuit.
    ///
    /// # Panics
    /// When the map cannot be read.
    #[must_use]
    pub fn stats(&self, circuit: u64) -> Stats {
        let place = self.publisher.stats_of(id(circuit));
        place.map_or_else(Stats::default, |place| {
            self.fast.stats(place).expect("STATS")
        })
    }

    /// A program that another thread may run.
    ///
    /// # Panics
    /// When there is no descriptor left.
    #[must_use]
    pub fn runner(&self) -> Runner {
        Runner {
            program: self.program.try_clone().expect("a descriptor"),
            out: vec![0; 4096],
        }
    }

    /// Runs a frame that arrives on `ifindex`: the action, the frame as it is then, and how it was
    /// counted.
    ///
    /// # Panics
    /// When the kernel does not run it, or it is not counted once.
    pub fn run(&self, ifindex: u32, frame: &[u8]) -> (harness::Action, Vec<u8>, Outcome) {
        let before = self.fast.outcomes().expect("COUNTERS");
        let (action, out) = {
            let mut runner = self.runner();
            let (action, out) = runner.run(ifindex, frame);
            (action, out.to_vec())
        };
        let after = self.fast.outcomes().expect("COUNTERS");
        let mut counted = std::iter::zip(before, after).filter(|(a, b)| a != b);
        let Some(((outcome, a), (_, b))) = counted.next() else {
            panic!("not counted");
        };
        assert!(b == a + 1 && counted.next().is_none(), "counted once");
        (action, out, outcome)
    }
}

/// Runs the program.
pub struct Runner {
    program: OwnedFd,
    out: Vec<u8>,
}

impl Runner {
    /// Runs a frame that arrives on `ifindex`.
    ///
    /// # Panics
    /// When the kernel does not.
    pub fn run(&mut self, ifindex: u32, frame: &[u8]) -> (harness::Action, &[u8]) {
        /// `BPF_PROG_TEST_RUN` of include/uapi/linux/bpf.h.
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        /// Its part of `union bpf_attr`.
        #[repr(C)]
        #[derive(Default)]
        struct Attr {
            program: u32,
            result: u32,
            in_size: u32,
            out_size: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_in_size: u32,
            context_out_size: u32,
            context_in: u64,
            context_out: u64,
            flags: u32,
            cpu: u32,
            batch: u32,
            zero: u32,
        }
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let mut attr = Attr {
            program: self.program.as_raw_fd() as u32,
            in_size: frame.len() as u32,
            out_size: self.out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: self.out.as_mut_ptr() as u64,
            repeat: 1,
            context_in_size: context.len() as u32,
            context_in: context.as_ptr() as u64,
            ..Attr::default()
        };
        // SAFETY: the pointers of the attributes are valid during the call, with these lengths.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attr,
                size_of::<Attr>(),
            )
        };
        assert_eq!(
            result,
            0,
            "BPF_PROG_TEST_RUN of {} bytes: {}",
            frame.len(),
            std::io::Error::last_os_error()
        );
        (attr.result.into(), &self.out[..attr.out_size as usize])
    }
}

fn key(circuit: u64, side: Side) -> Key {
    let mut bytes = [side.index() as u8; 32];
    bytes[..8].copy_from_slice(&circuit.to_be_bytes());
    Key::new(bytes)
}

/// Circuit `n`.
fn plan_of(n: u64, tenant: &Arc<Tenant>) -> CircuitPlan {
    CircuitPlan {
        id: id(n),
        tenant: Arc::clone(tenant),
        keys: Side::BOTH.map(|side| key(n, side)),
    }
}

fn namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let mut batch = String::from("link set lo up\n");
    for (index, addresses, neighbours) in NETWORKS {
        let mtu = if index == OUT { SMALL_MTU } else { 1500 };
        let mac = mac_text(gateway_mac(index));
        let _ = writeln!(
            batch,
            "link add name t{index} index {index} mtu {mtu} address {mac} up type bridge"
        );
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            let _ = writeln!(batch, "addr add {address} dev t{index} {nodad}");
        }
        for neighbour in neighbours {
            let mac = mac_text(neighbour_mac(neighbour.parse().expect("an address")));
            let _ = writeln!(
                batch,
                "neigh add {neighbour} dev t{index} lladdr {mac} nud permanent"
            );
        }
    }
    iproute::batch(&batch).unwrap_or_else(|e| panic!("{e}"));
    // As the gateway does it: the program asks the FIB as if from the loopback.
    iproute::forward_from_loopback().unwrap_or_else(|e| panic!("{e}"));
}
