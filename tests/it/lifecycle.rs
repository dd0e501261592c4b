//! What a run promises beyond the file version.

use crate::harness::draft;

#[test]
fn placeholder() {
    let _ = draft("x");
}
