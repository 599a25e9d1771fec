//! The error of this crate: which operation failed, why, and what to do.

use std::io;

/// A socket was not bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of [`Config`](crate::Config) is invalid.
    #[error("{field} = {value}: {reason}")]
    Config {
        /// The field of [`Config`](crate::Config).
        field: &'static str,
        value: u32,
        /// The requirement.
        reason: &'static str,
    },
    /// The process lacks a privilege (EPERM).
    #[error(
        "{operation}: not permitted: run as root or with CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF \
         (and raise RLIMIT_MEMLOCK on old kernels)"
    )]
    Privilege {
        /// The operation that failed.
        operation: &'static str,
    },
    /// The kernel lacks AF_XDP.
    #[error("{operation}: this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)")]
    NoAfXdp {
        /// The operation that failed.
        operation: &'static str,
    },
    /// There is not enough memory for frames or rings, or the process may not lock so much.
    #[error(
        "{operation}: not enough memory for {bytes} bytes of frames ({source}): use fewer frames, \
         or raise RLIMIT_MEMLOCK, or run with CAP_IPC_LOCK"
    )]
    Memory {
        /// The operation that failed.
        operation: &'static str,
        /// Size of the UMEM, bytes.
        bytes: usize,
        /// The kernel's error.
        source: io::Error,
    },
    /// The driver does not support zero-copy, which was asked for.
    #[error(
        "the driver of interface {ifindex} cannot do AF_XDP zero-copy ({reason}): \
         write memory = \"copy\""
    )]
    ZeroCopy {
        /// The interface.
        ifindex: u32,
        /// How this was found out.
        reason: String,
    },
    /// Another socket is bound to the queue. The kernel releases the queue of a closed socket with
    /// a delay, so that a bind right after closing may fail with this too;
    /// [`bind_within`](crate::bind_within) waits for it.
    #[error(
        "another AF_XDP socket is bound to this interface and queue \
         (interface {ifindex}, queue {queue})"
    )]
    Busy {
        /// The interface.
        ifindex: u32,
        queue: u32,
    },
    /// The network namespace of the calling thread has no interface of that index.
    #[error("there is no interface {ifindex} in this network namespace")]
    NoInterface {
        /// The interface.
        ifindex: u32,
    },
    /// The interface has no queue of that number.
    #[error("interface {ifindex} has no queue {queue}: `ethtool -l` says how many it has")]
    NoQueue {
        /// The interface.
        ifindex: u32,
        queue: u32,
    },
    /// This crate does not know the kernel's layout of a ring.
    #[error("{operation}: the kernel returned an unexpected answer (Linux 5.4 or newer is needed)")]
    Kernel {
        /// The operation that failed.
        operation: &'static str,
    },
    /// Another system call failed.
    #[error("{operation}: {source}")]
    Os {
        /// The operation that failed.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

impl Error {
    /// Diagnoses a failed call that does not concern a queue.
    pub(crate) fn os(operation: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege { operation },
            Some(libc::EAFNOSUPPORT) => Self::NoAfXdp { operation },
            _ => Self::Os { operation, source },
        }
    }

    /// Diagnoses a failed call that needs memory for `bytes` of frames.
    pub(crate) fn memory(operation: &'static str, bytes: usize, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN) => Self::Memory {
                operation,
                bytes,
                source,
            },
            _ => Self::os(operation, source),
        }
    }
}
