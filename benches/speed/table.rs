//! The tables that the benches print.

use std::fmt::Display;

/// A table with a title, a line for each figure and a last column that says what was promised.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Prints the title and keeps the heads of the columns.
    pub fn new(title: &str, heads: &[&str]) -> Self {
        println!("\n{title}");
        Self { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    /// Adds a line.
    pub fn row(&mut self, cells: &[&dyn Display]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column| self.rows.iter().filter_map(|row| row.get(column)).map(|c: &String| c.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // The first and the last column are words, the others numbers.
                let cell =
                    if at == 0 || at + 1 == columns { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
                line.push_str("  ");
                line.push_str(&cell);
            }
            println!("{}", line.trim_end());
        }
    }
}

/// A number with so many digits after the point.
pub fn number(value: f64, digits: usize) -> String {
    format!("{value:.digits$}")
}

/// A promise of at most `limit`, and whether `value` keeps it.
pub fn at_most(value: f64, limit: f64) -> String {
    format!("<= {limit}: {}", verdict(value <= limit))
}

/// A promise of at least `limit`, and whether `value` keeps it.
pub fn at_least(value: f64, limit: f64) -> String {
    format!(">= {limit}: {}", verdict(value >= limit))
}

fn verdict(kept: bool) -> &'static str {
    if kept { "kept" } else { "MISSED" }
}
