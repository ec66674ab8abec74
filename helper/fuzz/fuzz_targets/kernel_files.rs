//! See `checks::kernel_files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::kernel_files(data));
