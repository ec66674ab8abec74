//! The host: programs, processes, signals, the accelerator.

pub mod accel;
pub mod process;
pub mod progress;
pub mod signals;
pub mod tools;
