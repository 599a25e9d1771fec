//! The cargo that runs us.

use std::process::Command;

use crate::workspace;

/// A cargo of the toolchain that runs us.
///
/// It does not get what `cargo xtask` says of the package `xtask`: build scripts that read such a
/// variable (ring's: `CARGO_MANIFEST_DIR`) would run again whenever a build by a shell follows one
/// by `xtask`, and all that depends on them would be compiled again.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    for (name, _) in std::env::vars_os() {
        let is_of_package = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if is_of_package {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_not_told_of_the_package_xtask() {
        // This test's own environment has it, as cargo runs it or as `xtask test` does.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let removed = cargo()
            .get_envs()
            .any(|(name, value)| name == "CARGO_MANIFEST_DIR" && value.is_none());
        assert!(removed);
    }
}
