//! The web source against servers that misbehave in every way we could think of, and against a real one.
//!
//! The sink of these tests compares each byte with the image as it arrives: whatever a server does, a wrong
//! byte fails the test at once.

#[path = "support/bad_server.rs"]
mod bad_server;

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

use bad_server::{BadServer, Next, SIZE, Seen, Stream, TAG, Wire, answer, image, status};
use vmstream::config::{Config, HttpOptions};
use vmstream::error::errno;
use vmstream::source::{Document, FetchError, HttpSource, Identity, Sink, Source, Stop};

/// Compares what arrives with the image.
struct Checker {
    start: u64,
    at: u64,
}

impl Checker {
    fn at(start: u64) -> Self {
        Self { start, at: start }
    }

    fn got(&self) -> u64 {
        self.at - self.start
    }
}

impl Sink for Checker {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        assert_eq!(offset, self.at, "a piece out of order");
        assert!(bytes == image(offset, offset + bytes.len() as u64 - 1), "wrong bytes from {offset}");
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, _: u64) -> Result<(), Stop> {
        panic!("zeroes at {offset} from a web server");
    }
}

fn options(more: &[&str]) -> HttpOptions {
    let base = ["source=http://h/x", "proxy=none", "connect_timeout=20s", "stall_timeout=20s"];
    Config::parse(base.iter().chain(more)).unwrap().http
}

fn open(url: &str, more: &[&str]) -> HttpSource {
    HttpSource::open(url, &options(more), None).unwrap_or_else(|error| panic!("{url}: {error:?}"))
}

/// Fetches and gives back how much arrived.
fn fetch(source: &HttpSource, offset: u64, length: u64) -> (u64, Result<(), FetchError>) {
    let mut sink = Checker::at(offset);
    let result = source.fetch(0, offset, length, &mut sink);
    if result.is_ok() {
        assert_eq!(sink.got(), length);
    }
    (sink.got(), result)
}

fn assert_good(source: &HttpSource, offset: u64, length: u64) {
    let (_, result) = fetch(source, offset, length);
    result.unwrap_or_else(|error| panic!("{offset}+{length}: {error:?}"));
}

/// Serves the probe rightly and everything else by `handler`.
fn after_probe(handler: impl Fn(&Seen, &mut Wire<'_>) -> Next + Send + Sync + 'static) -> BadServer {
    BadServer::start(move |seen, wire| {
        if seen.number == 0 {
            wire.send(&seen.good());
            return Next::Keep;
        }
        handler(seen, wire)
    })
}

/// Opens and fetches 10,000 bytes from a server that answers the fetch by `reply`.
fn reaction(reply: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> (u64, Result<(), FetchError>) {
    let server = after_probe(move |seen, wire| {
        wire.send(&reply(seen));
        Next::Close
    });
    fetch(&open(&server.url("/image"), &[]), 4096, 10_000)
}

#[track_caller]
fn assert_fatal(result: &Result<(), FetchError>, errno: i32, part: &str) {
    match result {
        Err(FetchError::Fatal(error)) => {
            assert_eq!(error.errno(), errno, "{error}");
            let text = error.to_string();
            assert!(text.contains(part) && text.contains("http"), "{text:?} says nothing of {part:?}");
        }
        other => panic!("{other:?} is not fatal"),
    }
}

#[track_caller]
fn assert_transient(result: &Result<(), FetchError>, part: &str) -> Option<Duration> {
    match result {
        Err(FetchError::Transient { message, retry_after }) => {
            assert!(message.contains(part) && message.contains("http"), "{message:?} says nothing of {part:?}");
            *retry_after
        }
        other => panic!("{other:?} is not transient"),
    }
}

fn good_server() -> BadServer {
    BadServer::start(|seen, wire| {
        wire.send(&seen.good());
        Next::Keep
    })
}

#[test]
fn one_connection_serves_a_lane_and_the_identity_is_pinned() {
    let server = good_server();
    let source = open(&server.url("/image"), &[]);
    assert_eq!(*source.identity(), Identity { size: SIZE, validator: Some(TAG.into()), mtime_s: None });
    for (offset, length) in [(0, SIZE), (0, 1), (SIZE - 1, 1), (12_345, 300_000), (77, 4096)] {
        assert_good(&source, offset, length);
    }
    assert_eq!((server.connections(), source.requests()), (1, 6));
    for seen in &server.seen()[1..] {
        assert_eq!(seen.header("if-range"), Some(TAG));
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        assert!(seen.header("user-agent").is_some_and(|agent| agent.starts_with("vmstream/")));
    }
    let mut sink = Checker::at(5);
    source.fetch(1, 5, 5, &mut sink).unwrap();
    assert_eq!(server.connections(), 2, "another lane has a connection of its own");
}

#[test]
fn a_range_outside_the_image_is_refused_without_asking() {
    let server = good_server();
    let source = open(&server.url("/image"), &[]);
    assert!(matches!(fetch(&source, SIZE - 1, 2).1, Err(FetchError::Fatal(_))));
    assert!(matches!(fetch(&source, u64::MAX, 2).1, Err(FetchError::Fatal(_))));
    assert!(fetch(&source, SIZE, 0).1.is_ok());
    assert_eq!(source.requests(), 1);
}

#[test]
fn a_server_that_ignores_range_is_refused_at_open_and_later() {
    let whole = |_: &Seen| {
        answer(&format!("HTTP/1.1 200 OK\r\nETag: {TAG}\r\nContent-Length: {SIZE}\r\n"), &image(0, SIZE - 1))
    };
    let (got, result) = reaction(whole);
    assert_eq!(got, 0);
    assert_fatal(&result, errno::EPROTO, "ignores Range");
    let server = BadServer::start(move |seen, wire| {
        wire.send(&whole(seen));
        Next::Close
    });
    let result = HttpSource::open(&server.url("/image"), &options(&[]), None).map(|_| ());
    assert_fatal(&result, errno::EPROTO, "ignores Range");
}

#[test]
fn a_200_for_the_whole_image_is_the_whole_image() {
    let server = after_probe(|_, wire| {
        let head = format!("HTTP/1.1 200 OK\r\nETag: {TAG}\r\nContent-Length: {SIZE}\r\n");
        wire.send(&answer(&head, &image(0, SIZE - 1)));
        Next::Keep
    });
    assert_good(&open(&server.url("/image"), &[]), 0, SIZE);
}

#[test]
fn a_content_range_that_is_not_ours_gives_no_byte() {
    for range in
        ["bytes 4096-14094/1000001", "bytes 0-9999/1000001", "bytes 4096-14095/*", "bytes 4096-14096/1000001", "x"]
    {
        let (got, result) = reaction(move |_| {
            let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Length: 10000\r\nContent-Range: {range}\r\n");
            answer(&head, &image(0, 9_999))
        });
        assert_eq!(got, 0, "{range}");
        assert_fatal(&result, errno::EPROTO, "bytes 4096-14095");
    }
    let (got, result) =
        reaction(|_| answer("HTTP/1.1 206 Partial Content\r\nContent-Length: 10000\r\n", &image(0, 9_999)));
    assert_eq!(got, 0);
    assert_fatal(&result, errno::EPROTO, "Content-Range");
}

#[test]
fn a_length_that_contradicts_the_range_gives_no_byte() {
    let (got, result) = reaction(|_| {
        let head =
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 9999\r\nContent-Range: bytes 4096-14095/1000001\r\n";
        answer(head, &image(4096, 14_094))
    });
    assert_eq!(got, 0);
    assert_fatal(&result, errno::EPROTO, "9999");
}

#[test]
fn a_compressed_body_and_several_ranges_give_no_byte() {
    let (got, result) =
        reaction(|seen| answer(&format!("{}Content-Encoding: gzip\r\n", seen.good_head()), &[0x1f; 10_000]));
    assert_eq!(got, 0);
    assert_fatal(&result, errno::EPROTO, "compresses");
    let (got, result) = reaction(|_| {
        let head =
            "HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=b\r\nContent-Length: 3\r\n";
        answer(head, b"--b")
    });
    assert_eq!(got, 0);
    assert_fatal(&result, errno::EPROTO, "multipart");
}

#[test]
fn a_changed_image_is_stale_however_it_shows() {
    let part = |tag: &str, total: u64| {
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nETag: {tag}\r\nContent-Length: 10000\r\nContent-Range: bytes 4096-14095/{total}\r\n"
        );
        answer(&head, &[7; 10_000])
    };
    let replies = [
        part("\"v2\"", SIZE),
        part(TAG, SIZE + 1),
        answer("HTTP/1.1 200 OK\r\nETag: \"v2\"\r\nContent-Length: 3\r\n", b"new"),
        status("416 Range Not Satisfiable", "Content-Range: bytes */100\r\n"),
    ];
    for reply in replies {
        let shown = String::from_utf8_lossy(&reply[..50]).into_owned();
        let (got, result) = reaction(move |_| reply.clone());
        assert_eq!(got, 0, "{shown}");
        assert_fatal(&result, errno::ESTALE, "changed");
    }
}

#[test]
fn what_came_before_a_cut_is_good_and_the_cut_may_pass() {
    let (got, result) = reaction(|seen| answer(&seen.good_head(), &image(4096, 4096 + 6_999)));
    assert_eq!(got, 7_000);
    assert_transient(&result, "closed");
    let (got, result) = reaction(|_| {
        let head = "HTTP/1.0 206 Partial Content\r\nContent-Range: bytes 4096-14095/1000001\r\n";
        answer(head, &image(4096, 4096 + 6_999))
    });
    assert_eq!(got, 7_000);
    assert_transient(&result, "7000 of 10000");
}

#[test]
fn a_body_that_does_not_end_where_it_should_is_an_error() {
    let chunk = |bytes: &[u8]| answer(&format!("{:x}", bytes.len()), &[bytes, b"\r\n"].concat());
    let (got, result) = reaction(move |_| {
        let head =
            "HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes 4096-14095/1000001\r\n";
        answer(head, &[chunk(&image(4096, 14_095)), chunk(b"more"), chunk(b"")].concat())
    });
    assert_eq!(got, 10_000);
    assert_fatal(&result, errno::EPROTO, "more than it announced");
}

#[test]
fn all_honest_framings_of_a_body_are_understood() {
    let server = after_probe(|seen, wire| {
        let (first, last) = seen.range();
        let range = format!("Content-Range: bytes {first}-{last}/{SIZE}\r\n");
        let body = image(first, last);
        match seen.number {
            1 => {
                let mut bytes = answer(&format!("HTTP/1.1 206 P\r\nTransfer-Encoding: chunked\r\n{range}"), b"");
                for piece in body.chunks(777) {
                    bytes.extend(answer(&format!("{:x}", piece.len()), &[piece, b"\r\n"].concat()));
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
                wire.send(&bytes);
                Next::Keep
            }
            2 => {
                // Early hints may come first.
                wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
                wire.send(&seen.good());
                Next::Keep
            }
            _ => {
                wire.send(&answer(&format!("HTTP/1.0 206 P\r\n{range}"), &body));
                Next::Close
            }
        }
    });
    let source = open(&server.url("/image"), &[]);
    for _ in 0..3 {
        assert_good(&source, 100, 20_000);
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn silence_ends_a_request_and_a_trickle_does_not() {
    let server = after_probe(|seen, wire| {
        wire.send(&answer(&seen.good_head(), &image(0, 99)));
        wire.until_gone()
    });
    let (got, result) = fetch(&open(&server.url("/image"), &["stall_timeout=200ms"]), 0, 1000);
    assert_eq!(got, 100);
    assert_transient(&result, "no byte for 200ms");

    // Twice the limit in all, but never near it without a byte.
    let server = after_probe(|seen, wire| {
        let (first, last) = seen.range();
        wire.send(&answer(&seen.good_head(), b""));
        for piece in image(first, last).chunks(100) {
            sleep(Duration::from_millis(200));
            wire.send(piece);
        }
        Next::Keep
    });
    assert_good(&open(&server.url("/image"), &["stall_timeout=1500ms"]), 0, 1500);
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let server = BadServer::start(|_, wire| wire.until_gone());
    let result = HttpSource::open(&server.url("/image"), &options(&["stall_timeout=100ms"]), None).map(|_| ());
    assert_transient(&result, "no byte for 100ms");
}

#[test]
fn an_overloaded_server_names_its_own_time() {
    let (_, result) = reaction(|_| status("503 Busy", "Retry-After: 7\r\n"));
    assert_eq!(assert_transient(&result, "503"), Some(Duration::from_secs(7)));
    let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nRetry-After: Sun, 06 Nov 1994 08:49:40 GMT\r\n";
    let (_, result) = reaction(move |_| status("429 Slow Down", date));
    assert_eq!(assert_transient(&result, "429"), Some(Duration::from_secs(3)));
    let (_, result) = reaction(|_| status("500 Oops", ""));
    assert_eq!(assert_transient(&result, "500"), None);
}

#[test]
fn what_can_never_succeed_is_fatal_and_says_why() {
    for (line, errno) in [
        ("404 Not Found", errno::ENOENT),
        ("410 Gone", errno::ENOENT),
        ("401 Unauthorized", errno::EACCES),
        ("403 Forbidden", errno::EACCES),
        ("416 Range Not Satisfiable", errno::EPROTO),
        ("400 Bad Request", errno::EPROTO),
    ] {
        let (got, result) = reaction(move |_| status(line, ""));
        assert_eq!(got, 0);
        assert_fatal(&result, errno, &line[..3]);
    }
}

#[test]
fn garbage_is_final_at_first_contact_and_may_pass_later() {
    let server = BadServer::start(|_, wire| {
        wire.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n\r\n");
        Next::Close
    });
    let result = HttpSource::open(&server.url("/image"), &options(&[]), None).map(|_| ());
    assert_fatal(&result, errno::EPROTO, "does not speak HTTP");
    let (got, result) = reaction(|_| b"HTTP/1.1 206\x01\r\nA B C\r\n: :\r\n\r\n".to_vec());
    assert_eq!(got, 0);
    assert_transient(&result, "does not speak HTTP");
}

#[test]
fn a_connection_dropped_while_idle_is_replaced_unseen() {
    // The server closes after each answer without a word.
    let server = BadServer::start(|seen, wire| {
        wire.send(&seen.good());
        Next::Close
    });
    let source = open(&server.url("/image"), &[]);
    for _ in 0..5 {
        assert_good(&source, 10, 10);
    }
    // The close crosses the request: it is read, and the connection ends without an answer.
    let server = BadServer::start(|seen, wire| {
        if seen.number % 2 == 1 {
            return Next::Close;
        }
        wire.send(&seen.good());
        Next::Keep
    });
    let source = open(&server.url("/image"), &[]);
    for _ in 0..5 {
        assert_good(&source, 10, 10);
    }
    assert_eq!((server.seen().len(), server.connections()), (11, 6));
}

#[test]
fn a_new_connection_that_is_closed_is_a_failure_and_not_retried_for_ever() {
    let server = after_probe(|_, _| Next::Close);
    let source = open(&server.url("/image"), &[]);
    assert_transient(&fetch(&source, 0, 10).1, "closed");
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn warming_makes_a_connection_that_the_fetch_then_uses() {
    let server = good_server();
    let pinned = Identity { size: SIZE, validator: Some(TAG.into()), mtime_s: None };
    let source =
        HttpSource::open(&server.url("/image"), &options(&[]), Some(&pinned)).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(server.seen().len(), 0);
    source.warm(3);
    source.warm(3);
    assert_eq!((server.seen().len(), server.connections()), (1, 1));
    source.fetch(3, 0, 10, &mut Checker::at(0)).unwrap();
    assert_eq!(server.connections(), 1);
}

#[test]
fn without_a_pinned_validator_the_first_answer_sets_it() {
    let server = BadServer::start(|seen, wire| {
        let (first, last) = seen.range();
        let tag = if seen.number < 2 { TAG } else { "\"v2\"" };
        let head = format!(
            "HTTP/1.1 206 P\r\nETag: {tag}\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{SIZE}\r\n",
            last - first + 1
        );
        wire.send(&answer(&head, &image(first, last)));
        Next::Keep
    });
    let pinned = Identity { size: SIZE, validator: None, mtime_s: None };
    let source =
        HttpSource::open(&server.url("/image"), &options(&[]), Some(&pinned)).unwrap_or_else(|e| panic!("{e:?}"));
    assert_good(&source, 0, 10);
    assert_good(&source, 0, 10);
    assert_fatal(&fetch(&source, 0, 10).1, errno::ESTALE, "changed");
    assert_eq!(server.seen()[0].header("if-range"), None);
    assert_eq!(server.seen()[1].header("if-range"), Some(TAG));
}

#[test]
fn a_weak_tag_is_not_sent_back_and_a_date_pins_instead() {
    let server = BadServer::start(|seen, wire| {
        let (first, last) = seen.range();
        let head = format!(
            "HTTP/1.1 206 P\r\nETag: W/\"v1\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             Date: Sun, 06 Nov 1994 08:50:00 GMT\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{SIZE}\r\n",
            last - first + 1
        );
        wire.send(&answer(&head, &image(first, last)));
        Next::Keep
    });
    let source = open(&server.url("/image"), &[]);
    assert_eq!(source.identity().validator.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    assert_eq!(source.identity().mtime_s, Some(784_111_777));
    assert_good(&source, 0, 10);
    assert_eq!(server.seen()[1].header("if-range"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
}

#[test]
fn a_redirect_is_followed_once_and_again_when_its_target_expires() {
    let expired = Arc::new(AtomicUsize::new(0));
    let bound = expired.clone();
    let target = BadServer::start(move |seen, wire| {
        let version: usize = seen.target.trim_start_matches("/signed?v=").parse().unwrap();
        let valid = version >= bound.load(Ordering::SeqCst);
        wire.send(&if valid { seen.good() } else { status("403 Expired", "") });
        Next::Keep
    });
    let (url, version) = (target.url("/signed?v="), expired.clone());
    let origin = BadServer::start(move |_, wire| {
        let now = version.load(Ordering::SeqCst);
        wire.send(&status("302 Found", &format!("Location: {url}{now}\r\n")));
        Next::Keep
    });
    let secret = format!("http://me:pass@{}/image", origin.address);
    let source = open(&secret, &["header=X-Token: t0p"]);
    for _ in 0..5 {
        assert_good(&source, 5, 500);
    }
    assert_eq!((origin.seen().len(), target.seen().len()), (1, 6));
    expired.store(1, Ordering::SeqCst);
    for _ in 0..5 {
        assert_good(&source, 5, 500);
    }
    assert_eq!((origin.seen().len(), target.seen().len()), (2, 12));
    assert!(
        origin
            .seen()
            .iter()
            .all(|s| s.header("authorization") == Some("Basic bWU6cGFzcw==") && s.header("x-token") == Some("t0p"))
    );
    assert!(target.seen().iter().all(|s| s.header("authorization").is_none() && s.header("x-token").is_none()));
    // The target disappears as a whole: the origin is asked where the image is now.
    drop(target);
    let result = fetch(&source, 0, 10).1;
    let message = format!("{result:?}");
    assert_transient(&result, "redirected");
    assert!(!message.contains("v=1") && !message.contains("pass"), "{message}");
    assert_eq!(origin.seen().len(), 3);
}

#[test]
fn redirect_loops_and_bad_redirects_end() {
    let server = BadServer::start(|_, wire| {
        wire.send(&status("301 Moved", "Location: /image\r\n"));
        Next::Keep
    });
    let result = HttpSource::open(&server.url("/image"), &options(&[]), None).map(|_| ());
    assert_fatal(&result, errno::EPROTO, "redirects in a row");
    assert_eq!(server.seen().len(), 11);
    for headers in ["Location: ftp://h/x\r\n", "Location: http://\r\n", ""] {
        let server = BadServer::start(move |_, wire| {
            wire.send(&status("302 Found", headers));
            Next::Close
        });
        let result = HttpSource::open(&server.url("/image"), &options(&[]), None).map(|_| ());
        assert_fatal(&result, errno::EPROTO, "a redirect ");
    }
}

#[test]
fn a_plain_request_through_a_proxy_goes_in_absolute_form() {
    let proxy = good_server();
    let option = format!("proxy=http://who:knows@{}", proxy.address);
    let source = HttpSource::open("http://origin.invalid:8080/image?k=v", &options(&[&option]), None);
    let source = source.unwrap_or_else(|error| panic!("{error:?}"));
    assert_good(&source, 3, 3000);
    for seen in proxy.seen() {
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "http://origin.invalid:8080/image?k=v"));
        assert_eq!(seen.header("host"), Some("origin.invalid:8080"));
        assert_eq!(seen.header("proxy-authorization"), Some("Basic d2hvOmtub3dz"));
    }
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn lanes_do_not_disturb_each_other() {
    let server = good_server();
    let source = open(&server.url("/image"), &[]);
    std::thread::scope(|scope| {
        for lane in 0..8 {
            let source = &source;
            scope.spawn(move || {
                for turn in 0..20u64 {
                    let offset = (lane as u64 * 100_003 + turn * 7_919) % (SIZE - 5_000);
                    source.fetch(lane, offset, 5_000, &mut Checker::at(offset)).unwrap();
                }
            });
        }
    });
    assert_eq!((server.connections(), source.requests()), (8, 161));
}

#[test]
fn a_mirror_goes_on_where_another_was_cut_and_each_keeps_its_own_validator() {
    let cut = after_probe(|seen, wire| {
        let (first, _) = seen.range();
        wire.send(&answer(&seen.good_head(), &image(first, first + 999)));
        Next::Close
    });
    let other = BadServer::start(|seen, wire| {
        let (first, last) = seen.range();
        let range = format!("Content-Length: {}\r\nContent-Range: bytes {first}-{last}/{SIZE}\r\n", last - first + 1);
        wire.send(&answer(&format!("HTTP/1.1 206 P\r\nETag: \"other\"\r\n{range}"), &image(first, last)));
        Next::Keep
    });
    let urls = [format!("source={}", cut.url("/a")), format!("mirror={}", other.url("/b")), "proxy=none".to_owned()];
    let config = Config::parse(&urls).unwrap();
    let source = vmstream::source::open(&config, None).unwrap();
    source.fetch(0, 50, 20_000, &mut Checker::at(50)).unwrap();
    assert_eq!(other.seen()[0].range(), (1050, 20_049));
    source.fetch(0, 50, 20_000, &mut Checker::at(50)).unwrap();
    assert_eq!(other.seen()[1].header("if-range"), Some("\"other\""));
    // Opened again from what was pinned, without contact, and the second mirror is not held to the first's tag.
    let asked = (cut.seen().len(), other.seen().len());
    let again = vmstream::source::open(&config, Some(source.identity())).unwrap();
    assert_eq!((cut.seen().len(), other.seen().len()), asked);
    again.fetch(0, 50, 20_000, &mut Checker::at(50)).unwrap();
    assert_eq!(cut.seen().last().and_then(|s| s.header("if-range").map(str::to_owned)).as_deref(), Some(TAG));
}

/// A certificate authority made for one test, and a server certificate of it for `localhost`.
struct Authority {
    pem: tempfile::NamedTempFile,
    server: Arc<rustls::ServerConfig>,
}

fn authority() -> Authority {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap();
    let pem = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(pem.path(), root.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    Authority { pem, server: Arc::new(server) }
}

fn tls_server(config: Arc<rustls::ServerConfig>) -> BadServer {
    let wrap = move |stream: TcpStream| {
        let connection = rustls::ServerConnection::new(config.clone()).ok()?;
        Some(Box::new(rustls::StreamOwned::new(connection, stream)) as Box<dyn Stream>)
    };
    BadServer::wrapped(Box::new(wrap), |seen, wire| {
        wire.send(&seen.good());
        Next::Keep
    })
}

#[test]
fn tls_works_with_the_users_authority_and_not_with_a_stranger() {
    let authority = authority();
    let server = tls_server(authority.server.clone());
    let url = format!("https://localhost:{}/image", server.address.port());
    let cacert = format!("cacert={}", authority.pem.path().display());
    let source = open(&url, &[&cacert]);
    assert_good(&source, 0, SIZE);
    assert_good(&source, 99, 4096);
    assert_eq!(server.connections(), 1);
    let result = HttpSource::open(&url, &options(&[]), None).map(|_| ());
    assert_fatal(&result, errno::EACCES, "not trusted");
    // The certificate is for localhost and not for the address.
    let other = format!("https://127.0.0.1:{}/image", server.address.port());
    let result = HttpSource::open(&other, &options(&[&cacert]), None).map(|_| ());
    assert_fatal(&result, errno::EACCES, "not trusted");
    let plain = good_server();
    let result = HttpSource::open(&plain.url("/").replace("http:", "https:"), &options(&[]), None).map(|_| ());
    assert!(result.is_err(), "TLS with a server that has none");
}

#[test]
fn a_redirect_that_drops_the_encryption_is_refused() {
    let authority = authority();
    let plain = good_server();
    let location = format!("Location: {}\r\n", plain.url("/image"));
    let config = authority.server.clone();
    let wrap = move |stream: TcpStream| {
        let connection = rustls::ServerConnection::new(config.clone()).ok()?;
        Some(Box::new(rustls::StreamOwned::new(connection, stream)) as Box<dyn Stream>)
    };
    let server = BadServer::wrapped(Box::new(wrap), move |_, wire| {
        wire.send(&status("302 Found", &location));
        Next::Close
    });
    let url = format!("https://localhost:{}/image", server.address.port());
    let cacert = format!("cacert={}", authority.pem.path().display());
    let result = HttpSource::open(&url, &options(&[&cacert]), None).map(|_| ());
    assert_fatal(&result, errno::EPROTO, "drop the encryption");
    assert_eq!(plain.seen().len(), 0);
}

#[test]
fn tls_through_a_proxy_goes_through_a_tunnel() {
    let authority = authority();
    let server = tls_server(authority.server.clone());
    let address = server.address;
    let proxy = BadServer::start(move |seen, wire| {
        if seen.header("proxy-authorization") != Some("Basic d2hvOmtub3dz") {
            wire.send(b"HTTP/1.1 407 Who?\r\n\r\n");
            return Next::Close;
        }
        wire.send(b"HTTP/1.1 200 Connected\r\n\r\n");
        let (Ok(mut up), Ok(mut down)) = (TcpStream::connect(address), wire.tcp.try_clone()) else {
            return Next::Close;
        };
        let (Ok(mut up_again), Ok(mut down_again)) = (up.try_clone(), down.try_clone()) else { return Next::Close };
        let back = spawn(move || {
            let _ = std::io::copy(&mut up_again, &mut down_again);
        });
        let _ = std::io::copy(&mut down, &mut up);
        let _ = up.shutdown(std::net::Shutdown::Both);
        let _ = back.join();
        Next::Close
    });
    let url = format!("https://localhost:{}/image", server.address.port());
    let cacert = format!("cacert={}", authority.pem.path().display());
    let option = format!("proxy=http://who:knows@{}", proxy.address);
    assert_good(&open(&url, &[&cacert, &option]), 5, 100_000);
    assert_eq!(proxy.seen()[0].method, "CONNECT");
    let option = format!("proxy=http://{}", proxy.address);
    let result = HttpSource::open(&url, &options(&[&cacert, &option]), None).map(|_| ());
    assert_fatal(&result, errno::EACCES, "proxy");
}

#[test]
fn a_real_nginx_serves_an_image() {
    const NGINX: &str = "/usr/sbin/nginx";
    if !std::path::Path::new(NGINX).exists() {
        eprintln!("SKIPPED: {NGINX} is not installed; this test has checked nothing");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), image(0, SIZE - 1)).unwrap();
    let mut nginx = Nginx::start(NGINX, dir.path());
    let url = format!("http://127.0.0.1:{}/image", nginx.port);
    // It is ready when it answers; until then connections are refused.
    let source = (0..600).find_map(|_| match HttpSource::open(&url, &options(&[]), None) {
        Ok(source) => Some(source),
        Err(FetchError::Transient { .. }) => {
            assert!(nginx.child.try_wait().unwrap().is_none(), "nginx ended");
            sleep(Duration::from_millis(50));
            None
        }
        Err(error) => panic!("{error:?}"),
    });
    let source = source.expect("nginx answers within 30 s");
    assert_eq!(source.identity().size, SIZE);
    assert!(source.identity().validator.is_some() && source.identity().mtime_s.is_some());
    for (offset, length) in [(0, SIZE), (SIZE - 7, 7), (4096, 4096), (1, 500_000)] {
        assert_good(&source, offset, length);
    }
    let image_path = dir.path().join("image");
    std::fs::write(&image_path, vec![9; SIZE as usize - 1]).unwrap();
    assert_fatal(&fetch(&source, 0, 4096).1, errno::ESTALE, "changed");
    std::fs::remove_file(&image_path).unwrap();
    assert_fatal(&fetch(&source, 0, 4096).1, errno::ENOENT, "404");
}

/// A running nginx, ended when dropped.
struct Nginx {
    child: std::process::Child,
    port: u16,
}

impl Nginx {
    fn start(program: &str, dir: &std::path::Path) -> Self {
        // The port is free now; should somebody take it before nginx does, nginx ends and the test says so.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = dir.display();
        let user = if std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0) {
            "user root;"
        } else {
            ""
        };
        let text = format!(
            "{user} daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ }}\n\
             http {{ access_log off; client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;\n\
             uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5; server {{ listen 127.0.0.1:{port}; root {at}; }} }}\n"
        );
        let conf = dir.join("nginx.conf");
        std::fs::write(&conf, text).unwrap();
        let child = std::process::Command::new(program).arg("-p").arg(dir).arg("-c").arg(&conf).spawn().unwrap();
        Self { child, port }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fetches a document of at most 4096 bytes from a server that answers like this.
fn small(reply: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Result<Vec<u8>, FetchError> {
    let server = BadServer::start(move |seen, wire| {
        wire.send(&reply(seen));
        Next::Close
    });
    let result = Document::at(&server.url("/pointer"), &options(&[])).unwrap().fetch_small(4096);
    assert_eq!(server.seen().iter().map(Seen::range).collect::<Vec<_>>(), [(0, 4095)]);
    result
}

#[test]
fn a_small_document_comes_in_one_request_however_short_it_is() {
    let partial = |range: &'static str, length: u64| {
        small(move |_| {
            let head =
                format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {range}\r\nContent-Length: {length}\r\n");
            answer(&head, &image(0, length - 1))
        })
    };
    assert!(partial("0-299/300", 300).unwrap() == image(0, 299));
    assert!(partial("0-4095/4096", 4096).unwrap() == image(0, 4095));
    let whole = small(|_| answer("HTTP/1.1 200 OK\r\nContent-Length: 300\r\n", &image(0, 299)));
    assert!(whole.unwrap() == image(0, 299), "a server without ranges is good enough");
    assert_fatal(&partial("0-4095/4097", 4096).map(|_| ()), errno::EFBIG, "more than the 4096");
    assert_fatal(&partial("0-298/300", 299).map(|_| ()), errno::EPROTO, "instead of those asked for");
    assert_fatal(&partial("1-299/300", 299).map(|_| ()), errno::EPROTO, "instead of those asked for");
    assert_fatal(&small(|_| status("404 Not Found", "")).map(|_| ()), errno::ENOENT, "not found");
    let long = small(|_| answer("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n", &image(0, 4999)));
    assert_fatal(&long.map(|_| ()), errno::EFBIG, "more than the 4096");
}
