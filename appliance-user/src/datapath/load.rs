//! Loading: the BPF object, its programs and the types of its maps.

use std::path::{Path, PathBuf};

use appliance_common::{maps::Jump, nat::TenantQuota};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError, ProgramArray},
    programs::Xdp,
};

use super::{
    error::{Error, map_error},
    resize,
};
use crate::config::Kind;

/// All pinned maps, by their names in the object.
const MAPS: [&str; 43] = [
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
    "NAT",
    "NAT_ADDRESSES",
    "NAT_FULL",
    "PAIRS",
    "SHARES",
    "TALLIES",
    "PUBLIC",
    "RULES",
    "RULE_PORTS",
    "RULE_SOURCES",
    "ONE_TO_ONE",
    "FLOWS",
    "OPENING",
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
];

/// Loads the programs with the maps below `root`, ready to be attached, with or without packet
/// tracing. Maps of translation that do not exist are created with the `room`.
pub(super) fn load(
    root: &Path,
    object: &Path,
    room: TenantQuota,
    tracing: bool,
) -> Result<Ebpf, Error> {
    let dir = root.join("maps");
    let paths: Vec<PathBuf> = MAPS.iter().map(|name| dir.join(name)).collect();
    let tracing = u8::from(tracing);
    let mut loader = EbpfLoader::new();
    for (name, path) in MAPS.iter().zip(&paths) {
        loader.map_pin_path(name, path.as_path());
    }
    for (name, entries) in resize::entries(room) {
        loader.map_max_entries(name, entries);
    }
    loader.override_global("TRACING", &tracing, true);
    let mut loaded = loader.load_file(object).map_err(|source| Error::Load {
        path: object.to_owned(),
        source: Box::new(source),
    })?;
    verify(&mut loaded)?;
    Ok(loaded)
}

/// Loads all programs into the kernel, in parallel: the verifier needs some tenths of a second for
/// each, and after a crash encrypted tunnels wait for them.
fn verify(object: &mut Ebpf) -> Result<(), Error> {
    let entries = [Kind::Access, Kind::Uplink, Kind::Combined].map(Kind::program);
    let wanted = entries.into_iter().chain(Jump::ALL.map(|(_, name)| name));
    let mut missing: Vec<&'static str> = wanted.collect();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (name, program) in object.programs_mut() {
            let Some(at) = missing.iter().position(|wanted| *wanted == name) else {
                continue;
            };
            let load = move || <&mut Xdp>::try_from(program)?.load();
            threads.push((missing.swap_remove(at), scope.spawn(load)));
        }
        for (program, thread) in threads {
            let loaded = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            loaded.map_err(|source| Error::Program {
                program,
                source: Box::new(source),
            })?;
        }
        Ok(())
    })?;
    match missing.first() {
        Some(what) => Err(Error::Missing { what }),
        None => Ok(()),
    }
}

/// The program of the object for interfaces of a kind.
pub(super) fn program(object: &mut Ebpf, kind: Kind) -> Result<&mut Xdp, Error> {
    let name = kind.program();
    object
        .program_mut(name)
        .ok_or(Error::Missing { what: name })?
        .try_into()
        .map_err(|source| Error::Program {
            program: name,
            source: Box::new(source),
        })
}

/// Writes the targets of tail calls into `JUMPS`. Attached programs of an earlier process use them
/// from now on as well, since both have the same schema version.
pub(super) fn set_tail_calls(object: &mut Ebpf) -> Result<ProgramArray<MapData>, Error> {
    let failed = |program, source| Error::Program {
        program,
        source: Box::new(source),
    };
    let mut tail_calls: ProgramArray<MapData> = typed(object, "JUMPS")?;
    for (jump, name) in Jump::ALL {
        let program: &mut Xdp = object
            .program_mut(name)
            .ok_or(Error::Missing { what: name })?
            .try_into()
            .map_err(|source| failed(name, source))?;
        let fd = program.fd().map_err(|source| failed(name, source))?;
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
