//! Whole sites in network namespaces on one machine.
//!
//! For: raising hosts with real Linux stacks, virtual switches that tag and untag as a hypervisor's
//! port groups do, routers and WAN links from a declared topology; running the appliances and
//! gateways in it; failing machines over; capturing, pinging, downloading; and taking all of it
//! down again after any crash. Used by the demo, the integration tests and the benchmarks.
//!
//! Never: part of a product installation, a touch on the machine's own network, or the end of a
//! process that it did not start (processes are known by pid *and* start time).
//!
//! ```text
//!   Topology ──validate──▶ plan: text for ip, ethtool ──▶ namespaces cw-<lab>-<host>
//!                                                        │
//!   record.jsonl ◀── written before anything is made ────┤── virtual switch: bridges + TC programs
//!        │                                               ├── causeway-gateway, causeway-appliance daemons
//!        └──▶ Lab::down, after a crash too               └── captures, pingers, servers on threads
//! ```
//!
//! ```no_run
//! use lab::{Lab, Options, Paths, Probe, Scoped, sites};
//! # fn main() -> lab::Result<()> {
//! let lab = Scoped::new(Lab::up(sites::partial(Options::default()), "mine", Paths::find())?);
//! lab.start_appliances()?;
//! lab.fail_over("prod-a")?;
//! let second = std::time::Duration::from_secs(1);
//! let to = std::net::Ipv4Addr::new(10, 1, 0, 10).into();
//! let report = lab.ping_count("prod-b", to, Probe::Echo, second / 100, 100)?;
//! assert!(report.lost().is_empty(), "{}", report.summary());
//! # Ok(())
//! # }
//! ```

mod addr;
mod appliance;
mod capture;
pub mod cloud;
mod config;
mod daemon;
mod error;
mod faults;
mod full;
mod gateway;
mod http;
mod impairment;
pub mod interrupt;
mod iperf;
mod listener;
mod netns;
mod paths;
pub mod pcap;
mod ping;
mod plan;
mod process;
mod record;
mod site;
pub mod sites;
mod switch;
mod tcp;
pub mod topology;

pub use addr::{Cidr, Vlan, fixed_mac, mac_text};
pub use appliance::{Handle, Switchover};
pub use capture::{Capture, Filter};
pub use cloud::Drawn;
pub use error::{Error, Result};
pub use full::SiteSwitch;
pub use gateway::GatewayHandle;
pub use http::{Download, Server};
pub use impairment::{Impaired, ImpairedLink, Impairment};
pub use iperf::{IperfServer, Throughput};
pub use netns::{
    PREFIX as NAMESPACE_PREFIX, list as list_namespaces, name as namespace_name,
    within as within_namespace,
};
pub use paths::Paths;
pub use pcap::Frame;
pub use ping::{Gap, Pinger, Probe, Report, UdpEcho};
pub use process::{Output, Process, run};
pub use record::{Entry, Record};
pub use site::{BPFFS, Lab, Listed, PIN_ROOT, RUN_ROOT, Scoped, TEST_PREFIX, wait};
pub use tcp::Greeter;
pub use topology::{Options, Topology};
