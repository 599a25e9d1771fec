//! An appliance's programs in a namespace, without its daemon.

use anyhow::Context as _;
use aya::programs::{Xdp, XdpMode};
use causeway_tests::harness::{Harness, counter_name};

use super::netns::within;

/// Attaches the programs to two links of a namespace, until the harness is dropped.
pub fn attach(
    harness: &mut Harness,
    namespace: &str,
    access: &str,
    uplink: &str,
) -> anyhow::Result<()> {
    within(namespace, || {
        for (program, link) in [("access", access), ("uplink", uplink)] {
            let program: &mut Xdp = harness
                .ebpf()
                .program_mut(program)
                .context("program")?
                .try_into()?;
            program
                .attach(link, XdpMode::Driver)
                .with_context(|| format!("attach to {link}"))?;
        }
        Ok(())
    })
}

/// Counters of an appliance, by name.
pub fn counters(harness: &Harness) -> Vec<(String, u64)> {
    harness
        .counters()
        .into_iter()
        .map(|(number, value)| (counter_name(number), value))
        .collect()
}
