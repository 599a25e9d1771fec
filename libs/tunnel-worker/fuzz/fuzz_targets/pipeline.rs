//! libFuzzer around [`tunnel_worker_fuzz_targets::pipeline`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel_worker_fuzz_targets::pipeline(data));
