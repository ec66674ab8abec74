//! Calls as messages, for who sends several in an order and reads the answers from the connection's own queue: a
//! connection's calls arrive in the order they were sent (D-Bus specification, "Message ordering"). And the matches by
//! which the bus is asked for signals.

use serde::Serialize;
use zbus::fdo::{DBusProxy, PropertiesProxy};
use zbus::match_rule::Builder;
use zbus::message::{Message, Type};
use zbus::proxy::Defaults;
use zbus::zvariant::{DynamicType, OwnedObjectPath};
use zbus::{Error, MatchRule, Result};

use crate::{MANAGER_PATH, ManagerProxy, SYSTEMD, UNITS_PATH, UnitProxy, interface};

/// How these units are; answered with a list of [`ListedUnit`](crate::ListedUnit).
///
/// # Errors
/// As all here: what is no name.
pub fn list_units_by_names(units: &[&str]) -> Result<Message> {
    call::<ManagerProxy<'_>>("ListUnitsByNames", &(units,))
}

/// To take a unit's failed state and its count of starts back.
///
/// # Errors
/// As [`list_units_by_names`].
pub fn reset_failed_unit(unit: &str) -> Result<Message> {
    call::<ManagerProxy<'_>>("ResetFailedUnit", &unit)
}

/// To start a unit, in the mode `replace`, as systemctl(1) does; answered with the job's object.
///
/// # Errors
/// As [`list_units_by_names`].
pub fn start_unit(unit: &str) -> Result<Message> {
    call::<ManagerProxy<'_>>("StartUnit", &(unit, "replace"))
}

/// To stop a unit; else as [`start_unit`].
///
/// # Errors
/// As [`list_units_by_names`].
pub fn stop_unit(unit: &str) -> Result<Message> {
    call::<ManagerProxy<'_>>("StopUnit", &(unit, "replace"))
}

/// To the bus: to pass on the signals that the rule is about.
///
/// # Errors
/// As [`list_units_by_names`].
pub fn add_match(rule: &MatchRule<'_>) -> Result<Message> {
    call::<DBusProxy<'_>>("AddMatch", rule)
}

/// To the bus: to pass them on no more.
///
/// # Errors
/// As [`list_units_by_names`].
pub fn remove_match(rule: &MatchRule<'_>) -> Result<Message> {
    call::<DBusProxy<'_>>("RemoveMatch", rule)
}

/// To the bus: under which unique name systemd is there.
///
/// # Errors
/// As [`list_units_by_names`].
pub fn systemds_owner() -> Result<Message> {
    call::<DBusProxy<'_>>("GetNameOwner", &SYSTEMD)
}

/// The ends of a unit's jobs: [`JobRemoved`](crate::JobRemoved).
///
/// # Errors
/// As [`list_units_by_names`].
pub fn job_ends(unit: &str) -> Result<MatchRule<'_>> {
    Ok(signals::<ManagerProxy<'_>>("JobRemoved")?.path(MANAGER_PATH)?.arg(2, unit)?.build())
}

/// The changes of all units, in what [`UnitProxy`] has of them: `PropertiesChanged`.
///
/// # Errors
/// As [`list_units_by_names`].
pub fn unit_changes() -> Result<MatchRule<'static>> {
    let changes = signals::<PropertiesProxy<'_>>("PropertiesChanged")?;
    Ok(changes.path_namespace(UNITS_PATH)?.arg(0, interface::<UnitProxy<'_>>())?.build())
}

/// The changes of one unit, in all that there is of it: `PropertiesChanged`.
///
/// # Errors
/// As [`list_units_by_names`].
pub fn changes_of(unit: &OwnedObjectPath) -> Result<MatchRule<'_>> {
    Ok(signals::<PropertiesProxy<'_>>("PropertiesChanged")?.path(unit)?.build())
}

fn signals<P: Defaults>(member: &'static str) -> Result<Builder<'static>> {
    let rule = MatchRule::builder().msg_type(Type::Signal).sender(SYSTEMD)?;
    rule.interface(interface::<P>())?.member(member)
}

fn call<P: Defaults>(method: &str, body: &(impl Serialize + DynamicType)) -> Result<Message> {
    let (Some(service), Some(path)) = (P::DESTINATION, P::PATH) else {
        return Err(Error::MissingParameter("an object"));
    };
    Message::method_call(path, method)?.destination(service)?.interface(interface::<P>())?.build(body)
}
