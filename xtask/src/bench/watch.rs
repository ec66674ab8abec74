//! How long a person who mends something waits: from a save to the verdict of `cargo xtask watch`, which runs meanwhile, in the
//! copy of the checkout that edits are measured in.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::time::timeout;
use vm_tests::bench::Samples;
use vm_tests::host::process::Sink;
use vm_tests::host::signals::Interrupted;
use vm_tests::machine::Cancel;
use vm_tests::report::Verdict;
use vm_tests::workspace::Workspace;

use super::edit::{Copy, Edit, HELPER, word};

/// What is watched: the unit and the programs as they are shipped.
pub(super) const SCENARIO: &str = "overlay-unit";

/// A word more in the text of the unit.
pub(super) const UNIT: Edit = Edit {
    name: "unit",
    file: "deploy/files/usr/local/lib/systemd/system/left4me-server@.service",
    after: "Description=Left 4 Dead 2 server %i",
};

/// The longest that a verdict may take; the first one has the programs built and a machine booted.
const DEADLINE: Duration = Duration::from_secs(900);
/// How long it may take to end its machine.
const STOP_GRACE: Duration = Duration::from_secs(40);
/// What `watch` says after each verdict.
const WAITS: &str = "; waiting for the next save";

/// Seconds of the host, each from a save to the verdict.
#[derive(Debug, Default)]
pub(super) struct Saves {
    /// Of the unit.
    pub(super) unit: Samples,
    /// Of a source of the helper.
    pub(super) helper: Samples,
}

/// Takes so many samples of each.
///
/// # Errors
/// A round without a verdict, as what `watch` has said of it.
pub(super) async fn measure(
    workspace: &Workspace,
    place: &Path,
    machine: Vec<OsString>,
    rounds: usize,
    cancel: Cancel,
) -> Result<Saves> {
    let copy = Copy::prepare(workspace, place, machine, cancel.clone()).await?;
    let mut arguments: Vec<OsString> = ["xtask", "watch", SCENARIO].map(OsString::from).into();
    arguments.extend(copy.machine.iter().cloned());
    let what = || format!("open {}", copy.log.display());
    let log = File::options().append(true).create(true).open(&copy.log).with_context(what)?;
    let errors = log.try_clone().with_context(what)?;
    eprintln!("watch: not counted: the first build of the copy, its machine, and a first run");
    let mut child = copy.program(&arguments).stdout(Sink::Piped).stderr(Sink::File(errors)).spawn()?;
    let measured = async {
        let output = child.take_stdout()?.context("what watch says is not to be had")?;
        let mut watching = Watching { lines: BufReader::new(output).lines(), log };
        watching.verdict().await?;
        let unit = watching.saves(&copy, &UNIT, rounds, 0).await?;
        // With the first save of a program all are built once for quick edits.
        let helper = watching.saves(&copy, &HELPER, rounds, 1).await?;
        anyhow::Ok(Saves { unit, helper })
    };
    let measured = tokio::select! {
        measured = measured => measured.with_context(|| format!("see {}", copy.log.display())),
        () = cancel.cancelled() => Err(Interrupted::default().into()),
    };
    child.kill_group(STOP_GRACE).await?;
    measured
}

/// A `watch` that runs.
struct Watching {
    lines: Lines<BufReader<pipe::Receiver>>,
    log: File,
}

impl Watching {
    /// Edits, and waits for the verdict, each time; the first ones are not counted. The text is as it was at the end, which is a
    /// save, too.
    async fn saves(&mut self, copy: &Copy, edit: &Edit, rounds: usize, uncounted: usize) -> Result<Samples> {
        let original = copy.read(edit)?;
        let mut samples = Samples::default();
        for round in 1..=uncounted + rounds {
            eprintln!("watch: {round} of {}, the {}", uncounted + rounds, edit.name);
            let edited = edit.of(&original, &word()?)?;
            let begun = Instant::now();
            copy.write(edit, &edited)?;
            self.verdict().await?;
            if round > uncounted {
                samples.0.push(begun.elapsed().as_secs_f64());
            }
        }
        copy.write(edit, &original)?;
        self.verdict().await?;
        Ok(samples)
    }

    /// Waits for the end of a round.
    async fn verdict(&mut self) -> Result<()> {
        loop {
            let line =
                timeout(DEADLINE, self.lines.next_line()).await.context("watch comes to no verdict")??;
            let line = line.context("watch has ended")?;
            writeln!(self.log, "{line}")?;
            if line.ends_with(WAITS) {
                // Another verdict takes another time.
                ensure!(line.starts_with(Verdict::Passed.words()), "{line}");
                return Ok(());
            }
        }
    }
}
