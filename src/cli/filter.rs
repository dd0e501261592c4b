//! Which drafts `run` and `watch` claim.

use clap::Args;
use draftq::{DraftFilter, DraftSourceSurface};

use super::arguments::{surface, utf8_argument};
use super::failure::Failure;
use super::provenance::Provenance;

/// The filters of `watch`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Drafts to claim [default: all]")]
pub struct Filter {
    /// Only of this agent.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    agent: Option<String>,
    /// Only of this project.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    project: Option<String>,
    /// Only from this surface.
    #[arg(long, value_name = "SURFACE", alias = "source-surface", value_parser = surface)]
    surface: Option<DraftSourceSurface>,
    /// Only with this tag.
    #[arg(long, value_name = "TAG", allow_hyphen_values = true, value_parser = utf8_argument())]
    tag: Option<String>,
}

impl Filter {
    pub fn to_filter(&self) -> DraftFilter {
        filter(&self.agent, &self.project, self.surface, self.tag.as_ref())
    }
}

/// The filters of `run`. With --sweep, they describe the swept drafts instead, and the run claims
/// all drafts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Drafts to claim [default: all], or with --sweep their source")]
pub struct RunFilter {
    /// Only of this agent.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    agent: Option<String>,
    /// Only of this project.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    project: Option<String>,
    /// Only from this surface.
    #[arg(long, value_name = "SURFACE", visible_alias = "source-surface", value_parser = surface)]
    surface: Option<DraftSourceSurface>,
    /// Only with this tag. With --sweep it may be given several times.
    #[arg(long = "tag", value_name = "TAG", allow_hyphen_values = true)]
    #[arg(value_parser = utf8_argument())]
    tags: Vec<String>,
    /// Only with --sweep: the person on whose behalf the swept drafts were written.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    operator: Option<String>,
}

impl RunFilter {
    /// The filter of a run without --sweep.
    pub fn to_filter(&self) -> Result<DraftFilter, Failure> {
        if self.operator.is_some() {
            return Err(Failure::usage(
                "--operator describes the drafts of --sweep; give --sweep, or leave it out",
            ));
        }
        if self.tags.len() > 1 {
            return Err(Failure::usage("give one --tag to claim only the drafts with this tag"));
        }
        Ok(filter(&self.agent, &self.project, self.surface, self.tags.first()))
    }

    /// The provenance of the drafts of --sweep.
    pub fn to_provenance(&self) -> Provenance {
        Provenance {
            source_surface: self.surface,
            agent: self.agent.clone(),
            project: self.project.clone(),
            operator: self.operator.clone(),
            tags: self.tags.clone(),
        }
    }
}

fn filter(
    agent: &Option<String>,
    project: &Option<String>,
    surface: Option<DraftSourceSurface>,
    tag: Option<&String>,
) -> DraftFilter {
    let mut filter = DraftFilter::default();
    if let Some(agent) = agent {
        filter = filter.source_agent(agent);
    }
    if let Some(project) = project {
        filter = filter.source_project(project);
    }
    if let Some(surface) = surface {
        filter = filter.source_surface(surface);
    }
    if let Some(tag) = tag {
        filter = filter.tag(tag);
    }
    filter
}
