//! Loading: the BPF object, its maps and their types.

use std::{
    fs,
    path::{Path, PathBuf},
};

use appliance_common::{maps::Jump, nat::TenantQuota};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError, ProgramArray},
};

use super::{
    error::{Error, io_error, map_error, program_error},
    programs::Programs,
    resize,
};

/// All pinned maps, by their names in the object.
const MAPS: [&str; 46] = [
    "CONFIG",
    "ATTACHMENTS",
    "NETWORKS",
    "TENANTS",
    "PEERS",
    "TUNNELS",
    "ENDPOINTS",
    "NEIGHBOURS",
    "COUNTERS",
    "NETWORK_STATS",
    "LAST_LOGGED",
    "NEIGHBOUR_EVENTS",
    "SLOW_PACKETS",
    "XSKS",
    "SESSIONS",
    "HANDSHAKE_SOURCES",
    "HANDSHAKE_BUDGET",
    "PEER_ADDRESSES",
    "JUMPS",
    "ROUTES",
    "POLICIES",
    "BUDGETS",
    "CLAIM_BUDGETS",
    "NAT",
    "NAT_ADDRESSES",
    "NAT_FULL",
    "PAIRS",
    "QUOTAS",
    "USAGE",
    "PUBLIC",
    "RULES",
    "RULE_PORTS",
    "RULE_SOURCES",
    "ONE_TO_ONE",
    "FLOWS",
    "OPENING",
    "OPENING_EXCESS",
    "MAPPINGS",
    "NAT_EVENTS",
    "FRAGMENTS",
    // Used by the programs only, and pinned nevertheless: while programs are replaced, the old ones
    // tail-call the new ones.
    "SCRATCH",
    "PASSED",
    "TRACE",
    "TRACED",
    "TRACE_EVENTS",
    // The log of the programs, which outlive a process.
    "AYA_LOGS",
];

/// Maps of an object file, and its programs in the kernel.
pub(super) struct Loaded {
    /// The object, for its maps. Its programs may not be in the kernel.
    pub(super) object: Ebpf,
    /// The programs in the kernel.
    pub(super) programs: Programs,
}

/// Opens the maps below `root` and the programs of the file, ready to be attached, with or without
/// packet tracing. Maps of translation that do not exist are created with the `room`.
///
/// Programs that an earlier process loaded from the same file are used again if they use the same
/// maps: the verifier takes a second or more, for which encrypted tunnels wait after a crash.
pub(super) fn load(
    root: &Path,
    path: &Path,
    room: TenantQuota,
    tracing: bool,
) -> Result<Loaded, Error> {
    let bytes = fs::read(path).map_err(|source| io_error("read", path, source))?;
    let dir = root.join("maps");
    let paths: Vec<PathBuf> = MAPS.iter().map(|name| dir.join(name)).collect();
    let flag = u8::from(tracing);
    let mut loader = EbpfLoader::new();
    for (name, path) in MAPS.iter().zip(&paths) {
        loader.map_pin_path(name, path.as_path());
    }
    for (name, entries) in resize::entries(room) {
        loader.map_max_entries(name, entries);
    }
    loader.override_global("TRACING", &flag, true);
    let mut object = loader.load(&bytes).map_err(|source| Error::Load {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let programs = Programs::open(root, &paths, &bytes, tracing, &mut object)?;
    Ok(Loaded { object, programs })
}

/// Writes the targets of tail calls into `JUMPS`. Attached programs of an earlier process use them
/// from now on as well, since both have the same schema version.
pub(super) fn set_tail_calls(loaded: &mut Loaded) -> Result<ProgramArray<MapData>, Error> {
    let mut tail_calls: ProgramArray<MapData> = typed(&mut loaded.object, "JUMPS")?;
    for (jump, name) in Jump::ALL {
        let program = loaded.programs.get(name)?;
        let fd = program.fd().map_err(|source| program_error(name, source))?;
        tail_calls
            .set(jump as u32, fd, 0)
            .map_err(|e| map_error("write", "JUMPS", e))?;
    }
    Ok(tail_calls)
}

/// Takes a map out of the object as its type.
pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    let map = object.take_map(name).ok_or(Error::Missing { what: name })?;
    T::try_from(map).map_err(|source| map_error("open", name, source))
}
