//! What the appliance asks of the Linux kernel, and what it sets there, apart from BPF.
//!
//! ```text
//!   underlay    links, addresses, routes and next hops, watched by rtnetlink
//!   nic         driver, offloads, queues and multicast groups, by ethtool and ioctl
//!   raw_socket  sends Ethernet frames and whole IP packets
//!   forwarding  the sysctls that let the XDP programs look up routes
//! ```

pub mod forwarding;
pub mod nic;
pub mod raw_socket;
pub mod underlay;
