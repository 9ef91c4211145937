//! What RFC 9110 demands of an origin of ranges.

use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use crate::harness::{Server, sample};

const SIZE: usize = 3 << 20;

/// A directory with `disk.img` of [`SIZE`] bytes, an hour old.
fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::write(&path, sample(SIZE)).unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    dir
}

#[test]
fn a_file_is_served_whole_and_described() {
    let dir = site();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client();
    let get = client.get("/disk.img", "");
    assert_eq!(get.status, 200);
    assert!(get.body == sample(SIZE));
    assert_eq!(get.header("content-type"), Some("application/octet-stream"));
    assert_eq!(get.header("accept-ranges"), Some("bytes"));
    assert!(get.header("last-modified").unwrap().ends_with(" GMT"));
    let etag = get.header("etag").unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2, "{etag}");
    // HEAD says the same without a body: the next answer on the connection is read right behind it.
    let head = client.ask("HEAD", "/disk.img", "");
    assert_eq!(head.status, 200);
    let without_date =
        |headers: &[(String, String)]| headers.iter().filter(|(name, _)| name != "date").cloned().collect::<Vec<_>>();
    assert_eq!(without_date(&head.headers), without_date(&get.headers));
    assert_eq!(client.get("/disk.img", "Range: bytes=0-3\r\n").body, sample(4));
}

#[test]
fn ranges_of_every_form() {
    let dir = site();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    let server = Server::start(dir.path(), &[]);
    let (mut client, all) = (server.client(), sample(SIZE));
    for (range, part) in [
        ("0-0", 0..1),
        ("4096-8191", 4096..8192),
        ("1000001-", 1_000_001..SIZE),
        ("-777", SIZE - 777..SIZE),
        ("-99999999", 0..SIZE),
        ("3145727-99999999", SIZE - 1..SIZE),
        ("5-6,100-200", 5..7),
        ("99999999-,7-8", 7..9),
    ] {
        let answer = client.get("/disk.img", &format!("Range: bytes={range}\r\n"));
        assert_eq!(answer.status, 206, "{range}");
        assert!(answer.body == all[part.clone()], "{range}: wrong bytes");
        let expected = format!("bytes {}-{}/{SIZE}", part.start, part.end - 1);
        assert_eq!(answer.header("content-range"), Some(expected.as_str()), "{range}");
    }
    for range in ["bytes=3145728-", "bytes=-0", "bytes=99999999-999999999"] {
        let answer = client.get("/disk.img", &format!("Range: {range}\r\n"));
        assert_eq!((answer.status, answer.header("content-range")), (416, Some("bytes */3145728")), "{range}");
    }
    for ignored in ["Range: bytes=9-8\r\n", "Range: blocks=0-1\r\n", "Range: bytes=0-1\r\nRange: bytes=0-1\r\n"] {
        let answer = client.get("/disk.img", ignored);
        assert_eq!((answer.status, answer.body.len(), answer.header("content-range")), (200, SIZE, None), "{ignored}");
    }
    let head = client.ask("HEAD", "/disk.img", "Range: bytes=0-1\r\n");
    assert_eq!((head.status, head.header("content-length")), (200, Some("3145728")), "ranges are for GET");
    assert_eq!(client.get("/empty", "").body, b"");
    assert_eq!(client.get("/empty", "Range: bytes=0-\r\n").header("content-range"), Some("bytes */0"));
}

#[test]
fn conditions_decide_before_ranges() {
    let dir = site();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client();
    let first = client.get("/disk.img", "Range: bytes=0-0\r\n");
    let (etag, date) = (first.header("etag").unwrap().to_owned(), first.header("last-modified").unwrap().to_owned());
    let mut status = |headers: &str| {
        let answer = client.get("/disk.img", headers);
        assert_eq!(answer.header("etag"), Some(etag.as_str()), "{headers}");
        answer.status
    };
    assert_eq!(status(&format!("If-None-Match: \"x\", {etag}\r\n")), 304);
    assert_eq!(status("If-None-Match: \"x\"\r\nRange: bytes=0-1\r\n"), 206);
    assert_eq!(status(&format!("If-Modified-Since: {date}\r\nRange: bytes=0-1\r\n")), 304);
    assert_eq!(status("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\nRange: bytes=0-1\r\n"), 206);
    assert_eq!(status(&format!("If-Match: {etag}\r\nRange: bytes=0-1\r\n")), 206);
    assert_eq!(status("If-Match: \"x\"\r\nRange: bytes=0-1\r\n"), 412);
    assert_eq!(status("If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), 412);
    assert_eq!(status(&format!("If-Range: {etag}\r\nRange: bytes=0-1\r\n")), 206);
    assert_eq!(status(&format!("If-Range: {date}\r\nRange: bytes=0-1\r\n")), 206);
    assert_eq!(status("If-Range: \"x\"\r\nRange: bytes=0-1\r\n"), 200);
    assert_eq!(status(&format!("If-Range: W/{etag}\r\nRange: bytes=0-1\r\n")), 200);
    assert_eq!(status(&format!("If-Range: \"x\"\r\nRange: bytes={SIZE}-\r\n")), 200, "no 416 for another version");
}

#[test]
fn every_version_of_a_file_has_a_tag_of_its_own() {
    let dir = site();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client();
    let mut etag = || client.ask("HEAD", "/disk.img", "").header("etag").unwrap().to_owned();
    let path = dir.path().join("disk.img");
    let first = etag();
    assert_eq!(etag(), first);
    // Same size, another time.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.set_modified(modified + Duration::from_nanos(1)).unwrap();
    let second = etag();
    assert_ne!(second, first);
    // Same size, same time, another file.
    std::fs::copy(&path, dir.path().join("new")).unwrap();
    let new = std::fs::File::options().write(true).open(dir.path().join("new")).unwrap();
    new.set_modified(modified + Duration::from_nanos(1)).unwrap();
    std::fs::rename(dir.path().join("new"), &path).unwrap();
    assert_ne!(etag(), second);
}

#[test]
fn nothing_outside_the_directory_is_served() {
    let top = tempfile::tempdir().unwrap();
    let root = top.path().join("root");
    std::fs::create_dir_all(root.join("sub dir/.git")).unwrap();
    std::fs::write(top.path().join("secret"), "secret").unwrap();
    std::fs::write(root.join(".hidden"), "secret").unwrap();
    std::fs::write(root.join("sub dir/.git/config"), "secret").unwrap();
    std::fs::write(root.join("sub dir/a+b.txt"), "fine").unwrap();
    symlink("../secret", root.join("out")).unwrap();
    symlink(top.path(), root.join("up")).unwrap();
    symlink("sub dir/a+b.txt", root.join("in")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    let server = Server::start(&root, &[]);
    let mut client = server.client();
    for path in [
        "/missing",
        "/../secret",
        "/sub%20dir/../../secret",
        "/%2e%2e/secret",
        "/..%2Fsecret",
        "/out",
        "/up/secret",
        "/.hidden",
        "/sub%20dir/.git/config",
        "/sub%20dir/a+b.txt/",
        "/sub%20dir/a+b.txt/x",
        "/in%00",
        "/fifo",
    ] {
        let answer = client.get(path, "");
        assert_eq!(answer.status, 404, "{path}");
        assert!(!answer.text().contains("secret"), "{path}");
    }
    for path in ["/in", "/sub%20dir/a+b.txt", "/sub%20dir//%61%2Bb.txt", "http://elsewhere/in?query"] {
        let answer = client.get(path, "");
        assert_eq!((answer.status, answer.text().as_str()), (200, "fine"), "{path}");
    }
    assert_eq!(client.get("/sub%20dir/a+b.txt", "").header("content-type"), Some("text/plain; charset=utf-8"));
    let list = client.get("/", "");
    assert_eq!(list.header("content-type"), Some("text/html; charset=utf-8"));
    let text = list.text();
    assert!(text.contains("\"./in\"") && text.contains("\"./sub%20dir/\""), "{text}");
    for hidden in [".hidden", "out", "up", "fifo"] {
        assert!(!text.contains(&format!("./{hidden}")), "{hidden} is listed: {text}");
    }
    assert!(client.get("/sub%20dir/", "").text().contains("./a%2Bb.txt"));
    let redirect = client.get("/sub%20dir", "");
    assert_eq!((redirect.status, redirect.header("location")), (301, Some("/sub%20dir/")));
}

#[test]
fn odd_requests_are_refused_in_their_own_way() {
    let dir = site();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let answer = client.ask(method, "/disk.img", "Content-Length: 0\r\n");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    assert_eq!(client.get("/%zz", "").status, 400);
    client.send("GET /disk.img HTTP/1.1\r\n\r\n");
    let mut answer = client.head();
    client.body(&mut answer);
    assert_eq!(answer.status, 400, "no Host");
    assert_eq!(client.get("/disk.img", "Connection: close\r\nRange: bytes=0-0\r\n").status, 206);
    assert!(client.ended());
    let mut client = server.client();
    client.send("GARBAGE\r\n\r\n");
    assert_eq!(client.head().status, 400);
    assert!(client.ended(), "nothing more can be understood on that connection");
}

#[test]
fn requests_sent_in_one_go_are_answered_in_order() {
    let dir = site();
    let all = sample(SIZE);
    for shaping in [&[][..], &["--rtt", "1ms", "--rate", "1gbit"]] {
        let server = Server::start(dir.path(), shaping);
        let mut client = server.client();
        let request = |i: usize| {
            let (first, last) = (i * 10_000, i * 10_000 + 5000 * i);
            format!("GET /disk.img HTTP/1.1\r\nHost: here\r\nRange: bytes={first}-{last}\r\n\r\n")
        };
        client.send(&(0..20).map(request).collect::<String>());
        for i in 0..20 {
            let mut answer = client.head();
            client.body(&mut answer);
            assert!(answer.body == all[i * 10_000..=i * 10_000 + 5000 * i], "answer {i}");
        }
    }
}
