//! System calls, and the memory mappings that they make.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicU32,
};

use crate::ring::Ring;

// The fill and completion rings are mapped at offsets beyond 4 GiB.
const _: () = assert!(
    size_of::<libc::off_t>() == 8,
    "AF_XDP needs a 64-bit target"
);

// Not in `libc` for Linux; `include/uapi/asm-generic/socket.h`.
const SO_BUSY_POLL: libc::c_int = 46;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// The resources of both halves. Fields are dropped in this order: the mapped rings keep the socket
/// open, so the frames, which it uses, must be dropped last.
pub(crate) struct Shared {
    pub(crate) fd: OwnedFd,
    /// Kept because the rings of the halves point into them.
    pub(crate) _rings: [MappedMemory; 4],
    /// Kept because the pools of the halves point into it.
    pub(crate) _umem: MappedMemory,
    pub(crate) ifindex: u32,
    pub(crate) queue: u32,
    pub(crate) zero_copy: bool,
}

/// Mapped memory, unmapped on drop.
pub(crate) struct MappedMemory {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: only an address to be unmapped; nothing reads or writes through it here.
unsafe impl Send for MappedMemory {}
// SAFETY: as above.
unsafe impl Sync for MappedMemory {}

impl MappedMemory {
    /// Maps `len` zero bytes for frames, populated at once, and not inherited by `fork`.
    pub(crate) fn frames(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let mapping = Self::new(len, flags, -1, 0)?;
        // SAFETY: the whole of a mapping of ours.
        let status =
            unsafe { libc::madvise(mapping.address.as_ptr().cast(), len, libc::MADV_DONTFORK) };
        check(status)?;
        Ok(mapping)
    }

    /// Maps `len` bytes of the ring of `fd` at `offset`.
    pub(crate) fn ring(fd: &OwnedFd, len: usize, offset: libc::off_t) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Self::new(len, flags, fd.as_raw_fd(), offset)
    }

    fn new(len: usize, flags: libc::c_int, fd: i32, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses a free address.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, len })
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// The ring in this mapping of the kernel, of `size` slots. `None` if it does not fit.
    ///
    /// # Safety
    /// Called once per mapping and end, and the mapping outlives the ring; `T` is what the kernel
    /// keeps in this ring, and valid for any bit pattern.
    pub(crate) unsafe fn as_ring<T: Copy>(
        &self,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> Option<Ring<T>> {
        let word = |offset: u64| {
            let offset = usize::try_from(offset).ok()?;
            let fits = offset.is_multiple_of(align_of::<AtomicU32>())
                && offset.checked_add(size_of::<AtomicU32>())? <= self.len;
            // SAFETY: within the mapping, as just checked.
            fits.then(|| unsafe { self.address.add(offset) }.cast::<AtomicU32>())
        };
        let slots = usize::try_from(offsets.desc).ok()?;
        if !slots.is_multiple_of(align_of::<T>())
            || ring_len::<T>(offsets, size).is_none_or(|end| end > self.len)
        {
            return None;
        }
        let (producer, consumer, flags) = (
            word(offsets.producer)?,
            word(offsets.consumer)?,
            word(offsets.flags)?,
        );
        // SAFETY: all parts are aligned and within the mapping, as just checked; the rest is this
        // function's own contract.
        Some(unsafe {
            let slots = self.address.add(slots).cast();
            Ring::new(producer, consumer, flags, slots, size)
        })
    }
}

impl Drop for MappedMemory {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours, which nothing points into any more (contracts of `as_ring`
        // and `Pool::new`). It cannot fail for a whole mapping.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}

/// Bytes to map for a ring of `size` slots.
pub(crate) fn ring_len<T>(offsets: &libc::xdp_ring_offset, size: u32) -> Option<usize> {
    let slots = (size as usize).checked_mul(size_of::<T>())?;
    usize::try_from(offsets.desc).ok()?.checked_add(slots)
}

/// Opens an AF_XDP socket, closed on exec.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: new, and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers `len` bytes from `frames` on as the UMEM of `fd`.
///
/// # Safety
/// They are mapped, and stay so and are touched only by a [`crate::pool::Pool`] while `fd` is open.
pub(crate) unsafe fn register_umem(
    fd: &OwnedFd,
    frames: NonNull<u8>,
    len: usize,
    frame_size: u32,
) -> io::Result<()> {
    let umem = libc::xdp_umem_reg {
        addr: frames.as_ptr() as u64,
        len: len as u64,
        chunk_size: frame_size,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, umem)
}

/// Makes one of the four rings (`XDP_RX_RING` and others).
pub(crate) fn make_ring(fd: &OwnedFd, which: libc::c_int, size: u32) -> io::Result<()> {
    set(fd, libc::SOL_XDP, which, size)
}

/// Turns busy polling on: at most `micros` microseconds per call and `budget` packets per poll.
pub(crate) fn busy_poll(fd: &OwnedFd, micros: u32, budget: u32) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1u32)?;
    set(fd, libc::SOL_SOCKET, SO_BUSY_POLL, micros)?;
    set(fd, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, budget)
}

/// Offsets of the parts of each ring. `None` for the layout before Linux 5.4.
pub(crate) fn ring_offsets(fd: &OwnedFd) -> io::Result<Option<libc::xdp_mmap_offsets>> {
    // SAFETY: plain integers.
    let (offsets, len) = unsafe { get::<libc::xdp_mmap_offsets>(fd, libc::XDP_MMAP_OFFSETS) }?;
    Ok((len == size_of_val(&offsets)).then_some(offsets))
}

/// The socket's counters. Counters that an old kernel lacks are 0.
pub(crate) fn statistics(fd: &OwnedFd) -> io::Result<libc::xdp_statistics> {
    // SAFETY: plain integers.
    Ok(unsafe { get(fd, libc::XDP_STATISTICS) }?.0)
}

/// Whether the bound socket is in zero-copy mode.
pub(crate) fn is_zero_copy(fd: &OwnedFd) -> io::Result<bool> {
    // SAFETY: plain integers.
    let (options, _) = unsafe { get::<libc::xdp_options>(fd, libc::XDP_OPTIONS) }?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// Binds with `flags` (`XDP_COPY` and so on).
pub(crate) fn bind(fd: &OwnedFd, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an address and its length.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })
}

/// Makes the kernel send what is in the TX ring.
pub(crate) fn kick_tx(fd: &OwnedFd) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: no memory is passed.
    let sent = unsafe { libc::sendto(fd.as_raw_fd(), ptr::null(), 0, flags, ptr::null(), 0) };
    check(sent as libc::c_int)
}

/// Makes the kernel look at the fill ring, and poll the queue if busy polling is on.
pub(crate) fn kick_rx(fd: &OwnedFd) -> io::Result<()> {
    let (flags, none) = (libc::MSG_DONTWAIT, ptr::null_mut());
    // SAFETY: no memory is passed.
    let received =
        unsafe { libc::recvfrom(fd.as_raw_fd(), none, 0, flags, ptr::null_mut(), none.cast()) };
    check(received as libc::c_int)
}

/// Whether an error of a kick only means "not all of it now".
pub(crate) fn is_later(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR)
    )
}

fn set<T: Copy>(fd: &OwnedFd, level: i32, option: i32, value: T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = (&raw const value).cast();
    // SAFETY: a value and its length.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value, len) })
}

/// A socket option of `SOL_XDP` and how many bytes of it the kernel wrote; the rest are 0.
///
/// # Safety
/// Any bit pattern is a `T`.
unsafe fn get<T: Copy>(fd: &OwnedFd, option: libc::c_int) -> io::Result<(T, usize)> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    let to = value.as_mut_ptr().cast();
    // SAFETY: room and its length.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, to, &mut len) })?;
    // SAFETY: zeroed, perhaps overwritten, and valid for any bit pattern.
    Ok((unsafe { value.assume_init() }, len as usize))
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
