//! The VM harness: boots QEMU machines with systemd, deploys, runs a scenario's cycles, records and judges.

pub mod bench;
pub mod cache;
pub mod host;
pub mod image;
pub mod judge;
pub mod machine;
pub mod report;
pub mod run;
pub mod scenario;
