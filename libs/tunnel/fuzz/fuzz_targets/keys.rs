//! libFuzzer around [`tunnel_fuzz::keys`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel_fuzz::keys(data));
