//! The programs that run, so that all can be killed at once: by this process, or by its guard.

use std::io::{self, PipeWriter};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use rustix::process::{
    Pid, RawPid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use super::guard::Guard;

/// How often a program is tried that is open for writing.
const BUSY_RETRIES: u32 = 6;

/// The programs of this process.
pub(super) static RUNNING: Registry = Registry::new();

/// The process groups that are running.
///
/// A group is named by the id of its leader, a child of this process. It is on the list from
/// before `start` returns until just before the leader is reaped; up to then the kernel gives the
/// id to nobody else, so that what is on the list can be killed without looking. The guard's list
/// follows this one.
#[derive(Debug)]
pub(super) struct Registry {
    /// Held for reading while a program starts: once it is set, none is between its start and
    /// the list.
    stopping: RwLock<bool>,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    /// The groups by slot; a free slot is used again.
    slots: Vec<Option<RawPid>>,
    guard: GuardState,
}

#[derive(Debug)]
enum GuardState {
    /// Not started yet, or dead.
    Absent,
    Present(Guard),
    /// There is no shell that could be one.
    Impossible,
}

impl Running {
    fn groups(&self) -> impl Iterator<Item = Pid> {
        self.slots.iter().flatten().copied().filter_map(Pid::from_raw)
    }

    /// See to it that there is a guard, if there can be one.
    fn ensure_guard(&mut self) -> io::Result<()> {
        if !matches!(self.guard, GuardState::Absent) {
            return Ok(());
        }
        self.guard = match Guard::start(&self.slots) {
            Ok(guard) => GuardState::Present(guard),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                tracing::warn!(
                    target: "draftq.guard",
                    "/bin/sh cannot be run: programs will not be killed if this process is"
                );
                GuardState::Impossible
            }
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Put the guard's list right for this slot. A guard that is dead or does not read is replaced.
    fn tell_guard(&mut self, slot: usize) -> io::Result<()> {
        let group = self.slots.get(slot).copied().flatten();
        let told = match &mut self.guard {
            GuardState::Present(guard) => guard.tell(slot, group),
            GuardState::Absent | GuardState::Impossible => Ok(()),
        };
        if told.is_err() {
            self.guard = GuardState::Absent;
        }
        self.ensure_guard()
    }

    fn enter(&mut self, group: RawPid) -> usize {
        let slot = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if let Some(free) = self.slots.get_mut(slot) {
            *free = Some(group);
        }
        slot
    }

    fn leave(&mut self, group: RawPid) -> Option<usize> {
        let slot = self.slots.iter().position(|&it| it == Some(group))?;
        *self.slots.get_mut(slot)? = None;
        Some(slot)
    }
}

impl Registry {
    pub(super) const fn new() -> Self {
        let running = Running { slots: Vec::new(), guard: GuardState::Absent };
        Self { stopping: RwLock::new(false), running: Mutex::new(running) }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pipe to the guard, for [`guard_lost`](Self::guard_lost) to be called when it shows an
    /// error.
    pub(super) fn guard_pipe(&self) -> Option<Arc<PipeWriter>> {
        match &self.running().guard {
            GuardState::Present(guard) => Some(guard.pipe()),
            GuardState::Absent | GuardState::Impossible => None,
        }
    }

    /// Replace the guard if it is dead; the pipe to the new one. If none can be started now, the
    /// next start or end of a program tries again.
    pub(super) fn guard_lost(&self) -> Option<Arc<PipeWriter>> {
        let mut running = self.running();
        if let GuardState::Present(guard) = &running.guard
            && guard.is_dead()
        {
            running.guard = GuardState::Absent;
        }
        if let Err(error) = running.ensure_guard() {
            tracing::warn!(target: "draftq.guard", %error, "the programs' guard could not be restarted");
        }
        drop(running);
        self.guard_pipe()
    }

    /// Start a program and put it on the list.
    pub(super) fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut pause = Duration::from_millis(1);
        for _ in 0..BUSY_RETRIES {
            match self.try_start(command) {
                // A script that was just written can still be open in a child that another
                // thread has forked and that has not come to its exec yet.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    thread::sleep(pause);
                    pause *= 2;
                }
                result => return result,
            }
        }
        self.try_start(command)
    }

    fn try_start(&self, command: &mut Command) -> io::Result<Child> {
        let stopping = self.stopping.read().unwrap_or_else(PoisonError::into_inner);
        if *stopping {
            return Err(io::Error::other("this process is stopping and starts no more programs"));
        }
        self.running().ensure_guard()?;
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let mut running = self.running();
        let slot = running.enter(pid.as_raw_pid());
        let told = running.tell_guard(slot);
        drop(running);
        if let Err(error) = told {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            self.reap(&mut child)?;
            return Err(error);
        }
        Ok(child)
    }

    /// Take a program that is dead off the lists and reap it.
    pub(super) fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let mut running = self.running();
        // Before its id can be given to another process.
        if let Some(slot) = running.leave(Pid::from_child(child).as_raw_pid())
            && let Err(error) = running.tell_guard(slot)
        {
            // It ended as it ended. The next start wants a guard.
            tracing::warn!(target: "draftq.guard", %error, "the programs' guard could not be restarted");
        }
        child.wait()
    }

    /// Kill all that run, and start no more. Until what is returned is dropped, nobody learns how
    /// they ended.
    pub(super) fn stop(&self) -> impl Drop {
        *self.stopping.write().unwrap_or_else(PoisonError::into_inner) = true;
        let running = self.running();
        for pid in running.groups() {
            let _ = kill_process_group(pid, Signal::KILL);
            // It may have gone over to another group.
            let _ = kill_process(pid, Signal::KILL);
        }
        running
    }

    /// Whether all were killed, and no more are started.
    pub(super) fn is_stopped(&self) -> bool {
        *self.stopping.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Do this with the guard, which must be there.
    #[cfg(test)]
    pub(super) fn with_guard<T>(&self, act: impl FnOnce(&mut Guard) -> T) -> T {
        match &mut self.running().guard {
            GuardState::Present(guard) => act(guard),
            other => panic!("{other:?}"),
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.running().groups().count()
    }
}
