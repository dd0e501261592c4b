//! Signals: the first ends a run after the current drafts, the second ends it at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use draftq::{Cancellation, LibrarianError, kill_running_programs, kill_running_programs_and_exit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use super::failure::Failure;
use super::messages::message;

/// Catch SIGXFSZ, so that a write past the file size limit (`ulimit -f`) fails with an error
/// instead of ending the process.
///
/// The signal is caught, not ignored: programs that are started would inherit an ignored signal.
pub fn survive_the_file_size_limit() -> Result<(), Failure> {
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .map_err(LibrarianError::from)?;
    Ok(())
}

/// Request the cancellation at the first signal: the current drafts are finished, and no more are
/// claimed. After the grace period the running programs are killed. A second signal kills them at
/// once and ends this process; its claims are then recovered like those of any dead runner.
pub fn cancel_on_signal(
    cancellation: &Cancellation,
    grace: Option<Duration>,
) -> Result<(), Failure> {
    let cannot = |source: io::Error| LibrarianError::from(source);
    let mut ending = vec![SIGINT, SIGTERM, SIGQUIT];
    if !is_hangup_ignored() {
        ending.push(SIGHUP);
    }
    let mut signals = Signals::new(ending).map_err(cannot)?;
    let cancellation = cancellation.clone();
    let wait = move || {
        for signal in signals.forever() {
            if cancellation.is_cancelled() {
                kill_running_programs_and_exit(128 + signal);
            }
            message("draftq: finishing the current drafts; send the signal again to stop at once");
            cancellation.cancel();
            if let Some(grace) = grace {
                thread::spawn(move || kill_after(grace));
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(cannot)?;
    Ok(())
}

/// Whether SIGHUP was ignored when this program was started (`nohup` does that). If this cannot be
/// determined, SIGHUP counts as ignored and stays ignored.
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .as_deref()
        .and_then(|status| status.lines().find_map(|line| line.strip_prefix("SigIgn:")))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_none_or(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

fn kill_after(grace: Duration) {
    // This cancellation is never requested, so this only waits.
    let _ = Cancellation::default().wait_until(Instant::now() + grace);
    kill_running_programs();
}
