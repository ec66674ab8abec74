//! A deploy as its client leads it: plan, question, stage, apply, and the confirmation over a new connection. How requests get to
//! the host is the caller's affair ([`Transport`]).

use std::collections::BTreeMap;

use crate::wire::{Answer, Apply, Line, Manifest, Plan, Refusal, Request, Target, What};

/// A way to the host. Each request has a connection of its own.
pub trait Transport {
    /// Sends a request and the bytes behind it, and waits for the answer. `is_fresh` asks for a connection that shares nothing with
    /// an earlier one.
    fn ask(
        &mut self,
        request: &Request,
        blobs: &[&[u8]],
        is_fresh: bool,
        line: &mut dyn FnMut(&Line),
    ) -> impl Future<Output = Result<Answer, Lost>>;
}

/// There is no answer: no connection, or one that ended before it. What the host has done is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost(pub String);

/// How a deploy ended, as far as the client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The host has the version, confirmed.
    Changed,
    /// The version lies on the host, and is not in use.
    Staged,
    /// A plan was asked for alone, and it has changes.
    Planned,
    /// The host has the version already.
    Nothing,
    /// The person said no.
    Declined,
    /// The old version is in use again.
    PutBack(String),
    /// Something is in the way; nothing was changed.
    Refused(Vec<Refusal>),
    /// It failed before anything was changed.
    Failed(String),
    /// Not known: what happened, and what to look at.
    Unknown(String),
}

/// What is deployed.
#[derive(Debug, Clone)]
pub struct Version {
    /// What it is made of.
    pub manifest: Manifest,
    /// Its bytes, by their sums.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

/// Which version a deploy is to.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// This one.
    Version(&'a Version),
    /// So many versions back.
    Back(u32),
}

/// How it is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names the deploy.
    pub token: String,
    /// Who deploys.
    pub by: String,
    /// See [`Apply::limit_secs`].
    pub limit_secs: u64,
    /// See [`Apply::confirm_secs`].
    pub confirm_secs: u64,
    /// How far it goes.
    pub until: Until,
}

/// How far a deploy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The plan.
    Plan,
    /// The version on the host.
    Stage,
    /// Its confirmation.
    Confirmed,
}

/// A person, or a script.
pub trait Person {
    /// Sees the plan.
    fn plan(&mut self, plan: &Plan);
    /// Says whether to go on.
    fn agrees(&mut self) -> bool;
    /// Sees what happens.
    fn line(&mut self, line: &Line);
}

/// How often a confirmation is asked for: a link may be lost with the answer, and the host knows what it answered.
const CONFIRMATIONS: u32 = 3;

/// Deploys.
pub async fn deploy(
    host: &mut impl Transport,
    wanted: Wanted<'_>,
    options: &Options,
    person: &mut impl Person,
) -> Outcome {
    let planned = host.ask(&Request::Plan(target(wanted)), &[], false, &mut |line| person.line(line)).await;
    let plan = match planned {
        Ok(Answer::Plan(plan)) => *plan,
        Ok(other) => return without_change(other),
        Err(Lost(why)) => return Outcome::Failed(why),
    };
    person.plan(&plan);
    if !plan.refusals.is_empty() {
        return Outcome::Refused(plan.refusals);
    }
    if plan.is_nothing {
        return Outcome::Nothing;
    }
    if options.until == Until::Plan {
        return Outcome::Planned;
    }
    if !person.agrees() {
        return Outcome::Declined;
    }
    if let Wanted::Version(version) = wanted {
        match stage(host, version, &plan, options, person).await {
            Ok(Answer::Staged(_id)) => {}
            Ok(other) => return without_change(other),
            Err(Lost(why)) => return Outcome::Failed(format!("{why}: nothing that is in use was changed")),
        }
    }
    if options.until == Until::Stage {
        return Outcome::Staged;
    }
    let apply = Request::Apply(Apply {
        to: plan.to_id.clone(),
        digest: plan.digest.clone(),
        token: options.token.clone(),
        by: options.by.clone(),
        limit_secs: options.limit_secs,
        confirm_secs: options.confirm_secs,
    });
    match host.ask(&apply, &[], false, &mut |line| person.line(line)).await {
        Ok(Answer::OnTrial) => confirm(host, options, person).await,
        Ok(Answer::PutBack { why }) => Outcome::PutBack(why),
        Ok(Answer::Unknown(why)) => Outcome::Unknown(why),
        Ok(other) => without_change(other),
        Err(Lost(why)) => take_back(host, options, &why, person).await,
    }
}

async fn stage(
    host: &mut impl Transport,
    version: &Version,
    plan: &Plan,
    options: &Options,
    person: &mut impl Person,
) -> Result<Answer, Lost> {
    let missing: Vec<(&String, &Vec<u8>)> =
        version.blobs.iter().filter(|(sum, _)| plan.missing.contains(sum)).collect();
    let blobs = missing.iter().map(|(sum, bytes)| ((*sum).clone(), bytes.len() as u64)).collect();
    let bytes: Vec<&[u8]> = missing.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    let request = Request::Stage { manifest: version.manifest.clone(), blobs, by: options.by.clone() };
    host.ask(&request, &bytes, false, &mut |line| person.line(line)).await
}

fn target(wanted: Wanted<'_>) -> Target {
    match wanted {
        Wanted::Back(number) => Target::Back(number),
        Wanted::Version(Version { manifest, blobs }) => {
            let text = |sum| blobs.get(sum).and_then(|bytes| String::from_utf8(bytes.clone()).ok());
            let texts =
                manifest.files.iter().filter_map(|(path, file)| Some((path.clone(), text(&file.sha256)?)));
            Target::New { manifest: manifest.clone(), texts: texts.collect() }
        }
    }
}

/// What an answer means that comes before anything is changed.
fn without_change(answer: Answer) -> Outcome {
    match answer {
        Answer::Refused(refusals) => Outcome::Refused(refusals),
        Answer::Failed(why) => Outcome::Failed(why),
        other => Outcome::Unknown(format!("an answer that does not belong here: {other:?}")),
    }
}

/// Success is told after this, and not before.
async fn confirm(host: &mut impl Transport, options: &Options, person: &mut impl Person) -> Outcome {
    let request = Request::Confirm { token: options.token.clone() };
    let mut lost = String::new();
    for _ in 0..CONFIRMATIONS {
        match host.ask(&request, &[], true, &mut |line| person.line(line)).await {
            Ok(Answer::Confirmed) => return Outcome::Changed,
            Ok(Answer::PutBack { why }) => return Outcome::PutBack(why),
            // It is on trial, and could not be confirmed.
            Ok(other) => return take_back(host, options, &format!("not confirmed: {other:?}"), person).await,
            Err(Lost(why)) => lost = why,
        }
    }
    let secs = options.confirm_secs;
    Outcome::Unknown(format!(
        "{lost}: the host can't be reached any more, so the new version was not confirmed. The host puts the old one back by itself \
         within {secs} s. What became of it: cargo xtask deploy HOST --history"
    ))
}

/// Nobody will confirm it, as it can't be or as the link was lost: back, at once.
async fn take_back(
    host: &mut impl Transport,
    options: &Options,
    why: &str,
    person: &mut impl Person,
) -> Outcome {
    let request = Request::PutBack { token: Some(options.token.clone()) };
    let answer = host.ask(&request, &[], true, &mut |line| person.line(line)).await;
    let secs = options.limit_secs + options.confirm_secs;
    let unknown = |more: &str| {
        Outcome::Unknown(format!(
            "{why}; {more}. If the host had begun to change, it puts the old version back by itself within {secs} s. What became \
             of it: cargo xtask deploy HOST --history"
        ))
    };
    match answer {
        Ok(Answer::PutBack { .. }) => Outcome::PutBack(why.to_owned()),
        // None is on trial: it was put back, or had not begun.
        Ok(Answer::Refused(_)) => match host.ask(&Request::Status, &[], true, &mut |_line| ()).await {
            Ok(Answer::Status(status)) => {
                let last = status.log.iter().rfind(|entry| entry.token == options.token);
                match last.map(|entry| entry.what) {
                    Some(What::Confirmed) => Outcome::Changed,
                    Some(What::PutBack) => Outcome::PutBack(why.to_owned()),
                    Some(What::Switch) => unknown("the log ends with the switch"),
                    None => Outcome::Failed(format!("{why}: nothing was changed")),
                }
            }
            Ok(other) => unknown(&format!("{other:?}")),
            Err(Lost(again)) => unknown(&again),
        },
        Ok(other) => unknown(&format!("{other:?}")),
        Err(Lost(again)) => unknown(&again),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::wire::{Entry, Status};

    /// A host that answers from a list, and what it was asked.
    struct Listed(VecDeque<Result<Answer, Lost>>, Vec<(String, bool)>);

    impl Transport for Listed {
        async fn ask(
            &mut self,
            request: &Request,
            _blobs: &[&[u8]],
            is_fresh: bool,
            _line: &mut dyn FnMut(&Line),
        ) -> Result<Answer, Lost> {
            let words = format!("{request:?}");
            let name = words.split([' ', '(']).next().unwrap_or_default().to_owned();
            self.1.push((name, is_fresh));
            self.0.pop_front().expect("it is not asked so often")
        }
    }

    struct Yes;

    impl Person for Yes {
        fn plan(&mut self, _plan: &Plan) {}
        fn agrees(&mut self) -> bool {
            true
        }
        fn line(&mut self, _line: &Line) {}
    }

    fn plan(refusals: Vec<Refusal>, is_nothing: bool) -> Result<Answer, Lost> {
        Ok(Answer::Plan(Box::new(Plan {
            host: String::new(),
            from: String::new(),
            to: String::new(),
            to_id: None,
            items: Vec::new(),
            instances: Vec::new(),
            reloads: Vec::new(),
            refusals,
            missing: Vec::new(),
            is_nothing,
            digest: String::new(),
        })))
    }

    fn status(what: Option<What>) -> Result<Answer, Lost> {
        let log = what.map(|what| Entry {
            what,
            at: 0,
            boot: String::new(),
            since_boot_ns: 0,
            token: "t".to_owned(),
            by: String::new(),
            from: None,
            to: None,
            note: String::new(),
        });
        let (current, log) = (String::new(), log.into_iter().collect());
        Ok(Answer::Status(Status {
            current,
            on_trial: None,
            locked: None,
            token: None,
            log,
            back: Vec::new(),
        }))
    }

    /// A deploy one version back, with these answers; the outcome, and what was asked last and how.
    fn deployed(answers: Vec<Result<Answer, Lost>>) -> (Outcome, (String, bool)) {
        let mut host = Listed(answers.into(), Vec::new());
        let until = Until::Confirmed;
        let options =
            Options { token: "t".to_owned(), by: String::new(), limit_secs: 9, confirm_secs: 3, until };
        let outcome = {
            let mut person = Yes;
            let mut work = pin!(deploy(&mut host, Wanted::Back(1), &options, &mut person));
            match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => panic!("a list never waits"),
            }
        };
        assert!(host.0.is_empty(), "{outcome:?}, and not asked: {:?}", host.0);
        (outcome, host.1.pop().expect("it was asked"))
    }

    fn lost() -> Result<Answer, Lost> {
        Err(Lost("cut".to_owned()))
    }

    #[test]
    fn success_comes_after_a_confirmation_over_a_new_connection() {
        let (outcome, last) = deployed(vec![plan(vec![], false), Ok(Answer::OnTrial), Ok(Answer::Confirmed)]);
        assert_eq!((outcome, last), (Outcome::Changed, ("Confirm".to_owned(), true)));
        // The answer was lost, and the host says it again.
        let (outcome, _) =
            deployed(vec![plan(vec![], false), Ok(Answer::OnTrial), lost(), Ok(Answer::Confirmed)]);
        assert_eq!(outcome, Outcome::Changed);
    }

    #[test]
    fn nothing_is_a_success_after_a_rollback() {
        let back = || Ok(Answer::PutBack { why: "bad".to_owned() });
        let none = || Ok(Answer::Refused(Vec::new()));
        let cases = [
            (vec![back()], Outcome::PutBack("bad".to_owned())),
            (vec![Ok(Answer::OnTrial), back()], Outcome::PutBack("bad".to_owned())),
            (vec![lost(), back()], Outcome::PutBack("cut".to_owned())),
            (vec![lost(), none(), status(Some(What::PutBack))], Outcome::PutBack("cut".to_owned())),
            (vec![lost(), none(), status(None)], Outcome::Failed("cut: nothing was changed".to_owned())),
        ];
        for (answers, expected) in cases {
            let answers = [vec![plan(vec![], false)], answers].concat();
            assert_eq!(deployed(answers.clone()).0, expected, "{answers:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_said_to_be_unknown() {
        let cases = [
            vec![Ok(Answer::OnTrial), lost(), lost(), lost()],
            vec![lost(), lost()],
            vec![lost(), Ok(Answer::Refused(Vec::new())), status(Some(What::Switch))],
            vec![Ok(Answer::Unknown("x".to_owned()))],
        ];
        for answers in cases {
            let answers = [vec![plan(vec![], false)], answers].concat();
            let (outcome, _) = deployed(answers.clone());
            assert!(matches!(outcome, Outcome::Unknown(_)), "{answers:?}: {outcome:?}");
        }
    }

    #[test]
    fn a_plan_may_be_all() {
        let refusal = Refusal::new("why", "next");
        assert_eq!(deployed(vec![plan(vec![refusal.clone()], false)]).0, Outcome::Refused(vec![refusal]));
        assert_eq!(deployed(vec![plan(vec![], true)]).0, Outcome::Nothing);
        assert_eq!(deployed(vec![lost()]).0, Outcome::Failed("cut".to_owned()));
    }
}
