//! Enables the route lookup that the XDP programs need in full failover.
//!
//! The programs ask the kernel for the route and next hop of packets that leave through the uplink
//! (`appliance-ebpf/src/helper/nat/egress.rs`). The lookup fails while IP forwarding is off, so the
//! daemon enables the sysctls of [`service::forwarding`].

use std::path::Path;

use service::forwarding::{self, ROOT};

/// IP forwarding could not be enabled.
#[derive(Debug, thiserror::Error)]
#[error("cannot enable IP forwarding, which XDP needs to send out of the uplink: {0}")]
pub struct Error(forwarding::Error);

/// Enables IP forwarding for IPv4 and IPv6.
///
/// # Errors
/// When a sysctl cannot be written.
pub fn enable() -> Result<(), Error> {
    enable_below(Path::new(ROOT))
}

/// The result of the last attempt to enable IP forwarding. The daemon repeats it, because an
/// administrator or another program may switch forwarding off.
#[derive(Debug, Default)]
pub struct ForwardingCheck {
    problem: Option<String>,
}

impl ForwardingCheck {
    /// Enables forwarding if it is `needed`. Returns whether the problem changed.
    pub fn update(&mut self, needed: bool) -> bool {
        self.update_below(Path::new(ROOT), needed)
    }

    /// Why forwarding is not enabled, and what to do about it.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn update_below(&mut self, root: &Path, needed: bool) -> bool {
        let enabled = if needed { enable_below(root) } else { Ok(()) };
        let problem = enabled.err().map(|e| format!("full failover: {e}"));
        let before = std::mem::replace(&mut self.problem, problem);
        before != self.problem
    }
}

fn enable_below(root: &Path) -> Result<(), Error> {
    forwarding::allow(root, "appliance").map_err(Error)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    /// A root directory, and the paths of the two sysctls in it, which do not exist yet.
    fn files() -> (tempfile::TempDir, [PathBuf; 2]) {
        let root = tempfile::tempdir().expect("a directory");
        let files = forwarding::FILES.map(|file| root.path().join(file));
        for file in &files {
            fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        }
        (root, files)
    }

    #[test]
    fn a_problem_is_reported_until_it_is_resolved() {
        let (root, [v4, v6]) = files();
        let mut check = ForwardingCheck::default();
        assert!(!check.update_below(root.path(), true));
        // Even root cannot write it: a directory is in its place.
        fs::create_dir(&v6).expect("made");
        fs::write(&v4, "0\n").expect("written");
        assert!(!check.update_below(root.path(), false));
        assert_eq!(fs::read_to_string(&v4).expect("read"), "0\n", "not needed");
        assert!(check.update_below(root.path(), true));
        assert!(!check.update_below(root.path(), true), "unchanged");
        let problem = check.problem().expect("a problem");
        let named = format!(
            "full failover: cannot enable IP forwarding, which XDP needs to send out of the \
             uplink: write 1 to {}: ",
            v6.display()
        );
        assert!(problem.starts_with(&named), "{problem}");
        let by_hand = format!("`echo 1 > {}`", v6.display());
        assert!(problem.contains(&by_hand), "{problem}");
        fs::remove_dir(&v6).expect("removed");
        assert!(check.update_below(root.path(), true));
        assert_eq!(check.problem(), None);
    }
}
