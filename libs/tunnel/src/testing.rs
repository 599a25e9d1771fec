//! Helpers of tests and fuzz targets.

pub use fuzzing::Seeded;

use crate::random::Random;

impl Random for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        Self::fill(self, out);
    }
}

/// Bytes of hexadecimal text; white space is skipped.
#[cfg(test)]
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
