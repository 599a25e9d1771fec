//! Which thread a circuit belongs to, and which one the kernel gives a datagram to. Pure.

use gateway_client::wire::CircuitId;

/// The thread of a circuit, as the kernel steers datagrams (`Socket::steer`).
pub(super) const fn thread_of(id: CircuitId, threads: usize) -> usize {
    (id.get() as u32 % threads as u32) as usize
}

/// The thread that the kernel gives a datagram or message to (`Socket::steer`).
fn steered_to(datagram: &[u8], threads: u32) -> u32 {
    let word = |at: usize| {
        let bytes = datagram.get(at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    };
    let id = match word(0) {
        Some(0) => word(16),
        Some(_) => word(4),
        None => None,
    };
    id.map_or(0, |low| low % threads.max(1))
}

/// Whether joined datagrams, all but the last of length `segment`, belong to several threads. Those
/// of several circuits of one thread are handled like any others.
pub(super) fn is_mixed(joined: &[u8], segment: usize, threads: u32) -> bool {
    let mut datagrams = joined.chunks(segment.max(1));
    let first = datagrams.next().map(|first| steered_to(first, threads));
    datagrams.any(|datagram| Some(steered_to(datagram, threads)) != first)
}

#[cfg(test)]
mod tests {
    use gateway_client::wire::ID_BYTES;

    use super::*;

    #[test]
    fn joined_datagrams_are_mixed_if_one_is_of_another_thread() {
        const LENGTH: usize = 28;
        let datagram = |circuit: u8, length: usize| {
            [
                &[1, 0, 0, 0, 0, 0, 0, circuit][..],
                &vec![9; length - ID_BYTES],
            ]
            .concat()
        };
        let joined = |circuits: &[u8]| -> Vec<u8> {
            circuits
                .iter()
                .flat_map(|circuit| datagram(*circuit, LENGTH))
                .collect()
        };
        let is_mixed = |joined: &[u8], threads| is_mixed(joined, LENGTH, threads);
        for threads in 1..4 {
            assert!(!is_mixed(&joined(&[1]), threads));
            assert!(!is_mixed(&joined(&[1, 1, 1]), threads));
        }
        assert!(!is_mixed(&joined(&[1, 2, 3]), 1), "there is one thread");
        assert!(!is_mixed(&joined(&[1, 3, 5]), 2), "all are of one thread");
        assert!(is_mixed(&joined(&[1, 3, 2]), 2));
        let last = |circuit| [joined(&[1, 1]), datagram(circuit, 11)].concat();
        assert!(!is_mixed(&last(1), 2), "the last one may be shorter");
        assert!(is_mixed(&last(2), 2));
        assert!(
            is_mixed(&[joined(&[1]), vec![1; 5]].concat(), 2),
            "no datagram at all goes to the first thread"
        );
        assert!(!is_mixed(&[joined(&[2]), vec![1; 5]].concat(), 2));
    }

    #[test]
    fn datagrams_and_messages_go_to_the_thread_of_their_circuit() {
        for threads in 1..9_u32 {
            for low in [0_u32, 1, 7, 0xffff_fffe] {
                let id = CircuitId::new(1 << 32 | u64::from(low)).expect("an ID");
                let thread = thread_of(id, threads as usize) as u32;
                let datagram = [&id.to_bytes()[..], &[0; 4]].concat();
                assert_eq!(steered_to(&datagram, threads), thread);
                let message = [&[0; 12][..], &id.to_bytes(), &[0; 44]].concat();
                assert_eq!(steered_to(&message, threads), thread);
            }
        }
    }
}
