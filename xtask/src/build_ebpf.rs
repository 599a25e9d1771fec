//! Builds the BPF programs: of each package that names its object as
//! `[package.metadata.causeway] bpf-object`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};

use crate::{
    bpf::{Route, cargo},
    step::{run, step},
    target,
    targets::Workspace,
};

const TARGET: &str = "bpfel-unknown-none";

/// Folder of the built objects.
pub fn objects() -> PathBuf {
    target().join("bpf")
}

/// Builds every object that the workspace has a package for.
pub fn build(route: Route) -> anyhow::Result<()> {
    let packages = Workspace::read()?.bpf;
    let build_dir = target().join("bpf-build");
    step(&format!("BPF programs, by {}", route.name()), || {
        let mut command = cargo(route);
        command.args(["build", "--release", "--locked", "--target", TARGET]);
        // The programs need optimisation across codegen units, which the workspace's profile lacks.
        command.env("CARGO_PROFILE_RELEASE_LTO", "false");
        if route == Route::Nightly {
            command.args(["-Z", "build-std=core"]);
        }
        command.arg("--target-dir").arg(&build_dir);
        for (package, _) in &packages {
            command.args(["--package", package]);
        }
        run(&mut command)?;
        fs::create_dir_all(objects()).context("make target/bpf")?;
        for (package, object) in &packages {
            let from = build_dir.join(TARGET).join("release").join(package);
            let to = objects().join(object);
            let new = to.with_extension("new");
            let size = fs::copy(&from, &new)
                .with_context(|| format!("copy {} to {}", from.display(), new.display()))?;
            ensure!(size > 0, "{} is empty", from.display());
            // In one step: a daemon that starts meanwhile loads the old one or the new one.
            fs::rename(&new, &to).with_context(|| format!("put {} in place", to.display()))?;
            errln!("    {object}: {} kB", size / 1024);
        }
        Ok(())
    })
}
