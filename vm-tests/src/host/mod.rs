//! The host: programs, processes, signals, the accelerator.

pub mod accel;
pub mod events;
mod kvm_access;
pub mod memory;
pub mod process;
pub mod processor;
pub mod signals;
pub mod tools;

/// How many cores this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
