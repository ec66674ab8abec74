//! A line in words. Pure.

use vm_perturb::{Hold, Line, Passed};

/// A line in words: `hold left4me-overlay for 80ms before umount2 of /srv/demo`.
pub(super) fn in_words(line: &Line, passed: &[Passed]) -> String {
    let mut words = Vec::new();
    if line.client_us != 0 {
        let when = if line.client_us < 0 { "before the first" } else { "later" };
        let ms = line.client_us.unsigned_abs().div_ceil(100);
        words.push(format!("begin the second client {}.{} ms {when}", ms / 10, ms % 10));
    }
    words.extend(line.holds.iter().map(|hold| of_hold(hold, passed)));
    words.join(", and ")
}

fn of_hold(hold: &Hold, passed: &[Passed]) -> String {
    let Hold { point, us } = hold;
    let text = point.to_string();
    let came = passed.iter().find(|passed| passed.point == text);
    let of = came.map(|came| came.of.as_str()).filter(|of| !of.is_empty());
    let of = of.map(|of| format!(" of {of}")).unwrap_or_default();
    let who = match point.instance {
        1 => point.task.clone(),
        instance => format!("{} number {instance}", point.task),
    };
    let time = match point.nth {
        1 => String::new(),
        nth => format!(" number {nth}"),
    };
    let ms = us.div_ceil(100);
    let length = format!("{}.{} ms", ms / 10, ms % 10);
    let at = match point.event.as_str() {
        "exit" => "in its exit, with all that it has still open".to_owned(),
        "born" => "when it has just been forked".to_owned(),
        "start" => "before the program's first instruction".to_owned(),
        signal if signal.starts_with("SIG") => format!("before it gets {signal}{time}"),
        call => format!("before {call}{of}{time}"),
    };
    format!("hold {who} for {length} {at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_in_words() {
        let passed = |point: &str, of: &str| Passed {
            point: point.to_owned(),
            of: of.to_owned(),
            at_us: 0,
            held_us: 0,
            of_client: false,
        };
        let passed = [passed("umount#2:umount2", "/srv/demo"), passed("sh:exit", "")];
        for (line, words) in [
            ("umount#2:umount2=80ms", "hold umount number 2 for 80.0 ms before umount2 of /srv/demo"),
            ("sh:exit=1.5ms", "hold sh for 1.5 ms in its exit, with all that it has still open"),
            ("sh:open@3=1ms", "hold sh for 1.0 ms before open number 3"),
            ("sh:SIGTERM=1ms", "hold sh for 1.0 ms before it gets SIGTERM"),
            ("client=-20.5ms", "begin the second client 20.5 ms before the first"),
            (
                "client=2ms x:born=1ms",
                "begin the second client 2.0 ms later, and hold x for 1.0 ms when it has just been forked",
            ),
        ] {
            let line: Line = line.parse().expect(line);
            assert_eq!(in_words(&line, &passed), words);
        }
    }
}
