//! The names, types and errors of D-Bus that are systemd's, and calls as messages; no connection.

use zbus::Message;
use zbus::message::Body;
use zbus::zvariant::OwnedObjectPath;

use crate::units::{Names, Pair, UnitsError};

pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
pub(super) const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
pub(super) const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(super) const UNIT: &str = "org.freedesktop.systemd1.Unit";
pub(super) const SERVICE: &str = "org.freedesktop.systemd1.Service";
pub(super) const UNITS_PATH: &str = "/org/freedesktop/systemd1/unit/";
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// What a call can carry.
pub(super) trait Arguments: serde::Serialize + zbus::zvariant::DynamicType {}

impl<T: serde::Serialize + zbus::zvariant::DynamicType> Arguments for T {}

/// An entry of an `Exec*Ex` property, `(sasasttttuii)`: path, argv, flags, start and exit time each by the wall and
/// the monotonic clock (microseconds), PID, code and status; org.freedesktop.systemd1(5).
pub(super) type ExecEntry = (String, Vec<String>, Vec<String>, u64, u64, u64, u64, u32, i32, i32);

/// An entry of `ListUnitsByNames` or `ListUnitsByPatterns`, org.freedesktop.systemd1(5): name, description, LoadState,
/// ActiveState, SubState, followed unit, path, and the job's id, type and path.
pub(super) type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// What is of interest in a [`ListedUnit`].
pub(super) struct Listed {
    pub(super) load_state: String,
    pub(super) active_state: String,
    pub(super) sub_state: String,
}

/// Both units of a `ListUnitsByNames` that named the server's, then the overlay's. A unit may be listed under another
/// name than the one that was asked for, but all are in the order in which they were.
pub(super) fn listed(names: &Names, body: &Body) -> Result<Pair<Listed>, UnitsError> {
    let units: Vec<ListedUnit> = body.deserialize()?;
    let mut units = units.into_iter().map(|(_, _, load_state, active_state, sub_state, ..)| Listed {
        load_state,
        active_state,
        sub_state,
    });
    let mut next = |unit: &str| {
        units.next().ok_or_else(|| UnitsError::NoSuchUnit(format!("Unit {unit} could not be found.")))
    };
    Ok(Pair { server: next(&names.server)?, overlay: next(&names.overlay)? })
}

/// The object that systemd has for a unit, loaded or not: all but letters and digits as `_` and two hexadecimal digits, a
/// digit at the start too, and nothing at all as `_` (`sd_bus_path_encode(3)`).
pub(super) fn unit_path(unit: &str) -> Result<OwnedObjectPath, UnitsError> {
    let mut path = String::from(UNITS_PATH);
    for (at, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    if unit.is_empty() {
        path.push('_');
    }
    OwnedObjectPath::try_from(path).map_err(|error| UnitsError::Other(format!("unit {unit}: {error}")))
}

/// A call of systemd's manager.
pub(super) fn manager_call(method: &str, body: &impl Arguments) -> Result<Message, UnitsError> {
    call(SYSTEMD, MANAGER_PATH, MANAGER, method, body)
}

/// A call of the bus itself.
pub(super) fn bus_call(method: &str, body: &impl Arguments) -> Result<Message, UnitsError> {
    call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", method, body)
}

fn call(
    to: &str,
    path: &str,
    interface: &str,
    method: &str,
    body: &impl Arguments,
) -> Result<Message, UnitsError> {
    Ok(Message::method_call(path, method)?.destination(to)?.interface(interface)?.build(body)?)
}

pub(super) fn gone() -> UnitsError {
    UnitsError::Unreachable("the connection ended before the job did".into())
}

impl From<zbus::Error> for UnitsError {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, detail, _) => {
                explain_reply(name.as_str(), detail.as_deref().unwrap_or_else(|| name.as_str()))
            }
            other => Self::Other(other.to_string()),
        }
    }
}

/// What an error reply means to us; the names are in systemd's bus-common-errors.h and the D-Bus specification.
pub(super) fn explain_reply(name: &str, detail: &str) -> UnitsError {
    let detail = detail.to_owned();
    match name {
        "org.freedesktop.DBus.Error.AccessDenied"
        | "org.freedesktop.DBus.Error.AuthFailed"
        | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => UnitsError::Denied(detail),
        "org.freedesktop.systemd1.NoSuchUnit" | "org.freedesktop.DBus.Error.UnknownObject" => {
            UnitsError::NoSuchUnit(detail)
        }
        "org.freedesktop.DBus.Error.ServiceUnknown"
        | "org.freedesktop.DBus.Error.NameHasNoOwner"
        | "org.freedesktop.DBus.Error.NoReply" => UnitsError::Unreachable(detail),
        _ => UnitsError::Other(detail),
    }
}
