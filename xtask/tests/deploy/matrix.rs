//! A harm at every step: whatever it is, the host ends with the old version or with the new one, wholly; no running server has
//! noticed; and the next deploy works. What each came to is a cell of the table in docs/deploy.md, which is compared.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use left4me_deployer::apply;
use left4me_deployer::client::Version;
use left4me_deployer::wire::{Answer, Line, OVERLAY_UNIT, Request};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

use crate::all::has_time_for_all;
use crate::host::{self, DEADLINE, Host, Lab};
use crate::left4me;
use crate::version;

/// What is done in the machine, in the order of the table's columns; see `vm-fault`.
pub(crate) const FAULTS: [&str; 7] = ["kill", "link", "full", "read-only", "clock", "second", "hang"];
/// What is done to the machine.
pub(crate) const POWER: &str = "power";

/// Which steps and which harms, where not all are wanted: names with commas between them.
const STEPS_VAR: &str = "VM_TESTS_STEPS";
const FAULTS_VAR: &str = "VM_TESTS_FAULTS";

/// The cells that are always looked at: about the instants at which old becomes new.
const QUICK: [(&str, &str); 2] = [("reload", "kill"), ("confirm-unmark", "link")];

/// The versions of a test.
struct Versions {
    one: Version,
    two: Version,
    /// Its canary does not start.
    bad: Version,
}

impl Versions {
    fn make(lab: &Lab) -> Result<Self> {
        let files = version::product(&left4me::workspace()?.root, &lab.guest, &lab.deployer)?;
        let bad = version::with(&files, OVERLAY_UNIT, |unit| {
            let unit = String::from_utf8_lossy(&unit).into_owned();
            let start = "ExecStart=/usr/local/libexec/left4me/left4me-overlay mount %i";
            unit.replace(start, "ExecStart=/bin/false").into_bytes()
        });
        let two = version::other(&files, "two");
        Ok(Self {
            one: version::version(&files, "one"),
            two: version::version(&two, "two"),
            bad: version::version(&bad, "bad"),
        })
    }

    async fn which(&self, host: &mut Host) -> Result<String> {
        let all = [
            ("one", Some(&self.one.manifest)),
            ("two", Some(&self.two.manifest)),
            ("bad", Some(&self.bad.manifest)),
        ];
        host.which(&all).await
    }

    /// The one that the host does not have, of the two that are good.
    fn other(&self, has: &str) -> &Version {
        if has == "one" { &self.two } else { &self.one }
    }
}

/// The cells that are wanted of these harms, in the order of the table.
///
/// # Errors
/// The table can't be read.
pub(crate) fn wanted(faults: &[&'static str]) -> Result<Vec<(&'static str, &'static str)>> {
    let listed = |variable: &str| -> Option<Vec<String>> {
        std::env::var(variable).ok().map(|text| text.split(',').map(str::to_owned).collect())
    };
    let (steps, named) = (listed(STEPS_VAR), listed(FAULTS_VAR));
    let all = has_time_for_all() || steps.is_some() || named.is_some();
    let is_in = |list: &Option<Vec<String>>, name: &str| {
        list.as_ref().is_none_or(|list| list.iter().any(|one| one == name))
    };
    let cells = apply::steps().into_iter().flat_map(|step| faults.iter().map(move |fault| (step, *fault)));
    let cells = cells.filter(|(step, fault)| {
        if all { is_in(&steps, step) && is_in(&named, fault) } else { QUICK.contains(&(step, fault)) }
    });
    // One that was never done has nothing to be compared with: it is done where it is named, or accepted. A step that the table
    // does not have is no such.
    let (table, does_all) = (Table::read()?, steps.is_some() || named.is_some() || is_accepted());
    let is_open = |step: &str, fault: &str| {
        table.cells.get(&(step.to_owned(), fault.to_owned())).is_some_and(|cell| cell == "-")
    };
    let (open, wanted): (Vec<_>, Vec<_>) = cells.partition(|(step, fault)| !does_all && is_open(step, fault));
    if !open.is_empty() {
        eprintln!(
            "{} cells of docs/deploy.md were never done, and are left out: INSTA_UPDATE=always does them",
            open.len()
        );
    }
    Ok(wanted)
}

fn is_accepted() -> bool {
    std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always")
}

/// Does all harms of these in one machine, one after the other.
pub(crate) async fn in_one_machine(lab: &Lab, cells: Vec<(&'static str, &'static str)>) -> Result<()> {
    let versions = Versions::make(lab)?;
    let mut host = lab.restore("matrix").await?;
    match all(&mut host, &versions, cells).await {
        Ok(()) => host.stop().await,
        Err(error) => Err(host.evidence(error).await),
    }
}

async fn all(host: &mut Host, versions: &Versions, cells: Vec<(&'static str, &'static str)>) -> Result<()> {
    host.must_deploy(&versions.one).await.context("the first deploy")?;
    host.sh("sh /run/vm-test/servers").await.context("start two servers")?;
    let identity = host.identity().await?;
    let mut table = Table::read()?;
    for (step, fault) in cells {
        let begun = Instant::now();
        let what = || format!("{fault} at {step}");
        let found = cell(host, versions, step, fault, &identity).await.with_context(what)?;
        eprintln!("{fault:9} at {step:18}: {found} ({:.0} s)", begun.elapsed().as_secs_f64());
        table.found(step, fault, &found)?;
    }
    table.check()
}

/// One harm, and what the host has after it; then a deploy that must work.
async fn cell(
    host: &mut Host,
    versions: &Versions,
    step: &str,
    fault: &str,
    identity: &str,
) -> Result<String> {
    let old = versions.which(host).await?;
    // The way back is gone by itself when the canary does not start.
    let to = if step.starts_with("back-") { &versions.bad } else { versions.other(&old) };
    let request = host.staged(to).await?;
    let request = match step.starts_with("confirm-") {
        false => request,
        true => {
            let Request::Apply(apply) = &request else { bail!("no apply") };
            let token = apply.token.clone();
            let (_, answer) = host.ask(&request, &[]).await?;
            ensure!(matches!(answer, Answer::OnTrial), "before the confirmation: {answer:?}");
            Request::Confirm { token }
        }
    };
    let answer = harmed(host, step, fault, &request).await?;
    match fault {
        "full" => host.sh("rm -f /usr/local/.vm-fault-filler*").await?,
        "read-only" => host.sh("mount -o remount,rw /run/vm-test/disk").await?,
        "clock" => host.sh("date --set='10 years ago' >/dev/null").await?,
        _ => String::new(),
    };
    settle(host, answer, &request).await?;
    let has = versions.which(host).await?;
    ensure!(host.identity().await? == *identity, "a server has noticed");
    host.must_deploy(versions.other(&has)).await.context("the next deploy")?;
    ensure!(versions.which(host).await? != has, "the next deploy has changed nothing");
    ensure!(host.identity().await? == *identity, "a server has noticed the next deploy");
    host.is_settled().await.context("after the next deploy")?;
    Ok(if has == old { "old" } else { "new" }.to_owned())
}

/// Sends a request and does the harm; the answer, if one came.
async fn harmed(host: &mut Host, step: &str, fault: &str, request: &Request) -> Result<Option<Answer>> {
    let path = host.put_request(request, &[]).await?;
    let argv = ["vm-fault", step, fault, "/run/left4me-deploy", &path];
    let output = if fault == "hang" {
        // The guard's time comes while it hangs.
        let guest = host.machine.guest();
        let both = async {
            let (ready, seen) = tokio::sync::oneshot::channel();
            let (mut ready, mut said) = (Some(ready), String::new());
            let traced = guest.run_with(vm_agent::wire::Command::new(argv), |_stream, bytes| {
                said.push_str(&String::from_utf8_lossy(bytes));
                if said.contains("fault: ready")
                    && let Some(ready) = ready.take()
                {
                    // Whoever waited may have given up.
                    let (Ok(()) | Err(())) = ready.send(());
                }
            });
            let guard = async {
                if seen.await.is_ok() {
                    guest.run(["systemctl", "start", "left4me-deploy-guard.service"]).await?;
                    // What hangs before there is anything to put back is ended by its user.
                    guest.run(["pkill", "--signal=KILL", "--full", "left4me-deploy serve"]).await?;
                }
                Ok(())
            };
            let (output, guard) = tokio::join!(traced, guard);
            guard.and(output)
        };
        host.machine.race("a deploy that hangs", DEADLINE, both).await?
    } else {
        host.machine.run(&argv, DEADLINE).await?
    };
    let (said, errors) = (output.text(), String::from_utf8_lossy(&output.stderr).into_owned());
    ensure!(output.exit.success() && said.contains("fault: done"), "the harm was not done: {said}; {errors}");
    if fault == "second" {
        let second =
            said.lines().find_map(|line| line.strip_prefix("second: ")).context("a second deploy")?;
        ensure!(
            second.contains("being deployed to by tester@lab") || second.contains("works on the host"),
            "the second: {second}"
        );
    }
    let mut answers = host::lines(&said).into_iter().filter_map(|line| match line {
        Line::Answer(answer) => Some(*answer),
        _ => None,
    });
    // The first to answer is the second deploy.
    Ok(answers.next_back())
}

/// What the client or the guard would do now, at once and not when their time comes: [`crate::ends`] waits for that.
async fn settle(host: &mut Host, answer: Option<Answer>, request: &Request) -> Result<()> {
    if let (Some(Answer::OnTrial), Request::Apply(apply)) = (&answer, request) {
        let (_, answer) = host.ask(&Request::Confirm { token: apply.token.clone() }, &[]).await?;
        ensure!(matches!(answer, Answer::Confirmed), "a confirmation: {answer:?}");
        return host.is_settled().await;
    }
    let pending = host.sh("[ ! -e /usr/local/lib/left4me/deploy/pending.json ] || echo pending").await?;
    if pending == "pending" {
        // Something will start it: that is the guard.
        let armed = "systemctl is-active --quiet left4me-deploy-limit.timer left4me-deploy-guard.service || \
                     systemctl show --property=SubState left4me-deploy-guard.service | grep -q auto-restart";
        host.sh(armed).await.context("nothing would put the old version back")?;
        host.sh("systemctl reset-failed left4me-deploy-guard.service; systemctl start left4me-deploy-guard.service").await?;
        host.is_settled().await?;
    }
    // What was killed before it had marked anything has left a guard that does nothing: the next deploy takes it away.
    Ok(())
}

/// Cuts the power at each step, boots from the disk, and looks.
pub(crate) async fn power_cuts(lab: &Lab, cells: Vec<(&'static str, &'static str)>) -> Result<()> {
    let versions = Versions::make(lab)?;
    let mut table = Table::read()?;
    // One disk with a version in use and two others on it, copied for each cut.
    let mut host = lab.restore("prepared").await?;
    host.must_deploy(&versions.one).await.context("the first deploy")?;
    for other in [&versions.two, &versions.bad] {
        host.staged(other).await?;
    }
    host.sh("sync; umount /usr/local /etc/systemd/system /run/vm-test/disk || sync").await?;
    host.stop().await?;
    for (step, fault) in cells {
        let begun = Instant::now();
        let found = power_cut(lab, &versions, step).await.with_context(|| format!("{fault} at {step}"))?;
        eprintln!("{fault:9} at {step:18}: {found} ({:.0} s)", begun.elapsed().as_secs_f64());
        table.found(step, fault, &found)?;
    }
    table.check()
}

async fn power_cut(lab: &Lab, versions: &Versions, step: &str) -> Result<String> {
    let disk = format!("cut-{step}");
    let (from, to) = (lab.scratch.join("prepared"), lab.scratch.join(&disk));
    std::fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
    let mut host = lab.restore(&disk).await?;
    let version = if step.starts_with("back-") { &versions.bad } else { &versions.two };
    host.sh("systemctl daemon-reload").await?;
    let mut request = host.staged(version).await?;
    if step.starts_with("confirm-") {
        let Request::Apply(apply) = &request else { bail!("no apply") };
        let token = apply.token.clone();
        let (_, answer) = host.ask(&request, &[]).await?;
        ensure!(matches!(answer, Answer::OnTrial), "before the confirmation: {answer:?}");
        request = Request::Confirm { token };
    }
    let path = host.put_request(&request, &[]).await?;
    cut(host, step, &path).await?;
    let mut host = lab.boot(&disk).await?;
    let looked = after_the_boot(&mut host, versions).await;
    match looked {
        Ok(found) => {
            host.stop().await?;
            std::fs::remove_file(&to).with_context(|| format!("remove {}", to.display()))?;
            Ok(found)
        }
        Err(error) => Err(host.evidence(error).await),
    }
}

/// Ends the machine when the program is at the step.
async fn cut(host: Host, step: &str, request: &str) -> Result<()> {
    let guest = host.machine.guest();
    let (ready, seen) = tokio::sync::oneshot::channel();
    let (mut ready, mut said) = (Some(ready), String::new());
    let command = vm_agent::wire::Command::new(["vm-fault", step, POWER, "/run/left4me-deploy", request]);
    let traced = guest.run_with(command, |_stream, bytes| {
        said.push_str(&String::from_utf8_lossy(bytes));
        if said.contains("fault: ready")
            && let Some(ready) = ready.take()
        {
            // Whoever waited may have given up.
            let (Ok(()) | Err(())) = ready.send(());
        }
    });
    let ended = timeout(DEADLINE, async {
        tokio::select! {
            ended = traced => Err(format!("{ended:?}")),
            seen = seen => Ok(seen.is_ok()),
        }
    });
    match ended.await.context("it never came to the step")? {
        Ok(true) => {}
        other => bail!("it was not reached: {other:?}; {said}"),
    }
    let pid = Pid::from_raw(i32::try_from(host.machine.pid())?).context("a process id is not 0")?;
    kill_process(pid, Signal::KILL).context("kill QEMU")?;
    host.stop().await
}

async fn after_the_boot(host: &mut Host, versions: &Versions) -> Result<String> {
    let pending = host.sh("ls /usr/local/lib/left4me/deploy/pending.json 2>/dev/null; true").await?;
    ensure!(pending.is_empty(), "the boot has put nothing back");
    let has = versions.which(host).await?;
    let fragment =
        host.sh("systemctl show --value --property=NeedDaemonReload left4me-server@3.service").await?;
    ensure!(fragment == "no", "systemd has read something else than what is there");
    // In memory, as before; the root of this machine is an overlay, on which there can be no other.
    host.sh("mount -t tmpfs -o mode=755 tmpfs /var/lib/left4me && systemd-tmpfiles --create").await?;
    let next = versions.other(&has);
    host.must_deploy(next).await.context("the next deploy")?;
    ensure!(versions.which(host).await? != has, "the next deploy has changed nothing");
    host.is_settled().await.context("after the next deploy")?;
    Ok(if has == "one" { "old" } else { "new" }.to_owned())
}

/// The table of docs/deploy.md.
struct Table {
    path: PathBuf,
    text: String,
    cells: BTreeMap<(String, String), String>,
    found: BTreeMap<(String, String), String>,
}

const BEGIN: &str = "<!-- the matrix: written by xtask/tests/deploy.rs -->\n";
const END: &str = "<!-- end of the matrix -->\n";

impl Table {
    fn read() -> Result<Self> {
        let path = left4me::workspace()?.root.join("docs/deploy.md");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let table = text
            .split_once(BEGIN)
            .and_then(|(_, rest)| rest.split_once(END))
            .context("a table in docs/deploy.md")?
            .0;
        let row = |line: &str| {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        };
        let mut lines = table.lines().filter(|line| line.starts_with('|'));
        let names = lines.next().map(row).unwrap_or_default();
        let mut cells = BTreeMap::new();
        for line in lines.skip(1) {
            let row = row(line);
            let step = row.first().map(|step| step.trim_matches('`').to_owned()).unwrap_or_default();
            for (name, cell) in names.iter().zip(&row).skip(1) {
                cells.insert((step.clone(), name.clone()), cell.clone());
            }
        }
        Ok(Self { path, text, cells, found: BTreeMap::new() })
    }

    /// Notes what a harm came to. Where snapshots are accepted, it is written at once: a long run may be broken off.
    fn found(&mut self, step: &str, fault: &str, found: &str) -> Result<()> {
        self.found.insert((step.to_owned(), fault.to_owned()), found.to_owned());
        if is_accepted() {
            // Another lane writes its cells.
            let now = Self::read()?;
            (self.text, self.cells) = (now.text, now.cells);
            self.cells.extend(self.found.clone());
            let (before, rest) = self.text.split_once(BEGIN).context("a table")?;
            let (_, after) = rest.split_once(END).context("a table")?;
            let text = format!("{before}{BEGIN}{}{END}{after}", self.table());
            std::fs::write(&self.path, text).with_context(|| format!("write {}", self.path.display()))?;
        }
        Ok(())
    }

    fn table(&self) -> String {
        let columns: Vec<&str> = FAULTS.into_iter().chain([POWER]).collect();
        let mut text = format!("| step | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        for step in apply::steps() {
            let cell = |fault: &&str| {
                let key = (step.to_owned(), (*fault).to_owned());
                self.cells.get(&key).cloned().unwrap_or_else(|| "-".to_owned())
            };
            let cells: Vec<String> = columns.iter().map(cell).collect();
            text.push_str(&format!("| `{step}` | {} |\n", cells.join(" | ")));
        }
        text
    }

    fn check(&self) -> Result<()> {
        let wrong: Vec<String> = self
            .found
            .iter()
            .filter(|(key, found)| self.cells.get(*key) != Some(*found))
            .map(|((step, fault), found)| {
                format!("{fault} at {step}: {found}, and docs/deploy.md says otherwise")
            })
            .collect();
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(())
    }
}
