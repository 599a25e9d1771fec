//! Blocks of memory that a test frees, to look for keys in them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};

/// The system's allocator. It copies the blocks that a thread frees while the thread watches.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

thread_local! {
    static WATCHES: Cell<bool> = const { Cell::new(false) };
    static FREED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

// SAFETY: every call goes on to the system's allocator as it is.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract. Zeroed, so that every byte of a freed block is
        // initialised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if WATCHES.try_with(|watches| watches.replace(false)) == Ok(true) {
            // SAFETY: the block is live until the call below, and was zeroed when it was made.
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            FREED.with(|freed| freed.borrow_mut().push(bytes.to_vec()));
            WATCHES.with(|watches| watches.set(true));
        }
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

/// The blocks that this thread frees, as they were when it freed them.
pub(crate) struct FreedMemory(());

impl FreedMemory {
    pub(crate) fn watch() -> Self {
        FREED.with(|freed| freed.borrow_mut().clear());
        WATCHES.with(|watches| watches.set(true));
        Self(())
    }

    pub(crate) fn end(self) -> Vec<Vec<u8>> {
        WATCHES.with(|watches| watches.set(false));
        FREED.with(RefCell::take)
    }
}
