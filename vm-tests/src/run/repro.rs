//! A bundle that hands a run over: one file with all that another checkout needs to make it again, and what came of it.
//!
//! It has the session as the guest got it, and not the files that the session was made of. So it is the run that failed, whatever
//! a checkout has by now. A tar that zstd compresses, for whoever wants to look into it with other programs; nothing of it is
//! unpacked to a disk here.

mod members;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde::{Deserialize, Serialize};
use vm_agent::recording::{Plan, Recording};
use vm_agent::wire::{self, PROTOCOL, Session};

use self::members::{
    ABOUT, FORM, INPUTS, MANIFEST, MOST, RECORDING, REPORT, SESSION, SUM, Unusable, json, sum_of, tar, unpack,
};
use super::at::At;
use super::given::Given;
use super::guest::{Guest, end_with, restore};
use super::inputs::Inputs;
use super::one::{self, Bounds, Run};
use crate::cache;
use crate::host::accel::Clock;
use crate::host::events::{self, Event};
use crate::machine::Cancel;
use crate::scenario::{Scenario, Wanted, WrongInput, is_package_name};

/// Its name, in the results of a scenario.
pub const FILE: &str = "repro.tar.zst";

/// Which runs get a bundle beside their results.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// All that repeat, and not only those that are not as expected.
    pub all: bool,
    /// The commit that is run, as a person would check it out; empty if that is not known.
    pub commit: String,
}

/// What a bundle says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    form: u32,
    protocol: u32,
    /// The guest's name: a Debian suite, `nixos`, `external`.
    pub guest: String,
    /// What its image has beside the usual packages.
    pub packages: Vec<String>,
    /// The RAM of its machine.
    pub memory_mib: u32,
    /// The scenario's name.
    pub scenario: String,
    /// Of the run; see [`Keep::commit`].
    pub commit: String,
}

/// A run that is handed over.
#[derive(Debug, Clone)]
pub struct Repro {
    /// Which run, on what.
    pub about: About,
    /// What the guest was given.
    pub session: Session,
    /// All that the run was made of.
    pub inputs: Inputs,
    /// What came of it.
    pub recording: Recording,
    /// The SHA-256 of its JSON, as it was written.
    pub recording_sha256: String,
    /// Where to look first, as its report says; none of a run that is as expected.
    pub look: Option<At>,
}

impl Repro {
    /// Reads a bundle. Nothing is written.
    ///
    /// # Errors
    /// [`WrongInput`], with what is wrong with it: no bundle, damaged, or of another version.
    pub fn read(file: &Path) -> Result<Self> {
        let wrong = |why: String| WrongInput::new(format!("{}: {why}", file.display()));
        let about = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?;
        if !about.is_file() {
            return Err(wrong(
                "no file; a bundle is target/vm-test/<guest>/<scenario>/repro.tar.zst".to_owned(),
            )
            .into());
        }
        if about.len() > MOST {
            return Err(wrong(Unusable::TooLarge.to_string()).into());
        }
        let bytes = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        Ok(Self::of(&bytes).map_err(|why| wrong(why.to_string()))?)
    }

    fn of(bytes: &[u8]) -> Result<Self, Unusable> {
        let mut members = unpack(bytes)?;
        let mut take = |name: &'static str| {
            members.remove(name).ok_or_else(|| Unusable::Damaged(format!("it has no {name}")))
        };
        let about = take(ABOUT)?;
        // What every form has, before anything is asked of it that another one may have otherwise.
        let any: AnyForm = json(ABOUT, &about)?;
        if any.form != FORM {
            return Err(Unusable::Form(any.form, at(&any.commit)));
        }
        let known = json::<About>(ABOUT, &about)?;
        if known.protocol != PROTOCOL {
            return Err(Unusable::Protocol(known.protocol, at(&known.commit)));
        }
        known.check()?;
        let [session, inputs, recording, report] =
            [take(SESSION)?, take(INPUTS)?, take(RECORDING)?, take(REPORT)?];
        let sum = take(SUM)?;
        let manifest = members.remove(MANIFEST);
        let all = [
            (ABOUT, Some(&about)),
            (SESSION, Some(&session)),
            (INPUTS, Some(&inputs)),
            (RECORDING, Some(&recording)),
            (REPORT, Some(&report)),
            (MANIFEST, manifest.as_ref()),
        ];
        let all = all.into_iter().filter_map(|(name, bytes)| Some((name, bytes?.as_slice())));
        if sum_of(all) != String::from_utf8_lossy(&sum) {
            return Err(Unusable::Damaged("its parts are not those that it was made with".to_owned()));
        }
        let session: Session =
            wire::decode(&session).map_err(|error| Unusable::Unreadable(SESSION, error.to_string()))?;
        if session.plan.is_none() {
            return Err(Unusable::Unreadable(SESSION, "there is no plan in it".to_owned()));
        }
        Ok(Self {
            session,
            inputs: json(INPUTS, &inputs)?,
            look: json::<Looks>(REPORT, &report)?.look.and_then(|look| look.parse().ok()),
            recording_sha256: cache::hash_bytes(&recording),
            recording: json(RECORDING, &recording)?,
            about: known,
        })
    }

    /// The same as bytes. `report` and `manifest` are for whoever looks into it.
    fn bytes(about: &About, session: &Session, parts: &Parts<'_>) -> Result<Vec<u8>> {
        let about = serde_json::to_vec_pretty(about)?;
        let session = wire::encode(session).context("encode the session")?;
        let inputs = serde_json::to_vec_pretty(parts.inputs)?;
        let mut members: Vec<(&str, &[u8])> = vec![
            (ABOUT, &about),
            (SESSION, &session),
            (INPUTS, &inputs),
            (RECORDING, parts.recording.as_bytes()),
            (REPORT, parts.report.as_bytes()),
        ];
        if let Some(manifest) = parts.manifest {
            members.push((MANIFEST, manifest));
        }
        let sum = sum_of(members.iter().copied());
        members.push((SUM, sum.as_bytes()));
        Ok(compress_to_vec(&*tar(&members)?, CompressionLevel::Fastest))
    }

    /// The plan of its session.
    ///
    /// # Errors
    /// None of one that was read.
    pub fn plan(&self) -> Result<&Plan> {
        self.session.plan.as_ref().context("a bundle without a plan")
    }

    /// The machine that it wants.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted {
            by: self.about.scenario.clone(),
            packages: self.about.packages.clone(),
            images: Vec::new(),
            memory_mib: self.about.memory_mib,
            // What holds them is in the session.
            holds: false,
        }
    }

    /// What the guest is given by it.
    #[must_use]
    pub fn given(&self) -> Given {
        Given::of_session(&self.about.scenario, self.about.memory_mib, self.session.clone())
    }

    /// What its run would be made of on a guest of a checkout.
    ///
    /// # Errors
    /// If there is no saved machine of the size that it wants.
    pub fn inputs_on(&self, guest: &Guest) -> Result<Inputs> {
        Inputs::of(&guest.of_size(self.about.memory_mib), &self.session)
    }

    /// Makes the run again, on a guest of a checkout, with its logs in `directory`.
    ///
    /// # Errors
    /// A guest in real time; those of a run.
    pub async fn replay(&self, guest: &Guest, directory: &Path, cancel: Cancel) -> Result<Replayed> {
        ensure!(
            guest.base.clock == Clock::Virtual,
            "a run is the same once more in virtual time only: leave out --clock real and --accel kvm"
        );
        let (given, inputs) = (self.given(), self.inputs_on(guest)?);
        let guest = guest.of_size(given.memory_mib);
        let test = format!("{}/{}", self.about.guest, self.about.scenario);
        events::tell(Event::Restoring { test: test.clone() });
        let mut machine = restore(&guest, Some(self.session.clone()), directory, cancel).await?;
        events::tell(Event::Recording { test, cycles: self.plan()?.cycles });
        let deadline = Duration::from_secs(Bounds::default().deadline_secs);
        let recording = match one::recorded(&mut machine, guest.base.clock, deadline).await {
            Ok(recording) => recording,
            Err(error) => {
                let Given { units, .. } = &given;
                return end_with(machine, error, units, given.mount_or_root()).await;
            }
        };
        machine.stop().await?;
        let text = serde_json::to_string(&recording).context("a recording as JSON")?;
        Ok(Replayed { recording_sha256: cache::hash_bytes(text.as_bytes()), recording, inputs })
    }
}

/// What came of a bundle's run here.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// What it was made of here.
    pub inputs: Inputs,
    /// What was recorded.
    pub recording: Recording,
    /// The SHA-256 of its JSON.
    pub recording_sha256: String,
}

impl About {
    fn of(guest: &Guest, scenario: &Scenario, commit: &str) -> Self {
        Self {
            form: FORM,
            protocol: PROTOCOL,
            guest: guest.name.clone(),
            packages: guest.packages.clone(),
            memory_mib: scenario.manifest.memory_mib,
            scenario: scenario.name.clone(),
            commit: commit.to_owned(),
        }
    }

    /// A bundle comes from anybody, and these words go to programs and to a terminal.
    fn check(&self) -> Result<(), Unusable> {
        let is_plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+ ".contains(&byte));
        let is_name = |text: &str| !text.is_empty() && !text.starts_with(['.', '-']) && is_plain(text);
        for (what, text, is_one) in [
            ("guest", &self.guest, is_name(&self.guest)),
            ("scenario", &self.scenario, is_name(&self.scenario)),
            ("commit", &self.commit, is_plain(&self.commit)),
        ] {
            if !is_one {
                return Err(Unusable::NoName(what, text.clone()));
            }
        }
        match self.packages.iter().find(|package| !is_package_name(package)) {
            Some(package) => Err(Unusable::NoName("package", package.clone())),
            None => Ok(()),
        }
    }
}

/// What is read of a report.
#[derive(Deserialize)]
struct Looks {
    #[serde(default)]
    look: Option<String>,
}

/// What every form says.
#[derive(Deserialize)]
struct AnyForm {
    form: u32,
    #[serde(default)]
    commit: String,
}

/// For a message: whatever a stranger has written there.
fn at(commit: &str) -> String {
    let is_one =
        !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b' ');
    if is_one { format!(", commit {commit}") } else { String::new() }
}

struct Parts<'a> {
    inputs: &'a Inputs,
    recording: &'a str,
    report: &'a str,
    manifest: Option<&'a [u8]>,
}

/// Writes the bundle of a run into the directory of its results; `None` of one that does not repeat, or whose files have changed
/// since, which is told. `report` is its JSON.
///
/// # Errors
/// If it can't be written.
pub(crate) fn write(
    guest: &Guest,
    scenario: &Scenario,
    bounds: Bounds,
    run: &Run,
    report: &str,
    commit: &str,
    directory: &Path,
) -> Result<Option<PathBuf>> {
    let Some(inputs) = run.inputs.as_ref().filter(|inputs| inputs.repeat()) else { return Ok(None) };
    let session = one::wanted(guest, scenario, bounds)?;
    if Inputs::of(&guest.of_size(scenario.manifest.memory_mib), &session)?.key()? != inputs.key()? {
        let (guest, scenario) = (&guest.name, &scenario.name);
        events::tell(Event::Note(format!(
            "{guest}/{scenario}: its files have changed since it ran: no {FILE}"
        )));
        return Ok(None);
    }
    let manifest = std::fs::read(scenario.directory.join(MANIFEST)).ok();
    let parts = Parts { inputs, recording: &run.text, report, manifest: manifest.as_deref() };
    let bytes = Repro::bytes(&About::of(guest, scenario, commit), &session, &parts)?;
    let file = directory.join(FILE);
    std::fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use ::tar::Header;
    use proptest::prelude::*;
    use vm_agent::recording::{Event as Recorded, What};
    use vm_agent::wire::Put;

    use super::members::MEMBERS;
    use super::*;
    use crate::run::input::{Input, Kind};

    fn about() -> About {
        About {
            form: FORM,
            protocol: PROTOCOL,
            guest: "trixie".to_owned(),
            packages: vec!["nfs-kernel-server".to_owned()],
            memory_mib: 512,
            scenario: "936c8bb".to_owned(),
            commit: "0b4a3442 with changes".to_owned(),
        }
    }

    fn session() -> Session {
        let bytes = (0..5000_u32).flat_map(u32::to_le_bytes).collect();
        let file = Put { path: "/a".to_owned(), mode: 0o644, symlink: false, offset: 0, last: true, bytes };
        Session { files: vec![file], plan: Some(Plan::default()), ..Session::default() }
    }

    fn inputs() -> Inputs {
        Inputs(vec![Input { kind: Kind::File, name: "/a".to_owned(), value: "1".to_owned() }])
    }

    fn recording() -> Recording {
        let event = Recorded { at: 7, cycle: 1, what: What::Console { lines: vec!["a line".to_owned()] } };
        Recording { events: vec![event], ..Recording::default() }
    }

    const REPORT_TEXT: &str = "{\"name\": \"936c8bb\", \"look\": \"cycle 2: umount fails\"}";

    fn bundle(about: &About) -> Vec<u8> {
        let (inputs, recording) = (inputs(), serde_json::to_string(&recording()).expect("json"));
        let parts = Parts {
            inputs: &inputs,
            recording: &recording,
            report: REPORT_TEXT,
            manifest: Some(b"unit = 1"),
        };
        Repro::bytes(about, &session(), &parts).expect("a bundle")
    }

    /// One with other members than it should have.
    fn with(change: impl FnOnce(&mut Vec<(&str, Vec<u8>)>)) -> Vec<u8> {
        let members = unpack(&bundle(&about())).expect("members");
        let mut members: Vec<(&str, Vec<u8>)> =
            MEMBERS.iter().filter_map(|(name, _)| Some((*name, members.get(name)?.clone()))).collect();
        change(&mut members);
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, bytes) in &members {
            let mut header = Header::new_ustar();
            let at = &mut header.as_ustar_mut().expect("ustar").name;
            at[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append(&header, bytes.as_slice()).expect("append");
        }
        compress_to_vec(&*builder.into_inner().expect("a tar"), CompressionLevel::Fastest)
    }

    #[test]
    fn what_was_written_is_read_and_the_same_bytes_each_time() {
        let bytes = bundle(&about());
        assert_eq!(bytes, bundle(&about()));
        let repro = Repro::of(&bytes).expect("a bundle");
        assert_eq!(
            (repro.about.clone(), repro.inputs.clone(), repro.recording.clone()),
            (about(), inputs(), recording())
        );
        assert_eq!(wire::encode(&repro.session).expect("bytes"), wire::encode(&session()).expect("bytes"));
        let text = serde_json::to_vec(&recording()).expect("json");
        assert_eq!(repro.recording_sha256, cache::hash_bytes(&text));
        assert_eq!(repro.look, "cycle 2: umount fails".parse().ok());
        let without = with(|members| members.retain(|(name, _)| *name != MANIFEST));
        assert!(
            Repro::of(&without).is_err_and(|why| matches!(why, Unusable::Damaged(_))),
            "the sum names it"
        );
    }

    #[test]
    fn what_is_wrong_with_a_bundle_is_told() {
        let of = |change: fn(&mut About)| {
            let mut about = about();
            change(&mut about);
            bundle(&about)
        };
        let member = |name: &'static str| {
            move |members: &mut Vec<(&str, Vec<u8>)>| members.push((name, b"x".to_vec()))
        };
        let other = |name: &'static str, bytes: &'static [u8]| {
            with(move |members| {
                let it = members.iter_mut().find(|(one, _)| *one == name);
                it.expect("a member").1 = bytes.to_vec();
            })
        };
        let plain_tar = tar(&[(ABOUT, b"{}")]).expect("a tar");
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (Vec::new(), "no bundle of a run"),
            (b"#!/bin/sh\necho a script\n".to_vec(), "no bundle of a run"),
            (plain_tar, "no bundle of a run"),
            (compress_to_vec(&b"no tar"[..], CompressionLevel::Fastest), "cut or damaged"),
            (with(|members| members.clear()), "it has no about.json"),
            (with(|members| members.truncate(3)), "it has no recording.json"),
            (with(member("../../etc/passwd")), "\"../../etc/passwd\", which no bundle has"),
            (with(member("/etc/passwd")), "\"/etc/passwd\", which no bundle has"),
            (with(member(ABOUT)), "\"about.json\", which no bundle has"),
            (other(RECORDING, b"{}"), "not those that it was made with"),
            (
                other(ABOUT, b"{\"form\": 2, \"commit\": \"abc\"}"),
                "form 2, and this harness reads form 1: use the checkout that made it, commit abc",
            ),
            (other(ABOUT, b"{\"form\": 2, \"commit\": \"\\u001b[2J\"}"), "use the checkout that made it"),
            (other(ABOUT, b"[]"), "its about.json can't be read"),
            (of(|about| about.form = 7), "form 7"),
            (of(|about| about.protocol += 1), "protocol"),
            (of(|about| about.guest = "../trixie".to_owned()), "guest is \"../trixie\""),
            (of(|about| about.scenario = "\u{1b}[2J".to_owned()), "scenario is \"\\u{1b}[2J\""),
            (of(|about| about.scenario.clear()), "scenario is \"\""),
            (of(|about| about.packages.push("--setup-hook=sh".to_owned())), "package is \"--setup-hook=sh\""),
        ];
        for (bytes, words) in cases {
            let why = Repro::of(&bytes).expect_err(words).to_string();
            assert!(why.contains(words) && !why.contains('\u{1b}'), "{why}\nhas not: {words}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_wrong_input_with_its_path() {
        let place = tempfile::tempdir().expect("tempdir");
        let cut = place.path().join("cut");
        std::fs::write(&cut, &bundle(&about())[..200]).expect("write");
        for (path, words) in [
            (place.path().to_owned(), "no file"),
            (place.path().join("no"), "No such file"),
            (cut, "cut or damaged"),
        ] {
            let error = Repro::read(&path).expect_err(words);
            assert!(error.is::<WrongInput>(), "{error:#}");
            let text = format!("{error:#}");
            assert!(text.contains(words) && text.contains(&path.display().to_string()), "{text}");
        }
    }

    proptest! {
        /// Wherever it is cut, and whichever bytes are others: an error, or what it was.
        #[test]
        fn a_bundle_that_is_cut_or_changed_is_never_another_run(
            cut in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
        ) {
            let whole = bundle(&about());
            let cut = &whole[..cut.index(whole.len())];
            prop_assert!(Repro::of(cut).is_err());
            let mut changed = whole.clone();
            for (at, by) in changes {
                let at = at.index(changed.len());
                changed[at] ^= by;
            }
            if let Ok(read) = Repro::of(&changed) {
                let same = Repro::of(&whole).expect("a bundle");
                prop_assert_eq!(&read.about, &same.about);
                prop_assert_eq!(&read.inputs, &same.inputs);
                prop_assert_eq!(&read.recording_sha256, &same.recording_sha256);
                prop_assert_eq!(wire::encode(&read.session).expect("bytes"), wire::encode(&same.session).expect("bytes"));
            }
        }
    }
}
