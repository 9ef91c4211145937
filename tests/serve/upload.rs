//! Guests that send their sessions, and people who do.

use std::path::Path;
use std::process::Output;

use vmstream::Image;
use vmstream::session::{self, Directory, Subject, WallTime, Writer};

use crate::harness::{Server, sample, vmstream};
use crate::publication::{SIZE, publish, session};

/// Records a session as an image does, with all that is in such a file.
fn record(sessions: &Path, root: &str, blocks: &[u64], at_us: u64) {
    let recording = session::file::parse("made up", &session(root, blocks)).unwrap();
    let subject = Subject { started: Some(WallTime(at_us)), ..recording.subject };
    let events: Vec<_> = recording.session.events().collect();
    Writer::new(Directory::new(sessions, 1 << 20), subject).write(&events);
}

/// Uses an image as a guest would: opens it, reads some blocks, closes it.
fn guest(link: &str, cache: &Path, blocks: &[u64], more: &[&str]) {
    let (source, cache) = (format!("source={link}"), format!("cache={}", cache.display()));
    let options = [&source, &cache, "proxy=none", "fill=off", "prefetch=none"];
    let image = Image::open(options.iter().chain(more)).unwrap();
    let mut bytes = [0; 512];
    for block in blocks {
        image.read_at(block * 4096, &mut bytes).unwrap();
        assert!(bytes == sample(SIZE)[*block as usize * 4096..][..512]);
    }
    image.close().unwrap();
}

fn kept(site: &Path) -> usize {
    Directory::new(&site.join(".vmstream/disk/sessions"), 0).list().unwrap().len()
}

#[test]
fn a_guest_tells_nothing_unless_it_is_told_to_and_then_at_its_end() {
    let (site, cache, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = publish(site.path(), "disk");
    let token = own.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let server = Server::start(site.path(), &["--collect", "--token", token.to_str().unwrap()]);
    let link = format!("http://{}/disk.vmp#{root}", server.address);
    let token = format!("upload_token={}", token.display());
    guest(&link, cache.path(), &[1, 2], &[]);
    guest(&link, cache.path(), &[3], &["upload=off", &token]);
    assert_eq!(kept(site.path()), 0);
    guest(&link, cache.path(), &[4], &["upload=on"]);
    assert_eq!(kept(site.path()), 0, "without the token");
    // The image is closed whatever becomes of it; those that are left go along with the next.
    guest(&link, cache.path(), &[5, 6], &["upload=on", &token]);
    assert_eq!(kept(site.path()), 4);
    guest(&link, cache.path(), &[7], &["upload=on", &token]);
    assert_eq!(kept(site.path()), 5);
    drop(server);
    guest(&link, cache.path(), &[7], &["upload=on", &token]);
}

fn send(cache: &Path, url: &str, more: &[&str]) -> Output {
    let arguments = [&["sessions", cache.to_str().unwrap(), "--send", url], more].concat();
    vmstream(&arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn sessions_are_sent_once_each_and_bare() {
    let (site, cache, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = publish(site.path(), "disk");
    let token = own.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let token = token.to_str().unwrap();
    let server = Server::start(site.path(), &["--collect", "--token", token]);
    let url = format!("http://{}/sessions/disk", server.address);
    let sessions = cache.path().join("sessions");
    for n in 0..3 {
        record(&sessions, &root, &[n, n + 10], 1_000_000 + n);
    }
    record(&sessions, &"ab".repeat(32), &[1], 2_000_000);
    let refused = send(cache.path(), &url, &[]);
    assert!(!refused.status.success() && said(&refused).contains("answers 401"), "{}", said(&refused));
    let sent = send(cache.path(), &url, &["--token", token]);
    assert_eq!(said(&sent), "3 sent, 1 refused, 0 left for another time\n");
    let again = send(cache.path(), &url, &["--token", token]);
    assert_eq!(said(&again), "0 sent, 0 refused, 0 left for another time\n");
    record(&sessions, &root, &[77], 3_000_000);
    assert!(said(&send(cache.path(), &url, &["--token", token])).starts_with("1 sent"));
    let kept = Directory::new(&site.path().join(".vmstream/disk/sessions"), 0).list().unwrap();
    assert_eq!(kept.len(), 4);
    for path in kept {
        let recording = session::load(&path).unwrap();
        assert_eq!((recording.subject.started, recording.session.marks.len()), (None, 0));
    }
    let nobody = send(cache.path(), "http://127.0.0.1:1/sessions/disk", &[]);
    assert!(!nobody.status.success() && said(&nobody).contains("127.0.0.1:1"), "{}", said(&nobody));
}
