//! The host: programs, processes, signals, the accelerator.

pub mod accel;
pub mod process;
pub mod tools;
