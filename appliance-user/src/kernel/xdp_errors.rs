//! Counts of frames that the kernel dropped after an XDP program had returned: refused redirects,
//! full transmit rings, failed XDP_TX.
//!
//! The kernel reports these by tracepoints only (include/trace/events/xdp.h). perf events count
//! them, without a program of ours on the path.

use std::{
    fs, io,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

/// Places where tracefs is mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// `_IOW('$', 6, char *)`.
const PERF_EVENT_IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;
/// `_IO('$', 0)`.
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;

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
    programs: Vec<u32>,
}

impl XdpErrors {
    /// Opens the counters. They count nothing until [`watch`](Self::watch) names programs.
    ///
    /// # Errors
    /// If tracefs is not mounted, or the process may not count events of the whole machine
    /// (CAP_PERFMON).
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            redirects: Counter::open("xdp_redirect_err")?,
            exceptions: Counter::open("xdp_exception")?,
            batches: Counter::open("xdp_devmap_xmit")?,
            programs: Vec::new(),
        })
    }

    /// Counts drops of the programs with these ids, and of batches between these interfaces.
    ///
    /// # Errors
    /// If the kernel refuses a filter.
    pub fn watch(&mut self, programs: &[u32], interfaces: &[u32]) -> io::Result<()> {
        if programs.is_empty() || self.programs == programs {
            return Ok(());
        }
        let of_programs = any_of("prog_id", programs);
        // A redirect to a socket has no interface: a full socket is counted by the workers.
        self.redirects
            .enable(&format!("to_ifindex != 0 && ({of_programs})"))?;
        self.exceptions.enable(&of_programs)?;
        let of_interfaces = any_of("from_ifindex", interfaces);
        self.batches
            .enable(&format!("drops > 0 && ({of_interfaces})"))?;
        self.programs = programs.to_vec();
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
struct Counter(Vec<OwnedFd>);

impl Counter {
    fn open(event: &str) -> io::Result<Self> {
        let id = TRACEFS
            .iter()
            .find_map(|root| id_of(Path::new(root), event));
        let id = id.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no tracefs: mount it with `mount -t tracefs tracefs /sys/kernel/tracing`",
            )
        })?;
        let cpus = fs::read_to_string("/sys/devices/system/cpu/online")?;
        let open = |cpu| open_on(id, cpu);
        Ok(Self(
            cpus_in(&cpus).map(open).collect::<io::Result<Vec<_>>>()?,
        ))
    }

    fn enable(&self, filter: &str) -> io::Result<()> {
        let filter = std::ffi::CString::new(filter)?;
        for fd in &self.0 {
            // SAFETY: the string is terminated and outlives the call.
            let set = unsafe {
                libc::ioctl(
                    fd.as_raw_fd(),
                    PERF_EVENT_IOC_SET_FILTER as _,
                    filter.as_ptr(),
                )
            };
            // SAFETY: no pointer is passed.
            if set < 0 || unsafe { libc::ioctl(fd.as_raw_fd(), PERF_EVENT_IOC_ENABLE as _, 0) } < 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    fn read(&self) -> u64 {
        let one = |fd: &OwnedFd| {
            let mut value = [0u8; 8];
            nix::unistd::read(fd, &mut value).map_or(0, |_| u64::from_ne_bytes(value))
        };
        self.0.iter().map(one).sum()
    }
}

fn id_of(root: &Path, event: &str) -> Option<u64> {
    let path: PathBuf = root.join("events/xdp").join(event).join("id");
    fs::read_to_string(path).ok()?.trim().parse().ok()
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
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
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
