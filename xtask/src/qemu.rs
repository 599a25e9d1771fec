//! Requirements of the tests in virtual machines: QEMU, and Debian's kernels with NIC modules.
//!
//! The kernels come as packages of Debian trixie, by apt from the mirror that this machine is
//! configured with. apt's state for them is in a folder of our own, so nothing of the machine
//! changes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    bpf,
    setup::{self, Package},
    step::{output, run, step},
};

/// Packages of this machine's release.
pub const PACKAGES: [Package; 3] = [
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("busybox-static", "/bin/busybox"),
    ("xz-utils", "/usr/bin/xz"),
];

/// Release whose kernels are used, that of the appliance's images.
const RELEASE: &str = "trixie";

/// Kernels: folder, and the package that depends on the newest one. The cloud kernel is that of the
/// images, and has no driver for e1000e.
const KERNELS: [(&str, &str); 2] = [
    ("cloud", "linux-image-cloud-amd64"),
    ("amd64", "linux-image-amd64"),
];

/// Modules, in the order in which they are loaded; one that a kernel has built in is left out.
const MODULES: [&str; 21] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_console",
    "llc",
    "stp",
    "mrp",
    "garp",
    "8021q",
    "failover",
    "net_failover",
    "virtio_net",
    "vmxnet3",
    "pps_core",
    "ptp",
    "e1000e",
    "tls",
    "libcrc32c",
    "bonding",
];

/// The folder of the kernels: `<kernel>/vmlinuz` and `<kernel>/modules/`.
pub fn folder() -> PathBuf {
    bpf::tools().join("qemu")
}

/// Installs QEMU and fetches the kernels where they are missing.
///
/// # Errors
/// If something cannot be installed or fetched.
pub fn prepare() -> anyhow::Result<()> {
    let missing = setup::plan(PACKAGES.iter(), |file| Path::new(file).exists());
    if !missing.is_empty() {
        setup::install(&missing)?;
    }
    let absent = |(name, _): &&(&str, &str)| !folder().join(name).join("vmlinuz").exists();
    let absent: Vec<_> = KERNELS.iter().filter(absent).collect();
    if absent.is_empty() {
        return Ok(());
    }
    if !bpf::is_debian() {
        bail!("the kernels for virtual machines are fetched by apt, which needs Debian");
    }
    step("Debian kernels for virtual machines", || {
        let apt = Apt::new()?;
        apt.update()?;
        absent
            .into_iter()
            .try_for_each(|(name, package)| fetch(&apt, name, package))
    })
}

/// Downloads a kernel, and keeps its image and modules.
fn fetch(apt: &Apt, name: &str, package: &str) -> anyhow::Result<()> {
    let depends = apt.output("apt-cache", &["depends", package])?;
    let newest = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let newest = newest.with_context(|| format!("{package} depends on no kernel:\n{depends}"))?;
    let work = apt.root.join(name);
    fresh(&work)?;
    let mut download = apt.command("apt-get");
    download.args(["-q", "download"]);
    download.arg(format!("linux-image-{newest}"));
    run(download.current_dir(&work))?;
    let files = fs::read_dir(&work)?.flatten().map(|entry| entry.path());
    let mut debs = files.filter(|path| path.extension().is_some_and(|e| e == "deb"));
    let deb = debs.next().context("apt downloaded nothing")?;
    let unpacked = work.join("unpacked");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;

    let kernel = folder().join(name);
    let modules = kernel.join("modules");
    fresh(&modules)?;
    let mut found = Vec::new();
    modules_in(&unpacked, &mut found)?;
    for (module, path) in found {
        let unpacked = Command::new("xz").arg("-dc").arg(&path).output()?;
        if !unpacked.status.success() {
            bail!("xz cannot unpack {}", path.display());
        }
        fs::write(modules.join(format!("{module}.ko")), unpacked.stdout)?;
    }
    fs::write(modules.join("load"), MODULES.join("\n"))?;
    // Last: it shows that the rest is there.
    let image = unpacked.join("boot").join(format!("vmlinuz-{newest}"));
    fs::copy(&image, kernel.join("vmlinuz")).with_context(|| image.display().to_string())?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

/// The files of [`MODULES`] below a folder.
fn modules_in(folder: &Path, found: &mut Vec<(&'static str, PathBuf)>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            modules_in(&path, found)?;
            continue;
        }
        let name = entry.file_name().to_string_lossy().replace('-', "_");
        let module = name.strip_suffix(".ko.xz");
        if let Some(module) = MODULES.iter().find(|m| Some(**m) == module) {
            found.push((*module, path));
        }
    }
    Ok(())
}

/// apt with sources and state of our own.
struct Apt {
    root: PathBuf,
}

impl Apt {
    fn new() -> anyhow::Result<Self> {
        let root = folder().join("apt");
        fresh(&root)?;
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(part))?;
        }
        let uris = output(
            "apt-get",
            &[
                "indextargets",
                "--format",
                "$(REPO_URI)",
                "Created-By: Packages",
            ],
        );
        let uris = uris.unwrap_or_default();
        let mirror = debian_mirror(&uris).context(
            "apt is configured with no mirror of Debian: add one to /etc/apt/sources.list.d",
        )?;
        let source = format!(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {RELEASE} \
             main\n"
        );
        fs::write(root.join("sources.list"), source)?;
        Ok(Self { root })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, part) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            let value = format!("{option}={}", self.root.join(part).display());
            command.args(["-o", &value]);
        }
        command.args(["-o", "Dir::Etc::sourceparts=-"]);
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    fn update(&self) -> anyhow::Result<()> {
        run(self.command("apt-get").args(["-q", "update"]))
    }

    fn output(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(program).args(args).output()?;
        if !output.status.success() {
            bail!(
                "{program} {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The mirror of Debian's main archive among the repositories that apt is configured with.
fn debian_mirror(uris: &str) -> Option<&str> {
    let mut uris = uris.lines().map(str::trim);
    uris.find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
}

/// An empty folder.
fn fresh(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    fs::create_dir_all(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_main_archive() {
        let uris = "http://a.example/debian-security/\nhttp://b.example/debian/\n";
        assert_eq!(debian_mirror(uris), Some("http://b.example/debian/"));
        assert_eq!(debian_mirror("http://a.example/ubuntu/"), None);
        assert_eq!(debian_mirror(""), None);
    }

    #[test]
    fn modules_are_found_by_name_in_any_folder() {
        let root = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        fresh(&root.join("kernel/net")).unwrap();
        for file in ["kernel/net/virtio-net.ko.xz", "kernel/net/other.ko.xz", "x"] {
            fs::write(root.join(file), "").unwrap();
        }
        let mut found = Vec::new();
        modules_in(&root, &mut found).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["virtio_net"]);
    }
}
