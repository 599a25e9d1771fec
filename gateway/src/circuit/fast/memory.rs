//! Maps as memory: what the program reads and user space writes without a call. The unsafe code of the fast path is
//! here, but for questions to the kernel in `links` and `features`.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use aya::maps::MapData;

/// An array map of `T`, mapped.
#[derive(Debug)]
pub struct Memory<T> {
    at: NonNull<u8>,
    bytes: usize,
    count: u32,
    kind: PhantomData<T>,
}

// SAFETY: it is memory of its own that is written by atomic stores, or by who has taken a place for himself.
unsafe impl<T: Send> Send for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Memory<T> {}

impl<T: aya::Pod> Memory<T> {
    /// Maps all of an array of so many values that was made for it (BPF_F_MMAPABLE, Linux 5.5).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn map(map: &MapData, count: u32) -> io::Result<Self> {
        // Values are a multiple of eight bytes apart (kernel/bpf/arraymap.c, array_map_alloc).
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let bytes = count as usize * size_of::<T>();
        // SAFETY: the kernel chooses where; nothing is replaced.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            at,
            bytes,
            count,
            kind: PhantomData,
        })
    }

    fn place(&self, place: u32) -> *mut T {
        assert!(place < self.count, "a place in the map");
        // SAFETY: it is within the mapping.
        unsafe { self.at.cast::<T>().as_ptr().add(place as usize) }
    }

    /// Writes a value where nobody reads: a place that was just taken, and that nothing leads to. Before anything that is done after.
    pub fn write(&self, place: u32, value: &T) {
        let (words, rest) = as_words(value);
        assert!(rest.is_empty());
        for (n, word) in words.iter().enumerate() {
            self.word(place, n * 8).store(*word, Ordering::Relaxed);
        }
        fence(Ordering::Release);
    }

    /// The eight bytes at `offset` of a value.
    pub fn word(&self, place: u32, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<T>());
        // SAFETY: within the mapping and aligned, as asserted; it is there as long as `self`, and is accessed atomically only.
        unsafe { AtomicU64::from_ptr(self.place(place).byte_add(offset).cast()) }
    }
}

/// A value's words, and what is left.
fn as_words<T: aya::Pod>(value: &T) -> (&[u64], &[u8]) {
    assert!(align_of::<T>() >= align_of::<u64>());
    // SAFETY: a `Pod` has neither padding nor invalid bits, and is aligned, as asserted.
    let (before, words, rest) = unsafe {
        std::slice::from_raw_parts((&raw const *value).cast::<u8>(), size_of::<T>())
            .align_to::<u64>()
    };
    assert!(before.is_empty());
    (words, rest)
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and nothing of it is borrowed.
        unsafe {
            libc::munmap(self.at.as_ptr().cast(), self.bytes);
        }
    }
}
