//! Whether what leaves in full failover can be sent: the programs ask the kernel which way a packet goes out of the uplink
//! (appliance-ebpf `nat/outside.rs`), which it has to be let (`service::forwarding`).

use std::path::Path;

use service::forwarding::{self, ROOT};

/// It could not be allowed.
#[derive(Debug, thiserror::Error)]
#[error("nothing can be sent out of the uplink: {0}")]
pub struct Error(forwarding::Error);

/// Lets the programs ask.
///
/// # Errors
/// [`Error`].
pub fn enable() -> Result<(), Error> {
    enable_below(Path::new(ROOT))
}

/// Whether what leaves in full failover can be sent, as it was when last seen to: somebody may switch off what it
/// takes.
#[derive(Debug, Default)]
pub struct ForwardingCheck {
    problem: Option<String>,
}

impl ForwardingCheck {
    /// Sees to it where it is `wanted`. Returns whether there is a problem that was not there before, or none any
    /// more.
    pub fn update(&mut self, wanted: bool) -> bool {
        self.update_below(Path::new(ROOT), wanted)
    }

    /// What stands in the way, and what to do.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn update_below(&mut self, root: &Path, wanted: bool) -> bool {
        let allowed = if wanted { enable_below(root) } else { Ok(()) };
        let problem = allowed.err().map(|e| format!("full failover: {e}"));
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

    /// Where the two would be; nothing is there yet.
    fn files() -> (tempfile::TempDir, [PathBuf; 2]) {
        let root = tempfile::tempdir().expect("a directory");
        let files = forwarding::FILES.map(|file| root.path().join(file));
        for file in &files {
            fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        }
        (root, files)
    }

    #[test]
    fn what_stands_in_the_way_is_a_problem_until_it_is_gone() {
        let (root, [v4, v6]) = files();
        let mut sending = ForwardingCheck::default();
        assert!(!sending.update_below(root.path(), true));
        // Not to be written, whoever asks: a directory is in its place.
        fs::create_dir(&v6).expect("made");
        fs::write(&v4, "0\n").expect("written");
        assert!(!sending.update_below(root.path(), false));
        assert_eq!(
            fs::read_to_string(&v4).expect("read"),
            "0\n",
            "nobody asked"
        );
        assert!(sending.update_below(root.path(), true));
        assert!(!sending.update_below(root.path(), true), "as before");
        let said = sending.problem().expect("a problem");
        let named = format!(
            "full failover: nothing can be sent out of the uplink: write 1 to {}: ",
            v6.display()
        );
        assert!(said.starts_with(&named), "{said}");
        let by_hand = format!("`echo 1 > {}`", v6.display());
        assert!(said.contains(&by_hand), "{said}");
        fs::remove_dir(&v6).expect("removed");
        assert!(sending.update_below(root.path(), true));
        assert_eq!(sending.problem(), None);
    }
}
