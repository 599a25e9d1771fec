//! Lets the program ask the kernel which way a packet goes out.
//!
//! It asks as if from the loopback device (`bpf_fib_lookup`, gateway-ebpf `way.rs`), and the kernel answers only for a device on which
//! forwarding is on. Nothing comes in by loopback that is not the kernel's own, so with this alone it forwards nothing of anybody's; on
//! all other devices, forwarding stays as it is.

use std::{fs, io};

const FILES: [&str; 2] = [
    "/proc/sys/net/ipv4/conf/lo/forwarding",
    "/proc/sys/net/ipv6/conf/lo/forwarding",
];

/// It could not be allowed.
#[derive(Debug, thiserror::Error)]
#[error(
    "write 1 to {path}: {source}; do it by hand (`echo 1 > {path}`), or make /proc/sys writable for the gateway"
)]
pub struct Error {
    path: &'static str,
    source: io::Error,
}

/// Switches forwarding on for the loopback device, where it is not on already.
///
/// # Errors
/// [`Error`]. A family that the kernel has not is left out.
pub(super) fn allow() -> Result<(), Error> {
    for path in FILES {
        match fs::read_to_string(path) {
            Ok(text) if text.trim() == "1" => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(_) | Err(_) => {}
        }
        fs::write(path, "1").map_err(|source| Error { path, source })?;
    }
    Ok(())
}
