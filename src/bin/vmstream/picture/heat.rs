//! The heat map: where in the image the blocks lie that sessions use.
//!
//! The image is laid out as text is: from left to right, row below row. A cell is a power of two of bytes, chosen so that
//! at most [`ROWS_MAX`] rows come of it, and has the colour of its most used block; with the mean instead of the most, a
//! file of which every guest reads one block would fade into the neighbours that nobody reads.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use vmstream::model::{Model, SequenceId};

use super::raster::Raster;
use super::{Area, Drawn, FAINT, SHARES, TEXT, legend, share_step, style, text};
use crate::progress::size;

/// Cells in a row: with a cell of a power of two of bytes a row is one as well, and its labels are round.
const COLUMNS: u64 = 256;
/// Most rows.
const ROWS_MAX: u64 = 64;
/// Width of a cell, in pixels.
const CELL: i32 = 5;
/// Left edge, leaving room for the labels of the rows.
const LEFT: i32 = 100;
/// Upper edge, leaving room for the caption, the legend and the labels of the columns.
const TOP: i32 = 75;
/// Height of all rows at most, in pixels.
const HEIGHT: i32 = 480;

/// Bytes in a cell of an image.
fn cell_bytes(image: u64, block: u64) -> u64 {
    image.div_ceil(COLUMNS * ROWS_MAX).next_power_of_two().max(block)
}

/// Marks the cells: 1 plus the index of the share's step.
fn raster(model: &Model, cell: u64) -> Raster {
    let geometry = model.geometry();
    let rows = geometry.size().div_ceil(cell * COLUMNS);
    let mut raster = Raster::new(COLUMNS as usize, rows as usize);
    for (number, sequence) in (0..).zip(model.sequences()) {
        let id = SequenceId(number);
        if model.places(id).is_empty() {
            continue;
        }
        let mark = share_step(model.share(id).into()) as u8 + 1;
        for run in &sequence.runs {
            let first = geometry.offset(*run) / cell;
            let last = ((run.end.0 - 1) << geometry.block_shift()) / cell;
            for at in first..=last {
                raster.set((at % COLUMNS) as usize, (at / COLUMNS) as usize, mark);
            }
        }
    }
    raster
}

/// Draws the heat map.
pub fn draw(area: &Area, model: &Model) -> Drawn {
    let image = model.geometry();
    let cell = cell_bytes(image.size(), image.block_bytes());
    let raster = raster(model, cell);
    let rows = raster.rows() as i32;
    let tall = (HEIGHT / rows).clamp(CELL, 4 * CELL);
    let caption = format!(
        "Where in the image: rows of {} from top to bottom, each cell {} with the share of its most used block",
        size(cell * COLUMNS),
        size(cell)
    );
    text(area, (LEFT, 0), TEXT + 3, HPos::Left, &caption)?;
    let mut entries = vec![(FAINT, "not used")];
    entries.extend(SHARES.map(|(_, colour, meaning)| (colour, meaning)));
    legend(area, (LEFT, 26), &entries)?;

    // The last row ends where the image does.
    let cells = image.size().div_ceil(cell) as i32;
    let columns = COLUMNS as i32;
    let ground = |row: i32, rows: i32, to: i32| {
        let corners = [(LEFT, TOP + row * tall), (LEFT + to * CELL, TOP + (row + rows) * tall)];
        area.draw(&Rectangle::new(corners, FAINT.filled()))
    };
    ground(0, cells / columns, columns)?;
    ground(cells / columns, 1, cells % columns)?;
    for run in raster.runs() {
        let (row, from, to) = (run.row as i32, run.from as i32, run.to as i32);
        let corners = [(LEFT + from * CELL, TOP + row * tall), (LEFT + to * CELL, TOP + (row + 1) * tall)];
        area.draw(&Rectangle::new(corners, SHARES[usize::from(run.mark) - 1].1.filled()))?;
    }
    labels(area, cell, rows, tall)
}

/// The offsets of rows on the left, and what to add for the columns above.
fn labels(area: &Area, cell: u64, rows: i32, tall: i32) -> Drawn {
    let quarter = COLUMNS as i32 / 4;
    for column in (0..=4).map(|part| part * quarter) {
        let label = format!("+{}", size(cell * column as u64));
        let at = (LEFT + column * CELL, TOP - 4);
        area.draw(&Text::new(label, at, style(TEXT, HPos::Center, VPos::Bottom)))?;
    }
    // About every 60 pixels, by a power of two of rows, so that the labels are round as well.
    let step = (60 / tall).max(1) as usize;
    for row in (0..rows).step_by(step.next_power_of_two()) {
        let label = size(cell * COLUMNS * row as u64);
        let at = (LEFT - 8, TOP + row * tall + tall / 2);
        area.draw(&Text::new(label, at, style(TEXT, HPos::Right, VPos::Center)))?;
    }
    Ok(())
}
