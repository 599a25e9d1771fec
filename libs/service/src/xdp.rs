//! Why a kernel or driver does not take an XDP program, for the operator.

use std::{error::Error, io};

use nix::libc;

/// What to do when a program could not be attached. `no_native`: where the driver cannot.
#[must_use]
pub fn remedy(error: &(dyn Error + 'static), no_native: &'static str) -> &'static str {
    match os_code(error) {
        Some(libc::EOPNOTSUPP) => no_native,
        Some(libc::EBUSY) => {
            "Another program is attached; find it with `ip link show` and take it off."
        }
        Some(libc::ERANGE | libc::EINVAL) => {
            "The driver refused, most often for the MTU (native XDP takes about 3500 at most) or too few spare queues; the kernel log names it."
        }
        Some(libc::EPERM | libc::EACCES) => "Run as root, or with CAP_NET_ADMIN and CAP_BPF.",
        _ => "The kernel log may name the cause (`dmesg`).",
    }
}

/// The error number at the bottom of an error.
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
    fn the_number_at_the_bottom_says_what_to_do() {
        for (code, says) in [
            (libc::EOPNOTSUPP, "another NIC"),
            (libc::EBUSY, "Another program"),
            (libc::EINVAL, "MTU"),
            (libc::EPERM, "root"),
            (libc::EIO, "dmesg"),
        ] {
            let error = Attach {
                source: io::Error::from_raw_os_error(code),
            };
            assert_eq!(os_code(&error), Some(code));
            let remedy = remedy(&error, "another NIC");
            assert!(remedy.contains(says), "{remedy}");
        }
        assert_eq!(os_code(&io::Error::other("no number")), None);
    }
}
