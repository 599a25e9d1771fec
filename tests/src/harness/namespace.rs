//! The network namespace that packets run in.

use std::fmt::Write as _;

use super::HarnessError;
use crate::{
    iproute,
    packet::mac_text,
    world::{ACCESS, NEXT_HOP_MAC, PROVIDER, PROVIDER6, STRAY, TRUNK, UPLINK, UPLINK_MAC},
};

/// Moves the calling thread to a new network namespace with the interfaces that [`crate::world`]
/// names. They are bridges without ports: a test run needs only an index that exists and a receive
/// queue, and a socket an interface that is up.
pub(super) fn enter_new() -> Result<(), HarnessError> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(HarnessError::Namespace)?;
    let mut batch = String::new();
    for index in [UPLINK, TRUNK, ACCESS, STRAY] {
        let _ = writeln!(
            batch,
            "link add name t{index} index {index} up numrxqueues 70 type bridge"
        );
    }
    // Routes for a program that asks the kernel's FIB.
    let _ = writeln!(batch, "link set lo up");
    let _ = writeln!(batch, "link set t{UPLINK} address {}", mac_text(UPLINK_MAC));
    let _ = writeln!(batch, "addr add {PROVIDER}/24 dev t{UPLINK}");
    let _ = writeln!(batch, "addr add {PROVIDER6}/64 dev t{UPLINK} nodad");
    for router in ["203.0.113.1", "2001:db8:f::1"] {
        let _ = writeln!(
            batch,
            "neigh add {router} dev t{UPLINK} lladdr {} nud permanent",
            mac_text(NEXT_HOP_MAC)
        );
    }
    let _ = writeln!(batch, "route add default via 203.0.113.1");
    let _ = writeln!(batch, "route add ::/0 via 2001:db8:f::1");
    let failed = |e: std::io::Error| HarnessError::Interfaces(e.to_string());
    iproute::batch(&batch).map_err(failed)?;
    // As the daemon does it: the programs ask the FIB as if from the loopback.
    iproute::forward_from_loopback().map_err(failed)
}
