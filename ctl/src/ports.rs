//! Which ports are in use on this machine now, by the kernel's tables (proc_net(5)).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use left4me_helper::error::HelperError;
use rustix::io::Errno;

/// A port in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// `UDP` or `TCP`.
    pub protocol: &'static str,
    /// Where.
    pub at: SocketAddr,
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.at)
    }
}

/// TCP_LISTEN, include/net/tcp_states.h. The other ends of a machine's own connections have ports too, which come and go.
const LISTENS: &str = "0A";

/// All ports that are in use: UDP, and TCP that somebody listens on. `net` is `/proc/net`.
///
/// # Errors
/// A table cannot be read. One that is not there is of a protocol that the machine has not.
pub fn in_use(net: &Path) -> Result<Vec<Used>, HelperError> {
    let mut all = Vec::new();
    for (name, protocol) in [("udp", "UDP"), ("udp6", "UDP"), ("tcp", "TCP"), ("tcp6", "TCP")] {
        let path = net.join(name);
        match std::fs::read_to_string(&path) {
            Ok(table) => all.extend(parse(&table, protocol)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return Err(HelperError::call("read", path)(errno));
            }
        }
    }
    Ok(all)
}

/// What a table lists: a heading, then a socket a line. A line that is none is left out.
fn parse(table: &str, protocol: &'static str) -> Vec<Used> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(local), _remote, Some(state)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if let Some(at) = address(local)
            && (protocol == "UDP" || state == LISTENS)
        {
            found.push(Used { protocol, at });
        }
    }
    found
}

/// `0100007F:6987` as 127.0.0.1:27015: words of four bytes as the processor has them, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.as_slice().try_into() {
        Ok(four) => Ipv4Addr::from_octets(four).into(),
        Err(_not_four) => Ipv6Addr::from_octets(bytes.try_into().ok()?).into(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use proptest::prelude::*;

    use super::*;

    const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  512: 00000000:6987 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12345 2 0000000000000000 0
  513: 0100007F:0035 0200007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 12346 2 0000000000000000 0
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:6987 00000000000000000000000000000000:0000 0A
   1: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 01
   2: x
   3: 0000:6987 0000:0000 0A
";

    #[test]
    fn tables() {
        let all =
            |table, protocol| parse(table, protocol).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(all(UDP, "UDP"), ["UDP 0.0.0.0:27015", "UDP 127.0.0.1:53"]);
        assert_eq!(all(TCP6, "TCP"), ["TCP [::1]:27015"]);
        assert_eq!(all("", "TCP"), [""; 0]);
    }

    #[test]
    fn what_this_process_has_open_is_found() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let used = in_use(Path::new("/proc/net")).unwrap();
        let has = |protocol, at| used.contains(&Used { protocol, at });
        assert!(has("UDP", udp.local_addr().unwrap()));
        assert!(has("TCP", tcp.local_addr().unwrap()));
        assert!(!has("TCP", connection.local_addr().unwrap()));
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(in_use(nothing.path()).unwrap(), []);
        std::fs::create_dir(nothing.path().join("udp")).unwrap();
        assert!(in_use(nothing.path()).unwrap_err().to_string().starts_with("read "));
    }

    proptest! {
        #[test]
        fn never_panics(text in "(0: )?[0-9A-F:é ]{0,40}", head in "[a-z]{0,3}\n") {
            drop(parse(&format!("{head}{text}"), "UDP"));
        }
    }
}
