//! A signal to a processor that the result for its draft is no longer wanted.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Action = Box<dyn FnOnce() + Send>;

/// Says that the result for a draft is no longer wanted, because the runner's claim on the draft was
/// lost: an operator released the draft, for example. Clones share the signal.
///
/// ```
/// use draftq::StopSignal;
///
/// let signal = StopSignal::default();
/// {
///     let _action = signal.on_stop(|| println!("kill the child process"));
///     // Wait for the child process here; the action is called at most once.
/// }
/// // From here on the action is not called any more.
/// assert!(!signal.is_stopped());
/// ```
#[derive(Clone, Default)]
pub struct StopSignal(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    stopped: bool,
    action: Option<Action>,
}

impl StopSignal {
    /// Whether the result is no longer wanted.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Give the signal. The action that was set with [`on_stop`](Self::on_stop) is called on this
    /// thread.
    pub fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        // The lock is held meanwhile, so that the action does not run after its end.
        if let Some(action) = state.action.take() {
            action();
        }
    }

    /// Call this on the thread that gives the signal, at once if it was given already. Ends when the
    /// returned value is dropped, which waits for an action that is running. The action must be
    /// quick and must not use this signal. There is one action at a time; another replaces it.
    pub fn on_stop(&self, action: impl FnOnce() + Send + 'static) -> StopAction<'_> {
        let mut state = self.state();
        if state.stopped {
            action();
        } else {
            state.action = Some(Box::new(action));
        }
        drop(state);
        StopAction(self)
    }

    /// Take the signal back, for the next draft.
    pub(crate) fn reset(&self) {
        *self.state() = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopSignal").field("stopped", &self.is_stopped()).finish()
    }
}

/// Ends the action of [`StopSignal::on_stop`] when it is dropped.
#[derive(Debug)]
#[must_use = "the action ends when this is dropped"]
pub struct StopAction<'s>(&'s StopSignal);

impl Drop for StopAction<'_> {
    fn drop(&mut self) {
        self.0.state().action = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn an_action_is_called_once_and_not_after_its_end() {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = || {
            let calls = Arc::clone(&calls);
            move || {
                calls.fetch_add(1, Ordering::SeqCst);
            }
        };
        let signal = StopSignal::default();
        drop(signal.on_stop(count()));
        signal.stop();
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        signal.reset();
        let action = signal.on_stop(count());
        signal.clone().stop();
        signal.stop();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        drop(action);
        let _at_once = signal.on_stop(count());
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}
