//! Requests to the kernel by netlink, each answered before it returns.
//!
//! For: facts that a daemon asks for seldom, and links that it adds. Never: following changes,
//! which is the work of an asynchronous watcher.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::libc;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes that one receive takes; the kernel's dumps use at most 32 KiB.
const BUFFER_LEN: usize = 1 << 16;
/// Bits of an attribute's type that say how its value is stored (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// A netlink socket in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens a socket for rtnetlink.
    ///
    /// # Errors
    /// That of socket(2).
    pub fn route() -> io::Result<Self> {
        Self::open(libc::NETLINK_ROUTE)
    }

    /// Opens a socket for generic netlink.
    ///
    /// # Errors
    /// That of socket(2).
    pub fn generic() -> io::Result<Self> {
        Self::open(libc::NETLINK_GENERIC)
    }

    fn open(protocol: libc::c_int) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Asks for one object. Returns the answer behind its netlink header.
    ///
    /// # Errors
    /// The kernel's error, or that of the socket.
    pub fn get(&self, kind: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.send(kind, 0, payload)?;
        let answers = self.receive()?;
        answers.into_iter().next().ok_or_else(unexpected)
    }

    /// Asks for all objects of a kind. Returns each behind its netlink header.
    ///
    /// # Errors
    /// The kernel's error, or that of the socket.
    pub fn dump(&self, kind: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.send(kind, libc::NLM_F_DUMP as u16, payload)?;
        self.receive()
    }

    /// Asks for a change; `flags` are those of a new object, such as `NLM_F_CREATE`.
    ///
    /// # Errors
    /// The kernel's error, or that of the socket.
    pub fn change(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, flags | libc::NLM_F_ACK as u16, payload)?;
        self.receive().map(drop)
    }

    fn send(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        // Sequence and port.
        message.extend([0; 8]);
        message.extend(payload);
        // SAFETY: the buffer has the given length.
        let sent = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Receives the answers to one request, which the kernel queues within send(2) and, for a dump,
    /// within recv(2).
    fn receive(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut answers = Vec::new();
        let mut room = vec![0u8; BUFFER_LEN];
        loop {
            // SAFETY: the buffer has the given length.
            let length = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    room.as_mut_ptr().cast(),
                    room.len(),
                    libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                )
            };
            let Ok(length) = usize::try_from(length) else {
                return Err(io::Error::last_os_error());
            };
            let datagram = room.get(..length).ok_or_else(unexpected)?;
            if !take(datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Takes the messages of a datagram; returns whether more datagrams follow.
fn take(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let mut more = false;
    while !datagram.is_empty() {
        let header = datagram.get(..HEADER).ok_or_else(unexpected)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = i32::from(u16::from_ne_bytes([header[4], header[5]]));
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let payload = datagram.get(HEADER..length).ok_or_else(unexpected)?;
        match kind {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => {
                let code = payload.get(..4).ok_or_else(unexpected)?;
                let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
                return match code {
                    0 => Ok(false),
                    code => Err(io::Error::from_raw_os_error(-code)),
                };
            }
            _ => answers.push(payload.to_vec()),
        }
        more = flags & libc::NLM_F_MULTI as u16 != 0;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(more)
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected netlink answer")
}

/// An attribute, padded to four bytes.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(((4 + value.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The value of the first attribute of a kind.
#[must_use]
pub fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    all(attributes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The attributes, each with its kind, up to the first malformed one.
pub fn all(mut attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = attributes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(4..length)?;
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK;
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_among_others_and_none_in_noise() {
        let both = [attribute(7, &[1, 2, 3]), attribute(3, &[9; 8])].concat();
        assert_eq!(find(&both, 7), Some(&[1, 2, 3][..]));
        assert_eq!(find(&both, 3), Some(&[9; 8][..]));
        assert_eq!(find(&both, 4), None);
        assert_eq!(all(&both).count(), 2);
        for noise in [&[0u8; 4][..], &[1, 0, 3, 0], &[255; 40], &[]] {
            assert_eq!(find(noise, 3), None);
        }
    }

    #[test]
    fn errors_and_ends_of_an_answer_are_recognised() {
        let message = |kind: u16, flags: u16, payload: &[u8]| {
            let mut out = ((16 + payload.len()) as u32).to_ne_bytes().to_vec();
            out.extend(kind.to_ne_bytes());
            out.extend(flags.to_ne_bytes());
            out.extend([0; 8]);
            out.extend(payload);
            out
        };
        let mut answers = Vec::new();
        let part = [message(16, 2, &[1; 4]), message(16, 2, &[2; 4])].concat();
        assert!(take(&part, &mut answers).expect("well-formed"));
        assert!(!take(&message(3, 2, &[0; 4]), &mut answers).expect("the end"));
        assert_eq!(answers, [[1; 4], [2; 4]]);
        let refused = take(&message(2, 0, &(-19i32).to_ne_bytes()), &mut answers);
        assert_eq!(refused.expect_err("ENODEV").raw_os_error(), Some(19));
        assert!(take(&[1, 2, 3], &mut answers).is_err());
    }

    #[test]
    fn the_kernel_answers_for_the_loopback() {
        let socket = Socket::route().expect("netlink");
        // struct ifinfomsg: family, type, index, flags, change mask.
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&1i32.to_ne_bytes());
        let link = socket
            .get(libc::RTM_GETLINK, &header)
            .expect("the loopback");
        let name = find(&link[16..], libc::IFLA_IFNAME).expect("a name");
        assert_eq!(name, b"lo\0");
        header[4..8].copy_from_slice(&0x7fff_fffe_i32.to_ne_bytes());
        let missing = socket.get(libc::RTM_GETLINK, &header);
        assert_eq!(
            missing.expect_err("none").raw_os_error(),
            Some(libc::ENODEV)
        );
        let links = socket.dump(libc::RTM_GETLINK, &[0; 16]).expect("all links");
        assert!(!links.is_empty());
    }
}
