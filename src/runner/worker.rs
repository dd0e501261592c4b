//! A worker takes claims, calls its processor and submits the results.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::dispatcher::Dispatcher;
use super::lock::lock;
use crate::draft::Draft;
use crate::error::{LibrarianError, ProcessorError};
use crate::outcome::Outcome;
use crate::processor::DraftProcessor;
use crate::stop::StopSignal;
use crate::store::claimed::Claim;
use crate::store::exchange::Processed;

/// The pause after the first try that failed because of the machine.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// How long a run continues while the machine lets no processor work.
const MACHINE_FAULT_LIMIT: Duration = Duration::from_secs(10);

/// The longest pause between two such tries.
const MAX_PAUSE: Duration = Duration::from_secs(1);

impl Dispatcher<'_> {
    /// Call the processor. If it fails because of the machine (no process, no memory, …), try again
    /// after a pause: the draft is not to blame, and this worker keeps it.
    fn process<P: DraftProcessor + ?Sized>(
        &self,
        processor: &mut P,
        draft: &Draft,
        stop: &StopSignal,
    ) -> Result<Outcome, LibrarianError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match processor.process_until(draft, stop) {
                Err(error) if !error.is_charged() => {
                    if self.runner.stop_at_error
                        || stop.is_stopped()
                        || !self.may_try_again(started, &error)
                    {
                        return Err(error);
                    }
                    let jitter = pause.mul_f64(fastrand::f64());
                    if self.runner.cancellation.wait_until(Instant::now() + pause + jitter) {
                        return Err(error);
                    }
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                result => {
                    lock(&self.state).last_result = Instant::now();
                    return result;
                }
            }
        }
    }

    /// Whether to try again although the machine lets no processor work: yes, as long as another
    /// worker gets results, and for some seconds more.
    fn may_try_again(&self, started: Instant, error: &LibrarianError) -> bool {
        let mut state = lock(&self.state);
        if !state.machine_fault_logged {
            state.machine_fault_logged = true;
            tracing::warn!(
                target: "mimir.librarian.machine_fault",
                class = error.class(),
                "a processor cannot work at the moment; the run waits and tries again: {error}"
            );
        }
        !state.stopped && state.last_result.max(started).elapsed() < MACHINE_FAULT_LIMIT
    }
}

/// A worker of the run. It is dropped also when the processor panics, or when the worker's thread
/// was never started.
pub(super) struct Worker<'d, 'r> {
    dispatcher: &'d Dispatcher<'r>,
    /// Its number, from 0.
    number: usize,
}

impl<'d, 'r> Worker<'d, 'r> {
    /// One worker. The caller creates exactly as many as the dispatcher was told, because the writer
    /// thread waits until all have ended.
    pub(super) fn new(dispatcher: &'d Dispatcher<'r>) -> Self {
        let number = dispatcher.next_worker.fetch_add(1, Ordering::Relaxed);
        Self { dispatcher, number }
    }

    /// Take a claim, call the processor, submit the result, until no claim is left.
    pub(super) fn work<P: DraftProcessor + ?Sized>(self, processor: &mut P) {
        let Self { dispatcher, number } = &self;
        let number = *number;
        // The caller creates no more workers than there are signals.
        let unheard = StopSignal::default();
        let stop = dispatcher.stops.get(number).unwrap_or(&unheard);
        while let Some(claim) = dispatcher.take_claim(number) {
            let mut processing = Processing {
                dispatcher,
                worker: number,
                started: Instant::now(),
                claim: Some(claim),
            };
            let result = match &processing.claim {
                Some(claim) => dispatcher.process(processor, claim.draft(), stop),
                None => continue,
            };
            processing.submit_result(result);
        }
    }
}

impl Drop for Worker<'_, '_> {
    fn drop(&mut self) {
        let Self { dispatcher, .. } = self;
        let mut state = lock(&dispatcher.state);
        state.workers -= 1;
        // The other workers finish their drafts and then end, so that the panic is raised soon.
        state.stopped |= thread::panicking();
        dispatcher.writer_needed.notify_one();
    }
}

/// The draft that a worker is processing. If the processor panics, that is the draft's error.
struct Processing<'w, 'r> {
    dispatcher: &'w Dispatcher<'r>,
    worker: usize,
    started: Instant,
    claim: Option<Box<Claim>>,
}

impl Processing<'_, '_> {
    fn submit_result(&mut self, result: Result<Outcome, LibrarianError>) {
        if let Some(claim) = self.claim.take() {
            let processed = Processed { claim, result, unwanted: false };
            self.dispatcher.submit_result(self.worker, processed, self.started.elapsed());
        }
    }
}

impl Drop for Processing<'_, '_> {
    fn drop(&mut self) {
        self.submit_result(Err(ProcessorError::new("panic", "the processor panicked").into()));
    }
}
