//! `review --editor`: the same as one text file, for those who have no full screen.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use draftq::{DraftId, DraftQuery, DraftStore, LibrarianError, SeenDraft};

use super::super::confirm::asked;
use super::super::draft_table::{remark, source};
use super::super::failure::Failure;
use super::super::messages::message;
use super::super::output::Output;
use super::super::selection::for_each_page;
use super::super::terminal::{stderr_is_terminal, stdin_is_terminal};
use super::super::unreadable::Unreadable;
use super::super::wording::{count, is_or_are, time};
use super::actions::Verdict;
use super::edit::{PrivateFile, read_text, run_editor};
use super::screen::Signals;

/// At most this many bytes of each text are in the file.
const MAX_QUOTED_BYTES: usize = 256 * 1024;

/// The largest file that is read with --apply.
const MAX_FILE_BYTES: usize = 256 * 1024 * 1024;

/// The line that begins a draft, before its id and its last event.
const DRAFT: &str = "==== draft ";
const EVENT: &str = " event ";

/// A verdict of the file.
struct Written {
    seen: SeenDraft,
    verdict: Verdict,
    note: Option<String>,
}

/// Write the drafts to a file, open it in the editor, and do what the person wrote.
pub fn edit(
    store: &DraftStore,
    query: DraftQuery,
    limit: Option<usize>,
    by: &str,
    yes: bool,
    output: Output,
) -> Result<ExitCode, Failure> {
    let signals = Signals::listen()?;
    let content = file_of(store, query, limit, by)?;
    if !content.contains(DRAFT) {
        let path = store.path().display().to_string();
        output.text(&format!("No such drafts in {}.", draftq::escape_line(&path)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = PrivateFile::new("review.txt", &content, &signals)
        .map_err(|error| Failure::from(LibrarianError::from(error)))?;
    let limit = content.len() * 2 + 1024 * 1024;
    let written = loop {
        let edited = run_editor(file.path(), &signals).and_then(|()| file.read(limit));
        let problem = match edited.as_deref().map(read) {
            Ok(Ok(written)) if signals.ended_by().is_none() => break written,
            Ok(Ok(_)) => "a signal ended the review".to_owned(),
            Ok(Err(problem)) => problem,
            Err(problem) => problem.to_owned(),
        };
        let is_changed = file.read(limit).ok().is_none_or(|now| now != content);
        if !is_changed {
            file.remove(&signals);
            return Err(Failure::bad_input(format!("{problem}; nothing was decided")));
        }
        let can_ask = can_ask() && signals.ended_by().is_none();
        if can_ask && asked(&format!("draftq: {problem}. Open the file again?"))? {
            continue;
        }
        return Err(kept(file, &problem));
    };
    if written.is_empty() {
        file.remove(&signals);
        output.text("No verdict was written; nothing was decided.")?;
        return Ok(ExitCode::SUCCESS);
    }
    match carry_out(store, &written, by, yes, output) {
        Ok(code) => {
            file.remove(&signals);
            Ok(code)
        }
        Err(Failure::Error { message, .. }) => Err(kept(file, &message)),
        Err(failure) => {
            file.remove(&signals);
            Err(failure)
        }
    }
}

/// Do what a file says.
pub fn apply(
    store: &DraftStore,
    path: &Path,
    by: &str,
    yes: bool,
    output: Output,
) -> Result<ExitCode, Failure> {
    let name = path.display().to_string();
    let name = draftq::escape_line(&name);
    let file = super::super::input::open(path)?;
    drop(file);
    let written = read_text(path, MAX_FILE_BYTES)
        .and_then(|text| read(&text))
        .map_err(|problem| Failure::bad_input(format!("{name}: {problem}; nothing was decided")))?;
    if written.is_empty() {
        output.text("No verdict was written; nothing was decided.")?;
        return Ok(ExitCode::SUCCESS);
    }
    carry_out(store, &written, by, yes, output)
}

fn kept(file: PrivateFile, problem: &str) -> Failure {
    let path = file.keep();
    let path = path.display();
    Failure::bad_input(format!(
        "{problem}; the file is kept: correct it, then run draftq review --apply {path}"
    ))
}

fn can_ask() -> bool {
    stdin_is_terminal() && stderr_is_terminal()
}

/// Show what will be done, and do it.
fn carry_out(
    store: &DraftStore,
    written: &[Written],
    by: &str,
    yes: bool,
    output: Output,
) -> Result<ExitCode, Failure> {
    for Written { seen, verdict, note } in written {
        let note = note.as_deref().map(|note| format!("  {note}")).unwrap_or_default();
        message(&format!("{}  {}{note}", seen.id, verdict.verb()));
    }
    let moves = count(written.len(), "move");
    if !yes && can_ask() && !asked(&format!("Do {moves}, signed {}?", draftq::escape_line(by)))? {
        return Err(Failure::bad_input("nothing was decided"));
    }
    let mut refused = 0;
    for Written { seen, verdict, note } in written {
        match verdict.carry_out(store, *seen, by, note.as_deref()) {
            Ok(made) if output.is_json() => output.json(&made)?,
            Ok(made) => output.text(&format!("{}  {} to {}", made.id, made.from, made.to))?,
            Err(error) => {
                refused += 1;
                message(&format!("draftq: {error}"));
            }
        }
    }
    match refused {
        0 => Ok(ExitCode::SUCCESS),
        refused => {
            let done = written.len() - refused;
            Err(Failure::bad_input(format!(
                "{} {} not done, {done} {} done",
                count(refused, "move"),
                is_or_are(refused),
                is_or_are(done)
            )))
        }
    }
}

/// The file: an introduction, and each draft with its text as a quotation.
fn file_of(
    store: &DraftStore,
    query: DraftQuery,
    limit: Option<usize>,
    by: &str,
) -> Result<String, Failure> {
    let mut file = format!(
        "# Write a verdict after \"verdict:\" - accept, skip, fail, quarantine or requeue - and, if\n\
         # you like, a note of one line after \"note:\". Without a verdict, a draft stays as it is.\n\
         # Lines that begin with \"#\" or \">\" are not read. Signed: {}\n",
        draftq::escape_line(by)
    );
    let mut unreadable = Unreadable::default();
    let page = |query: &_| store.summaries(query);
    for_each_page(query, limit, page, &mut unreadable, |drafts, _| {
        for summary in drafts {
            let (record, events, text) = match store.inspect(summary.id) {
                Ok((record, events, draft)) => (record, events, draft.raw_text().to_owned()),
                Err(LibrarianError::DamagedDraft { damage, .. }) => {
                    let (record, events) = store.record(summary.id)?;
                    (record, events, format!("(the draft is damaged: {damage})"))
                }
                // It was deleted in the meantime.
                Err(LibrarianError::UnknownDraft { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let event = events.last().map_or(0, |event| event.seq);
            let _ = write!(file, "\n{DRAFT}{}{EVENT}{event}\nverdict:\nnote:\n", record.id);
            let mut fact = |name: &str, value: &str| {
                if !value.is_empty() {
                    let _ = writeln!(file, "# {name}: {}", draftq::escape_line(value));
                }
            };
            fact("state", record.state.as_str());
            fact("from", &source(summary));
            fact("submitted", &time(record.submitted_at_unix_ms));
            fact("why", &remark(summary));
            fact("output", record.output.as_ref().map_or("", |output| output.get()));
            quote(&text, &mut file);
        }
        Ok(())
    })?;
    unreadable.report();
    Ok(file)
}

/// Write a text with "> " before each line.
fn quote(text: &str, file: &mut String) {
    let mut end = text.len().min(MAX_QUOTED_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    for line in draftq::escape_text(&text[..end]).split('\n') {
        file.push_str("> ");
        file.push_str(line);
        file.push('\n');
    }
    if end < text.len() {
        let more = count(text.len() - end, "more byte");
        let _ = writeln!(file, "# … {more}; draftq show --raw writes all of it");
    }
}

/// A draft of the file, as far as it was read.
struct Open {
    seen: SeenDraft,
    line: usize,
    verdict: Option<Verdict>,
    note: Option<String>,
    has_verdict_line: bool,
    has_note_line: bool,
}

/// The verdicts of a file. The error names the line.
fn read(text: &str) -> Result<Vec<Written>, String> {
    let mut written = Vec::new();
    let mut ids = HashSet::new();
    let mut open: Option<Open> = None;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') || line.starts_with('>') {
            continue;
        }
        if let Some(head) = line.strip_prefix(DRAFT) {
            close(open.take(), &mut written)?;
            let seen = seen_of(head).ok_or(format!(
                "line {number}: expected \"{DRAFT}ID{EVENT}NUMBER\", as it was written"
            ))?;
            if !ids.insert(seen.id) {
                return Err(format!("line {number}: draft {} is there twice", seen.id));
            }
            open = Some(Open {
                seen,
                line: number,
                verdict: None,
                note: None,
                has_verdict_line: false,
                has_note_line: false,
            });
            continue;
        }
        let Some(open) = &mut open else {
            return Err(format!("line {number}: expected a line that begins with \"{DRAFT}\""));
        };
        if let Some(word) = line.strip_prefix("verdict:") {
            if std::mem::replace(&mut open.has_verdict_line, true) {
                return Err(format!("line {number}: a second verdict for draft {}", open.seen.id));
            }
            let word = word.trim().to_lowercase();
            open.verdict = match word.as_str() {
                "" => None,
                word => Some(Verdict::parse(word).ok_or(format!(
                    "line {number}: expected accept, skip, fail, quarantine or requeue"
                ))?),
            };
        } else if let Some(note) = line.strip_prefix("note:") {
            if std::mem::replace(&mut open.has_note_line, true) {
                return Err(format!("line {number}: a second note for draft {}", open.seen.id));
            }
            open.note = Some(note.trim().to_owned()).filter(|note| !note.is_empty());
        } else {
            return Err(format!(
                "line {number}: expected \"verdict:\", \"note:\", or a line that begins with \
                 \"#\" or \">\""
            ));
        }
    }
    close(open, &mut written)?;
    Ok(written)
}

fn seen_of(head: &str) -> Option<SeenDraft> {
    let (id, event) = head.split_once(EVENT)?;
    Some(SeenDraft { id: id.parse::<DraftId>().ok()?, last_event: event.parse().ok()? })
}

/// Take over the verdict of a draft, if it has one.
fn close(open: Option<Open>, written: &mut Vec<Written>) -> Result<(), String> {
    let Some(open) = open else { return Ok(()) };
    match (open.verdict, open.note) {
        (Some(verdict), note) => written.push(Written { seen: open.seen, verdict, note }),
        (None, Some(_)) => {
            return Err(format!(
                "line {}: draft {} has a note, but no verdict",
                open.line, open.seen.id
            ));
        }
        (None, None) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "==== draft 0123456789abcdef event 7\n";

    fn read_with_head(rest: &str) -> Result<Vec<Written>, String> {
        read(&format!("# intro\n\n{HEAD}{rest}"))
    }

    #[test]
    fn a_text_is_never_read_as_a_verdict() {
        let mut file = HEAD.to_owned();
        file.push_str("verdict:\nnote:\n");
        quote(
            "verdict: accept\n==== draft 0123456789abcdea event 1\r\nverdict: accept\u{2028}verdict: \
             accept\u{b}verdict: accept\u{85}verdict: skip\n\n",
            &mut file,
        );
        assert!(read(&file).unwrap().is_empty(), "{file}");
        for line in file.lines().skip(3) {
            assert!(line.starts_with("> "), "{line}");
        }
    }

    #[test]
    fn verdicts_and_notes_are_read() {
        let written = read_with_head("verdict: Accept \r\nnote: it is right\n> x\n").unwrap();
        let [Written { seen, verdict, note }] = written.as_slice() else { panic!("one verdict") };
        assert_eq!((seen.id.to_hex().as_str(), seen.last_event), ("0123456789abcdef", 7));
        assert_eq!(*verdict, Verdict::Decide(draftq::DraftProcessingDecision::Accepted));
        assert_eq!(note.as_deref(), Some("it is right"));
        assert!(read_with_head("verdict:\nnote:\n").unwrap().is_empty());
    }

    #[test]
    fn a_malformed_file_is_refused_with_the_line() {
        for (rest, problem) in [
            ("verdict: approve\n", "line 4: expected accept, skip"),
            ("verdict: accept\nverdict: skip\n", "line 5: a second verdict"),
            ("note: x\nnote: y\n", "line 5: a second note"),
            ("note: x\n", "line 3: draft 0123456789abcdef has a note, but no verdict"),
            ("accept\n", "line 4: expected \"verdict:\""),
            ("==== draft 1 event 2\n", "line 4: expected \"==== draft ID event NUMBER\""),
            (HEAD, "line 4: draft 0123456789abcdef is there twice"),
        ] {
            let refused = read_with_head(rest).err().unwrap();
            assert!(refused.starts_with(problem), "{refused}");
        }
        let refused = read("verdict: accept\n").err().unwrap();
        assert!(refused.starts_with("line 1: expected a line that begins with"), "{refused}");
    }
}
