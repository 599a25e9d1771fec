//! libFuzzer around [`gateway_fuzz_targets::hello`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz_targets::hello(data));
