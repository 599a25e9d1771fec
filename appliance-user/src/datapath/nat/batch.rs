//! Reads whole hash maps, and deletes entries, in batches: a system call for each entry would take
//! seconds for a million.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use aya::{
    Pod,
    maps::{MapData, MapError},
};

/// Entries per batch at first. It doubles when the kernel reports that a bucket holds more.
const INITIAL_BATCH: usize = 4096;
/// Maximum entries per batch.
const MAX_BATCH: usize = 1 << 20;

/// `bpf_cmd` and `union bpf_attr` of include/uapi/linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// `BPF_NOEXIST`: create only.
const NOEXIST: u64 = 1;

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
struct Element {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is the part of `union bpf_attr` that the command reads and writes. The
    // addresses in it are those of buffers that the callers keep alive and that have the sizes
    // given in it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A pinned map, read and written without a copy of its contents.
#[derive(Debug)]
pub struct PinnedMap<K, V> {
    map: MapData,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> PinnedMap<K, V> {
    /// Opens the map `name` that the datapath pinned below `root`.
    ///
    /// # Errors
    /// When it does not exist, or its keys or values have other sizes.
    pub fn open(root: &Path, name: &str) -> Result<Self, MapError> {
        let map = MapData::from_pin(root.join("maps").join(name))?;
        let info = map.info()?;
        if info.key_size() as usize != size_of::<K>() {
            return Err(MapError::InvalidKeySize {
                size: size_of::<K>(),
                expected: info.key_size() as usize,
            });
        }
        if info.value_size() as usize != size_of::<V>() {
            return Err(MapError::InvalidValueSize {
                size: size_of::<V>(),
                expected: info.value_size() as usize,
            });
        }
        Ok(Self {
            map,
            types: PhantomData,
        })
    }

    fn fd(&self) -> u32 {
        self.map.fd().as_fd().as_raw_fd() as u32
    }

    /// Calls `visit` for every entry, in no order. Entries that are created or deleted meanwhile
    /// may be included or not.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
        let mut room = INITIAL_BATCH;
        let (mut keys, mut values) = (zeroed::<K>(room), zeroed::<V>(room));
        let (mut at, mut next) = (0u32, 0u32);
        let mut first = true;
        loop {
            let mut batch = Batch {
                in_batch: if first { 0 } else { &raw const at as u64 },
                out_batch: &raw mut next as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: room as u32,
                map_fd: self.fd(),
                elem_flags: 0,
                flags: 0,
            };
            let done = match bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) {
                Ok(()) => false,
                // The last batch.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < MAX_BATCH => {
                    room *= 2;
                    keys = zeroed(room);
                    values = zeroed(room);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = (batch.count as usize).min(room);
            for (key, value) in keys[..count].iter().zip(&values[..count]) {
                visit(key, value);
            }
            if done {
                return Ok(());
            }
            first = false;
            at = next;
        }
    }

    /// Reads an entry; `None` if it does not exist.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = zeroed::<V>(1);
        let mut element = Element {
            map_fd: self.fd(),
            reserved: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut element) {
            Ok(()) => Ok(value.pop()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.update(key, value, 0)
    }

    /// Writes an entry if there is none of that key. Returns whether it did.
    ///
    /// # Errors
    /// When the system call fails, with `E2BIG` if the map is full.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<bool> {
        match self.update(key, value, NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn update(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let mut element = Element {
            map_fd: self.fd(),
            reserved: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags,
        };
        bpf(BPF_MAP_UPDATE_ELEM, &mut element)
    }

    /// Entries that the map has room for.
    ///
    /// # Errors
    /// When the kernel does not report them.
    pub fn capacity(&self) -> Result<u32, MapError> {
        Ok(self.map.info()?.max_entries())
    }

    /// Deletes entries, with one system call as long as all of them exist. Returns how many
    /// existed.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn remove_all(&self, keys: &[K]) -> io::Result<usize> {
        let (mut at, mut removed) = (0, 0);
        while at < keys.len() {
            let mut batch = Batch {
                in_batch: 0,
                out_batch: 0,
                keys: keys[at..].as_ptr() as u64,
                values: 0,
                count: (keys.len() - at) as u32,
                map_fd: self.fd(),
                elem_flags: 0,
                flags: 0,
            };
            let result = bpf(BPF_MAP_DELETE_BATCH, &mut batch);
            // The number of deleted entries, also if the next one does not exist.
            let count = batch.count as usize;
            removed += count;
            at += count;
            match result {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => at += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Deletes an entry. Returns whether it existed.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        let mut element = Element {
            map_fd: self.fd(),
            reserved: 0,
            key: std::ptr::from_ref(key) as u64,
            value: 0,
            flags: 0,
        };
        match bpf(BPF_MAP_DELETE_ELEM, &mut element) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn zeroed<T: Pod>(count: usize) -> Vec<T> {
    // SAFETY: every bit pattern is a valid value of a `Pod` type, including zero.
    let zero = unsafe { std::mem::zeroed::<T>() };
    vec![zero; count]
}
