//! The kernel's bridge: frames cross both machines unchanged. The floor of the topology.

use super::{
    contender::Contender,
    sites::{EAST, Layer, Sites, WAN, WEST},
};
use crate::{report::figures::Role, rig::process::Running};

/// A bridge over both links of each machine.
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
