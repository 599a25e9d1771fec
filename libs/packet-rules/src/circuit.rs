//! Lengths of circuit messages (`docs/gateway.md`), which programs tell from tunnel datagrams by
//! them.

/// Bytes of a circuit ID, which precedes every tunnel datagram of a circuit.
pub const ID_BYTES: usize = 8;
/// Bytes of every message between the end of a circuit and its gateway, in both directions: no
/// answer is longer than its request.
pub const MESSAGE_BYTES: usize = 64;
