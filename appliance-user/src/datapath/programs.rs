//! The programs in the kernel, and their pins.
//!
//! For: loading the programs of an object, and using those of an earlier process again.
//! Never: attaching them; `links` does.
//!
//! A pin is named `<program>-<digest>`, with the digest of the object file. It is used again if all
//! programs of the digest are pinned and use the maps that are pinned now. Else the programs are
//! loaded and pinned, and the pins of other files are removed.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use appliance_common::maps::Jump;
use aws_lc_rs::digest;
use aya::{Ebpf, maps::MapInfo, programs::Xdp};

use super::{
    error::{Error, io_error, map_error, program_error},
    pins::remove,
};
use aya_obj::programs::XdpAttachType;

use crate::config::Kind;

/// Bytes of the file's SHA-256 in the name of a pin.
const DIGEST_BYTES: usize = 16;

/// All programs of an object, in the kernel and pinned.
#[derive(Debug)]
pub(super) struct Programs {
    by_name: BTreeMap<&'static str, Xdp>,
    /// Whether an earlier process loaded them.
    adopted: bool,
}

impl Programs {
    /// Opens the programs of the file with the `bytes`, which `object` was read from, with or
    /// without packet tracing. `maps` are the paths of the pinned maps.
    ///
    /// # Errors
    /// When the kernel refuses a program, or a pin cannot be written. An unusable pin is no error:
    /// the programs are then loaded.
    pub(super) fn open(
        root: &Path,
        maps: &[PathBuf],
        bytes: &[u8],
        tracing: bool,
        object: &mut Ebpf,
    ) -> Result<Self, Error> {
        let dir = root.join("programs");
        let digest = digest_of(bytes);
        let variant = if tracing { "-tracing" } else { "" };
        let pin = |name: &str| dir.join(format!("{name}-{digest}{variant}"));
        match pinned(&pin, maps) {
            Ok(Some(by_name)) => {
                return Ok(Self {
                    by_name,
                    adopted: true,
                });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the pinned programs of an earlier process are unusable; loading them again"
            ),
        }
        verify(object)?;
        remove_others(&dir, &digest)?;
        let mut by_name = BTreeMap::new();
        for name in names() {
            let path = pin(name);
            remove(&path)?;
            let program = object
                .program_mut(name)
                .ok_or(Error::Missing { what: name })?;
            program.pin(&path).map_err(|source| {
                io_error("pin the program at", &path, io::Error::other(source))
            })?;
            by_name.insert(name, open_pin(name, &path)?);
        }
        Ok(Self {
            by_name,
            adopted: false,
        })
    }

    /// Whether an earlier process loaded the programs.
    pub(super) const fn adopted(&self) -> bool {
        self.adopted
    }

    /// The program `name`.
    ///
    /// # Errors
    /// When the object has no such program.
    pub(super) fn get(&self, name: &'static str) -> Result<&Xdp, Error> {
        self.by_name.get(name).ok_or(Error::Missing { what: name })
    }

    /// The program for interfaces of a kind, to be attached.
    ///
    /// # Errors
    /// When the object has no such program.
    pub(super) fn entry(&mut self, kind: Kind) -> Result<&mut Xdp, Error> {
        let name = kind.program();
        self.by_name
            .get_mut(name)
            .ok_or(Error::Missing { what: name })
    }
}

/// Names of all programs: those that interfaces run, and the targets of tail calls.
fn names() -> impl Iterator<Item = &'static str> {
    let entries = [Kind::Access, Kind::Uplink, Kind::Combined].map(Kind::program);
    entries.into_iter().chain(Jump::ALL.map(|(_, name)| name))
}

/// The first half of the SHA-256 of `bytes`, in hexadecimal.
fn digest_of(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut text = String::with_capacity(2 * DIGEST_BYTES);
    for byte in digest.as_ref().iter().take(DIGEST_BYTES) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Opens all pinned programs, or none if one is missing or uses other maps than those pinned now.
fn pinned(
    pin: &impl Fn(&str) -> PathBuf,
    maps: &[PathBuf],
) -> Result<Option<BTreeMap<&'static str, Xdp>>, Error> {
    if names().any(|name| !pin(name).exists()) {
        return Ok(None);
    }
    let mut current = HashSet::new();
    for path in maps {
        let info = MapInfo::from_pin(path).map_err(|e| map_error("open", "pinned maps", e))?;
        current.insert(info.id());
    }
    let mut programs = BTreeMap::new();
    for name in names() {
        let program = open_pin(name, &pin(name))?;
        let info = program.info().map_err(|e| program_error(name, e))?;
        let used = info.map_ids().map_err(|e| program_error(name, e))?;
        for id in used.unwrap_or_default() {
            if !current.contains(&id) && !is_constant(id)? {
                tracing::info!(
                    program = name,
                    map = id,
                    "the pinned program uses a map that was replaced; loading the programs again"
                );
                return Ok(None);
            }
        }
        programs.insert(name, program);
    }
    Ok(Some(programs))
}

/// Whether the map is a section of the object, such as `.rodata`, which is not pinned.
fn is_constant(id: u32) -> Result<bool, Error> {
    let info = MapInfo::from_id(id).map_err(|e| map_error("open", "maps of a program", e))?;
    Ok(info.name().starts_with(b"."))
}

fn open_pin(name: &'static str, path: &Path) -> Result<Xdp, Error> {
    Xdp::from_pin(path, XdpAttachType::Interface).map_err(|source| program_error(name, source))
}

/// Removes the pins of other files.
fn remove_others(dir: &Path, digest: &str) -> Result<(), Error> {
    let entries = fs::read_dir(dir).map_err(|source| io_error("list", dir, source))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str());
        if !name.is_some_and(|name| name.contains(digest)) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Loads all programs into the kernel, in parallel: the verifier needs some tenths of a second for
/// each.
fn verify(object: &mut Ebpf) -> Result<(), Error> {
    let mut missing: Vec<&'static str> = names().collect();
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
            loaded.map_err(|source| program_error(program, source))?;
        }
        Ok(())
    })?;
    match missing.first() {
        Some(what) => Err(Error::Missing { what }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_has_another_digest() {
        // SHA-256 of "abc": FIPS 180-4, appendix of examples.
        assert_eq!(digest_of(b"abc"), "ba7816bf8f01cfea414140de5dae2223");
        assert_ne!(digest_of(b"abd"), digest_of(b"abc"));
    }

    #[test]
    fn every_program_has_a_name_of_its_own() {
        let all: Vec<_> = names().collect();
        let unique: HashSet<_> = all.iter().collect();
        assert_eq!(all.len(), unique.len());
        assert_eq!(all.len(), 3 + Jump::ALL.len());
    }
}
