//! The benchmark of truth: for each case what the tools say who makes an unmount fail, judged by what umount2(2) does.
//!
//! Each case is a process of its own, so that nothing of it is left for the next. The other tools are asked before and
//! after the mount is pinned; whom they name only after is their answer. `holders` is asked as its help says: before the
//! unmount, and once more with `--busy` when that was refused, or with `--device` when the path was no mount point any
//! more.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;

use rustix::io::Errno;
use serde_json::{Value, json};

use crate::plant::{CASES, Case, Umount};
use crate::stage::Stage;
use crate::tools::{self, OTHERS};

/// What an answer is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// It names who or what makes the unmount fail, and nobody else; or that nothing does, and that the file system
    /// lives on, where it does.
    Right,
    /// It says that it can't see the reason, or not all.
    CannotSee,
    /// It says nothing, and there is something to say.
    Silent,
    /// It names somebody who does not make the unmount fail.
    Wrong,
}

impl Worth {
    fn word(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::CannotSee => "cannot-see",
            Self::Silent => "silent",
            Self::Wrong => "wrong",
        }
    }
}

/// What is so.
#[derive(Debug, Clone, Copy)]
struct Truth {
    umount: Umount,
    /// The file system is alive after the unmount.
    outlives: bool,
    /// The process that has the reference; `None` if it is another mount or the kernel that blocks.
    holder: Option<u32>,
}

/// Judges the named cases, or all; a line for each.
pub(crate) fn all(holders: &Path, names: &[&str]) -> Result<(), Box<dyn Error>> {
    for case in CASES.iter().filter(|case| names.is_empty() || names.contains(&case.name)) {
        let words = [
            std::env::current_exe()?.display().to_string(),
            "judge-one".to_owned(),
            holders.display().to_string(),
            case.name.to_owned(),
        ];
        let output = tools::run(&words)?;
        if output.status.success() {
            print!("{}", String::from_utf8(output.stdout)?);
        } else {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            println!("{}", json!({ "case": case.name, "not_planted": why }));
        }
    }
    Ok(())
}

/// Judges one case in this process.
pub(crate) fn one(holders: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
    let stage = Stage::set_up()?;
    stage.mount()?;
    let path = &stage.merged;
    let device = ask(holders, &[], path)?["mount"]["device"].as_str().ok_or("no mount is seen")?.to_owned();
    let before = named_by_all(path)?;
    let planter = stage.plant(name)?;
    let after = named_by_all(path)?;
    let mut answer = ask(holders, &["--detached"], path)?;
    let umount = match stage.umount() {
        Ok(()) => Umount::Done,
        Err(Errno::BUSY) => Umount::Busy,
        Err(Errno::INVAL) => Umount::NotMounted,
        Err(error) => return Err(error.into()),
    };
    match umount {
        Umount::Busy => answer = ask(holders, &["--busy"], path)?,
        Umount::NotMounted => answer = ask(holders, &["--device", &device], path)?,
        Umount::Done => {}
    }
    // With index=on a second mount of layers that are in use is refused: the kernel's word for it.
    let outlives = umount != Umount::Busy && stage.mount() == Err(Errno::BUSY);
    let truth = Truth { umount, outlives, holder: process_of(case, planter.holder) };
    let mut answers = serde_json::Map::new();
    let entry = |worth: Worth, said: String| json!({ "worth": worth.word(), "said": said });
    answers.insert("holders".to_owned(), {
        let said = format!("{}: {:?}", answer["line"].as_str().unwrap_or_default(), blockers(&answer));
        entry(worth_of_verdict(truth, &answer), said)
    });
    for tool in OTHERS {
        let named: BTreeSet<u32> = after[tool].difference(&before[tool]).copied().collect();
        answers.insert(tool.to_owned(), entry(worth_of_list(truth, &named), format!("{named:?}")));
    }
    let is_as_planned = umount == case.umount && outlives == case.outlives;
    let line = json!({
        "case": name,
        "umount": match umount { Umount::Done => "ok", Umount::Busy => "EBUSY", Umount::NotMounted => "not mounted" },
        "outlives": outlives,
        "visible": case.visible,
        "as_planned": is_as_planned,
        "holder": planter.holder,
        "answers": answers,
    });
    println!("{line}");
    Ok(())
}

/// In these cases something blocks that is no process: whoever has planted it holds nothing.
fn process_of(case: &Case, planter: u32) -> Option<u32> {
    (!matches!(case.name, "loop" | "submount" | "submount-cwd")).then_some(planter)
}

fn named_by_all(path: &Path) -> Result<BTreeMap<&'static str, BTreeSet<u32>>, Box<dyn Error>> {
    OTHERS.into_iter().map(|tool| Ok((tool, tools::named(tool, path)?))).collect()
}

fn ask(holders: &Path, options: &[&str], path: &Path) -> Result<Value, Box<dyn Error>> {
    let mut words = vec![holders.display().to_string(), "--json".to_owned()];
    words.extend(options.iter().map(|&option| option.to_owned()));
    words.push(path.display().to_string());
    let output = tools::run(&words)?;
    serde_json::from_slice(&output.stdout).map_err(|error| {
        format!("{}: {error}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr)).into()
    })
}

/// The processes that `holders` accuses.
fn blockers(answer: &Value) -> BTreeSet<u32> {
    let empty = Vec::new();
    let holders = answer["holders"].as_array().unwrap_or(&empty);
    let blocks = |holder: &&Value| {
        let references = holder["references"].as_array().unwrap_or(&empty);
        references.iter().any(|reference| reference["effect"] == "blocks umount")
    };
    holders.iter().filter(blocks).filter_map(|holder| u32::try_from(holder["pid"].as_u64()?).ok()).collect()
}

fn worth_of_verdict(truth: Truth, answer: &Value) -> Worth {
    let accused = blockers(answer);
    let verdict = answer["verdict"].as_str().unwrap_or_default();
    // In a sandbox not even root may look at everybody: then what is so but for those.
    let verdict = answer["otherwise"].as_str().unwrap_or(verdict);
    let is_unseen = answer["unseen"]["namespaces"].as_array().is_some_and(|unseen| !unseen.is_empty());
    match (truth.umount, verdict) {
        (Umount::Busy, "held-by-process" | "held-by-yourself") => {
            if truth.holder.is_some_and(|holder| accused == BTreeSet::from([holder])) {
                Worth::Right
            } else {
                Worth::Wrong
            }
        }
        (Umount::Busy, "held-by-kernel" | "submounts") if truth.holder.is_none() && accused.is_empty() => {
            Worth::Right
        }
        (Umount::Busy, "not-visible") => Worth::CannotSee,
        (_, "held-by-process" | "held-by-yourself" | "held-by-kernel" | "submounts" | "not-visible") => {
            Worth::Wrong
        }
        (Umount::Busy, _) => Worth::Silent,
        (Umount::Done | Umount::NotMounted, "outlives" | "alive-elsewhere") => {
            if truth.outlives {
                Worth::Right
            } else {
                Worth::Wrong
            }
        }
        (Umount::Done | Umount::NotMounted, _) if !truth.outlives => Worth::Right,
        (Umount::Done | Umount::NotMounted, _) if is_unseen => Worth::CannotSee,
        (Umount::Done | Umount::NotMounted, _) => Worth::Silent,
    }
}

/// A list of processes as an answer to who makes the unmount fail.
fn worth_of_list(truth: Truth, named: &BTreeSet<u32>) -> Worth {
    let is_holder = truth.holder.is_some_and(|holder| *named == BTreeSet::from([holder]));
    match truth.umount {
        Umount::Done if named.is_empty() && !truth.outlives => Worth::Right,
        _ if named.is_empty() => Worth::Silent,
        Umount::Done => Worth::Wrong,
        Umount::Busy | Umount::NotMounted if is_holder => Worth::Right,
        Umount::Busy | Umount::NotMounted => Worth::Wrong,
    }
}
