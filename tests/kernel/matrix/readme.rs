//! README's table of what is gated, made from the rows.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::rows::GROUPS;
use super::situation::{SITUATIONS, Situation};
use super::table::{Cell, Route};
use crate::case::Case;

crate::command_tests![matrix_in_readme];

const BEGIN: &str = "<!-- matrix:begin -->";
const END: &str = "<!-- matrix:end -->";

/// README.md holds the table that the rows make. `JANUS_WRITE_README=1` writes it.
fn matrix_in_readme(_: &Case) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("README.md has a place for the matrix");
    let (found, after) = rest.split_once(END).expect("the place for the matrix has an end");
    let table = render();
    if std::env::var_os("JANUS_WRITE_README").is_some_and(|value| value == "1") {
        return fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    }
    assert!(
        found == table,
        "README.md's matrix is not what tests/kernel/matrix/rows.rs says: write it with\n  \
         JANUS_WRITE_README=1 cargo test -p janusd --test kernel -- matrix_in_readme"
    );
}

/// Reasons, numbered in the order in which a reader meets them.
#[derive(Default)]
struct Notes(Vec<&'static str>);

impl Notes {
    fn number(&mut self, reason: &'static str) -> usize {
        let at = self.0.iter().position(|known| *known == reason).unwrap_or_else(|| {
            self.0.push(reason);
            self.0.len() - 1
        });
        at + 1
    }

    fn symbol(&mut self, cell: Cell) -> String {
        let (symbol, reason) = match cell {
            Cell::Gated => return "✓".to_owned(),
            Cell::Soon(reason) => ("◔", reason),
            Cell::Open(reason) => ("✗", reason),
            Cell::Unsteady(reason) => ("?", reason),
            Cell::NotApplicable(reason) => ("–", reason),
        };
        format!("{symbol}<sup>{}</sup>", self.number(reason))
    }

    fn row(&mut self, route: &Route) -> String {
        let cells: Vec<String> = SITUATIONS.iter().map(|situation| self.symbol(route.expected(*situation))).collect();
        format!("| {} | {} |", route.title, cells.join(" | "))
    }
}

fn render() -> String {
    let mut notes = Notes::default();
    let mut text = String::from("\n");
    let titles: Vec<&str> = SITUATIONS.iter().copied().map(Situation::title).collect();
    let _infallible = writeln!(text, "| | {} |", titles.join(" | "));
    let _infallible = writeln!(text, "|---|{}", ":-:|".repeat(titles.len()));
    for group in GROUPS {
        let _infallible = writeln!(text, "| **{}** |{}", group.title, " |".repeat(titles.len()));
        for route in group.routes {
            let _infallible = writeln!(text, "{}", notes.row(route));
        }
    }
    let routes: usize = GROUPS.iter().map(|group| group.routes.len()).sum();
    let _infallible = writeln!(
        text,
        "\n{routes} routes in {} situations. ✓ denied at once; ◔ denied a moment later; ✗ not gated; ? not reliably \
         gated; – does not exist. DIR is `janusd guard --root DIR`; everything else is a container's.\n",
        titles.len()
    );
    for (at, reason) in notes.0.iter().enumerate() {
        let _infallible = writeln!(text, "{}. {reason}", at + 1);
    }
    text
}
