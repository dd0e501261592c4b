//! How many drafts to claim at a time.

use std::time::Duration;

/// The processing time of the drafts that are claimed at once.
const BATCH_WORK: Duration = Duration::from_millis(5);

/// The largest number of drafts that are claimed or stored at once. More would hold the database's
/// write lock for longer than other processes should wait.
pub(super) const MAX_BATCH: usize = 512;

/// How many drafts to claim at once, computed from the processing time of one draft.
#[derive(Debug, Default)]
pub(super) struct BatchSize {
    /// A moving average of the processing time of one draft.
    per_draft: Option<Duration>,
    last: usize,
}

impl BatchSize {
    /// Take the processing time of one more draft into account.
    pub(super) fn record(&mut self, took: Duration) {
        self.per_draft = Some(match self.per_draft {
            None => took,
            Some(average) => (average * 7 + took) / 8,
        });
    }

    /// Start again with one draft, because the processor has become slow.
    pub(super) fn reset(&mut self, took: Duration) {
        *self = Self { per_draft: Some(took), last: 1 };
    }

    /// How many drafts to claim for a worker: about 5 ms of work, and at most eight times as many
    /// as the last time.
    pub(super) fn next(&mut self) -> usize {
        let Some(per_draft) = self.per_draft else { return 1 };
        let fitting = BATCH_WORK.as_nanos() / per_draft.as_nanos().max(1);
        let fitting = usize::try_from(fitting).unwrap_or(MAX_BATCH);
        self.last = fitting.clamp(1, self.last.max(1) * 8).min(MAX_BATCH);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_processor_gets_growing_batches_and_a_slow_one_gets_one_draft() {
        let mut size = BatchSize::default();
        assert_eq!(size.next(), 1, "nothing is known yet");
        size.record(Duration::from_micros(5));
        let sizes: Vec<usize> = (0..5).map(|_| size.next()).collect();
        assert_eq!(sizes, [8, 64, 512, 512, 512]);
        for _ in 0..200 {
            size.record(Duration::from_millis(6));
        }
        assert_eq!(size.next(), 1);
        size.reset(Duration::from_millis(20));
        assert_eq!(size.next(), 1);
    }
}
