//! The one error type: which operation failed, and what to do about it.

use std::io;

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A [`Config`](crate::Config) that no socket can have.
    #[error("{field} = {value}: {reason}")]
    Config {
        /// The field of [`Config`](crate::Config).
        field: &'static str,
        /// Its value.
        value: u32,
        /// What it must be.
        reason: &'static str,
    },
    /// EPERM.
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
    /// There is no memory for frames or rings, or not so much of it may be locked.
    #[error(
        "{operation}: not enough memory for {bytes} bytes of frames ({source}): use fewer frames, \
         or raise RLIMIT_MEMLOCK, or run with CAP_IPC_LOCK"
    )]
    Memory {
        /// The operation that failed.
        operation: &'static str,
        /// Size of the UMEM, bytes.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// Zero-copy was asked for and cannot be had.
    #[error(
        "the driver of interface {ifindex} cannot do AF_XDP zero-copy ({reason}): \
         write memory = \"copy\""
    )]
    ZeroCopy {
        /// The interface.
        ifindex: u32,
        /// What told so.
        reason: String,
    },
    /// The queue is taken. The kernel lets go of a closed socket's queue a little later, so a
    /// bind right after closing may see this too: [`bind_within`](crate::bind_within) waits for it.
    #[error(
        "another AF_XDP socket is bound to this interface and queue \
         (interface {ifindex}, queue {queue})"
    )]
    Busy {
        /// The interface.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// No interface of that index in the network namespace of the calling thread.
    #[error("there is no interface {ifindex} in this network namespace")]
    NoInterface {
        /// The interface.
        ifindex: u32,
    },
    /// The interface has fewer queues.
    #[error("interface {ifindex} has no queue {queue}: `ethtool -l` says how many it has")]
    NoQueue {
        /// The interface.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// The kernel described a ring in a way that this crate does not know.
    #[error("{operation}: the kernel's answer is not understood (Linux 5.4 or newer is needed)")]
    Kernel {
        /// The operation that failed.
        operation: &'static str,
    },
    /// Any other failed call.
    #[error("{operation}: {source}")]
    Os {
        /// The operation that failed.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// The diagnosis of a failed call that has nothing to do with a queue.
    pub(crate) fn os(operation: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege { operation },
            Some(libc::EAFNOSUPPORT) => Self::NoAfXdp { operation },
            _ => Self::Os { operation, source },
        }
    }

    /// The diagnosis of a failed call that takes memory for `bytes` of frames.
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
