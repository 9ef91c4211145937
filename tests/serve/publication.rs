//! A small published image, and sessions of it.

use std::path::Path;
use std::time::Duration;

use vmstream::block::Geometry;
use vmstream::gate::Op;
use vmstream::session::{Access, Recording, Session, Subject, WallTime, file};
use vmstream::tree::TreeBuilder;

use crate::harness::sample;

/// Size of the image: the last block is a short one.
pub const SIZE: usize = (1 << 20) - 1000;
const BLOCK: usize = 4096;

/// Publishes an image as `NAME.vmp` in `site`; answers its root hash.
pub fn publish(site: &Path, name: &str) -> String {
    let bytes = sample(SIZE);
    let mut builder = TreeBuilder::new(geometry());
    bytes.chunks(BLOCK).for_each(|block| builder.block(block));
    let (tree, root) = builder.finish().unwrap();
    let root = root.to_string();
    let short = &root[..12];
    std::fs::write(site.join(format!("{name}-{short}.raw")), &bytes).unwrap();
    std::fs::write(site.join(format!("{name}-{short}.vmt")), &tree).unwrap();
    let pointer = format!(
        "vmstream 1\nsize {SIZE}\nblock {BLOCK}\nimage {name}-{short}.raw\ntree {name}-{short}.vmt {}\nroot {root}\n\
         sessions sessions/{name}\n",
        tree.len()
    );
    std::fs::write(site.join(format!("{name}.vmp")), pointer).unwrap();
    root
}

fn geometry() -> Geometry {
    Geometry::new(SIZE as u64, BLOCK as u64).unwrap()
}

/// A session file of the image with this root, in which the guest reads these blocks.
pub fn session(root: &str, blocks: &[u64]) -> Vec<u8> {
    let access = |(n, block): (u64, &u64)| Access {
        at: Duration::from_millis(n),
        op: Op::Read,
        offset: block * BLOCK as u64,
        length: 100,
        stalled: Duration::from_millis(n % 2),
    };
    let accesses = (0..).zip(blocks).map(access).collect();
    let marks = vec![(Duration::from_millis(1), "a secret mark".to_owned())];
    let session = Session { geometry: geometry(), accesses, marks };
    let subject = Subject {
        validator: Some(format!("root:{root}")),
        started: Some(WallTime::now()),
        ..Subject::nameless(geometry())
    };
    file::encode(&Recording { subject, session, lost_bytes: 0 })
}
