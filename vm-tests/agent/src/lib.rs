//! What host and guest say to each other: the wire types and the recording.
//!
//! The host links this library for its types only; the guest's programs, `vm-agent`, `vm-init` and
//! `vm-game`, live beside it behind the feature `guest`. Nothing here talks to a machine.

pub mod diagnosis;
pub mod happening;
pub mod recording;
pub mod wire;
