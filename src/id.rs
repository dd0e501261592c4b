//! A draft's id.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Name of a draft: the first 8 bytes of a SHA-256 over its text and provenance, 16 lower-case
/// hexadecimal digits in print.
///
/// The same text from the same source is the same draft; the same text from another agent,
/// project, operator or place is another. Tags and time are no part of it. The file version
/// gives the same ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DraftId([u8; 8]);

impl DraftId {
    /// The id of a draft whose stored id cannot be read.
    pub(crate) const NONE: Self = Self([0; 8]);

    /// The id of these 8 bytes.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The 8 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> [u8; 8] {
        self.0
    }

    /// 16 lower-case hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        format!("{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Display for DraftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl Serialize for DraftId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text was not 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a draft's id is 16 lower-case hexadecimal digits")]
pub struct NotADraftId;

impl FromStr for DraftId {
    type Err = NotADraftId;

    fn from_str(text: &str) -> Result<Self, NotADraftId> {
        let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 16 || !digits {
            return Err(NotADraftId);
        }
        u64::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| NotADraftId)
    }
}
