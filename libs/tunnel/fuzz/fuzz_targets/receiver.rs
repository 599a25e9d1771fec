//! libFuzzer around [`tunnel_fuzz::receiver`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel_fuzz::receiver(data));
