//! A grid of cells, each with the loudest of the marks that were set in it.
//!
//! Tens of thousands of events fall on a few thousand places of a picture. What falls on the same place is merged here, and
//! neighbours that look the same become one run, so that a picture has a size that does not grow with what it shows.

/// A grid of cells without marks.
pub struct Raster {
    columns: usize,
    rows: usize,
    /// Row by row; 0 for no mark.
    marks: Vec<u8>,
}

/// Neighbours in a row with the same mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which row.
    pub row: usize,
    /// First column.
    pub from: usize,
    /// One past the last column.
    pub to: usize,
    /// Their mark, never 0.
    pub mark: u8,
}

impl Raster {
    /// A grid of so many cells.
    pub fn new(columns: usize, rows: usize) -> Self {
        Self { columns, rows, marks: vec![0; columns * rows] }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Marks a cell, unless it has a higher mark. What lies outside goes to the nearest edge.
    pub fn set(&mut self, column: usize, row: usize, mark: u8) {
        let (column, row) = (column.min(self.columns - 1), row.min(self.rows - 1));
        let cell = &mut self.marks[row * self.columns + column];
        *cell = mark.max(*cell);
    }

    /// All runs that have a mark, row by row.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (at, &mark) in self.marks.iter().enumerate().filter(|(_, mark)| **mark != 0) {
            let (row, from) = (at / self.columns, at % self.columns);
            match runs.last_mut() {
                Some(last) if last.row == row && last.to == from && last.mark == mark => last.to += 1,
                _ => runs.push(Run { row, from, to: from + 1, mark }),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_row_and_mark_are_one_run() {
        let mut raster = Raster::new(3, 2);
        for (column, row, mark) in [(1, 0, 2), (2, 0, 2), (0, 1, 2), (1, 1, 3), (1, 1, 1), (9, 9, 3)] {
            raster.set(column, row, mark);
        }
        let run = |row, from, to, mark| Run { row, from, to, mark };
        assert_eq!(raster.runs(), [run(0, 1, 3, 2), run(1, 0, 1, 2), run(1, 1, 3, 3)]);
        assert_eq!(Raster::new(1, 1).runs(), []);
    }
}
