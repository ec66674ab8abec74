//! See `checks::instance_name`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::instance_name(data));
