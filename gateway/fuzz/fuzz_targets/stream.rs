//! libFuzzer around [`gateway_fuzz::stream`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::stream(data));
