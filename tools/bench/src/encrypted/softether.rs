//! SoftEther: a server on each machine, a cascade between their hubs, each hub bridged to a tap
//! device.

use std::process::Command;

use anyhow::Context as _;

use super::{
    contender::Contender,
    sites::{EAST, Layer, Machine, Sites, WEST},
};
use crate::rig::{
    command::{lacks, output},
    process::Running,
};

/// Two `vpnserver`s, scripted by `vpncmd`.
pub struct SoftEther;

const SERVER: &str = "/usr/libexec/softether/vpnserver/vpnserver";
const CMD: &str = "/usr/libexec/softether/vpncmd/vpncmd";
const PORT: u16 = 5555;
/// Directories in which Debian's vpnserver keeps its lock, configuration and logs, below
/// `softether`.
const STATE: [&str; 3] = ["/run", "/var/lib", "/var/log"];

impl Contender for SoftEther {
    fn name(&self) -> &'static str {
        "softether"
    }

    fn layer(&self) -> Layer {
        Layer::Two
    }

    fn missing(&self) -> Option<String> {
        lacks("encrypted", &[SERVER, CMD, "unshare", "openssl"])
    }

    fn up(&self, sites: &Sites) -> anyhow::Result<Running> {
        let mut running = Running::new()?;
        // The server forks a process that outlives it; both end with their PID namespace. Empty
        // directories hide the state of a server that this machine may have.
        let over = STATE.map(|d| format!("mount -t tmpfs tmpfs {d} && mkdir {d}/softether"));
        let script = format!("{} && exec {SERVER} execsvc", over.join(" && "));
        for machine in [EAST, WEST] {
            let mut command = running.command(machine.namespace, "unshare");
            command.args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount-proc",
            ]);
            command.args(["sh", "-c", &script]);
            running.start(machine.namespace, &mut command)?;
        }
        let password = output(Command::new("openssl").args(["rand", "-hex", "16"]))?;
        let password = password.trim();
        let tap =
            |machine: Machine| format!("BridgeCreate DEFAULT /DEVICE:{} /TAP:yes", short(machine));
        let east = format!(
            "{}\nHub DEFAULT\nUserCreate west /GROUP:none /REALNAME:none /NOTE:none\n\
             UserPasswordSet west /PASSWORD:{password}\n",
            tap(EAST)
        );
        let west = format!(
            "{}\nHub DEFAULT\nCascadeCreate east /SERVER:{}:{PORT} /HUB:DEFAULT /USERNAME:west\n\
             CascadePasswordSet east /PASSWORD:{password} /TYPE:standard\n\
             CascadeEncryptEnable east\nCascadeOnline east\n",
            tap(WEST),
            EAST.address
        );
        for (machine, script) in [(EAST, east), (WEST, west)] {
            await_server(&running, machine)?;
            let file = format!("{}.txt", short(machine));
            running.write(&file, &script)?;
            vpncmd(&running, machine, &format!("/IN:{file}"))?;
            let link = format!("tap_{}", short(machine));
            sites.await_link(machine, &link)?;
            sites.bridge(machine, &link)?;
        }
        Ok(running)
    }
}

fn short(machine: Machine) -> &'static str {
    machine
        .namespace
        .strip_prefix("cwe-")
        .unwrap_or(machine.namespace)
}

fn vpncmd(running: &Running, machine: Machine, arg: &str) -> anyhow::Result<String> {
    let mut command = running.command(machine.namespace, CMD);
    output(command.args([&format!("127.0.0.1:{PORT}"), "/SERVER", arg]))
}

/// Waits until the server accepts commands.
fn await_server(running: &Running, machine: Machine) -> anyhow::Result<()> {
    let mut result = Ok(String::new());
    for _ in 0..20 {
        result = vpncmd(running, machine, "/CMD:ServerInfoGet");
        if result.is_ok() {
            break;
        }
        lab::interrupt::check()?;
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    result.map(drop).context("the server accepts no commands")
}
