//! The queue of writers.
//!
//! SQLite's write lock can only be polled, at about 80 µs of CPU for each try. A hundred processes
//! that poll starve the one that writes, and the kernel threads that its fsync needs. So a writer
//! that finds the lock taken first waits for the *turn*: an exclusive `flock` on a file in the
//! runners directory. The kernel queues the waiting processes, wakes one at a time, and frees the
//! lock of a process that ends. Only the holder of the turn polls SQLite. It keeps the turn until
//! its transaction ends, so that the next holder finds the write lock free.
//!
//! The turn is advisory: SQLite's lock decides. A writer that does not use the turn (a SQL shell,
//! or a draftq that has met no other writer) may hold the write lock while the holder of the turn
//! polls. A holder that cannot continue shows that it is alive by touching the file. If the file
//! has not been touched for a while (its holder is stopped, or in a long transaction), the
//! processes behind it try SQLite themselves, replace the file, and queue on the new one. Where
//! there can be no such file, writers poll with growing pauses.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::OFlags;

use super::busy::{self, Files, Wait, is_busy, sleep_about};
use super::error::TransactionError;
use super::runners_directory::RunnersDirectory;

/// The name of the file whose lock is the turn.
const TURN_FILE: &str = "writer.turn";

/// If the file has not been touched for this long, waiting processes treat its holder as stopped.
const STALL: Duration = Duration::from_millis(250);

/// How often the holder of the turn touches the file while it polls.
const TOUCH_INTERVAL: Duration = Duration::from_millis(60);

/// For how many writes a process uses the turn after it has found the write lock taken, so that a
/// process that writes in a loop lets waiting processes go first.
const QUEUED_WRITES: u32 = 16;

/// Of those writes, one in this many waits for the turn before it tries the lock. If all did, the
/// lock would stay free after each transaction until the next process has woken up, which on a
/// loaded machine takes longer than the transaction.
const TURN_FIRST: u32 = 4;

/// The largest number of this process's threads that wait in the kernel. A thread whose wait was
/// given up stays there until the holder of the turn continues or ends.
const MAX_BLOCKED_THREADS: usize = 64;

/// The longest pause of a writer that cannot queue.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The queue for the write lock of one database, as one process sees it.
#[derive(Debug)]
pub(super) struct WriterQueue {
    files: Arc<Files>,
    /// How many more writes use the turn.
    queued_writes: AtomicU32,
}

/// The turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<File>);

impl Drop for Turn {
    fn drop(&mut self) {
        // The thread that waited in the kernel may still hold the file. If this fails, closing the
        // file unlocks it.
        let _ = self.0.unlock();
    }
}

impl Turn {
    /// Show waiting processes that the holder of the turn is alive.
    fn touch(&self) {
        // If this fails, waiting processes try SQLite themselves.
        let _ = self.0.set_modified(SystemTime::now());
    }
}

/// How a wait for the turn ended.
enum Waited<T> {
    Turn(Turn),
    /// The attempt succeeded without the turn.
    Done(T),
    Failed(TransactionError),
    /// There can be no turn.
    NoQueue,
}

impl WriterQueue {
    pub(super) fn new(files: &Arc<Files>) -> Self {
        Self { files: Arc::clone(files), queued_writes: AtomicU32::new(0) }
    }

    /// Call `attempt` until it does not fail as busy, or until the wait has ended. It runs with a
    /// busy handler that fails at once. The caller holds the turn, if it was needed, until it drops
    /// it.
    pub(super) fn run<T>(
        &self,
        wait: &mut Wait,
        mut attempt: impl FnMut() -> Result<T, TransactionError>,
    ) -> Result<(T, Option<Turn>), TransactionError> {
        let mut attempt = || busy::failing(&mut attempt);
        let queued_writes = self.queued_writes.load(Ordering::Relaxed);
        if queued_writes > 0 {
            self.queued_writes.store(queued_writes - 1, Ordering::Relaxed);
        }
        if queued_writes == 0 || !queued_writes.is_multiple_of(TURN_FIRST) {
            match attempt() {
                Err(error) if is_busy(&error) => {}
                done => return Ok((done?, None)),
            }
            if wait.is_over() {
                return Err(wait.busy());
            }
            self.queued_writes.store(QUEUED_WRITES, Ordering::Relaxed);
        }
        let turn = match self.wait_for_turn(wait, &mut attempt) {
            Waited::Turn(turn) => Some(turn),
            Waited::Done(value) => return Ok((value, None)),
            Waited::Failed(error) => return Err(error),
            Waited::NoQueue => None,
        };
        let began = Instant::now();
        let mut touched: Option<Instant> = None;
        loop {
            if let Some(turn) = &turn
                && touched.is_none_or(|touched| touched.elapsed() >= TOUCH_INTERVAL)
            {
                turn.touch();
                touched = Some(Instant::now());
            }
            match attempt() {
                Err(error) if is_busy(&error) => {}
                done => return Ok((done?, turn)),
            }
            self.queued_writes.store(QUEUED_WRITES, Ordering::Relaxed);
            if wait.is_over() {
                return Err(wait.busy());
            }
            match &turn {
                None => wait.back_off(LONGEST_PAUSE),
                // Only one process at a time polls here.
                Some(_) => sleep_about(match began.elapsed().as_millis() {
                    0..5 => Duration::from_micros(250),
                    5..100 => Duration::from_micros(500),
                    _ => Duration::from_millis(1),
                }),
            }
        }
    }

    fn wait_for_turn<T>(
        &self,
        wait: &mut Wait,
        attempt: &mut impl FnMut() -> Result<T, TransactionError>,
    ) -> Waited<T> {
        loop {
            // Opened each time, because the directory may have been removed.
            let Ok(directory) = self.files.runners_directory() else { return Waited::NoQueue };
            let place = match Place::take(&directory) {
                Ok(Ok(turn)) => return Waited::Turn(turn),
                Ok(Err(place)) => place,
                Err(_) => return Waited::NoQueue,
            };
            let mut last_touch = place.last_touch();
            loop {
                // Jitter, or all waiting processes would try at once.
                let pause = STALL + STALL.mul_f32(fastrand::f32() / 2.0);
                match place.granted.recv_timeout(pause.min(wait.left())) {
                    Ok(()) => {
                        let turn = Turn(place.file);
                        // If the file was replaced, another process has the turn on the new one.
                        if turn.0.metadata().is_ok_and(|metadata| metadata.nlink() > 0) {
                            return Waited::Turn(turn);
                        }
                        break;
                    }
                    // The thread that waits in the kernel has met an error.
                    Err(RecvTimeoutError::Disconnected) => return Waited::NoQueue,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                let over = wait.is_over();
                let touch = place.last_touch();
                if touch == last_touch && touch.is_some() && !over {
                    match attempt() {
                        Err(error) if is_busy(&error) => {}
                        Ok(value) => return Waited::Done(value),
                        Err(error) => return Waited::Failed(error),
                    }
                    place.replace(&directory);
                    break;
                }
                if over {
                    // The last try: the holder of the turn may be stopped.
                    return match attempt() {
                        Err(error) if is_busy(&error) => Waited::Failed(wait.busy()),
                        Ok(value) => Waited::Done(value),
                        Err(error) => Waited::Failed(error),
                    };
                }
                if touch.is_none() {
                    // Another has replaced the file.
                    break;
                }
                last_touch = touch;
            }
        }
    }
}

/// A place in the queue, until it is dropped. (Its thread continues to wait, and releases the turn
/// when it gets it.)
struct Place {
    file: Arc<File>,
    granted: Receiver<()>,
}

static BLOCKED_THREADS: AtomicUsize = AtomicUsize::new(0);

impl Place {
    /// The turn, if it is free, or a place in the queue.
    fn take(directory: &RunnersDirectory) -> io::Result<Result<Turn, Self>> {
        let file = Arc::new(open_turn_file(directory)?);
        match file.try_lock() {
            Ok(()) => return Ok(Ok(Turn(file))),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // A wait in the kernel has no time-out, and without unsafe code only the end of the process
        // ends it. So another thread waits.
        if BLOCKED_THREADS.fetch_add(1, Ordering::Relaxed) >= MAX_BLOCKED_THREADS {
            BLOCKED_THREADS.fetch_sub(1, Ordering::Relaxed);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let (grant, granted) = sync_channel(1);
        let to_lock = Arc::clone(&file);
        let blocked = thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            let locked = loop {
                match to_lock.lock() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    locked => break locked,
                }
            };
            BLOCKED_THREADS.fetch_sub(1, Ordering::Relaxed);
            // If the wait was given up, this is the file's last owner, and closes it.
            if locked.is_ok() {
                let _ = grant.send(());
            }
        });
        if let Err(error) = blocked {
            BLOCKED_THREADS.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(Err(Self { file, granted }))
    }

    /// The time at which a holder of the turn last touched the file; `None` if it is no longer the
    /// file at the path.
    fn last_touch(&self) -> Option<(i64, i64)> {
        let metadata = self.file.metadata().ok()?;
        (metadata.nlink() > 0).then(|| (metadata.mtime(), metadata.mtime_nsec()))
    }

    /// Remove the file, unless another process did, so that the next writers queue on a new one.
    fn replace(&self, directory: &RunnersDirectory) {
        // If this fails, waiting processes continue to try SQLite themselves.
        let _ = directory.remove_file(TURN_FILE, &*self.file);
    }
}

/// Open the file for the turn; create it if there is none. It is opened for reading only: closing a
/// file that was open for writing wakes waiting runners.
fn open_turn_file(directory: &RunnersDirectory) -> io::Result<File> {
    loop {
        match directory.open_file(TURN_FILE, OFlags::RDONLY) {
            Ok(Some(file)) => return Ok(file),
            Ok(None) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
        match directory.create_file(TURN_FILE, OFlags::RDONLY) {
            // Another process was first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created,
        }
    }
}
