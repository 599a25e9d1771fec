//! The steps of the program with a frame, in order: `classify` finds the datagram, `forward` sends
//! it to the other end of its circuit.

pub mod classify;
pub mod forward;
