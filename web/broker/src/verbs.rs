//! What can be asked for, read from a call: a name that is one, a ticket that is one, and nothing else.

use std::fmt;
use std::str::FromStr;

use left4me_ctl::actions::Action;
use left4me_helper::instance::Instance;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::wire::Call;

/// The interface's name.
pub const INTERFACE: &str = "left4me.Broker";

/// The interface, as `varlinkctl introspect` shows it.
pub const DESCRIPTION: &str = include_str!("left4me.Broker.varlink");

/// The interface that every varlink service has.
const SERVICE: &str = "org.varlink.service";

/// Its own description, <https://varlink.org/Service>.
const SERVICE_DESCRIPTION: &str = "interface org.varlink.service\n\n\
    method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)\n\n\
    method GetInterfaceDescription(interface: string) -> (description: string)\n\n\
    error InterfaceNotFound (interface: string)\n\
    error MethodNotFound (method: string)\n\
    error MethodNotImplemented (method: string)\n\
    error InvalidParameter (parameter: string)\n\
    error PermissionDenied ()\n\
    error ExpectedMore ()\n";

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deed {
    /// Starts a server.
    Start,
    /// Stops it.
    Stop,
    /// Stops it and deletes what it wrote.
    Reset,
}

impl Deed {
    /// Its name, as `l4d2ctl` has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.action().word()
    }

    /// What `l4d2ctl` calls it.
    #[must_use]
    pub fn action(self) -> Action {
        match self {
            Self::Start => Action::Start,
            Self::Stop => Action::Stop,
            Self::Reset => Action::Reset,
        }
    }

    /// The verb's name.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::Stop => "Stop",
            Self::Reset => "Reset",
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// By what a job is known, to who made it up and to the broker. It is a file's name, too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ticket(String);

/// Why a text is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ticket is 32 digits of 0-9 and a-f")]
pub struct TicketError;

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 32 && text.bytes().all(is_digit) { Ok(Self(text.into())) } else { Err(TicketError) }
    }
}

impl TryFrom<String> for Ticket {
    type Error = TicketError;

    fn try_from(text: String) -> Result<Self, TicketError> {
        text.parse()
    }
}

impl From<Ticket> for String {
    fn from(ticket: Ticket) -> Self {
        ticket.0
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// A job.
    Do(Deed, Instance, Ticket),
    /// All that there is, once or whenever it changes.
    Watch {
        /// Whenever it changes.
        more: bool,
    },
    /// One instance.
    Server(Instance),
    /// What defeats the design.
    Doctor,
    /// Who we are.
    GetInfo,
    /// What can be asked for.
    Describe(&'static str),
}

/// An error of varlink, with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Its name.
    pub error: String,
    /// And what it says.
    pub parameters: Map<String, Value>,
}

impl Refused {
    /// An error with one parameter, of `interface`.
    fn new(interface: &str, name: &str, parameters: Value) -> Self {
        let parameters = if let Value::Object(map) = parameters { map } else { Map::new() };
        Self { error: format!("{interface}.{name}"), parameters }
    }

    /// An error of ours.
    #[must_use]
    pub fn ours(name: &str, parameters: Value) -> Self {
        Self::new(INTERFACE, name, parameters)
    }

    /// A parameter that is not what it must be.
    fn parameter(name: &str) -> Self {
        Self::new(SERVICE, "InvalidParameter", json!({ "parameter": name }))
    }
}

/// Makes a verb of a call.
///
/// # Errors
/// The one that varlink has for it. A parameter too many is one, so that nobody believes that it does something.
pub fn parse(call: &Call) -> Result<Verb, Refused> {
    let known: &[&str] = match call.method.as_str() {
        "left4me.Broker.Start" | "left4me.Broker.Stop" | "left4me.Broker.Reset" => &["id", "ticket"],
        "left4me.Broker.Server" => &["id"],
        "left4me.Broker.Watch" | "left4me.Broker.Doctor" | "org.varlink.service.GetInfo" => &[],
        "org.varlink.service.GetInterfaceDescription" => &["interface"],
        method if method.starts_with("left4me.Broker.") || method.starts_with("org.varlink.service.") => {
            return Err(Refused::new(SERVICE, "MethodNotFound", json!({ "method": shortened(method) })));
        }
        method => {
            let interface = method.rsplit_once('.').map_or(method, |(interface, _)| interface);
            let named = json!({ "interface": shortened(interface) });
            return Err(Refused::new(SERVICE, "InterfaceNotFound", named));
        }
    };
    if let Some(name) = call.parameters.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(Refused::parameter(&shortened(name)));
    }
    // Nobody would hear how it went.
    if call.oneway || call.upgrade {
        return Err(Refused::parameter(if call.oneway { "oneway" } else { "upgrade" }));
    }
    let method = call.method.rsplit('.').next().unwrap_or_default();
    Ok(match method {
        "Start" => Verb::Do(Deed::Start, value(call, "id")?, value(call, "ticket")?),
        "Stop" => Verb::Do(Deed::Stop, value(call, "id")?, value(call, "ticket")?),
        "Reset" => Verb::Do(Deed::Reset, value(call, "id")?, value(call, "ticket")?),
        "Server" => Verb::Server(value(call, "id")?),
        "Watch" => Verb::Watch { more: call.more },
        "Doctor" => Verb::Doctor,
        "GetInfo" => Verb::GetInfo,
        _ => match call.parameters.get("interface").and_then(Value::as_str) {
            Some(INTERFACE) => Verb::Describe(DESCRIPTION),
            Some(SERVICE) => Verb::Describe(SERVICE_DESCRIPTION),
            Some(other) => {
                let named = json!({ "interface": shortened(other) });
                return Err(Refused::new(SERVICE, "InterfaceNotFound", named));
            }
            None => return Err(Refused::parameter("interface")),
        },
    })
}

fn value<T: FromStr>(call: &Call, name: &str) -> Result<T, Refused> {
    let text = call.parameters.get(name).and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Refused::parameter(name))
}

/// What a stranger wrote, short enough to be sent back.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Who we are, as varlink wants it.
#[must_use]
pub fn info() -> Value {
    json!({
        "vendor": "left4me", "product": "left4me-broker", "version": env!("CARGO_PKG_VERSION"), "url": "",
        "interfaces": [INTERFACE, SERVICE],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICKET: &str = "0123456789abcdef0123456789abcdef";

    fn read(text: &str) -> Result<Verb, String> {
        parse(&serde_json::from_str(text).unwrap())
            .map_err(|refused| format!("{} {}", refused.error, Value::Object(refused.parameters)))
    }

    #[test]
    fn a_verb_is_what_was_asked_for() {
        let (id, ticket): (Instance, Ticket) = ("eu-1".parse().unwrap(), TICKET.parse().unwrap());
        for (word, deed) in [("Start", Deed::Start), ("Stop", Deed::Stop), ("Reset", Deed::Reset)] {
            let text = format!(
                r#"{{"method":"left4me.Broker.{word}","parameters":{{"id":"eu-1","ticket":"{TICKET}"}}}}"#
            );
            assert_eq!(read(&text), Ok(Verb::Do(deed, id.clone(), ticket.clone())));
            assert_eq!(deed.verb(), word);
        }
        let watch = r#"{"method":"left4me.Broker.Watch","more":true}"#;
        assert_eq!(read(watch), Ok(Verb::Watch { more: true }));
        let server = r#"{"method":"left4me.Broker.Server","parameters":{"id":"eu-1"}}"#;
        assert_eq!(read(server), Ok(Verb::Server(id)));
        let described = r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"left4me.Broker"}}"#;
        assert_eq!(read(described), Ok(Verb::Describe(DESCRIPTION)));
    }

    #[test]
    fn all_else_is_refused_in_varlinks_words() {
        for (call, refused) in [
            (r#"{"method":"Start"}"#, r#"InterfaceNotFound {"interface":"Start"}"#),
            (r#"{"method":"left4me.Broker.Run"}"#, r#"MethodNotFound {"method":"left4me.Broker.Run"}"#),
            (r#"{"method":"left4me.Broker.Start"}"#, r#"InvalidParameter {"parameter":"id"}"#),
            (
                r#"{"method":"left4me.Broker.Server","parameters":{"id":"../3"}}"#,
                r#"InvalidParameter {"parameter":"id"}"#,
            ),
            (
                r#"{"method":"left4me.Broker.Server","parameters":{"id":3}}"#,
                r#"InvalidParameter {"parameter":"id"}"#,
            ),
            (
                r#"{"method":"left4me.Broker.Reset","parameters":{"id":"3","ticket":"../../etc/passwd"}}"#,
                r#"InvalidParameter {"parameter":"ticket"}"#,
            ),
            (
                r#"{"method":"left4me.Broker.Doctor","parameters":{"path":"/"}}"#,
                r#"InvalidParameter {"parameter":"path"}"#,
            ),
            (
                r#"{"method":"left4me.Broker.Doctor","oneway":true}"#,
                r#"InvalidParameter {"parameter":"oneway"}"#,
            ),
        ] {
            assert_eq!(read(call), Err(format!("org.varlink.service.{refused}")), "{call}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_a_verb_on_a_name_that_is_one_or_is_refused(
            method in "(left4me.Broker.(Start|Stop|Reset|Server|Watch|Doctor|X)|\\PC{0,20})",
            id in "(\\PC{0,30}|[a-z0-9_-]{0,25})",
            ticket in "(\\PC{0,40}|[0-9a-f]{31,33})",
        ) {
            let parameters = json!({ "id": id, "ticket": ticket });
            let call = json!({ "method": method, "parameters": parameters });
            match parse(&serde_json::from_value(call).unwrap()) {
                Ok(Verb::Do(_, instance, kept)) => {
                    prop_assert!(id.parse::<Instance>().is_ok_and(|name| name == instance));
                    prop_assert_eq!(kept.to_string(), ticket);
                }
                Ok(other) => prop_assert!(false, "{:?} with a ticket", other),
                Err(refused) => prop_assert!(refused.error.starts_with("org.varlink.service.")),
            }
        }
    }
}
