//! The VM harness: boots QEMU machines with systemd, deploys, runs a scenario's cycles, records and judges.
//!
//! The way of a run:
//!
//! 1. [`host`]: are the tools there, and what executes the guest's instructions?
//! 2. [`cache`] keeps what is costly: it is there whole, under the hash of its inputs, or not at all.
//! 3. [`image`]: the guest's root, kernel, initramfs and static programs.
//! 4. [`machine`]: QEMU and the channels into the guest. [`machine::saved`] boots once and keeps the machine.
//! 5. [`scenario`]: what to deploy, to run, to watch and to expect.
//! 6. [`run`]: prepares guests, restores their saved machines, hands each a session, and gets one recording back.
//! 7. [`judge`]: recording, scenario and baselines to a judgement. Pure, and the only place that decides.
//! 8. [`report`]: what is written and printed of it.
//!
//! [`explore`] runs one phase again and again, each time with another schedule, and judges each.
//! [`bench`] measures what all this costs, and how accurate `holders` is.

#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod bench;
pub mod cache;
pub mod explore;
pub mod host;
pub mod image;
pub mod judge;
pub mod machine;
pub mod report;
pub mod run;
pub mod scenario;
pub mod workspace;
