//! libFuzzer around [`gateway_fuzz_targets::stored`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz_targets::stored(data));
