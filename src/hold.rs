//! Holds: while one is in force, no runner of its processor claims a draft.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::error::LibrarianError;
use crate::metadata::MAX_METADATA_BYTES;

/// Who set a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HoldKind {
    /// A person paused the processor.
    Operator,
    /// The processor asked for it ([`Outcome::with_hold`](crate::Outcome::with_hold)), for example
    /// because of a rate limit.
    Processor,
    /// The processor's last results were all the same error.
    Breaker,
}

impl HoldKind {
    /// The name, as it is stored and printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Processor => "processor",
            Self::Breaker => "breaker",
        }
    }

    pub(crate) fn parse(value: &str) -> Option<Self> {
        [Self::Operator, Self::Processor, Self::Breaker]
            .into_iter()
            .find(|kind| kind.as_str() == value)
    }
}

/// A hold that is in force: no runner of this processor claims a draft. Holds are stored in the
/// database, so all runners heed them, and they survive a crash.
///
/// The JSON keys are the names of the fields; `processor` is null if the hold is for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hold {
    /// The name of the processor; `None`: all processors.
    pub processor: Option<String>,
    /// Who set it: a person, the processor, or the breaker.
    pub kind: HoldKind,
    /// The name of who set it.
    pub set_by: String,
    /// When it was set, in milliseconds since the Unix epoch.
    pub set_at_unix_ms: i64,
    /// When it ends, in milliseconds since the Unix epoch; `None`: when a person ends it.
    pub until_unix_ms: Option<i64>,
    /// Why it was set.
    pub reason: Option<String>,
}

/// Who is on hold, who set it, and why; the time of its end is left to the caller.
impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.processor {
            Some(processor) => write!(f, "processor {processor} is on hold")?,
            None => write!(f, "all processors are on hold")?,
        }
        match (self.kind, &self.reason) {
            (HoldKind::Operator, None) => write!(f, ", set by {}", self.set_by),
            (HoldKind::Operator, Some(reason)) => write!(f, ", set by {}: {reason}", self.set_by),
            (_, Some(reason)) => write!(f, ": {reason}"),
            (_, None) => write!(f, ", set by the {}", self.kind.as_str()),
        }
    }
}

/// A hold to set: [`DraftStore::hold`](crate::DraftStore::hold).
///
/// ```
/// # use std::time::Duration;
/// # use draftq::{DraftStore, NewHold};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let store = DraftStore::open(directory.path().join("drafts.db"))?;
/// let hour = Duration::from_secs(3600);
/// store.hold(&NewHold::new("jonas").processor("judge").lasting(hour).reason("new model"))?;
/// assert_eq!(store.holds()?.len(), 1);
/// store.end_holds(Some("judge"))?;
/// assert_eq!(store.holds()?, []);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a description sets no hold by itself"]
pub struct NewHold {
    pub(crate) processor: Option<String>,
    pub(crate) set_by: String,
    pub(crate) lasting: Option<Duration>,
    pub(crate) reason: Option<String>,
}

impl NewHold {
    /// A hold for all processors, without an end, set by the person of this name.
    pub fn new(set_by: impl Into<String>) -> Self {
        Self { processor: None, set_by: set_by.into(), lasting: None, reason: None }
    }

    /// Only for the processor of this name.
    pub fn processor(self, processor: impl Into<String>) -> Self {
        Self { processor: Some(processor.into()), ..self }
    }

    /// It ends by itself after this time, counted in whole milliseconds.
    pub fn lasting(self, time: Duration) -> Self {
        Self { lasting: Some(time), ..self }
    }

    /// Why, for people.
    pub fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// Whether a store accepts it.
    pub(crate) fn check(&self) -> Result<(), LibrarianError> {
        let fields = [
            ("the name of who sets it", Some(&self.set_by)),
            ("the processor's name", self.processor.as_ref()),
            ("the reason", self.reason.as_ref()),
        ];
        for (what, value) in fields {
            let Some(value) = value else { continue };
            let problem = if value.trim().is_empty() {
                "is empty"
            } else if value.contains('\0') {
                "contains a NUL character"
            } else if value.len() > MAX_METADATA_BYTES {
                "is longer than 4096 bytes"
            } else {
                continue;
            };
            return Err(LibrarianError::InvalidHold { what, problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_parse_back() {
        for kind in [HoldKind::Operator, HoldKind::Processor, HoldKind::Breaker] {
            assert_eq!(HoldKind::parse(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn a_hold_needs_names_and_short_texts() {
        assert_eq!(MAX_METADATA_BYTES, 4096, "the message says so");
        assert!(NewHold::new("jo").processor("judge").reason("r").check().is_ok());
        for wrong in [
            NewHold::new(" "),
            NewHold::new("jo").processor(""),
            NewHold::new("jo").reason("a\0b"),
            NewHold::new("jo").reason("r".repeat(4097)),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(matches!(error, LibrarianError::InvalidHold { .. }), "{error:?}");
        }
    }
}
