//! What systemd's and the bus' answers mean to us; no connection.

use systemd_bus::ListedUnit;
use zbus::fdo;

use crate::units::{Names, Pair, UnitsError};

/// Both units of a list of which the server's was asked for first. A unit may be listed under another name than the one
/// that was asked for, but all are in the order in which they were.
pub(super) fn pair(names: &Names, units: Vec<ListedUnit>) -> Result<Pair<ListedUnit>, UnitsError> {
    let mut units = units.into_iter();
    let mut next = |unit: &str| {
        units.next().ok_or_else(|| UnitsError::NoSuchUnit(format!("Unit {unit} could not be found.")))
    };
    Ok(Pair { server: next(&names.server)?, overlay: next(&names.overlay)? })
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
            // That of a property, which zbus has names of its own for.
            zbus::Error::FDO(error) => match *error {
                fdo::Error::ZBus(error) => error.into(),
                error => {
                    let name = zbus::DBusError::name(&error);
                    explain_reply(&name, zbus::DBusError::description(&error).unwrap_or(&name))
                }
            },
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
        "org.freedesktop.DBus.Error.ServiceUnknown" | "org.freedesktop.DBus.Error.NameHasNoOwner" => {
            UnitsError::Unreachable(detail)
        }
        // The bus says it of whoever was asked and has disconnected (D-Bus specification, "Well-known Error Names").
        "org.freedesktop.DBus.Error.NoReply" => UnitsError::Left(detail),
        _ => UnitsError::Other(detail),
    }
}
