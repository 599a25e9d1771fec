//! Words of memory: copies that LLVM does not turn into loops, and values that the verifier does
//! not track.

/// Copies `from` to `to` in words of eight bytes, or of four if `T` is not aligned to eight.
///
/// An assignment of a value that LLVM cannot prove to be elsewhere becomes a call of `memmove`,
/// which the BPF target has as a loop over bytes: about five instructions a byte, and the verifier
/// walks through every one of them.
///
/// # Safety
/// `from` is valid for reads of a `T`. Other CPUs may write it meanwhile: each word is read once.
#[inline(always)]
pub unsafe fn copy<T: Copy>(to: &mut T, from: *const T) {
    const {
        assert!(align_of::<T>() >= 4);
    }
    // SAFETY: both are aligned to the word, and have as many. Volatile, so that LLVM does not join
    // them to a call again.
    unsafe {
        if align_of::<T>() >= 8 {
            let (to, from) = ((&raw mut *to).cast::<u64>(), from.cast::<u64>());
            for i in 0..size_of::<T>() / 8 {
                to.add(i).write_volatile(from.add(i).read_volatile());
            }
        } else {
            let (to, from) = ((&raw mut *to).cast::<u32>(), from.cast::<u32>());
            for i in 0..size_of::<T>() / 4 {
                to.add(i).write_volatile(from.add(i).read_volatile());
            }
        }
    }
}

/// `value`, by way of `place` in a map: the verifier then knows only that it is a number, and walks
/// once through what follows instead of once for each value that a loop may have left.
#[inline(always)]
pub fn unknown(place: &mut u32, value: u32) -> u32 {
    let place = &raw mut *place;
    // SAFETY: it comes from a reference. Volatile, so that LLVM does not take `value` itself.
    unsafe {
        place.write_volatile(value);
        place.read_volatile()
    }
}
