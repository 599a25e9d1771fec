//! Making used programs as they were when they were loaded.

use std::collections::BTreeMap;

use super::{Harness, HarnessError, RawMap, raw::Entries};
use crate::world::World;

/// Contents of all maps by name.
pub type MapContents = BTreeMap<String, Entries>;

impl Harness {
    /// Makes every map as it is after a load, before [`Harness::fill`]: sockets closed, rings
    /// drained, entries deleted, elements and per-CPU values zero.
    ///
    /// # Errors
    ///
    /// When the kernel refuses an operation on a map.
    pub fn reset(&mut self) -> Result<(), HarnessError> {
        self.close_sockets();
        for ring in [&mut self.events, &mut self.slow, &mut self.trace] {
            while ring.next().is_some() {}
        }
        self.log.lines();
        for map in &self.raw {
            map.clear()?;
        }
        self.world = World::default();
        Ok(())
    }

    /// Every map of the object.
    #[must_use]
    pub fn raw_maps(&self) -> &[RawMap] {
        &self.raw
    }

    /// Contents of every map, to compare two states.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to read a map.
    pub fn contents(&self) -> Result<MapContents, HarnessError> {
        self.raw
            .iter()
            .map(|map| Ok((map.name().to_owned(), map.read()?)))
            .collect()
    }
}
