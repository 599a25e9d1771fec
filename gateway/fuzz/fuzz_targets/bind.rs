//! libFuzzer around [`gateway_fuzz_targets::bind`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz_targets::bind(data));
