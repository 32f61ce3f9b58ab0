//! A table of results: aligned text, JSON, or Markdown from the same cells.

use serde_json::{Map, Value};

/// What stands in a table: how it is read, and what it is.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    value: Value,
}

impl Cell {
    /// A value with a text of its own, such as a number with its unit.
    pub fn new(text: impl Into<String>, value: impl Into<Value>) -> Cell {
        Cell {
            text: text.into(),
            value: value.into(),
        }
    }

    /// A number with `digits` after the point.
    pub fn number(value: f64, digits: usize) -> Cell {
        Cell::new(format!("{value:.digits$}"), value)
    }

    /// What is not there: a dash, and null in JSON.
    pub fn none() -> Cell {
        Cell::new("-", Value::Null)
    }

    /// Numbers stand to the right.
    fn is_right(&self) -> bool {
        self.value.is_number() || self.value.is_null()
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::new(text, text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::new(text.clone(), text)
    }
}

impl From<u64> for Cell {
    fn from(n: u64) -> Cell {
        Cell::new(n.to_string(), n)
    }
}

impl From<usize> for Cell {
    fn from(n: usize) -> Cell {
        Cell::from(n as u64)
    }
}

impl From<bool> for Cell {
    fn from(yes: bool) -> Cell {
        Cell::new(if yes { "yes" } else { "no" }, yes)
    }
}

/// Rows under named columns. The names are the keys of the JSON.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[&'static str]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: one cell per column.
    ///
    /// # Panics
    /// If the number of cells is not that of the columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.columns.len(), "one cell per column");
        self.rows.push(cells);
    }

    /// Prints the table, as JSON if asked: an array with one object per row.
    pub fn print(&self, json: bool) {
        if json {
            println!("{}", self.json());
        } else {
            print!("{}", self.text());
        }
    }

    /// Aligned columns, two spaces apart.
    pub fn text(&self) -> String {
        let widths = self.widths();
        let mut out = String::new();
        let heads = self.columns.iter().enumerate();
        let head: Vec<String> = heads
            .map(|(c, name)| pad(name, widths[c], self.is_right(c)))
            .collect();
        out.push_str(head.join("  ").trim_end());
        out.push('\n');
        for row in &self.rows {
            let cells: Vec<String> = (row.iter().zip(&widths))
                .map(|(cell, &width)| pad(&cell.text, width, cell.is_right()))
                .collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    /// A Markdown table.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
        let mut out = line(self.columns.clone());
        let rule = |c: usize| if self.is_right(c) { "---:" } else { "---" };
        out.push_str(&line((0..self.columns.len()).map(rule).collect()));
        for row in &self.rows {
            out.push_str(&line(row.iter().map(|cell| cell.text.as_str()).collect()));
        }
        out
    }

    /// An array with one object per row.
    pub fn json(&self) -> Value {
        let row = |cells: &Vec<Cell>| -> Value {
            let pairs = self.columns.iter().zip(cells);
            Value::Object(
                pairs
                    .map(|(name, cell)| ((*name).to_owned(), cell.value.clone()))
                    .collect::<Map<String, Value>>(),
            )
        };
        Value::Array(self.rows.iter().map(row).collect())
    }

    fn widths(&self) -> Vec<usize> {
        let longest = |c: usize| {
            let cells = self.rows.iter().map(|row| row[c].text.chars().count());
            cells.max().unwrap_or(0)
        };
        (self.columns.iter().enumerate())
            .map(|(c, name)| longest(c).max(name.chars().count()))
            .collect()
    }

    fn is_right(&self, column: usize) -> bool {
        self.rows.iter().all(|row| row[column].is_right())
    }
}

fn pad(text: &str, width: usize, right: bool) -> String {
    if right {
        format!("{text:>width$}")
    } else {
        format!("{text:<width$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_json_keeps_values() {
        let mut t = Table::new(&["name", "secs"]);
        t.row(vec!["a".into(), Cell::number(1.25, 1)]);
        t.row(vec!["longer".into(), Cell::none()]);
        assert_eq!(t.text(), "name    secs\na        1.2\nlonger     -\n");
        let json = r#"[{"name":"a","secs":1.25},{"name":"longer","secs":null}]"#;
        assert_eq!(t.json().to_string(), json);
        let markdown = "| name | secs |\n| --- | ---: |\n| a | 1.2 |\n| longer | - |\n";
        assert_eq!(t.markdown(), markdown);
    }
}
