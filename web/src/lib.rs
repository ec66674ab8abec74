//! The operator's page. It has no rights: what needs root is asked of the broker (`left4me_broker`).
//!
//! [`broker`] asks it, [`app`] follows what it says and keeps the jobs in [`store`]. [`listen`] lets somebody in, whom [`who`]
//! names; [`guard`] says which requests are heard at all, and `login` whose they are, by [`users`] and their sessions; [`routes`]
//! answers them. `render` makes [`pages`] of what is known, and
//! `live` sends the changing part of a `place` again whenever it changes.
//!
//! A server's state is systemd's, as the broker saw it last, and never a job's.

pub mod app;
pub mod broker;
pub mod guard;
mod limit;
pub mod listen;
mod live;
mod login;
pub mod pages;
pub mod passwd;
pub mod password;
mod place;
mod render;
pub mod routes;
pub mod secret;
pub mod store;
pub mod users;
pub mod who;
