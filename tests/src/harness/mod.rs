//! The appliance's XDP programs, loaded unpinned, and one packet at a time run through them.
//!
//! ```text
//!   World ──fill──▶ maps ┐
//!                        ├─ run(program, interface, packet) ──▶ action, packet out
//!   Harness::new ─ lock ─┘                                  └──▶ counters, ring-buffer records
//! ```
//!
//! [`Harness::new`] lends the process's shared set of programs ([`shared`]), reset to the state of
//! a fresh load ([`reset`]). [`Harness::load`] loads a separate set.

mod error;
mod load;
mod log;
mod maps;
mod namespace;
mod pins;
mod program;
mod raw;
mod reset;
mod run;
mod shared;
mod snapshot;

use std::fmt;

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};

pub use error::{HarnessError, describe};
pub use load::{missing, object_path, workspace_root};
pub use log::LogLine;
pub use pins::Pins;
pub use program::{Action, MAX_PACKET, Program};
pub use raw::{RawMap, map_memory};
pub use reset::MapContents;
pub use run::Record;
pub use shared::SharedHarness;
pub use snapshot::{Snapshot, counter_name};

use crate::world::World;

/// Connections, and mappings, that the tables have room for unless a test says otherwise.
pub const CONNECTIONS: u32 = 65_536;

/// The loaded programs and their maps, filled with a [`World`]. The thread that loaded them is in a
/// separate network namespace.
pub struct Harness {
    ebpf: Ebpf,
    counters: RawMap,
    events: RingBuf<MapData>,
    slow: RingBuf<MapData>,
    trace: RingBuf<MapData>,
    log: log::ProgramLog,
    /// Every map of the object, those above included. Its descriptor of `JUMPS` keeps the programs
    /// in there: the kernel empties a program array when its last descriptor closes.
    raw: Vec<RawMap>,
    /// The packet that the last run left.
    out: Vec<u8>,
    /// Sockets in `XSKS`.
    sockets: Vec<(xsk::Rx, xsk::Tx)>,
    /// Contents of the maps that user space writes.
    pub world: World,
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harness").finish_non_exhaustive()
    }
}

impl Harness {
    /// Loads a separate set of programs and fills its maps with `world`.
    ///
    /// The calling thread moves to a new network namespace with the interfaces of [`crate::world`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses a step; the error names it.
    pub fn load(world: World) -> Result<Self, HarnessError> {
        Self::load_sized(world, CONNECTIONS)
    }

    /// As [`Harness::load`], with room for `connections` connections, and as many mappings.
    ///
    /// # Errors
    ///
    /// As [`Harness::load`].
    pub fn load_sized(world: World, connections: u32) -> Result<Self, HarnessError> {
        Self::load_with(world, connections, false)
    }

    /// The loaded object, for operations that this type does not wrap.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}
