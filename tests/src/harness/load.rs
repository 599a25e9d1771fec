//! Loading: the object, its programs, the jumps between them.

use std::{os::fd::AsFd as _, path::PathBuf};

use appliance_common::maps::Jump;
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::Xdp,
};

use super::{Harness, HarnessError, Program, RawMap, log::ProgramLog, namespace};
use crate::world::World;

/// Path of the built object: `CAUSEWAY_BPF_OBJECT`, or `target/bpf/appliance.bpf.o` of the
/// workspace.
#[must_use]
pub fn object_path() -> PathBuf {
    if let Some(path) = std::env::var_os("CAUSEWAY_BPF_OBJECT") {
        return path.into();
    }
    workspace_root().join("target/bpf/appliance.bpf.o")
}

/// Root of the workspace, from the manifest directory that cargo gives a running test.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let tests =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    tests.join("..")
}

/// The reason why tests that need root and BPF cannot run here, if there is one.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let path = object_path();
    if !path.exists() {
        return Some(format!(
            "{} is missing; run `cargo xtask build-ebpf`",
            path.display()
        ));
    }
    None
}

impl Harness {
    /// Loads the programs; with `trace`, the variants with packet tracing.
    pub(super) fn load_with(
        world: World,
        connections: u32,
        trace: bool,
    ) -> Result<Self, HarnessError> {
        namespace::enter_new()?;
        let path = object_path();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("FLOWS", 2 * connections)
            .map_max_entries("MAPPINGS", 2 * connections)
            .override_global("TRACING", &u8::from(trace), true)
            .load_file(&path)
            .map_err(|source| HarnessError::Load {
                path,
                source: Box::new(source),
            })?;
        for program in Program::EVERY {
            let name = program.name();
            let xdp: &mut Xdp = ebpf
                .program_mut(name)
                .and_then(|p| p.try_into().ok())
                .ok_or(HarnessError::Program(name))?;
            xdp.load().map_err(|source| HarnessError::ProgramLoad {
                name,
                source: Box::new(source),
            })?;
        }
        let raw = ebpf
            .maps()
            .map(|(name, map)| RawMap::new(name, map))
            .collect::<Result<_, _>>()?;
        let mut jumps: ProgramArray<_> = take(&mut ebpf, "JUMPS")?;
        for (jump, name) in Jump::ALL {
            let program: &Xdp = ebpf
                .program(name)
                .and_then(|p| p.try_into().ok())
                .ok_or(HarnessError::Program(name))?;
            program
                .fd()
                .and_then(|fd| Ok(jumps.set(jump as u32, fd, 0)?))
                .map_err(|source| HarnessError::ProgramLoad {
                    name,
                    source: Box::new(source),
                })?;
        }
        let counters = ebpf
            .map("COUNTERS")
            .ok_or(HarnessError::Map("COUNTERS"))
            .and_then(|map| RawMap::new("COUNTERS", map))?;
        let events = take(&mut ebpf, "NEIGHBOUR_EVENTS")?;
        let slow = take(&mut ebpf, "SLOW_PACKETS")?;
        let trace = take(&mut ebpf, "TRACE_EVENTS")?;
        let log = ProgramLog::take(&mut ebpf)?;
        let mut harness = Self {
            ebpf,
            counters,
            events,
            slow,
            trace,
            log,
            raw,
            out: vec![0; 4096],
            sockets: Vec::new(),
            world: World::default(),
        };
        harness.fill(world)?;
        Ok(harness)
    }

    /// A second handle of a map, for another thread.
    ///
    /// # Errors
    ///
    /// When there is no such map, it is of another type, or no descriptor is left.
    pub fn open_map<T>(&self, name: &'static str) -> Result<T, HarnessError>
    where
        T: TryFrom<aya::maps::Map>,
    {
        let raw = self
            .raw
            .iter()
            .find(|raw| raw.name() == name)
            .ok_or(HarnessError::Map(name))?;
        let fd = raw
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| raw.error("duplicate the descriptor", source))?;
        let map = MapData::from_fd(fd)
            .and_then(aya::maps::Map::from_map_data)
            .map_err(|source| HarnessError::map(name, source))?;
        T::try_from(map).map_err(|_| HarnessError::Map(name))
    }
}

fn take<T: TryFrom<aya::maps::Map>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, HarnessError> {
    ebpf.take_map(name)
        .and_then(|m| T::try_from(m).ok())
        .ok_or(HarnessError::Map(name))
}
