//! Errors of the datapath, with their remedies.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{
    EbpfError,
    maps::MapError,
    programs::{ProgramError, links::LinkError},
};

/// A failed operation of the datapath, with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The BPF object file does not exist.
    #[error(
        "no BPF object at {}: build it with `cargo xtask build-ebpf`, or set appliance.bpf_object",
        path.display()
    )]
    NoObject {
        /// Its expected path.
        path: PathBuf,
    },
    /// The pin directory is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`, or set \
         appliance.pin_dir to a directory below it",
        path.display()
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// The failed operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error(
        "load {}: {source}; on EPERM, run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
        path.display()
    )]
    Load {
        /// The object.
        path: PathBuf,
        /// The cause.
        source: Box<EbpfError>,
    },
    /// A program of the object is missing or was refused.
    #[error("program {program}: {source}")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// The cause.
        source: Box<ProgramError>,
    },
    /// The object lacks a program or map of this version.
    #[error("the BPF object has no {what}: it is of another version; build it again")]
    Missing {
        /// The missing program or map.
        what: &'static str,
    },
    /// A map could not be read or written.
    #[error("{operation} map {map}: {source}")]
    Map {
        /// The failed operation.
        operation: &'static str,
        /// Name of the map.
        map: &'static str,
        /// The cause.
        source: Box<MapError>,
    },
    /// A pinned map has another number of entries than this version expects.
    #[error(
        "the pinned map {map} has another size than this version expects: remove it with \
         `causeway-appliance detach --config FILE`, which stops traffic"
    )]
    Shape {
        /// Name of the map.
        map: &'static str,
    },
    /// A link operation failed.
    #[error("{operation} on {interface}: {source}")]
    Link {
        /// The failed operation.
        operation: &'static str,
        interface: String,
        /// The cause.
        source: Box<LinkError>,
    },
    /// Another XDP program is attached.
    #[error(
        "attach XDP to {interface} in {mode} mode: another XDP program is attached there in \
         {other} mode (id {id}): detach it with `ip link set {interface} {command} off`, or end \
         what attached it (`bpftool net`, `bpftool link`); the appliance then attaches by itself"
    )]
    Occupied {
        interface: String,
        /// The requested mode.
        mode: &'static str,
        /// The other program's mode.
        other: &'static str,
        /// The other program's id.
        id: u32,
        /// The word of ip-link(8) for the other program's mode.
        command: &'static str,
    },
    /// XDP could not be attached.
    #[error("attach XDP to {interface} in {mode} mode: {source}. {remedy}")]
    Attach {
        interface: String,
        /// The requested mode.
        mode: &'static str,
        /// The kernel's error.
        source: Box<ProgramError>,
        remedy: &'static str,
    },
}

/// A failed file operation.
pub(super) fn io_error(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// A failed map operation.
pub(super) fn map_error(operation: &'static str, map: &'static str, source: MapError) -> Error {
    Error::Map {
        operation,
        map,
        source: Box::new(source),
    }
}

/// A failed operation of a program.
pub(super) fn program_error(program: &'static str, source: ProgramError) -> Error {
    Error::Program {
        program,
        source: Box::new(source),
    }
}
