//! The packet path takes no memory: ten thousand packets each way, whole and in pieces, and not one
//! allocation.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use appliance_common::events::SlowHeader;
use tunnel_worker::{
    pipeline::{Event, PacketSink, Sent},
    testing as pair,
};

struct Counting;

static TAKEN: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One frame's room, and no list.
struct Slot {
    frames: [([u8; 2048], usize); 4],
    used: usize,
}

impl PacketSink for Slot {
    fn transmit(&mut self, _: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        let Some((frame, len)) = self.frames.get_mut(self.used) else {
            return Sent::Full;
        };
        match write(frame) {
            Some(bytes) => {
                *len = bytes;
                self.used += 1;
                Sent::Queued
            }
            None => Sent::Abandoned,
        }
    }

    fn event(&mut self, _: Event) {}

    fn unresolved(&mut self, _: &SlowHeader, _: &[u8]) -> bool {
        false
    }

    fn hand_over(&mut self, _: u32, _: &[u8]) -> bool {
        false
    }
}

#[test]
fn sealing_and_opening_take_no_memory() {
    let (mut tenant, mut provider) = pair::pair();
    let mut wire = Slot {
        frames: [([0; 2048], 0); 4],
        used: 0,
    };
    let mut delivered = 0;
    let mut taken = 0;
    for payload in [vec![1; 18], vec![2; 1300], vec![3; 1472]] {
        let packet = pair::packet("10.1.0.11", "10.1.0.10", &payload);
        let mut frame = Vec::new();
        frame.extend_from_slice(&4_u32.to_ne_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&((1 << 24) | pair::VNI).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&packet);
        for round in 0..3_500_u64 {
            let now = pair::at(10 + round / 100).mono;
            let before = TAKEN.load(Relaxed);
            wire.used = 0;
            tenant.pipeline.frame(now, &mut frame, &mut wire);
            let (mut frames, used) = (wire.frames, wire.used);
            for (frame, len) in &mut frames[..used] {
                wire.used = 0;
                provider.pipeline.frame(now, &mut frame[..*len], &mut wire);
                delivered += wire.used;
            }
            tenant.pipeline.report(now, &mut wire);
            provider.pipeline.report(now, &mut wire);
            taken += TAKEN.load(Relaxed) - before;
        }
    }
    assert_eq!(delivered, 3 * 3_500);
    assert_eq!(taken, 0, "allocations on the packet path");
}
