//! See `bodies/adapter_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::adapter_config::run(data));
