//! The host: programs, processes, signals, the accelerator.

pub mod accel;
pub mod events;
mod kvm_access;
pub mod memory;
pub mod process;
pub mod signals;
pub mod tools;
