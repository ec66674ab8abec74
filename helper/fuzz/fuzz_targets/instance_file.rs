//! See `checks::instance_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::instance_file(data));
