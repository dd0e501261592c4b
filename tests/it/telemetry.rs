//! The records of a run for a `tracing` subscriber: the names of the file version, and per draft
//! one event.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use draftq::{
    Draft, DraftProcessingDecision, DraftProcessor, DraftStore, LibrarianError, run_once,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::harness::draft;

/// A field's value, with the type that it was recorded as.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    U64(u64),
    Text(String),
    Other(String),
}

type Fields = BTreeMap<&'static str, Value>;

#[derive(Debug, Default)]
struct Seen {
    /// Target and name of each span, in order of appearance.
    spans: Vec<(&'static str, &'static str)>,
    /// The declared fields of the run's span, and what was recorded last.
    declared: Vec<&'static str>,
    recorded: Fields,
    /// How often fields of the run's span were recorded.
    records: usize,
    /// Target, fields and the spans around it.
    events: Vec<(&'static str, Fields, Vec<&'static str>)>,
}

#[derive(Clone, Default)]
struct Watcher(Arc<Mutex<Seen>>);

struct Reader<'a>(&'a mut Fields);

impl Visit for Reader<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name(), Value::U64(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), Value::Text(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name(), Value::Other(value.to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), Value::Text(format!("{value:?}")));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Watcher {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let mut seen = self.0.lock().unwrap();
        let metadata = attributes.metadata();
        seen.spans.push((metadata.target(), metadata.name()));
        seen.declared = metadata.fields().iter().map(|field| field.name()).collect();
        attributes.record(&mut Reader(&mut seen.recorded));
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut seen = self.0.lock().unwrap();
        seen.records += 1;
        values.record(&mut Reader(&mut seen.recorded));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Reader(&mut fields));
        let scope = context.event_scope(event).into_iter().flatten().map(|span| span.name());
        let scope = scope.collect();
        self.0.lock().unwrap().events.push((event.metadata().target(), fields, scope));
    }
}

/// Decides by the first word of the text.
struct FirstWord;

impl DraftProcessor for FirstWord {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        match draft.raw_text().split(' ').next() {
            Some("skip") => Ok(DraftProcessingDecision::Skipped),
            Some("break") => Err(LibrarianError::NotYetImplemented { component: "a decision" }),
            _ => Ok(DraftProcessingDecision::Accepted),
        }
    }
}

/// The records of a run over these drafts, and its result.
fn watch(texts: impl IntoIterator<Item = String>) -> (Seen, Result<(), LibrarianError>) {
    let directory = tempfile::tempdir().unwrap();
    let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
    let drafts: Vec<Draft> = texts.into_iter().map(|text| draft(&text)).collect();
    store.submit_many(&drafts).unwrap();
    let watcher = Watcher::default();
    let subscriber = tracing_subscriber::registry().with(watcher.clone());
    let result = tracing::subscriber::with_default(subscriber, || {
        run_once(&store, &mut FirstWord, SystemTime::now(), Duration::from_secs(900))
    });
    let seen = std::mem::take(&mut *watcher.0.lock().unwrap());
    (seen, result.map(drop))
}

const COUNTERS: [&str; 9] = [
    "recovered_processing",
    "pending_seen",
    "claimed",
    "accepted",
    "skipped",
    "failed",
    "quarantined",
    "deferred",
    "claim_misses",
];

fn counters(numbers: [u64; 9]) -> Fields {
    COUNTERS.into_iter().zip(numbers.map(Value::U64)).collect()
}

#[test]
fn a_run_is_a_span_with_its_counts() {
    let (seen, result) = watch(["keep CANARY".to_owned(), "skip CANARY".to_owned()]);
    result.unwrap();
    assert_eq!(seen.spans, [("mimir.librarian.run", "mimir.librarian.run")]);
    assert_eq!(seen.declared, COUNTERS);
    assert_eq!(seen.recorded, counters([0, 2, 2, 1, 1, 0, 0, 0, 0]), "all of them u64");
    assert!(!format!("{seen:?}").contains("CANARY"));
}

#[test]
fn each_draft_is_an_event() {
    let texts = ["keep CANARY", "skip CANARY"];
    let (seen, _) = watch(texts.map(str::to_owned));
    let text = |text: &str| Value::Text(text.to_owned());
    let expected = texts.iter().zip(["accepted", "skipped"]).map(|(draft_text, decision)| {
        let fields = Fields::from([
            ("message", text("draft processed")),
            ("draft_id", Value::Text(draft(draft_text).id().to_hex())),
            ("decision", text(decision)),
            ("final_state", text(decision)),
        ]);
        ("mimir.librarian.draft_processed", fields, vec!["mimir.librarian.run"])
    });
    assert_eq!(seen.events, expected.collect::<Vec<_>>());
}

#[test]
fn the_counts_are_recorded_when_a_run_ends_in_an_error() {
    let texts = ["keep this", "break here CANARY", "skip that"];
    let (seen, result) = watch(texts.map(str::to_owned));
    assert!(matches!(result, Err(LibrarianError::NotYetImplemented { .. })), "{result:?}");
    assert_eq!(seen.recorded, counters([0, 3, 2, 1, 0, 0, 0, 0, 0]));
    assert!(!format!("{seen:?}").contains("CANARY"));
}

#[test]
fn the_number_of_records_does_not_grow_with_the_queue() {
    let records = |drafts: usize| {
        let (seen, result) = watch((0..drafts).map(|number| format!("keep {number}")));
        result.unwrap();
        assert_eq!(seen.events.len(), drafts);
        seen.records
    };
    let few = records(1);
    assert!(few > 0);
    assert_eq!(records(60), few);
}
