//! From scenarios to a report, in this order: [`entry`] is what a program calls, [`suite`] does what `cargo xtask vm-test`
//! does, or the [`part`] of it that is a [`shard`]'s by the [`costs`], [`prepare`] makes guests, [`one`] runs a scenario on one
//! of them, unless its recording is [`remembered`] by its [`inputs`].

pub mod accept;
pub mod at;
pub mod costs;
pub mod entry;
pub mod given;
pub mod guest;
pub mod input;
pub mod inputs;
pub mod installed;
pub(crate) mod jobs;
mod left_out;
pub mod moment;
pub mod now;
pub mod one;
pub(crate) mod pace;
pub mod part;
pub mod prepare;
mod reboot;
pub mod recall;
pub mod remembered;
pub mod repro;
pub mod results;
pub mod shard;
mod shutdown;
pub mod suite;
