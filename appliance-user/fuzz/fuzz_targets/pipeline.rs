//! libFuzzer around [`appliance_fuzz::pipeline`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| appliance_fuzz::pipeline(data));
