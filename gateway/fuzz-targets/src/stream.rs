//! The tunnel's datagrams in a stream, in any pieces, compared with the frames of a simple parser.

use fuzzing::Input;

/// Longer than what a decoder holds, so that it moves what it has.
const LARGE_INPUT: usize = 192 << 10;

/// Reads the input as a stream and how it is cut, or as what a stream is to be made of: a frame may
/// be longer than a fuzzer's inputs.
pub fn stream(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() {
        gateway_client::stream::fuzz(&written(&mut input));
    } else {
        gateway_client::stream::fuzz(input.rest());
    }
}

/// The sizes of the pieces, and frames whose lengths the input selects. The last frame may be
/// incomplete.
fn written(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = input.array::<2>().to_vec();
    let missing = usize::from(input.u16());
    while !input.is_empty() && stream.len() < LARGE_INPUT {
        let (length, first) = (input.u16(), input.u8());
        stream.extend(length.to_be_bytes());
        // Adjacent bytes differ, so that a displaced byte is detected.
        stream.extend((0..length).map(|n| first.wrapping_add((n % 251) as u8)));
    }
    stream.truncate(stream.len().saturating_sub(missing).clamp(2, LARGE_INPUT));
    stream
}
