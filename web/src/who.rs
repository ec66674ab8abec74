//! Who is on the other side of a connection, as a job's row has it.

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::{TcpListener, UnixListener};

/// In words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who(pub String);

impl Connected<IncomingStream<'_, UnixListener>> for Who {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        // Of who connected: with `ssh -L`, the user of that session.
        let peer = stream.io().peer_cred();
        Self(peer.map_or_else(|error| format!("unknown ({error})"), |peer| format!("uid {}", peer.uid())))
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Who {
    fn connect_info(_stream: IncomingStream<'_, TcpListener>) -> Self {
        Self("somebody on this machine".into())
    }
}
