//! Lets XDP programs ask the kernel which way a packet goes out.
//!
//! They ask as if from the loopback device (`bpf_fib_lookup`), and the kernel answers only for a device on which forwarding is on.
//! Nothing comes in by loopback that is not the kernel's own, so with this alone it forwards nothing of anybody's; on all other
//! devices, forwarding stays as it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel has its settings of the network.
pub const ROOT: &str = "/proc/sys/net";
/// The two of them below it, for IPv4 and for IPv6.
pub const FILES: [&str; 2] = ["ipv4/conf/lo/forwarding", "ipv6/conf/lo/forwarding"];

/// It could not be allowed.
#[derive(Debug, thiserror::Error)]
#[error(
    "write 1 to {}: {source}; do it by hand (`echo 1 > {}`), or make /proc/sys writable for the {daemon}",
    path.display(), path.display()
)]
pub struct Error {
    daemon: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Switches forwarding on for the loopback device, where it is not on already. `root` is [`ROOT`] but in tests, `daemon` is for
/// the message.
///
/// # Errors
/// [`Error`]. A family that the kernel has not is left out.
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

    /// Where the two would be; nothing is there yet.
    fn files() -> (tempfile::TempDir, [PathBuf; 2]) {
        let root = tempfile::tempdir().expect("a directory");
        let files = FILES.map(|file| root.path().join(file));
        for file in &files {
            fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        }
        (root, files)
    }

    #[test]
    fn it_is_switched_on_where_it_is_off() {
        let (root, [v4, v6]) = files();
        fs::write(&v4, "0\n").expect("written");
        allow(root.path(), "lamp").expect("allowed");
        assert_eq!(fs::read_to_string(&v4).expect("read"), "1");
        // A family that is not there is none.
        assert!(!v6.exists());
    }

    #[test]
    fn what_stands_in_the_way_is_named_with_what_to_do() {
        let (root, [_, v6]) = files();
        // Not to be written, whoever asks: a directory is in its place.
        fs::create_dir(&v6).expect("made");
        let said = allow(root.path(), "lamp")
            .expect_err("in the way")
            .to_string();
        assert!(
            said.starts_with(&format!("write 1 to {}: ", v6.display())),
            "{said}"
        );
        let by_hand = format!(
            "do it by hand (`echo 1 > {}`), or make /proc/sys writable for the lamp",
            v6.display()
        );
        assert!(said.ends_with(&by_hand), "{said}");
    }
}
