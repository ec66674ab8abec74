//! The guest agent: answers the host's requests on a virtio-serial port (see [`vm_agent::wire`]).
//!
//! One thread reads requests; each request runs in a thread of its own, so that a command, a file and a
//! recording can be under way at once. The agent keeps no state between requests.

mod account;
mod answer;
mod boot;
mod files;
mod pause;
mod port;
mod record;
mod run;
mod serve;
mod session;
mod user;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    // Where commands run: see `run::prepare`.
    std::env::set_current_dir("/").context("enter /")?;
    let port = port::open(vm_agent::wire::PORT).context("open the channel to the host")?;
    serve::serve(port)
}
