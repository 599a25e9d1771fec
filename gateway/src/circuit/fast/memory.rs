//! Maps as memory that user space reads and writes without system calls. The unsafe code of the
//! fast path is here, except queries of the kernel in `links`.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use aya::maps::MapData;

/// A memory-mapped array map of `T`.
#[derive(Debug)]
pub struct Memory<T> {
    at: NonNull<u8>,
    bytes: usize,
    count: u32,
    kind: PhantomData<T>,
}

// SAFETY: all accesses are atomic.
unsafe impl<T: Send> Send for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Memory<T> {}

impl<T: aya::Pod> Memory<T> {
    /// Maps an array of `count` values that was created with BPF_F_MMAPABLE (Linux 5.5).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn map(map: &MapData, count: u32) -> io::Result<Self> {
        // The stride of values is a multiple of eight bytes (kernel/bpf/arraymap.c,
        // array_map_alloc).
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let bytes = count as usize * size_of::<T>();
        // SAFETY: the kernel chooses the address; no mapping is replaced.
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
        assert!(place < self.count, "an index of the map");
        // SAFETY: the index is within the mapping.
        unsafe { self.at.cast::<T>().as_ptr().add(place as usize) }
    }

    /// Writes a value at an index that no program uses yet. Later writes become visible after this
    /// one.
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
        // SAFETY: within the mapping and aligned, as asserted; the mapping lives as long as `self`,
        // and all accesses are atomic.
        unsafe { AtomicU64::from_ptr(self.place(place).byte_add(offset).cast()) }
    }
}

/// A value as words, and the bytes after the last word.
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
        // SAFETY: `map` made this mapping, and no borrow of it is left.
        unsafe {
            libc::munmap(self.at.as_ptr().cast(), self.bytes);
        }
    }
}
