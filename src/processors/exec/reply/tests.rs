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
    let keys: String = (0..MAX_KEYS + 1).map(|key| format!("\"{key}\":0,")).collect();
    let behind_many_keys = format!("{{{keys}\"decision\":\"quarantined\"}}");
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
        &behind_many_keys,
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
    // Earlier lines are searched for an answer at any depth.
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
