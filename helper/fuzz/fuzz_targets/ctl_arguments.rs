//! See `checks::ctl_arguments`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::ctl_arguments(data));
