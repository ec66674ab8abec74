//! The line of `/proc/PID/stat` (proc_pid_stat(5)).

/// What the kernel says of a task in that line, each field read when it is asked for; `None` for one that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'a>(&'a str);

impl<'a> Stat<'a> {
    /// Reads the line; `None` if it is something else. Its second field, the name, may hold anything and ends with the last
    /// parenthesis.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let name_ends = line.iter().rposition(|&byte| byte == b')')?;
        std::str::from_utf8(&line[name_ends + 1..]).ok().map(Self)
    }

    /// The fields after the name.
    pub(crate) fn fields(self) -> impl Iterator<Item = &'a str> {
        self.0.split_ascii_whitespace()
    }

    /// By its number in the manual page.
    fn field<N: std::str::FromStr>(self, number: usize) -> Option<N> {
        self.fields().nth(number - 3)?.parse().ok()
    }

    /// `R`, `S`, `D`, `Z` and so on.
    #[must_use]
    pub fn state(self) -> Option<char> {
        self.field(3)
    }

    /// Whether it is a zombie, or on its way to be none: it has nothing any more.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self.state(), Some('Z' | 'X'))
    }

    /// The process id of its parent.
    #[must_use]
    pub fn parent(self) -> Option<u32> {
        self.field(4)
    }

    /// Its process group.
    #[must_use]
    pub fn group(self) -> Option<u32> {
        self.field(5)
    }

    /// Whether it is a thread of the kernel's own.
    #[must_use]
    pub fn is_kernel_thread(self) -> Option<bool> {
        /// `include/linux/sched.h`.
        const PF_KTHREAD: u64 = 0x0020_0000;
        Some(self.field::<u64>(9)? & PF_KTHREAD != 0)
    }

    /// The processor time that it has used, in clock ticks.
    #[must_use]
    pub fn processor_ticks(self) -> Option<u64> {
        Some(self.field::<u64>(14)? + self.field::<u64>(15)?)
    }

    /// When the process started, in clock ticks since boot.
    #[must_use]
    pub fn start_time(self) -> Option<u64> {
        self.field(22)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_fields() {
        let line = b"7 (a) Z 0) S 42 5 6 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 8123 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state(), stat.has_ended(), stat.parent()), (Some('S'), false, Some(42)));
        assert_eq!((stat.group(), stat.start_time()), (Some(5), Some(8123)));
        assert_eq!(stat.is_kernel_thread(), Some(false));
        assert_eq!(
            Stat::parse(b"7 (a) S 1 5 6 0 -1 4194304 0 0 0 0 30 4 0").unwrap().processor_ticks(),
            Some(34)
        );
        let thread = Stat::parse(b"2 (kthreadd) S 0 0 0 0 -1 2129984").unwrap();
        assert_eq!((thread.is_kernel_thread(), thread.start_time()), (Some(true), None));
        assert!(Stat::parse(b"7 (a) Z 1").unwrap().has_ended());
        assert_eq!(Stat::parse(b"7 (a"), None);
    }
}
