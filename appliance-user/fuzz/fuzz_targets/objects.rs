//! libFuzzer around [`appliance_fuzz_targets::objects`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| appliance_fuzz_targets::objects(data));
