//! The error of a processor.

use std::borrow::Cow;
use std::fmt;

/// Why a processor reached no decision. A processor returns it as a [`LibrarianError`](crate::LibrarianError) (`?` or
/// `into()` converts it); see the example at [`LibrarianError`](crate::LibrarianError).
///
/// The class and the message are shown in logs and summaries and must not hold the draft's text.
/// The detail (such as the tail of a program's standard error) may hold anything: it is stored
/// with the draft, and shown by neither `Display` nor `Debug`.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ProcessorError {
    class: Cow<'static, str>,
    message: String,
    detail: Option<String>,
    charged: bool,
}

impl ProcessorError {
    /// An error of this class that is charged to the draft.
    ///
    /// The class is a short stable word to group and filter by, such as `exit`, `timeout` or
    /// `model_answer`: at most 64 lower-case ASCII letters, digits and underscores. In any other
    /// class, other characters become underscores and the rest is cut off.
    #[must_use]
    pub fn new(class: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let class = normalized(class.into());
        Self { class, message: message.into(), detail: None, charged: true }
    }

    /// The same error, not charged to the draft: the machine lacks something (a process, a
    /// descriptor, memory, space), or a service that the processor needs is unavailable. The draft
    /// is released, and no error is counted.
    #[must_use]
    pub fn uncharged(self) -> Self {
        Self { charged: false, ..self }
    }

    /// The same error with a detail that is stored and not shown. An empty detail is none.
    #[must_use]
    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()).filter(|detail| !detail.is_empty()), ..self }
    }

    /// The class.
    #[must_use]
    pub fn class(&self) -> &str {
        &self.class
    }

    /// Whether the error counts towards the draft's error budget; see
    /// [`uncharged`](Self::uncharged).
    #[must_use]
    pub fn is_charged(&self) -> bool {
        self.charged
    }

    /// The detail, if there is one.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

const MAX_CLASS_BYTES: usize = 64;

fn normalized(class: Cow<'static, str>) -> Cow<'static, str> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !class.is_empty() && class.len() <= MAX_CLASS_BYTES && class.chars().all(is_plain) {
        return class;
    }
    let plain = class.chars().take(MAX_CLASS_BYTES).map(|c| match c.to_ascii_lowercase() {
        c if is_plain(c) => c,
        _ => '_',
    });
    match plain.collect::<String>() {
        class if class.is_empty() => "processor".into(),
        class => class.into(),
    }
}

impl fmt::Debug for ProcessorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessorError")
            .field("class", &self.class)
            .field("message", &self.message)
            .field("detail_bytes", &self.detail.as_ref().map(String::len))
            .field("charged", &self.charged)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_a_short_plain_word() {
        let class = |class: &str| ProcessorError::new(class.to_owned(), "").class().to_owned();
        assert_eq!(class("model_answer"), "model_answer");
        assert_eq!(class("HTTP 503\n\u{1b}[31m"), "http_503___31m");
        assert_eq!(class(""), "processor");
        assert_eq!(class(&"ü".repeat(70)), "_".repeat(64));
    }
}
