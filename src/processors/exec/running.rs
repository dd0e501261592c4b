//! Runs a program: its pipes, its deadline and its end.

use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

use super::registry::Registry;
use super::tail::Tail;
use crate::error::ProcessorError;
use crate::stop::StopSignal;

/// The largest standard output of a program: 1 MiB.
pub const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

/// How long the children of a program that has exited may hold its output open.
const GRACE: Duration = Duration::from_millis(100);

/// How long to wait for the end of a killed program.
const KILL_WAIT: Duration = Duration::from_millis(500);

/// The most bytes that are read or written at once, so that the deadline is checked in between.
const CHUNK_BYTES: usize = 64 * 1024;

/// The result of a finished program.
pub(super) struct Finished {
    pub(super) ending: Ending,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Tail,
}

/// How a program ended.
pub(super) enum Ending {
    /// By itself, or by a signal from another process.
    Exited(ExitStatus),
    /// At its deadline.
    TimedOut {
        /// The time it was given.
        limit: Duration,
        /// Whether it has ended. If not, this process may not kill it.
        killed: bool,
    },
    /// Because its result is no longer wanted.
    Stopped {
        /// As above.
        killed: bool,
    },
    /// Because it wrote more than [`MAX_OUTPUT_BYTES`].
    OutputTooLarge,
}

/// Run this program on this input, in its own process group, and leave nothing of the group. The
/// caller chooses its standard output, which is collected if it is a pipe. The signal ends it early.
pub(super) fn run(
    command: &mut Command,
    input: &[u8],
    limit: Option<Duration>,
    registry: &Registry,
    stop: &StopSignal,
) -> Result<Finished, ProcessorError> {
    // A limit beyond the range of the clock means no limit.
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = registry.start(command).map_err(|error| {
        // The draft is not to blame: it is sent only after the start.
        let message = format!("the program could not be started: {error}");
        ProcessorError::new("spawn", message).uncharged()
    })?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let unwatched = |error: io::Error| {
        // Pipes, pidfds and polling fail because descriptors or memory are lacking, not because of
        // a draft.
        let message = format!("the program could not be watched: {error}");
        ProcessorError::new("io", message).uncharged()
    };
    let mut group = Group::of(child, registry).map_err(unwatched)?;
    let mut pump = Pump::new(pipes, input, registry).map_err(unwatched)?;
    let stopped =
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| unwatched(errno.into()))?);
    pump.stopped = Some(Arc::clone(&stopped));
    let action = stop.on_stop(move || {
        // It cannot fail: the counter is far from its limit.
        let _ = write(&stopped, &1u64.to_ne_bytes());
    });

    let stop = pump.until_exit(&group.pidfd, deadline).map_err(unwatched)?;
    drop(action);
    if matches!(stop, Stop::Exited) {
        pump.drain(GRACE).map_err(unwatched)?;
    }
    let status = group.end().map_err(unwatched)?;
    let ending = match (stop, status, limit) {
        _ if pump.is_over_cap() => Ending::OutputTooLarge,
        (Stop::Deadline, killed, Some(limit)) => {
            Ending::TimedOut { limit, killed: killed.is_some() }
        }
        (Stop::Unwanted, killed, _) => Ending::Stopped { killed: killed.is_some() },
        (_, Some(status), _) => Ending::Exited(status),
        (_, None, _) => return Err(unwatched(io::Error::other("it does not end"))),
    };
    Ok(Finished { ending, stdout: pump.output, stderr: pump.tail })
}

/// A program and its process group. Dropping it ends both.
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

    /// Kill the rest of the group, then reap the program. `None` if the program does not end; then
    /// it stays in the list, and the kernel does not reuse its id, because it is not reaped.
    fn end(&mut self) -> io::Result<Option<ExitStatus>> {
        self.ended = true;
        // The leader is not reaped yet, so the group's id has not been reused. It is no error if no
        // process is left that may be killed.
        let _ = kill_process_group(self.pid, Signal::KILL);
        // The program may have moved to another group.
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
    Unwanted,
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
    /// Watched for its end only.
    guard: Option<Arc<PipeWriter>>,
    /// Readable once the result is no longer wanted.
    stopped: Option<Arc<OwnedFd>>,
}

impl<'i> Pump<'i> {
    fn new(
        (stdin, stdout, stderr): (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>),
        input: &'i [u8],
        registry: &'i Registry,
    ) -> io::Result<Self> {
        // This end of each pipe only. The program expects its own ends to block.
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
            stopped: None,
        })
    }

    /// Pump until the program has exited, or has reached its deadline or its output limit.
    fn until_exit(&mut self, pidfd: &OwnedFd, deadline: Option<Instant>) -> io::Result<Stop> {
        loop {
            let (exited, unwanted) = self.step(Some(pidfd), deadline)?;
            if self.is_over_cap() {
                return Ok(Stop::OverCap);
            }
            if exited {
                return Ok(Stop::Exited);
            }
            if unwanted {
                return Ok(Stop::Unwanted);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Stop::Deadline);
            }
        }
    }

    /// After the program's exit: read the rest of its output, and the output of its children until
    /// they close the pipes or the grace ends.
    fn drain(&mut self, grace: Duration) -> io::Result<()> {
        self.stdin = None;
        self.stopped = None;
        // First the output that is in the pipes already, however late this thread was woken.
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

    /// Wait until something can be done, at most until the deadline, and do it. Returns whether the
    /// program has exited, and whether its result is no longer wanted.
    fn step(
        &mut self,
        pidfd: Option<&OwnedFd>,
        deadline: Option<Instant>,
    ) -> io::Result<(bool, bool)> {
        let entries = [
            self.stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)),
            self.stdout.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
            self.stderr.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
            pidfd.map(|fd| PollFd::new(fd, PollFlags::IN)),
            self.guard.as_ref().map(|fd| PollFd::new(fd, PollFlags::empty())),
            self.stopped.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
        ];
        let present = entries.each_ref().map(Option::is_some);
        let mut fds: Vec<_> = entries.into_iter().flatten().collect();
        wait(&mut fds, deadline)?;
        // This includes a hang-up and an error, which the following read or write reports.
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [stdin, stdout, stderr, exited, guard_lost, unwanted] =
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
        Ok((exited, unwanted))
    }

    fn is_over_cap(&self) -> bool {
        self.output.len() > MAX_OUTPUT_BYTES
    }

    /// Write as much input as the program accepts. Close its input at the end, or when the program
    /// closes it.
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
            // A program need not read all of its input.
            Err(Errno::PIPE) => {
                self.stdin = None;
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Read once from standard output. Returns whether there may be more.
    fn read_output(&mut self) -> io::Result<bool> {
        let (more, bytes) = read_once(&mut self.stdout, &mut self.buffer)?;
        self.output.extend_from_slice(bytes);
        Ok(more)
    }

    /// Read once from standard error. Returns whether there may be more.
    fn read_errors(&mut self) -> io::Result<bool> {
        let (more, bytes) = read_once(&mut self.stderr, &mut self.buffer)?;
        self.tail.push(bytes);
        Ok(more)
    }
}

/// Read once, and close at end of file. Returns whether there may be more, and the bytes.
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

/// Wait for one of these, at most until the deadline. After an interruption, none is ready.
fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    // A time-out that the kernel cannot represent means none.
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
