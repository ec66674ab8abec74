//! The operator's page. It has no rights: what needs root is asked of the broker (`left4me_broker`).
//!
//! [`broker`] asks it, [`app`] follows what it says and keeps the jobs in [`store`]. [`listen`] lets somebody in, whom [`who`]
//! names; [`guard`] says which requests are heard at all; [`routes`] answers them. `render` makes [`pages`] of what is known, and
//! `live` sends the changing part of a `place` again whenever it changes.
//!
//! A server's state is systemd's, as the broker saw it last, and never a job's.

pub mod app;
pub mod broker;
pub mod guard;
pub mod listen;
mod live;
pub mod pages;
mod place;
mod render;
pub mod routes;
pub mod store;
pub mod who;
