//! WireGuard in user space: wireguard-go, and boringtun-cli. Both are set up by `wg`.

use std::process::Command;

use anyhow::Context as _;

use super::{
    contender::Contender,
    sites::{EAST, Layer, Machine, PAIR, Sites, WEST},
};
use crate::rig::{
    command::{find, lacks, output},
    process::Running,
};

/// A program that makes a WireGuard device in user space.
pub struct WireGuard {
    program: &'static str,
    args: &'static [&'static str],
}

/// `wireguard-go` (Go), as packaged.
pub const GO: WireGuard = WireGuard {
    program: "wireguard-go",
    args: &[],
};
/// `boringtun-cli` (Rust), with its default number of threads.
pub const BORINGTUN: WireGuard = WireGuard {
    program: "boringtun-cli",
    args: &["--foreground", "--disable-drop-privileges"],
};

const PORT: u16 = 51820;

impl Contender for WireGuard {
    fn name(&self) -> &'static str {
        self.program
    }

    fn layer(&self) -> Layer {
        Layer::Three
    }

    fn missing(&self) -> Option<String> {
        lacks("encrypted", &[self.program, "wg"])
    }

    fn up(&self, sites: &Sites) -> anyhow::Result<Running> {
        let mut running = Running::new()?;
        let program = find(self.program).context("the program")?;
        let mut public = Vec::new();
        for machine in [WEST, EAST] {
            let mut command = running.command(machine.namespace, &program);
            command
                .args(self.args)
                .arg(machine.tunnel)
                .env("WG_PROCESS_FOREGROUND", "1");
            running.start(machine.namespace, &mut command)?;
            sites.await_link(machine, machine.tunnel)?;
            public.push(key(&running, machine)?);
        }
        public.reverse();
        for ((machine, other), public) in PAIR.into_iter().zip(public) {
            let words = format!(
                "set {} listen-port {PORT} private-key {}.key peer {public} \
                 endpoint {}:{PORT} allowed-ips {}",
                machine.tunnel, machine.namespace, other.address, other.network
            );
            output(
                running
                    .command(machine.namespace, "wg")
                    .args(words.split_whitespace()),
            )?;
            sites.route(machine, other)?;
        }
        Ok(running)
    }
}

/// Makes a private key. Returns the public key.
fn key(running: &Running, machine: Machine) -> anyhow::Result<String> {
    let file = format!("{}.key", machine.namespace);
    let private = output(Command::new("wg").arg("genkey"))?;
    running.write(&file, &private)?;
    let public = output(
        Command::new("sh")
            .args(["-c", "wg pubkey < \"$1\"", "sh", &file])
            .current_dir(running.directory()),
    )?;
    Ok(public.trim().to_owned())
}
