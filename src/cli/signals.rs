//! The signals that end a run (the first asks for a good end, the second makes one), and the one
//! that must not end anything.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use draftq::Cancellation;
use draftq::LibrarianError;
use draftq::{kill_running_programs, kill_running_programs_and_exit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use super::failure::{Failure, say};

/// From now on SIGXFSZ is harmless: a write past the file size limit (`ulimit -f`) fails instead,
/// and is reported like any other.
///
/// The signal is caught and not ignored, because programs inherit what is ignored: they keep the
/// default.
pub fn survive_the_file_size_limit() -> Result<(), Failure> {
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .map_err(LibrarianError::from)?;
    Ok(())
}

/// From now on the first signal cancels: the drafts in hand are finished, nothing more is claimed.
/// A second one, or the end of the grace, kills the programs that run; the second signal also ends
/// this process, and what it had claimed goes back as that of any dead runner.
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
            say("draftq: finishing what is in hand; signal again to stop at once");
            cancellation.cancel();
            if let Some(grace) = grace {
                thread::spawn(move || kill_after(grace));
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(cannot)?;
    Ok(())
}

/// Whether SIGHUP was ignored when this program was started, as `nohup` does it. Where the system
/// does not tell, it counts as ignored and stays as it was.
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .as_deref()
        .and_then(|status| status.lines().find_map(|line| line.strip_prefix("SigIgn:")))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_none_or(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

fn kill_after(grace: Duration) {
    // A cancellation that nobody asks for is a clock.
    let _ = Cancellation::default().wait_until(Instant::now() + grace);
    kill_running_programs();
}
