//! Installs the programs that `bench encrypted` and `bench relay` compare with. Nothing else needs
//! them.

use std::{path::Path, process::Command};

use crate::{
    bpf,
    setup::{self, Package, is_root},
    step::{output, run, step},
};

/// The programs that a benchmark compares with.
pub struct Contenders {
    /// From Debian.
    packages: &'static [Package],
    /// Services that their packages start and enable. They are disabled: the benchmark runs the
    /// servers.
    services: &'static [(&'static str, &'static str)],
    /// Whether [`BORINGTUN`] is needed.
    boringtun: bool,
}

/// Contenders of `bench encrypted`.
pub const TUNNELS: Contenders = Contenders {
    packages: &[
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
    ],
    services: &[("softether-vpnserver", "softether-vpnserver.service")],
    boringtun: true,
};
/// Contenders of `bench relay`.
pub const RELAYS: Contenders = Contenders {
    packages: &[
        ("coturn", "/usr/bin/turnserver"),
        ("haproxy", "/usr/sbin/haproxy"),
        ("nginx", "/usr/sbin/nginx"),
        (
            "libnginx-mod-stream",
            "/usr/lib/nginx/modules/ngx_stream_module.so",
        ),
        ("socat", "/usr/bin/socat"),
    ],
    services: &[
        ("coturn", "coturn.service"),
        ("haproxy", "haproxy.service"),
        ("nginx", "nginx.service"),
    ],
    boringtun: false,
};
/// From the Rust crate registry.
const BORINGTUN: &str = "boringtun-cli";
const BORINGTUN_VERSION: &str = "0.7.1";

/// Installs missing programs. A program that cannot be installed is reported and not measured.
pub fn install(contenders: &Contenders) {
    let missing = setup::plan(contenders.packages.iter(), |path| Path::new(path).exists());
    let mut results = vec![(
        "contenders from Debian",
        packages(&missing, contenders.services),
    )];
    if contenders.boringtun {
        results.push((BORINGTUN, boringtun()));
    }
    for (what, result) in results {
        if let Err(error) = result {
            errln!("    {what}: {error:#}; the benchmark omits it");
        }
    }
}

fn packages(missing: &[&str], services: &[(&str, &str)]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let has_systemd = is_root() && Path::new("/run/systemd/system").exists();
    let quiet: Vec<_> = services
        .iter()
        .filter(|(package, _)| has_systemd && missing.contains(package))
        .map(|(_, service)| *service)
        .collect();
    for service in &quiet {
        systemctl(&["mask", "--runtime", service])?;
    }
    let result = setup::install(missing);
    for service in &quiet {
        systemctl(&["unmask", "--runtime", service])?;
        if result.is_ok() {
            systemctl(&["disable", service])?;
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
