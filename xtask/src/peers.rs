//! Installs what `bench encrypted` measures us beside. Nothing else needs it, so nothing else installs it.

use std::{path::Path, process::Command};

use crate::{
    bpf,
    setup::{self, Package, is_root},
    step::{output, run, step},
};

/// From Debian.
const PACKAGES: [Package; 8] = [
    ("openssl", "/usr/bin/openssl"),
    ("openvpn", "/usr/sbin/openvpn"),
    ("tinc", "/usr/sbin/tincd"),
    (
        "softether-vpnserver",
        "/usr/libexec/softether/vpnserver/vpnserver",
    ),
    ("softether-vpncmd", "/usr/libexec/softether/vpncmd/vpncmd"),
    ("wireguard-go", "/usr/bin/wireguard-go"),
    ("wireguard-tools", "/usr/bin/wg"),
    ("nebula", "/usr/bin/nebula"),
];
/// A server that its package starts, and would at every boot. The benchmark runs it by itself.
const SERVICE: &str = "softether-vpnserver.service";
/// From the Rust crate registry.
const BORINGTUN: &str = "boringtun-cli";
const BORINGTUN_VERSION: &str = "0.7.1";

/// Installs what is missing. What cannot be installed is said, and the benchmark leaves it out.
pub fn install() {
    let missing = setup::plan(PACKAGES.iter(), |path| Path::new(path).exists());
    let results = [
        ("peers from Debian", packages(&missing)),
        (BORINGTUN, boringtun()),
    ];
    for (what, result) in results {
        if let Err(error) = result {
            eprintln!("    {what}: {error:#}; the benchmark goes on without");
        }
    }
}

fn packages(missing: &[&str]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let quiet = missing.contains(&"softether-vpnserver")
        && is_root()
        && Path::new("/run/systemd/system").exists();
    if quiet {
        systemctl(&["mask", "--runtime", SERVICE])?;
    }
    let result = setup::install(missing);
    if quiet {
        systemctl(&["unmask", "--runtime", SERVICE])?;
        if result.is_ok() {
            systemctl(&["disable", SERVICE])?;
        }
    }
    result
}

fn systemctl(args: &[&str]) -> anyhow::Result<()> {
    run(Command::new("systemctl").arg("--quiet").args(args))
}

fn boringtun() -> anyhow::Result<()> {
    let path = bpf::tools().join("bin").join(BORINGTUN);
    if output(&path, &["--version"]).is_some_and(|v| v.contains(BORINGTUN_VERSION)) {
        return Ok(());
    }
    step(&format!("{BORINGTUN}, about a minute"), || {
        let mut command = Command::new("cargo");
        command.args(["install", BORINGTUN, "--version", BORINGTUN_VERSION]);
        command.arg("--locked").arg("--root").arg(bpf::tools());
        command.env_remove("CARGO_TARGET_DIR");
        run(&mut command)
    })
}
