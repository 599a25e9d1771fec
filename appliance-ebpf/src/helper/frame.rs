//! A frame on a tenant's port, classified: its network, and the tenant's mode.

use appliance_common::{
    counters::Counter,
    entry_hash,
    maps::{Attachment, AttachmentKey, Mode, Network, attachment_flags},
};
use aya_ebpf::programs::XdpContext;

use crate::{
    helper::{
        addr::{bytes, v4_mapped, v4_may_be_network_or_broadcast},
        logging,
        lookup::{mode, network, prefix_of},
        packet::{L2, L2Error, Mac, Outcome, ingress},
    },
    maps::{ATTACHMENTS, PASSED, TailCallState},
};

/// Whether the appliance's own stack shares the port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// A tenant's only: frames that the data path does not carry are dropped.
    TenantOnly,
    /// Shared with the kernel: frames that are not for the data path are passed to it.
    Shared,
}

/// The outcome for a packet that is not for the data path: passed to the kernel where it shares the
/// port, else dropped for `reason`.
#[inline(always)]
pub fn pass_or_drop(port: Port, reason: Counter) -> Outcome {
    match port {
        Port::Shared => Outcome::Pass(Counter::Passed),
        Port::TenantOnly => Outcome::Drop(reason),
    }
}

/// A classified frame.
pub struct Frame {
    /// Its Ethernet header.
    pub l2: L2,
    pub network: &'static Network,
    pub slot: u32,
    /// Our MAC address on the port.
    pub mac: Mac,
    /// First socket of the interface in `XSKS`.
    pub xsk: u16,
    /// Whether the kernel shares the port.
    pub port: Port,
    /// The tenant's [`Mode`]. One byte: a wider field would cost the longest chain of calls its
    /// last 32 bytes of stack.
    mode: u8,
}

impl Frame {
    /// Classifies the frame by interface and VLAN tags, or returns the verdict if that is not
    /// possible. `program` decides about a frame without an attachment.
    #[inline(always)]
    pub fn classify(ctx: &XdpContext, program: Port) -> Result<Self, Outcome> {
        let l2 = match L2::parse(ctx) {
            Ok(l2) => l2,
            Err(L2Error::Truncated) => return Err(pass_or_drop(program, Counter::DropMalformed)),
            Err(L2Error::TooManyTags) => {
                return Err(pass_or_drop(program, Counter::DropTooManyTags));
            }
        };
        let key = AttachmentKey {
            ifindex: ingress(ctx),
            outer: l2.outer,
            inner: l2.inner,
        };
        let Some(entry) = ATTACHMENTS.get_ptr(key) else {
            return Err(pass_or_drop(program, Counter::DropUnknownVlan));
        };
        let Some([slot, flags, mac, rest]) = read(entry, &key) else {
            return Err(Outcome::Drop(Counter::DropRecycled));
        };
        let port = if flags & attachment_flags::HOST != 0 {
            Port::Shared
        } else {
            Port::TenantOnly
        };
        let [mac_4, mac_5, xsk_0, xsk_1] = rest.to_ne_bytes();
        let mac = Mac(mac, u16::from_ne_bytes([mac_4, mac_5]));
        if l2.source == mac {
            return Err(Outcome::Drop(Counter::DropLoop));
        }
        let Some(network) = network(slot) else {
            logging::no_network(ctx, slot);
            return Err(pass_or_drop(port, Counter::DropInconsistent));
        };
        Ok(Self {
            l2,
            network,
            slot,
            mac,
            xsk: u16::from_ne_bytes([xsk_0, xsk_1]),
            port,
            mode: mode(network) as u8,
        })
    }

    /// A frame on the uplink for the network `to`, for the ICMP errors about it.
    #[inline(always)]
    pub fn from_uplink(l2: L2, to: &'static Network, slot: u32) -> Self {
        let mac = l2.destination;
        Self {
            l2,
            network: to,
            slot,
            mac,
            xsk: 0,
            port: Port::Shared,
            mode: Mode::Full as u8,
        }
    }

    /// Saves the classification for the program that a tail call leads to.
    #[inline(always)]
    pub fn save(&self) {
        let Some(state) = PASSED.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: this CPU's entry; an XDP program is not interrupted by another on its CPU. Field
        // by field, as a whole value would be built on the stack first.
        unsafe {
            (*state).slot = self.slot;
            (*state).mac = (self.mac.0, self.mac.1);
            (*state).xsk = self.xsk;
            (*state).shared = self.port == Port::Shared;
            (*state).mode = self.mode;
        }
    }

    /// The frame as the program before this one classified it.
    #[inline(always)]
    pub fn resume(ctx: &XdpContext) -> Result<Self, Outcome> {
        let (Some(state), Ok(l2)) = (PASSED.get(0), L2::parse(ctx)) else {
            return Err(Outcome::Drop(Counter::DropInconsistent));
        };
        let TailCallState {
            slot,
            mac,
            xsk,
            shared,
            mode,
        } = *state;
        let Some(network) = network(slot) else {
            return Err(Outcome::Drop(Counter::DropInconsistent));
        };
        Ok(Self {
            l2,
            network,
            slot,
            mac: Mac(mac.0, mac.1),
            xsk,
            port: if shared {
                Port::Shared
            } else {
                Port::TenantOnly
            },
            mode,
        })
    }

    /// Whether the tenant is in partial failover.
    #[inline(always)]
    pub const fn partial(&self) -> bool {
        self.mode == Mode::Partial as u8
    }

    /// Whether the tenant is in full failover.
    #[inline(always)]
    pub const fn full(&self) -> bool {
        self.mode == Mode::Full as u8
    }
}

/// Reads the attachment of `key` once: network, flags, and MAC address with `xsk`, in memory order.
/// `None` if the element is another port's by now, or partly written.
#[inline(always)]
fn read(entry: *const Attachment, key: &AttachmentKey) -> Option<[u32; 4]> {
    const {
        assert!(core::mem::offset_of!(Attachment, entry_hash) == 16);
    }
    let words = entry.cast::<u64>();
    // SAFETY: the map returned the value, three words; preallocated elements are never unmapped.
    // Volatile, so that the words used are the words checked.
    let (network, port, hash) = unsafe {
        (
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
        )
    };
    let (network, port) = (halves(network), halves(port));
    (entry_hash::attachment(key, network, port) == hash)
        .then_some([network[0], network[1], port[0], port[1]])
}

/// The halves of a word in memory order.
#[inline(always)]
const fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
}

/// Whether `word` is the network or broadcast address of one of the network's prefixes, so that no
/// host has it.
#[inline(always)]
pub fn is_network_or_broadcast(network: &Network, word: u32) -> bool {
    v4_may_be_network_or_broadcast(word)
        && prefix_of(network, v4_mapped(word))
            .is_some_and(|p| p.is_v4_network_or_broadcast(&bytes(v4_mapped(word))))
}
