//! tinc 1.0 as a switch, with its own default cipher.

use super::{
    contender::Contender,
    sites::{EAST, Layer, PAIR, Sites, WEST},
};
use crate::rig::{
    command::{lacks, output},
    process::Running,
};

/// `tincd` in `Mode = switch`, its tap devices bridged.
pub struct Tinc;

impl Contender for Tinc {
    fn name(&self) -> &'static str {
        "tinc switch"
    }

    fn layer(&self) -> Layer {
        Layer::Two
    }

    fn missing(&self) -> Option<String> {
        lacks("encrypted", &["tincd"])
    }

    fn up(&self, sites: &Sites) -> anyhow::Result<Running> {
        let mut running = Running::new()?;
        for (machine, other) in PAIR {
            let name = short(machine.namespace);
            let connect = format!("ConnectTo = {}\n", short(other.namespace));
            running.write(
                &format!("{name}/tinc.conf"),
                &format!(
                    "Name = {name}\nMode = switch\nDeviceType = tap\nInterface = {}\n\
                     BindToAddress = {}\n{}",
                    machine.tunnel,
                    machine.address,
                    if name == short(WEST.namespace) {
                        &connect
                    } else {
                        ""
                    }
                ),
            )?;
            let file = format!("hosts/{name}");
            // The link carries whole frames. tinc would send them over TCP for the seconds that its
            // own discovery takes.
            running.write(
                &format!("{name}/{file}"),
                &format!("Address = {}\nPMTUDiscovery = no\n", machine.address),
            )?;
            // Adds the public key to our host file.
            output(
                running
                    .command(machine.namespace, "tincd")
                    .args(["-c", name, "-K", "2048"]),
            )?;
        }
        for (from, to) in PAIR.map(|(a, b)| (short(a.namespace), short(b.namespace))) {
            let directory = running.directory();
            std::fs::copy(
                directory.join(format!("{from}/hosts/{from}")),
                directory.join(format!("{to}/hosts/{from}")),
            )?;
        }
        for machine in [EAST, WEST] {
            let name = short(machine.namespace);
            let mut command = running.command(machine.namespace, "tincd");
            command.args(["-c", name, "-D", "-d1", &format!("--pidfile={name}.pid")]);
            running.start(name, &mut command)?;
            sites.await_link(machine, machine.tunnel)?;
            sites.bridge(machine, machine.tunnel)?;
        }
        Ok(running)
    }
}

/// A name without a hyphen, which tinc does not accept.
fn short(namespace: &str) -> &str {
    namespace.strip_prefix("cwe-").unwrap_or(namespace)
}
