//! What requests to a guest take, and what its time costs the host.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::guest::{DEADLINE, restored, text};
use super::samples::Samples;
use crate::machine::Cancel;
use crate::run::guest::Guest;

/// The size of the file that [`channel`] puts, in bytes.
pub const PUT_BYTES: usize = 10 << 20;

/// How long the guest of [`idle`] sleeps, in seconds of its own time.
pub const IDLE_SECS: u32 = 25;

/// Times of requests, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Channel {
    /// A ping.
    pub ping: Samples,
    /// `/bin/true` to its exit status.
    pub command: Samples,
    /// `echo` to its output and exit status.
    pub echo: Samples,
    /// [`PUT_BYTES`] into a file.
    pub put: Samples,
}

/// How often each request of [`channel`] is made.
#[derive(Debug, Clone, Copy)]
pub struct Requests {
    /// Pings.
    pub pings: usize,
    /// Commands of each kind.
    pub commands: usize,
    /// Files.
    pub puts: usize,
}

/// Measures the channel in one machine, a request after the other.
///
/// # Errors
/// As [`Machine::race`]; a command or a file that is not what it should be.
pub async fn channel(guest: &Guest, requests: Requests, directory: &Path, cancel: Cancel) -> Result<Channel> {
    let mut machine = restored(guest, directory, cancel).await?;
    let guest = machine.guest();
    let measured = async {
        let mut channel = Channel::default();
        for _ in 0..requests.pings {
            let begun = Instant::now();
            machine.race("the answer to a ping", DEADLINE, guest.ping()).await?;
            channel.ping.0.push(begun.elapsed().as_secs_f64());
        }
        // Interleaved: the two differ by the output alone.
        for _ in 0..requests.commands {
            let begun = Instant::now();
            let output = machine.run(&["/bin/true"], DEADLINE).await?;
            channel.command.0.push(begun.elapsed().as_secs_f64());
            ensure!(output.exit.success(), "/bin/true: {}", output.exit);
            let begun = Instant::now();
            let output = machine.run(&["/bin/echo", "hello"], DEADLINE).await?;
            channel.echo.0.push(begun.elapsed().as_secs_f64());
            ensure!(output.stdout == b"hello\n", "echo wrote {:?}", output.text());
        }
        // No two pages are the same, so that nothing is saved by noticing it.
        let bytes: Vec<u8> = (0..PUT_BYTES).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
        for _ in 0..requests.puts {
            let begun = Instant::now();
            let put = guest.put_bytes("/run/vm-bench/file", 0o600, &bytes);
            machine.race("the file to be put", DEADLINE, put).await?;
            channel.put.0.push(begun.elapsed().as_secs_f64());
            let size = text(&mut machine, &["stat", "--format=%s", "/run/vm-bench/file"]).await?;
            ensure!(size == PUT_BYTES.to_string(), "a file of {PUT_BYTES} bytes arrived as {size}");
        }
        Ok(channel)
    }
    .await;
    machine.finish(measured).await
}

/// The host's seconds for guest time in virtual time.
#[derive(Debug, Clone, Default)]
pub struct Idle {
    /// For [`IDLE_SECS`] guest seconds of sleep.
    pub asleep: Samples,
    /// For one guest second of a shell's loop.
    pub busy: Samples,
}

/// Measures what a guest second costs the host, asleep and busy by turns, in one machine.
///
/// # Errors
/// As [`Machine::race`].
pub async fn idle(guest: &Guest, rounds: usize, directory: &Path, cancel: Cancel) -> Result<Idle> {
    /// Loops until /proc/uptime, in hundredths, is a second further; prints how much it has become.
    const LOOP: &str = "now() { read -r up _ </proc/uptime; now=$((${up%.*} * 100 + 1${up#*.} - 100)); }
        now; begun=$now
        while [ $now -lt $((begun + 100)) ]; do
            i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done
            now
        done
        echo $((now - begun))";
    let mut machine = restored(guest, directory, cancel).await?;
    let measured = async {
        let mut idle = Idle::default();
        for _ in 0..rounds {
            let begun = Instant::now();
            text(&mut machine, &["sleep", &IDLE_SECS.to_string()]).await?;
            idle.asleep.0.push(begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            let hundredths = text(&mut machine, &["sh", "-c", LOOP]).await?;
            let wall = begun.elapsed().as_secs_f64();
            let guest: f64 = hundredths.parse().with_context(|| format!("the loop wrote {hundredths:?}"))?;
            idle.busy.0.push(wall / (guest / 100.0));
        }
        Ok(idle)
    }
    .await;
    machine.finish(measured).await
}
