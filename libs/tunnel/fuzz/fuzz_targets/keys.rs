//! libFuzzer around [`tunnel_fuzz_targets::keys`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel_fuzz_targets::keys(data));
