//! Installs missing packages and tools.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    bpf::{self, LINKER_VERSION, LLVM_PREFIX, Route, ToolchainChoice},
    step::{output, run, step},
};

/// A Debian package and the file that shows it is there.
pub type Package = (&'static str, &'static str);

/// Packages for any build: a C compiler and linker for build scripts.
const BASE: [Package; 2] = [
    ("gcc", "/usr/bin/cc"),
    ("libc6-dev", "/usr/include/stdio.h"),
];

/// Packages that the lab, its tests and the demo use.
const LAB: [Package; 14] = [
    ("iproute2", "/usr/share/doc/iproute2"),
    ("ethtool", "/usr/share/doc/ethtool"),
    ("iperf3", "/usr/bin/iperf3"),
    ("dhcpcd-base", "/usr/sbin/dhcpcd"),
    ("iputils-arping", "/usr/bin/arping"),
    ("iputils-ping", "/usr/share/doc/iputils-ping"),
    ("curl", "/usr/bin/curl"),
    ("openssl", "/usr/bin/openssl"),
    ("procps", "/usr/share/doc/procps"),
    ("nftables", "/usr/sbin/nft"),
    ("ca-certificates", "/usr/share/doc/ca-certificates"),
    ("systemd", "/usr/lib/systemd/systemd-networkd"),
    ("wireguard-go", "/usr/bin/wireguard-go"),
    ("wireguard-tools", "/usr/bin/wg"),
];

/// Release of boringtun-cli, another WireGuard that our tunnel is tested against.
pub const BORINGTUN_VERSION: &str = "0.7.1";

/// Packages for compiling BPF with Debian's rustc.
const BPF: [Package; 9] = [
    ("rustc-web", "/usr/share/doc/rustc-web"),
    ("cargo-web", "/usr/share/doc/cargo-web"),
    (
        "libstd-rust-web-dev-bpf",
        "/usr/share/doc/libstd-rust-web-dev-bpf",
    ),
    ("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
    ("g++", "/usr/bin/c++"),
    ("zlib1g-dev", "/usr/share/doc/zlib1g-dev"),
    ("libzstd-dev", "/usr/share/doc/libzstd-dev"),
    ("libxml2-dev", "/usr/share/doc/libxml2-dev"),
    ("libffi-dev", "/usr/share/doc/libffi-dev"),
];

/// The Debian packages that are missing for the route.
pub fn missing(route: Route) -> Vec<&'static str> {
    let bpf: &[Package] = match route {
        Route::Debian => &BPF,
        Route::Nightly => &[],
    };
    plan(BASE.iter().chain(&LAB).chain(bpf), |path| {
        Path::new(path).exists()
    })
}

/// The `packages` whose file does not exist.
pub fn plan<'p>(
    packages: impl Iterator<Item = &'p Package>,
    exists: impl Fn(&str) -> bool,
) -> Vec<&'static str> {
    packages
        .filter(|(_, file)| !exists(file))
        .map(|(name, _)| *name)
        .collect()
}

/// The command that installs bpf-linker for a route.
pub fn linker_command(route: Route) -> String {
    let root = bpf::tools();
    let root = root.display();
    match route {
        Route::Debian => format!(
            "LLVM_PREFIX={LLVM_PREFIX} cargo install bpf-linker --version {LINKER_VERSION} \
             --no-default-features --features llvm-22 --locked --root {root}"
        ),
        Route::Nightly => {
            format!("cargo install bpf-linker --version {LINKER_VERSION} --locked --root {root}")
        }
    }
}

/// Our boringtun-cli, if it is there in the right version.
pub fn boringtun() -> Option<PathBuf> {
    let path = bpf::tools().join("bin/boringtun-cli");
    let version = output(&path, &["--version"])?;
    version.contains(BORINGTUN_VERSION).then_some(path)
}

/// The command that installs boringtun-cli.
pub fn boringtun_command() -> String {
    format!(
        "cargo install boringtun-cli --version {BORINGTUN_VERSION} --locked --root {}",
        bpf::tools().display()
    )
}

/// Installs boringtun-cli where it is missing.
pub fn install_boringtun() -> anyhow::Result<()> {
    if boringtun().is_some() {
        return Ok(());
    }
    step("boringtun-cli, about a minute", || {
        let mut command = Command::new("cargo");
        command.args(["install", "boringtun-cli", "--version", BORINGTUN_VERSION]);
        command.args(["--locked", "--root"]).arg(bpf::tools());
        command.env_remove("CARGO_TARGET_DIR");
        run(&mut command)
    })
    .with_context(|| format!("install it by hand: {}", boringtun_command()))
}

/// Installs everything: packages, bpf-linker, other WireGuards.
pub fn setup(asked: ToolchainChoice) -> anyhow::Result<()> {
    let route = toolchain(asked)?;
    install_boringtun()?;
    mount_bpffs()?;
    errln!(
        "    everything is installed (BPF compiler: {})",
        route.name()
    );
    Ok(())
}

/// Installs the BPF toolchain where it is missing; returns the one to use.
pub fn toolchain(asked: ToolchainChoice) -> anyhow::Result<Route> {
    let route = packages(asked)?;
    linker(route)?;
    Ok(route)
}

/// Installs the packages and compilers that are missing; returns the BPF toolchain to use.
pub fn packages(asked: ToolchainChoice) -> anyhow::Result<Route> {
    let route = Route::choose(asked);
    let packages = missing(route);
    if !packages.is_empty() {
        install(&packages)?;
    }
    if route == Route::Nightly {
        nightly()?;
    }
    Ok(route)
}

/// Installs bpf-linker where it is missing.
pub fn linker(route: Route) -> anyhow::Result<()> {
    if bpf::linker().is_none() {
        step("bpf-linker, about a minute", || {
            let mut command = Command::new("cargo");
            command.args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--locked",
            ]);
            if route == Route::Debian {
                command.args(["--no-default-features", "--features", "llvm-22"]);
                command.env("LLVM_PREFIX", LLVM_PREFIX);
            }
            command.arg("--root").arg(bpf::tools());
            command.env_remove("CARGO_TARGET_DIR");
            // LLVM does the work, so compile the linker quickly instead of well.
            command.env("CARGO_PROFILE_RELEASE_DEBUG", "0");
            command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
            command.env("CARGO_PROFILE_RELEASE_LTO", "off");
            run(&mut command)
        })
        .with_context(|| format!("install it by hand: {}", linker_command(route)))?;
    }
    Ok(())
}

/// Installs Debian packages, as root.
pub fn install(packages: &[&str]) -> anyhow::Result<()> {
    let by_hand = format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if !bpf::is_debian() {
        bail!(
            "this is not Debian: install the equivalent of these Debian packages, then try again: \
             {}",
            packages.join(" ")
        );
    }
    if !is_root() {
        bail!("missing packages; as root: {by_hand}");
    }
    step(&format!("packages: {}", packages.join(" ")), || {
        let apt = || {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command.args(["-q", "-y", "-o", "Dpkg::Use-Pty=0"]);
            command
        };
        let install = || {
            let mut command = apt();
            command.args(["install", "--no-install-recommends"]);
            command.args(packages);
            run(&mut command)
        };
        // Always with fresh lists: a new machine has none, an old one names packages that are gone.
        run(apt().arg("update"))?;
        install()
    })
    .with_context(|| format!("as root: {by_hand}"))
}

fn nightly() -> anyhow::Result<()> {
    let components = output(
        "rustup",
        &["component", "list", "--toolchain", "nightly", "--installed"],
    );
    let Some(components) = components else {
        bail!(
            "the nightly route needs rustup's nightly: rustup toolchain install nightly \
             --component rust-src"
        );
    };
    if !components.lines().any(|line| line.starts_with("rust-src")) {
        step("rust-src for the nightly toolchain", || {
            run(Command::new("rustup").args([
                "component",
                "add",
                "rust-src",
                "--toolchain",
                "nightly",
            ]))
        })
        .context(
            "rustup component add rust-src --toolchain nightly; or, on Debian, use \
            --bpf-toolchain debian",
        )?;
    }
    Ok(())
}

/// Whether we are root.
pub fn is_root() -> bool {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Mounts the BPF file system where it is missing and we may.
pub fn mount_bpffs() -> anyhow::Result<()> {
    if has_bpffs() || !is_root() {
        return Ok(());
    }
    step("the BPF file system at /sys/fs/bpf", || {
        run(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))
    })
}

/// Whether the BPF file system is mounted on /sys/fs/bpf.
pub fn has_bpffs() -> bool {
    std::fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1).zip(line.split(' ').nth(2)))
            .any(|mount| mount == ("/sys/fs/bpf", "bpf"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed() {
        let names = plan(BASE.iter(), |file| file == "/usr/bin/cc");
        assert_eq!(names, ["libc6-dev"]);
        assert!(plan(BPF.iter(), |_| true).is_empty());
    }
}
