//! `cargo xtask deploy` as it is typed, over OpenSSH at both ends: a machine's sshd, in its inetd mode, is reached by a ProxyCommand
//! that is this test, over a socket and the channel to the machine's agent. No network, and no sshd on this host.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as Plain;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use left4me_deployer::wire::What;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use vm_agent::wire::{Body, Call, Command, Stream, Streams};
use vm_tests::host::process::{self, Program, Sink};
use vm_tests::host::tools::{self, Need};
use vm_tests::machine::guest::Guest;

use crate::host::{DEADLINE, Host, Lab};
use crate::left4me;

/// The argument by which this test is its own ProxyCommand; the socket's path follows it.
pub(crate) const PROXY: &str = "--proxy";

/// Where the machine has an sshd of its own, for a host that is reached by way of another one.
const BEHIND: u16 = 2222;

const BUILD: Duration = Duration::from_secs(1200);

/// A user of the guest who is not root.
const MENDER: &str = "mender";
/// What lets him become root.
const SUDOERS: &str = "/etc/sudoers.d/mender";

/// Relays between ssh and a socket.
pub(crate) fn proxy(socket: &str) -> Result<()> {
    let mut from = Plain::connect(socket).with_context(|| format!("connect to {socket}"))?;
    let mut to = from.try_clone().context("dup")?;
    let sending = std::thread::spawn(move || {
        let copied = std::io::copy(&mut std::io::stdin().lock(), &mut to);
        copied.and_then(|_length| to.shutdown(std::net::Shutdown::Write))
    });
    let mut stdout = std::io::stdout().lock();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = from.read(&mut buffer).context("read the socket")?;
        if length == 0 {
            // ssh is over; its end of the other direction comes when it closes it.
            drop(sending);
            return Ok(());
        }
        stdout.write_all(&buffer[..length]).and_then(|()| stdout.flush()).context("write to ssh")?;
    }
}

pub(crate) async fn run(lab: &Lab) -> Result<()> {
    tools::ensure(&[Need::Ssh], None, &left4me::workspace()?.target).await?;
    let mut host = lab.restore("ssh").await?;
    match all(lab, &mut host).await {
        Ok(()) => host.stop().await,
        Err(error) => Err(host.evidence(error).await),
    }
}

/// What ssh is given.
struct Client {
    config: PathBuf,
    target: tempfile::TempDir,
}

impl Client {
    /// Keys for both ends, and a configuration that leaves a shared connection behind, as users have it.
    async fn new(host: &mut Host, socket: &Path) -> Result<Self> {
        let target = tempfile::tempdir().context("make a directory")?;
        let at = |name: &str| target.path().join(name);
        for name in ["user", "host"] {
            let keygen =
                Program::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(name));
            process::output(keygen, Duration::from_secs(60)).await?;
        }
        let read = |name: &str| std::fs::read(at(name)).with_context(|| format!("read {name}"));
        host.put("/run/ssh-test/host", 0o600, &read("host")?).await?;
        host.put("/run/ssh-test/keys", 0o644, &read("user.pub")?).await?;
        let sshd = "HostKey /run/ssh-test/host\nAuthorizedKeysFile /run/ssh-test/keys\nUsePAM no\nStrictModes no\n\
                    PermitRootLogin prohibit-password\n";
        host.put("/run/ssh-test/config", 0o644, sshd.as_bytes()).await?;
        // A password that none is, as sshd without PAM takes `!` for an account that is locked.
        host.sh(&format!("mkdir -p /run/sshd; useradd --create-home --password '*' {MENDER}")).await?;
        let known = format!("guest {}", String::from_utf8_lossy(&read("host.pub")?));
        std::fs::write(at("known"), known).context("write known hosts")?;
        let this = std::env::current_exe().context("find this program")?;
        let config = format!(
            "Host guest\n User root\n ControlMaster auto\nHost by-sudo\n User {MENDER}\n HostKeyAlias guest\n ControlMaster no\n\
             Host behind\n HostName 127.0.0.1\n Port {BEHIND}\n User root\n HostKeyAlias guest\n ProxyJump guest\n \
             ControlMaster auto\n\
             Host guest by-sudo\n ProxyCommand {} {PROXY} {}\n\
             Host guest by-sudo behind\n IdentityFile {}\n IdentitiesOnly yes\n \
             UserKnownHostsFile {}\n ControlPath {}-%r-%p\n ControlPersist yes\n",
            this.display(),
            socket.display(),
            at("user").display(),
            at("known").display(),
            at("master").display(),
        );
        std::fs::write(at("config"), config).context("write ssh's configuration")?;
        Ok(Self { config: at("config"), target })
    }

    /// Deploys; the exit code, and what was printed.
    async fn deploy(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        self.deploy_to(&["guest"], arguments).await
    }

    async fn deploy_to(&self, hosts: &[&str], arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let said = self.target.path().join("said");
        let file = std::fs::File::create(&said).context("create a file")?;
        let both = file.try_clone().context("dup")?;
        let program = Program::new(env!("CARGO_BIN_EXE_xtask"))
            .arg("deploy")
            .args(hosts)
            .arg("--ssh-config")
            .arg(&self.config)
            .args(arguments)
            .stdout(Sink::File(file))
            .stderr(Sink::File(both));
        let mut child = program.spawn()?;
        let status = tokio::time::timeout(BUILD, child.wait()).await.context("it does not end")??;
        Ok((status.code(), std::fs::read_to_string(&said).context("read what it said")?))
    }
}

async fn all(lab: &Lab, host: &mut Host) -> Result<()> {
    let socket = lab.scratch.join("s");
    let listener = UnixListener::bind(&socket).with_context(|| format!("listen at {}", socket.display()))?;
    let client = Client::new(host, &socket).await?;
    let (accepted, allowed) = (AtomicU32::new(0), AtomicU32::new(u32::MAX));
    let guest = host.machine.guest();
    let work = async {
        let before = host.sh("sh /run/vm-test/tree").await?;
        let (code, said) = client.deploy(&["--dry-run"]).await?;
        ensure!(code == Some(0) && said.contains("change  /usr/local/bin/l4d2ctl: new"), "{code:?}: {said}");
        ensure!(host.sh("sh /run/vm-test/tree").await? == before, "a plan has changed something");

        let (code, said) = client.deploy(&["--yes"]).await?;
        ensure!(
            code == Some(0) && said.ends_with("guest: changed, and confirmed over a new connection\n"),
            "{code:?}: {said}"
        );
        // That of the first plan, which ssh shares with a plan, the files and the deploy; and the confirmation's.
        ensure!(accepted.load(Ordering::Relaxed) == 2, "{} connections", accepted.load(Ordering::Relaxed));
        let has = host.sh("l4d2ctl --version && systemctl cat left4me-server@.service | head -n 1").await?;
        ensure!(has.contains("/usr/local/lib/systemd/system/left4me-server@.service"), "{has}");
        host.is_settled().await?;

        let (code, said) = client.deploy(&["--yes"]).await?;
        ensure!(code == Some(3) && said.ends_with("guest: nothing to do\n"), "{code:?}: {said}");
        // Several hosts, in their order up to the first that is not well.
        let (code, said) = client.deploy_to(&["guest", "guest"], &["--yes"]).await?;
        ensure!(code == Some(3) && said.matches("guest: nothing to do\n").count() == 2, "{code:?}: {said}");
        let (code, said) = client.deploy_to(&["nowhere.invalid", "guest"], &["--yes"]).await?;
        let stopped = "nowhere.invalid: stopped here; 1 more were not deployed to\n";
        ensure!(code == Some(69) && said.ends_with(stopped), "{code:?}: {said}");

        // The way back, planned and done over the shared connection, and no new one gets through: it is not confirmed, and the host puts the
        // version back by itself, when its own timer says so.
        allowed.store(accepted.load(Ordering::Relaxed), Ordering::Relaxed);
        let (code, said) = client.deploy(&["--rollback", "--yes", "--confirm-within", "5"]).await?;
        ensure!(code == Some(6) && said.contains("what the host has is not known"), "{code:?}: {said}");
        host.guard_is_done().await?;
        host.sh("l4d2ctl --version").await.context("the version before")?;
        let log = host.status().await?.log;
        ensure!(log.last().is_some_and(|entry| entry.what == What::PutBack), "{log:?}");

        allowed.store(u32::MAX, Ordering::Relaxed);
        by_sudo(&client, host).await?;
        by_a_jump(&client, host).await?;
        let (code, said) = client.deploy(&["--history"]).await?;
        ensure!(code == Some(0) && said.contains("put back"), "{code:?}: {said}");
        Ok(())
    };
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await.context("accept")?;
            if accepted.load(Ordering::Relaxed) >= allowed.load(Ordering::Relaxed) {
                continue;
            }
            accepted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(relay(stream, guest.clone()));
        }
    };
    let done = tokio::select! {
        done = work => done,
        failed = serve => failed,
    };
    // Nobody is there any more whom the shared connection leads to.
    let mut ended = Ok(());
    for shared in ["behind", "guest"] {
        let end = Program::new("ssh").arg("-F").arg(&client.config).args(["-O", "exit", shared]);
        let output = process::output(end, Duration::from_secs(60)).await;
        ended = ended.and(output.with_context(|| format!("end the connection to {shared}")).map(drop));
    }
    done.and(ended)
}

/// A host behind another one, which is this one, too: what was put back is deployed once more.
async fn by_a_jump(client: &Client, host: &mut Host) -> Result<()> {
    let sshd = "/usr/sbin/sshd -f /run/ssh-test/config -E /run/ssh-test/log -o ListenAddress=127.0.0.1";
    host.sh(&format!("{sshd} -p {BEHIND}")).await?;
    let (code, said) = client.deploy_to(&["behind"], &["--yes"]).await?;
    ensure!(
        code == Some(0) && said.ends_with("behind: changed, and confirmed over a new connection\n"),
        "{code:?}: {said}"
    );
    let log = host.sh("cat /run/ssh-test/log").await?;
    let came = log.matches("Accepted publickey for root from 127.0.0.1").count();
    ensure!(came == 2, "{came} connections by way of the jump: {log}");
    host.is_settled().await
}

/// As a user who is not root: not at all without sudo, not by a sudo that asks, and by one that does not.
async fn by_sudo(client: &Client, host: &mut Host) -> Result<()> {
    let back = ["--rollback", "--yes"];
    let become_root = ["--rollback", "--yes", "--become", "sudo"];
    let (code, said) = client.deploy_to(&["by-sudo"], &back).await?;
    ensure!(code == Some(69), "{code:?}: {said}");
    let (code, said) = client.deploy_to(&["by-sudo"], &become_root).await?;
    ensure!(code == Some(69) && said.contains("sudo: a password is required"), "{code:?}: {said}");
    host.put(SUDOERS, 0o440, format!("{MENDER} ALL=(root) NOPASSWD: ALL\n").as_bytes()).await?;
    let (code, said) = client.deploy_to(&["by-sudo"], &become_root).await?;
    ensure!(
        code == Some(0) && said.ends_with("by-sudo: changed, and confirmed over a new connection\n"),
        "{code:?}: {said}"
    );
    let log = host.status().await?.log;
    ensure!(log.last().is_some_and(|entry| entry.what == What::Confirmed), "{log:?}");
    Ok(())
}

/// One connection: an sshd of its own, as inetd would start it.
async fn relay(stream: UnixStream, guest: Guest) -> Result<()> {
    let argv = ["/usr/sbin/sshd", "-i", "-f", "/run/ssh-test/config"].map(str::to_owned).to_vec();
    let mut running = guest.request(Call::Run(Command { argv, streams: Streams::Interactive })).await?;
    let id = running.id;
    let (mut from, mut to) = stream.into_split();
    let sending = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = from.read(&mut buffer).await?;
            guest.request(Call::Input { id, bytes: buffer[..length].to_vec() }).await?.next().await?;
            if length == 0 {
                return anyhow::Ok(());
            }
        }
    };
    let receiving = async {
        loop {
            match running.next().await? {
                Body::Output { stream: Stream::Stdout, bytes } => to.write_all(&bytes).await?,
                Body::Output { .. } => {}
                _over => return anyhow::Ok(()),
            }
        }
    };
    let ended = tokio::time::timeout(DEADLINE, async {
        tokio::select! {
            ended = receiving => ended,
            // Its end is its answer's, too.
            Err(error) = sending => Err(error),
        }
    });
    ended.await?
}
