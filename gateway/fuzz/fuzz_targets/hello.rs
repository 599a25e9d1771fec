//! libFuzzer around [`gateway_fuzz::hello`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::hello(data));
