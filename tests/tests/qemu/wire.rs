//! The other end of a virtual NIC's cable: frames, and hosts that answer ARP.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::packet::{Mac, arp, be16, eth, l2};

/// How long a frame is waited for. A guest under TCG takes some milliseconds.
const FRAME_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest frame, bytes.
const MAX_FRAME_LEN: usize = 65_536;

/// A host on a wire.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub address: Ipv4Addr,
    pub mac: Mac,
}

/// The other end of a NIC's cable.
pub struct Wire {
    socket: UnixDatagram,
    /// Where QEMU receives.
    nic: PathBuf,
    frames: mpsc::Receiver<Vec<u8>>,
}

impl Wire {
    /// Opens the end at `here`; the NIC's is at `nic`. The hosts answer ARP, behind the tags of the
    /// request.
    pub fn open(here: &Path, nic: &Path, hosts: Vec<Host>) -> std::io::Result<Self> {
        let socket = UnixDatagram::bind(here)?;
        let (tell, frames) = mpsc::channel();
        let (receiver, to) = (socket.try_clone()?, nic.to_owned());
        thread::spawn(move || {
            let mut room = vec![0; MAX_FRAME_LEN];
            while let Ok(length) = receiver.recv(&mut room) {
                let frame = room[..length].to_vec();
                if let Some(reply) = answer(&frame, &hosts) {
                    let _ = receiver.send_to(&reply, &to);
                }
                if tell.send(frame).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            socket,
            nic: nic.to_owned(),
            frames,
        })
    }

    /// Sends a frame to the NIC.
    pub fn send(&self, frame: &[u8]) {
        let sent = self.socket.send_to(frame, &self.nic);
        sent.unwrap_or_else(|e| panic!("{}: {e}", self.nic.display()));
    }

    /// Sends a frame, and returns what the first frame that arrives means to `find`; `None` if
    /// none does. What arrived before is forgotten.
    pub fn ask<T>(
        &self,
        frame: &[u8],
        answers: &Self,
        mut find: impl FnMut(&[u8]) -> Option<T>,
    ) -> Option<T> {
        while answers.frames.try_recv().is_ok() {}
        self.send(frame);
        let until = Instant::now() + FRAME_TIMEOUT;
        loop {
            let left = until.checked_duration_since(Instant::now())?;
            let frame = answers.frames.recv_timeout(left).ok()?;
            if let Some(found) = find(&frame) {
                return Some(found);
            }
        }
    }
}

/// The answer of one of the hosts to an ARP request.
fn answer(frame: &[u8], hosts: &[Host]) -> Option<Vec<u8>> {
    let at = l2(frame)?;
    let body = frame.get(at.l3..at.l3 + 28)?;
    if at.ethertype != 0x0806 || be16(body, 6)? != 1 {
        return None;
    }
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = body.get(at..at + 4)?.try_into().ok()?;
        Some(bytes.into())
    };
    let target = address(24)?;
    let host = hosts.iter().find(|host| host.address == target)?;
    let asker: Mac = body.get(8..14)?.try_into().ok()?;
    let tags: Vec<(u16, u16)> = (0..at.tags)
        .filter_map(|n| Some((be16(frame, 12 + 4 * n)?, be16(frame, 14 + 4 * n)?)))
        .collect();
    let reply = arp(2, host.mac, host.address, asker, address(14)?);
    Some(eth(asker, host.mac, &tags, 0x0806, &reply))
}

/// An IPv4 address.
pub fn v4(text: &str) -> Ipv4Addr {
    match causeway_tests::packet::ip(text) {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}
