//! The links: XDP programs attached to interfaces, and their pins.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};

use service::xdp::{self, AttachMode, Setting};

use super::{
    Datapath, Error,
    error::io_error,
    pins::{other_roots, remove, remove_root},
    programs::Programs,
};
use crate::{config::Kind, kernel::nic};

const fn flag(mode: AttachMode) -> XdpMode {
    match mode {
        AttachMode::Native => XdpMode::Driver,
        AttachMode::Generic => XdpMode::Skb,
    }
}

/// An interface with an attached program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Interface index.
    pub ifindex: u32,
    /// The program.
    pub kind: Kind,
    /// The mode in which it is attached.
    pub mode: AttachMode,
    /// Whether the link was adopted from an earlier process and its program replaced in one step.
    pub adopted: bool,
    pin: PathBuf,
}

/// The pin of a link.
struct Pin {
    interface: String,
    ifindex: u32,
    mode: AttachMode,
    path: PathBuf,
}

impl Pin {
    /// Reads `<ifname>-<ifindex>-<mode>`; interface names may hold dashes.
    fn parse(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (rest, mode) = name.rsplit_once('-')?;
        let (interface, ifindex) = rest.rsplit_once('-')?;
        Some(Self {
            // bpffs refuses names with a dot (kernel/bpf/inode.c, bpf_lookup).
            interface: interface.replace('%', "."),
            ifindex: ifindex.parse().ok()?,
            mode: AttachMode::parse(mode)?,
            path: path.to_owned(),
        })
    }

    fn path(dir: &Path, interface: &str, ifindex: u32, mode: AttachMode) -> PathBuf {
        let interface = interface.replace('.', "%");
        dir.join(format!("{interface}-{ifindex}-{}", mode.name()))
    }
}

impl Datapath {
    /// Makes `interface` run the program `kind`. Replaces the program of a pinned link in one step
    /// if possible, otherwise attaches the program. Does nothing if the interface already runs it.
    ///
    /// # Errors
    /// [`Error::Attach`] with the cause. Another mode is used only if `auto` is requested.
    pub fn attach(
        &mut self,
        interface: &str,
        ifindex: u32,
        kind: Kind,
        requested: Setting,
    ) -> Result<(), Error> {
        if let Some(now) = self.attached.get(interface)
            && now.ifindex == ifindex
            && now.kind == kind
            && requested.allows(now.mode)
        {
            return Ok(());
        }
        let dir = self.root.join("links");
        let mut removed = false;
        for pin in pins(&dir)? {
            if pin.interface != interface {
                continue;
            }
            if pin.ifindex == ifindex
                && requested.allows(pin.mode)
                && replace(self.programs.entry(kind)?, &pin).is_ok()
            {
                self.attached.insert(
                    interface.to_owned(),
                    Attached {
                        ifindex,
                        kind,
                        mode: pin.mode,
                        adopted: true,
                        pin: pin.path,
                    },
                );
                return Ok(());
            }
            // Another index, another mode, or a link whose interface was removed.
            remove(&pin.path)?;
            removed = true;
        }
        if let Some(mode) = self.adopt_other_version(interface, ifindex, kind, requested)? {
            let pin = Pin::path(&dir, interface, ifindex, mode);
            self.attached.insert(
                interface.to_owned(),
                Attached {
                    ifindex,
                    kind,
                    mode,
                    adopted: true,
                    pin,
                },
            );
            return Ok(());
        }
        self.attached.remove(interface);
        let mut failure = None;
        for mode in requested.modes() {
            match attach_new(
                self.programs.entry(kind)?,
                &dir,
                interface,
                ifindex,
                mode,
                if removed { DETACH_TRIES } else { 0 },
            ) {
                Ok(pin) => {
                    if let Some(error) = failure {
                        tracing::warn!(
                            interface,
                            error = %error,
                            "native XDP failed; using generic XDP, as xdp = \"auto\" allows"
                        );
                    }
                    self.attached.insert(
                        interface.to_owned(),
                        Attached {
                            ifindex,
                            kind,
                            mode,
                            adopted: false,
                            pin,
                        },
                    );
                    return Ok(());
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or(Error::Missing { what: "XDP mode" }))
    }

    /// Replaces the program of every attached interface.
    pub(super) fn replace_programs(&self, programs: &mut Programs) -> Result<(), Error> {
        for (interface, attached) in &self.attached {
            let pin = Pin {
                interface: interface.clone(),
                ifindex: attached.ifindex,
                mode: attached.mode,
                path: attached.pin.clone(),
            };
            replace(programs.entry(attached.kind)?, &pin)?;
        }
        Ok(())
    }

    /// Adopts a link that another schema version left on the interface: replaces its program in one
    /// step and moves its pin. Removes the link if another mode is requested.
    fn adopt_other_version(
        &mut self,
        interface: &str,
        ifindex: u32,
        kind: Kind,
        requested: Setting,
    ) -> Result<Option<AttachMode>, Error> {
        for root in other_roots(&self.root) {
            let Ok(old) = pins(&root.join("links")) else {
                continue;
            };
            for pin in old.iter().filter(|pin| pin.interface == interface) {
                if pin.ifindex == ifindex
                    && requested.allows(pin.mode)
                    && replace(self.programs.entry(kind)?, pin).is_ok()
                {
                    let path = Pin::path(&self.root.join("links"), interface, ifindex, pin.mode);
                    fs::rename(&pin.path, &path)
                        .map_err(|source| io_error("rename the pin", &pin.path, source))?;
                    return Ok(Some(pin.mode));
                }
                remove(&pin.path)?;
            }
        }
        Ok(None)
    }

    /// Removes the pins of other schema versions. Call this once every interface runs this
    /// version's programs.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn retire_other_versions(&self) -> Result<(), Error> {
        for root in other_roots(&self.root) {
            remove_root(&root)?;
            tracing::info!(pins = %root.display(), "removed the pins of another schema version");
        }
        Ok(())
    }

    /// Detaches the programs of interfaces for which `keep` returns false.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_others(&mut self, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
        for pin in pins(&self.root.join("links"))? {
            if !keep(&pin.interface) {
                tracing::info!(interface = pin.interface, "XDP detached");
                remove(&pin.path)?;
                self.attached.remove(&pin.interface);
            }
        }
        Ok(())
    }

    /// Removes the link and pin of an interface that no longer exists.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn forget_interface(&mut self, interface: &str) -> Result<(), Error> {
        if let Some(attached) = self.attached.remove(interface) {
            remove(&attached.pin)?;
        }
        Ok(())
    }
}

fn pins(dir: &Path) -> Result<Vec<Pin>, Error> {
    let entries = fs::read_dir(dir).map_err(|source| io_error("list", dir, source))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| Pin::parse(&entry.path()))
        .collect())
}

/// Replaces the program of a pinned link in one step.
fn replace(program: &mut Xdp, pin: &Pin) -> Result<(), Error> {
    let failed = |source| Error::Link {
        operation: "adopt the link",
        interface: pin.interface.clone(),
        source: Box::new(source),
    };
    let pinned = PinnedLink::from_pin(&pin.path).map_err(failed)?;
    let link = XdpLink::try_from(FdLink::from(pinned)).map_err(failed)?;
    let id = program
        .attach_to_link(link)
        .map_err(|source| attach_error(&pin.interface, pin.mode, source))?;
    // The pin keeps the link alive, so drop the program's handle.
    program
        .take_link(id)
        .map(drop)
        .map_err(|source| attach_error(&pin.interface, pin.mode, source))
}

/// Times that an attachment is tried again, 20 ms apart, after a link of ours was removed: the
/// kernel detaches it some time after the removal of its pin.
const DETACH_TRIES: u32 = 25;

/// Attaches the program and pins the link. While an interface is busy, tries again up to `tries`
/// times.
fn attach_new(
    program: &mut Xdp,
    dir: &Path,
    interface: &str,
    ifindex: u32,
    mode: AttachMode,
    mut tries: u32,
) -> Result<PathBuf, Error> {
    let refused = |source| match other_program(interface, ifindex, mode, &source) {
        Some(occupied) => occupied,
        None => attach_error(interface, mode, source),
    };
    let id = loop {
        match program.attach_to_if_index(ifindex, flag(mode)) {
            Ok(id) => break id,
            Err(error) if tries > 0 && xdp::os_code(&error) == Some(libc::EBUSY) => {
                tries -= 1;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(error) => return Err(refused(error)),
        }
    };
    let link = program.take_link(id).map_err(refused)?;
    let link = FdLink::try_from(link).map_err(|source| Error::Link {
        operation: "convert the link",
        interface: interface.to_owned(),
        source: Box::new(source),
    })?;
    let path = Pin::path(dir, interface, ifindex, mode);
    link.pin(&path)
        .map_err(|source| io_error("pin the link at", &path, io::Error::other(source)))?;
    Ok(path)
}

/// The error that names another program on the interface, if that is why the kernel refused: EBUSY
/// in the same mode, EEXIST in another (net/core/dev.c, dev_xdp_attach).
fn other_program(
    interface: &str,
    ifindex: u32,
    mode: AttachMode,
    source: &ProgramError,
) -> Option<Error> {
    if !matches!(xdp::os_code(source), Some(libc::EBUSY | libc::EEXIST)) {
        return None;
    }
    let programs = nic::xdp_programs(ifindex).ok()?;
    let (other, id) = programs.into_iter().next()?;
    Some(Error::Occupied {
        interface: interface.to_owned(),
        mode: mode.name(),
        other,
        id,
        command: match other {
            "native" => "xdpdrv",
            "generic" => "xdpgeneric",
            _ => "xdpoffload",
        },
    })
}

fn attach_error(interface: &str, mode: AttachMode, source: ProgramError) -> Error {
    let remedy = xdp::remedy(
        &source,
        "The driver has no native XDP here (on Hyper-V: `ethtool -K IFACE lro off`); use \
         another NIC type, or accept slower generic XDP with xdp = \"generic\".",
    );
    Error::Attach {
        interface: interface.to_owned(),
        mode: mode.name(),
        source: Box::new(source),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_name_round_trips() {
        let path = Pin::path(Path::new("/p"), "lan-0.7", 12, AttachMode::Generic);
        assert_eq!(path, Path::new("/p/lan-0%7-12-generic"));
        let pin = Pin::parse(&path).expect("ours");
        assert_eq!(
            (pin.interface.as_str(), pin.ifindex, pin.mode),
            ("lan-0.7", 12, AttachMode::Generic)
        );
        assert!(Pin::parse(Path::new("/p/other")).is_none());
    }
}
