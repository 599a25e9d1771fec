//! The kernel's bridge: frames cross both machines as they are. The floor of the topology.

use super::{
    contender::{Contender, Role, Running},
    sites::{EAST, Layer, Sites, WAN, WEST},
};

/// A bridge of both links in each machine.
pub struct KernelBridge;

impl Contender for KernelBridge {
    fn name(&self) -> &'static str {
        super::BRIDGE
    }

    fn role(&self) -> Role {
        Role::Floor
    }

    fn layer(&self) -> Layer {
        Layer::Two
    }

    fn missing(&self) -> Option<String> {
        None
    }

    fn up(&self, sites: &Sites) -> anyhow::Result<Running> {
        for machine in [WEST, EAST] {
            sites.bridge(machine, WAN)?;
        }
        Running::new()
    }
}
