//! The programs that run, so that all can be killed at once.

use std::collections::BTreeSet;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, RawPid, Signal, kill_process, kill_process_group};

/// How often a program is tried that is open for writing.
const BUSY_RETRIES: u32 = 6;

/// The programs of this process.
pub(super) static RUNNING: Registry = Registry::new();

/// The process groups that are running, so that all can be killed at once.
///
/// A group is named by the id of its leader, a child of this process. It is on the list from
/// before `start` returns until just before the leader is reaped; up to then the kernel gives the
/// id to nobody else, so that what is on the list can be killed without looking.
#[derive(Debug)]
pub(super) struct Registry {
    /// Held for reading while a program starts: once it is set, none is between its start and
    /// the list.
    stopping: RwLock<bool>,
    groups: Mutex<BTreeSet<RawPid>>,
}

impl Registry {
    pub(super) const fn new() -> Self {
        Self { stopping: RwLock::new(false), groups: Mutex::new(BTreeSet::new()) }
    }

    fn groups(&self) -> MutexGuard<'_, BTreeSet<RawPid>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
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
        let child = command.spawn()?;
        self.groups().insert(Pid::from_child(&child).as_raw_pid());
        Ok(child)
    }

    /// Take a program that is dead off the list and reap it.
    pub(super) fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let mut groups = self.groups();
        groups.remove(&Pid::from_child(child).as_raw_pid());
        child.wait()
    }

    /// Kill all that run, and start no more. Until what is returned is dropped, nobody learns how
    /// they ended.
    pub(super) fn stop(&self) -> impl Drop {
        *self.stopping.write().unwrap_or_else(PoisonError::into_inner) = true;
        let groups = self.groups();
        for pid in groups.iter().copied().filter_map(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
            // It may have gone over to another group.
            let _ = kill_process(pid, Signal::KILL);
        }
        groups
    }

    /// Whether all were killed, and no more are started.
    pub(super) fn is_stopped(&self) -> bool {
        *self.stopping.read().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.groups().len()
    }
}
