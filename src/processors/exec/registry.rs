//! The list of running programs, so that this process or its guard can kill all of them.

use std::io::{self, PipeWriter};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use rustix::process::{
    Pid, RawPid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use super::guard::Guard;

/// How often the start of a program that is open for writing is retried.
const BUSY_RETRIES: u32 = 6;

/// The running programs of this process.
pub(super) static RUNNING: Registry = Registry::new();

/// The running process groups.
///
/// A group is identified by its leader, a child of this process. It is in the list from before
/// `start` returns until just before the leader is reaped. Until then the kernel does not reuse the
/// id, so every group in the list can be killed safely. The guard's list follows this one.
#[derive(Debug)]
pub(super) struct Registry {
    /// Locked for reading while a program starts, so that once it is set, every started program is
    /// in the list.
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
    /// There is no shell for it.
    Impossible,
}

impl Running {
    fn groups(&self) -> impl Iterator<Item = Pid> {
        self.slots.iter().flatten().copied().filter_map(Pid::from_raw)
    }

    /// Start a guard, if there is none and one is possible.
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

    /// Send this slot to the guard. A guard that is dead or does not read is replaced.
    fn update_guard(&mut self, slot: usize) -> io::Result<()> {
        let group = self.slots.get(slot).copied().flatten();
        let sent = match &mut self.guard {
            GuardState::Present(guard) => guard.send(slot, group),
            GuardState::Absent | GuardState::Impossible => Ok(()),
        };
        if sent.is_err() {
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

    /// Replace the guard if it is dead, and return the pipe to the new one. If none can be started
    /// now, the next start or end of a program tries again.
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

    /// Start a program and add it to the list.
    pub(super) fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut pause = Duration::from_millis(1);
        for _ in 0..BUSY_RETRIES {
            match self.try_start(command) {
                // A script that was just written can still be open in a child that another thread
                // has forked and that has not called exec yet.
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
        let sent = running.update_guard(slot);
        drop(running);
        if let Err(error) = sent {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            self.reap(&mut child)?;
            return Err(error);
        }
        Ok(child)
    }

    /// Remove a dead program from the lists and reap it.
    pub(super) fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let mut running = self.running();
        // Before the kernel can reuse its id.
        if let Some(slot) = running.leave(Pid::from_child(child).as_raw_pid())
            && let Err(error) = running.update_guard(slot)
        {
            // This does not change how the program ended. The next start tries again.
            tracing::warn!(target: "draftq.guard", %error, "the programs' guard could not be restarted");
        }
        child.wait()
    }

    /// Kill all running programs, and start no more. Until the returned value is dropped, no thread
    /// learns how they ended.
    pub(super) fn stop(&self) -> impl Drop {
        *self.stopping.write().unwrap_or_else(PoisonError::into_inner) = true;
        let running = self.running();
        for pid in running.groups() {
            let _ = kill_process_group(pid, Signal::KILL);
            // It may have moved to another group.
            let _ = kill_process(pid, Signal::KILL);
        }
        running
    }

    /// Whether [`stop`](Self::stop) was called.
    pub(super) fn is_stopped(&self) -> bool {
        *self.stopping.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call `act` with the guard, which must be present.
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
