//! NIC settings that XDP needs: sets them, reads them back, and reports what the driver did not
//! change.
//!
//! ```text
//!   ethtool, link ─ facts ─▶ rules (pure) ─▶ features to clear, VLANs to add ─▶ ethtool, link
//!        └──────── read back ─▶ rules ─▶ problems, with their remedies
//! ```

mod ethtool;
mod link;
mod rules;

use std::io;

use ethtool::Ethtool;
pub use link::{LinkFacts, VlanId, XdpPrograms, xdp_programs};
pub use rules::{
    Facts, Feature, RedirectPort, Requirements, SECOND_TAG, max_mtu, redirect_problems,
};

/// A NIC as it was prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// The requirements for which it was prepared.
    pub required: Requirements,
    /// Name of the driver, such as `veth` or `vmxnet3`; empty if unknown.
    pub driver: String,
    /// Settings that prevent forwarding, each with its remedy; empty if the NIC is ready.
    pub problems: Vec<String>,
}

/// Switches off the offloads that XDP cannot work with, has the NIC's filter accept the VLANs of
/// the port, and reports what does not fit the requirements.
///
/// # Errors
/// When the ioctl socket cannot be opened or the features cannot be read.
pub fn prepare(interface: &str, ifindex: u32, required: Requirements) -> io::Result<Nic> {
    let socket = Ethtool::open(interface)?;
    let names = socket.feature_names()?;
    let mut facts = Facts {
        driver: socket.driver().unwrap_or_default(),
        features: socket.features(&names)?,
        link: link::facts(ifindex)?,
    };
    let off = rules::features_to_switch_off(&facts, &required);
    if !off.is_empty() {
        // Setting a fixed feature may fail; the features that are read back decide.
        if let Err(error) = socket.switch_off(&names, &off) {
            tracing::debug!(interface, %error, "ethtool could not change all features");
        }
        facts.features = socket.features(&names)?;
    }
    let mut problems = rules::problems(interface, &facts, &required);
    let vlans = rules::filtered_vlans(&facts, &required);
    problems.extend(pass_filter(&socket, (interface, ifindex), &vlans, &facts));
    Ok(Nic {
        required,
        driver: facts.driver,
        problems,
    })
}

/// Has a filter that cannot be switched off pass these VLANs: registers them, or where the kernel
/// has no VLAN devices, makes the interface promiscuous. Returns the problem if neither works.
fn pass_filter(
    socket: &Ethtool,
    (interface, ifindex): (&str, u32),
    vlans: &[VlanId],
    facts: &Facts,
) -> Option<String> {
    let error = match link::register_vlans(ifindex, vlans) {
        Ok(added) => {
            if added > 0 {
                tracing::info!(interface, added, "VLANs registered with the NIC's filter");
            }
            return None;
        }
        Err(error) => error,
    };
    if let Ok(true) = socket.set_flag(libc::IFF_PROMISC, true) {
        tracing::debug!(
            interface,
            %error,
            "VLANs cannot be registered with the NIC's filter: the interface is promiscuous instead"
        );
        return None;
    }
    let ids: Vec<String> = vlans.iter().map(|(_, id)| id.to_string()).collect();
    Some(format!(
        "filters VLANs {}: the driver {} does not switch its filter off (`ethtool -K {interface} \
         rx-vlan-filter off`), and the VLANs cannot be registered with it ({error}): load the \
         kernel module 8021q, or run `ip link set {interface} promisc on`",
        ids.join(", "),
        facts.driver
    ))
}

/// Number of receive and transmit queues of an interface; 1 and 1 if the driver does not report
/// them.
#[must_use]
pub fn queues(interface: &str) -> (u32, u32) {
    let queues = Ethtool::open(interface).and_then(|socket| socket.queues());
    queues.map_or((1, 1), |(rx, tx)| (rx.max(1), tx.max(1)))
}

/// Makes an interface accept frames to an Ethernet group address, or stop accepting them. The
/// setting outlives this process.
///
/// # Errors
/// When the kernel refuses, for example because the interface is gone. No error if the setting is
/// already as requested.
pub fn set_multicast_group(interface: &str, group: [u8; 6], join: bool) -> io::Result<()> {
    Ethtool::open(interface)?.set_multicast_group(group, join)
}

/// Makes an interface accept frames to every group address, or only to those it joined. The setting
/// outlives this process. Returns whether it accepts all of them now.
///
/// # Errors
/// When the kernel refuses, for example because the interface is gone.
pub fn set_all_multicast(interface: &str, all: bool) -> io::Result<bool> {
    Ethtool::open(interface)?.set_flag(libc::IFF_ALLMULTI, all)
}
