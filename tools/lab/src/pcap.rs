//! The pcap file format, little endian, nanoseconds, Ethernet; nothing more than this lab writes.
//!
//! Source: draft-ietf-opsawg-pcap.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
/// The longest frame kept: a GSO super-frame and its headers.
pub const SNAP: u32 = 65_536 + 64;

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Since the Unix epoch.
    pub time: Duration,
    /// Whether the captured link sent it. Not kept in a file.
    pub outgoing: bool,
    /// From the destination MAC on, VLAN tags in place, without FCS.
    pub bytes: Vec<u8>,
}

/// Writes the file's header.
///
/// # Errors
/// Those of `out`.
pub fn write_header(out: &mut impl Write) -> io::Result<()> {
    let mut header = Vec::with_capacity(24);
    header.extend(MAGIC_NANOSECONDS.to_le_bytes());
    header.extend(2_u16.to_le_bytes());
    header.extend(4_u16.to_le_bytes());
    header.extend([0; 8]);
    header.extend(SNAP.to_le_bytes());
    header.extend(LINKTYPE_ETHERNET.to_le_bytes());
    out.write_all(&header)
}

/// Writes one frame.
///
/// # Errors
/// Those of `out`, and `InvalidInput` for a frame beyond [`SNAP`] or a time beyond 2106.
pub fn write_frame(out: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let bad = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let length = u32::try_from(frame.bytes.len()).map_err(bad)?;
    if length > SNAP {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let seconds = u32::try_from(frame.time.as_secs()).map_err(bad)?;
    out.write_all(&seconds.to_le_bytes())?;
    out.write_all(&frame.time.subsec_nanos().to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&frame.bytes)
}

/// Reads a file that this module wrote. A last frame that was cut short is left out.
///
/// # Errors
/// Those of `input`, and `InvalidData` for another format.
pub fn read(input: &mut impl Read) -> io::Result<Vec<Frame>> {
    let mut all = Vec::new();
    input.read_to_end(&mut all)?;
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(all.get(at..at + 4)?.try_into().ok()?))
    };
    if word(0) != Some(MAGIC_NANOSECONDS) || word(20) != Some(LINKTYPE_ETHERNET) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a little-endian nanosecond Ethernet pcap file",
        ));
    }
    let mut frames = Vec::new();
    let mut at = 24;
    while let (Some(seconds), Some(nanos), Some(length)) = (word(at), word(at + 4), word(at + 8)) {
        let Some(bytes) = usize::try_from(length)
            .ok()
            .filter(|_| length <= SNAP)
            .and_then(|length| all.get(at + 16..at + 16 + length))
        else {
            break;
        };
        frames.push(Frame {
            time: Duration::new(u64::from(seconds), nanos),
            outgoing: false,
            bytes: bytes.to_vec(),
        });
        at += 16 + bytes.len();
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(nanos: u32, bytes: &[u8]) -> Frame {
        Frame {
            time: Duration::new(1_800_000_000, nanos),
            outgoing: false,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn frames_are_read_with_their_times() {
        let frames = [
            frame(1, &[1; 60]),
            frame(999_999_999, &[]),
            frame(3, &[7; 1514]),
        ];
        let mut file = Vec::new();
        write_header(&mut file).unwrap();
        for f in &frames {
            write_frame(&mut file, f).unwrap();
        }
        assert_eq!(read(&mut file.as_slice()).unwrap(), frames);
    }

    #[test]
    fn a_truncated_file_yields_its_complete_frames() {
        let mut file = Vec::new();
        write_header(&mut file).unwrap();
        write_frame(&mut file, &frame(1, &[1; 60])).unwrap();
        let one = file.len();
        write_frame(&mut file, &frame(2, &[2; 60])).unwrap();
        for length in 24..file.len() {
            let frames = read(&mut &file[..length]).unwrap();
            assert_eq!(frames.len(), usize::from(length >= one), "{length}");
        }
        for length in 0..24 {
            assert!(read(&mut &file[..length]).is_err());
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused() {
        let long = frame(1, &vec![0; SNAP as usize + 1]);
        assert!(write_frame(&mut Vec::new(), &long).is_err());
    }
}
