//! Lists the requirements: which are met, which are missing, and how to install them.

use std::{path::Path, process::ExitCode};

use crate::{
    bpf::{self, Route, ToolchainChoice},
    setup::{
        BORINGTUN_VERSION, boringtun, boringtun_command, has_bpffs, is_root, linker_command,
        missing,
    },
    step::output,
};

/// One finding.
struct Check {
    what: &'static str,
    found: String,
    /// Empty when all is well.
    fix: String,
    /// Whether it is required.
    required: bool,
}

/// Checks everything; fails when something that is required is missing.
pub fn doctor(asked: ToolchainChoice, json: bool) -> anyhow::Result<ExitCode> {
    let route = Route::choose(asked);
    let checks = checks(route);
    let broken = checks.iter().any(|c| c.required && !c.fix.is_empty());
    if json {
        let rows: Vec<_> = checks
            .iter()
            .map(|c| {
                serde_json::json!({
                    "what": c.what, "found": c.found, "ok": c.fix.is_empty(),
                    "required": c.required, "fix": c.fix,
                })
            })
            .collect();
        outln!("{}", serde_json::json!({ "ok": !broken, "checks": rows }));
    } else {
        for c in &checks {
            let mark = match (c.fix.is_empty(), c.required) {
                (true, _) => "ok  ",
                (false, true) => "MISS",
                (false, false) => "note",
            };
            outln!("{mark}  {:<22} {}", c.what, c.found);
            if !c.fix.is_empty() {
                outln!("      fix: {}", c.fix);
            }
        }
        outln!(
            "{}",
            if broken {
                "a requirement is missing: `cargo xtask setup` installs those that apt and cargo \
                 can"
            } else {
                "all requirements are met"
            }
        );
    }
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn checks(route: Route) -> Vec<Check> {
    let mut checks = vec![
        version(
            "cargo",
            "cargo",
            &["--version"],
            "install Rust 1.95 or newer with rustup",
        ),
        version(
            "rustfmt",
            "cargo",
            &["fmt", "--version"],
            "rustup component add rustfmt",
        ),
        version(
            "clippy",
            "cargo",
            &["clippy", "--version"],
            "rustup component add clippy",
        ),
    ];
    let packages = missing(route);
    checks.push(Check {
        what: "packages",
        found: if packages.is_empty() {
            "installed".to_owned()
        } else {
            format!("missing: {}", packages.join(" "))
        },
        fix: if packages.is_empty() {
            String::new()
        } else {
            format!(
                "apt-get update && apt-get install -y --no-install-recommends {}",
                packages.join(" ")
            )
        },
        required: true,
    });
    checks.push(bpf_rustc(route));
    checks.push(match bpf::linker() {
        Some(path) => good(
            "bpf-linker",
            format!("{} {}", bpf::LINKER_VERSION, path.display()),
        ),
        None => Check {
            what: "bpf-linker",
            found: "missing, or another version".to_owned(),
            fix: linker_command(route),
            required: true,
        },
    });
    checks.push(match boringtun() {
        Some(path) => good(
            "boringtun-cli",
            format!("{BORINGTUN_VERSION} {}", path.display()),
        ),
        None => Check {
            what: "boringtun-cli",
            found: "missing, or another version; only tests need it".to_owned(),
            fix: boringtun_command(),
            required: false,
        },
    });
    checks.push(kernel());
    checks.push(Check {
        what: "privilege",
        found: if is_root() { "root" } else { "not root" }.to_owned(),
        fix: if is_root() {
            String::new()
        } else {
            "packet and lab tests are skipped; run them with `sudo -E cargo xtask test`".to_owned()
        },
        required: false,
    });
    checks.push(Check {
        what: "BPF file system",
        found: if has_bpffs() {
            "mounted at /sys/fs/bpf"
        } else {
            "not mounted"
        }
        .to_owned(),
        fix: if has_bpffs() {
            String::new()
        } else {
            "mount -t bpf bpf /sys/fs/bpf (the commands that need it do so as root)".to_owned()
        },
        required: false,
    });
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    checks.push(Check {
        what: "kernel BTF",
        found: if btf { "there" } else { "not there" }.to_owned(),
        fix: if btf {
            String::new()
        } else {
            "use a kernel with CONFIG_DEBUG_INFO_BTF; only debugging the programs needs it"
                .to_owned()
        },
        required: false,
    });
    checks.push(veth());
    checks
}

fn good(what: &'static str, found: String) -> Check {
    Check {
        what,
        found,
        fix: String::new(),
        required: true,
    }
}

fn version(what: &'static str, program: &str, args: &[&str], fix: &str) -> Check {
    match output(program, args) {
        Some(text) => good(what, text.trim().to_owned()),
        None => Check {
            what,
            found: "not there".to_owned(),
            fix: fix.to_owned(),
            required: true,
        },
    }
}

/// The compiler for BPF, and whether its LLVM is the one that bpf-linker is built for.
fn bpf_rustc(route: Route) -> Check {
    let (text, fix) = match route {
        Route::Debian => (
            output("/usr/bin/rustc", &["-vV"]),
            "cargo xtask setup (Debian: apt-get install rustc-web cargo-web \
             libstd-rust-web-dev-bpf)",
        ),
        Route::Nightly => (
            output("rustup", &["run", "nightly", "rustc", "-vV"]),
            "rustup toolchain install nightly --component rust-src",
        ),
    };
    let Some(text) = text else {
        return Check {
            what: "rustc for BPF",
            found: format!("not there ({})", route.name()),
            fix: fix.to_owned(),
            required: true,
        };
    };
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or("?")
            .trim()
            .to_owned()
    };
    let llvm = field("LLVM version:");
    let found = format!("{} with LLVM {llvm} ({})", field("release:"), route.name());
    if route == Route::Debian {
        let config = format!("{}/bin/llvm-config", bpf::LLVM_PREFIX);
        let linkers = output(&config, &["--version"]).unwrap_or_default();
        if !linkers.trim().starts_with(&llvm) {
            return Check {
                what: "rustc for BPF",
                found: format!("{found}; bpf-linker's LLVM is {:?}", linkers.trim()),
                fix: "apt-get install llvm-22-dev of the same version, then remove target/tools \
                    and run cargo xtask setup"
                    .to_owned(),
                required: true,
            };
        }
    }
    good("rustc for BPF", found)
}

fn kernel() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim().to_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Check {
        what: "kernel",
        fix: if version < (5, 18) {
            "the programs need Linux 5.18 (bpf_xdp_load_bytes); appliances run 6.12 or newer"
                .to_owned()
        } else {
            String::new()
        },
        found: release,
        required: true,
    }
}

/// Tries to make a veth pair in a temporary namespace, which the kernel removes.
fn veth() -> Check {
    let made = output(
        "unshare",
        &[
            "-n", "ip", "link", "add", "cwd0", "type", "veth", "peer", "name", "cwd1",
        ],
    );
    Check {
        what: "namespaces and veth",
        found: if made.is_some() {
            "work"
        } else {
            "cannot be made"
        }
        .to_owned(),
        fix: match (made.is_some(), is_root()) {
            (true, _) => String::new(),
            (false, false) => "needs root; lab tests are skipped without".to_owned(),
            (false, true) => "use a kernel with CONFIG_NET_NS and CONFIG_VETH".to_owned(),
        },
        required: false,
    }
}
