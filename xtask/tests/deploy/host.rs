//! A machine that is deployed to, over the channel to its agent, and what is looked at in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use left4me_deployer::client::{self, Lost, Options, Outcome, Person, Transport, Until, Version, Wanted};
use left4me_deployer::wire::{Answer, Line, Manifest, Plan, Request, Status};
use vm_agent::wire::KEPT;
use vm_tests::machine::config::{Config, Ram};
use vm_tests::machine::{Cancel, Machine};
use vm_tests::run::guest::{self, Guest};
use vm_tests::scenario::Scenario;

/// A command, under emulation, on a busy host.
pub(crate) const DEADLINE: Duration = Duration::from_secs(400);

/// Where the program and the requests lie in a machine.
const PROGRAM: &str = "/run/left4me-deploy";
pub(crate) const REQUEST: &str = "/run/left4me-deploy-request";

/// What all machines of a test have in common.
pub(crate) struct Lab {
    pub(crate) guest: Guest,
    pub(crate) scenario: Scenario,
    pub(crate) scratch: PathBuf,
    pub(crate) deployer: PathBuf,
}

impl Lab {
    /// A machine with a disk of this name, a new one or that of an earlier machine. It has no left4me, unless the disk has.
    pub(crate) async fn restore(&self, disk: &str) -> Result<Host> {
        let session = guest::preparation(&self.guest, &self.scenario)?;
        let directory = self.directory(disk);
        let disk = self.scratch.join(disk);
        let machine = guest::with_disk(&self.guest, session, &disk, &directory, Cancel::new()).await?;
        Host::of(machine, &self.deployer).await
    }

    /// A machine that boots from nothing but the disk.
    pub(crate) async fn boot(&self, disk: &str) -> Result<Host> {
        let kernel_args = vec![KEPT.to_owned()];
        let path = self.scratch.join(disk);
        let config = Config { keeps: true, kernel_args, ..self.guest.base.config(Ram::Fresh, path) };
        let directory = self.directory(&format!("{disk}-boot"));
        let mut machine = Machine::start(&self.guest.base.qemu, config, &directory, Cancel::new()).await?;
        machine.hello(DEADLINE).await?;
        machine.run(&["systemctl", "is-system-running", "--wait"], DEADLINE).await?;
        Host::of(machine, &self.deployer).await
    }

    fn directory(&self, name: &str) -> PathBuf {
        let free = (0..).map(|number| self.scratch.join(format!("machine-{name}-{number}")));
        free.into_iter().find(|path| !path.exists()).unwrap_or_default()
    }
}

/// A machine that is deployed to.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    requests: u32,
    number: u32,
}

impl Host {
    /// A machine, with the program that deploys.
    pub(crate) async fn of(machine: Machine, deployer: &Path) -> Result<Self> {
        let mut host = Self { machine, requests: 0, number: 0 };
        host.put_program(deployer).await?;
        Ok(host)
    }

    async fn put_program(&mut self, deployer: &Path) -> Result<()> {
        let bytes = std::fs::read(deployer).with_context(|| format!("read {}", deployer.display()))?;
        let guest = self.machine.guest();
        self.machine.race("the program", DEADLINE, guest.put_bytes(PROGRAM, 0o755, &bytes)).await?;
        Ok(())
    }

    /// A shell's script: its output; it must succeed.
    pub(crate) async fn sh(&mut self, script: &str) -> Result<String> {
        let output = self.machine.run(&["sh", "-c", script], DEADLINE).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.exit.success(), "{script}: {}: {} {}", output.exit, output.text(), said.trim());
        Ok(output.text())
    }

    /// Puts a file.
    pub(crate) async fn put(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let guest = self.machine.guest();
        self.machine.race(path, DEADLINE, guest.put_bytes(path, mode, bytes)).await?;
        Ok(())
    }

    /// Puts a request where the program can be given it.
    pub(crate) async fn put_request(&mut self, request: &Request, blobs: &[&[u8]]) -> Result<String> {
        self.requests += 1;
        let path = format!("{REQUEST}-{}", self.requests);
        let mut bytes = serde_json::to_vec(request)?;
        bytes.push(b'\n');
        blobs.iter().for_each(|blob| bytes.extend(*blob));
        self.put(&path, 0o600, &bytes).await?;
        Ok(path)
    }

    /// Asks once.
    pub(crate) async fn ask(&mut self, request: &Request, blobs: &[&[u8]]) -> Result<(Vec<Line>, Answer)> {
        let path = self.put_request(request, blobs).await?;
        let script = format!("exec {PROGRAM} serve <{path}");
        let output = self.machine.run(&["sh", "-c", &script], DEADLINE).await?;
        self.sh(&format!("rm {path}")).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        let mut lines = lines(&output.text());
        match lines.pop() {
            Some(Line::Answer(answer)) => Ok((lines, *answer)),
            other => bail!("no answer, but {other:?}: {}: {}", output.exit, said.trim()),
        }
    }

    /// A new name for a deploy.
    pub(crate) fn options(&mut self, until: Until) -> Options {
        self.number += 1;
        let token = format!("deploy-{}", self.number);
        Options { token, by: "tester@lab".to_owned(), limit_secs: 300, confirm_secs: 60, until }
    }

    /// Deploys, to its confirmation.
    pub(crate) async fn deploy(&mut self, wanted: Wanted<'_>) -> Result<(Outcome, Seen)> {
        let options = self.options(Until::Confirmed);
        let mut seen = Seen::default();
        let outcome = client::deploy(self, wanted, &options, &mut seen).await;
        Ok((outcome, seen))
    }

    /// Deploys, and it must be changed.
    pub(crate) async fn must_deploy(&mut self, version: &Version) -> Result<Seen> {
        let (outcome, seen) = self.deploy(Wanted::Version(version)).await?;
        ensure!(
            outcome == Outcome::Changed,
            "a deploy of {}: {outcome:?}, {:?}",
            version.manifest.name(),
            seen.lines
        );
        Ok(seen)
    }

    /// A version on the host, planned, and the request that would bring it into use.
    pub(crate) async fn staged(&mut self, version: &Version) -> Result<Request> {
        let options = self.options(Until::Stage);
        let mut seen = Seen::default();
        let outcome = client::deploy(self, Wanted::Version(version), &options, &mut seen).await;
        ensure!(outcome == Outcome::Staged, "staging: {outcome:?}");
        let plan = seen.plan.context("a plan")?;
        Ok(Request::Apply(left4me_deployer::wire::Apply {
            to: plan.to_id,
            digest: plan.digest,
            token: options.token,
            by: options.by,
            limit_secs: options.limit_secs,
            confirm_secs: options.confirm_secs,
        }))
    }

    pub(crate) async fn status(&mut self) -> Result<Status> {
        match self.ask(&Request::Status, &[]).await?.1 {
            Answer::Status(status) => Ok(status),
            other => bail!("no status: {other:?}"),
        }
    }

    /// What the running servers are.
    pub(crate) async fn identity(&mut self) -> Result<String> {
        self.sh("sh /run/vm-test/identity").await
    }

    /// The bytes that are seen at the paths of these versions, and whether systemd has read what is there.
    pub(crate) async fn seen(&mut self, versions: &[&Manifest]) -> Result<BTreeMap<String, String>> {
        let paths: std::collections::BTreeSet<&String> =
            versions.iter().flat_map(|manifest| manifest.files.keys()).collect();
        let mut script = String::from("sha256sum");
        paths.iter().for_each(|path| script.push_str(&format!(" {path}")));
        script.push_str(" 2>/dev/null || true");
        let sums = self.sh(&script).await?;
        let pair = |line: &str| line.split_once("  ").map(|(sum, path)| (path.to_owned(), sum.to_owned()));
        Ok(sums.lines().filter_map(pair).collect())
    }

    /// Which of the versions the host has, wholly; none of them is an error that says what differs.
    pub(crate) async fn which(&mut self, versions: &[(&str, Option<&Manifest>)]) -> Result<String> {
        let all: Vec<&Manifest> = versions.iter().filter_map(|(_, manifest)| *manifest).collect();
        let seen = self.seen(&all).await?;
        let mut differences = String::new();
        for (name, manifest) in versions {
            let expected: BTreeMap<String, String> = manifest
                .iter()
                .flat_map(|manifest| {
                    manifest.files.iter().map(|(path, file)| (path.clone(), file.sha256.clone()))
                })
                .collect();
            if expected == seen {
                return Ok((*name).to_owned());
            }
            let wrong =
                expected.iter().filter(|(path, sum)| seen.get(*path) != Some(sum)).map(|(path, _)| path);
            let more = seen.keys().filter(|path| !expected.contains_key(*path));
            let wrong: Vec<_> = wrong.chain(more).take(4).collect();
            differences.push_str(&format!("; it is not {name} at {wrong:?}"));
        }
        bail!("neither wholly old nor wholly new{differences}")
    }

    /// What no deploy leaves behind, once it is over.
    pub(crate) async fn is_settled(&mut self) -> Result<()> {
        let left = self
            .sh("ls -d /usr/local/lib/left4me/deploy/pending.json /etc/systemd/system/left4me-deploy-* \
                 /etc/systemd/system/*/left4me-deploy-* /run/systemd/system/left4me-deploy-* /run/left4me-deploy-verify \
                 /var/lib/left4me/*/deploy-canary* 2>/dev/null; \
                 find /usr/local -name '.left4me-*'; \
                 grep deploy-canary /proc/1/mountinfo; \
                 systemctl list-units --plain --no-legend --state=active 'left4me-deploy-*' '*deploy-canary*'; true")
            .await?;
        ensure!(left.is_empty(), "left by the deploy: {left}");
        Ok(())
    }

    /// Waits until the guard has done its work by itself. The file that it removes is not all of it, so the unit's end is looked for,
    /// which has no event for a shell.
    pub(crate) async fn guard_is_done(&mut self) -> Result<()> {
        let script = "timeout 200 sh -c 'while [ -e /usr/local/lib/left4me/deploy/pending.json ] || \\
                      systemctl show --value --property=ActiveState left4me-deploy-guard.service | grep -q activating; \\
                      do sleep 0.5; done'";
        self.sh(script).await.context("the guard does not put the old version back").map(|_nothing| ())
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.machine.stop().await
    }

    /// Ends it, with what it says of itself beside the error.
    pub(crate) async fn evidence(mut self, error: anyhow::Error) -> anyhow::Error {
        self.machine.save_evidence("left4me-*", "/").await;
        let at = format!("evidence: {}", self.machine.directory().display());
        match self.machine.stop().await {
            Ok(()) => error.context(at),
            Err(also) => error.context(format!("{at}; {also:#}")),
        }
    }
}

/// The lines that a program has told.
pub(crate) fn lines(text: &str) -> Vec<Line> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl Transport for Host {
    async fn ask(
        &mut self,
        request: &Request,
        blobs: &[&[u8]],
        _is_fresh: bool,
        line: &mut dyn FnMut(&Line),
    ) -> Result<Answer, Lost> {
        let answered = Host::ask(self, request, blobs).await;
        let (lines, answer) = answered.map_err(|error| Lost(format!("{error:#}")))?;
        lines.iter().for_each(line);
        Ok(answer)
    }
}

/// Who agrees, and remembers.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) plan: Option<Plan>,
    pub(crate) lines: Vec<Line>,
}

impl Person for Seen {
    fn plan(&mut self, plan: &Plan) {
        self.plan = Some(plan.clone());
    }

    fn agrees(&mut self) -> bool {
        true
    }

    fn line(&mut self, line: &Line) {
        self.lines.push(line.clone());
    }
}
