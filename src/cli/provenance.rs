//! Where drafts came from: the options of `submit` and `sweep`.

use std::time::SystemTime;

use clap::Args;
use draftq::{DraftMetadata, DraftSourceSurface};

use super::arguments::{surface, utf8_argument};

#[derive(Debug, Args)]
#[command(next_help_heading = "Where drafts came from")]
pub struct Provenance {
    /// The kind of source they came from.
    #[arg(long, value_name = "SURFACE", value_parser = surface)]
    pub(super) source_surface: Option<DraftSourceSurface>,
    /// The agent that wrote them.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    pub(super) agent: Option<String>,
    /// The project they belong to.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    pub(super) project: Option<String>,
    /// The person on whose behalf they were written.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    pub(super) operator: Option<String>,
    /// A free label; may be given several times.
    #[arg(long = "tag", value_name = "TAG", allow_hyphen_values = true)]
    #[arg(value_parser = utf8_argument())]
    pub(super) tags: Vec<String>,
}

impl Provenance {
    /// The metadata of a draft that is submitted now.
    pub fn metadata(&self, default_surface: DraftSourceSurface) -> DraftMetadata {
        let surface = self.source_surface.unwrap_or(default_surface);
        DraftMetadata {
            source_agent: self.agent.clone(),
            source_project: self.project.clone(),
            operator: self.operator.clone(),
            context_tags: self.tags.clone(),
            ..DraftMetadata::new(surface, SystemTime::now())
        }
    }
}
