//! The pages for people at `/`: what is published here, how it is used, and what was learnt.
//!
//! `/` lists the images, `/?image=NAME` tells of one, `/?model=NAME` and `/?curve=NAME` are its pictures, and `/?files` is the
//! plain list of files that stands at `/` where nothing is published. The pages are whole in themselves: no script, and
//! nothing from elsewhere, which they also tell the browser to insist on.
//!
//! A model is read and drawn once for each version of it. One page at a time looks at models, so that many visitors cost
//! no more than one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use vmstream::error::Result;
use vmstream::model::Model;

use super::curve::{self, Curve};
use super::images::{Images, Published};
use super::stats::Stats;
use super::tree::escape;
use crate::picture;
use crate::progress::size;
use crate::publish::site::is_image_name;

/// What a browser may load on behalf of a page: its own pictures, and the style that stands in it.
pub const POLICY: &str = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'";
/// Models that are kept as pictures: more images than that are drawn anew.
const SHEETS_MAX: usize = 32;
/// Bytes of the heads of trees and packs that are looked at.
const HEAD_BYTES: usize = 112;

/// What a query asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// The list of images.
    Images,
    /// The plain list of files.
    Files,
    /// One image.
    Image(String),
    /// The picture of its model.
    Model(String),
    /// Its learning curve.
    Curve(String),
}

/// What is sent.
#[derive(Debug)]
pub enum Page {
    /// A page of HTML.
    Html(String),
    /// A picture.
    Svg(Arc<str>),
}

/// What was read of a model.
#[derive(Clone, Debug)]
struct Known {
    stamp: (SystemTime, u64),
    sessions: u64,
    sequences: usize,
    blocks: u64,
    svg: Arc<str>,
}

/// The pages of a site.
#[derive(Debug)]
pub struct Portal {
    images: Images,
    stats: Arc<Stats>,
    /// Whether sessions are taken.
    collects: bool,
    began: SystemTime,
    known: Mutex<HashMap<String, Known>>,
}

/// What was saved of the bytes that whole downloads would have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Saved {
    openings: u64,
    served: u64,
    zeroes: u64,
    packed: u64,
    left: u64,
}

impl Saved {
    /// `openings` guests have been served `image` bytes of the image as they are and `packs` bytes of packs, which hold
    /// `blocks` bytes in `frames`; `other` bytes were hashes and pointers.
    fn new(
        openings: u64,
        sizes: (u64, u64),
        (image, packs, other): (u64, u64, u64),
        (blocks, frames): (u64, u64),
    ) -> Self {
        let (whole, used) = sizes;
        let served = image.saturating_add(packs).saturating_add(other);
        let zeroes = whole.saturating_sub(used).saturating_mul(openings);
        let unpacked =
            if frames == 0 { packs } else { (packs as f64 * (blocks as f64 / frames as f64).max(1.0)) as u64 };
        let packed = unpacked.saturating_sub(packs);
        let left = used.saturating_mul(openings).saturating_sub(packed).saturating_sub(served);
        Self { openings, served, zeroes, packed, left }
    }
}

impl View {
    /// Reads the query of a request for `/`; `None` for one that means nothing here.
    pub fn parse(query: Option<&str>) -> Option<Self> {
        let Some(query) = query.filter(|query| !query.is_empty()) else { return Some(Self::Images) };
        let (key, name) = query.split_once('=').unwrap_or((query, ""));
        // A form would write a plus as a blank; no name of an image has one.
        let name = name.replace("%2B", "+");
        match key {
            "files" => Some(Self::Files),
            "image" if is_image_name(&name) => Some(Self::Image(name)),
            "model" if is_image_name(&name) => Some(Self::Model(name)),
            "curve" if is_image_name(&name) => Some(Self::Curve(name)),
            _ => None,
        }
    }
}

impl Portal {
    /// The pages of the images in a site; `collects` says that sessions are taken.
    pub fn new(images: Images, stats: Arc<Stats>, collects: bool) -> Self {
        Self { images, stats, collects, began: SystemTime::now(), known: Mutex::default() }
    }

    /// What is to be sent; `None` where nothing is. `base` is how the visitor came to us: scheme and host. Blocks.
    pub fn page(&self, view: &View, base: &str) -> Result<Option<Page>> {
        let found = match view {
            View::Files => return Ok(None),
            View::Images => {
                let images = self.images.list();
                return Ok((!images.is_empty()).then(|| Page::Html(self.list(&images, base))));
            }
            View::Image(name) | View::Model(name) | View::Curve(name) => self.images.find(name),
        };
        let Some(image) = found else { return Ok(None) };
        match view {
            View::Image(_) => Ok(Some(Page::Html(self.image(&image, base)))),
            View::Model(_) => Ok(self.known(&image.name).map(|known| Page::Svg(known.svg))),
            _ => {
                let lesson = |point: &curve::Point| picture::curve::Lesson {
                    sessions: point.sessions,
                    waited_s: point.waited_s,
                    plain_s: point.plain_s,
                };
                let lessons: Vec<_> = self.curve(&image.name).0.iter().map(lesson).collect();
                let svg = picture::curve::draw(&lessons, &image.name, curve::LINK)?;
                Ok(Some(Page::Svg(svg.into())))
            }
        }
    }

    fn curve(&self, name: &str) -> Curve {
        Curve::load(&self.images.private(name))
    }

    /// What the model of an image knows; `None` when there is none that can be read.
    fn known(&self, name: &str) -> Option<Known> {
        let path = self.images.private(name).join("model.vmm");
        let metadata = path.metadata().ok()?;
        let stamp = (metadata.modified().ok()?, metadata.len());
        let mut cache = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache.get(name).filter(|known| known.stamp == stamp) {
            return Some(known.clone());
        }
        let drawn = Model::load(&path).and_then(|model| {
            let svg = picture::model::draw(&model, name)?;
            let blocks = model.sequences().iter().map(|sequence| u64::from(sequence.blocks)).sum();
            let sequences = model.sequences().len();
            Ok(Known { stamp, sessions: model.learnt().sessions, sequences, blocks, svg: svg.into() })
        });
        let known = drawn.inspect_err(|error| log::warn!("{error}: it is not shown")).ok()?;
        if cache.len() >= SHEETS_MAX {
            cache.clear();
        }
        cache.insert(name.to_owned(), known.clone());
        Some(known)
    }

    fn collected(&self, name: &str) -> usize {
        let sessions = self.images.private(name).join("sessions").read_dir();
        let ours = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.path().extension().is_some_and(|ending| ending == "vms"))
        };
        sessions.map_or(0, |entries| entries.filter_map(|entry| ours(entry).then_some(())).count())
    }

    /// Bytes of the blocks that are not all zero, as the tree says.
    fn used(&self, image: &Published) -> u64 {
        let blocks = number(&self.images.site().join(&image.tree), b"\x89VMT", 24);
        blocks.map_or(image.geometry.size(), |blocks| {
            blocks.saturating_mul(image.geometry.block_bytes()).min(image.geometry.size())
        })
    }

    fn saved(&self, image: &Published, known: Option<&Known>) -> Saved {
        let of = |name: &str| {
            let mut url = String::from("/");
            escape(name.as_bytes(), &mut url);
            self.stats.of_file(&url)
        };
        let (openings, pointer) = of(&format!("{}.vmp", image.name));
        let packs = image.packs.as_ref().map_or(0, |(name, _)| of(name).1);
        let frames = image.packs.as_ref().and_then(|(name, _)| number(&self.images.site().join(name), b"\x89VMK", 72));
        let blocks = known.map_or(0, |known| known.blocks * image.geometry.block_bytes());
        let sizes = (image.geometry.size(), self.used(image));
        Saved::new(
            openings,
            sizes,
            (of(&image.image).1, packs, of(&image.tree).1 + pointer),
            (blocks, frames.unwrap_or(0)),
        )
    }

    fn head(&self, title: &str) -> String {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style>\n"
        )
    }

    fn foot(&self) -> String {
        let now = self.stats.now();
        let since: std::time::Duration = self.began.elapsed().unwrap_or_default();
        let sessions = if self.collects { "sessions are taken" } else { "sessions are not taken" };
        format!(
            "<footer>vmstream {}; clients lately: {}, connections: {}; {} served in {}; {sessions}; \
             <a href=\"/metrics\">metrics</a>, <a href=\"/?files\">files</a></footer>\n</html>\n",
            env!("CARGO_PKG_VERSION"),
            self.stats.recent.count(Instant::now()),
            now.open,
            size(now.bytes),
            span(since.as_secs()),
        )
    }

    fn list(&self, images: &[Published], base: &str) -> String {
        let mut page = self.head("Published images");
        page += "<h1>Published images</h1>\n<table>\n<thead><tr><th>Image<th>Size<th>In use<th>Hashes<th>Packs\
                 <th>Sessions learnt<th>Collected<th>Opened<th>Served<th>Saved</thead>\n";
        for image in images {
            let known = self.known(&image.name);
            let saved = self.saved(image, known.as_ref());
            let name = html(&image.name);
            let _ = write!(
                page,
                "<tr><td><a href=\"/?image={}\">{name}</a><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}\n\
                 <tr class=\"link\"><td colspan=\"10\"><code>{}</code>\n",
                query(&image.name),
                size(image.geometry.size()),
                size(self.used(image)),
                size(image.tree_bytes),
                image.packs.as_ref().map_or("none".to_owned(), |packs| size(packs.1)),
                known.as_ref().map_or(0, |known| known.sessions),
                self.collected(&image.name),
                saved.openings,
                size(saved.served),
                size(saved.zeroes + saved.packed + saved.left),
                html(&link(image, base)),
            );
        }
        page += "</table>\n<p>A link is all that a guest needs: <code>vmstream mount LINK DIR</code>. What is behind the \
                 # is the hash that everything served is checked against.</p>\n";
        page + &self.foot()
    }

    fn image(&self, image: &Published, base: &str) -> String {
        let known = self.known(&image.name);
        let saved = self.saved(image, known.as_ref());
        let name = html(&image.name);
        let mut page = self.head(&name);
        let _ = write!(
            page,
            "<p><a href=\"/\">Published images</a></p>\n<h1>{name}</h1>\n<p><code>{}</code></p>\n<table class=\"facts\">\n",
            html(&link(image, base))
        );
        let used = self.used(image);
        let mut fact = |what: &str, value: String| {
            let _ = writeln!(page, "<tr><th>{what}<td>{value}");
        };
        let whole = image.geometry.size();
        fact("Image", format!("{} in blocks of {}", size(whole), size(image.geometry.block_bytes())));
        fact("In use", format!("{} ({:.0} %); the rest is zeroes", size(used), used as f64 / whole as f64 * 100.0));
        fact("Version", format!("{}; {} older ones kept", &image.root[..12], self.older(image)));
        fact("Hashes", format!("{} ({:.2} % of what is in use)", size(image.tree_bytes), per(image.tree_bytes, used)));
        fact("Packs", image.packs.as_ref().map_or("none".to_owned(), |packs| size(packs.1)));
        let model = known.as_ref().map(|known| {
            let bytes = size(known.blocks * image.geometry.block_bytes());
            format!("{} sessions, {} sequences, {bytes}", known.sessions, known.sequences)
        });
        fact("Learnt", model.unwrap_or_else(|| "nothing yet".to_owned()));
        fact("Collected", format!("{} sessions are kept", self.collected(&image.name)));
        page += "</table>\n<h2>Bytes saved</h2>\n";
        page += &saving(&saved, whole);
        if known.is_some() {
            let _ = write!(
                page,
                "<h2>Heat map, sequences and transitions</h2>\n<img alt=\"heat map of {name} and the ways through its model\" \
                 src=\"/?model={}\" width=\"1480\" height=\"1410\">\n",
                query(&image.name)
            );
        }
        let _ = write!(
            page,
            "<h2>Learning curve</h2>\n<img alt=\"learning curve of {name}\" src=\"/?curve={}\" width=\"1480\" height=\"520\">\n",
            query(&image.name)
        );
        page + &self.foot()
    }

    fn older(&self, image: &Published) -> usize {
        self.images.kept(&image.name).iter().filter(|root| **root != image.root).count()
    }
}

/// What is said of saved bytes.
fn saving(saved: &Saved, whole: u64) -> String {
    if saved.openings == 0 {
        return "<p>Nobody has opened this image since the server started.</p>\n".to_owned();
    }
    let row = |what: &str, bytes: u64| format!("<tr><th>{what}<td>{}\n", size(bytes));
    let times = if saved.openings == 1 { "once".to_owned() } else { format!("{} times", saved.openings) };
    format!(
        "<p>Opened {times} since the server started. As many whole downloads would have been {}.</p>\n\
         <table class=\"facts\">\n{}{}{}{}</table>\n",
        size(whole.saturating_mul(saved.openings)),
        row("Served", saved.served),
        row("Zeroes, never sent", saved.zeroes),
        row("Packed: what compression took away", saved.packed),
        row("Not fetched (yet), or from a cache", saved.left),
    )
}

/// The link to pass around.
fn link(image: &Published, base: &str) -> String {
    format!("{base}/{}.vmp#{}", image.name, image.root)
}

/// A name of an image as part of a query.
fn query(name: &str) -> String {
    let mut text = String::new();
    escape(name.as_bytes(), &mut text);
    text
}

/// Text as it may stand in HTML, in attributes too.
pub fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn per(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}

/// A time in its largest unit.
fn span(seconds: u64) -> String {
    let (value, unit) = match seconds {
        0..120 => (seconds, "seconds"),
        120..7200 => (seconds / 60, "minutes"),
        7200..172_800 => (seconds / 3600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{value} {unit}")
}

/// The number at `at` in the head of a file that begins with `magic`.
fn number(path: &Path, magic: &[u8], at: usize) -> Option<u64> {
    let mut head = [0; HEAD_BYTES];
    let mut file = File::open(path).ok()?;
    // The head of packs is shorter than that of a tree, but the file is not.
    file.read_exact(&mut head).ok()?;
    let bytes = head.starts_with(magic).then(|| head.get(at..at + 8)).flatten()?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// How the pages look.
const STYLE: &str = "body{font:16px/1.5 sans-serif;color:#333;max-width:92rem;margin:2rem auto;padding:0 1.5rem}\
h1,h2{font-weight:600;line-height:1.2}h2{margin-top:2.5rem}\
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.35rem .6rem;white-space:nowrap}\
th:first-child,td:first-child{text-align:left;padding-left:0}thead th{border-bottom:2px solid #333}\
tr.link td{border-bottom:1px solid #e4e4e4;padding-top:0}\
table.facts{width:auto}table.facts th{font-weight:400;color:#666;padding-right:2rem}table.facts td{text-align:left}\
code{font:13px/1.5 monospace;background:#f4f4f4;padding:.2rem .4rem;overflow-wrap:anywhere;white-space:normal}\
img{max-width:100%;height:auto}a{color:#0072b2}\
footer{margin-top:3rem;border-top:1px solid #e4e4e4;padding-top:.6rem;color:#666;font-size:14px}";

#[cfg(test)]
mod tests {
    use super::*;

    fn portal(name: &str) -> (tempfile::TempDir, Portal) {
        let dir = tempfile::tempdir().unwrap();
        let root = "ab".repeat(32);
        let text = format!("vmstream 1\nsize 1048576\nblock 4096\nimage d.raw\ntree d.vmt 312\nroot {root}\n");
        std::fs::write(dir.path().join(format!("{name}.vmp")), text).unwrap();
        let mut head = vec![0; 112];
        head[..4].copy_from_slice(b"\x89VMT");
        head[24] = 64;
        std::fs::write(dir.path().join("d.vmt"), head).unwrap();
        let portal = Portal::new(Images::new(dir.path()), Arc::default(), true);
        (dir, portal)
    }

    fn html_of(portal: &Portal, view: View, base: &str) -> String {
        match portal.page(&view, base).unwrap() {
            Some(Page::Html(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn queries_mean_one_thing_or_nothing() {
        assert_eq!(View::parse(None), Some(View::Images));
        assert_eq!(View::parse(Some("image=a%2Bb")), Some(View::Image("a+b".to_owned())));
        assert_eq!(View::parse(Some("files")), Some(View::Files));
        for nothing in ["image", "image=", "image=..%2F", "image=a/b", "model=<b>", "x=y", "image=.git"] {
            assert_eq!(View::parse(Some(nothing)), None, "{nothing}");
        }
    }

    #[test]
    fn a_page_has_the_link_and_nothing_that_a_visitor_wrote() {
        let (_dir, portal) = portal("disk");
        let page = html_of(&portal, View::Images, "h\"><script>:80");
        assert!(page.contains(&format!("/disk.vmp#{}", "ab".repeat(32))), "{page}");
        assert!(!page.contains("<script") && page.contains("h&quot;&gt;&lt;script&gt;:80"), "{page}");
        assert!(page.contains("<td>1.0 MiB<td>256.0 KiB<td>"), "{page}");
        let page = html_of(&portal, View::Image("disk".to_owned()), "h");
        assert!(page.contains("Nobody has opened") && page.contains("(25 %)"), "{page}");
        let curve = portal.page(&View::Curve("disk".to_owned()), "h").unwrap();
        assert!(matches!(curve, Some(Page::Svg(svg)) if svg.contains("no session was collected")));
        for missing in [View::Image("other".to_owned()), View::Model("disk".to_owned()), View::Files] {
            assert!(portal.page(&missing, "h").unwrap().is_none(), "{missing:?}");
        }
    }

    #[test]
    fn where_nothing_is_published_there_is_no_page() {
        let dir = tempfile::tempdir().unwrap();
        let portal = Portal::new(Images::new(dir.path()), Arc::default(), false);
        assert!(portal.page(&View::Images, "h").unwrap().is_none());
    }

    #[test]
    fn what_was_saved_and_served_is_what_downloads_would_have_been() {
        // Two guests of an image of 1000 of which 600 is used: 300 came as they are, 100 in packs of a third.
        let saved = Saved::new(2, (1000, 600), (300, 100, 20), (900, 300));
        assert_eq!(saved, Saved { openings: 2, served: 420, zeroes: 800, packed: 200, left: 580 });
        assert_eq!(saved.served + saved.zeroes + saved.packed + saved.left, 2000);
        // More than a download each, as from caches that were thrown away: nothing is saved, and nothing overflows.
        assert_eq!(Saved::new(1, (1000, 600), (5000, 0, 0), (0, 0)).left, 0);
        assert_eq!(Saved::new(0, (1000, 600), (5000, 0, 0), (0, 0)).zeroes, 0);
    }
}
