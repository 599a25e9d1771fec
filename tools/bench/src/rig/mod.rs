//! Parts that all benchmarks share: namespaces, commands, contenders' processes, loads and
//! counters.
//!
//! ```text
//!   netns      namespaces of a run, removed at its end          command    commands, in a namespace or not
//!   process    a contender's processes, files and CPU time       cpu        CPU time of the machine
//!   programs   XDP programs that generate and count packets      iperf      TCP streams
//!   offloads   offloads of the hosts' NICs                       extent     full and smoke runs
//!   lock       one run of a benchmark at a time                  appliance  programs of one
//! ```

pub mod appliance;
pub mod command;
pub mod cpu;
pub mod extent;
pub mod iperf;
pub mod lock;
pub mod netns;
pub mod offloads;
pub mod process;
pub mod programs;
