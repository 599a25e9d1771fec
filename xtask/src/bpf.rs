//! The two ways to compile for BPF.

use std::{path::PathBuf, process::Command};

use clap::ValueEnum;

use crate::{step::output, workspace};

/// Release of bpf-linker; it must be built for the LLVM that rustc uses.
pub const LINKER_VERSION: &str = "0.13.0";
/// Debian's folder for the LLVM of its rustc-web.
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The BPF toolchain that the user chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ToolchainChoice {
    /// Debian's packages where this is Debian, else nightly.
    Auto,
    /// Debian's rustc-web with its precompiled core for BPF.
    Debian,
    /// rustup's nightly with rust-src and -Z build-std.
    Nightly,
}

/// The BPF toolchain in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Debian's rustc-web.
    Debian,
    /// rustup's nightly.
    Nightly,
}

impl Route {
    /// For messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debian => "Debian's rustc-web",
            Self::Nightly => "rustup's nightly with build-std",
        }
    }

    /// The toolchain for a choice, on this machine.
    pub fn choose(asked: ToolchainChoice) -> Self {
        match asked {
            ToolchainChoice::Debian => Self::Debian,
            ToolchainChoice::Nightly => Self::Nightly,
            ToolchainChoice::Auto if is_debian() => Self::Debian,
            ToolchainChoice::Auto => Self::Nightly,
        }
    }
}

/// Whether apt can install things here.
pub fn is_debian() -> bool {
    std::path::Path::new("/etc/debian_version").exists()
        && output("apt-get", &["--version"]).is_some()
}

/// Folder of bpf-linker: in the workspace's `target`, independent of CARGO_TARGET_DIR, so that a
/// `cargo clean` of another target directory keeps it.
pub fn tools() -> PathBuf {
    workspace().join("target/tools")
}

/// Our bpf-linker, if it is there in the right version.
pub fn linker() -> Option<PathBuf> {
    let path = tools().join("bin/bpf-linker");
    let version = output(&path, &["--version"])?;
    version.contains(LINKER_VERSION).then_some(path)
}

/// A cargo of this toolchain, without the variables that the outer cargo has set.
pub fn cargo(route: Route) -> Command {
    let mut command = match route {
        Route::Debian => {
            let mut command = Command::new("/usr/bin/cargo");
            command.env("RUSTC", "/usr/bin/rustc");
            command.env("RUSTC_BOOTSTRAP", "1");
            command
        }
        Route::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo"]);
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_cargos) {
            let set_here = route == Route::Debian && (name == "RUSTC" || name == "RUSTC_BOOTSTRAP");
            if !set_here {
                command.env_remove(name);
            }
        }
    }
    let mut path = vec![tools().join("bin")];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    if let Ok(path) = std::env::join_paths(path) {
        command.env("PATH", path);
    }
    command.current_dir(workspace());
    command
}

/// Whether an environment variable is one that an outer cargo or rustup sets for its own toolchain
/// and an inner one must not see. CARGO_HOME, the registries' and the network's settings stay.
fn is_cargos(name: &str) -> bool {
    matches!(
        name,
        "CARGO"
            | "RUSTC"
            | "RUSTDOC"
            | "RUSTC_WRAPPER"
            | "RUSTC_WORKSPACE_WRAPPER"
            | "RUSTC_BOOTSTRAP"
            | "RUSTFLAGS"
            | "CARGO_ENCODED_RUSTFLAGS"
            | "RUSTUP_TOOLCHAIN"
            | "RUST_RECURSION_COUNT"
            | "CARGO_TARGET_DIR"
            | "CARGO_BUILD_TARGET"
            | "LD_LIBRARY_PATH"
    ) || name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || name.starts_with("CARGO_PROFILE_")
        || name.starts_with("CARGO_FEATURE_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_toolchain_does_not_leak_into_the_inner_one() {
        for name in [
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO",
            "CARGO_PKG_NAME",
            "CARGO_TARGET_DIR",
        ] {
            assert!(is_cargos(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "PATH",
            "CARGO_HTTP_CAINFO",
            "HOME",
            "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
        ] {
            assert!(!is_cargos(name), "{name}");
        }
    }
}
