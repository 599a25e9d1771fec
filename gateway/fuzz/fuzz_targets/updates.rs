//! libFuzzer around [`gateway_fuzz_targets::updates`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz_targets::updates(data));
