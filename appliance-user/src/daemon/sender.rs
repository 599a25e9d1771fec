//! Frames and packets of the daemon's own: raw sockets by interface, and one towards the outside.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::{
    kernel::raw_socket::{PacketSocket, RawIpSocket},
    kernel::underlay::{LinkState, Snapshot},
};

/// Sends the frames of the engines. A link that is down or a full queue is counted, not fatal: the
/// engine repeats its question.
#[derive(Default)]
pub(super) struct FrameSender {
    /// By interface index.
    sockets: BTreeMap<u32, PacketSocket>,
    /// For packets whose next hop the kernel resolves.
    outside: Option<RawIpSocket>,
    errors: u64,
}

impl FrameSender {
    /// Sends a frame, from the Ethernet header on, without FCS.
    pub fn send(&mut self, ifindex: u32, frame: &[u8]) {
        let socket = match self.sockets.entry(ifindex) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match PacketSocket::open(ifindex) {
                Ok(socket) => entry.insert(socket),
                Err(error) => {
                    self.errors += 1;
                    tracing::debug!(%error, ifindex, "cannot open a raw socket");
                    return;
                }
            },
        };
        if let Err(error) = socket.send(frame) {
            self.errors += 1;
            tracing::debug!(%error, ifindex, "cannot send a frame");
            if error.raw_os_error() == Some(libc::ENXIO) {
                self.sockets.remove(&ifindex);
            }
        }
    }

    /// Has the kernel send a translated packet, from the IP header on, out of the uplink.
    pub fn send_outside(&mut self, uplink: Option<&LinkState>, packet: &[u8]) {
        let Some(link) = uplink else {
            self.errors += 1;
            return;
        };
        let same = |socket: &RawIpSocket| socket.ifindex() == link.ifindex;
        if !self.outside.as_ref().is_some_and(same) {
            match RawIpSocket::open(&link.name, link.ifindex) {
                Ok(socket) => self.outside = Some(socket),
                Err(error) => {
                    self.errors += 1;
                    tracing::debug!(%error, "cannot open a raw IP socket on the uplink");
                    return;
                }
            }
        }
        if let Some(socket) = &self.outside
            && let Err(error) = socket.send(packet)
        {
            self.errors += 1;
            tracing::debug!(%error, "cannot send a translated packet");
        }
    }

    /// Counts a frame that another sender could not send.
    pub const fn count_error(&mut self) {
        self.errors += 1;
    }

    /// Closes the sockets of interfaces that are gone.
    pub fn forget_gone(&mut self, snapshot: &Snapshot) {
        let is_there = |ifindex: &u32| snapshot.links.values().any(|l| l.ifindex == *ifindex);
        self.sockets.retain(|ifindex, _| is_there(ifindex));
    }

    /// Frames and packets that could not be sent.
    pub const fn errors(&self) -> u64 {
        self.errors
    }
}
