//! Functions that the stages call. Each helper does one thing to a frame or a table; none decides
//! what a program does next.

pub mod addr;
pub mod arp;
pub mod budget;
pub mod bytes;
pub mod count;
pub mod echo;
pub mod encap;
pub mod frame;
pub mod icmp;
pub mod logging;
pub mod lookup;
pub mod mss;
pub mod nat;
pub mod nd;
pub mod packet;
pub mod partial_checksum;
pub mod report;
pub mod reset;
pub mod slow_path;
pub mod trace;
pub mod tunnel;
pub mod words;
pub mod worker;
