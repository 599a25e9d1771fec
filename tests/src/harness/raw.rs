//! Maps as bytes, whatever their type, by the bpf system call.
//!
//! aya has typed maps only. A reset and a comparison of all maps need neither keys nor values
//! typed.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::maps::{Map, MapInfo, MapType};

use super::HarnessError;

// Commands of bpf(2), include/uapi/linux/bpf.h.
const LOOKUP_ELEM: libc::c_long = 1;
const UPDATE_ELEM: libc::c_long = 2;
const DELETE_ELEM: libc::c_long = 3;
const GET_NEXT_KEY: libc::c_long = 4;
const LOOKUP_BATCH: libc::c_long = 24;
const LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;

/// Entries for one batch command on a hash map: more than any bucket has.
const BATCH: usize = 8192;

/// Entries of a map: key to value. Elements of an array that are all zero are left out.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// A map of the loaded object.
#[derive(Debug)]
pub struct RawMap {
    name: String,
    fd: OwnedFd,
    id: u32,
    kind: MapType,
    /// Bytes of a key.
    key: usize,
    /// Bytes of a value as user space exchanges it: of a per-CPU map, one for each possible CPU.
    value: usize,
    /// Capacity.
    entries: usize,
}

/// `union bpf_attr` of the commands on one element.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    zero: u32,
    key: u64,
    /// Address of the value, or of the next key.
    value: u64,
    flags: u64,
}

/// `union bpf_attr` of the batch commands.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl RawMap {
    /// A second descriptor of `map`.
    pub(super) fn new(name: &str, map: &Map) -> Result<Self, HarnessError> {
        let error = |operation, source| HarnessError::Raw {
            name: name.to_owned(),
            operation,
            source,
        };
        let fd = descriptor(map)
            .ok_or_else(|| error("recognise the type", io::ErrorKind::Unsupported.into()))?
            .try_clone_to_owned()
            .map_err(|e| error("duplicate the descriptor", e))?;
        let info = aya::maps::MapData::from_fd(
            fd.try_clone()
                .map_err(|e| error("duplicate the descriptor", e))?,
        )
        .and_then(|data| data.info())
        .and_then(|info: MapInfo| Ok((info.map_type()?, info)))
        .map_err(|e| error("read the info", io::Error::other(e)))?;
        let (kind, info) = info;
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| error("count the CPUs", e))?;
        let value = info.value_size() as usize;
        Ok(Self {
            name: name.to_owned(),
            fd,
            id: info.id(),
            kind,
            key: info.key_size() as usize,
            value: match kind {
                MapType::PerCpuArray => value.next_multiple_of(8) * cpus,
                _ => value,
            },
            entries: info.max_entries() as usize,
        })
    }

    /// The name that the object gives it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's id of it.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Whether the kernel refuses changes: `.rodata`.
    fn is_frozen(&self) -> bool {
        self.name.starts_with('.')
    }

    /// The error of a failed operation on this map.
    pub(super) fn error(&self, operation: &'static str, source: io::Error) -> HarnessError {
        HarnessError::Raw {
            name: self.name.clone(),
            operation,
            source,
        }
    }

    /// All entries. Of a program array, which slots have a program; of rings and socket maps,
    /// nothing, because user space cannot look those up.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or a map has a type that this module does not know.
    pub fn read(&self) -> Result<Entries, HarnessError> {
        match self.kind {
            MapType::Array | MapType::PerCpuArray => self.read_array(),
            MapType::Hash | MapType::LruHash => self.batches(LOOKUP_BATCH, "look up a batch"),
            MapType::LpmTrie => {
                let mut all = Entries::new();
                let mut last: Option<Vec<u8>> = None;
                while let Some(key) = self.next_key(last.as_deref())? {
                    all.insert(key.clone(), self.lookup(&key)?.unwrap_or_default());
                    last = Some(key);
                }
                Ok(all)
            }
            MapType::ProgramArray => {
                let mut all = Entries::new();
                for slot in 0..self.entries as u32 {
                    let key = slot.to_ne_bytes();
                    if self.lookup(&key)?.is_some() {
                        all.insert(key.to_vec(), vec![]);
                    }
                }
                Ok(all)
            }
            MapType::RingBuf | MapType::PerfEventArray | MapType::XskMap => Ok(Entries::new()),
            _ => Err(self.error("read", io::ErrorKind::Unsupported.into())),
        }
    }

    /// Makes it as it is after a load: empty, or all zero. Program arrays and frozen maps are left
    /// alone: nothing changes them. A ring's consumer drains it.
    ///
    /// # Errors
    ///
    /// As [`RawMap::read`].
    pub fn clear(&self) -> Result<(), HarnessError> {
        if self.is_frozen() {
            return Ok(());
        }
        match self.kind {
            MapType::Array | MapType::PerCpuArray => {
                let zero = vec![0; self.value];
                for key in self.read_array()?.keys() {
                    self.update(key, &zero)?;
                }
            }
            MapType::Hash | MapType::LruHash => {
                self.batches(LOOKUP_AND_DELETE_BATCH, "delete a batch")?;
            }
            MapType::LpmTrie => {
                while let Some(key) = self.next_key(None)? {
                    self.delete(&key)?;
                }
            }
            MapType::XskMap => {
                for slot in 0..self.entries as u32 {
                    self.delete(&slot.to_ne_bytes())?;
                }
            }
            MapType::ProgramArray | MapType::RingBuf | MapType::PerfEventArray => {}
            _ => return Err(self.error("clear", io::ErrorKind::Unsupported.into())),
        }
        Ok(())
    }

    /// Writes entries that no test writes: the first, a middle and the last element of an array,
    /// some keys of another map. Returns whether it can hold such entries.
    ///
    /// # Errors
    ///
    /// As [`RawMap::read`].
    pub fn scribble(&self) -> Result<bool, HarnessError> {
        const MARK: u8 = 0xa5;
        let value = vec![MARK; self.value];
        match self.kind {
            _ if self.is_frozen() => return Ok(false),
            MapType::Array | MapType::PerCpuArray => {
                for slot in [0, self.entries / 2, self.entries - 1] {
                    self.update(&(slot as u32).to_ne_bytes(), &value)?;
                }
            }
            MapType::Hash | MapType::LruHash | MapType::LpmTrie => {
                for n in 0..200u8 {
                    let mut key = vec![n ^ MARK; self.key];
                    if self.kind == MapType::LpmTrie {
                        let bits = 8 * (self.key as u32 - 4);
                        key[..4].copy_from_slice(&bits.to_ne_bytes());
                    }
                    self.update(&key, &value)?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_array(&self) -> Result<Entries, HarnessError> {
        let mut keys = vec![0u8; self.entries * 4];
        let mut values = vec![0u8; self.entries * self.value];
        let mut position = [0u8; 4];
        let mut attr = BatchAttr {
            out_batch: position.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: self.entries as u32,
            map: self.fd.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        match bpf(LOOKUP_BATCH, &mut attr) {
            // The kernel reports the end of the map.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            result => result.map_err(|e| self.error("look up a batch", e))?,
        }
        let pairs = keys.chunks(4).zip(values.chunks(self.value));
        Ok(pairs
            .take(attr.count as usize)
            .filter(|(_, value)| value.iter().any(|byte| *byte != 0))
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect())
    }

    /// Runs a batch command over a whole hash map.
    fn batches(
        &self,
        command: libc::c_long,
        operation: &'static str,
    ) -> Result<Entries, HarnessError> {
        let mut all = Entries::new();
        let mut keys = vec![0u8; BATCH * self.key];
        let mut values = vec![0u8; BATCH * self.value];
        // The kernel's place in the map: the number of a bucket.
        let (mut from, mut to) = ([0u8; 8], [0u8; 8]);
        let mut first = true;
        loop {
            let mut attr = BatchAttr {
                in_batch: if first { 0 } else { from.as_ptr() as u64 },
                out_batch: to.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: BATCH as u32,
                map: self.fd.as_raw_fd() as u32,
                ..BatchAttr::default()
            };
            let result = bpf(command, &mut attr);
            let ended = match result {
                Ok(()) => false,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
                Err(e) => return Err(self.error(operation, e)),
            };
            let pairs = keys.chunks(self.key).zip(values.chunks(self.value));
            all.extend(
                pairs
                    .take(attr.count as usize)
                    .map(|(key, value)| (key.to_vec(), value.to_vec())),
            );
            if ended {
                return Ok(all);
            }
            from = to;
            first = false;
        }
    }

    fn element(&self, key: Option<&[u8]>, value: u64) -> ElementAttr {
        ElementAttr {
            map: self.fd.as_raw_fd() as u32,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            value,
            ..ElementAttr::default()
        }
    }

    fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, HarnessError> {
        let mut value = vec![0u8; self.value];
        let mut attr = self.element(Some(key), value.as_mut_ptr() as u64);
        match bpf(LOOKUP_ELEM, &mut attr) {
            Ok(()) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(self.error("look up", e)),
        }
    }

    fn next_key(&self, key: Option<&[u8]>) -> Result<Option<Vec<u8>>, HarnessError> {
        let mut next = vec![0u8; self.key];
        let mut attr = self.element(key, next.as_mut_ptr() as u64);
        match bpf(GET_NEXT_KEY, &mut attr) {
            Ok(()) => Ok(Some(next)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(self.error("find the next key", e)),
        }
    }

    fn update(&self, key: &[u8], value: &[u8]) -> Result<(), HarnessError> {
        let mut attr = self.element(Some(key), value.as_ptr() as u64);
        bpf(UPDATE_ELEM, &mut attr).map_err(|e| self.error("update", e))
    }

    fn delete(&self, key: &[u8]) -> Result<(), HarnessError> {
        let mut attr = self.element(Some(key), 0);
        bpf(DELETE_ELEM, &mut attr).map_err(|e| self.error("delete", e))
    }
}

/// Memory of a map in bytes, by the kernel's account.
///
/// # Errors
///
/// When procfs cannot be read, or does not have the figure.
pub fn map_memory(map: BorrowedFd<'_>) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    std::fs::read_to_string(&path)?
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .and_then(|bytes| bytes.trim().parse().ok())
        .ok_or_else(|| io::Error::other(format!("{path} has no memlock")))
}

/// The descriptor of a map of the types that the object has.
fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerfEventArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data)
        | Map::XskMap(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

/// The bpf system call with the attributes of `command`.
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is a live structure of the size given. The callers make the buffers that it
    // points to as long as the command and the sizes of the map require, and keep them until the
    // call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
