//! Captures on any link, and raw frames sent from any link: AF_PACKET on threads inside the
//! namespaces.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use crate::{
    error::{During as _, Error, Result},
    netns,
    pcap::{self, Frame},
    site::Lab,
};

/// Which frames to keep; sees the whole frame, tags in place.
pub type Filter = Box<dyn Fn(&[u8]) -> bool + Send>;

/// How long a capture sleeps before it looks whether it is to end.
const POLL_MS: i32 = 20;
/// Receive buffer, bytes: a capture under load loses no frame for want of it.
const BUFFER: libc::c_int = 32 << 20;

/// A running capture. Dropping it ends it; the file stays.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Frame>>>>,
}

impl Capture {
    /// Its pcap file.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Ends it, with everything that has arrived by now, and returns the frames.
    ///
    /// # Errors
    /// If reading the socket or writing the file failed.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        self.end()
    }

    fn end(&mut self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(Vec::new()),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            service::errln!("capture {}: {e}", self.path.display());
        }
    }
}

impl Lab {
    /// Captures on `link` of a host or switch, both directions, into
    /// `capture/<host>-<link>[-<n>].pcap` of the run directory and into memory. Returns once it
    /// captures. Frames that XDP takes are not seen at the NIC that runs it: capture at the far
    /// end, [`crate::Topology::port_of`].
    ///
    /// # Errors
    /// If there is no such host or link.
    pub fn capture(&self, host: &str, link: &str, filter: Option<Filter>) -> Result<Capture> {
        let namespace = self.namespace(host)?;
        let dir = self.run_dir().join("capture");
        let (path, file) = (0..)
            .map(|n| match n {
                0 => dir.join(format!("{host}-{link}.pcap")),
                n => dir.join(format!("{host}-{link}-{n}.pcap")),
            })
            .find_map(|path| match File::create_new(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => None,
                result => Some((path, result)),
            })
            .expect("the numbers do not end");
        let mut file = BufWriter::new(file.during(|| format!("creating {}", path.display()))?);
        pcap::write_header(&mut file).during(|| format!("writing {}", path.display()))?;
        let socket = netns::within(&namespace, || packet_socket(link))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, to) = (Arc::clone(&stop), path.clone());
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || {
                let frames = record(&socket, filter, &stopping, |frame| {
                    pcap::write_frame(&mut file, frame)
                })?;
                file.flush()
                    .during(|| format!("writing {}", to.display()))?;
                Ok(frames)
            })
            .during(|| "starting a thread".to_owned())?;
        Ok(Capture {
            path,
            stop,
            thread: Some(thread),
        })
    }

    /// Sends whole frames, from the destination MAC on, out of `link` of a host or switch.
    ///
    /// # Errors
    /// If there is no such host or link, or the link is down.
    pub fn inject(&self, host: &str, link: &str, frames: &[Vec<u8>]) -> Result<()> {
        let namespace = self.namespace(host)?;
        let socket = netns::within(&namespace, || packet_socket(link))?;
        for frame in frames {
            send(&socket, frame).during(|| format!("sending a frame on {link} of {host}"))?;
        }
        Ok(())
    }
}

/// Sends a whole frame by a packet socket.
pub(crate) fn send(socket: &OwnedFd, frame: &[u8]) -> std::io::Result<()> {
    // SAFETY: the buffer is valid for its length for the duration of the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    if usize::try_from(sent) == Ok(frame.len()) {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Sets an option of a socket whose value is a number.
pub(crate) fn set_option(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> std::io::Result<()> {
    // SAFETY: the pointer is to a `c_int` whose size is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// An AF_PACKET socket bound to `link` in the namespace of this thread, VLAN tags of received
/// frames delivered aside (`PACKET_AUXDATA`).
pub(crate) fn packet_socket(link: &str) -> Result<OwnedFd> {
    let during = |result: libc::c_int, what: &str| {
        if result < 0 {
            Err(std::io::Error::last_os_error()).during(|| format!("{what} on {link}"))
        } else {
            Ok(result)
        }
    };
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointer is passed. Protocol 0: nothing arrives until it is bound.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    let fd = during(fd, "opening a packet socket")?;
    // SAFETY: the descriptor was just made and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)
        .during(|| format!("asking for VLAN tags on {link}"))?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)
        .during(|| format!("sizing the buffer on {link}"))?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = netns::index(link)?.cast_signed();
    // SAFETY: the pointer is to a `sockaddr_ll` whose size is passed.
    let bound = unsafe {
        libc::bind(
            fd,
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    during(bound, "binding")?;
    Ok(socket)
}

fn record(
    socket: &OwnedFd,
    filter: Option<Filter>,
    stop: &AtomicBool,
    mut write: impl FnMut(&Frame) -> std::io::Result<()>,
) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0_u8; pcap::SNAP as usize];
    loop {
        // Read before polling, so that frames before the stop request are still captured.
        let stopping = stop.load(Ordering::Relaxed);
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let wait = if stopping { 0 } else { POLL_MS };
        // SAFETY: the pointer is valid for one `pollfd`, and the count is 1.
        let ready = unsafe { libc::poll(&raw mut poll, 1, wait) };
        if ready <= 0 {
            if stopping {
                return Ok(frames);
            }
            continue;
        }
        let Some(frame) = receive(socket, &mut buffer)? else {
            continue;
        };
        if filter.as_ref().is_none_or(|keep| keep(&frame.bytes)) {
            write(&frame).during(|| "writing a capture".to_owned())?;
            frames.push(frame);
        }
    }
}

/// One frame, with the tag that the kernel took off put back.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<Frame>> {
    let mut control = [0_u64; 16];
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero is a valid value of these plain structures.
    let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    message.msg_name = std::ptr::from_mut(&mut from).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in `message` is to memory of the size given, alive during the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(length) = usize::try_from(got) else {
        let error = std::io::Error::last_os_error();
        return match error.raw_os_error() {
            // ENETDOWN: the link is down, maybe temporarily.
            Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(None),
            _ => Err(Error::Io {
                operation: "reading a capture".to_owned(),
                source: error,
            }),
        };
    };
    let mut bytes = buffer.get(..length).unwrap_or_default().to_vec();
    // SAFETY: `message` was filled by recvmsg and `control` is still alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: the header is within `control`, which recvmsg filled; `u64` aligns it.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA {
            // SAFETY: the kernel put a `tpacket_auxdata` there; it may not be aligned.
            let aux: libc::tpacket_auxdata =
                unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
            if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 && bytes.len() >= 12 {
                let ethertype = if aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
                    aux.tp_vlan_tpid
                } else {
                    0x8100
                };
                let tag = [ethertype.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes()].concat();
                bytes.splice(12..12, tag);
            }
        }
        // SAFETY: as for the first header.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Some(Frame {
        time: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO),
        outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
        bytes,
    }))
}
