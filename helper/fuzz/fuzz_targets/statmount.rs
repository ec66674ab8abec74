//! See `checks::statmount`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::statmount(data));
