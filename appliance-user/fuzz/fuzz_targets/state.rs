//! libFuzzer around [`appliance_fuzz_targets::state`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| appliance_fuzz_targets::state(data));
