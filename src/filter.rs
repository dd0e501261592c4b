//! Which drafts a runner claims.

use sha2::{Digest as _, Sha256};

use crate::metadata::DraftSourceSurface;

/// Which drafts a runner claims: those that pass every condition. Without a condition, all.
///
/// With filters, several processors share one inbox, and each claims its own drafts.
///
/// ```
/// use draftq::DraftFilter;
///
/// let filter = DraftFilter::default().source_project("billing").tag("handoff");
/// # assert!(!filter.is_empty());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DraftFilter {
    pub(crate) source_agent: Option<String>,
    pub(crate) source_project: Option<String>,
    pub(crate) source_surface: Option<DraftSourceSurface>,
    pub(crate) tag: Option<String>,
}

impl DraftFilter {
    /// Only drafts that this agent wrote.
    #[must_use]
    pub fn source_agent(self, agent: impl Into<String>) -> Self {
        Self { source_agent: Some(agent.into()), ..self }
    }

    /// Only drafts of this project.
    #[must_use]
    pub fn source_project(self, project: impl Into<String>) -> Self {
        Self { source_project: Some(project.into()), ..self }
    }

    /// Only drafts from this surface.
    #[must_use]
    pub fn source_surface(self, surface: DraftSourceSurface) -> Self {
        Self { source_surface: Some(surface), ..self }
    }

    /// Only drafts with this tag.
    #[must_use]
    pub fn tag(self, tag: impl Into<String>) -> Self {
        Self { tag: Some(tag.into()), ..self }
    }

    /// Whether every draft passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A number that stands for this filter in a file name, where its values must not be.
    pub(crate) fn key(&self) -> u64 {
        let mut hasher = Sha256::new();
        let surface = self.source_surface.map(DraftSourceSurface::as_str);
        let parts = [
            self.source_agent.as_deref(),
            self.source_project.as_deref(),
            surface,
            self.tag.as_deref(),
        ];
        for part in parts {
            match part {
                None => hasher.update([0]),
                Some(part) => {
                    hasher.update([1]);
                    hasher.update(part.len().to_le_bytes());
                    hasher.update(part.as_bytes());
                }
            }
        }
        let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hasher.finalize().into();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_differ_have_different_keys() {
        let none = DraftFilter::default();
        assert!(none.is_empty());
        let filters = [
            none.clone(),
            none.clone().source_agent("a"),
            none.clone().source_project("a"),
            none.clone().tag("a"),
            none.clone().source_agent(""),
            none.clone().source_agent("ab"),
            none.clone().source_agent("a").source_project("b"),
            none.clone().source_surface(DraftSourceSurface::Cli),
        ];
        for (place, filter) in filters.iter().enumerate() {
            for other in &filters[..place] {
                assert_ne!(filter.key(), other.key(), "{filter:?} {other:?}");
            }
            assert_eq!(filter.key(), filter.clone().key());
        }
    }
}
