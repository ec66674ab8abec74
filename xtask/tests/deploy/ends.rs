//! The ends of a deploy, on every image: the first on a bare host and its undo, an upgrade and a downgrade under running servers, what
//! is refused, and what nobody confirms.

use anyhow::{Context as _, Result, bail, ensure};
use left4me_deployer::client::{Outcome, Version, Wanted};
use left4me_deployer::wire::{Answer, HELPER, OVERLAY_UNIT, Request, SERVER_UNIT, Word};

use crate::host::{Host, Lab};
use crate::left4me;
use crate::version::{self, Files};

pub(crate) async fn run(lab: &Lab) -> Result<()> {
    let root = left4me::workspace()?.root;
    let files = version::product(&root, &lab.guest, &lab.deployer)?;
    let mut host = lab.restore("disk").await?;
    match all(&mut host, &files).await {
        Ok(()) => host.stop().await,
        Err(error) => Err(host.evidence(error).await),
    }
}

async fn all(host: &mut Host, files: &Files) -> Result<()> {
    let (one, two) = (version::version(files, "one"), version::version(&version::other(files, "two"), "two"));
    let names = [("nothing", None), ("one", Some(&one.manifest)), ("two", Some(&two.manifest))];

    // A plan changes nothing.
    let before = host.sh("sh /run/vm-test/tree").await?;
    let options = host.options(left4me_deployer::client::Until::Plan);
    let mut seen = crate::host::Seen::default();
    let outcome = left4me_deployer::client::deploy(host, Wanted::Version(&one), &options, &mut seen).await;
    ensure!(outcome == Outcome::Planned, "a plan: {outcome:?}");
    ensure!(host.sh("sh /run/vm-test/tree").await? == before, "a plan has changed something");

    // The first deploy on a bare host, again, and its undo.
    host.must_deploy(&one).await.context("the first deploy")?;
    ensure!(host.which(&names).await? == "one", "after the first deploy");
    host.is_settled().await?;
    let (again, _) = host.deploy(Wanted::Version(&one)).await?;
    ensure!(again == Outcome::Nothing, "the same once more: {again:?}");
    let (undone, _) = host.deploy(Wanted::Back(1)).await?;
    ensure!(undone == Outcome::Changed, "the undo of the first: {undone:?}");
    ensure!(host.which(&names).await? == "nothing", "after the undo of the first");
    host.is_settled().await?;
    let left = host.sh("find /usr/local -lname '*left4me/current*'").await?;
    ensure!(left.is_empty(), "links are left: {left}");

    // Two servers, which don't notice.
    host.must_deploy(&one).await?;
    host.sh("sh /run/vm-test/servers").await.context("start two servers")?;
    let identity = host.identity().await?;
    let seen = host.must_deploy(&two).await.context("an upgrade")?;
    let plan = seen.plan.context("a plan")?;
    ensure!(
        plan.instances.len() == 2 && plan.instances.iter().all(|item| item.word == Word::Change),
        "{plan:?}"
    );
    ensure!(host.which(&names).await? == "two", "after the upgrade");
    ensure!(host.identity().await? == identity, "a server has noticed the upgrade");
    host.is_settled().await?;
    let (down, _) = host.deploy(Wanted::Back(1)).await?;
    ensure!(down == Outcome::Changed, "a downgrade: {down:?}");
    ensure!(host.which(&names).await? == "one", "after the downgrade");
    ensure!(host.identity().await? == identity, "a server has noticed the downgrade");

    // Versions that can't be had: nothing is changed, or all of it goes back.
    for (what, path, text, refused) in [
        ("a program that does not run", HELPER, "no program", true),
        ("a unit that systemd does not take", SERVER_UNIT, "[Service]\nExecStart=relative\n", true),
        (
            "a canary that does not start",
            OVERLAY_UNIT,
            "[Service]\nType=oneshot\nExecStart=/bin/false\n",
            false,
        ),
    ] {
        let bad = version::version(&version::with(files, path, |_| text.as_bytes().to_vec()), "bad");
        let (outcome, _) = host.deploy(Wanted::Version(&bad)).await?;
        let is_right = match outcome {
            Outcome::Failed(ref why) => refused && why.starts_with("step verify: "),
            Outcome::PutBack(ref why) => !refused && why.starts_with("step canary: "),
            _ => false,
        };
        ensure!(is_right, "{what}: {outcome:?}");
        eprintln!("{what}: {outcome:?}");
        ensure!(host.which(&names).await? == "one", "after {what}");
        ensure!(host.identity().await? == identity, "a server has noticed {what}");
        host.is_settled().await.context(what)?;
    }
    refusals(host, files, &two).await?;
    in_time(host, &two).await?;
    ensure!(host.which(&names).await? == "one", "after a deploy that nobody confirmed");
    ensure!(host.identity().await? == identity, "a server has noticed a deploy that nobody confirmed");

    // Without servers, left4me may go.
    host.sh("l4d2ctl reset --all").await?;
    let back = host.status().await?.back;
    let nothing =
        back.iter().find(|(_, version)| version == "nothing").context("the first deploy in the log")?.0;
    let (gone, _) = host.deploy(Wanted::Back(nothing)).await?;
    ensure!(gone == Outcome::Changed, "back to nothing: {gone:?}");
    ensure!(host.which(&names).await? == "nothing", "after the way back to nothing");
    by_hand(host, files, &two).await
}

/// What is in the way, each with its next command; nothing is changed.
async fn refusals(host: &mut Host, files: &Files, two: &Version) -> Result<()> {
    let mut other = version::version(&version::other(files, "other"), "other");
    other.manifest.interface += 1;
    let status = "Package: left4me\nStatus: install ok installed\nVersion: 0.1.0-1\n";
    let package = format!("cat >>/var/lib/dpkg/status <<'end'\n\n{status}end");
    let cases = [
        ("true", &other, "can't stop what the old one has started", "true"),
        (
            package.as_str(),
            two,
            "the host has the package left4me 0.1.0-1",
            "sed -i '/^Package: left4me$/,$d' /var/lib/dpkg/status",
        ),
        (
            "touch /etc/systemd/system/left4me-server@.service",
            two,
            "hides the version's own unit",
            "rm /etc/systemd/system/left4me-server@.service",
        ),
        (
            "mkdir -p /usr/local/share/man/man8 && ln -s /nowhere /usr/local/share/man/man8/left4me-new.8",
            two,
            "is a link to /nowhere",
            "rm /usr/local/share/man/man8/left4me-new.8",
        ),
    ];
    for (prepare, version, why, mend) in cases {
        host.sh(prepare).await?;
        let before = host.sh("sh /run/vm-test/tree").await?;
        let (outcome, _) = host.deploy(Wanted::Version(version)).await?;
        let Outcome::Refused(refusals) = &outcome else { bail!("{why}: {outcome:?}") };
        ensure!(
            refusals.iter().any(|refusal| refusal.why.contains(why) && !refusal.next.is_empty()),
            "{why}: {refusals:?}"
        );
        ensure!(host.sh("sh /run/vm-test/tree").await? == before, "{why}: something was changed");
        host.sh(mend).await?;
    }
    let (outcome, _) = host.deploy(Wanted::Back(2)).await?;
    let is_kept = matches!(&outcome, Outcome::Refused(all) if all.iter().any(|one| one.why.contains("nothing would unmount")));
    ensure!(is_kept, "back to nothing under servers: {outcome:?}");
    Ok(())
}

/// Nobody confirms, nobody helps: the timer puts it back when the time is over.
async fn in_time(host: &mut Host, two: &Version) -> Result<()> {
    let Request::Apply(mut apply) = host.staged(two).await? else { bail!("no apply") };
    apply.confirm_secs = 3;
    let token = apply.token.clone();
    let (_, answer) = host.ask(&Request::Apply(apply), &[]).await?;
    ensure!(matches!(answer, Answer::OnTrial), "{answer:?}");
    host.guard_is_done().await?;
    let (_, answer) = host.ask(&Request::Confirm { token }, &[]).await?;
    ensure!(matches!(answer, Answer::PutBack { .. }), "a confirmation that comes too late: {answer:?}");
    host.is_settled().await
}

/// An archive that was unpacked by hand is the old version: of a deploy that succeeds, and of one that does not.
async fn by_hand(host: &mut Host, files: &Files, two: &Version) -> Result<()> {
    let unpacked = version::version(files, "by hand");
    for (path, (mode, bytes)) in files {
        host.put(path, *mode, bytes).await?;
    }
    host.sh("systemctl daemon-reload && sh /run/vm-test/servers").await?;
    let identity = host.identity().await?;
    let names = [("by hand", Some(&unpacked.manifest)), ("two", Some(&two.manifest))];
    let bad =
        version::with(files, OVERLAY_UNIT, |_| b"[Service]\nType=oneshot\nExecStart=/bin/false\n".to_vec());
    let (outcome, _) = host.deploy(Wanted::Version(&version::version(&bad, "bad"))).await?;
    ensure!(
        matches!(outcome, Outcome::PutBack(_)),
        "a bad one over files that were unpacked by hand: {outcome:?}"
    );
    ensure!(host.which(&names).await? == "by hand", "after a bad one over files that were unpacked by hand");
    // Over the deploy's links once more.
    for (path, (mode, bytes)) in files {
        host.put(path, *mode, bytes).await?;
    }
    let seen = host.must_deploy(two).await.context("over files that were unpacked by hand")?;
    let from = seen.plan.context("a plan")?.from;
    ensure!(from == "files that were unpacked by hand", "{from}");
    ensure!(host.which(&names).await? == "two", "after a deploy over files that were unpacked by hand");
    let (back, _) = host.deploy(Wanted::Back(1)).await?;
    ensure!(back == Outcome::Changed, "back to what was unpacked by hand: {back:?}");
    ensure!(host.which(&names).await? == "by hand", "after the way back to what was unpacked by hand");
    ensure!(host.identity().await? == identity, "a server has noticed");
    host.is_settled().await
}
