//! Lets the programs ask the kernel which way a packet goes out of the uplink.
//!
//! They ask as if from the loopback device (`bpf_fib_lookup`, appliance-ebpf `nat/outside.rs`), and the kernel
//! answers only for a device on which forwarding is on. Nothing comes in by loopback that is not the kernel's own, so
//! with this alone it forwards nothing of anybody's; on the uplink, forwarding stays as it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const ROOT: &str = "/proc/sys/net";
const FILES: [&str; 2] = ["ipv4/conf/lo/forwarding", "ipv6/conf/lo/forwarding"];

/// It could not be allowed.
#[derive(Debug, thiserror::Error)]
#[error(
    "nothing can be sent out of the uplink: write 1 to {}: {source}; do it by hand (`echo 1 > {}`), or make /proc/sys \
     writable for the appliance",
    path.display(), path.display()
)]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Switches forwarding on for the loopback device, where it is not on already.
///
/// # Errors
/// [`Error`]. A family that the kernel has not is left out.
pub fn allow() -> Result<(), Error> {
    allow_below(Path::new(ROOT))
}

fn allow_below(root: &Path) -> Result<(), Error> {
    for path in FILES.map(|file| root.join(file)) {
        match fs::read_to_string(&path) {
            Ok(text) if text.trim() == "1" => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(_) | Err(_) => {}
        }
        fs::write(&path, "1").map_err(|source| Error { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_switched_on_where_it_is_off_and_what_cannot_be_is_named() {
        let root = tempfile::tempdir().expect("a directory");
        let [v4, v6] = FILES.map(|file| root.path().join(file));
        for file in [&v4, &v6] {
            fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        }
        // A family that is not there is none.
        fs::write(&v4, "0\n").expect("written");
        allow_below(root.path()).expect("allowed");
        assert_eq!(fs::read_to_string(&v4).expect("read"), "1");
        assert!(!v6.exists());
        // Not to be written: a directory is in its place.
        fs::create_dir(&v6).expect("made");
        let said = allow_below(root.path()).expect_err("no file").to_string();
        let named = format!(
            "nothing can be sent out of the uplink: write 1 to {}: ",
            v6.display()
        );
        assert!(said.starts_with(&named), "{said}");
        assert!(
            said.contains(&format!("`echo 1 > {}`", v6.display())),
            "{said}"
        );
    }
}
