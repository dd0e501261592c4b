//! What a program says on its standard output.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ProcessorError;
use crate::processor::{MAX_DELAY, Outcome};
use crate::state::DraftProcessingDecision;

/// Longest note that a program may give: 64 KiB, in bytes of UTF-8.
pub const MAX_NOTE_BYTES: usize = 64 * 1024;

/// The outcome that the last non-empty line of this output gives, or `None` if that line is not
/// one that decides.
pub(super) fn last(stdout: &[u8]) -> Result<Option<Outcome>, ProcessorError> {
    let mut lines = stdout.rsplit(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    lines.find(|line| !line.is_empty()).map_or(Ok(None), decide)
}

/// The outcome that this line gives, or `None` if it is no JSON object with a `decision`.
fn decide(line: &[u8]) -> Result<Option<Outcome>, ProcessorError> {
    // Some programs put a byte order mark before their first line.
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    if line == b"}" {
        return Err(protocol(
            "the last line of the program's output is a lone }: an answer must be on one line",
        ));
    }
    if !line.starts_with(b"{") {
        return Ok(None);
    }
    let line = str::from_utf8(line).map_err(|_| protocol("the program's answer is not UTF-8"))?;
    let reply: Reply<'_> = serde_json::from_str(line).map_err(|error| {
        protocol(match error.classify() {
            serde_json::error::Category::Data => "the program's answer has a key twice",
            serde_json::error::Category::Eof => "the program's answer is JSON that ends too early",
            _ => "the program's answer begins with { and is not valid JSON",
        })
    })?;
    reply.decision.map(|decision| reply.outcome(decision)).transpose()
}

fn protocol(message: &str) -> ProcessorError {
    ProcessorError::new("protocol", message)
}

/// The keys that mean something. Their values are looked at only once there is a decision: a
/// program's last line may be a line of some other JSON log.
#[derive(Deserialize)]
struct Reply<'a> {
    // A null is "absent" for the others, but no decision.
    #[serde(borrow, default, deserialize_with = "even_null")]
    decision: Option<&'a RawValue>,
    #[serde(borrow)]
    note: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    retry_after_secs: Option<&'a RawValue>,
    #[serde(borrow)]
    hold_secs: Option<&'a RawValue>,
}

fn even_null<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

impl Reply<'_> {
    fn outcome(&self, decision: &RawValue) -> Result<Outcome, ProcessorError> {
        let decision = serde_json::from_str::<String>(decision.get())
            .ok()
            .and_then(|name| DraftProcessingDecision::parse(&name))
            .ok_or_else(|| {
                protocol(
                    "the program's decision is none of accepted, skipped, failed, quarantined and deferred",
                )
            })?;
        let mut outcome = Outcome::new(decision);
        if let Some(note) = self.note {
            let note: String = serde_json::from_str(note.get())
                .map_err(|_| protocol("the program's note is not a string"))?;
            if note.len() > MAX_NOTE_BYTES {
                let message = format!("the program's note has more than {MAX_NOTE_BYTES} bytes");
                return Err(protocol(&message));
            }
            outcome = outcome.with_note(note);
        }
        if let Some(output) = self.output {
            let refused = || {
                protocol(
                    "the program's output is nested too deeply, or has a number or a string that JSON readers refuse",
                )
            };
            // Raw JSON is checked for its grammar only. What passes here, others can read too.
            serde_json::from_str::<Value>(output.get()).map_err(|_| refused())?;
            outcome = outcome.with_output(&output).map_err(|_| refused())?;
        }
        if let Some(secs) = self.retry_after_secs {
            outcome = outcome.with_retry_after(delay(secs, "retry_after_secs")?);
        }
        if let Some(secs) = self.hold_secs {
            outcome = outcome.with_hold(delay(secs, "hold_secs")?);
        }
        Ok(outcome)
    }
}

/// A number of seconds, at most [`MAX_DELAY`].
fn delay(secs: &RawValue, key: &str) -> Result<Duration, ProcessorError> {
    let wrong = || protocol(&format!("the program's {key} is not a number of seconds from 0 up"));
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
    use proptest::prelude::*;

    use super::*;

    fn outcome(stdout: &str) -> Outcome {
        last(stdout.as_bytes()).unwrap().unwrap()
    }

    #[track_caller]
    fn refused(stdout: impl AsRef<[u8]>) -> String {
        let error = last(stdout.as_ref()).unwrap_err();
        assert_eq!(error.class(), "protocol");
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
        let stdout =
            "log\n{\"decision\":\"accepted\"}\r\n \t {\"decision\":\"skipped\"} \r\n\n  \n";
        assert_eq!(outcome(stdout).decision(), DraftProcessingDecision::Skipped);
        let marked = "\u{feff}{\"decision\":\"failed\"}";
        assert_eq!(outcome(marked).decision(), DraftProcessingDecision::Failed);
    }

    #[test]
    fn what_is_no_answer_is_passed_over() {
        for stdout in [
            "",
            "\n \r\n",
            "done",
            "{\"decision\":\"failed\"}\ndone",
            "{}",
            r#"{"level":"info","note":5,"output":[],"retry_after_secs":"soon"}"#,
            r#"{"Decision":"failed"}"#,
            r#"["decision"]"#,
            "null",
            "true",
            "5",
            "\"decision\"",
            "so {far}",
        ] {
            assert_eq!(last(stdout.as_bytes()).unwrap(), None, "{stdout}");
        }
        assert_eq!(last(b"{\"decision\":\"failed\"}\n\xff\xfe").unwrap(), None);
        // Only the last line has to be UTF-8.
        assert!(last(b"\xff\xfe\n{\"decision\":\"failed\"}").unwrap().is_some());
    }

    #[test]
    fn a_broken_answer_is_never_passed_over() {
        for stdout in [
            r#"{"decision":"quarantined""#,
            r#"{"decision":"quarantined"} {}"#,
            r#"{"decision":"quarantined"},"#,
            r#"{'decision':'quarantined'}"#,
            "{decision:quarantined}",
            "{",
            "{\n  \"decision\": \"quarantined\"\n}\n",
            r#"{"decision":"failed","decision":"accepted"}"#,
            r#"{"decision":"failed","note":"a","note":"b"}"#,
        ] {
            refused(stdout);
        }
        refused(b"{\"decision\":\"quarantined\",\"note\":\"caf\xe9\"}");
        refused(b"{\"caf\xe9\":\"\",\"decision\":\"quarantined\"}");
    }

    #[test]
    fn all_keys_are_taken_over() {
        let outcome = outcome(
            r#"{"x":1,"decision":"deferred","note":"n\u0000\n","output":{"b":1.50,"a":[ ]},"retry_after_secs":90,"hold_secs":2.5}"#,
        );
        assert_eq!(outcome.decision(), DraftProcessingDecision::Deferred);
        assert_eq!(outcome.note(), Some("n\0\n"));
        assert_eq!(outcome.output(), Some(r#"{"b":1.50,"a":[ ]}"#));
        assert_eq!(outcome.retry_after(), Some(Duration::from_secs(90)));
        assert_eq!(outcome.hold(), Some(Duration::from_millis(2500)));
    }

    #[test]
    fn null_is_absent_but_no_decision() {
        let line = r#"{"decision":"failed","note":null,"output":null,"retry_after_secs":null,"hold_secs":null}"#;
        assert_eq!(outcome(line), Outcome::new(DraftProcessingDecision::Failed));
        refused(r#"{"decision":null}"#);
    }

    #[test]
    fn wrong_types_and_values_are_refused() {
        for decision in [r#""Accepted""#, r#""processing""#, r#""""#, "1", "true", "[]", "{}"] {
            refused(format!(r#"{{"decision":{decision}}}"#));
        }
        for rest in [
            r#""note":5"#,
            r#""note":["a"]"#,
            r#""note":"\ud800""#,
            r#""output":"\udc00""#,
            r#""output":1e999"#,
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
        // Keys that mean nothing are not looked into, at whatever depth.
        let ignored = format!(r#"{{"decision":"failed","x":{}}}"#, nested(500_000));
        assert_eq!(outcome(&ignored).decision(), DraftProcessingDecision::Failed);
    }

    #[test]
    fn a_message_does_not_quote_the_answer() {
        for stdout in [
            r#"{"decision":"canary"}"#,
            r#"{"decision":"failed","note":{"canary":1}}"#,
            r#"{"decision":"failed","retry_after_secs":"canary"}"#,
            r#"{"decision":"failed","canary"}"#,
        ] {
            let message = refused(stdout);
            assert!(!message.contains("canary"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(stdout in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = last(&stdout);
            let _ = last(&[br#"{"decision":"failed","output":"#.as_slice(), &stdout, b"}"].concat());
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
