//! Network namespaces: names, entering them with a thread, sysctls inside.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::error::{During as _, Result};

/// Every namespace of every lab starts like this.
pub const PREFIX: &str = "cw-";

/// The namespace of `host` in `lab`.
#[must_use]
pub fn name(lab: &str, host: &str) -> String {
    format!("{PREFIX}{lab}-{host}")
}

/// Path of a named namespace of iproute2.
fn path(namespace: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace)
}

/// Opens a named namespace.
///
/// # Errors
/// If there is none of that name.
pub fn open(namespace: &str) -> Result<OwnedFd> {
    let path = path(namespace);
    File::open(&path)
        .map(OwnedFd::from)
        .during(|| format!("opening network namespace {}", path.display()))
}

/// Names of all namespaces of labs, in order.
///
/// # Errors
/// If the directory of named namespaces is there but cannot be read.
pub fn list() -> Result<Vec<String>> {
    let dir = match std::fs::read_dir("/run/netns") {
        Ok(dir) => dir,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).during(|| "listing /run/netns".to_owned()),
    };
    let mut names: Vec<_> = dir
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.starts_with(PREFIX))
        .collect();
    names.sort();
    Ok(names)
}

/// Runs `work` on a thread inside `namespace` and waits for it.
///
/// # Errors
/// If the namespace cannot be entered, and whatever `work` returns.
pub fn within<T: Send>(namespace: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let fd = open(namespace)?;
    thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(&fd, namespace)?;
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter(fd: &OwnedFd, namespace: &str) -> Result<()> {
    setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)
        .during(|| format!("entering network namespace {namespace} (are you root?)"))
}

/// Writes `net/<key>` of the namespace that this thread is in. `/proc/sys/net` follows the thread.
pub(crate) fn sysctl(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{key}");
    std::fs::write(&path, value).during(|| format!("writing {value} to {path}"))
}

/// Index of a link in the namespace that this thread is in.
pub(crate) fn index(link: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(link).during(|| format!("finding link {link}"))
}

/// Addresses in this thread's namespace that are tentative (duplicate address detection runs), and
/// duplicates, marked as such.
pub(crate) fn tentative() -> Result<Vec<String>> {
    // `/proc/net` follows the process; this one follows the thread.
    let path = "/proc/thread-self/net/if_inet6";
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).during(|| format!("reading {path}")),
    };
    Ok(parse_tentative(&text))
}

fn parse_tentative(text: &str) -> Vec<String> {
    const DAD_FAILED: u32 = 0x08;
    const TENTATIVE: u32 = 0x40;
    text.lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [address, _index, _len, _scope, flags, device] = fields.as_slice() else {
                return None;
            };
            let flags = u32::from_str_radix(flags, 16).ok()?;
            if flags & (TENTATIVE | DAD_FAILED) == 0 {
                return None;
            }
            let taken = if flags & DAD_FAILED != 0 {
                ": taken by another host"
            } else {
                ""
            };
            Some(format!("{address} on {device}{taken}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tentative_usable_and_duplicate_addresses_are_distinguished() {
        let text = "\
20010db8000100000000000000000010 02 40 00 c0     eth0
fe800000000000000000000000000001 02 40 20 80     eth0
20010db8000100000000000000000011 03 40 00 c8     eth1
00000000000000000000000000000001 01 80 10 80       lo
";
        let found = parse_tentative(text);
        assert_eq!(found.len(), 2);
        assert!(found[0].ends_with("10 on eth0"));
        assert!(found[1].contains("taken"));
    }
}
