//! libFuzzer around [`gateway_fuzz::circuit`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::circuit(data));
