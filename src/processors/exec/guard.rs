//! The guard: a process that kills this process's programs when this process has died.

use std::io::{self, PipeWriter};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, write};
use rustix::process::RawPid;

/// Every system with a shell has this path, and the guard needs only builtins.
const SHELL: &str = "/bin/sh";

/// Reads `SLOT GROUP` (a group runs in this slot) and `SLOT` (the slot is empty) until the end of
/// file, which comes when this process has ended. Then it kills the groups in all slots up to the
/// first one that it has not read of. A slot, unlike a list, costs the same however many programs
/// run.
///
/// The group's leader is killed by its id as well, because it may have moved to another group. The
/// guard closes the descriptors that it inherits (POSIX shells can name those up to 9).
const SCRIPT: &str = "\
# draftq: kills the programs that its parent process leaves behind
trap '' HUP INT QUIT TERM ALRM USR1 USR2 PIPE TSTP TTIN TTOU
exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
while read -r slot group; do eval \"group$slot=\\$group\"; done
slot=0
while eval \"group=\\${group$slot-none}\" && [ \"$group\" != none ]; do
    if [ -n \"$group\" ]; then kill -s KILL -- \"-$group\" \"$group\"; fi
    slot=$((slot + 1))
done
";

/// A running guard. Dropping it kills it before it can kill any program.
#[derive(Debug)]
pub(super) struct Guard {
    process: Child,
    pipe: Arc<PipeWriter>,
}

impl Guard {
    /// Start a guard over these groups, by slot.
    pub(super) fn start(groups: &[Option<RawPid>]) -> io::Result<Self> {
        let (reader, pipe) = io::pipe()?;
        // A guard that does not read, because it is stopped, must not block this process.
        ioctl_fionbio(&pipe, true)?;
        let process = Command::new(SHELL)
            .args(["-c", SCRIPT])
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // The guard must hold no secrets and no directory for longer than this process does.
            .env_clear()
            .current_dir("/")
            // The guard must not receive Ctrl-C and signals to this process's group.
            .process_group(0)
            .spawn()?;
        let mut guard = Self { process, pipe: Arc::new(pipe) };
        for (slot, group) in groups.iter().enumerate() {
            guard.send(slot, *group)?;
        }
        Ok(guard)
    }

    /// Set the group of this slot.
    ///
    /// An error means that this guard must be replaced: it is dead, or does not read.
    pub(super) fn send(&mut self, slot: usize, group: Option<RawPid>) -> io::Result<()> {
        let line = match group {
            Some(group) => format!("{slot} {group}\n"),
            None => format!("{slot}\n"),
        };
        loop {
            match write(&*self.pipe, line.as_bytes()) {
                // A pipe takes so short a line as a whole.
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The pipe to the guard. Polled for no event, it shows an error once the guard is dead.
    pub(super) fn pipe(&self) -> Arc<PipeWriter> {
        Arc::clone(&self.pipe)
    }

    #[cfg(test)]
    pub(super) fn process(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.process)
    }

    /// Whether the guard is dead.
    pub(super) fn is_dead(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.pipe.as_fd(), PollFlags::empty())];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // In this order, because a live guard kills all programs at the end of file. The guard has
        // not been reaped before, so neither call can fail.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
