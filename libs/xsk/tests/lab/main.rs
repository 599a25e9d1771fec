//! Tests of AF_XDP sockets that need root and the kernel's network.

mod veth;
