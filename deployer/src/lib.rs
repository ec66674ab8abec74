//! What `cargo xtask deploy HOST` runs on the host, and the words that both say to each other.
//!
//! A version is a directory named by its contents. One link, `current`, says which one the host has; every path that systemd
//! and people look at is a link through it. So a deploy is one rename(2), and so is the way back. `apply` is the list of
//! a deploy's steps, `guard` what puts the old version back when nobody confirms, `plan` what would change.
//!
//! All of it is synchronous and has one thread.

pub mod wire;

pub mod host;

pub mod apply;
pub mod canary;
pub mod client;
pub mod facts;
pub mod guard;
pub mod links;
pub mod plan;
pub mod serve;
pub mod servers;
pub mod state;
pub mod store;
pub mod verify;
