//! JSON that is kept as it was written.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// The text of a JSON value, as its author wrote it. It serializes as that value. `Debug` shows
/// its length.
#[derive(Clone)]
pub struct JsonText(Box<RawValue>);

impl JsonText {
    /// This text, if it is JSON.
    pub(crate) fn new(text: String) -> Option<Self> {
        RawValue::from_string(text).ok().map(Self)
    }

    /// The text.
    #[must_use]
    pub fn get(&self) -> &str {
        self.0.get()
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl fmt::Debug for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonText").field("bytes", &self.get().len()).finish()
    }
}
