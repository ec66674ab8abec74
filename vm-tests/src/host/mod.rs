//! The host: programs, processes, signals, the accelerator.

pub mod accel;
pub mod events;
pub mod memory;
pub mod process;
pub mod signals;
pub mod tools;
