//! The plan's unit, and the one that makes and unmakes the mount, where that is another: each watched while it is there.
//!
//! A unit that has no file is there only while it is up (systemd-run(1) makes such ones): it is looked for after each
//! command, and let go before the next cycle, since who keeps a reference on a unit keeps its name from being taken again.

use anyhow::{Context, Result, ensure};
use systemd_bus::{ManagerProxy, manager};
use vm_agent::recording::{Plan, UnitState};
use zbus::block_on;
use zbus::blocking::connection::Builder;

use super::events::Sink;
use super::orders::Orders;
use super::roles::Watched;
use super::unit::{CALL_TIMEOUT, UnitWatch, event, is_no_such_unit};

/// The watch on both.
#[derive(Debug)]
pub(super) struct Units {
    manager: ManagerProxy<'static>,
    tested: Seat,
    mount: Option<Seat>,
}

impl Units {
    /// Records the units' states and watches them from then on.
    ///
    /// # Errors
    /// As [`UnitWatch::start`].
    pub(super) fn start(plan: &Plan, sink: &Sink, orders: &Orders) -> Result<Self> {
        let connection = Builder::system()?.method_timeout(CALL_TIMEOUT).build();
        let connection = connection.context("connect to the system bus")?;
        let manager = block_on(manager(connection.inner()))?;
        let seat = |unit: &str, watched| Seat::take(unit, watched, sink.clone(), orders.clone());
        let tested = seat(&plan.unit, Watched::Unit)?;
        let mount = plan.mount_unit.as_deref().map(|unit| seat(unit, Watched::MountUnit)).transpose()?;
        Ok(Self { manager, tested, mount })
    }

    fn all(&self) -> impl Iterator<Item = &Seat> {
        [&self.tested].into_iter().chain(&self.mount)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Seat> {
        [&mut self.tested].into_iter().chain(&mut self.mount)
    }

    /// systemd's `Version`.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn systemd_version(&self) -> Result<String> {
        Ok(block_on(self.manager.version())?)
    }

    /// Every unit of the machine that is `failed`, in the order of their names.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn failed_units(&self) -> Result<Vec<String>> {
        let units = block_on(self.manager.list_units_filtered(&["failed"])).context("ListUnitsFiltered")?;
        let mut names: Vec<_> = units.into_iter().map(|unit| unit.name).collect();
        names.sort();
        Ok(names)
    }

    /// Has systemd take back how often the units were started, which their start limits are about, and that they failed.
    /// A unit that is not loaded has nothing to take back.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn forget_starts(&self) -> Result<()> {
        self.all().try_for_each(|seat| match block_on(self.manager.reset_failed_unit(&seat.unit)) {
            Err(error) if is_no_such_unit(&error) => Ok(()),
            other => other.with_context(|| format!("ResetFailedUnit {}", seat.unit)),
        })
    }

    /// Lets go of those that were not there before the first cycle.
    ///
    /// # Errors
    /// As [`UnitWatch::finish`], and what D-Bus says.
    pub(super) fn let_go(&mut self) -> Result<()> {
        self.all_mut().filter(|seat| seat.comes_and_goes).try_for_each(|seat| match seat.watch.take() {
            Some(watch) => watch.let_go(),
            None => Ok(()),
        })
    }

    /// Whether one of the two was `failed` at the last [`Units::record`].
    pub(super) fn has_failed(&self) -> bool {
        self.all().filter_map(|seat| seat.watch.as_ref()).any(|watch| watch.state().active == "failed")
    }

    /// The cgroup of each at the last [`Units::record`] that found one; empty if none did.
    pub(super) fn control_groups(&self) -> impl Iterator<Item = &str> {
        self.all().filter_map(|seat| seat.watch.as_ref()).map(UnitWatch::control_group)
    }

    /// Records their states as of now, and every run of an Exec line that has ended since the last time.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn record(&mut self) -> Result<()> {
        self.all_mut().try_for_each(Seat::record)
    }

    /// Whether both are there, which a start that succeeds has to see to.
    ///
    /// # Errors
    /// Names the one that is not.
    pub(super) fn ensure_there(&self) -> Result<()> {
        let missing = self.all().find(|seat| seat.watch.is_none()).map(|seat| seat.unit.as_str());
        ensure!(
            missing.is_none(),
            "there is no unit {}, neither after the set-up nor after the start: is its name right in the manifest, and does \
             `deploy`, `setup` or `start` make it? It has to be a unit of the system, and not of a user's",
            missing.unwrap_or_default()
        );
        Ok(())
    }

    /// Records the runs that have not ended, waits until every signal that systemd has sent is recorded, and
    /// ends the threads.
    ///
    /// # Errors
    /// What D-Bus says, here or in a thread.
    pub(super) fn finish(self) -> Result<()> {
        let watches = [Some(self.tested), self.mount].into_iter().flatten().filter_map(|seat| seat.watch);
        // All are ended, whatever came of the first.
        watches.map(UnitWatch::finish).collect::<Vec<Result<()>>>().into_iter().collect()
    }
}

/// A unit's place in the plan.
#[derive(Debug)]
struct Seat {
    unit: String,
    watched: Watched,
    sink: Sink,
    orders: Orders,
    /// Whether it was not there before the first cycle.
    comes_and_goes: bool,
    watch: Option<UnitWatch>,
}

impl Seat {
    fn take(unit: &str, watched: Watched, sink: Sink, orders: Orders) -> Result<Self> {
        let mut seat =
            Self { unit: unit.to_owned(), watched, sink, orders, comes_and_goes: false, watch: None };
        seat.look()?;
        seat.comes_and_goes = seat.watch.is_none();
        Ok(seat)
    }

    fn look(&mut self) -> Result<()> {
        if self.watch.is_none() {
            self.watch = UnitWatch::start(&self.unit, self.watched, self.sink.clone(), self.orders.clone())
                .with_context(|| format!("watch {} on D-Bus", self.unit))?;
        }
        Ok(())
    }

    fn record(&mut self) -> Result<()> {
        self.look()?;
        match &mut self.watch {
            Some(watch) => watch.record(),
            None => {
                // As systemctl(1) shows one that there is not.
                let (active, sub) = ("inactive".to_owned(), "dead".to_owned());
                self.sink.send_now(event(self.watched, UnitState { active, sub, ..UnitState::default() }));
                Ok(())
            }
        }
    }
}
