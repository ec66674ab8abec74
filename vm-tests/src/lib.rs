//! The VM harness: boots QEMU machines with systemd, deploys, runs a scenario's cycles, records and judges.

pub mod base;
pub mod bench;
pub mod build;
pub mod bundle;
pub mod cache;
pub mod guest;
pub mod host;
pub mod image;
pub mod initramfs;
pub mod judge;
pub mod kernel;
pub mod machine;
mod probe;
pub mod qemu;
pub mod qmp;
pub mod report;
pub mod run;
pub mod saved;
pub mod scenario;
pub mod truth;
pub mod verdict;
