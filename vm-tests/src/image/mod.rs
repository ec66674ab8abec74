//! A guest image: the root file system, kernel and modules of a Debian suite, built without root and kept.
//!
//! mmdebstrap makes a tar of the root in a user namespace, sqfstar packs it, tar(1) takes out what the host needs
//! to boot it. The tar lies on disk between them: packing and unpacking take a second together, where building
//! takes a minute, so a stream through all three would save nothing and blur who failed.
//!
//! The squashfs is not compressed. Guests run under emulation, where decompressing is the guest's own slow work,
//! and 160 MB is little; lz4 would make it 95 MB. It is one file that any number of machines read at once.
//!
//! An image is named by the hash of its inputs and never rebuilt for its age: an archive that moved on is a
//! reason to ask for `--rebuild`, not for a test to change under one's feet. What moved then [`packages`] tells. Booting is [`crate::image::initramfs`]' and
//! [`crate::machine::config`]'s business.

mod build;
mod debian;
mod entry;
pub mod external;
mod flags;
pub mod initramfs;
pub mod kernel;
mod lent;
pub mod packages;
pub mod programs;
mod scratch;
pub(crate) mod suite;

#[cfg(test)]
mod tests;

pub use build::ensure;
pub use debian::{MIRROR_VAR, NoSuchPackage, Request};
pub use entry::{FileRecord, Image, Manifest};
pub use suite::{EXTERNAL, Suite};
