//! Modes of XDP, XDP features of drivers, and remedies where a kernel or driver refuses a program.

mod features;
mod mode;

use std::{error::Error, io};

use nix::libc;

pub use features::accepts_redirects;
pub use mode::{AttachMode, Setting};

/// The remedy for a program that cannot be attached. `no_native` is the remedy where the driver
/// has no native XDP.
#[must_use]
pub fn remedy(error: &(dyn Error + 'static), no_native: &'static str) -> &'static str {
    match os_code(error) {
        Some(libc::EOPNOTSUPP) => no_native,
        Some(libc::EBUSY | libc::EEXIST) => {
            "Another program is attached; find it with `ip link show` and detach it."
        }
        Some(libc::ERANGE | libc::EINVAL) => {
            "The driver refused, most often because of the MTU (native XDP accepts about 3500 at \
             most) or of too few spare queues; the kernel log names the reason."
        }
        Some(libc::EPERM | libc::EACCES) => "Run as root, or with CAP_NET_ADMIN and CAP_BPF.",
        _ => "The kernel log may name the cause (`dmesg`).",
    }
}

/// The error number of the last cause in a chain of errors.
#[must_use]
pub fn os_code(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut error = Some(error);
    while let Some(e) = error {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        error = e.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("attach")]
    struct Attach {
        source: io::Error,
    }

    #[test]
    fn the_error_number_selects_the_remedy() {
        for (code, text) in [
            (libc::EOPNOTSUPP, "another NIC"),
            (libc::EBUSY, "Another program"),
            (libc::EEXIST, "Another program"),
            (libc::EINVAL, "MTU"),
            (libc::EPERM, "root"),
            (libc::EIO, "dmesg"),
        ] {
            let error = Attach {
                source: io::Error::from_raw_os_error(code),
            };
            assert_eq!(os_code(&error), Some(code));
            let remedy = remedy(&error, "another NIC");
            assert!(remedy.contains(text), "{remedy}");
        }
        assert_eq!(os_code(&io::Error::other("no number")), None);
    }
}
