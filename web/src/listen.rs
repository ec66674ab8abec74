//! How somebody comes in: a Unix socket, whose file's mode says who may, or a port of loopback, where everybody on this machine
//! may, servers too.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use tokio::net::{TcpListener, UnixListener};

use crate::app::App;
use crate::routes;
use crate::who::Who;

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// The Unix socket that systemd opened and gave as the standard input.
    Stdin,
    /// A Unix socket that is made.
    Path(PathBuf),
    /// A port of loopback.
    Loopback(SocketAddr),
}

impl Listen {
    /// What `--listen` says.
    ///
    /// # Errors
    /// It is an address that others could reach.
    pub fn parse(text: &str) -> Result<Self> {
        let Ok(address) = text.parse::<SocketAddr>() else {
            ensure!(
                text.starts_with('/'),
                "{text}: neither a port of loopback (127.0.0.1:8080) nor a path from /"
            );
            return Ok(Self::Path(text.into()));
        };
        ensure!(
            address.ip().is_loopback(),
            "{address}: only loopback; for others put a proxy with a login in front, or use `ssh -L`"
        );
        Ok(Self::Loopback(address))
    }

    /// Serves there, for ever. `ready` is told where that is.
    ///
    /// # Errors
    /// It cannot be listened there.
    pub async fn serve(self, router: Router, ready: impl FnOnce(&str)) -> Result<()> {
        let service = router.into_make_service_with_connect_info::<Who>();
        match self {
            Self::Stdin => {
                let socket =
                    std::io::stdin().as_fd().try_clone_to_owned().context("dup the standard input")?;
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true).context("the standard input, which is to be a socket")?;
                ready("the socket that was given");
                Ok(axum::serve(UnixListener::from_std(listener)?, service).await?)
            }
            Self::Path(path) => {
                let shown = path.display().to_string();
                let listener = UnixListener::bind(path).with_context(|| format!("listen at {shown}"))?;
                ready(&shown);
                Ok(axum::serve(listener, service).await?)
            }
            Self::Loopback(address) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.with_context(|| format!("listen at {address}"))?;
                ready(&format!("http://{}", listener.local_addr()?));
                Ok(axum::serve(listener, service).await?)
            }
        }
    }
}

/// For the page and its follower, on one thread.
///
/// # Errors
/// As [`Listen::serve`].
pub async fn run(app: Arc<App>, listen: Listen, names: Vec<String>, ready: impl FnOnce(&str)) -> Result<()> {
    let router = routes::router(Arc::clone(&app), names);
    tokio::select! {
        served = listen.serve(router, ready) => served,
        () = app.follow() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_from_elsewhere() {
        for text in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80", "8080", "localhost:80", "relative"] {
            assert!(Listen::parse(text).is_err(), "{text}");
        }
        assert_eq!(Listen::parse("/run/x").unwrap(), Listen::Path("/run/x".into()));
        assert!(matches!(Listen::parse("127.0.0.1:0").unwrap(), Listen::Loopback(_)));
        assert!(matches!(Listen::parse("[::1]:80").unwrap(), Listen::Loopback(_)));
    }
}
