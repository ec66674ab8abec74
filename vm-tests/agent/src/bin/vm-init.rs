//! The initramfs' init.
fn main() {}
