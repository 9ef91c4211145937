//! A new version of an image: what was learnt of the old one goes with its blocks.
//!
//! A file system that was made anew puts the same files elsewhere, so a block is looked for by its hash: where the new
//! version has the same contents, there the guest will want it. Contents that occur several times are matched in order of
//! place. What the new version has nowhere is forgotten, unless most blocks lie where they were: then the image was updated
//! in place, and what changed is likely what guests read as before, an inode table or a log, under new contents.

use std::collections::{HashMap, HashSet};

use vmstream::block::Block;
use vmstream::error::{Error, Result};
use vmstream::model::{Limits, Model, Trainer};
use vmstream::source::published::Pointer;
use vmstream::tree::{Hash, Tree};

use super::site::Desk;

/// The model of the version `before`, as one of the version that `tree` is of, with its record.
pub fn model(desk: &Desk, before: &Pointer, model: &[u8], tree: &Tree) -> Result<Vec<u8>> {
    let path = desk.path(&before.tree.name);
    let unreadable = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    let old = Tree::read(&std::fs::read(&path).map_err(unreadable)?, before.root)?;
    let places = places(&Model::read("the model", model)?, &old, tree);
    let place = |block: Block| places.get(&block).copied();
    let limits = Limits::default();
    let trainer = Trainer::resume_moved("the model", model, tree.geometry(), &place, limits)?;
    let (moved, file) = trainer.finish_file();
    let count = |model: &Model| model.sequences().iter().map(|sequence| u64::from(sequence.blocks)).sum::<u64>();
    log::info!("of what was learnt of the older version {} blocks are in the new one", count(&moved));
    Ok(file)
}

/// Where the blocks that a model speaks of lie in another version. No two have the same place.
fn places(model: &Model, old: &Tree, new: &Tree) -> HashMap<Block, Block> {
    let mut wanted: Vec<Block> =
        model.sequences().iter().flat_map(|sequence| &sequence.runs).flat_map(|run| run.iter()).collect();
    wanted.sort_unstable();
    let mut places = HashMap::with_capacity(wanted.len());
    let mut taken = HashSet::with_capacity(wanted.len());
    // First those that lie where they were, whatever else has the same contents; zeroes among them.
    let (mut searched, mut lost) = (HashMap::<Hash, Vec<Block>>::new(), Vec::new());
    for &block in &wanted {
        if !new.geometry().all().contains(block) {
            if let Some(hash) = old.hash(block) {
                searched.entry(hash).or_default().push(block);
            }
        } else if old.hash(block) == new.hash(block) {
            places.insert(block, block);
            taken.insert(block);
        } else if let Some(hash) = old.hash(block) {
            searched.entry(hash).or_default().push(block);
        } else {
            lost.push(block); // a hole that is none any more
        }
    }
    let stayed = places.len();
    // What is searched is taken from the end, so that the first is matched first.
    searched.values_mut().for_each(|blocks| blocks.reverse());
    for block in new.holes().used_in(new.geometry().all()).flat_map(|run| run.iter()) {
        if taken.contains(&block) {
            continue;
        }
        let found = new.hash(block).and_then(|hash| searched.get_mut(&hash)?.pop());
        if let Some(from) = found {
            places.insert(from, block);
            taken.insert(block);
        }
    }
    if stayed * 2 > wanted.len() {
        lost.extend(searched.into_values().flatten());
        for block in lost {
            if new.geometry().all().contains(block) && taken.insert(block) {
                places.insert(block, block);
            }
        }
    }
    places
}
