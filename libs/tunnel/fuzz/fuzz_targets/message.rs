//! libFuzzer around [`tunnel_fuzz::message`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel_fuzz::message(data));
