//! IP headers, read and checked by the oracle itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::be16;

/// An IP header as far as it can be trusted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub header: usize,
    pub proto: u8,
    /// Whole packet, header included.
    pub len: usize,
    /// Flags and fragment offset of IPv4; 0 for IPv6.
    pub frag: u16,
}

impl Ip {
    /// Reads and checks lengths: a packet whose lengths contradict the frame is `None`.
    pub fn parse(ethertype: u16, l3: &[u8]) -> Option<Self> {
        match ethertype {
            0x0800 => {
                let first = *l3.first()?;
                let header = usize::from(first & 0xf) * 4;
                if first >> 4 != 4 || header < 20 || l3.len() < header {
                    return None;
                }
                let len = usize::from(be16(l3, 2)?);
                if len < header || len > l3.len() {
                    return None;
                }
                Some(Self {
                    src: Ipv4Addr::new(l3[12], l3[13], l3[14], l3[15]).into(),
                    dst: Ipv4Addr::new(l3[16], l3[17], l3[18], l3[19]).into(),
                    header,
                    proto: l3[9],
                    len,
                    frag: be16(l3, 6)?,
                })
            }
            0x86dd => {
                if l3.len() < 40 || l3[0] >> 4 != 6 {
                    return None;
                }
                let len = 40 + usize::from(be16(l3, 4)?);
                if len > l3.len() {
                    return None;
                }
                let mut src = [0; 16];
                src.copy_from_slice(&l3[8..24]);
                let mut dst = [0; 16];
                dst.copy_from_slice(&l3[24..40]);
                Some(Self {
                    src: Ipv6Addr::from(src).into(),
                    dst: Ipv6Addr::from(dst).into(),
                    header: 40,
                    proto: l3[6],
                    len,
                    frag: 0,
                })
            }
            _ => None,
        }
    }
}

/// Offsets of the MSS value and of the TCP checksum in an IP packet that is a SYN with that option.
#[must_use]
pub fn mss_of(body: &[u8]) -> Option<(usize, usize)> {
    let tcp = match body.first()? >> 4 {
        4 => {
            let header = usize::from(body[0] & 0xf) * 4;
            if *body.get(9)? != 6 || be16(body, 6)? & 0x1fff != 0 {
                return None;
            }
            header
        }
        6 => {
            let mut next = *body.get(6)?;
            let mut at = 40;
            loop {
                match next {
                    6 => break at,
                    0 | 43 | 60 => {
                        next = *body.get(at)?;
                        at += 8 + 8 * usize::from(*body.get(at + 1)?);
                    }
                    44 => {
                        if be16(body, at + 2)? & 0xfff8 != 0 {
                            return None;
                        }
                        next = *body.get(at)?;
                        at += 8;
                    }
                    51 => {
                        next = *body.get(at)?;
                        at += 8 + 4 * usize::from(*body.get(at + 1)?);
                    }
                    _ => return None,
                }
            }
        }
        _ => return None,
    };
    if body.get(tcp + 13)? & 2 == 0 {
        return None;
    }
    let end = tcp + usize::from(body[tcp + 12] >> 4) * 4;
    let mut at = tcp + 20;
    while at < end {
        match *body.get(at)? {
            0 => return None,
            1 => at += 1,
            2 => {
                return (*body.get(at + 1)? == 4 && at + 4 <= end && at + 4 <= body.len())
                    .then_some((at + 2, tcp + 16));
            }
            _ => {
                let len = usize::from(*body.get(at + 1)?);
                if len < 2 {
                    return None;
                }
                at += len;
            }
        }
    }
    None
}
