//! What `cargo xtask explore` tells its program in the guest, and what that reports: points of processes' runs, and how long
//! each is held there.
//!
//! The program (`main.rs`, feature `guest`) runs a phase's command as its child, traces that and what PID 1 starts meanwhile, and
//! does not let a task go on that has come to a point of its order until the time is over. Before it begins, it can have the machine
//! paused and take another order ([`Anew`]): so a machine that is saved there has all behind it that runs have in common.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where the program, its order and its report lie in the guest.
pub const PROGRAM: &str = "/run/vm-perturb/vm-perturb";
/// See [`Order`].
pub const ORDER: &str = "/run/vm-perturb/order";
/// See [`Report`].
pub const REPORT: &str = "/run/vm-perturb/report";

/// The length of every order, in bytes: what a run is told must not change what it does by its own length.
pub const ORDER_BYTES: usize = 16 << 10;

/// The length of the line in an order, in bytes, filled up with spaces: whoever reads it takes as much memory for each.
pub const LINE_BYTES: usize = 4 << 10;

/// The most that a report on a device takes, in bytes: thousands of points.
pub const REPORT_BYTES: usize = 4 << 20;

/// The most holds of a line: a task's point is compared with so many, however few there are.
pub const HOLDS_MAX: usize = 128;

/// The name of the second client in a line.
pub const CLIENT: &str = "client";

/// A point of a run: `left4me-overlay#2:umount2@1` is the first umount2(2) of the second task of that name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The task's comm, without what would end it in a line.
    pub task: String,
    /// Which task of that name, from 1: those that are there when the phase begins in the order in which they were made, each new one
    /// as it comes to its first point.
    pub instance: u32,
    /// What it is about to do.
    pub event: String,
    /// For the how manieth time, from 1.
    pub nth: u32,
}

/// A task is held at a point.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hold {
    /// Where.
    pub point: Point,
    /// How long, in microseconds of guest time.
    pub us: u64,
}

/// All by which a run differs from one that nobody perturbs; what `--holds` takes and every failure is told with.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// How much later than the phase's command the second client begins, in microseconds; less than 0: so much earlier. For
    /// scenarios that have one; left out: together.
    pub client_us: i64,
    /// The holds.
    pub holds: Vec<Hold>,
}

/// Text that is no line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no hold: {why}")]
pub struct NoLine {
    text: String,
    why: &'static str,
}

const POINT_FORM: &str = "write it as left4me-overlay#2:umount2@1=80ms, with a task's name, which of that name, what it does, which time, how long";
const CLIENT_FORM: &str = "write it as client=55ms or client=-20ms";

impl Line {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.client_us == 0 && self.holds.is_empty()
    }
}

impl Point {
    /// A name as it can stand in a line.
    #[must_use]
    pub fn task_name(comm: &str) -> String {
        let stays = |letter: char| letter.is_ascii_alphanumeric() || "._-()".contains(letter);
        comm.chars().map(|letter| if stays(letter) { letter } else { '_' }).collect()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, instance, event, nth } = self;
        f.write_str(task)?;
        if *instance != 1 {
            write!(f, "#{instance}")?;
        }
        write!(f, ":{event}")?;
        if *nth != 1 {
            write!(f, "@{nth}")?;
        }
        Ok(())
    }
}

impl FromStr for Point {
    type Err = NoLine;

    fn from_str(text: &str) -> Result<Self, NoLine> {
        let wrong = || NoLine { text: text.to_owned(), why: POINT_FORM };
        let number = |text: &str| text.parse().ok().filter(|number| *number > 0).ok_or_else(wrong);
        let (task, event) = text.split_once(':').ok_or_else(wrong)?;
        let (task, instance) = match task.split_once('#') {
            Some((task, instance)) => (task, number(instance)?),
            None => (task, 1),
        };
        let (event, nth) = match event.split_once('@') {
            Some((event, nth)) => (event, number(nth)?),
            None => (event, 1),
        };
        if task.is_empty() || event.is_empty() || Self::task_name(task) != task {
            return Err(wrong());
        }
        Ok(Self { task: task.to_owned(), instance, event: event.to_owned(), nth })
    }
}

/// Microseconds as a person writes them: `80ms`, `1.5ms`.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, us) = (self.0 / 1000, self.0 % 1000);
        match us {
            0 => write!(f, "{ms}ms"),
            us => write!(f, "{ms}.{}ms", format!("{us:03}").trim_end_matches('0')),
        }
    }
}

/// The inverse: what it reads is exact.
fn time(text: &str) -> Option<u64> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let ms = text.strip_suffix("ms")?;
    let (ms, us) = ms.split_once('.').unwrap_or((ms, "0"));
    if !is_number(ms) || !is_number(us) || us.len() > 3 {
        return None;
    }
    let us: u64 = format!("{us:0<3}").parse().ok()?;
    ms.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(us)
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.point, Time(self.us))
    }
}

impl FromStr for Hold {
    type Err = NoLine;

    fn from_str(text: &str) -> Result<Self, NoLine> {
        let wrong = || NoLine { text: text.to_owned(), why: POINT_FORM };
        let (point, length) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Self { point: point.parse()?, us: time(length).ok_or_else(wrong)? })
    }
}

/// Empty for a run that nothing perturbs.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.client_us < 0 { "-" } else { "" };
        let client =
            (self.client_us != 0).then(|| format!("{CLIENT}={sign}{}", Time(self.client_us.unsigned_abs())));
        let holds = self.holds.iter().map(Hold::to_string);
        f.write_str(&client.into_iter().chain(holds).collect::<Vec<_>>().join(" "))
    }
}

impl FromStr for Line {
    type Err = NoLine;

    fn from_str(text: &str) -> Result<Self, NoLine> {
        let mut line = Self::default();
        for part in text.split_whitespace() {
            match part.strip_prefix(CLIENT).and_then(|rest| rest.strip_prefix('=')) {
                Some(offset) => {
                    let (sign, length) = offset.strip_prefix('-').map_or((1, offset), |length| (-1, length));
                    let us = time(length).and_then(|us| i64::try_from(us).ok());
                    let us = us.ok_or_else(|| NoLine { text: part.to_owned(), why: CLIENT_FORM })?;
                    line.client_us = sign * us;
                }
                None => line.holds.push(part.parse()?),
            }
        }
        Ok(line)
    }
}

/// What the program is to do; its command is on its own command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Units whose processes are traced although PID 1 has started them before.
    pub units: Vec<String>,
    /// The second client's program and arguments, if there is one.
    pub client: Vec<String>,
    /// The [`Line`].
    pub line: String,
    /// The same as the program reads it, see [`Packed`]; [`Order::to_text`] fills it in.
    #[serde(default)]
    pub packed: String,
    /// When a report is written although the command has not ended, in microseconds since it began: who waits for it kills it soon.
    pub deadline_us: u64,
    /// Whether it is an error that no task came to a point of the line.
    #[serde(default)]
    pub must_hold: bool,
    /// Where another order comes from when all is traced and nothing was begun; left out: this one is the last.
    #[serde(default)]
    pub anew: Option<Anew>,
}

/// A line as the program reads it and compares points with it: in the same time and the same memory whatever it says, as runs of two lines are
/// to be one up to the first hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// See [`Line::client_us`].
    pub client_us: i64,
    /// The hashes of the points at which tasks are held, and 0 for each that is not there.
    keys: [u64; HOLDS_MAX],
    /// How long each is held, in microseconds.
    lengths: [u64; HOLDS_MAX],
}

/// How many digits a number of it has.
const DIGITS: usize = 16;

impl Packed {
    /// A line that changes nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self { client_us: 0, keys: [0; HOLDS_MAX], lengths: [0; HOLDS_MAX] }
    }

    /// Of a line that has at most [`HOLDS_MAX`] holds; others are left out.
    #[must_use]
    pub fn of(line: &Line) -> Self {
        let mut packed = Self { client_us: line.client_us, ..Self::none() };
        for ((key, length), hold) in packed.keys.iter_mut().zip(&mut packed.lengths).zip(&line.holds) {
            (*key, *length) = (key_of(&hold.point.to_string()), hold.us);
        }
        packed
    }

    fn to_text(&self) -> String {
        let numbers = self.keys.iter().zip(&self.lengths).map(|(key, us)| format!("{key:016x}{us:016x}"));
        format!("{:016x}{}", self.client_us, numbers.collect::<String>())
    }

    /// Of [`Order::packed`]; what is not there is 0.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let digit = |byte: &u8| u64::from((byte & 0xf) + 9 * (byte >> 6));
        let number = |digits: &[u8]| digits.iter().fold(0_u64, |number, byte| (number << 4) | digit(byte));
        let mut numbers = text.as_bytes().chunks(DIGITS).map(number);
        let mut packed = Self { client_us: numbers.next().unwrap_or(0).cast_signed(), ..Self::none() };
        for (key, length) in packed.keys.iter_mut().zip(&mut packed.lengths) {
            (*key, *length) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        }
        packed
    }

    /// How long a task is held at a point, in microseconds; 0 if it is not.
    #[must_use]
    pub fn us(&self, point: &str) -> u64 {
        let key = key_of(point);
        // All of them: no end at the one that is it.
        let places = self.keys.iter().zip(&self.lengths);
        places.fold(0, |us, (one, length)| us.max(length * u64::from(*one == key)))
    }

    /// Whether it holds nobody.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        // All of them, too: a comparison ends at the first that is one.
        self.keys.iter().fold(0, |any, key| any | key) == 0
    }
}

/// FNV-1a of a point as it is shown.
fn key_of(point: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    point.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The machine is paused, to be saved; whoever restores it lays the order of that run down meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anew {
    /// How long after all is traced the machine is paused, in microseconds.
    pub pause_us: u64,
    /// The device that has the other order, and gets the report, before a byte that is 0.
    pub device: String,
    /// From which of its bytes on the order is there, [`ORDER_BYTES`] of them.
    pub order_at: u64,
    /// From which of its bytes on there is room for the report, [`REPORT_BYTES`].
    pub report_at: u64,
}

/// An order that is too long to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an order of {0} bytes, more than {ORDER_BYTES}, or a line of more than {LINE_BYTES}: fewer holds, or a shorter second client"
)]
pub struct TooLong(usize);

impl Order {
    /// [`ORDER_BYTES`] bytes.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn to_text(&self) -> Result<String, TooLong> {
        if self.line.len() > LINE_BYTES {
            return Err(TooLong(self.line.len()));
        }
        let line = self.line.parse::<Line>().unwrap_or_default();
        if line.holds.len() > HOLDS_MAX {
            return Err(TooLong(self.line.len()));
        }
        let (text, packed) = (format!("{:<LINE_BYTES$}", self.line), Packed::of(&line).to_text());
        let order = Self { line: text, packed, ..self.clone() };
        // Lists and texts have a form.
        let text = serde_json::to_string(&order).unwrap_or_default();
        match ORDER_BYTES.checked_sub(text.len()) {
            Some(padding) => Ok(text + &" ".repeat(padding)),
            None => Err(TooLong(text.len())),
        }
    }
}

/// A point that a task has come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// The [`Point`].
    pub point: String,
    /// What the event is about, such as a path; empty if nothing is known.
    pub of: String,
    /// When, in microseconds since the program began its command.
    pub at_us: u64,
    /// How long it was held there, in microseconds; 0 if it was not.
    pub held_us: u64,
    /// Whether it is a task of the phase's commands, and not of a unit.
    pub of_client: bool,
}

/// What the program has seen and done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// All points, in order.
    pub passed: Vec<Passed>,
    /// How long the command took, in microseconds; `None` if it had not ended at the order's deadline.
    pub took_us: Option<u64>,
    /// How the second client ended, as a shell says it: 128 and the signal's number for a signal. `None` if there is none.
    pub client: Option<i32>,
}

impl Report {
    /// How many holds took place.
    #[must_use]
    pub fn held(&self) -> usize {
        self.passed.iter().filter(|passed| passed.held_us > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_is_shown() {
        for text in [
            "",
            "left4me-overlay:umount2=80ms",
            "client=55ms",
            "client=-20.5ms sh#2:exit@3=0.25ms (sd-pam):start=1ms",
            "x:SIGTERM=1200.001ms",
        ] {
            let line: Line = text.parse().expect(text);
            assert_eq!(line.to_string(), text);
        }
        let line: Line = "sh#1:exit@1=2.50ms client=3ms".parse().expect("a line");
        assert_eq!(line.to_string(), "client=3ms sh:exit=2.5ms");
        let hold = Hold {
            point: Point { task: "sh".to_owned(), instance: 1, event: "exit".to_owned(), nth: 1 },
            us: 2500,
        };
        assert_eq!(line, Line { client_us: 3000, holds: vec![hold] });
    }

    #[test]
    fn a_line_is_packed_and_read() {
        let many: String = (2..=100).map(|number| format!("sh#{number}:exit={number}ms ")).collect();
        for (text, point, us) in [
            ("", "sh:exit", 0),
            ("client=-20.5ms sh:exit=1.5ms", "sh:exit", 1_500),
            ("client=55ms sh:exit=1.5ms", "sh:exit@2", 0),
            (&many, "sh#2:exit", 2_000),
            (&many, "sh#100:exit", 100_000),
            (&many, "sh#101:exit", 0),
        ] {
            let line: Line = text.parse().expect(text);
            let packed = Packed::read(&Packed::of(&line).to_text());
            assert_eq!(packed, Packed::of(&line));
            assert_eq!((packed.client_us, packed.us(point)), (line.client_us, us), "{point} of {text}");
            assert_eq!(packed.is_idle(), line.holds.is_empty());
        }
        let order = Order { line: many.repeat(2), ..Order::default() };
        assert!(order.to_text().is_err(), "more holds than there is room for");
    }

    #[test]
    fn what_is_no_line_says_what_one_is() {
        for text in [
            "sh:exit",
            "sh=5ms",
            "sh#0:exit=5ms",
            "sh:exit@x=5ms",
            "sh:exit=5",
            "sh:exit=1.0005ms",
            "a/b:exit=1ms",
        ] {
            let error = text.parse::<Line>().expect_err(text).to_string();
            assert!(error.contains("left4me-overlay#2:umount2@1=80ms"), "{error}");
        }
        let error = "client=5".parse::<Line>().expect_err("no unit").to_string();
        assert_eq!(error, "\"client=5\" is no hold: write it as client=55ms or client=-20ms");
    }

    #[test]
    fn a_name_that_would_end_in_a_line_is_changed() {
        assert_eq!(Point::task_name("kworker/0:1 x"), "kworker_0_1_x");
    }

    #[test]
    fn every_order_has_one_length() {
        let order = |line: &str| Order { line: line.to_owned(), ..Order::default() };
        let long = "x".repeat(1000);
        assert_eq!(order("").to_text().expect("an order").len(), ORDER_BYTES);
        assert_eq!(order(&long).to_text().expect("an order").len(), ORDER_BYTES);
        let read =
            |order: Order| serde_json::from_str::<Order>(&order.to_text().expect("one")).expect("JSON");
        assert_eq!(read(order(&long)).line.trim_end(), long);
        assert_eq!(read(order("")).line.len(), read(order(&long)).line.len());
        assert!(order(&"x".repeat(ORDER_BYTES)).to_text().is_err());
    }
}
