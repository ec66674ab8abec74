//! The plan's unit, and the one that makes and unmakes the mount, where that is another: each watched while it is there.
//!
//! A unit that has no file is there only while it is up (systemd-run(1) makes such ones): it is looked for after each
//! command, and let go before the next cycle, since who keeps a reference on a unit keeps its name from being taken again.

use anyhow::{Context, Result, ensure};
use vm_agent::recording::{Plan, UnitState};
use zbus::block_on;

use super::events::Sink;
use super::managers::{Manager, Whose};
use super::orders::{Order, Orders};
use super::roles::Watched;
use super::unit::{UnitWatch, event, is_no_such_unit};

/// The watch on both.
#[derive(Debug)]
pub(super) struct Units {
    system: Manager,
    /// The user's, if the unit under test is one of its units.
    user: Option<Manager>,
    tested: Seat,
    mount: Option<Seat>,
}

impl Units {
    /// Records the units' states and watches them from then on.
    ///
    /// # Errors
    /// As [`UnitWatch::start`].
    pub(super) fn start(plan: &Plan, sink: &Sink, orders: &Orders) -> Result<Self> {
        let system = Manager::of(&Whose::System)?;
        let whose = Whose::of(plan)?;
        let user = match &whose {
            Whose::System => None,
            Whose::User(_) => Some(Manager::of(&whose)?),
        };
        if let Some(user) = &user {
            orders.send(Order::UserManager(user.pid));
        }
        let seat =
            |unit: &str, whose, watched| Seat::take(unit, whose, watched, sink.clone(), orders.clone());
        let tested = seat(&plan.unit, whose, Watched::Unit)?;
        let mount = plan.mount_unit.as_deref();
        let mount = mount.map(|unit| seat(unit, Whose::System, Watched::MountUnit)).transpose()?;
        Ok(Self { system, user, tested, mount })
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
        Ok(block_on(self.system.proxy.version())?)
    }

    /// Every unit of the machine, and of the user, that is `failed`, in the order of their names.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn failed_units(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for manager in [&self.system].into_iter().chain(&self.user) {
            let units =
                block_on(manager.proxy.list_units_filtered(&["failed"])).context("ListUnitsFiltered")?;
            names.extend(units.into_iter().map(|unit| unit.name));
        }
        names.sort();
        Ok(names)
    }

    /// Has systemd take back how often the units were started, which their start limits are about, and that they failed.
    /// A unit that is not loaded has nothing to take back.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn forget_starts(&self) -> Result<()> {
        self.all().try_for_each(|seat| {
            let manager =
                self.user.as_ref().filter(|_| seat.watched == Watched::Unit).unwrap_or(&self.system);
            match block_on(manager.proxy.reset_failed_unit(&seat.unit)) {
                Err(error) if is_no_such_unit(&error) => Ok(()),
                other => other.with_context(|| format!("ResetFailedUnit {}", seat.unit)),
            }
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
             `deploy`, `setup` or `start` make it? A unit of a user's manager takes `user` in the manifest",
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
    whose: Whose,
    watched: Watched,
    sink: Sink,
    orders: Orders,
    /// Whether it was not there before the first cycle.
    comes_and_goes: bool,
    watch: Option<UnitWatch>,
}

impl Seat {
    fn take(unit: &str, whose: Whose, watched: Watched, sink: Sink, orders: Orders) -> Result<Self> {
        let unit = unit.to_owned();
        let mut seat = Self { unit, whose, watched, sink, orders, comes_and_goes: false, watch: None };
        seat.look()?;
        seat.comes_and_goes = seat.watch.is_none();
        Ok(seat)
    }

    fn look(&mut self) -> Result<()> {
        if self.watch.is_none() {
            let (sink, orders) = (self.sink.clone(), self.orders.clone());
            self.watch = UnitWatch::start(&self.unit, &self.whose, self.watched, sink, orders)
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
