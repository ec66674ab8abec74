//! The broker between the operator's page and root: six verbs on checked names, by varlink, on a Unix socket.
//!
//! A call goes through these modules in this order: [`serve`] takes a connection of somebody who may connect, [`wire`] reads
//! one message of bounded size, [`verbs`] makes a verb of it or refuses, [`work`] does it: [`jobs`] says whether it may begin,
//! [`host`] does it through the library of `l4d2ctl`, and [`kept`] keeps how it went, also over a restart.
//!
//! What is absent on purpose: no path, no free text and no flag comes from the client; nothing is done but what `l4d2ctl`
//! does, and what it takes to say how a server is: [`journal`] reads what its units said, and [`game`] asks it who plays; no thread waits by the clock. A crate for varlink (zlink 0.8) was tried on paper and dropped: it reads messages of
//! up to 100 MB, and serves all connections in one loop, in which one client that does not read holds up the others.

pub mod audit;
pub mod game;
pub mod host;
pub mod jobs;
pub mod journal;
pub mod kept;
pub mod real;
mod refused;
pub mod serve;
pub mod verbs;
pub mod wire;
pub mod work;
