//! Frames of published images: they come together, are opened in whatever order their hashes allow, and no lie among them
//! is handed on.

#[allow(dead_code, reason = "much of it is for servers without a publication")]
#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/published.rs"]
mod published;
#[path = "support/site.rs"]
mod site;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bad_server::{Seen, answer, status};
use published::{Checker, FRAME_BLOCKS, Moment, config, fatal, fetch, is_pages, is_tree, late_data, open, packed};
use site::Site;
use vmstream::block::BlockRange;
use vmstream::error::errno;
use vmstream::source::published::{FRAME_BYTES_MAX, Frames};
use vmstream::source::{self, FetchError, FrameSink, Source, Stop};
use vmstream::tree::{Lie, PageId, Tree};

/// Packs for tests: frame `n` is sixteen blocks as they are, and has no proof.
struct Plain;

impl Frames for Plain {
    fn extent(&self, frames: Range<u32>) -> (u64, Vec<u32>) {
        (u64::from(frames.start) * FRAME_BLOCKS * 512, vec![FRAME_BLOCKS as u32 * 512; frames.len()])
    }

    fn blocks_of(&self, frame: u32) -> Vec<BlockRange> {
        vec![BlockRange::new(u64::from(frame) * FRAME_BLOCKS, u64::from(frame + 1) * FRAME_BLOCKS)]
    }

    fn prover(&self, _: PageId, _: &Tree) -> Option<u32> {
        None
    }

    fn unpack(&self, frame: u32, bytes: &[u8], tree: &Tree, out: &mut dyn FnMut(BlockRange, &[u8])) -> Result<(), Lie> {
        let range = self.blocks_of(frame)[0];
        range.iter().zip(bytes.chunks(512)).try_for_each(|(block, bytes)| tree.check(block, bytes))?;
        out(range, bytes);
        Ok(())
    }
}

/// Compares unpacked blocks with the image.
struct FrameChecker<'a> {
    image: &'a [u8],
    received: u64,
    done: Vec<u32>,
}

impl FrameSink for FrameChecker<'_> {
    fn received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    fn blocks(&mut self, range: BlockRange, bytes: &[u8]) -> Result<(), Stop> {
        assert!(bytes == &self.image[range.start.0 as usize * 512..range.end.0 as usize * 512], "{range:?}");
        Ok(())
    }

    fn frame_done(&mut self, frame: u32) -> Result<(), Stop> {
        self.done.push(frame);
        Ok(())
    }
}

fn fetch_frames(source: &dyn Source, site: &Site, frames: Range<u32>) -> (Vec<u32>, u64, Result<(), FetchError>) {
    let mut sink = FrameChecker { image: &site.image, received: 0, done: Vec::new() };
    let result = source.fetch_frames(3, frames, &mut sink);
    (sink.done, sink.received, result)
}

#[test]
fn frames_come_in_one_request_and_pages_that_no_proof_brought_are_fetched() {
    let site = packed();
    let server = site.serve();
    let source = open(&site.link(&server));
    let no_frames = fatal(fetch_frames(&*source, &site, 0..1).2);
    assert_eq!(no_frames.errno(), errno::ENOTSUP);
    source.published().unwrap().set_frames("disk.vmk", Arc::new(Plain));
    for frames in [0..8, 450..453] {
        let before = server.seen().iter().filter(|seen| seen.target.ends_with(".vmk")).count();
        let (done, received, result) = fetch_frames(&*source, &site, frames.clone());
        result.unwrap();
        assert_eq!((done, received), (frames.clone().collect(), frames.len() as u64 * FRAME_BLOCKS * 512));
        assert_eq!(server.seen().iter().filter(|seen| seen.target.ends_with(".vmk")).count(), before + 1);
    }
}

#[test]
fn frames_do_not_wait_for_pages_of_others() {
    let site = packed();
    let (seen, news) = (Mutex::new(0), Condvar::new());
    let third = Arc::new((seen, news));
    let counted = third.clone();
    // The pages that two lanes want are held up until those of the frame have been asked for as well.
    let server = site.serve_after(move |seen| {
        if is_tree(seen) && seen.range().0 > 0 {
            let mut count = counted.0.lock().unwrap();
            *count += 1;
            counted.1.notify_all();
            let waited = counted.1.wait_timeout_while(count, Duration::from_secs(20), |count| *count < 3).unwrap();
            assert!(!waited.1.timed_out(), "the frame waits for what others want");
        }
    });
    let source = open(&site.link(&server));
    source.published().unwrap().set_frames("disk.vmk", Arc::new(Plain));
    let used_from = |block: usize| {
        let used = |at: &usize| site.image[at * 512..][..512].iter().any(|byte| *byte != 0);
        (block..).find(used).unwrap()
    };
    std::thread::scope(|scope| {
        for (lane, block) in [(1, 5600), (2, 6500)] {
            let (source, site, at) = (&source, &site, used_from(block) as u64 * 512);
            scope.spawn(move || {
                let mut sink = Checker { image: &site.image, at, zeroes: 0 };
                source.fetch(lane, at, 512, &mut sink).unwrap();
            });
            // One after the other, or both would come with one request.
            let asked = third.1.wait_timeout_while(third.0.lock().unwrap(), Duration::from_secs(20), |n| *n < lane);
            assert!(!asked.unwrap().1.timed_out());
        }
        let frame = used_from(7400) as u32 / 16;
        fetch_frames(&*source, &site, frame..frame + 1).2.unwrap();
    });
}

/// A frame with data whose hashes are not in the first request, as those of the next ones are not.
fn late_frame(site: &Site) -> u32 {
    (late_data(site) / 512 / FRAME_BLOCKS) as u32
}

#[test]
fn pages_that_frames_lack_are_asked_for_beside_them() {
    let site = packed();
    let asked = Arc::new(Moment::default());
    let pages = asked.clone();
    // The frames stay away until their pages have been asked for.
    let server = site.serve_after(move |seen| match seen.target.ends_with(".vmk") && seen.range().0 > 0 {
        true => pages.wait("a request for pages"),
        false if is_pages(seen) => pages.come(),
        false => {}
    });
    let source = open(&site.link(&server));
    source.published().unwrap().set_frames("disk.vmk", Arc::new(Plain));
    let frame = late_frame(&site);
    fetch_frames(&*source, &site, frame..frame + 3).2.unwrap();
}

/// Notes when so many bytes of some frames are here, and when the first of their blocks were handed out.
struct Arriving<'a> {
    checker: FrameChecker<'a>,
    bytes: u64,
    here: Arc<Moment>,
    opened: Arc<Moment>,
}

impl FrameSink for Arriving<'_> {
    fn received(&mut self, bytes: u64) {
        self.checker.received(bytes);
        if self.checker.received >= self.bytes {
            self.here.come();
        }
    }

    fn blocks(&mut self, range: BlockRange, bytes: &[u8]) -> Result<(), Stop> {
        self.opened.come();
        self.checker.blocks(range, bytes)
    }

    fn frame_done(&mut self, frame: u32) -> Result<(), Stop> {
        self.checker.frame_done(frame)
    }
}

#[test]
fn frames_that_lack_pages_hold_up_no_others() {
    let site = packed();
    let (here, opened) = (Arc::new(Moment::default()), Arc::default());
    let frames_here = here.clone();
    // The pages stay away until all frames are here.
    let server = site.serve_after(move |seen| {
        if is_pages(seen) {
            frames_here.wait("all frames");
        }
    });
    let source = open(&site.link(&server));
    source.published().unwrap().set_frames("disk.vmk", Arc::new(Plain));
    let frames = late_frame(&site)..late_frame(&site) + 20;
    let checker = FrameChecker { image: &site.image, received: 0, done: Vec::new() };
    let mut sink = Arriving { checker, bytes: frames.len() as u64 * FRAME_BLOCKS * 512, here, opened };
    source.fetch_frames(3, frames.clone(), &mut sink).unwrap();
    assert_eq!(sink.checker.done, frames.collect::<Vec<_>>(), "in order, each once");
}

/// The same packs, if this frame had the proof of all.
struct Proving(u32);

impl Frames for Proving {
    fn extent(&self, frames: Range<u32>) -> (u64, Vec<u32>) {
        Plain.extent(frames)
    }

    fn blocks_of(&self, frame: u32) -> Vec<BlockRange> {
        Plain.blocks_of(frame)
    }

    fn prover(&self, _: PageId, _: &Tree) -> Option<u32> {
        Some(self.0)
    }

    fn unpack(&self, frame: u32, bytes: &[u8], tree: &Tree, out: &mut dyn FnMut(BlockRange, &[u8])) -> Result<(), Lie> {
        Plain.unpack(frame, bytes, tree, out)
    }
}

#[test]
fn pages_that_a_frame_brings_are_asked_for_only_when_it_did_not() {
    let site = packed();
    let (server, frame) = (site.serve(), late_frame(&site));
    let source = open(&site.link(&server));
    source.published().unwrap().set_frames("disk.vmk", Arc::new(Proving(frame)));
    let before = server.seen().len();
    fetch_frames(&*source, &site, frame..frame + 3).2.unwrap();
    let seen = server.seen();
    assert!(seen[before].target.ends_with(".vmk"), "{}", seen[before].target);
    assert!(seen[before + 1..].iter().any(is_pages), "its promise was not kept");
}

/// The same packs, and frame 0 really has the proof of all: the pages of this tree file.
struct Proved(Vec<u8>);

impl Frames for Proved {
    fn extent(&self, frames: Range<u32>) -> (u64, Vec<u32>) {
        Plain.extent(frames)
    }

    fn blocks_of(&self, frame: u32) -> Vec<BlockRange> {
        Plain.blocks_of(frame)
    }

    fn prover(&self, _: PageId, _: &Tree) -> Option<u32> {
        Some(0)
    }

    fn unpack(&self, frame: u32, bytes: &[u8], tree: &Tree, out: &mut dyn FnMut(BlockRange, &[u8])) -> Result<(), Lie> {
        for page in tree.missing(tree.geometry().all()).into_iter().filter(|_| frame == 0) {
            let (offset, length) = tree.extent(page);
            tree.add(page, &self.0[offset as usize..(offset + length) as usize])?;
        }
        Plain.unpack(frame, bytes, tree, out)
    }
}

/// What happens while frame 0 and some late ones, which it proves, are fetched over two connections.
#[derive(Clone, Default)]
struct Race {
    /// Frame 0 was asked for.
    asked: Arc<Moment>,
    /// The first late frame is here.
    here: Arc<Moment>,
    /// Frame 0 is open.
    proved: Arc<Moment>,
    /// A late frame is open.
    opened: Arc<Moment>,
}

impl Race {
    /// Fetches `late` frames once frame 0 has been asked for.
    fn run(&self, source: &dyn Source, site: &Site, late: Range<u32>) {
        let tree = site.get(&site.pointer.tree.name);
        source.published().unwrap().set_frames("disk.vmk", Arc::new(Proved(tree)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut sink = FrameChecker { image: &site.image, received: 0, done: Vec::new() };
                source.fetch_frames(4, 0..1, &mut sink).unwrap();
                self.proved.come();
            });
            self.asked.wait("a request for frame 0");
            let checker = FrameChecker { image: &site.image, received: 0, done: Vec::new() };
            let (here, opened) = (self.here.clone(), self.opened.clone());
            let mut sink = Arriving { checker, bytes: FRAME_BLOCKS * 512, here, opened };
            source.fetch_frames(3, late.clone(), &mut sink).unwrap();
            assert_eq!(sink.checker.done, late.collect::<Vec<_>>());
        });
    }
}

/// True for a request for frame 0, which is longer than the first contact's is from there.
fn is_first_frame(seen: &Seen) -> bool {
    seen.target.ends_with(".vmk") && seen.range() == (0, FRAME_BLOCKS * 512 - 1)
}

#[test]
fn a_frame_is_opened_in_the_middle_of_its_request_as_soon_as_another_one_has_proved_it() {
    let (site, race) = (packed(), Race::default());
    let late = late_frame(&site);
    let seen_by_server = race.clone();
    let server = site.serve_by(move |seen, wire, reply| {
        let Race { asked, here, proved, opened } = &seen_by_server;
        assert!(!is_pages(seen), "nobody needs pages by themselves");
        if is_first_frame(seen) {
            asked.come();
            here.wait("the first late frame");
        }
        if seen.target.ends_with(".vmk") && seen.range().0 >= u64::from(late) * FRAME_BLOCKS * 512 {
            // One frame; when it is proved a piece of the next; and the rest when the one is open.
            let first = reply.len() - (seen.range().1 + 1 - seen.range().0) as usize + FRAME_BLOCKS as usize * 512;
            wire.send(&reply[..first]);
            proved.wait("its proof");
            wire.send(&reply[first..first + 100]);
            opened.wait("the first late frame's blocks");
            return wire.send(&reply[first + 100..]);
        }
        wire.send(reply);
    });
    race.run(&*open(&site.link(&server)), &site, late..late + 3);
}

#[test]
fn a_frame_does_not_wait_for_pages_that_another_one_brings_before_them() {
    let (site, race) = (packed(), Race::default());
    let late = late_frame(&site);
    let seen_by_server = race.clone();
    let (pages, in_vain) = (Moment::default(), Arc::new(AtomicBool::new(false)));
    let waited_in_vain = in_vain.clone();
    // Frame 0 is late, so the pages are asked for after all; and then those stay away.
    let server = site.serve_after(move |seen| {
        if is_first_frame(seen) {
            seen_by_server.asked.come();
            pages.wait("a request for pages");
        } else if is_pages(seen) {
            pages.come();
            waited_in_vain.fetch_or(!seen_by_server.opened.comes(), Ordering::Relaxed);
        }
    });
    race.run(&*open(&site.link(&server)), &site, late..late + 1);
    assert!(!in_vain.load(Ordering::Relaxed), "the frame waited for the pages");
}

#[test]
fn packs_that_are_gone_are_no_loss_and_an_image_that_is_gone_is_called_an_old_version() {
    let site = packed();
    let server = site.serve();
    let source = open(&site.link(&server));
    source.published().unwrap().set_frames("disk.vmk", Arc::new(Plain));
    site.files.lock().unwrap().remove("disk.vmk");
    for _ in 0..2 {
        assert_eq!(fatal(fetch_frames(&*source, &site, 0..8).2).errno(), errno::ENOTSUP);
    }
    assert_eq!(server.seen().iter().filter(|seen| seen.target.ends_with(".vmk")).count(), 2, "not asked for again");
    fetch(&*source, &site, 0..100_000).unwrap();
    site.files.lock().unwrap().remove(&site.pointer.image);
    let error = fatal(fetch(&*source, &site, 0..100_000));
    assert_eq!(error.errno(), errno::ESTALE);
    assert!(error.to_string().contains("--reuse"), "{error}");
}

#[test]
fn a_frame_that_lies_is_the_end_of_that_place_s_packs_and_the_rest_comes_from_the_next() {
    let site = packed();
    let bad = site.mirror();
    let used = (2..).find(|frame| site.image[frame * 8192..][..512].iter().any(|byte| *byte != 0)).unwrap();
    bad.flip("disk.vmk", 8 * (used * 8192 + 5));
    let (bad_server, good_server) = (bad.serve(), site.serve());
    let frames = 0..used as u32 + 3;
    let alone = open(&site.link(&bad_server));
    alone.published().unwrap().set_frames("disk.vmk", Arc::new(Plain));
    let (done, _, result) = fetch_frames(&*alone, &site, frames.clone());
    assert_eq!(done, (0..used as u32).collect::<Vec<_>>());
    let error = fatal(result);
    assert_eq!(error.errno(), errno::ENOTSUP);
    assert!(error.to_string().contains("disk.vmk") && error.to_string().contains(&format!("frame {used}")), "{error}");
    fetch(&*alone, &site, 0..200_000).unwrap();
    let options = [&*format!("source={}", site.link(&bad_server)), &*format!("mirror={}", site.link(&good_server))];
    let both = source::open(&config(&options), None).unwrap();
    both.published().unwrap().set_frames("disk.vmk", Arc::new(Plain));
    let (done, _, result) = fetch_frames(&*both, &site, frames.clone());
    result.unwrap();
    assert_eq!(done, frames.collect::<Vec<_>>());
}

/// Packs of frames that are as long as any may be.
struct Long;

impl Frames for Long {
    fn extent(&self, frames: Range<u32>) -> (u64, Vec<u32>) {
        (u64::from(frames.start) * FRAME_BYTES_MAX, vec![FRAME_BYTES_MAX as u32; frames.len()])
    }

    fn blocks_of(&self, frame: u32) -> Vec<BlockRange> {
        Plain.blocks_of(frame)
    }

    fn prover(&self, _: PageId, _: &Tree) -> Option<u32> {
        None
    }

    fn unpack(&self, _: u32, _: &[u8], _: &Tree, _: &mut dyn FnMut(BlockRange, &[u8])) -> Result<(), Lie> {
        Err(Lie::new("nothing is in it"))
    }
}

#[test]
fn long_frames_of_all_lanes_together_take_memory_for_two_and_all_have_a_turn() {
    const LANES: u32 = 6;
    let mut site = packed();
    let bytes = u64::from(LANES) * FRAME_BYTES_MAX;
    site.pointer.packs.as_mut().unwrap().bytes = bytes;
    site.point();
    // How many requests are being answered, and the most so far.
    let at_once = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let counted = at_once.clone();
    let server = site.serve_by(move |seen, wire, reply| {
        if !seen.target.ends_with(".vmk") {
            return wire.send(reply);
        }
        let (first, last) = seen.range();
        if last + 1 - first < FRAME_BYTES_MAX {
            let total =
                format!("Content-Range: bytes {first}-{last}/{bytes}\r\nContent-Length: {}\r\n", last + 1 - first);
            let head = format!("HTTP/1.1 206 Partial Content\r\n{total}");
            return wire.send(&answer(&head, &vec![0; (last + 1 - first) as usize]));
        }
        let mut count = counted.0.lock().unwrap();
        count.0 += 1;
        count.1 = count.1.max(count.0);
        counted.1.notify_all();
        // Time for one more than may be to show up.
        let waited = counted.1.wait_timeout_while(count, Duration::from_millis(100), |count| count.0 < 3);
        waited.unwrap().0.0 -= 1;
        wire.send(&status("503 Service Unavailable", ""));
    });
    let source = open(&site.link(&server));
    source.published().unwrap().set_frames("disk.vmk", Arc::new(Long));
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (source, site) = (&source, &site);
            scope.spawn(move || {
                let mut sink = FrameChecker { image: &site.image, received: 0, done: Vec::new() };
                let result = source.fetch_frames(lane as usize, lane..lane + 1, &mut sink);
                assert!(matches!(result, Err(FetchError::Transient { .. })), "{result:?}");
            });
        }
    });
    let (left, most) = *at_once.0.lock().unwrap();
    assert!(left == 0 && most <= 2, "{most} at once");
}
