//! systemd's D-Bus interface, org.freedesktop.systemd1(5), as far as this workspace asks it: the one place that has the
//! names of its objects, methods, properties and signals.
//!
//! A proxy waits for each answer. Calls that are to be sent in an order, before anything is waited for, are messages:
//! [`call`] makes them. No proxy here keeps properties: to keep them costs a match, a `GetAll`, and a message for every
//! change.

pub mod call;
mod proxy;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use zbus::fdo::PropertiesProxy;
use zbus::proxy::{Builder, CacheProperties, Defaults};
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Type, Value};
use zbus::{Connection, Proxy, Result};

pub use proxy::{JobRemoved, ManagerProxy, ServiceProxy, UnitProxy};

/// systemd's name on the bus.
pub const SYSTEMD: &str = "org.freedesktop.systemd1";

/// The object of systemd's manager.
pub const MANAGER_PATH: &str = "/org/freedesktop/systemd1";

/// Below this lies an object for each unit, see [`unit_path`].
pub const UNITS_PATH: &str = "/org/freedesktop/systemd1/unit";

/// The object of systemd's manager, over this connection.
///
/// # Errors
/// None that is known: nothing is sent.
pub async fn manager(connection: &Connection) -> Result<ManagerProxy<'static>> {
    Builder::new(connection).cache_properties(CacheProperties::No).build().await
}

/// One interface of the object at this path: [`UnitProxy`] or [`ServiceProxy`].
///
/// # Errors
/// None that is known: nothing is sent.
pub async fn object<P: Defaults + From<Proxy<'static>>>(
    connection: &Connection,
    path: OwnedObjectPath,
) -> Result<P> {
    let object = Builder::new(connection).destination(SYSTEMD)?.path(path)?;
    object.cache_properties(CacheProperties::No).build().await
}

/// The name of a proxy's interface.
///
/// # Panics
/// It has none, which `zbus::proxy` makes of no trait here.
#[must_use]
pub fn interface<P: Defaults>() -> &'static str {
    P::INTERFACE.as_ref().expect("a trait of one interface").as_str()
}

/// The last run of each command of a service's line, by its name in a unit's file: `ExecStopPost`.
///
/// # Errors
/// As systemd answers; a line that services do not have.
pub async fn exec_statuses(service: &ServiceProxy<'_>, line: &str) -> Result<Vec<ExecStatus>> {
    service.inner().get_property(&format!("{line}Ex")).await
}

/// All properties of the service at this path.
///
/// # Errors
/// As systemd answers.
pub async fn all_of_service(
    connection: &Connection,
    path: OwnedObjectPath,
) -> Result<HashMap<String, OwnedValue>> {
    let properties: PropertiesProxy<'_> = object(connection, path).await?;
    Ok(properties.get_all(interface::<ServiceProxy<'_>>().try_into()?).await?)
}

/// The object that systemd has for a unit, loaded or not: all but letters and digits as `_` and two hexadecimal digits, a
/// digit at the start too, and nothing at all as `_` (`sd_bus_path_encode(3)`).
#[must_use]
pub fn unit_path(unit: &str) -> OwnedObjectPath {
    let mut path = format!("{UNITS_PATH}/");
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
    OwnedObjectPath::try_from(path).expect("letters, digits and underscores make a path")
}

/// A command of an `Exec*=` line and its last run, an entry of `ExecStopPostEx` and its like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type, Value, OwnedValue)]
pub struct ExecStatus {
    /// Its program.
    pub path: String,
    /// The command with its arguments.
    pub argv: Vec<String>,
    /// `privileged`, `ignore-failure` and so on.
    pub flags: Vec<String>,
    /// When it started, microseconds of CLOCK_REALTIME.
    pub started_wall_us: u64,
    /// When it started, microseconds of CLOCK_MONOTONIC; 0 if it never ran.
    pub started_us: u64,
    /// When it ended, microseconds of CLOCK_REALTIME.
    pub exited_wall_us: u64,
    /// When it ended, microseconds of CLOCK_MONOTONIC; 0 if it has not.
    pub exited_us: u64,
    /// Its process.
    pub pid: u32,
    /// How it ended: CLD_EXITED, CLD_KILLED or CLD_DUMPED, sigaction(2); 0 if it has not.
    pub code: i32,
    /// The exit status or the signal.
    pub status: i32,
}

/// A unit in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ListedUnit {
    /// One of its names.
    pub name: String,
    /// Description=.
    pub description: String,
    /// `loaded`, `not-found` and so on.
    pub load_state: String,
    /// `active`, `inactive`, `failed` and so on.
    pub active_state: String,
    /// The finer state.
    pub sub_state: String,
    /// The unit whose state it follows, if any.
    pub following: String,
    /// Its object.
    pub path: OwnedObjectPath,
    /// The job that is queued for it; 0 if none is.
    pub job_id: u32,
    /// What the job is to do.
    pub job_type: String,
    /// The job's object.
    pub job_path: OwnedObjectPath,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_paths() {
        for (unit, name) in [
            ("left4me-server@3.service", "left4me_2dserver_403_2eservice"),
            ("3.service", "_33_2eservice"),
            ("a_b@x\\x2dy.service", "a_5fb_40x_5cx2dy_2eservice"),
            ("", "_"),
        ] {
            let path = unit_path(unit);
            assert_eq!(path.as_str().strip_prefix("/org/freedesktop/systemd1/unit/"), Some(name));
        }
    }

    #[test]
    fn what_is_listed_has_the_signature_that_systemd_documents() {
        assert_eq!(Vec::<ListedUnit>::SIGNATURE.to_string(), "a(ssssssouso)");
        assert_eq!(Vec::<ExecStatus>::SIGNATURE.to_string(), "a(sasasttttuii)");
    }

    #[test]
    fn an_exec_status_comes_off_the_wire() {
        let entry = ("/x", vec!["/x", "a"], vec!["privileged"], 1_u64, 2_u64, 3_u64, 4_u64, 7_u32, 1, 32);
        let value = OwnedValue::try_from(Value::from(vec![entry])).unwrap();
        assert_eq!(value.value_signature().to_string(), "a(sasasttttuii)");
        let expected = ExecStatus {
            path: "/x".into(),
            argv: vec!["/x".into(), "a".into()],
            flags: vec!["privileged".into()],
            started_wall_us: 1,
            started_us: 2,
            exited_wall_us: 3,
            exited_us: 4,
            pid: 7,
            code: 1,
            status: 32,
        };
        assert_eq!(Vec::<ExecStatus>::try_from(value).unwrap(), [expected]);
        assert!(Vec::<ExecStatus>::try_from(OwnedValue::from(1_u32)).is_err());
    }
}
