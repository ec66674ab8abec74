//! How somebody comes in: a Unix socket, whose file's mode says who may, or a port of loopback, where everybody on this machine
//! may, servers too; and what becomes of a request whose connection ends.

use std::future;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use axum::response::IntoResponse as _;
use axum::serve::Listener;
use futures_util::FutureExt as _;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
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
        match self {
            Self::Stdin => {
                let socket =
                    std::io::stdin().as_fd().try_clone_to_owned().context("dup the standard input")?;
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true).context("the standard input, which is to be a socket")?;
                ready("the socket that was given");
                connections(UnixListener::from_std(listener)?, Who::at_unix, router).await
            }
            Self::Path(path) => {
                let shown = path.display().to_string();
                let listener = UnixListener::bind(path).with_context(|| format!("listen at {shown}"))?;
                ready(&shown);
                connections(listener, Who::at_unix, router).await
            }
            Self::Loopback(address) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.with_context(|| format!("listen at {address}"))?;
                ready(&format!("http://{}", listener.local_addr()?));
                connections(listener, |_| Who::Loopback, router).await
            }
        }
    }
}

/// Serves all connections, for ever.
async fn connections<L: Listener>(mut listener: L, who: fn(&L::Io) -> Who, router: Router) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await;
        let who = who(&stream);
        let router = TowerToHyperService::new(router.clone());
        let answered = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(who.clone()));
            let is_safe = request.method().is_safe();
            let answer = router.call(request.map(Body::new));
            if is_safe {
                return Either::Left(answer);
            }
            // A connection that ends takes its requests with it, also those that are whole and not looked at yet. Who pressed and left
            // has pressed: that goes on in a task of its own.
            Either::Right(tokio::spawn(answer).map(|answer| {
                answer.unwrap_or_else(|fault| {
                    eprintln!("an answer has a fault: {fault}");
                    let why = "this went wrong, the page's journal has more\n";
                    Ok((StatusCode::INTERNAL_SERVER_ERROR, why).into_response())
                })
            }))
        });
        // Not `half_close`: a page's stream ends with its tab, and not when something is written to it.
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answered);
        // How a client left is its own affair.
        tokio::spawn(connection.then(|_| future::ready(())));
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
