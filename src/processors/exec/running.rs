//! A program while it runs: its pipes, its deadline and its end.

use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

use super::registry::Registry;
use super::tail::Tail;
use crate::error::ProcessorError;

/// Most that a program may write to its standard output: 1 MiB.
pub const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

/// How long the children of a program that has exited may hold its output open.
const GRACE: Duration = Duration::from_millis(100);

/// How long a killed program may take to be gone.
const KILL_WAIT: Duration = Duration::from_millis(500);

/// Most that is read or written at once, so that the deadline is looked at in between.
const CHUNK_BYTES: usize = 64 * 1024;

/// What a program left.
pub(super) struct Finished {
    pub(super) ending: Ending,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Tail,
}

/// How a program ended.
pub(super) enum Ending {
    /// By itself, or by a signal from elsewhere.
    Exited(ExitStatus),
    /// At its deadline.
    TimedOut {
        /// The time it was given.
        limit: Duration,
        /// Whether it is gone; if not, it is nothing that this process may kill.
        killed: bool,
    },
    /// Because it wrote more than [`MAX_OUTPUT_BYTES`].
    OutputTooLarge,
}

/// Run this program on this input, in a process group of its own, of which nothing is left. Its
/// standard output is the caller's choice; it is kept if it is a pipe.
pub(super) fn run(
    command: &mut Command,
    input: &[u8],
    limit: Option<Duration>,
    registry: &Registry,
) -> Result<Finished, ProcessorError> {
    // A limit past the end of the clock is none.
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = registry.start(command).map_err(|error| {
        // The draft has no part in that: it comes only after the start.
        let message = format!("the program could not be started: {error}");
        ProcessorError::new("spawn", message).uncharged()
    })?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let unwatched = |error: io::Error| {
        // Pipes, pidfds and polling fail for want of descriptors or memory, not because of a draft.
        let message = format!("the program could not be watched: {error}");
        ProcessorError::new("io", message).uncharged()
    };
    let mut group = Group::of(child, registry).map_err(unwatched)?;
    let mut pump = Pump::new(pipes, input, registry).map_err(unwatched)?;

    let stop = pump.until_exit(&group.pidfd, deadline).map_err(unwatched)?;
    if matches!(stop, Stop::Exited) {
        pump.drain(GRACE).map_err(unwatched)?;
    }
    let status = group.end().map_err(unwatched)?;
    let ending = match (stop, status, limit) {
        _ if pump.is_over_cap() => Ending::OutputTooLarge,
        (Stop::Deadline, killed, Some(limit)) => {
            Ending::TimedOut { limit, killed: killed.is_some() }
        }
        (_, Some(status), _) => Ending::Exited(status),
        (_, None, _) => return Err(unwatched(io::Error::other("it does not end"))),
    };
    Ok(Finished { ending, stdout: pump.output, stderr: pump.tail })
}

/// A program and its process group; when this goes, both are gone.
struct Group<'r> {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    registry: &'r Registry,
    ended: bool,
}

impl<'r> Group<'r> {
    fn of(mut child: Child, registry: &'r Registry) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pid, pidfd, registry, ended: false }),
            Err(errno) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
                let _ = registry.reap(&mut child);
                Err(errno.into())
            }
        }
    }

    /// Kill what is left of the group, then reap the program. `None` if it does not die; it stays
    /// on the list then, and its id stays its own, as nobody reaps it.
    fn end(&mut self) -> io::Result<Option<ExitStatus>> {
        self.ended = true;
        // The leader is not reaped yet, so the group's id is still its own. A group that has
        // nobody left that may be killed is an error of no interest.
        let _ = kill_process_group(self.pid, Signal::KILL);
        // The program may have gone over to another group.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let deadline = Instant::now() + KILL_WAIT;
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        while fds.iter().all(|fd| fd.revents().is_empty()) {
            wait(&mut fds, Some(deadline))?;
            if Instant::now() >= deadline {
                break;
            }
        }
        if fds.iter().all(|fd| fd.revents().is_empty()) {
            return Ok(None);
        }
        self.registry.reap(&mut self.child).map(Some)
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

/// Why the pump stopped.
enum Stop {
    Exited,
    Deadline,
    OverCap,
}

/// Moves bytes between this process and a program, in both directions at once.
struct Pump<'i> {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    input: &'i [u8],
    output: Vec<u8>,
    tail: Tail,
    buffer: Vec<u8>,
    registry: &'i Registry,
    /// Looked at for its end only.
    guard: Option<Arc<PipeWriter>>,
}

impl<'i> Pump<'i> {
    fn new(
        (stdin, stdout, stderr): (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>),
        input: &'i [u8],
        registry: &'i Registry,
    ) -> io::Result<Self> {
        // This end of each pipe only: the program's own ends block, as it expects.
        let fds = [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ];
        for fd in fds.into_iter().flatten() {
            ioctl_fionbio(fd, true)?;
        }
        let buffer = vec![0; CHUNK_BYTES];
        Ok(Self {
            stdin,
            stdout,
            stderr,
            input,
            output: Vec::new(),
            tail: Tail::default(),
            buffer,
            registry,
            guard: registry.guard_pipe(),
        })
    }

    /// Pump until the program has exited, is over its deadline or over its cap.
    fn until_exit(&mut self, pidfd: &OwnedFd, deadline: Option<Instant>) -> io::Result<Stop> {
        loop {
            let exited = self.step(Some(pidfd), deadline)?;
            if self.is_over_cap() {
                return Ok(Stop::OverCap);
            }
            if exited {
                return Ok(Stop::Exited);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Stop::Deadline);
            }
        }
    }

    /// The program has exited: read what is in the pipes, and what its children write until they
    /// close them or the grace is over.
    fn drain(&mut self, grace: Duration) -> io::Result<()> {
        self.stdin = None;
        // First what is there already, however late this thread was woken.
        while !self.is_over_cap() && self.read_output()? {}
        for _ in 0..MAX_OUTPUT_BYTES / CHUNK_BYTES {
            if !self.read_errors()? {
                break;
            }
        }
        let deadline = Instant::now() + grace;
        while (self.stdout.is_some() || self.stderr.is_some())
            && !self.is_over_cap()
            && Instant::now() < deadline
        {
            self.step(None, Some(deadline))?;
        }
        Ok(())
    }

    /// Wait until something can be done, at most until the deadline, and do it. Whether the
    /// program has exited.
    fn step(&mut self, pidfd: Option<&OwnedFd>, deadline: Option<Instant>) -> io::Result<bool> {
        let entries = [
            self.stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)),
            self.stdout.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
            self.stderr.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
            pidfd.map(|fd| PollFd::new(fd, PollFlags::IN)),
            self.guard.as_ref().map(|fd| PollFd::new(fd, PollFlags::empty())),
        ];
        let present = entries.each_ref().map(Option::is_some);
        let mut fds: Vec<_> = entries.into_iter().flatten().collect();
        wait(&mut fds, deadline)?;
        // A hang-up or an error counts as well: the read or write that follows tells which.
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [stdin, stdout, stderr, exited, guard_lost] =
            present.map(|present| present && ready.next().unwrap_or(false));
        if stdin {
            self.write_input()?;
        }
        if stdout {
            self.read_output()?;
        }
        if stderr {
            self.read_errors()?;
        }
        if guard_lost {
            self.guard = self.registry.guard_lost();
        }
        Ok(exited)
    }

    fn is_over_cap(&self) -> bool {
        self.output.len() > MAX_OUTPUT_BYTES
    }

    /// Write what the program takes; close its input when that was all, or it takes no more.
    fn write_input(&mut self) -> io::Result<()> {
        let Some(stdin) = &self.stdin else { return Ok(()) };
        let (chunk, _) = self.input.split_at(self.input.len().min(CHUNK_BYTES));
        match write(stdin, chunk) {
            Ok(written) => {
                self.input = self.input.get(written..).unwrap_or_default();
                if self.input.is_empty() {
                    self.stdin = None;
                }
                Ok(())
            }
            // A program need not read what it does not want.
            Err(Errno::PIPE) => {
                self.stdin = None;
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Read once from standard output. Whether there may be more at once.
    fn read_output(&mut self) -> io::Result<bool> {
        let (more, bytes) = read_once(&mut self.stdout, &mut self.buffer)?;
        self.output.extend_from_slice(bytes);
        Ok(more)
    }

    /// Read once from standard error. Whether there may be more at once.
    fn read_errors(&mut self) -> io::Result<bool> {
        let (more, bytes) = read_once(&mut self.stderr, &mut self.buffer)?;
        self.tail.push(bytes);
        Ok(more)
    }
}

/// Read once, and close at end of file. Whether there may be more at once, and what was read.
fn read_once<'b, F: AsFd>(
    fd: &mut Option<F>,
    buffer: &'b mut [u8],
) -> io::Result<(bool, &'b [u8])> {
    let Some(open) = fd else { return Ok((false, &[])) };
    match read(open, &mut *buffer) {
        Ok(0) => {
            *fd = None;
            Ok((false, &[]))
        }
        Ok(count) => Ok((true, buffer.get(..count).unwrap_or_default())),
        Err(Errno::INTR) => Ok((true, &[])),
        Err(Errno::AGAIN) => Ok((false, &[])),
        Err(errno) => Err(errno.into()),
    }
}

/// Wait for one of these, at most until the deadline; an interruption is like nothing ready.
fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    // A time too long for the kernel's clock is as good as none.
    let timeout = deadline.and_then(|deadline| {
        Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) => Ok(()),
        Err(Errno::INTR) => {
            fds.iter_mut().for_each(PollFd::clear_revents);
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}
