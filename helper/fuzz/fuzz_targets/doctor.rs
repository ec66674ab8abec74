//! See `checks::doctor`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::doctor(data));
