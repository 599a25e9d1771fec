//! OpenVPN with tap devices that are bridged, AES-256-GCM, over UDP.

use std::process::Command;

use anyhow::Context as _;

use super::{
    contender::Contender,
    sites::{Layer, PAIR, Sites, WEST},
};
use crate::rig::{
    command::{lacks, output, sh},
    process::Running,
};

/// `openvpn --dev-type tap`, one process on each machine, without a data channel in the kernel.
pub struct OpenVpn;

const PORT: u16 = 1194;
/// Socket buffers for speed, bytes.
const BUFFER: u32 = 2 << 20;

impl Contender for OpenVpn {
    fn name(&self) -> &'static str {
        "openvpn tap"
    }

    fn layer(&self) -> Layer {
        Layer::Two
    }

    fn missing(&self) -> Option<String> {
        lacks("encrypted", &["openvpn", "openssl"])
    }

    fn up(&self, sites: &Sites) -> anyhow::Result<Running> {
        let mut running = Running::new()?;
        let mut prints = Vec::new();
        for (machine, _) in PAIR {
            prints.push(certificate(&running, machine.namespace)?);
        }
        prints.reverse();
        for ((machine, other), print) in PAIR.into_iter().zip(prints) {
            let (ns, tap) = (machine.namespace, machine.tunnel);
            sh(&format!("ip -n {ns} tuntap add dev {tap} mode tap"))?;
            sites.bridge(machine, tap)?;
            let role = if ns == WEST.namespace {
                "tls-client"
            } else {
                "tls-server\ndh none"
            };
            let config = format!(
                "dev {tap}\ndev-type tap\nproto udp\nlocal {}\nremote {}\nport {PORT}\n{role}\n\
                 cert {ns}.crt\nkey {ns}.key\npeer-fingerprint {print}\n\
                 data-ciphers AES-256-GCM\ncipher AES-256-GCM\n\
                 sndbuf {BUFFER}\nrcvbuf {BUFFER}\ntxqueuelen 1000\nmssfix 0\nfast-io\nverb 2\n",
                machine.address, other.address
            );
            running.write(&format!("{ns}.conf"), &config)?;
            let mut command = running.command(machine.namespace, "openvpn");
            command.args(["--config", &format!("{ns}.conf")]);
            running.start(ns, &mut command)?;
        }
        Ok(running)
    }
}

/// Makes a key and a certificate for two days. Returns the certificate's SHA-256 fingerprint.
fn certificate(running: &Running, name: &str) -> anyhow::Result<String> {
    let words = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
         -subj /CN={name} -keyout {name}.key -out {name}.crt"
    );
    let openssl = |words: &str| {
        output(
            Command::new("openssl")
                .args(words.split_whitespace())
                .current_dir(running.directory()),
        )
    };
    openssl(&words)?;
    let print = openssl(&format!("x509 -in {name}.crt -noout -fingerprint -sha256"))?;
    let (_, print) = print
        .trim()
        .split_once('=')
        .context("openssl's fingerprint")?;
    Ok(print.to_owned())
}
