//! The SQL conditions of a filter.

use rusqlite::ToSql;

use crate::filter::DraftFilter;

/// The values of named parameters.
pub(super) type Values = Vec<(&'static str, Box<dyn ToSql>)>;

/// The conditions on a row of `drafts`, each beginning with AND, and their values. They concern
/// columns that never change.
pub(super) fn conditions(filter: &DraftFilter) -> (String, Values) {
    let (mut conditions, mut values) = (String::new(), Values::new());
    let surface = filter.source_surface.map(|surface| surface.as_str().to_owned());
    let parts = [
        (" AND drafts.source_agent = :agent", ":agent", &filter.source_agent),
        (" AND drafts.source_project = :project", ":project", &filter.source_project),
        (" AND drafts.source_surface = :surface", ":surface", &surface),
        (
            " AND CASE WHEN json_valid(drafts.context_tags) THEN EXISTS \
             (SELECT 1 FROM json_each(drafts.context_tags) WHERE value = :tag) END",
            ":tag",
            &filter.tag,
        ),
    ];
    for (condition, name, value) in parts {
        if let Some(value) = value {
            conditions.push_str(condition);
            values.push((name, Box::new(value.clone())));
        }
    }
    (conditions, values)
}

/// These values as the parameters of a statement.
pub(super) fn parameters(values: &Values) -> Vec<(&'static str, &dyn ToSql)> {
    values.iter().map(|(name, value)| (*name, value.as_ref())).collect()
}
