//! libFuzzer around [`tunnel_fuzz_targets::receiver`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel_fuzz_targets::receiver(data));
