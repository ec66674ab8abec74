//! The way to a host: ssh, as the user has it configured. Each request is a connection of its own, by which the program comes too.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use left4me_deployer::client::{Lost, Transport};
use left4me_deployer::wire::{Answer, Line, Request};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;
use vm_tests::host::process::{Program, Sink, describe};
use vm_tests::machine::Cancel;

/// A request: longer than a deploy and its way back may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// How long ssh may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(5);

/// How to become root on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Become {
    /// sudo that asks for no password
    Sudo,
}

/// A host.
#[derive(Debug)]
pub(super) struct Ssh {
    pub(super) host: String,
    pub(super) become_root: Option<Become>,
    pub(super) config: Option<PathBuf>,
    /// What is run there.
    pub(super) program: PathBuf,
    pub(super) cancel: Cancel,
}

/// What the host's shell is given, with the program's length: takes the program from its standard input into memory and runs it
/// with the rest. /dev/shm, as Debian mounts /run so that nothing is executed from it. It has no single quote, as it is put in
/// a pair of them.
fn script(length: usize) -> String {
    format!(
        "umask 077; d=$(mktemp -d /dev/shm/left4me-deploy.XXXXXX) || exit; trap \"rm -rf $d\" EXIT; \
         head -c {length} >$d/p && chmod 700 $d/p || exit; \
         if ! $d/p --version </dev/null >/dev/null 2>&1; then \
         e=$(mktemp -d /var/tmp/left4me-deploy.XXXXXX) || exit; trap \"rm -rf $d $e\" EXIT; mv $d/p $e/p; d=$e; fi; \
         $d/p serve"
    )
}

impl Ssh {
    /// ssh's arguments. `is_fresh`: not through a connection that is there already (ControlPath).
    fn arguments(&self, length: usize, is_fresh: bool) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(config) = &self.config {
            arguments.extend(["-F".to_owned(), config.display().to_string()]);
        }
        // It has a process group of its own, so it could not ask on the terminal.
        let options =
            ["BatchMode=yes", "ServerAliveInterval=5", "ServerAliveCountMax=3", "ConnectTimeout=15"];
        arguments.extend(options.iter().map(|option| format!("-o{option}")));
        if is_fresh {
            arguments.push("-oControlPath=none".to_owned());
        }
        let root = match self.become_root {
            Some(Become::Sudo) => "sudo -n ",
            None => "",
        };
        arguments.extend(["-T".to_owned(), "--".to_owned(), self.host.clone()]);
        arguments.push(format!("{root}sh -c '{}'", script(length)));
        arguments
    }

    async fn talk(
        &self,
        request: &Request,
        blobs: &[&[u8]],
        is_fresh: bool,
        line: &mut dyn FnMut(&Line),
    ) -> Result<Answer> {
        let program =
            std::fs::read(&self.program).with_context(|| format!("read {}", self.program.display()))?;
        // In memory: ssh reads it as fast as the link takes it.
        let mut input = File::from(memfd_create("request", MemfdFlags::CLOEXEC).context("memfd_create")?);
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        for bytes in [&program[..], &text].iter().chain(blobs) {
            input.write_all(bytes).context("write the request")?;
        }
        input.rewind().context("write the request")?;
        let ssh = Program::new("ssh")
            .args(self.arguments(program.len(), is_fresh))
            .stdin(input)
            .stdout(Sink::Piped)
            .stderr(Sink::Inherit);
        let mut child = ssh.spawn()?;
        let output = child.take_stdout().context("ssh's output")?.context("ssh's output")?;
        let mut lines = BufReader::new(output).lines();
        // What is not ours is a greeting, or a shell's complaint.
        let (mut answer, mut other) = (None, String::new());
        let read = async {
            while let Some(text) = lines.next_line().await.context("read what the host says")? {
                match serde_json::from_str::<Line>(&text) {
                    Ok(Line::Answer(it)) => answer = Some(*it),
                    Ok(told) => line(&told),
                    Err(_not_ours) => other = text,
                }
            }
            anyhow::Ok(())
        };
        // A way back is waited for: a second interrupt ends the program.
        let is_way_back = matches!(request, Request::PutBack { .. } | Request::Status);
        let read = tokio::select! {
            read = timeout(DEADLINE, read) => read,
            () = self.cancel.cancelled(), if !is_way_back => {
                child.kill_group(GRACE).await?;
                anyhow::bail!("interrupted");
            }
        };
        match read {
            Ok(read) => read?,
            Err(_elapsed) => {
                child.kill_group(GRACE).await?;
                anyhow::bail!("no answer in {} s", DEADLINE.as_secs());
            }
        }
        // A ProxyCommand is of its group, and a shared connection (ControlPersist) goes through that from now on.
        let status = child.wait_for_leader().await?;
        answer.with_context(|| match other.as_str() {
            "" => format!("ssh {}: {}", self.host, describe(status)),
            other => format!("ssh {}: {}: {other}", self.host, describe(status)),
        })
    }
}

impl Transport for Ssh {
    async fn ask(
        &mut self,
        request: &Request,
        blobs: &[&[u8]],
        is_fresh: bool,
        line: &mut dyn FnMut(&Line),
    ) -> Result<Answer, Lost> {
        self.talk(request, blobs, is_fresh, line).await.map_err(|error| Lost(format!("{error:#}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_is_given_the_users_configuration_and_for_a_confirmation_no_old_connection() {
        let mut ssh = Ssh {
            host: "games.example".to_owned(),
            become_root: None,
            config: None,
            program: PathBuf::new(),
            cancel: Cancel::new(),
        };
        insta::assert_snapshot!(ssh.arguments(1234, false).join("\n"));
        (ssh.become_root, ssh.config) = (Some(Become::Sudo), Some("/tmp/config".into()));
        insta::assert_snapshot!(ssh.arguments(1234, true).join("\n"));
        assert!(!script(1).contains('\''));
    }
}
