//! Where the results of a run go: a directory that no other run writes to at the same time.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::cache::{self, Lock};
use crate::host::events::{self, Event};
use crate::report::page::PAGE_FILE;

/// All that was measured, and the verdicts.
pub(super) const REPORT_FILE: &str = "report.json";

/// How many runs a workspace bears at once before something is wrong.
const MOST_RUNS: u32 = 16;

/// A directory for the results of one run, until this is dropped.
#[derive(Debug)]
pub struct Results {
    /// Where it is.
    pub directory: PathBuf,
    _ours: Lock,
}

impl Results {
    /// Takes a directory, and waits for whoever writes to it.
    ///
    /// # Errors
    /// [`Interrupted`](crate::host::signals::Interrupted) while waiting; a directory that can't be made.
    pub async fn at(directory: &Path) -> Result<Self> {
        let directory = std::path::absolute(directory).context("the path of the results")?;
        let ours = Lock::exclusive(&directory.join("lock"), |who| {
            let directory = directory.display();
            events::tell(Event::Note(format!(
                "{directory}: waiting for {who}, which writes its results there"
            )));
        })
        .await?;
        Ok(Self { directory, _ours: ours })
    }

    /// Removes what an earlier run left there, lest it be taken for one of this run: its report, and the directories of runs.
    pub(super) fn forget<'a>(&self, runs: impl Iterator<Item = &'a Path>) -> Result<()> {
        for run in runs.filter(|run| run.exists()) {
            cache::remove_tree(run)?;
        }
        for file in [REPORT_FILE, PAGE_FILE].map(|name| self.directory.join(name)) {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("delete {}", file.display()));
                }
                _gone => {}
            }
        }
        Ok(())
    }

    /// Takes `vm-test` in a target directory; where another run has it, the next of `vm-test-2`, `vm-test-3`, … that is
    /// free.
    ///
    /// # Errors
    /// When there are too many runs, or a directory can't be made.
    pub fn next_free(target: &Path) -> Result<Self> {
        let usual = target.join("vm-test");
        for number in 1..=MOST_RUNS {
            let directory =
                if number == 1 { usual.clone() } else { target.join(format!("vm-test-{number}")) };
            std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
            if let Some(ours) = Lock::if_free(&directory.join("lock"))? {
                if number > 1 {
                    let (usual, directory) = (usual.display(), directory.display());
                    events::tell(Event::Note(format!(
                        "{usual} is in use by another run; results go to {directory}"
                    )));
                }
                return Ok(Self { directory, _ours: ours });
            }
        }
        bail!(
            "{MOST_RUNS} runs at once in {}: wait for one, or name a directory for the results",
            target.display()
        )
    }
}
