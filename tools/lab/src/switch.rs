//! Loading the programs of `lab-ebpf` and attaching them: TC at trunk ports, XDP at the far ends of
//! appliances' NICs.

use std::path::Path;

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{
        SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::FdLink,
        tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
    },
};

use crate::{
    addr::Vlan,
    error::{Error, Result},
    netns,
};

/// The bridge side and the tagging side of one VLAN's veth pair, and what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrunkVlan {
    /// The tagging side, in the switch's namespace.
    pub port: String,
    /// `None`: the switch's untagged network.
    pub vlan: Option<Vlan>,
}

/// Tags and untags between `trunk` and `vlans`. To be called on a thread inside the switch's
/// namespace. The programs stay attached by netlink filters, which live as long as the links do.
///
/// # Errors
/// [`Error::Bpf`] with the whole chain of causes.
pub(crate) fn attach(
    object: &Path,
    trunk: &str,
    vlans: &[TrunkVlan],
    outer_ethertype: u16,
) -> Result<()> {
    let mut bpf = load(object)?;
    let trunk_index = netns::index(trunk)?;

    let fill = |e: &(dyn std::error::Error + 'static)| {
        bpf_error("filling the switch's maps".to_owned(), e)
    };
    let mut ports = Vec::new();
    for TrunkVlan { port, vlan } in vlans {
        let tags = vlan.map_or([0, 0], |v| {
            [u32::from(v.outer), v.inner.map_or(0, u32::from)]
        });
        ports.push((netns::index(port)?, tags));
    }
    {
        let mut map: HashMap<&mut MapData, [u32; 3], u32> = bpf
            .map_mut("TRUNK_IN")
            .ok_or_else(|| no("map TRUNK_IN", object))?
            .try_into()
            .map_err(|e| fill(&e))?;
        for (port, [outer, inner]) in &ports {
            map.insert([trunk_index, *outer, *inner], port, 0)
                .map_err(|e| fill(&e))?;
        }
    }
    {
        let mut map: HashMap<&mut MapData, u32, [u32; 4]> = bpf
            .map_mut("VLAN_OUT")
            .ok_or_else(|| no("map VLAN_OUT", object))?
            .try_into()
            .map_err(|e| fill(&e))?;
        for (port, [outer, inner]) in &ports {
            let ethertype = if *inner == 0 {
                0x8100
            } else {
                u32::from(outer_ethertype)
            };
            map.insert(port, [trunk_index, *outer, *inner, ethertype], 0)
                .map_err(|e| fill(&e))?;
        }
    }
    let names: Vec<_> = vlans.iter().map(|v| v.port.as_str()).collect();
    attach_program(&mut bpf, "trunk_in", &[trunk], object)?;
    attach_program(&mut bpf, "vlan_out", &names, object)
}

/// Attaches the XDP program that passes everything to `link`, and pins that in `pin_dir`. To be
/// called on a thread inside the link's namespace.
///
/// # Errors
/// [`Error::Bpf`] with the whole chain of causes.
pub(crate) fn attach_far_end(object: &Path, link: &str, pin_dir: &Path) -> Result<()> {
    let mut bpf = load(object)?;
    let failed = |e: &(dyn std::error::Error + 'static)| {
        bpf_error(format!("attaching far_end to {link}"), e)
    };
    let program: &mut Xdp = bpf
        .program_mut("far_end")
        .ok_or_else(|| no("program far_end", object))?
        .try_into()
        .map_err(|e| failed(&e))?;
    program.load().map_err(|e| failed(&e))?;
    let id = program
        .attach(link, XdpMode::Driver)
        .map_err(|e| failed(&e))?;
    let taken = program.take_link(id).map_err(|e| failed(&e))?;
    let attached: FdLink = taken.try_into().map_err(|e| failed(&e))?;
    attached.pin(pin_dir.join(link)).map_err(|e| failed(&e))?;
    Ok(())
}

fn load(object: &Path) -> Result<Ebpf> {
    let bytes = std::fs::read(object).map_err(|_| Error::Missing {
        path: object.to_owned(),
        hint: "build it with `cargo xtask build-ebpf`, or name it in CAUSEWAY_LAB_BPF_OBJECT",
    })?;
    Ebpf::load(&bytes).map_err(|e| bpf_error(format!("loading {}", object.display()), &e))
}

fn attach_program(bpf: &mut Ebpf, name: &str, links: &[&str], object: &Path) -> Result<()> {
    let program: &mut SchedClassifier = bpf
        .program_mut(name)
        .ok_or_else(|| no(&format!("program {name}"), object))?
        .try_into()
        .map_err(|e| bpf_error(format!("finding {name}"), &e))?;
    program
        .load()
        .map_err(|e| bpf_error(format!("loading {name}"), &e))?;
    for link in links {
        let failed = |e: &(dyn std::error::Error + 'static)| {
            bpf_error(format!("attaching {name} to {link}"), e)
        };
        qdisc_add_clsact(link).map_err(|e| failed(&e))?;
        let id = program
            .attach_with_options(
                link,
                TcAttachType::Ingress,
                TcAttachOptions::Netlink(NlOptions::default()),
            )
            .map_err(|e| failed(&e))?;
        // Dropping the handle would detach: the filter is to outlive this process.
        std::mem::forget(program.take_link(id).map_err(|e| failed(&e))?);
    }
    Ok(())
}

fn no(what: &str, object: &Path) -> Error {
    Error::Bpf {
        operation: format!("reading {}", object.display()),
        reason: format!("it has no {what}; rebuild it with `cargo xtask build-ebpf`"),
    }
}

fn bpf_error(operation: String, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !reason.contains(&text) {
            reason.push_str(": ");
            reason.push_str(&text);
        }
        source = cause.source();
    }
    Error::Bpf { operation, reason }
}
