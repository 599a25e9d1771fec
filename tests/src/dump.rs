//! Bytes and maps for a person.

use std::fmt::Write as _;

/// Bytes shown of a packet; the rest is payload.
const MAX_BYTES_SHOWN: usize = 256;

/// `bytes` sixteen to a line, the first of them.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (line, chunk) in bytes[..bytes.len().min(MAX_BYTES_SHOWN)]
        .chunks(16)
        .enumerate()
    {
        let _ = write!(out, "  {:04x} ", line * 16);
        for byte in chunk {
            let _ = write!(out, " {byte:02x}");
        }
        out.push('\n');
    }
    if bytes.len() > MAX_BYTES_SHOWN {
        let _ = writeln!(out, "  ({} more)", bytes.len() - MAX_BYTES_SHOWN);
    }
    if bytes.is_empty() {
        out.push_str("  (no bytes)\n");
    }
    out
}

/// The first difference of two packets, with the bytes around it in both.
#[must_use]
pub fn difference(expected: &[u8], got: &[u8]) -> String {
    let at = expected
        .iter()
        .zip(got)
        .position(|(a, b)| a != b)
        .unwrap_or(expected.len().min(got.len()));
    format!(
        "first difference at offset {at} (0x{at:x}); expected {} bytes, got {}\nexpected:\n\
         {}got:\n{}",
        expected.len(),
        got.len(),
        hex(expected),
        hex(got)
    )
}
