//! systemd over the system bus: nothing else here speaks D-Bus.
//!
//! A question to systemd goes through the bus daemon and back, four changes of process, and a reset is little more than
//! questions. So questions that do not depend on each other are all sent before the first answer is waited for, and
//! whoever waits does the connection's work too (`Systemd::wait`): there is no thread in between.

mod bus;
mod connection;
mod job;
mod neighbours;
mod settings;
mod state;
#[cfg(test)]
mod tests;

pub use connection::Systemd;
