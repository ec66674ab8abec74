//! See `checks::busy_note`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::busy_note(data));
