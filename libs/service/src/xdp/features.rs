//! Whether a driver accepts XDP redirects. A driver that does not drops redirected frames silently.
//!
//! Reads the features from the netdev family of generic netlink
//! (Documentation/netlink/specs/netdev.yaml, Linux 6.3).

use std::sync::OnceLock;

use crate::netlink::{Socket, attribute, find};

/// Numbers of include/uapi/linux/{genetlink,netdev}.h.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// Bytes of the header of generic netlink.
const HEADER: usize = 4;

/// Whether frames can be redirected to the interface; `None`: the kernel does not report it.
#[must_use]
pub fn accepts_redirects(ifindex: u32) -> Option<bool> {
    let socket = Socket::generic().ok()?;
    let family = netdev_family(&socket)?;
    let which = attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let answer = get(&socket, family, NETDEV_CMD_DEV_GET, &which)?;
    let features = find(answer.get(HEADER..)?, NETDEV_A_DEV_XDP_FEATURES)?;
    let features = u64::from_ne_bytes(features.try_into().ok()?);
    Some(features & NETDEV_XDP_ACT_NDO_XMIT != 0)
}

/// The number of the netdev family, which the kernel assigns at boot; asked for once.
fn netdev_family(socket: &Socket) -> Option<u16> {
    static FAMILY: OnceLock<u16> = OnceLock::new();
    if let Some(family) = FAMILY.get() {
        return Some(*family);
    }
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answer = get(socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
    let family = find(answer.get(HEADER..)?, CTRL_ATTR_FAMILY_ID)?;
    let family = u16::from_ne_bytes(family.try_into().ok()?);
    Some(*FAMILY.get_or_init(|| family))
}

fn get(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> Option<Vec<u8>> {
    let payload = [&[command, 1, 0, 0], attributes].concat();
    socket.get(family, &payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_accepts_no_redirects() {
        // Older kernels report nothing.
        assert_ne!(accepts_redirects(1), Some(true));
        assert_eq!(accepts_redirects(0x7fff_ffff), None);
    }
}
