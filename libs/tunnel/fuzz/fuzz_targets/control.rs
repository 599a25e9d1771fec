//! libFuzzer around [`tunnel_fuzz_targets::control`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel_fuzz_targets::control(data));
