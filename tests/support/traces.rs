//! Made-up sessions in their text form: a start that is always the same, then tasks, each with files of its own.
//!
//! Repeatable: the same seed and tasks make the same text. The seed moves the times a little, skips a few accesses and
//! swaps neighbours, as real sessions of the same work differ.

use std::fmt::Write as _;

/// Size of the image.
pub const IMAGE_BYTES: u64 = 1 << 30;
/// Blocks from the start of one task's area to the next one's.
const TASK_BLOCKS: u64 = 8192;
/// Accesses of the start, and of a task.
const ACCESSES: u64 = 60;

/// splitmix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// The first block of a task, which every session of the task reads. The start lies before all tasks.
pub fn first_block(task: u64) -> u64 {
    (task + 1) * TASK_BLOCKS
}

/// A session of these tasks, at most 30 different ones.
pub fn trace(seed: u64, tasks: &[u64]) -> String {
    let mut text = format!("# vmtrace 1 size={IMAGE_BYTES} block=4096\n");
    let mut dice = Dice(seed);
    let mut at_us = 1000;
    for first in std::iter::once(0).chain(tasks.iter().map(|&task| first_block(task))) {
        // Where a task's files lie and how long they are is the same in every session.
        let mut layout = Dice(first);
        let mut place = first;
        let mut steps = Vec::new();
        for _ in 0..ACCESSES {
            let blocks = 1 + layout.below(6);
            steps.push((place, blocks, layout.below(12_000)));
            // A file goes on, or another one begins elsewhere in the area.
            place = if layout.below(3) > 0 { place + blocks } else { first + 16 + layout.below(TASK_BLOCKS - 600) };
        }
        for at in 2..steps.len() {
            if dice.below(12) == 0 {
                steps.swap(at - 1, at);
            }
        }
        for (number, &(place, blocks, pause_us)) in steps.iter().enumerate() {
            at_us += 200 + pause_us + dice.below(1500);
            if number == 0 || dice.below(25) > 0 {
                let _ = writeln!(text, "{at_us} R {} {}", place * 4096, blocks * 4096);
            }
        }
        // The guest writes what it made, over blocks that nobody reads, and thinks about what to do next.
        let _ = writeln!(text, "{} W {} 8192", at_us + 500, (first + TASK_BLOCKS - 100) * 4096);
        at_us += 400_000 + dice.below(600_000);
    }
    text
}
