//! State of the Linux kernel that the appliance reads and sets, apart from BPF.
//!
//! ```text
//!   underlay       links, addresses, routes and next hops, watched by rtnetlink
//!   nic            driver, offloads, filters and queues, by ethtool and rtnetlink
//!   xdp_errors     frames that the kernel dropped after a program, by perf events
//!   raw_socket     sends Ethernet frames and whole IP packets
//!   ip_forwarding  the sysctls that let the XDP programs look up routes
//! ```

pub mod ip_forwarding;
pub mod nic;
pub mod raw_socket;
pub mod underlay;
pub mod xdp_errors;
