//! Enables route lookups of XDP programs.
//!
//! Programs look routes up with the loopback device as input (`bpf_fib_lookup`), and the kernel
//! answers only for a device with forwarding enabled. Packets come in on the loopback from this
//! machine only, so the setting forwards no packet of another machine. Other devices keep their
//! setting.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The network settings of the kernel.
pub const ROOT: &str = "/proc/sys/net";
/// The settings below [`ROOT`], for IPv4 and IPv6.
pub const FILES: [&str; 2] = ["ipv4/conf/lo/forwarding", "ipv6/conf/lo/forwarding"];

/// The setting cannot be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "write 1 to {}: {source}; do it by hand (`echo 1 > {}`), or make /proc/sys writable for the \
     {daemon}",
    path.display(), path.display()
)]
pub struct Error {
    daemon: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Enables forwarding on the loopback device, unless it is enabled already. `root` is [`ROOT`]
/// except in tests; `daemon` is for the message. A family that the kernel does not have is skipped.
///
/// # Errors
/// [`Error`].
pub fn allow(root: &Path, daemon: &'static str) -> Result<(), Error> {
    for path in FILES.map(|file| root.join(file)) {
        match fs::read_to_string(&path) {
            Ok(text) if text.trim() == "1" => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(_) | Err(_) => {}
        }
        fs::write(&path, "1").map_err(|source| Error {
            daemon,
            path,
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory, and the paths of the settings in it, without files.
    fn files() -> (tempfile::TempDir, [PathBuf; 2]) {
        let root = tempfile::tempdir().expect("a directory");
        let files = FILES.map(|file| root.path().join(file));
        for file in &files {
            fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        }
        (root, files)
    }

    #[test]
    fn forwarding_is_enabled_where_it_is_disabled() {
        let (root, [v4, v6]) = files();
        fs::write(&v4, "0\n").expect("written");
        allow(root.path(), "lamp").expect("allowed");
        assert_eq!(fs::read_to_string(&v4).expect("read"), "1");
        // A missing family is skipped.
        assert!(!v6.exists());
    }

    #[test]
    fn the_error_names_the_file_and_the_remedy() {
        let (root, [_, v6]) = files();
        // A directory cannot be written, not even by root.
        fs::create_dir(&v6).expect("made");
        let error = allow(root.path(), "lamp")
            .expect_err("a directory")
            .to_string();
        assert!(
            error.starts_with(&format!("write 1 to {}: ", v6.display())),
            "{error}"
        );
        let by_hand = format!(
            "do it by hand (`echo 1 > {}`), or make /proc/sys writable for the lamp",
            v6.display()
        );
        assert!(error.ends_with(&by_hand), "{error}");
    }
}
