//! See `checks::purge`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::purge(data));
