//! One line, made again; and a failing one as a scenario of its own: a manifest that begins with the other one's, and has the line.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use vm_agent::recording::Role;
use vm_perturb::{Line, Report};

use crate::cache;
use crate::image::programs::{self, PERTURBER};
use crate::machine::Cancel;
use crate::run::guest::Guest;
use crate::run::one::{self, Bounds};
use crate::scenario::{Scenario, WrongInput};
use crate::workspace::Workspace;

/// One line, made once.
#[derive(Debug)]
pub struct Replayed {
    /// What came, in words; empty if all is as expected.
    pub why: Vec<String>,
    /// The same without numbers; see [`crate::judge::Judgement::shape`].
    pub shape: Vec<String>,
    /// The line in words.
    pub words: String,
    /// Why that is right all the same, if the manifest allows it.
    pub allowed: Option<String>,
    /// The hash of its recording.
    pub recording_sha256: String,
    /// What was held, and where tasks came by.
    pub report: Report,
    /// Where the recording is.
    pub recording: PathBuf,
}

/// Makes a scenario of a line whose run was [`Replayed`] and failed, in a directory that is not there yet, and runs it once. Returns
/// whether it goes wrong in the same way: if it does not, it is no test, and nothing is left of it.
///
/// # Errors
/// [`WrongInput`] for a directory that is there, or a line whose run is right. Those of a run.
pub async fn keep(
    workspace: &Workspace,
    guest: &Guest,
    scenario: &Scenario,
    line: &Line,
    replayed: &Replayed,
    directory: &Path,
    cancel: Cancel,
) -> Result<bool> {
    let wrong = |why: &str| WrongInput::new(format!("--keep {}: {why}", directory.display()));
    if replayed.shape.is_empty() || replayed.allowed.is_some() {
        return Err(wrong("this run is right, so there is nothing to keep").into());
    }
    if directory.exists() {
        return Err(wrong("it is there already: name another directory").into());
    }
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let went = async {
        let here = directory.canonicalize().with_context(|| format!("look at {}", directory.display()))?;
        let base = between(&here, &scenario.directory.join("scenario.toml"));
        let path = directory.join("scenario.toml");
        let text = manifest(&base, &scenario.name, line, &replayed.words);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        let kept = Scenario::load(directory)?;
        ensure!(kept.manifest.explore.holds == *line, "{}: another line", path.display());
        let mut guest = guest.of_size(kept.manifest.memory_mib);
        guest.programs.insert(PERTURBER.to_owned(), programs::perturber(workspace).await?);
        let scratch = tempfile::tempdir().context("make a directory for a run")?;
        let run = one::run(&guest, &kept, Bounds::default(), scratch.path(), cancel).await?;
        Ok(alike(&run.judgement.shape(), &replayed.shape))
    }
    .await;
    if !matches!(went, Ok(true)) {
        cache::remove_tree(directory)?;
    }
    went
}

/// Whether a whole run went wrong in the same way as one that begins in the middle. That has not seen who started whom, and gives
/// holders other roles, of which the verdict on who held the mount is made.
pub(super) fn alike(one: &[String], other: &[String]) -> bool {
    let without_roles = |shape: &[String]| {
        let bare = |line: &String| {
            Role::ALL
                .iter()
                .fold(line.clone(), |line, role| line.replace(&format!("\"{} ", role.word()), "\""))
        };
        let lines = shape.iter().filter(|line| !line.starts_with("verdict: "));
        lines.map(bare).collect::<BTreeSet<String>>()
    };
    without_roles(one) == without_roles(other)
}

/// The way from a directory to a file, both whole.
fn between(from: &Path, to: &Path) -> PathBuf {
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), to.components().collect());
    let common = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
    let up = from.iter().skip(common).map(|_| Component::ParentDir);
    up.chain(to.iter().skip(common).copied()).collect()
}

fn manifest(base: &Path, name: &str, line: &Line, words: &str) -> String {
    let string = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let description = string(&format!("{name}, and somebody is slow: {words}."));
    let base = string(&base.to_string_lossy());
    let holds = string(&line.to_string());
    format!("description = {description}\nbase = {base}\ncycles = 1\n\n[explore]\nholds = {holds}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_the_same_in_another_role() {
        let shape = |role: &str| {
            let holders = format!("holders at umount: [\"{role} sleep (cwd)\"] instead of []");
            vec![holders, "umount#: EBUSY instead of ok".to_owned(), format!("verdict: held by a {role}")]
        };
        assert!(alike(&shape("child"), &shape("control")));
        assert!(!alike(&shape("child"), &shape("child")[..1]));
    }

    #[test]
    fn a_manifest_has_the_line_and_the_rest_is_the_others() {
        let way = between(Path::new("/w/mine/kept"), Path::new("/w/scenarios/demo/scenario.toml"));
        assert_eq!(way, Path::new("../../scenarios/demo/scenario.toml"));
        let line: Line = "client=5ms sh#2:open=1.5ms".parse().expect("a line");
        let text = manifest(&way, "demo", &line, "hold \"sh\" for 1.5 ms");
        let read: toml::Table = text.parse().expect("a manifest");
        assert_eq!(read["explore"]["holds"].as_str(), Some("client=5ms sh#2:open=1.5ms"));
        assert_eq!(read["base"].as_str(), Some("../../scenarios/demo/scenario.toml"));
        assert_eq!(read["description"].as_str(), Some("demo, and somebody is slow: hold \"sh\" for 1.5 ms."));
    }
}
