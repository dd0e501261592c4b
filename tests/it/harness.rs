//! A directory with a store in it, and the built binary.

use std::time::SystemTime;

use draftq::{Draft, DraftMetadata, DraftSourceSurface};

/// A draft of this text, from the command line, of this moment.
pub fn draft(text: &str) -> Draft {
    Draft::with_metadata(
        text.to_owned(),
        DraftMetadata::new(DraftSourceSurface::Cli, whole_ms(SystemTime::now())),
    )
}

/// A time as a store keeps it.
fn whole_ms(time: SystemTime) -> SystemTime {
    draftq::clock::from_unix_ms(draftq::clock::unix_ms(time))
}
