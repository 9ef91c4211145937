//! Publishing to a bucket whose service does not answer, and a wish to end.
//!
//! What goes well is tried in tests/system/origins.sh, with a service that knows all of S3.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::*;

/// Nothing here takes that long unless it hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// The head of a request.
fn head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// A service that has nothing: says so to HEAD unless it is `deaf`, and leaves everything else without an answer and its body
/// unread. What it was asked comes through the channel.
fn service(deaf: bool) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sender: Sender<String> = sender.clone();
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                while let Some(head) = head(&mut stream) {
                    let nothing = head.starts_with("HEAD ") && !deaf;
                    let _ = sender.send(head);
                    if nothing {
                        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
                    } else {
                        // Until the other side has gone.
                        std::thread::sleep(2 * LIMIT);
                    }
                }
            });
        }
    });
    (format!("http://{address}"), asked)
}

/// A command with credentials for the service at an address.
fn vmstream_at(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmstream"));
    command.args(arguments).env("AWS_ENDPOINT_URL", address);
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
    for other in ["AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "http_proxy", "all_proxy"] {
        command.env_remove(other);
    }
    command
}

fn ended(mut child: Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if began.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_ends_an_upload_whatever_the_service_does() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    // More than fits into the sockets' buffers.
    image(&disk, 12 << 20, &[(0, 12 << 20)]);
    publish(&disk, &site, &[]);
    for (deaf, at) in [(true, "HEAD "), (false, "PUT ")] {
        let (address, asked) = service(deaf);
        let arguments = ["publish", text(&disk), "-o", text(&site), "--to", "s3://images/disks"];
        let mut command = vmstream_at(&address, &arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
        let mut heads = Vec::new();
        while heads.last().is_none_or(|head: &String| !head.starts_with(at)) {
            heads.push(asked.recv_timeout(LIMIT).unwrap());
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert_eq!(ended(child), Some(130), "{at}");
        heads.extend(asked.try_iter());
        assert!(!heads.iter().any(|head| head.contains("disk.vmp")), "the pointer was not touched");
        // S3 takes no body whose length it does not know.
        for head in heads.iter().filter(|head| head.starts_with("PUT ")) {
            let head = head.to_ascii_lowercase();
            assert!(head.contains("content-length: 12582912\r\n") && !head.contains("chunked"), "{head}");
        }
    }
}

#[test]
fn all_that_lies_in_a_bucket_is_learnt_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let text_of = |n: u64| format!("# vmtrace 1 size=1048576 block=4096\n1000 R {} 8192\n", n * 16384);
    let local: Vec<_> = (0..3).map(|n| dir.path().join(format!("{n}.vmtrace"))).collect();
    (0..).zip(&local).for_each(|(n, path)| std::fs::write(path, text_of(n)).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    // One name on each page, the page being what the token says; something that is no session stands between.
    let answer = move |head: &str| {
        let path = head.split(' ').nth(1).unwrap();
        let Some((_, query)) = path.split_once("list-type=2") else {
            let name = path.split('?').next().unwrap().rsplit('/').next().unwrap();
            return match name.strip_suffix(".vmtrace") {
                Some(n) => text_of(n.parse().unwrap()),
                None => "no session".to_owned(),
            };
        };
        assert!(query.contains("prefix=all%2F") || head.contains("prefix=all%2F"), "{head}");
        let page: usize = path.split_once("continuation-token=").map_or(0, |(_, rest)| rest[..1].parse().unwrap());
        let names = ["all/0.vmtrace", "all/junk.vms", "all/1.vmtrace", "all/2.vmtrace"];
        let next = if page + 1 < names.len() {
            format!("<NextContinuationToken>{}</NextContinuationToken>", page + 1)
        } else {
            String::new()
        };
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Name>sessions</Name><Prefix>all/</Prefix><MaxKeys>1</MaxKeys><IsTruncated>true</IsTruncated>\
             <Contents><Key>{}</Key><LastModified>2026-11-22T15:04:48.000Z</LastModified><ETag>\"e\"</ETag><Size>9</Size>\
             <StorageClass>STANDARD</StorageClass></Contents>{next}</ListBucketResult>",
            names[page]
        )
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Some(head) = head(&mut stream) {
                let body = answer(&head);
                let length = body.len();
                let sent =
                    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes());
                if sent.is_err() {
                    break;
                }
            }
        }
    });
    let [theirs, ours] = ["theirs.vmm", "ours.vmm"].map(|name| dir.path().join(name));
    let trained = vmstream_at(&address, &["train", "-o", text(&theirs), "s3://sessions/all"]).output().unwrap();
    let said = String::from_utf8(trained.stderr).unwrap();
    assert!(trained.status.success() && said.contains("s3://sessions/all/junk.vms"), "{said}");
    let local: Vec<_> = local.iter().map(|path| text(path)).collect();
    assert!(vmstream(&[&["train", "-o", text(&ours)], &local[..]].concat()).status.success());
    assert!(std::fs::read(theirs).unwrap() == std::fs::read(ours).unwrap());
}
