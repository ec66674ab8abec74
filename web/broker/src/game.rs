//! Who plays: the game is asked as the game's own browser asks it, by A2S_INFO (<https://developer.valvesoftware.com/wiki/Server_queries>).
//! What it answers is a stranger's, and read with that in mind.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long a game may take. It is on this machine, and answers within a frame.
const LONGEST: Duration = Duration::from_millis(300);

/// Before each packet that is whole.
const WHOLE: &[u8] = &[0xff; 4];

/// The question.
const QUESTION: &[u8] = b"\xff\xff\xff\xffTSource Engine Query\0";

/// The longest name of a map that is kept, characters.
const LONGEST_NAME: usize = 64;

/// Who plays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Players {
    /// How many people.
    pub people: u8,
    /// For how many there is place.
    pub places: u8,
    /// How many are played by the game.
    pub bots: u8,
    /// On which map.
    pub map: String,
}

/// Asks the game at an address. None if it does not answer in time.
#[must_use]
pub fn ask(address: Ipv4Addr, port: u16) -> Option<Players> {
    asked(SocketAddrV4::new(address, port)).ok().flatten()
}

fn asked(game: SocketAddrV4) -> io::Result<Option<Players>> {
    let until = Instant::now() + LONGEST;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Now nobody else's packets come in.
    socket.connect(game)?;
    socket.send(QUESTION)?;
    let mut is_challenged = false;
    let mut packet = [0; 1500];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut packet)?;
        match read(&packet[..length]) {
            // Once, else it would keep us busy.
            Some(Said::Challenge(challenge)) if !is_challenged => {
                is_challenged = true;
                socket.send(&[QUESTION, &challenge].concat())?;
            }
            Some(Said::Info(players)) => return Ok(Some(players)),
            _ => {}
        }
    }
}

/// What a packet says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The question is to be asked with this at its end.
    Challenge([u8; 4]),
    /// The answer.
    Info(Players),
}

fn read(packet: &[u8]) -> Option<Said> {
    let (&kind, rest) = packet.strip_prefix(WHOLE)?.split_first()?;
    match kind {
        b'A' => rest.first_chunk().copied().map(Said::Challenge),
        b'I' => {
            let (_protocol, rest) = rest.split_first()?;
            let (_name, rest) = text(rest)?;
            let (map, rest) = text(rest)?;
            let (_folder, rest) = text(rest)?;
            let (_game, rest) = text(rest)?;
            let [_, _, people, places, bots] = *rest.first_chunk::<5>()?;
            let map = String::from_utf8_lossy(map);
            let map = map.chars().take(LONGEST_NAME).flat_map(char::escape_debug).collect();
            Some(Said::Info(Players { people, places, bots, map }))
        }
        _ => None,
    }
}

/// A text up to its NUL, and what comes after.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(map: &[u8]) -> Vec<u8> {
        let parts: [&[u8]; 8] =
            [WHOLE, b"I\x11a server\0", map, b"\0left4dead2\0", b"L4D2\0", b"\x26\x02", &[3, 8, 1], b"dl\0"];
        parts.concat()
    }

    /// A game that answers with these, one for each packet that comes.
    fn game(answers: Vec<Vec<u8>>) -> (u16, std::thread::JoinHandle<Vec<Vec<u8>>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let answer = |answer: Vec<u8>| {
                let mut packet = [0; 1500];
                let (length, from) = socket.recv_from(&mut packet).unwrap();
                socket.send_to(&answer, from).unwrap();
                packet[..length].to_vec()
            };
            answers.into_iter().map(answer).collect()
        });
        (port, thread)
    }

    #[test]
    fn a_game_that_answers_says_who_plays() {
        let challenge = [WHOLE, b"A\x01\x02\x03\x04"].concat();
        let (port, thread) = game(vec![challenge, info(b"c1m1_hotel")]);
        let players = ask(Ipv4Addr::LOCALHOST, port).unwrap();
        assert_eq!(players, Players { people: 3, places: 8, bots: 1, map: "c1m1_hotel".into() });
        assert_eq!(thread.join().unwrap(), [QUESTION.to_vec(), [QUESTION, &[1, 2, 3, 4]].concat()]);
    }

    #[test]
    fn one_that_does_not_or_challenges_for_ever_is_not_waited_for() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let challenge = [WHOLE, b"A\x01\x02\x03\x04"].concat();
        let (port, thread) = game(vec![challenge.clone(), challenge]);
        let begun = Instant::now();
        for port in [port, silent.local_addr().unwrap().port()] {
            assert_eq!(ask(Ipv4Addr::LOCALHOST, port), None);
        }
        thread.join().unwrap();
        drop(silent);
        // Nobody is there at all.
        assert_eq!(ask(Ipv4Addr::LOCALHOST, port), None);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn what_it_says_cannot_do_anything_to_a_page_or_a_line() {
        let Some(Said::Info(players)) = read(&info("a\n\u{1b}[2J\u{202e}".as_bytes())) else { panic!() };
        assert_eq!(players.map, "a\\n\\u{1b}[2J\\u{202e}");
        let Some(Said::Info(players)) = read(&info(&[b'x'; 1000])) else { panic!() };
        assert_eq!(players.map.len(), LONGEST_NAME);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_is_not(packet: Vec<u8>, cut in 0_usize..60) {
            drop(read(&packet));
            drop(read(&[WHOLE, b"I", &packet].concat()));
            let whole = info(b"c1m1_hotel");
            prop_assert!(cut >= whole.len() - 3 || read(&whole[..cut]).is_none());
        }
    }
}
