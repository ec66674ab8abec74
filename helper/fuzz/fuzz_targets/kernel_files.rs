//! See `checks::kernel_files`.
#![no_main]

#[path = "../checks.rs"]
#[expect(unused, reason = "each target runs one check")]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::kernel_files(data));
