//! The server as a process: where it says its address, signals, statistics, exit codes.

use std::net::TcpStream;
use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Client, Server, eventually, sample, vmstream};

fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk.img"), sample(1 << 20)).unwrap();
    dir
}

fn report(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn statistics_come_on_demand_and_at_the_end() {
    let (dir, out) = (site(), tempfile::tempdir().unwrap());
    let path = out.path().join("stats.json");
    let server = Server::start(dir.path(), &["--rate", "1gbit", "--stats", path.to_str().unwrap()]);
    let mut client = server.client();
    client.get("/disk.img", "Range: bytes=0-99\r\n");
    server.signal(Signal::USR1);
    let first = eventually("statistics after SIGUSR1", || path.exists().then(|| report(&path)));
    assert_eq!(first["files"]["/disk.img"], serde_json::json!({"requests": 1, "bytes": 100}));
    client.get("/disk.img", "Range: bytes=0-899\r\n");
    let missing = client.get("/missing", "").body.len();
    server.client().get("/disk.img", "Range: bytes=0-99\r\n");
    server.signal(Signal::TERM);
    let (code, _) = server.wait();
    assert_eq!(code, Some(0));
    let last = report(&path);
    assert_eq!(last["files"], serde_json::json!({"/disk.img": {"requests": 3, "bytes": 1100}}));
    assert_eq!((last["connections"].as_u64(), last["requests"].as_u64()), (Some(2), Some(4)));
    assert_eq!(last["bytes"].as_u64(), Some(1100 + missing as u64));
    assert!(last["link_bytes"].as_u64() > last["bytes"].as_u64(), "headers use the link too: {last}");
}

#[test]
fn the_first_signal_lets_a_response_end_and_closes_what_is_idle() {
    let dir = site();
    let server = Server::start(dir.path(), &["--rate", "8mbit"]);
    let mut idle = server.client();
    idle.get("/disk.img", "Range: bytes=0-0\r\n");
    let mut client = server.client();
    client.send("GET /disk.img HTTP/1.1\r\nHost: here\r\n\r\n");
    let mut answer = client.head();
    server.signal(Signal::INT);
    client.body(&mut answer);
    assert!(answer.body == sample(1 << 20));
    assert!(idle.ended() && client.ended());
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn the_second_signal_ends_at_once() {
    let dir = site();
    let server = Server::start(dir.path(), &["--rate", "80kbit"]);
    let mut client = server.client();
    client.send("GET /disk.img HTTP/1.1\r\nHost: here\r\n\r\n");
    client.head();
    server.signal(Signal::TERM);
    // The server has taken the first signal when it accepts no more; earlier, two could count as one.
    eventually("no more connections", || TcpStream::connect(server.address).err());
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0, Some(143));
}

#[test]
fn the_port_can_go_to_a_file() {
    let (dir, out) = (site(), tempfile::tempdir().unwrap());
    let path = out.path().join("port");
    let args = ["serve", "--listen", "127.0.0.1:0", "--port-file", path.to_str().unwrap()];
    let mut child = vmstream(&args).arg(dir.path()).spawn().unwrap();
    let port = eventually("a port file", || path.exists().then(|| std::fs::read_to_string(&path).unwrap()));
    let address = format!("127.0.0.1:{}", port.trim()).parse().unwrap();
    assert_eq!(Client::connect(address).get("/disk.img", "Range: bytes=0-9\r\n").body, sample(10));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait().and_then(|_| child.wait_with_output()).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn the_access_log_tells_of_every_request() {
    let dir = site();
    let server = Server::start(dir.path(), &["-v"]);
    let mut client = server.client();
    client.get("/disk.img", "Range: bytes=10-19\r\n");
    client.get("/no%0Asuch", "");
    server.signal(Signal::TERM);
    let (_, said) = server.wait();
    let line = said.lines().find(|line| line.contains("GET /disk.img")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.starts_with("vmstream: 127.0.0.1:") && line.contains("bytes=10-19: 206, 10 bytes"), "{line}");
    assert!(said.contains("GET /no%0Asuch: 404"), "{said}");
    assert!(said.contains("2 requests on 1 connections"), "{said}");
}

#[test]
fn failures_are_one_line_with_a_code() {
    let dir = site();
    let server = Server::start(dir.path(), &[]);
    let (taken, good) = (server.address.to_string(), dir.path().to_str().unwrap());
    for (args, code, parts) in [
        (&["serve", "/nonexistent/dir"][..], 1, ["/nonexistent/dir", "No such file"]),
        (&["serve", good, "--listen", &taken], 1, [&taken, "--listen"]),
        (&["serve"], 2, ["<DIR>", "--help"]),
        (&["serve", good, "--rtt", "soon"], 2, ["soon", "must be a duration"]),
        (&["serve", good, "--down", "9s..1s"], 2, ["9s..1s", "must end after"]),
        (&["servee"], 2, ["servee", "--help"]),
        (&[], 2, ["no command", "--help"]),
    ] {
        let output = vmstream(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.starts_with("vmstream: ") && said.lines().count() == 1, "{args:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}");
    }
}
