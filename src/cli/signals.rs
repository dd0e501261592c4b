//! SIGINT and SIGTERM: the first asks for a good end, the second makes one.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use draftq::LibrarianError;
use draftq::processors::command::{kill_running_programs, kill_running_programs_and_exit};
use draftq::runner::Cancellation;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::failure::{Failure, say};

/// From now on the first signal cancels: the drafts in hand are finished, nothing more is claimed.
/// A second one, or the end of the grace, kills the programs that run; the second signal also ends
/// this process, and what it had claimed goes back as that of any dead runner.
pub fn cancel_on_signal(
    cancellation: &Cancellation,
    grace: Option<Duration>,
) -> Result<(), Failure> {
    let cannot = |source: io::Error| LibrarianError::from(source);
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(cannot)?;
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

fn kill_after(grace: Duration) {
    // A cancellation that nobody asks for is a clock.
    let _ = Cancellation::default().wait_until(Instant::now() + grace);
    kill_running_programs();
}
