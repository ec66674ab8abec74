//! A deploy, step by step: as a list, so that what is told, what is tested and what is done are one thing. The way back is made of
//! the same steps with the old version in place of the new one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::canary;
use crate::guard;
use crate::host::{Host, command};
use crate::links;
use crate::plan::{self, Before};
use crate::servers::{self, Servers};
use crate::state::{self, Lock, Pending};
use crate::store;
use crate::verify;
use crate::wire::{Answer, Apply, Id, Refusal, What};

/// Who is told what happens; an error of it is a client that is gone.
pub type Tell<'a> = &'a mut dyn FnMut(crate::wire::Line) -> Result<()>;

/// A step: its name, what it does.
type Step<T> = (&'static str, fn(&mut T) -> Result<()>);

/// A version that is being brought into use, or back.
#[derive(Debug)]
struct Work {
    host: Host,
    pending: Pending,
    /// The version that is to be in use.
    target: Option<Id>,
    limit_secs: u64,
    confirm_secs: u64,
    by_hand: bool,
    servers: Servers,
    /// Why it is put back.
    why: String,
}

/// Up to this one nothing is changed that anybody uses, and there is nothing to put back.
const MARK: &str = "mark";

/// A deploy.
const APPLY: [Step<Work>; 12] = [
    ("verify", Work::verify),
    ("keep-old", Work::keep_old),
    ("arm", Work::arm),
    (MARK, Work::mark),
    ("adopt", Work::adopt),
    ("link", Work::link),
    ("log", Work::log),
    ("switch", Work::switch),
    ("reload", Work::reload),
    ("canary", Work::canary),
    ("servers", Work::unnoticed),
    ("trial", Work::trial),
];

/// The way back.
const BACK: [Step<Work>; 8] = [
    ("back-canary", Work::stop_canary),
    // First: what was unpacked by hand may not have been made links yet, which lead nowhere before.
    ("back-switch", Work::switch),
    ("back-link", Work::link),
    ("back-reload", Work::reload),
    ("back-remove-canary", Work::remove_canary),
    ("back-log", Work::log_back),
    ("back-unmark", Work::unmark),
    ("back-tidy", Work::tidy),
];

/// What makes it stay.
const CONFIRM: [Step<Work>; 3] =
    [("confirm-unmark", Work::unmark), ("confirm-log", Work::log_confirmed), ("confirm-tidy", Work::tidy)];

/// The names of all steps, in their order.
#[must_use]
pub fn steps() -> Vec<&'static str> {
    let lists = [&APPLY[..], &BACK[..], &CONFIRM[..]];
    lists.iter().flat_map(|list| list.iter().map(|(name, _)| *name)).collect()
}

/// Brings a version into use, on trial. Whatever fails once it has begun to change something puts the old version back.
///
/// # Errors
/// The host can't be looked at; nothing was changed.
pub fn apply(host: &Host, wanted: &Apply, tell: Tell<'_>) -> Result<Answer> {
    let _lock = match Lock::take(host, &wanted.by)? {
        Ok(lock) => lock,
        Err(who) => return Ok(Answer::Refused(vec![plan::held_by(&who)])),
    };
    let now = plan::again(host, wanted.to.as_ref())?;
    if !now.refusals.is_empty() {
        return Ok(Answer::Refused(now.refusals));
    }
    if now.digest != wanted.digest {
        let refusal = Refusal::new(
            "the host has changed since the plan was made",
            "look at the new plan: cargo xtask deploy HOST",
        );
        return Ok(Answer::Refused(vec![refusal]));
    }
    let manifest = wanted.to.as_ref().map(|id| store::manifest(host, id)).transpose()?.flatten();
    let before = Before::look(host, &links::known(host, manifest.as_ref())?)?;
    let pending = Pending {
        token: wanted.token.clone(),
        by: wanted.by.clone(),
        at: state::now(),
        from: before.id(),
        to: wanted.to.clone(),
    };
    let mut work = Work {
        host: host.clone(),
        pending,
        target: wanted.to.clone(),
        limit_secs: wanted.limit_secs,
        confirm_secs: wanted.confirm_secs,
        by_hand: before.is_by_hand,
        servers: servers::look(host)?,
        why: String::new(),
    };
    let end = Instant::now() + Duration::from_secs(wanted.limit_secs);
    let mut is_marked = false;
    for (name, step) in APPLY {
        is_marked |= name == MARK;
        let done = tell(crate::wire::Line::Step(name.to_owned())).and_then(|()| {
            ensure!(Instant::now() < end, "the deploy has taken longer than {} s", wanted.limit_secs);
            step(&mut work)
        });
        if let Err(error) = done.with_context(|| format!("step {name}")) {
            return Ok(undo(work, is_marked, &error, tell));
        }
    }
    Ok(Answer::OnTrial)
}

/// After a step that has failed.
fn undo(work: Work, is_marked: bool, error: &anyhow::Error, tell: Tell<'_>) -> Answer {
    let why = format!("{error:#}");
    if !is_marked {
        return match guard::disarm(&work.host) {
            Ok(()) => Answer::Failed(why),
            Err(also) => {
                Answer::Failed(format!("{why}; and its guard is left, which does nothing: {also:#}"))
            }
        };
    }
    match back(work, &why, tell) {
        Ok(()) => Answer::PutBack { why },
        Err(also) => Answer::Unknown(format!(
            "{why}; and the way back failed: {also:#}: {} tries again",
            guard::SERVICE
        )),
    }
}

fn back(mut work: Work, why: &str, tell: Tell<'_>) -> Result<()> {
    work.target = work.pending.from.clone();
    why.clone_into(&mut work.why);
    eprintln!("put back, as {why}");
    for (name, step) in BACK {
        // Nobody has to listen.
        if let Err(error) = tell(crate::wire::Line::Step(name.to_owned())) {
            eprintln!("step {name}: {error:#}");
        }
        step(&mut work).with_context(|| format!("step {name}"))?;
    }
    Ok(())
}

/// Puts the old version back, if there is a deploy on trial. For the guard, and for who asks for it.
///
/// # Errors
/// A step's. It may be called again.
pub fn put_back(host: &Host, token: Option<&str>, by: &str, why: &str, tell: Tell<'_>) -> Result<Answer> {
    let nothing = || {
        let next = "cargo xtask deploy HOST --history shows what became of it";
        Answer::Refused(vec![Refusal::new("no such deploy is on trial", next)])
    };
    if Pending::read(host)?.is_none() {
        return Ok(nothing());
    }
    let _lock = Lock::wrest(host, by)?;
    let Some(pending) =
        Pending::read(host)?.filter(|pending| token.is_none_or(|token| token == pending.token))
    else {
        return Ok(nothing());
    };
    let target = pending.from.clone();
    let work = Work::later(host, pending, target);
    back(work, why, tell)?;
    Ok(Answer::PutBack { why: why.to_owned() })
}

/// Has the version on trial stay.
///
/// # Errors
/// It could not be stored that it stays: it does not.
pub fn confirm(host: &Host, token: &str, tell: Tell<'_>) -> Result<Answer> {
    let lock = match Lock::take(host, "a confirmation")? {
        Ok(lock) => lock,
        Err(who) => return Ok(Answer::Failed(format!("{who} works on the host"))),
    };
    let Some(pending) = Pending::read(host)?.filter(|pending| pending.token == token) else {
        return Ok(
            outcome(host, token)?.unwrap_or_else(|| Answer::Failed("it is not on trial any more".to_owned()))
        );
    };
    let target = pending.to.clone();
    if store::current(host)? != target {
        bail!("{} is on trial, and not in use", target.as_deref().unwrap_or("nothing"));
    }
    let mut work = Work::later(host, pending, target);
    let mut is_confirmed = false;
    for (name, step) in CONFIRM {
        tell(crate::wire::Line::Step(name.to_owned()))
            .or_else(|error| if is_confirmed { Ok(()) } else { Err(error) })?;
        match step(&mut work).with_context(|| format!("step {name}")) {
            Ok(()) => is_confirmed = true,
            Err(error) if is_confirmed => eprintln!("{error:#}"),
            Err(error) => return Err(error),
        }
    }
    drop(lock);
    Ok(Answer::Confirmed)
}

/// What the log says of a deploy that is over.
///
/// # Errors
/// The log can't be read.
pub fn outcome(host: &Host, token: &str) -> Result<Option<Answer>> {
    let log = state::read_log(host)?;
    let last = log.iter().rfind(|entry| entry.token == token && entry.what != What::Switch);
    Ok(last.map(|entry| match entry.what {
        What::Confirmed => Answer::Confirmed,
        What::PutBack | What::Switch => Answer::PutBack { why: entry.note.clone() },
    }))
}

impl Work {
    /// Of a deploy that another process has begun.
    fn later(host: &Host, pending: Pending, target: Option<Id>) -> Self {
        let (servers, why) = (Servers::new(), String::new());
        Self {
            host: host.clone(),
            pending,
            target,
            limit_secs: 0,
            confirm_secs: 0,
            by_hand: false,
            servers,
            why,
        }
    }

    fn verify(&mut self) -> Result<()> {
        let Some(id) = &self.target else { return Ok(()) };
        let manifest = store::manifest(&self.host, id)?.context("the version is not on the host")?;
        let wrong = verify::version(&self.host, id, &manifest)?;
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(())
    }

    /// What was unpacked by hand becomes a version, beside its files. The way back is made now, as a full disk has no room for it
    /// later.
    fn keep_old(&mut self) -> Result<()> {
        if self.by_hand {
            let paths = links::known(&self.host, self.manifest()?.as_ref())?;
            let before = Before::look(&self.host, &paths)?;
            let manifest = before.manifest.context("what was unpacked by hand is gone")?;
            ensure!(Some(manifest.id()) == self.pending.from, "what was unpacked by hand has changed");
            store::adopt(&self.host, &manifest)?;
        }
        store::prepare(&self.host, self.pending.from.as_ref())
    }

    fn manifest(&self) -> Result<Option<crate::wire::Manifest>> {
        Ok(self.target.as_ref().map(|id| store::manifest(&self.host, id)).transpose()?.flatten())
    }

    fn arm(&mut self) -> Result<()> {
        guard::arm(&self.host, self.limit_secs, self.confirm_secs)
    }

    fn mark(&mut self) -> Result<()> {
        self.pending.store(&self.host)
    }

    /// The old version by its link, with the bytes that lie at the paths already.
    fn adopt(&mut self) -> Result<()> {
        if self.by_hand {
            store::switch(&self.host, self.pending.from.as_ref())?;
            store::prepare(&self.host, self.pending.from.as_ref())?;
        }
        Ok(())
    }

    fn link(&mut self) -> Result<()> {
        let mut paths = links::known(&self.host, None)?;
        let Some(manifest) = self.manifest()? else { return Ok(()) };
        let by_hand = links::files(&self.host, &paths)?;
        paths.retain(|path| manifest.files.contains_key(path) || by_hand.contains(path));
        links::make(&self.host, &paths)
    }

    fn log(&mut self) -> Result<()> {
        state::log(&self.host, What::Switch, &self.pending, self.pending.to.as_ref(), "")
    }

    fn switch(&mut self) -> Result<()> {
        store::switch(&self.host, self.target.as_ref())
    }

    fn reload(&mut self) -> Result<()> {
        for line in plan::reloads(self.manifest()?.as_ref()) {
            let argv: Vec<&str> = line.split(' ').collect();
            command::ok(&argv, Instant::now() + Duration::from_secs(60))?;
        }
        Ok(())
    }

    fn canary(&mut self) -> Result<()> {
        if self.target.is_some() { canary::run(&self.host) } else { Ok(()) }
    }

    fn unnoticed(&mut self) -> Result<()> {
        let changes = servers::noticed(&self.servers, &servers::look(&self.host)?);
        ensure!(changes.is_empty(), "running servers have noticed: {}", changes.join("; "));
        Ok(())
    }

    fn trial(&mut self) -> Result<()> {
        guard::begin_trial()
    }

    /// With the new version, as long as that is in use; where it can't, the old one does.
    fn stop_canary(&mut self) -> Result<()> {
        if let Err(error) = canary::remove(&self.host) {
            eprintln!("{error:#}");
        }
        Ok(())
    }

    fn remove_canary(&mut self) -> Result<()> {
        if let Err(error) = canary::remove(&self.host) {
            eprintln!("left: {error:#}");
        }
        Ok(())
    }

    fn log_back(&mut self) -> Result<()> {
        // A full disk does not keep the old version away.
        if let Err(error) =
            state::log(&self.host, What::PutBack, &self.pending, self.target.as_ref(), &self.why)
        {
            eprintln!("{error:#}");
        }
        Ok(())
    }

    fn log_confirmed(&mut self) -> Result<()> {
        state::log(&self.host, What::Confirmed, &self.pending, self.target.as_ref(), "")
    }

    /// The instant from which the guard does nothing any more.
    fn unmark(&mut self) -> Result<()> {
        crate::host::durable::remove(&self.host.state(state::PENDING))
    }

    /// What is left to do changes nothing that anybody uses; the next deploy does it where this one can't.
    fn tidy(&mut self) -> Result<()> {
        let tidied = [
            guard::disarm(&self.host),
            links::prune(&self.host, self.target.as_ref()),
            state::read_log(&self.host)
                .and_then(|log| store::tidy(&self.host, &state::back(&log, self.target.as_ref()))),
        ];
        for error in tidied.into_iter().filter_map(Result::err) {
            eprintln!("{error:#}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_there_before_the_first_change() {
        let at = |name| APPLY.iter().position(|(step, _)| *step == name).expect("a step");
        for change in ["adopt", "link", "switch", "reload", "canary"] {
            assert!(at("arm") < at(MARK) && at(MARK) < at(change), "{change}");
        }
    }

    #[test]
    fn each_step_has_a_name_of_its_own() {
        let mut names = steps();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), steps().len());
    }
}
