//! The pages, each a template that is checked when it is compiled. The block `live` of each is what is sent again whenever it
//! changes. All values are escaped by askama: none is HTML.

use askama::Template;
use left4me_broker::game::Players;
use left4me_broker::host::{Diagnoses, Server};
use left4me_ctl::list::Row;
use left4me_ctl::report::Report;

use crate::store::Line;
use crate::users::{Role, Session};

/// A server, and the job that is under way for it.
#[derive(Debug)]
pub struct Entry {
    /// What its files and its units say.
    pub row: Row,
    /// The open job.
    pub job: Option<Line>,
}

/// What the header of each page says.
#[derive(Debug, Default)]
pub struct Head {
    /// The page's own path, if it has a part that changes.
    pub live: Option<String>,
    /// Why what is shown may be old.
    pub problem: Option<String>,
    /// Whose page it is; none if nobody is in.
    pub me: Option<Session>,
}

impl Head {
    /// What the page's forms carry.
    fn token(&self) -> &str {
        self.me.as_ref().map_or("", |me| &me.token)
    }
}

/// `/login`.
#[derive(Debug, Template)]
#[template(path = "login.html")]
pub struct LoginPage {
    /// The header.
    pub head: Head,
    /// Why the last try was in vain.
    pub problem: Option<String>,
    /// Where to go then.
    pub to: String,
    /// The command that makes a user, if there is none who could come in.
    pub makes_a_user: Option<String>,
}

/// `/servers`.
#[derive(Debug, Template)]
#[template(path = "servers.html", blocks = ["live"])]
pub struct ServersPage {
    /// The header.
    pub head: Head,
    /// All of them.
    pub entries: Vec<Entry>,
}

/// `/servers/<id>`.
#[derive(Debug, Template)]
#[template(path = "server.html", blocks = ["live"])]
pub struct ServerPage {
    /// The header.
    pub head: Head,
    /// The instance's name.
    pub name: String,
    /// What its files and its units say; none if it is not known.
    pub entry: Option<Entry>,
    /// What systemd says of it in full, or why that is not known.
    pub server: Result<Server, String>,
    /// Its jobs, newest first.
    pub jobs: Vec<Line>,
}

/// `/servers/<id>/reset`: the question.
#[derive(Debug, Template)]
#[template(path = "reset.html")]
pub struct ResetPage {
    /// The header.
    pub head: Head,
    /// The instance's name.
    pub name: String,
    /// Its state.
    pub state: String,
    /// What is lost.
    pub loss: String,
    /// Who plays.
    pub players: String,
}

/// `/jobs`.
#[derive(Debug, Template)]
#[template(path = "jobs.html", blocks = ["live"])]
pub struct JobsPage {
    /// The header.
    pub head: Head,
    /// The jobs, newest first.
    pub jobs: Vec<Line>,
}

/// `/jobs/<n>`.
#[derive(Debug, Template)]
#[template(path = "job.html", blocks = ["live"])]
pub struct JobPage {
    /// The header.
    pub head: Head,
    /// The job.
    pub job: Line,
}

/// `/doctor`.
#[derive(Debug, Template)]
#[template(path = "doctor.html")]
pub struct DoctorPage {
    /// The header.
    pub head: Head,
    /// What was found, or why nothing could be.
    pub found: Result<Diagnoses, String>,
}

/// Something that was not done, or is not there.
#[derive(Debug, Template)]
#[template(path = "refused.html")]
pub struct RefusedPage {
    /// The header.
    pub head: Head,
    /// In a few words.
    pub title: String,
    /// In a sentence.
    pub why: String,
    /// The job that is in the way.
    pub job: Option<Box<Line>>,
}

/// Milliseconds as people read them.
fn spoken(ms: &i64) -> String {
    if *ms < 10_000 { format!("{}.{:03} s", ms / 1000, ms % 1000) } else { format!("{} s", ms / 1000) }
}

/// The longest error of a job's row, characters. All of it is on the job's page.
const ROW: usize = 800;

/// What a row says of an error.
fn shortened(error: &str) -> String {
    let mut shown: String = error.chars().take(ROW).collect();
    if error.chars().nth(ROW).is_some() {
        shown.push('…');
    }
    shown
}

/// Who plays, in words.
pub(crate) fn players(players: &Option<Players>) -> String {
    let Some(Players { people, places, bots, map }) = players else {
        return "not known, the game does not answer".into();
    };
    let who = match people {
        0 => "nobody".into(),
        1 => "1 person".into(),
        many => format!("{many} people"),
    };
    let bots = match bots {
        0 => String::new(),
        1 => ", and 1 bot".into(),
        many => format!(", and {many} bots"),
    };
    format!("{who} of {places}{bots}, on {map}")
}

/// Milliseconds since 1970, as people read them.
fn moment(ms: &u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Years begin in March here: a leap day is the last of its year (Howard Hinnant, days_from_civil).
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// A phase and how long it took.
fn phases(report: &Report) -> Vec<(&'static str, String)> {
    let phases = &report.phases;
    let all = [
        ("grace", phases.grace_us),
        ("stop", phases.stop_us),
        ("of it the unmount", phases.umount_us),
        ("delete", phases.purge_us),
        ("in all", Some(phases.total_us)),
    ];
    let shown = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
    all.into_iter().filter_map(|(name, us)| us.map(|us| (name, shown(us)))).collect()
}

/// Why a server's button cannot be pressed; none if it can.
fn hindrance(head: &Head, entry: &Entry, action: &str) -> Option<String> {
    if head.me.as_ref().is_none_or(|me| me.role != Role::Operate) {
        return Some("you may look, and not operate".into());
    }
    if let Some(job) = &entry.job {
        return Some(format!("job {} ({}) is under way", job.number, job.action));
    }
    let state = entry.row.active_state.as_str();
    let is_down = matches!(state, "inactive" | "failed");
    match action {
        _ if state.is_empty() => Some("its state is not known".into()),
        "start" if !entry.row.has_file => Some("its file is missing".into()),
        "start" if !is_down => Some(format!("it is {state}")),
        // Something may be mounted still.
        "stop" if is_down && entry.row.mounted != Some(true) => Some("it does not run".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: &str, is_mounted: bool) -> Entry {
        let row = Row {
            schema_version: 1,
            action: "list".into(),
            instance: "3".into(),
            unit: "left4me-server@3.service".into(),
            ok: true,
            has_file: true,
            active_state: state.into(),
            port: Some(27015),
            layers: None,
            mounted: Some(is_mounted),
            error: Some("<script>alert(1)</script>".into()),
        };
        Entry { row, job: None }
    }

    fn head(role: Role) -> Head {
        Head { me: Some(Session::of(role)), ..Head::default() }
    }

    #[test]
    fn a_button_that_cannot_be_pressed_says_why() {
        let why =
            |state, is_mounted, action| hindrance(&head(Role::Operate), &entry(state, is_mounted), action);
        let look = hindrance(&head(Role::Look), &entry("active", true), "stop");
        assert_eq!(look.as_deref(), Some("you may look, and not operate"));
        assert_eq!(why("active", true, "start").as_deref(), Some("it is active"));
        assert_eq!(why("active", true, "stop"), None);
        assert_eq!(why("inactive", false, "start"), None);
        assert_eq!(why("failed", false, "stop").as_deref(), Some("it does not run"));
        assert_eq!(why("failed", true, "stop"), None);
        for state in ["active", "inactive", "failed", "deactivating"] {
            assert_eq!(why(state, false, "reset"), None);
        }
        assert_eq!(why("", false, "reset").as_deref(), Some("its state is not known"));
    }

    #[test]
    fn what_others_wrote_is_text() {
        let page = ServersPage { head: head(Role::Operate), entries: vec![entry("active", true)] };
        let html = page.render().unwrap();
        assert!(!html.contains("<script>alert"), "{html}");
        assert!(html.contains("alert(1)"), "{html}");
        assert!(html.contains(&page.as_live().render().unwrap()), "the live part is a part");
    }

    #[test]
    fn an_error_in_a_row_is_as_long_as_may_be() {
        assert_eq!(shortened("umount: EBUSY"), "umount: EBUSY");
        assert_eq!(shortened(&"x".repeat(ROW)), "x".repeat(ROW));
        assert_eq!(shortened(&"é".repeat(ROW + 1)), "é".repeat(ROW) + "…");
    }

    #[test]
    fn who_plays_is_said_in_words() {
        let some =
            |people, bots| players(&Some(Players { people, places: 8, bots, map: "c1m1_hotel".into() }));
        assert_eq!(some(0, 0), "nobody of 8, on c1m1_hotel");
        assert_eq!(some(1, 0), "1 person of 8, on c1m1_hotel");
        assert_eq!(some(3, 1), "3 people of 8, and 1 bot, on c1m1_hotel");
        assert_eq!(players(&None), "not known, the game does not answer");
    }

    #[test]
    fn moments_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_799, "2000-02-29 23:59:59"),
            (1_795_771_037, "2026-11-27 09:17:17"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (4_107_542_399, "2100-02-28 23:59:59"),
        ] {
            assert_eq!(moment(&(seconds * 1000 + 7)), text);
        }
    }

    #[test]
    fn durations_are_read_by_people() {
        assert_eq!((spoken(&1_300).as_str(), spoken(&90_000).as_str()), ("1.300 s", "90 s"));
    }
}
