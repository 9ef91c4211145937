//! Model and packs beside the image, and how they go over to a new version of it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use vmstream::block::{Block, BlockRange};
use vmstream::model::Model;
use vmstream::packs::{HEADER_BYTES, Header, Index};
use vmstream::session;
use vmstream::source::published::Frames;

use crate::support::*;

const MIB: u64 = 256; // in blocks of 4096

/// A recorded session of an image of `mib` MiB, of runs of blocks that are read one after the other.
fn session_file(path: &Path, mib: u64, runs: &[Range<u64>]) {
    let mut text = format!("# vmtrace 1 size={} block=4096\n", mib << 20);
    for (at, run) in runs.iter().enumerate() {
        text += &format!("{} R {} {}\n", 1000 * (at + 1), run.start * 4096, (run.end - run.start) * 4096);
    }
    let recording = session::text::parse_recording("test", text.as_bytes()).unwrap();
    std::fs::write(path, session::file::encode(&recording)).unwrap();
}

/// What a guest does that boots: blocks here and there, zeroes among them.
const BOOT: [Range<u64>; 4] = [0..20, 512..540, 300..301, 600..630];

/// The model in the published packs, after every frame was unpacked and checked.
fn learnt(site: &Path, seen: &Seen) -> Model {
    let packs = seen.pointer.packs.as_ref().expect("packs are published");
    let bytes = std::fs::read(site.join(&packs.name)).unwrap();
    let header = Header::decode("p", &bytes).unwrap();
    assert_eq!(header.root, seen.pointer.root);
    let part = |range: Range<u64>| &bytes[range.start as usize..range.end as usize];
    assert_eq!(header.packed().end, bytes.len() as u64);
    assert!(header.start().start == HEADER_BYTES as u64);
    let model = Model::read("m", part(header.model())).unwrap();
    let index = Index::of_file("p", &header, part(header.index()), &model, seen.tree.holes()).unwrap();
    let mut packed = 0;
    for frame in 0..index.count() {
        let (offset, lengths) = index.extent(frame..frame + 1);
        let frame_bytes = part(offset..offset + u64::from(lengths[0]));
        let mut take = |range: BlockRange, bytes: &[u8]| {
            let geometry = seen.pointer.geometry;
            let from = geometry.offset(range) as usize;
            assert_eq!(bytes, &seen.image[from..from + bytes.len()]);
            packed += range.len();
        };
        index.unpack(frame, frame_bytes, &seen.tree, &mut take).unwrap();
    }
    let sequences = model.sequences().iter().flat_map(|sequence| &sequence.runs);
    let used: u64 = sequences.flat_map(|&run| seen.tree.holes().used_in(run)).map(|run| run.len()).sum();
    assert_eq!(packed, used, "all that is learnt and no zeroes are packed");
    model
}

fn knows(model: &Model, blocks: Range<u64>) -> bool {
    blocks.clone().all(|block| model.owner(Block(block)).is_some())
}

/// An image of 4 MiB with data where [`BOOT`] goes, but for block 300.
fn boot_image(path: &Path) {
    image(path, 4 << 20, &[(0, 20 << 12), (512 << 12, 200 << 12), (800 << 12, 10 << 12)]);
}

fn directory(path: PathBuf) -> PathBuf {
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn sessions_become_packs_once() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, sessions) = (dir.path().join("disk.img"), directory(dir.path().join("sessions")));
    boot_image(&disk);
    session_file(&sessions.join("a.vms"), 4, &BOOT);
    session_file(&sessions.join("other.vms"), 5, &BOOT);
    std::fs::write(sessions.join("broken.vms"), "no session").unwrap();
    let learn = ["--sessions", text(&sessions)];
    let site = dir.path().join("site");
    publish(&disk, &site, &[]);
    let bare = see(&site, "disk").pointer;
    publish(&disk, &site, &learn);
    let first = see(&site, "disk");
    assert_eq!((&first.pointer.image, &first.pointer.tree), (&bare.image, &bare.tree));
    let model = learnt(&site, &first);
    assert!(knows(&model, 0..20) && knows(&model, 512..540) && !knows(&model, 700..701));
    assert_eq!(model.learnt().sessions, 1, "the others are of no use");

    // The same sessions teach nothing new, also if they are given again.
    publish(&disk, &site, &learn);
    assert_eq!(see(&site, "disk").pointer, first.pointer);
    session_file(&sessions.join("b.vms"), 4, &[800..805, 805..810]);
    publish(&disk, &site, &learn);
    let second = see(&site, "disk");
    let model = learnt(&site, &second);
    assert!(knows(&model, 0..20) && knows(&model, 800..810));
    assert_eq!(std::fs::read(site.join(".vmstream/disk/model.vmm")).unwrap().len() as u64, {
        let bytes = std::fs::read(site.join(&second.pointer.packs.as_ref().unwrap().name)).unwrap();
        let model = Header::decode("p", &bytes).unwrap().model();
        model.end - model.start
    });
    // The older packs stay for readers that began with them, those before go.
    session_file(&sessions.join("c.vms"), 4, &[820..825, 825..830]);
    publish(&disk, &site, &learn);
    let names = shown(&site);
    let packs: Vec<_> = names.iter().filter(|name| name.ends_with(".vmk")).collect();
    assert!(packs.len() == 2 && packs.contains(&&second.pointer.packs.unwrap().name), "{packs:?}");

    // From nothing the same files, byte for byte.
    let whole = |name: &str| {
        let site = dir.path().join(name);
        publish(&disk, &site, &learn);
        files(&site)
    };
    assert!(whole("once") == whole("again"));
}

#[test]
fn publishing_again_mends_the_packs() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, sessions) = (dir.path().join("disk.img"), directory(dir.path().join("sessions")));
    let site = dir.path().join("site");
    boot_image(&disk);
    session_file(&sessions.join("a.vms"), 4, &BOOT);
    publish(&disk, &site, &["--sessions", text(&sessions)]);
    let right = files(&site);
    let pointer = see(&site, "disk").pointer;
    let packs = site.join(&pointer.packs.unwrap().name);
    let bytes = std::fs::read(&packs).unwrap();
    let copy = site.join(".vmstream/disk/model.vmm");
    let model = Header::decode("p", &bytes).unwrap().model().start as usize;
    // In the header, in the model and in the last frame; cut off; gone, with the tree as well.
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        std::fs::write(&packs, bytes).unwrap();
    };
    let ways: [&dyn Fn(); 6] = [
        &|| flipped(20),
        &|| flipped(model + 100),
        &|| flipped(bytes.len() - 1),
        &|| std::fs::write(&packs, &bytes[..model + 10]).unwrap(),
        &|| std::fs::remove_file(&packs).unwrap(),
        &|| {
            std::fs::remove_file(&packs).unwrap();
            std::fs::remove_file(site.join(&pointer.tree.name)).unwrap();
        },
    ];
    for (number, way) in ways.iter().enumerate() {
        way();
        publish(&disk, &site, &[]);
        assert!(files(&site) == right, "{number}: all is as it was");
    }
    // With no copy of the model left nothing is promised that is not there, and the sessions can be learnt again.
    std::fs::remove_file(&packs).unwrap();
    std::fs::remove_file(&copy).unwrap();
    publish(&disk, &site, &[]);
    assert_eq!(see(&site, "disk").pointer.packs, None);
    publish(&disk, &site, &["--sessions", text(&sessions)]);
    assert!(knows(&learnt(&site, &see(&site, "disk")), 512..540));
}

#[test]
fn a_model_is_taken_as_it_is_if_it_is_of_this_image() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let site = at("site");
    boot_image(&at("disk.img"));
    for (name, mib) in [("good", 4), ("other", 5)] {
        session_file(&at(&format!("{name}.vms")), mib, &BOOT);
        let made = vmstream(&["train", "-o", text(&at(&format!("{name}.vmm"))), text(&at(&format!("{name}.vms")))]);
        assert!(made.status.success());
    }
    publish(&at("disk.img"), &site, &["--model", text(&at("good.vmm"))]);
    let seen = see(&site, "disk");
    assert!(knows(&learnt(&site, &seen), 512..540));

    std::fs::write(at("cut.vmm"), &std::fs::read(at("good.vmm")).unwrap()[..100]).unwrap();
    for (model, says) in [("other.vmm", "train one for it"), ("cut.vmm", "cut.vmm"), ("none.vmm", "No such file")] {
        let said = refused(&at("disk.img"), &site, &["--model", text(&at(model))]);
        assert!(said.contains(says), "{says:?} is not in {said:?}");
        assert_eq!(see(&site, "disk").pointer, seen.pointer);
    }
    let said = refused(&at("disk.img"), &site, &["--sessions", text(&at("none"))]);
    assert!(said.contains("no directory"), "{said}");
}

#[test]
fn what_was_learnt_goes_with_its_blocks_into_a_new_version() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (disk, site, sessions) = (at("disk.img"), at("site"), directory(at("sessions")));
    boot_image(&disk);
    session_file(&sessions.join("a.vms"), 4, &BOOT);
    publish(&disk, &site, &["--sessions", text(&sessions)]);
    let old = std::fs::read(&disk).unwrap();

    // All lies a MiB further on, but for what has changed.
    let mut new = noise(1, 1 << 20);
    new.extend(&old);
    let changed = (520 + MIB) as usize * 4096;
    new[changed..changed + 4096].fill(7);
    std::fs::write(&disk, &new).unwrap();
    publish(&disk, &site, &["--sessions", text(&sessions)]);
    let model = learnt(&site, &see(&site, "disk"));
    assert!(knows(&model, MIB..MIB + 20) && knows(&model, 512 + MIB..520 + MIB) && knows(&model, 521 + MIB..540 + MIB));
    assert!(!knows(&model, 520 + MIB..521 + MIB), "its contents are nowhere any more");
    assert!((0..MIB).all(|block| model.owner(Block(block)).is_none()));
    assert_eq!(model.learnt().sessions, 1, "the session is known, and is one of the old version");

    // Where nearly all stays in its place, what changed there is likely what the guest reads as before.
    new[MIB as usize * 4096] ^= 1;
    std::fs::write(&disk, &new).unwrap();
    publish(&disk, &site, &[]);
    assert!(knows(&learnt(&site, &see(&site, "disk")), MIB..MIB + 20));
    assert_eq!(shown(&site).iter().filter(|name| name.ends_with(".raw")).count(), 2);
}
