//! Whether a driver accepts XDP redirects. A driver that does not drops redirected frames silently.
//!
//! Reads the features from the netdev family of generic netlink
//! (Documentation/netlink/specs/netdev.yaml, Linux 6.3).

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Numbers of include/uapi/linux/{netlink,genetlink,netdev}.h.
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// Bytes of the headers of netlink and of generic netlink.
const HEADERS: usize = 16 + 4;

/// Whether frames can be redirected to the interface; `None`: the kernel does not report it.
pub(super) fn takes_redirected(ifindex: u32) -> Option<bool> {
    let socket = open().ok()?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answer = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name).ok()?;
    let family = find(&answer, CTRL_ATTR_FAMILY_ID)?;
    let family = u16::from_ne_bytes(family.try_into().ok()?);
    let which = attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let answer = ask(&socket, family, NETDEV_CMD_DEV_GET, &which).ok()?;
    let features = find(&answer, NETDEV_A_DEV_XDP_FEATURES)?;
    let features = u64::from_ne_bytes(features.try_into().ok()?);
    Some(features & NETDEV_XDP_ACT_NDO_XMIT != 0)
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_GENERIC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(((4 + value.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// Sends a request and returns the attributes of the answer, which the kernel gives within the
/// send.
fn ask(socket: &OwnedFd, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    message.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence, port, command, version.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    let mut room = vec![0u8; 1 << 15];
    // SAFETY: the buffers have the given lengths.
    let length = unsafe {
        let sent = libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
        );
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::recv(
            socket.as_raw_fd(),
            room.as_mut_ptr().cast(),
            room.len(),
            libc::MSG_DONTWAIT,
        )
    };
    let Ok(length) = usize::try_from(length) else {
        return Err(io::Error::last_os_error());
    };
    room.truncate(length);
    let kind = room.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    if length < HEADERS || kind == Some(NLMSG_ERROR) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    room.drain(..HEADERS);
    Ok(room)
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let head = attributes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) & 0x3fff == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_among_others_and_none_in_noise() {
        let all = [attribute(7, &[1, 2, 3]), attribute(3, &[9; 8])].concat();
        assert_eq!(find(&all, 7), Some(&[1, 2, 3][..]));
        assert_eq!(find(&all, 3), Some(&[9; 8][..]));
        assert_eq!(find(&all, 4), None);
        for noise in [&[0u8; 4][..], &[1, 0, 3, 0], &[255; 40], &[]] {
            assert_eq!(find(noise, 3), None);
        }
    }

    #[test]
    fn the_loopback_accepts_no_redirects() {
        // Older kernels report nothing.
        assert_ne!(takes_redirected(1), Some(true));
        assert_eq!(takes_redirected(0x7fff_ffff), None);
    }
}
