//! libFuzzer around [`gateway_fuzz::bind`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::bind(data));
