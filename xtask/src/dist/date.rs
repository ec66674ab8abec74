//! An instant, in the words of a changelog and of JSON; in UTC, as nothing here depends on where it is made.

/// A day, and the time of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    year: u64,
    month: usize,
    day: u64,
    weekday: usize,
    seconds: u64,
}

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Date {
    /// Seconds since 1970.
    pub(super) fn of(epoch: u64) -> Self {
        let mut days = epoch / 86_400;
        let weekday = usize::try_from(days % 7).unwrap_or_default();
        let is_leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut year = 1970;
        while days >= 365 + u64::from(is_leap(year)) {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let february = 28 + u64::from(is_leap(year));
        let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 0;
        while days >= lengths[month] {
            days -= lengths[month];
            month += 1;
        }
        Self { year, month, day: days + 1, weekday, seconds: epoch % 86_400 }
    }

    fn clock(self) -> String {
        format!("{:02}:{:02}:{:02}", self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60)
    }

    /// As in a changelog of Debian: deb-changelog(5).
    pub(super) fn rfc_2822(self) -> String {
        let (weekday, month) = (WEEKDAYS[self.weekday], MONTHS[self.month]);
        format!("{weekday}, {:02} {month} {} {} +0000", self.day, self.year, self.clock())
    }

    /// As in JSON.
    pub(super) fn rfc_3339(self) -> String {
        format!("{}-{:02}-{:02}T{}Z", self.year, self.month + 1, self.day, self.clock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_as_date_has_it() {
        // `date --utc --rfc-email --date @N`
        let cases = [
            (0, "Thu, 01 Jan 1970 00:00:00 +0000", "1970-01-01T00:00:00Z"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000", "2000-02-29T00:00:00Z"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 +0000", "2024-12-31T23:59:59Z"),
            (1_796_000_461, "Mon, 30 Nov 2026 01:01:01 +0000", "2026-11-30T01:01:01Z"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 +0000", "2100-03-01T00:00:00Z"),
        ];
        for (epoch, mail, json) in cases {
            let date = Date::of(epoch);
            assert_eq!((date.rfc_2822().as_str(), date.rfc_3339().as_str()), (mail, json), "{epoch}");
        }
    }
}
