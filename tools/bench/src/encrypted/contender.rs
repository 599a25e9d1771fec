//! Interface of every contender of `encrypted`.

use crate::{
    report::figures::Role,
    rig::{extent::Extent, process::Running},
};

use super::sites::{Layer, Sites};

/// Throughput of one worker on one core.
#[derive(Clone, Copy, Debug)]
pub struct OneCore {
    /// Bytes of each packet.
    pub bytes: usize,
    /// Packets a second, received at the far end.
    pub packets_per_second: f64,
}

/// A tunnel, or a floor, that connects the two sites.
pub trait Contender {
    /// Its name in the report.
    fn name(&self) -> &'static str;

    /// Its role in the comparison.
    fn role(&self) -> Role {
        Role::Peer
    }

    /// The layer that it carries.
    fn layer(&self) -> Layer;

    /// The reason why it cannot run on this machine.
    fn missing(&self) -> Option<String>;

    /// Whether it reads packets before the kernel completes checksums, as XDP does. The hosts then
    /// complete them, with offloads on too, which also switches off TSO at the hosts.
    fn needs_checksums(&self) -> bool {
        false
    }

    /// Connects the sites. The caller waits until the hosts reach each other.
    ///
    /// Processes are started by [`Running::start`], so that they end with the run and their CPU
    /// time is found.
    fn up(&self, sites: &Sites) -> anyhow::Result<Running>;

    /// Removes what [`Contender::up`] made, except what ends with `running` and the namespaces.
    fn down(&self, _sites: &Sites, running: Running) -> anyhow::Result<()> {
        drop(running);
        Ok(())
    }

    /// Throughput of one worker on one core with packets of 1420 bytes. Only `causeway` and
    /// [`super::FORWARD`], the same worker without a cipher, can measure it. Called after the other
    /// figures, with offloads off only.
    fn one_core(&self, _running: &Running, _extent: Extent) -> anyhow::Result<Option<OneCore>> {
        Ok(None)
    }
}
