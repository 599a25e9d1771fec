//! Facts of a link by rtnetlink, and VLAN devices that register VLANs with a NIC's filter.

use std::io;

use appliance_common::wire::ETHERTYPE_8021AD;
use service::netlink::{Socket, attribute, find};

/// `struct ifinfomsg`: family, type, index, flags, change mask.
const LINK_HEADER: usize = 16;
/// Attributes of include/uapi/linux/if_link.h.
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;

/// Facts of a link that decide whether XDP can be used there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// Kind of a virtual link, such as `bond`; empty for a NIC.
    pub kind: String,
    /// Kind of the link that it is a member of, such as `bond`; empty without one.
    pub member_of: String,
    /// Name of the link that it is a member of; empty without one.
    pub master: String,
    /// Names of the links that are its members.
    pub members: Vec<String>,
}

/// XDP programs on a link, as mode and program id.
pub type XdpPrograms = Vec<(&'static str, u32)>;

/// A VLAN, as tag type (host byte order) and id.
pub type VlanId = (u16, u16);

/// Reads the facts of the link of an index.
///
/// # Errors
/// If the link is gone, or netlink fails.
pub fn facts(ifindex: u32) -> io::Result<LinkFacts> {
    let socket = Socket::route()?;
    let link = get(&socket, ifindex)?;
    let info = find(&link, IFLA_LINKINFO).unwrap_or_default();
    let master = find(&link, IFLA_MASTER).and_then(number);
    let mut facts = LinkFacts {
        kind: find(info, IFLA_INFO_KIND).map(text).unwrap_or_default(),
        member_of: find(info, IFLA_INFO_SLAVE_KIND)
            .map(text)
            .unwrap_or_default(),
        ..LinkFacts::default()
    };
    for link in links(&socket)? {
        if Some(link.index) == master {
            facts.master.clone_from(&link.name);
        }
        if find(&link.attributes, IFLA_MASTER).and_then(number) == Some(ifindex) {
            facts.members.push(link.name);
        }
    }
    Ok(facts)
}

/// The XDP programs on the link of an index.
///
/// # Errors
/// If the link is gone, or netlink fails.
pub fn xdp_programs(ifindex: u32) -> io::Result<XdpPrograms> {
    let link = get(&Socket::route()?, ifindex)?;
    let xdp = find(&link, IFLA_XDP).unwrap_or_default();
    let modes = [
        (IFLA_XDP_DRV_PROG_ID, "native"),
        (IFLA_XDP_SKB_PROG_ID, "generic"),
        (IFLA_XDP_HW_PROG_ID, "offload"),
    ];
    let id = |(kind, mode)| Some((mode, find(xdp, kind).and_then(number)?));
    Ok(modes.into_iter().filter_map(id).collect())
}

/// Makes exactly these VLANs registered with the filter of a NIC, by VLAN devices that are down and
/// carry nothing. Devices that others made are left alone. The devices outlive this process.
/// Returns how many were added.
///
/// # Errors
/// The error of the first device that could not be added, such as "operation not supported" without
/// the kernel module 8021q.
pub fn register_vlans(ifindex: u32, vlans: &[VlanId]) -> io::Result<usize> {
    let socket = Socket::route()?;
    let names: Vec<String> = vlans.iter().map(|vlan| device(ifindex, *vlan)).collect();
    let mut present = Vec::new();
    for link in links(&socket)? {
        if !link.name.starts_with(&prefix(ifindex)) {
            continue;
        }
        if names.contains(&link.name) {
            present.push(link.name);
        } else {
            socket.change(libc::RTM_DELLINK, 0, &header(link.index))?;
        }
    }
    let mut added = 0;
    for (vlan, name) in vlans.iter().zip(&names) {
        if !present.contains(name) {
            add_vlan(&socket, ifindex, *vlan, name)?;
            added += 1;
        }
    }
    Ok(added)
}

fn add_vlan(socket: &Socket, ifindex: u32, (tag, id): VlanId, name: &str) -> io::Result<()> {
    let data = [
        attribute(IFLA_VLAN_ID, &id.to_ne_bytes()),
        attribute(IFLA_VLAN_PROTOCOL, &tag.to_be_bytes()),
    ];
    let info = [
        attribute(IFLA_INFO_KIND, b"vlan\0"),
        attribute(IFLA_INFO_DATA, &data.concat()),
    ];
    let message = [
        header(0).to_vec(),
        attribute(libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat()),
        attribute(libc::IFLA_LINK, &ifindex.to_ne_bytes()),
        attribute(IFLA_LINKINFO, &info.concat()),
    ];
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    match socket.change(libc::RTM_NEWLINK, flags, &message.concat()) {
        // Another program's VLAN device registers it already.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// How the names of our VLAN devices of an interface begin.
fn prefix(ifindex: u32) -> String {
    format!("cw{ifindex}v")
}

/// The name of our VLAN device: at most 15 bytes up to interface index 99999.
fn device(ifindex: u32, (tag, id): VlanId) -> String {
    let service = if tag == ETHERTYPE_8021AD { "s" } else { "" };
    format!("{}{id}{service}", prefix(ifindex))
}

fn header(ifindex: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header
}

/// The attributes of the link of an index.
fn get(socket: &Socket, ifindex: u32) -> io::Result<Vec<u8>> {
    let mut link = socket.get(libc::RTM_GETLINK, &header(ifindex))?;
    link.drain(..LINK_HEADER.min(link.len()));
    Ok(link)
}

/// A link of a dump.
struct Link {
    index: u32,
    name: String,
    attributes: Vec<u8>,
}

/// All links of the network namespace.
fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let links = socket.dump(libc::RTM_GETLINK, &header(0))?.into_iter();
    let parse = |link: Vec<u8>| {
        let attributes = link.get(LINK_HEADER..)?.to_vec();
        let name = find(&attributes, libc::IFLA_IFNAME).map(text);
        Some(Link {
            index: link.get(4..8).and_then(number)?,
            name: name.unwrap_or_default(),
            attributes,
        })
    };
    Ok(links.filter_map(parse).collect())
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use appliance_common::wire::ETHERTYPE_8021Q;

    use super::*;

    #[test]
    fn names_of_vlan_devices_fit_and_differ() {
        assert_eq!(device(7, (ETHERTYPE_8021Q, 101)), "cw7v101");
        assert_eq!(device(7, (ETHERTYPE_8021AD, 101)), "cw7v101s");
        assert!(device(99_999, (ETHERTYPE_8021AD, 4094)).len() < libc::IFNAMSIZ);
        assert!(!device(71, (ETHERTYPE_8021Q, 1)).starts_with(&prefix(7)));
    }

    #[test]
    fn the_loopback_is_no_member_and_has_no_program() {
        assert_eq!(facts(1).expect("the loopback"), LinkFacts::default());
        assert!(xdp_programs(1).expect("the loopback").is_empty());
        assert!(facts(0x7fff_fffe).is_err());
    }
}
