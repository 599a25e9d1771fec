//! libFuzzer around [`tunnel_worker_fuzz::pipeline`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel_worker_fuzz::pipeline(data));
