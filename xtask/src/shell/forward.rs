//! `--forward`: a port of this machine's loopback that leads to a port or a Unix socket of the guest. Each connection is a command
//! in the guest whose standard input and output are the connection's ends: the agent needs to know nothing of it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use vm_agent::wire::{Body, Call, Command, Stream, Streams};
use vm_tests::machine::guest::{Guest, GuestError};

/// How much of a connection is sent at once.
const PIECE: usize = 32 << 10;

/// Connects to its argument, and is between that and its own standard streams: perl is what every Debian has. What it has read
/// is written whole before it reads again.
const RELAY: &str = r#"
use strict; use Socket;
my $to = shift; my $there;
if ($to =~ m{^/}) {
    socket($there, AF_UNIX, SOCK_STREAM, 0) && connect($there, pack_sockaddr_un($to)) or die "connect to $to: $!\n";
} else {
    socket($there, AF_INET, SOCK_STREAM, 0) && connect($there, pack_sockaddr_in($to, INADDR_LOOPBACK))
        or die "connect to port $to: $!\n";
}
sub whole { my ($out, $bytes) = @_; while (length $bytes) { my $n = syswrite($out, $bytes) // exit 0; substr($bytes, 0, $n) = ""; } }
my ($in, $is_open) = ("", 1);
while (1) {
    my $wait = ""; vec($wait, fileno($there), 1) = 1; vec($wait, 0, 1) = 1 if $is_open;
    select($wait, undef, undef, undef) // next;
    if (vec($wait, fileno($there), 1)) { sysread($there, $in, 32768) or exit 0; whole(\*STDOUT, $in); }
    if (vec($wait, 0, 1)) { if (sysread(STDIN, $in, 32768)) { whole($there, $in) } else { $is_open = 0; shutdown($there, 1) } }
}
"#;

/// Which port leads where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    /// Of loopback; 0 for one that is free.
    port: u16,
    /// A path, or a port of the guest's loopback.
    to: String,
}

/// Where it leads to.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to)
    }
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (port, to) = text.split_once(':').unwrap_or((text, text));
        ensure!(
            to.starts_with('/') || to.parse::<u16>().is_ok_and(|port| port > 0),
            "{text}: PORT, PORT:PORT or PORT:/path/of/a/socket"
        );
        let port = port.parse().with_context(|| format!("{text}: {port} is no port"))?;
        Ok(Self { port, to: to.to_owned() })
    }
}

/// Listens, and relays what comes until the machine ends; the address.
pub(crate) async fn begin(forward: &Forward, guest: Guest) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, forward.port)).await;
    let listener = listener.with_context(|| format!("listen on port {}", forward.port))?;
    let address = listener.local_addr().context("the port that was given")?;
    let to = forward.to.clone();
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (guest, to) = (guest.clone(), to.clone());
                    tokio::spawn(async move {
                        if let Err(error) = relay(stream, &guest, &to).await {
                            eprintln!("forward: {error:#}");
                        }
                    });
                }
                Err(error) => eprintln!("forward: accept: {error}"),
            }
        }
    });
    Ok(address)
}

async fn relay(mut stream: TcpStream, guest: &Guest, to: &str) -> Result<()> {
    let argv = ["perl", "-e", RELAY, to].map(str::to_owned).to_vec();
    let mut there = guest.request(Call::Run(Command { argv, streams: Streams::Interactive })).await?;
    let (mut from, mut back) = stream.split();
    let (mut piece, mut is_open) = (vec![0; PIECE], true);
    loop {
        tokio::select! {
            answer = there.next() => match answer? {
                Body::Output { stream: Stream::Stdout, bytes } => {
                    if back.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                Body::Output { stream: Stream::Stderr, bytes } => eprint!("forward: {}", String::from_utf8_lossy(&bytes)),
                Body::Exited(_) => return Ok(()),
                other => return Err(GuestError::Unexpected(format!("{other:?}")).into()),
            },
            length = from.read(&mut piece), if is_open => {
                // An empty piece closes the relay's input; one that was reset is as one that has ended.
                let length = length.unwrap_or(0);
                is_open = length > 0;
                let bytes = piece[..length].to_vec();
                match guest.request(Call::Input { id: there.id, bytes }).await?.next().await {
                    // A relay that has just ended takes nothing.
                    Ok(_) | Err(GuestError::Failed(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    // Whoever asked has left.
    match guest.request(Call::Cancel { id: there.id }).await?.next().await {
        Ok(_) | Err(GuestError::Failed(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    // By its path: a test of machines that includes this file has no such tests, and would import for nothing.
    #[test]
    fn a_port_leads_to_a_port_or_a_socket() {
        type Forward = super::Forward;
        let parsed = |text: &str| text.parse::<Forward>().map(|forward| (forward.port, forward.to)).ok();
        assert_eq!(parsed("8080"), Some((8080, "8080".into())));
        assert_eq!(parsed("8080:80"), Some((8080, "80".into())));
        assert_eq!(parsed("0:/run/x"), Some((0, "/run/x".into())));
        for text in ["", "0", "x", "8080:", "8080:x", "8080:0", "99999:80", ":80"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
