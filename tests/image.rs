//! The engine as a whole, over synthetic sources.

use vmstream::{Answer, Completion, Image, Op};

#[test]
fn a_missing_block_is_fetched_and_then_ready() {
    let image = Image::open(["source=pattern:1M", "fill=off"]).unwrap();
    image.block_wait(Op::Read, 4096, 4096).unwrap();
    let mut block = [0; 4096];
    image.read_local(4096, &mut block).unwrap();
    assert_eq!(image.block_needed(Op::Read, 4096, 4096, 7).unwrap(), Answer::Ready);
    let mut out = [Completion { tag: 0, result: 0 }; 4];
    assert_eq!(image.reap(&mut out), 0);
}
