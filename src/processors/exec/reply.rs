//! Reads a program's standard output: one line of JSON, strictly.
//!
//! No error quotes the output, because a program may print the draft.

use std::fmt;
use std::time::Duration;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::error::ProcessorError;
use crate::escape;
use crate::id::DraftId;
use crate::outcome::{MAX_DELAY, Outcome};
use crate::state::DraftProcessingDecision;

/// The longest note of a program: 64 KiB of UTF-8.
pub const MAX_NOTE_BYTES: usize = 64 * 1024;

/// The longest reason for being unavailable that is kept: 1 KiB.
const MAX_REASON_BYTES: usize = 1024;

/// The largest number of keys in an object. An answer has fewer, and so has its `usage`.
const MAX_KEYS: usize = 64;

/// The end of every message.
const EXPECTED: &str = r#"expected one JSON object as the last line, such as {"decision":"accepted"}, and nothing after it"#;

/// Numbers in `usage` that cannot be negative.
const COUNTED: [&str; 3] = ["input_tokens", "output_tokens", "cost_usd"];

/// A program's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A decision with its note, output, usage and delays.
    Decided(Outcome),
    /// It cannot work now, whatever the draft. Holds its reason, escaped.
    Unavailable(String),
}

/// The result of reading a program's standard output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Printed {
    /// The last non-empty line is an answer, and no other line is.
    Answer(Answer),
    /// There is no answer, and no line that resembles one. Says what the last line is.
    NoAnswer(&'static str),
}

/// Read what a program printed about the draft with this id.
///
/// # Errors
///
/// A `protocol` error if the last non-empty line begins like an answer and is not valid, or if an
/// earlier line is an answer.
pub(super) fn read(stdout: &[u8], id: DraftId) -> Result<Printed, ProcessorError> {
    let mut lines = stdout
        .rsplit(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty());
    let Some(last) = lines.next() else {
        return Ok(Printed::NoAnswer("nothing was printed"));
    };
    let earlier_answer = lines.any(looks_like_an_answer);
    if !without_mark(last).starts_with(b"{") {
        return match earlier_answer {
            true => Err(protocol("there is a line after the answer")),
            false => Ok(Printed::NoAnswer(kind_of(last))),
        };
    }
    let answer = parse(last, id)?;
    match earlier_answer {
        true => Err(protocol("there are two answers")),
        false => Ok(Printed::Answer(answer)),
    }
}

/// A `protocol` error with what was found and what was expected.
pub(super) fn protocol(seen: &str) -> ProcessorError {
    ProcessorError::new("protocol", format!("the program gave no valid answer: {seen}; {EXPECTED}"))
}

/// Describes a line that is not a JSON object.
fn kind_of(line: &[u8]) -> &'static str {
    let Ok(text) = str::from_utf8(line) else { return "the last line is not UTF-8" };
    if text.starts_with("```") {
        return "the last line is the mark of a fenced block";
    }
    if text == "}" {
        return "the last line is a } alone, and an answer must be on one line";
    }
    if text.starts_with('[') {
        return "the last line is an array";
    }
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => "the last line is a JSON value that is no object",
        Err(_) => "the last line is text and no JSON object",
    }
}

fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line)
}

/// Whether an earlier line is, or was meant as, an answer: it has a key that only answers have, an
/// error object, or a decision under a misspelt key that begins like `decision`. A broken object
/// with a key of an answer counts as well.
fn looks_like_an_answer(line: &[u8]) -> bool {
    let line = without_mark(line);
    if !line.starts_with(b"{") {
        return false;
    }
    let line = String::from_utf8_lossy(line);
    let is_telling = |key: &str| {
        ["decision", "unavailable"].iter().any(|telling| key.eq_ignore_ascii_case(telling))
    };
    match serde_json::from_str::<Entries<'_>>(&line) {
        Ok(Entries(entries)) if entries.len() <= MAX_KEYS => entries.iter().any(|(key, value)| {
            is_telling(key)
                || (key == "error" && value.get().starts_with('{'))
                || (key.starts_with(['d', 'D']) && is_a_decision(value))
        }),
        _ => line.split('"').any(is_telling),
    }
}

fn is_a_decision(value: &RawValue) -> bool {
    serde_json::from_str::<String>(value.get())
        .is_ok_and(|word| DraftProcessingDecision::parse(&word).is_some())
}

/// The keys of an object and their values, in order and with duplicates. Beyond [`MAX_KEYS`], one
/// more is kept.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<&RawValue>()?;
                    if entries.len() <= MAX_KEYS {
                        entries.push((key, value));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The values of an answer's keys. Null means absent, except for a decision.
#[derive(Default)]
struct Fields<'a> {
    id: Option<&'a RawValue>,
    decision: Option<&'a RawValue>,
    note: Option<&'a RawValue>,
    output: Option<&'a RawValue>,
    usage: Option<&'a RawValue>,
    retry_after_secs: Option<&'a RawValue>,
    hold_secs: Option<&'a RawValue>,
    unavailable: Option<&'a RawValue>,
}

/// The keys that an answer may have.
const KEYS: [&str; 8] =
    ["id", "decision", "note", "output", "usage", "retry_after_secs", "hold_secs", "unavailable"];

/// The answer on this line, which begins with `{`.
fn parse(line: &[u8], id: DraftId) -> Result<Answer, ProcessorError> {
    if without_mark(line).len() < line.len() {
        return Err(protocol("the last line begins with a byte order mark"));
    }
    let line = str::from_utf8(line).map_err(|_| protocol("the last line is not UTF-8"))?;
    let Entries(entries) = serde_json::from_str(line).map_err(|error| protocol(fault(&error)))?;
    let fields = Fields::of(entries)?;
    if let Some(given) = fields.id
        && serde_json::from_str::<String>(given.get()).ok() != Some(id.to_hex())
    {
        return Err(protocol("its id is not that of the draft"));
    }
    match (fields.decision, fields.unavailable) {
        (Some(decision), None) => fields.decided(decision).map(Answer::Decided),
        (None, Some(reason)) => fields.unavailable(reason),
        (Some(_), Some(_)) => Err(protocol("it has both a decision and the key unavailable")),
        (None, None) => Err(protocol("it has no decision")),
    }
}

/// Describes what is wrong with a line that begins with `{` and is not JSON. The parser's messages
/// for syntax errors are fixed texts; they are matched here and not shown, in case that changes.
fn fault(error: &serde_json::Error) -> &'static str {
    let message = error.to_string();
    for (part, fault) in [
        ("trailing comma", "its JSON has a comma before the closing bracket"),
        ("trailing characters", "there is something after its JSON object on the same line"),
        ("key must be a string", "its JSON has a key that is not in double quotes"),
        ("EOF while parsing", "its JSON ends too early, and an answer must be on one line"),
        (
            "expected value",
            "its JSON has a value that JSON does not know, such as NaN or a word or string without double quotes",
        ),
    ] {
        if error.classify() != serde_json::error::Category::Data && message.contains(part) {
            return fault;
        }
    }
    "the last line begins with { and is not valid JSON"
}

impl<'a> Fields<'a> {
    fn of(entries: Vec<(String, &'a RawValue)>) -> Result<Self, ProcessorError> {
        let mut fields = Self::default();
        let mut seen = Vec::new();
        for (key, value) in entries {
            if seen.contains(&key) {
                return Err(protocol("it has a key twice"));
            }
            let field = match key.as_str() {
                "id" => &mut fields.id,
                "decision" => &mut fields.decision,
                "note" => &mut fields.note,
                "output" => &mut fields.output,
                "usage" => &mut fields.usage,
                "retry_after_secs" => &mut fields.retry_after_secs,
                "hold_secs" => &mut fields.hold_secs,
                "unavailable" => &mut fields.unavailable,
                other => return Err(unknown_key(other)),
            };
            if value.get() != "null" || key == "decision" {
                *field = Some(value);
            }
            seen.push(key);
        }
        Ok(fields)
    }

    fn decided(&self, decision: &RawValue) -> Result<Outcome, ProcessorError> {
        let decision = serde_json::from_str::<String>(decision.get())
            .ok()
            .and_then(|name| DraftProcessingDecision::parse(&name))
            .ok_or_else(|| {
                protocol(
                    "its decision is none of accepted, skipped, failed, quarantined and deferred",
                )
            })?;
        let mut outcome = Outcome::new(decision);
        if let Some(note) = self.note {
            outcome = outcome.with_note(short_string(note, "note")?);
        }
        if let Some(output) = self.output {
            let refused = || {
                protocol(
                    "its output is nested too deeply, or has a number or a string that JSON readers refuse",
                )
            };
            // The line was checked for its grammar only; this checks that others can read the value.
            outcome = outcome.with_output(&output).map_err(|_| refused())?;
        }
        if let Some(usage) = self.usage {
            check_usage(usage)?;
            outcome = outcome.with_usage(usage.get());
        }
        if let Some(secs) = self.retry_after_secs {
            outcome = outcome.with_retry_after(delay(secs, "retry_after_secs")?);
        }
        if let Some(secs) = self.hold_secs {
            outcome = outcome.with_hold(delay(secs, "hold_secs")?);
        }
        Ok(outcome)
    }

    fn unavailable(&self, reason: &RawValue) -> Result<Answer, ProcessorError> {
        let Self { id: _, decision: _, note, output, usage, retry_after_secs, hold_secs, .. } =
            self;
        if [note, output, retry_after_secs, hold_secs].iter().any(|field| field.is_some()) {
            return Err(protocol(
                "beside the key unavailable it has a key other than id and usage",
            ));
        }
        if let Some(usage) = usage {
            check_usage(usage)?;
        }
        let reason = short_string(reason, "unavailable")?;
        let mut reason = escape::line(&reason).into_owned();
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        Ok(Answer::Unavailable(reason))
    }
}

fn unknown_key(key: &str) -> ProcessorError {
    match KEYS.iter().find(|known| known.eq_ignore_ascii_case(key)) {
        Some(known) => protocol(&format!("its key {known} is not in lower case")),
        None => protocol(&format!("it has an unknown key; the known ones are {}", KEYS.join(", "))),
    }
}

fn short_string(value: &RawValue, key: &str) -> Result<String, ProcessorError> {
    let text: String = serde_json::from_str(value.get())
        .map_err(|_| protocol(&format!("its {key} is not a string")))?;
    if text.len() > MAX_NOTE_BYTES {
        return Err(protocol(&format!("its {key} has more than {MAX_NOTE_BYTES} bytes")));
    }
    Ok(text)
}

/// Usage is an object of numbers. Counts and costs are not negative.
fn check_usage(usage: &RawValue) -> Result<(), ProcessorError> {
    let Entries(entries) = serde_json::from_str(usage.get())
        .map_err(|_| protocol("its usage is not an object of numbers"))?;
    if entries.len() > MAX_KEYS {
        return Err(protocol(&format!("its usage has more than {MAX_KEYS} keys")));
    }
    for (index, (key, value)) in entries.iter().enumerate() {
        if entries.iter().take(index).any(|(earlier, _)| earlier == key) {
            return Err(protocol("its usage has a key twice"));
        }
        // Of JSON's values only numbers parse as one. A number that is too large parses as
        // infinite.
        match value.get().parse::<f64>() {
            Ok(number) if !number.is_finite() => {
                return Err(protocol("its usage has a number that is too large"));
            }
            Ok(number) if number < 0.0 && COUNTED.contains(&key.as_str()) => {
                return Err(protocol("its usage has a negative count or cost"));
            }
            Ok(_) => {}
            Err(_) => return Err(protocol("its usage has a value that is not a number")),
        }
    }
    Ok(())
}

/// A number of seconds, at most [`MAX_DELAY`].
fn delay(secs: &RawValue, key: &str) -> Result<Duration, ProcessorError> {
    let wrong = || protocol(&format!("its {key} is not a number of seconds, 0 or more"));
    // Not through serde_json, which refuses 1e400; here it is one more number over the limit. Of
    // JSON's values only numbers parse as one (strings have quotes, and there is no NaN).
    let secs: f64 = secs.get().parse().map_err(|_| wrong())?;
    if secs.is_nan() || secs < 0.0 {
        return Err(wrong());
    }
    Ok(Duration::try_from_secs_f64(secs).unwrap_or(MAX_DELAY).min(MAX_DELAY))
}

#[cfg(test)]
mod tests;
