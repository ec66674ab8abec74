//! `left4me-overlay`.
fn main() {}
