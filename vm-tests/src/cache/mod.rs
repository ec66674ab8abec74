//! The cache of expensive results. An entry exists completely or not at all.
//!
//! Everything lies under one directory: `$VM_TESTS_CACHE`, else `target/vm-cache` of the workspace. Under
//! `target/`, a clean clone starts clean and `cargo clean` takes everything away; a directory of its own, apart
//! from `target/vm-test`, which holds the results of runs. CI keeps its images between jobs. A user-wide
//! cache (`~/.cache`) would survive `cargo clean` and would be shared by checkouts that differ, for the price of
//! one minute.
//!
//! An entry is a directory named by the hash of its inputs ([`Inputs`]). It is made beside its final place
//! under a lock ([`Lock`]), synced, and renamed ([`Staging`]): whoever finds it, finds all of it.

mod entry;
mod key;
mod lock;
mod place;
mod remove;

#[cfg(test)]
mod tests;

pub use entry::Staging;
pub(crate) use key::hex;
pub use key::{Inputs, Key, hash_bytes, hash_file};
pub use lock::Lock;
pub use place::{CACHE_VAR, free_bytes, root};
pub use remove::remove_tree;
