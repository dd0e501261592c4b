//! What a program says on its standard output: one line of JSON that is read strictly.
//!
//! Nothing here quotes what was printed: a program may print the draft.

use std::fmt;
use std::time::Duration;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ProcessorError;
use crate::escape;
use crate::id::DraftId;
use crate::outcome::{MAX_DELAY, Outcome};
use crate::state::DraftProcessingDecision;

/// Longest note that a program may give: 64 KiB, in bytes of UTF-8.
pub const MAX_NOTE_BYTES: usize = 64 * 1024;

/// Most of a program's reason for being unavailable that is kept: 1 KiB.
const MAX_REASON_BYTES: usize = 1024;

/// Most keys that are looked at in one object. An answer has fewer, and so has its `usage`.
const MAX_KEYS: usize = 64;

/// What every message says was expected.
const EXPECTED: &str = r#"expected one JSON object as the last line, such as {"decision":"accepted"}, and nothing after it"#;

/// Numbers in `usage` that cannot be negative.
const COUNTED: [&str; 3] = ["input_tokens", "output_tokens", "cost_usd"];

/// What a program answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A decision with what belongs to it.
    Decided(Outcome),
    /// It cannot work now, whatever the draft; its reason, escaped.
    Unavailable(String),
}

/// What was found on a program's standard output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Printed {
    /// The last non-empty line is an answer, and no other line is.
    Answer(Answer),
    /// There is no answer, and nothing that looks like one; what the last line is instead.
    NoAnswer(&'static str),
}

/// Read what a program printed about the draft of this id.
///
/// # Errors
///
/// A `protocol` error if the last non-empty line begins like an answer and is none, or if an
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

/// A `protocol` error: what was seen, and what was expected.
pub(super) fn protocol(seen: &str) -> ProcessorError {
    ProcessorError::new("protocol", format!("the program gave no valid answer: {seen}; {EXPECTED}"))
}

/// What a line is that is no JSON object.
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

/// Whether a line that is not the last one is an answer, or was meant as one: it has a key that
/// only an answer has, an error object, or a decision under a key that begins like `decision` and
/// is misspelt. A broken object that names a key of an answer counts as well.
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

/// The keys of an object and their values, in order and with duplicates; of more than
/// [`MAX_KEYS`] one more is kept.
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

/// The values of an answer's keys; null is as good as absent, except for a decision.
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

/// How a line that begins with `{` is not JSON. The parser's messages for faults of syntax are
/// fixed texts; they are matched here and not shown, in case that changes.
fn fault(error: &serde_json::Error) -> &'static str {
    let told = error.to_string();
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
        if error.classify() != serde_json::error::Category::Data && told.contains(part) {
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
            // Raw JSON is checked for its grammar only. What passes here, others can read too.
            serde_json::from_str::<Value>(output.get()).map_err(|_| refused())?;
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

/// Usage is an object of numbers; counts and costs are not negative.
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
        // Of JSON's values only numbers parse as one; one that is too large parses as infinite.
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
    // Not through serde_json, which refuses 1e400: here it is only one more number over the limit.
    // Of JSON's values only numbers parse as one (its strings have quotes, and it has no NaN).
    let secs: f64 = secs.get().parse().map_err(|_| wrong())?;
    if secs.is_nan() || secs < 0.0 {
        return Err(wrong());
    }
    Ok(Duration::try_from_secs_f64(secs).unwrap_or(MAX_DELAY).min(MAX_DELAY))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::draft::Draft;
    use crate::metadata::{DraftMetadata, DraftSourceSurface};

    fn id() -> DraftId {
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, UNIX_EPOCH);
        Draft::with_metadata("text".to_owned(), metadata).id()
    }

    #[track_caller]
    fn outcome(stdout: &str) -> Outcome {
        match read(stdout.as_bytes(), id()).unwrap() {
            Printed::Answer(Answer::Decided(outcome)) => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(stdout: impl AsRef<[u8]>) -> String {
        let error = read(stdout.as_ref(), id()).unwrap_err();
        assert_eq!(error.class(), "protocol");
        assert!(error.is_charged());
        error.to_string()
    }

    #[test]
    fn every_decision_is_known() {
        for decision in DraftProcessingDecision::ALL {
            let line = format!(r#"{{"decision":"{}"}}"#, decision.as_str());
            assert_eq!(outcome(&line), Outcome::new(decision));
        }
    }

    #[test]
    fn the_last_line_that_is_not_empty_decides() {
        for chatter in [
            "log\nmore",
            "[1]\n{}\nnull",
            r#"{"level":"info","error":"none","note":"x"}"#,
            r#"{"model":{"decision":"quarantined"}}"#,
            "{'decision':'quarantined'}",
            "{ broken",
            "Decision: {so far}",
        ] {
            let stdout = format!("{chatter}\r\n \t {{\"decision\":\"skipped\"}} \r\n\n  \n");
            assert_eq!(outcome(&stdout).decision(), DraftProcessingDecision::Skipped);
        }
        // Only the last line has to be UTF-8.
        assert!(read(b"\xff\xfe\n{\"decision\":\"failed\"}", id()).is_ok());
    }

    #[test]
    fn a_second_answer_is_refused_in_whatever_shape() {
        for earlier in [
            r#"{"decision":"quarantined"}"#,
            r#"{"dec\u0069sion":"quarantined"}"#,
            r#"{"Decision":"quarantined"}"#,
            r#"{"level":"info","decision":"quarantined"}"#,
            r#"{"decision":"quarantined",}"#,
            r#"{"decision":"quarantined""#,
            r#"{"unavailable":"why"}"#,
            r#"{"decison":"quarantined"}"#,
            r#"{"Decission":"failed","note":"x"}"#,
            r#"{"error":{"class":"model","message":"x"}}"#,
            "\u{feff}{\"decision\":\"quarantined\"}",
        ] {
            let message = refused(format!("{earlier}\nsome\n{{\"decision\":\"accepted\"}}\n"));
            assert!(message.contains("two answers"), "{earlier}: {message}");
            let message = refused(format!("{earlier}\nsome\n"));
            assert!(message.contains("line after the answer"), "{earlier}: {message}");
        }
    }

    #[test]
    fn what_does_not_begin_like_an_answer_is_none() {
        for (stdout, seen) in [
            ("", "nothing was printed"),
            ("\n \r\n", "nothing was printed"),
            ("quarantined", "is text"),
            ("Decision: {\"decision\":\"quarantined\"}", "is text"),
            ("so {far}", "is text"),
            ("NaN", "is text"),
            ("[{\"decision\":\"quarantined\"}]", "an array"),
            ("```json\n{ \"x\": 1 }\n```", "fenced block"),
            ("{\n\"decision\": \"quarantined\"\n}\n", "on one line"),
            ("null", "no object"),
            ("5", "no object"),
            ("\"decision\"", "no object"),
        ] {
            let Printed::NoAnswer(told) = read(stdout.as_bytes(), id()).unwrap() else {
                panic!("{stdout}")
            };
            assert!(told.contains(seen), "{stdout}: {told}");
        }
        assert!(
            matches!(read(b"\xff\xfe", id()), Ok(Printed::NoAnswer(told)) if told.contains("UTF-8"))
        );
    }

    #[test]
    fn what_begins_like_an_answer_and_is_none_is_refused() {
        for (stdout, seen) in [
            ("{}", "no decision"),
            (r#"{"note":"x"}"#, "no decision"),
            (r#"{"decison":"quarantined"}"#, "unknown key"),
            (r#"{"decision":"quarantined","reason":"x"}"#, "unknown key"),
            (r#"{"result":{"decision":"quarantined"}}"#, "unknown key"),
            (r#"{"":""}"#, "unknown key"),
            (r#"{"Decision":"quarantined"}"#, "decision is not in lower case"),
            (r#"{"decision":"quarantined","Note":"x"}"#, "note is not in lower case"),
            (r#"{"decision":"Quarantined"}"#, "none of accepted"),
            (r#"{"decision":null}"#, "none of accepted"),
            (r#"{"decision":"quarantined","unavailable":"why"}"#, "both"),
            (r#"{"decision":"quarantined""#, "too early"),
            ("{", "too early"),
            (r#"{"decision":"quarantined"} {}"#, "same line"),
            (r#"{"decision":"quarantined"}{"decision":"accepted"}"#, "same line"),
            ("{\"decision\":\"quarantined\"}\r{\"decision\":\"accepted\"}", "same line"),
            (r#"{"decision":"quarantined"},"#, "same line"),
            (r#"{"decision":"quarantined"}```"#, "same line"),
            (r#"{'decision':'quarantined'}"#, "double quotes"),
            ("{decision:quarantined}", "double quotes"),
            (r#"{"decision":'quarantined'}"#, "double quotes"),
            (r#"{"decision":NaN}"#, "NaN"),
            (r#"{"decision":"quarantined","output":NaN}"#, "NaN"),
            (r#"{"decision":"quarantined","output":Infinity}"#, "NaN"),
            (r#"{"decision":"quarantined",}"#, "comma"),
            (r#"{"decision":"quarantined","decision":"accepted"}"#, "twice"),
            (r#"{"decision":"quarantined","dec\u0069sion":"accepted"}"#, "twice"),
            (r#"{"decision":"failed","note":null,"note":"b"}"#, "twice"),
            ("\u{feff}{\"decision\":\"quarantined\"}", "byte order mark"),
        ] {
            let message = refused(stdout);
            assert!(message.contains(seen), "{stdout}: {message}");
            assert!(message.contains("expected one JSON object"), "{message}");
        }
        refused(b"{\"decision\":\"quarantined\",\"note\":\"caf\xe9\"}");
        refused(b"{\"caf\xe9\":\"\",\"decision\":\"quarantined\"}");
        let many: String = (0..10_000).map(|n| format!("\"k{n}\":1,")).collect();
        refused(format!("{{{many}\"decision\":\"quarantined\"}}"));
    }

    #[test]
    fn all_keys_are_taken_over() {
        let outcome = outcome(&format!(
            r#"{{"id":"{}","decision":"deferred","note":"n\u0000\n","output":{{"b":1.50,"a":[ ]}},"usage":{{"input_tokens":5,"cost_usd":0.25,"x":-1e3}},"retry_after_secs":90,"hold_secs":2.5}}"#,
            id()
        ));
        assert_eq!(outcome.decision(), DraftProcessingDecision::Deferred);
        assert_eq!(outcome.note(), Some("n\0\n"));
        assert_eq!(outcome.output(), Some(r#"{"b":1.50,"a":[ ]}"#));
        assert_eq!(outcome.usage(), Some(r#"{"input_tokens":5,"cost_usd":0.25,"x":-1e3}"#));
        assert_eq!(outcome.retry_after(), Some(Duration::from_secs(90)));
        assert_eq!(outcome.hold(), Some(Duration::from_millis(2500)));
    }

    #[test]
    fn null_is_absent_but_no_decision() {
        let line = r#"{"id":null,"decision":"failed","note":null,"output":null,"usage":null,"retry_after_secs":null,"hold_secs":null,"unavailable":null}"#;
        assert_eq!(outcome(line), Outcome::new(DraftProcessingDecision::Failed));
        refused(r#"{"decision":null}"#);
        refused(r#"{"unavailable":null}"#);
    }

    #[test]
    fn an_id_must_be_that_of_the_draft() {
        let other = "0123456789abcdef";
        let upper = id().to_hex().to_uppercase();
        for wrong in [format!("\"{other}\""), format!("\"{upper}\""), "\"\"".into(), "5".into()] {
            let message = refused(format!(r#"{{"id":{wrong},"decision":"accepted"}}"#));
            assert!(message.contains("id is not that of the draft"), "{message}");
        }
    }

    #[test]
    fn a_program_may_be_unavailable() {
        let unavailable = |line: &str| match read(line.as_bytes(), id()) {
            Ok(Printed::Answer(Answer::Unavailable(reason))) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(unavailable(r#"{"unavailable":"no \u001b key"}"#), "no \\u{1b} key");
        let line = format!(r#"{{"id":"{}","unavailable":"","usage":{{"cost_usd":0}}}}"#, id());
        assert_eq!(unavailable(&line), "");
        let long = format!(r#"{{"unavailable":"{}"}}"#, "😀".repeat(5000));
        assert_eq!(unavailable(&long).len(), MAX_REASON_BYTES);
        for value in ["5", "true", "{}", "[]"] {
            refused(format!(r#"{{"unavailable":{value}}}"#));
        }
        for rest in [r#""note":"n""#, r#""hold_secs":5"#, r#""usage":{"x":"y"}"#] {
            refused(format!(r#"{{"unavailable":"why",{rest}}}"#));
        }
    }

    #[test]
    fn wrong_types_and_values_are_refused() {
        for decision in [r#""Accepted""#, r#""processing""#, r#""""#, "1", "true", "[]", "{}"] {
            refused(format!(r#"{{"decision":{decision}}}"#));
        }
        let many: Vec<String> = (0..=MAX_KEYS).map(|n| format!("\"k{n}\":1")).collect();
        for rest in [
            r#""note":5"#,
            r#""note":["a"]"#,
            r#""note":"\ud800""#,
            r#""output":"\udc00""#,
            r#""output":1e999"#,
            r#""usage":5"#,
            r#""usage":[1]"#,
            r#""usage":{"x":"1"}"#,
            r#""usage":{"x":null}"#,
            r#""usage":{"x":{"y":1}}"#,
            r#""usage":{"x":1e999}"#,
            r#""usage":{"x":1,"x":2}"#,
            r#""usage":{"cost_usd":-0.5}"#,
            &format!(r#""usage":{{{}}}"#, many.join(",")),
            r#""retry_after_secs":-1"#,
            r#""retry_after_secs":-0.001"#,
            r#""retry_after_secs":-1e999"#,
            r#""retry_after_secs":"60""#,
            r#""retry_after_secs":"NaN""#,
            r#""retry_after_secs":NaN"#,
            r#""hold_secs":true"#,
            r#""hold_secs":[1]"#,
            r#""hold_secs":{}"#,
            r#""hold_secs":+1"#,
        ] {
            refused(format!(r#"{{"decision":"accepted",{rest}}}"#));
        }
    }

    #[test]
    fn delays_are_held_in_range() {
        for (number, expected) in [
            ("0", Duration::ZERO),
            ("-0", Duration::ZERO),
            ("-0.0", Duration::ZERO),
            ("0.25", Duration::from_millis(250)),
            ("1e1", Duration::from_secs(10)),
            ("1E+1", Duration::from_secs(10)),
            ("1e-300", Duration::ZERO),
            ("2592000", MAX_DELAY),
            ("2592001", MAX_DELAY),
            ("1e300", MAX_DELAY),
            ("1e999", MAX_DELAY),
            ("99999999999999999999999999999999999999999", MAX_DELAY),
        ] {
            let line = format!(
                r#"{{"decision":"deferred","retry_after_secs":{number},"hold_secs":{number}}}"#
            );
            let outcome = outcome(&line);
            assert_eq!(outcome.retry_after(), Some(expected), "{number}");
            assert_eq!(outcome.hold(), Some(expected), "{number}");
        }
    }

    #[test]
    fn a_note_has_a_limit() {
        let line = |n| format!(r#"{{"decision":"failed","note":"{}"}}"#, "n".repeat(n));
        assert_eq!(outcome(&line(MAX_NOTE_BYTES)).note().unwrap().len(), MAX_NOTE_BYTES);
        refused(line(MAX_NOTE_BYTES + 1));
    }

    #[test]
    fn an_output_that_others_cannot_read_is_refused() {
        let nested = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let line = |output| format!(r#"{{"decision":"failed","output":{output}}}"#);
        assert_eq!(outcome(&line(nested(100))).output(), Some(nested(100).as_str()));
        refused(line(nested(200)));
        refused(line(nested(500_000)));
        // Chatter is looked into at whatever depth.
        let chatter = format!("{{\"x\":{}}}\n{{\"decision\":\"failed\"}}", nested(500_000));
        assert_eq!(outcome(&chatter).decision(), DraftProcessingDecision::Failed);
    }

    #[test]
    fn a_message_does_not_quote_the_answer() {
        for stdout in [
            r#"{"decision":"canary"}"#,
            r#"{"decision":"failed","note":{"canary":1}}"#,
            r#"{"decision":"failed","retry_after_secs":"canary"}"#,
            r#"{"decision":"failed","canary"}"#,
            r#"{"decision":"failed","canary":1}"#,
            r#"{"decision":"failed","usage":{"canary":"canary"}}"#,
            r#"{"decision":"failed","id":"canary"}"#,
            r#"{"canary":"canary"}"#,
            "{\"decision\":\"failed\"}\ncanary",
        ] {
            let message = refused(stdout);
            assert!(!message.contains("canary"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(stdout in prop::collection::vec(any::<u8>(), 0..200)) {
            for head in [&b""[..], br#"{"decision":"failed","output":"#, br#"{"decision":"failed","usage":"#] {
                // Whatever is refused is refused as a fault of protocol.
                if let Err(error) = read(&[head, &stdout, b"}"].concat(), id()) {
                    prop_assert_eq!(error.class(), "protocol");
                }
            }
        }

        #[test]
        fn an_output_is_kept_as_it_was_written(text in any::<String>()) {
            let output = serde_json::to_string(&text).unwrap();
            let line = format!(r#"{{"decision":"failed","output":{output}}}"#);
            let outcome = outcome(&line);
            prop_assert_eq!(outcome.output(), Some(output.as_str()));
        }
    }
}
