//! Reads values and mutations from a fuzzer's input.

/// An input that is read from the front. Past its end, every value is zero.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads `data` from its first byte.
    #[must_use]
    pub const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether the end is reached.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let bytes = self.bytes(N);
        out[..bytes.len()].copy_from_slice(bytes);
        out
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next 16-bit number, network byte order.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// The next 32-bit number, network byte order.
    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    /// The next 64-bit number, network byte order.
    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// The lowest bit of the next byte.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A number below `bound`, from one byte. `bound` is 1 to 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.u8()) % bound.max(1)
    }

    /// The next `count` bytes, fewer at the end.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The remaining bytes.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }
}

/// Applies one mutation that the input selects: changes a byte, truncates, inserts a byte,
/// overwrites up to 31 bytes, or overwrites one of the first `head` bytes.
pub fn mutate(input: &mut Input<'_>, bytes: &mut Vec<u8>, head: usize) {
    let at = usize::from(input.u16()) % bytes.len().max(1);
    match input.below(5) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= input.u8();
            }
        }
        1 => bytes.truncate(at),
        2 => bytes.insert(at, input.u8()),
        3 => {
            let count = input.below(32);
            let with = input.bytes(count);
            for (byte, &new) in bytes[at..].iter_mut().zip(with) {
                *byte = new;
            }
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at % head.max(1)) {
                *byte = input.u8();
            }
        }
    }
}
