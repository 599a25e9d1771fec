//! Nebula: an overlay of certified hosts; the sites' networks are routed through it.

use std::process::Command;

use super::{
    contender::Contender,
    sites::{EAST, Layer, Machine, PAIR, Sites, WEST},
};
use crate::rig::{
    command::{lacks, output},
    process::Running,
};

/// `nebula` on each machine, without a lighthouse: each has the other's address configured.
pub struct Nebula;

const PORT: u16 = 4242;

impl Contender for Nebula {
    fn name(&self) -> &'static str {
        "nebula"
    }

    fn layer(&self) -> Layer {
        Layer::Three
    }

    fn missing(&self) -> Option<String> {
        lacks("encrypted", &["nebula", "nebula-cert"])
    }

    fn up(&self, sites: &Sites) -> anyhow::Result<Running> {
        let mut running = Running::new()?;
        let cert = |words: &str| {
            output(
                Command::new("nebula-cert")
                    .args(words.split_whitespace())
                    .current_dir(running.directory()),
            )
        };
        cert("ca -name bench -duration 48h")?;
        for machine in [WEST, EAST] {
            cert(&format!(
                "sign -name {} -ip {}/24 -subnets {}",
                machine.namespace,
                overlay(machine),
                machine.network
            ))?;
        }
        for (machine, other) in PAIR {
            let ns = machine.namespace;
            running.write(&format!("{ns}.yml"), &config(machine, other))?;
            let mut command = running.command(machine.namespace, "nebula");
            command.args(["-config", &format!("{ns}.yml")]);
            running.start(ns, &mut command)?;
            sites.await_link(machine, machine.tunnel)?;
        }
        Ok(running)
    }
}

fn overlay(machine: Machine) -> String {
    format!("10.61.0.{}", machine.last())
}

fn config(machine: Machine, other: Machine) -> String {
    let (ns, link) = (machine.namespace, machine.tunnel);
    let (address, remote) = (machine.address, other.address);
    let (via, network) = (overlay(other), other.network);
    format!(
        "pki: {{ca: ca.crt, cert: {ns}.crt, key: {ns}.key}}
static_host_map: {{\"{via}\": [\"{remote}:{PORT}\"]}}
lighthouse: {{am_lighthouse: false}}
listen: {{host: {address}, port: {PORT}, read_buffer: 4194304, write_buffer: 4194304}}
cipher: aes
tun:
  dev: {link}
  mtu: 1500
  unsafe_routes: [{{route: {network}, via: {via}}}]
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"
    )
}
