//! Counts of frames that the kernel dropped after an XDP program had returned: refused redirects,
//! full transmit rings, failed XDP_TX.
//!
//! The kernel reports these by tracepoints only (include/trace/events/xdp.h). perf events count
//! them, without a program of ours on the path. The numbers of the tracepoints are in tracefs,
//! which is mounted for this process alone where the machine has not mounted it.

use std::{
    fs, io,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
};

/// Places where tracefs is mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// `_IOW('$', 6, char *)`.
const PERF_EVENT_IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;
/// `_IO('$', 0)`.
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
/// `FSOPEN_CLOEXEC`, and `FSMOUNT_CLOEXEC`.
const MOUNT_CLOEXEC: libc::c_int = 1;
/// `FSCONFIG_CMD_CREATE`.
const FSCONFIG_CMD_CREATE: libc::c_int = 6;
/// `MOUNT_ATTR_RDONLY`, `_NOSUID`, `_NODEV`, `_NOEXEC`.
const MOUNT_ATTRIBUTES: libc::c_int = 0xf;

/// Why the frames cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// tracefs is not mounted, and the process may not mount it.
    #[error(
        "tracefs is not mounted, and the appliance cannot mount it ({0}); run `systemctl start \
         sys-kernel-tracing.mount`, or `mount -t tracefs tracefs /sys/kernel/tracing`"
    )]
    NoTracefs(io::Error),
    /// tracefs has no such tracepoint.
    #[error("the kernel does not report {event} in tracefs: {source}")]
    NoTracepoint {
        /// Its name, of the group `xdp`.
        event: &'static str,
        source: io::Error,
    },
    /// The kernel refuses to count a tracepoint.
    #[error("counting {event} by perf_event_open: {source}; the process needs CAP_PERFMON")]
    Count {
        event: &'static str,
        source: io::Error,
    },
    /// The kernel refuses a filter.
    #[error("filtering {event}: {source}")]
    Filter {
        event: &'static str,
        source: io::Error,
    },
}

/// Frames dropped after a program, since the counters were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Redirects to interfaces that the kernel refused.
    pub redirects: u64,
    /// Frames that a program aborted or that XDP_TX could not send.
    pub exceptions: u64,
    /// Batches of redirected frames of which the driver dropped some.
    pub batches: u64,
}

/// The counters, for the programs of this process.
#[derive(Debug)]
pub struct XdpErrors {
    redirects: Counter,
    exceptions: Counter,
    batches: Counter,
    /// Programs and interfaces of the filters.
    watched: Option<(Vec<u32>, Vec<u32>)>,
}

/// A mounted tracefs.
#[derive(Debug)]
enum Tracefs {
    /// At a path that others see, too.
    At(PathBuf),
    /// For this process alone: a mount without a path, which ends with the descriptor.
    Detached(OwnedFd),
}

impl Tracefs {
    fn find() -> Result<Self, Error> {
        let mounted = TRACEFS.iter().map(PathBuf::from);
        let mut mounted = mounted.filter(|root| root.join("events/xdp").exists());
        match mounted.next() {
            Some(root) => Ok(Self::At(root)),
            None => mount().map(Self::Detached).map_err(Error::NoTracefs),
        }
    }

    /// The number of a tracepoint of the group `xdp`.
    fn id_of(&self, event: &'static str) -> Result<u64, Error> {
        let root = match self {
            Self::At(root) => root.clone(),
            Self::Detached(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
        };
        let text = fs::read_to_string(root.join("events/xdp").join(event).join("id"));
        let id = text.and_then(|text| text.trim().parse().map_err(io::Error::other));
        id.map_err(|source| Error::NoTracepoint { event, source })
    }
}

/// Mounts tracefs without a path (fsopen(2), fsmount(2); Linux 5.2).
fn mount() -> io::Result<OwnedFd> {
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: the name is terminated and outlives the call.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), MOUNT_CLOEXEC) };
    let context = owned(context)?;
    let fd = context.as_raw_fd();
    // SAFETY: this command takes neither key nor value.
    let created =
        unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointer is passed.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, MOUNT_CLOEXEC, MOUNT_ATTRIBUTES) })
}

/// The descriptor that a system call has returned, or its error.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

impl XdpErrors {
    /// Opens the counters. They count nothing until [`watch`](Self::watch) names programs.
    ///
    /// # Errors
    /// If tracefs is neither mounted nor can be (`CAP_SYS_ADMIN`), or the process may not count
    /// events of the whole machine (`CAP_PERFMON`).
    pub fn open() -> Result<Self, Error> {
        let tracefs = Tracefs::find()?;
        let open = |event| Counter::open(&tracefs, event);
        Ok(Self {
            redirects: open("xdp_redirect_err")?,
            exceptions: open("xdp_exception")?,
            batches: open("xdp_devmap_xmit")?,
            watched: None,
        })
    }

    /// Counts drops of the programs with these ids, and of batches between these interfaces.
    ///
    /// # Errors
    /// If the kernel refuses a filter.
    pub fn watch(&mut self, programs: &[u32], interfaces: &[u32]) -> Result<(), Error> {
        let wanted = (programs.to_vec(), interfaces.to_vec());
        if programs.is_empty() || self.watched.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let of_programs = any_of("prog_id", programs);
        // A redirect to a socket has no interface: a full socket is counted by the workers.
        self.redirects
            .enable(&format!("to_ifindex != 0 && ({of_programs})"))?;
        self.exceptions.enable(&of_programs)?;
        if !interfaces.is_empty() {
            let of_interfaces = any_of("from_ifindex", interfaces);
            self.batches
                .enable(&format!("drops > 0 && ({of_interfaces})"))?;
        }
        self.watched = Some(wanted);
        Ok(())
    }

    /// Reads the counters; one that cannot be read counts as 0.
    #[must_use]
    pub fn read(&self) -> Dropped {
        Dropped {
            redirects: self.redirects.read(),
            exceptions: self.exceptions.read(),
            batches: self.batches.read(),
        }
    }
}

/// A filter expression.
fn any_of(field: &str, values: &[u32]) -> String {
    let terms: Vec<String> = values.iter().map(|v| format!("{field} == {v}")).collect();
    terms.join(" || ")
}

/// A tracepoint, counted on each CPU.
#[derive(Debug)]
struct Counter {
    event: &'static str,
    /// The tracepoint's number in tracefs.
    id: u64,
    /// One for each CPU.
    events: Vec<OwnedFd>,
    /// Counted by events that were replaced.
    before: u64,
}

impl Counter {
    fn open(tracefs: &Tracefs, event: &'static str) -> Result<Self, Error> {
        let id = tracefs.id_of(event)?;
        Ok(Self {
            event,
            id,
            events: open_all(event, id)?,
            before: 0,
        })
    }

    /// Counts what passes the filter from now on, and keeps what was counted.
    ///
    /// The kernel sets the filter of an event once (EEXIST afterwards), so the events are replaced.
    fn enable(&mut self, filter: &str) -> Result<(), Error> {
        let event = self.event;
        let events = open_all(event, self.id)?;
        set(&events, filter).map_err(|source| Error::Filter { event, source })?;
        self.before = self.read();
        self.events = events;
        Ok(())
    }

    fn read(&self) -> u64 {
        let one = |fd: &OwnedFd| {
            let mut value = [0u8; 8];
            nix::unistd::read(fd, &mut value).map_or(0, |_| u64::from_ne_bytes(value))
        };
        self.before + self.events.iter().map(one).sum::<u64>()
    }
}

/// Opens disabled counters of a tracepoint, one for each CPU.
fn open_all(event: &'static str, id: u64) -> Result<Vec<OwnedFd>, Error> {
    fs::read_to_string("/sys/devices/system/cpu/online")
        .and_then(|cpus| cpus_in(&cpus).map(|cpu| open_on(id, cpu)).collect())
        .map_err(|source| Error::Count { event, source })
}

/// Sets the filter of new events, and enables them.
fn set(events: &[OwnedFd], filter: &str) -> io::Result<()> {
    let filter = std::ffi::CString::new(filter)?;
    for fd in events {
        let fd = fd.as_raw_fd();
        // SAFETY: the string is terminated and outlives the call.
        let set = unsafe { libc::ioctl(fd, PERF_EVENT_IOC_SET_FILTER as _, filter.as_ptr()) };
        // SAFETY: no pointer is passed.
        if set < 0 || unsafe { libc::ioctl(fd, PERF_EVENT_IOC_ENABLE as _, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The CPUs of a list such as `0-3,8`.
fn cpus_in(list: &str) -> impl Iterator<Item = i32> + '_ {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: i32 = first.parse().unwrap_or(0);
        first..=last.parse().unwrap_or(first)
    };
    list.trim().split(',').flat_map(range)
}

/// Opens a disabled counter of a tracepoint on one CPU, for all processes.
fn open_on(id: u64, cpu: i32) -> io::Result<OwnedFd> {
    /// `struct perf_event_attr` up to version 0 (`PERF_ATTR_SIZE_VER0`).
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        period: u64,
        sample: u64,
        read: u64,
        flags: u64,
        wakeup: u32,
        breakpoint: u32,
        config1: u64,
    }
    /// The bit `disabled` of the flags.
    const DISABLED: u64 = 1;
    let attributes = Attributes {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<Attributes>() as u32,
        config: id,
        flags: DISABLED,
        ..Attributes::default()
    };
    // SAFETY: the structure has the size that it names and outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1,
            cpu,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    owned(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_and_filters_are_written_as_the_kernel_has_them() {
        assert_eq!(cpus_in("0-3,8\n").collect::<Vec<_>>(), [0, 1, 2, 3, 8]);
        assert_eq!(cpus_in("0").collect::<Vec<_>>(), [0]);
        assert_eq!(any_of("prog_id", &[7, 9]), "prog_id == 7 || prog_id == 9");
    }
}
