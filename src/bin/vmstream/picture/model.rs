//! The picture of a model: where in the image its blocks lie, and the main ways through its sequences.

use vmstream::error::Result;
use vmstream::model::Model;

use super::{flow, heat, name, sheet};
use crate::progress::size;

/// Width and height of the sheet, in pixels.
const SIZE: (u32, u32) = (1480, 1410);
/// Height of the heat map with its caption, in pixels.
const HEAT: u32 = 590;

/// Draws the model that was read from `file`.
pub fn draw(model: &Model, file: &str) -> Result<String> {
    let blocks: u64 = model.sequences().iter().map(|sequence| u64::from(sequence.blocks)).sum();
    let more = format!(
        "image of {}; {} sessions learnt, {} followed; {blocks} blocks of {} in {} sequences",
        size(model.geometry().size()),
        model.learnt().sessions,
        model.paths().len(),
        size(model.geometry().block_bytes()),
        model.sequences().len(),
    );
    sheet(SIZE, &format!("What {} has learnt", name(file)), &more, |area| {
        let (above, below) = area.split_vertically(HEAT);
        heat::draw(&above, model)?;
        flow::draw(&below, model)
    })
}
