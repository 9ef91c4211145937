//! Sessions that are sent: who may, what is kept, and that it is learnt.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::harness::{Answer, Client, Server, eventually, vmstream};
use crate::publication::{publish, session};

fn post(client: &mut Client, path: &str, headers: &str, body: &[u8]) -> Answer {
    client.send(&format!("POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {}\r\n{headers}\r\n", body.len()));
    client.send_bytes(body);
    let mut answer = client.head();
    client.body(&mut answer);
    answer
}

fn kept(site: &Path) -> Vec<PathBuf> {
    let Ok(entries) = site.join(".vmstream/disk/sessions").read_dir() else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The value of a metric.
fn metric(server: &Server, series: &str) -> f64 {
    let text = server.client().get("/metrics", "").text();
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
}

#[test]
fn a_session_is_kept_once_and_without_what_need_not_be_known() {
    let site = tempfile::tempdir().unwrap();
    let root = publish(site.path(), "disk");
    let server = Server::start(site.path(), &["--collect"]);
    let body = session(&root, &[1, 2, 3]);
    let mut client = server.client();
    assert_eq!(post(&mut client, "/sessions/disk", "", &body).status, 201);
    assert_eq!(post(&mut client, "/sessions/disk", "", &body).status, 200);
    // The same again at another time of day is the same session.
    let again = post(&mut client, "/sessions/disk", "", &session(&root, &[1, 2, 3]));
    assert_eq!((again.status, again.text().as_str()), (200, "known already\n"));
    let files = kept(site.path());
    assert_eq!(files.len(), 1, "{files:?}");
    let stored = std::fs::read(&files[0]).unwrap();
    assert!(!stored.windows(6).any(|w| w == b"secret"));
    let recording = vmstream::session::load(&files[0]).unwrap();
    assert_eq!((recording.session.accesses.len(), recording.subject.started), (3, None));
    let name = files[0].file_name().unwrap().to_str().unwrap();
    for hidden in
        [".vmstream/disk/sessions".to_owned(), format!(".vmstream/disk/sessions/{name}"), "sessions/disk".into()]
    {
        assert_eq!(client.get(&format!("/{hidden}"), "").status, 404, "{hidden}");
    }
    assert_eq!(metric(&server, "vmstream_sessions_total{outcome=\"accepted\"}"), 1.0);
    assert_eq!(metric(&server, "vmstream_sessions_total{outcome=\"known\"}"), 2.0);
}

#[test]
fn what_is_no_session_of_an_image_here_is_refused_with_its_reason() {
    let site = tempfile::tempdir().unwrap();
    let root = publish(site.path(), "disk");
    let server = Server::start(site.path(), &["--collect", "--session-rate", "1000"]);
    let good = session(&root, &[1]);
    let status = |path: &str, headers: &str, body: &[u8]| post(&mut server.client(), path, headers, body).status;
    for path in ["/sessions/other", "/sessions/", "/sessions/..%2Fdisk", "/sessions/disk/x", "/sessions/.git"] {
        assert_eq!(status(path, "", &good), 404, "{path}");
    }
    assert_eq!(status("/sessions/disk", "", b"no session"), 415);
    assert_eq!(status("/sessions/disk", "", b""), 415);
    assert_eq!(status("/sessions/disk", "Content-Type: text/html\r\n", &good), 415);
    assert_eq!(status("/sessions/disk", "", &good[..good.len() - 1]), 422);
    assert_eq!(status("/sessions/disk", "", &session(&"ab".repeat(32), &[1])), 422);
    assert_eq!(status("/sessions/disk", "", &session(&root, &[])), 422);
    assert_eq!(status("/elsewhere", "", &good), 405);
    assert!(kept(site.path()).is_empty());
    assert_eq!(metric(&server, "vmstream_sessions_total{outcome=\"unknown_image\"}"), 5.0);
    let plain = Server::start(site.path(), &[]);
    assert_eq!(post(&mut plain.client(), "/sessions/disk", "", &good).status, 405, "nobody said --collect");
}

#[test]
fn a_session_that_is_too_large_is_refused_before_it_is_read_and_while_it_comes() {
    let site = tempfile::tempdir().unwrap();
    publish(site.path(), "disk");
    let server = Server::start(site.path(), &["--collect"]);
    let mut client = server.client();
    client.send("POST /sessions/disk HTTP/1.1\r\nHost: here\r\nContent-Length: 5000000000\r\n\r\n");
    assert_eq!(client.head().status, 413, "nothing of the body was sent");
    let mut client = server.client();
    client.send("POST /sessions/disk HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = [b"100000\r\n".as_slice(), &vec![0; 1 << 20], b"\r\n"].concat();
    for _ in 0..4 {
        client.send_bytes(&chunk);
    }
    client.send_bytes(b"1\r\n0\r\n");
    assert_eq!(client.head().status, 413);
}

#[test]
fn with_tokens_only_their_owners_may_send() {
    let (site, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = publish(site.path(), "disk");
    let file = own.path().join("tokens");
    std::fs::write(&file, "# two\n0123456789abcdef\nfedcba9876543210\n").unwrap();
    let server = Server::start(site.path(), &["--collect", "--token", file.to_str().unwrap()]);
    let body = session(&root, &[1]);
    let mut client = server.client();
    for wrong in ["", "Authorization: Bearer 0123456789abcdeF\r\n", "Authorization: Basic 0123456789abcdef\r\n"] {
        let answer = post(&mut client, "/sessions/disk", wrong, &body);
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{wrong}");
    }
    assert_eq!(post(&mut client, "/sessions/disk", "Authorization: Bearer fedcba9876543210\r\n", &body).status, 201);
    assert_eq!(client.get("/disk.vmp", "").status, 200, "reading needs no token");
    assert_eq!(metric(&server, "vmstream_sessions_total{outcome=\"unauthorized\"}"), 3.0);
}

#[test]
fn a_client_that_sends_too_often_is_told_when_to_come_again() {
    let site = tempfile::tempdir().unwrap();
    let root = publish(site.path(), "disk");
    let server = Server::start(site.path(), &["--collect", "--session-rate", "2", "--trust-proxy"]);
    let mut client = server.client();
    let body = session(&root, &[1]);
    let from = |address| format!("X-Forwarded-For: 10.9.9.9\r\nX-Forwarded-For: 10.8.8.8, {address}\r\n");
    assert_eq!(post(&mut client, "/sessions/disk", &from("10.0.0.1"), &body).status, 201);
    assert_eq!(post(&mut client, "/sessions/disk", &from("10.0.0.1"), &body).status, 200);
    let refused = post(&mut client, "/sessions/disk", &from("10.0.0.1"), &body);
    assert_eq!(refused.status, 429);
    assert!((1..=30).contains(&refused.header("retry-after").unwrap().parse::<u64>().unwrap()));
    assert_eq!(post(&mut client, "/sessions/disk", &from("10.0.0.2"), &body).status, 200, "another client");
}

#[test]
fn where_there_is_no_room_it_is_said() {
    let site = tempfile::tempdir().unwrap();
    let root = publish(site.path(), "disk");
    let server = Server::start(site.path(), &["--collect", "--history", "100"]);
    let body = session(&root, &(0..250).collect::<Vec<_>>());
    assert_eq!(post(&mut server.client(), "/sessions/disk", "", &body).status, 507);
}

#[test]
fn sessions_are_learnt_and_shown_even_if_the_server_was_killed_before() {
    let site = tempfile::tempdir().unwrap();
    let root = publish(site.path(), "disk");
    let first = Server::start(site.path(), &["--collect", "--retrain-every", "1000m"]);
    for n in 0..3 {
        let body = session(&root, &[1, 2, 3, 10 + n]);
        assert_eq!(post(&mut first.client(), "/sessions/disk", "", &body).status, 201);
    }
    first.signal(Signal::KILL);
    drop(first);
    let model = site.path().join(".vmstream/disk/model.vmm");
    assert!(!model.exists());
    let server = Server::start(site.path(), &["--collect", "--retrain-every", "0"]);
    eventually("a lesson", || (metric(&server, "vmstream_trainings_total{outcome=\"learnt\"}") == 1.0).then_some(()));
    assert_eq!(vmstream::model::Model::load(&model).unwrap().learnt().sessions, 3);
    // What was learnt is out: the pointer names packs that lie there, of the same image.
    let pointer = server.client().get("/disk.vmp", "").text();
    let packs = pointer.lines().find_map(|line| line.strip_prefix("packs ")?.split_once(' ')).unwrap();
    assert_eq!(site.path().join(packs.0).metadata().unwrap().len().to_string(), packs.1);
    assert!(pointer.contains(&format!("root {root}\n")), "{pointer}");
    let mut client = server.client();
    let page = client.get("/", "").text();
    assert!(page.contains(&format!("/disk.vmp#{root}")) && page.contains("<td>3<td>3<td>"), "{page}");
    let image = client.get("/?image=disk", "");
    assert!(image.text().contains("3 sessions, "), "{}", image.text());
    assert!(image.header("content-security-policy").unwrap().contains("default-src 'none'"));
    for picture in ["/?model=disk", "/?curve=disk"] {
        let svg = client.get(picture, "");
        assert_eq!((svg.status, svg.header("content-type")), (200, Some("image/svg+xml")), "{picture}");
        roxmltree::Document::parse(&svg.text()).unwrap();
    }
    assert_eq!(post(&mut client, "/sessions/disk", "", &session(&root, &[7, 8])).status, 201);
    eventually("another", || (metric(&server, "vmstream_trainings_total{outcome=\"learnt\"}") == 2.0).then_some(()));
    assert_eq!(vmstream::model::Model::load(&model).unwrap().learnt().sessions, 4);
}

#[test]
fn what_is_collected_and_what_the_publisher_learns_is_counted_once() {
    let site = tempfile::tempdir().unwrap();
    let root = publish(site.path(), "disk");
    let server = Server::start(site.path(), &["--collect", "--retrain-every", "0"]);
    let mut lessons = 0.0;
    let mut send = |blocks: &[u64]| {
        let body = session(&root, blocks);
        assert_eq!(post(&mut server.client(), "/sessions/disk", "", &body).status, 201);
        lessons += 1.0;
        eventually("a lesson", || {
            (metric(&server, "vmstream_trainings_total{outcome=\"learnt\"}") == lessons).then_some(())
        });
    };
    let model = || vmstream::model::Model::load(&site.path().join(".vmstream/disk/model.vmm")).unwrap();
    let learn = |sessions: &Path| {
        let image = std::fs::read_dir(site.path()).unwrap().map(|entry| entry.unwrap().path());
        let image = image.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "raw")).unwrap();
        let words = [image.as_path(), Path::new("-o"), site.path(), Path::new("--sessions"), sessions];
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let output = vmstream(&[&["publish", "--link", "--name", "disk"], &words[..]].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    send(&[1, 2]);
    send(&[3, 4]);
    assert_eq!(model().learnt().sessions, 2);
    // The publisher is pointed to what was collected: all of it is known.
    learn(&site.path().join(".vmstream/disk/sessions"));
    assert_eq!(model().learnt().sessions, 2);
    // One of its own comes to the others, and stays when the next one is collected.
    let own = tempfile::tempdir().unwrap();
    std::fs::write(own.path().join("own.vms"), session(&root, &[5, 6])).unwrap();
    learn(own.path());
    assert_eq!(model().learnt().sessions, 3);
    send(&[7, 8]);
    assert_eq!(model().learnt().sessions, 4);
    assert!([1, 3, 5, 7].iter().all(|block| model().owner(vmstream::block::Block(*block)).is_some()));
    // The copy of the model is a copy: what counts is what is published.
    std::fs::remove_file(site.path().join(".vmstream/disk/model.vmm")).unwrap();
    send(&[9, 10]);
    assert_eq!(model().learnt().sessions, 5);
}

#[test]
fn who_sends_slowly_does_not_keep_others_out() {
    let site = tempfile::tempdir().unwrap();
    let root = publish(site.path(), "disk");
    let server = Server::start(site.path(), &["--collect", "--trust-proxy"]);
    let body = session(&root, &[1]);
    let slow = |address: u32| {
        let mut client = server.client();
        let length = body.len();
        client.send(&format!(
            "POST /sessions/disk HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\nX-Forwarded-For: 10.0.0.{address}\r\n\r\n"
        ));
        client.send_bytes(&body[..1]);
        client
    };
    // Of one client only some are waited for.
    let mut one: Vec<_> = (0..5).map(|_| slow(1)).collect();
    let mut statuses: Vec<_> = one.iter_mut().map(|client| client.head().status).collect();
    statuses.sort();
    assert_eq!(statuses, [408, 408, 408, 408, 429]);
    // And all together are for some seconds only.
    let _many: Vec<_> = (2..18).map(slow).collect();
    assert_eq!(post(&mut server.client(), "/sessions/disk", "", &body).status, 201);
}

#[test]
fn what_is_refused_does_not_stay_in_memory() {
    let site = tempfile::tempdir().unwrap();
    publish(site.path(), "disk");
    let server = Server::start(site.path(), &["--collect", "--session-rate", "6000"]);
    let head = "POST /sessions/other HTTP/1.1\r\nHost: here\r\nContent-Length: 4000000\r\n\r\n";
    let clients: Vec<_> = (0..48)
        .map(|_| {
            let mut client = server.client();
            client.send(head);
            client.send_bytes(&vec![0; 3_900_000]);
            client
        })
        .collect();
    let bytes = server.resident_bytes();
    assert!(bytes < 100 << 20, "{bytes} bytes for {} bodies of nobody", clients.len());
}

#[test]
fn links_on_the_page_begin_as_the_visitor_came() {
    let site = tempfile::tempdir().unwrap();
    publish(site.path(), "disk");
    let link = |arguments: &[&str], headers: &str| {
        let text = Server::start(site.path(), arguments).client().get("/", headers).text();
        let (_, link) = text.split_once("<code>").unwrap();
        link.split_once('#').unwrap().0.to_owned()
    };
    let proxied = "X-Forwarded-Proto: http\r\nX-Forwarded-Proto: https\r\n";
    assert!(link(&["--trust-proxy"], proxied).starts_with("https://"));
    assert!(link(&["--trust-proxy"], "").starts_with("http://"));
    assert!(link(&[], proxied).starts_with("http://"), "nobody said that there is a proxy");
}

#[test]
fn a_plain_directory_stays_a_list_and_a_published_one_has_it_too() {
    let site = tempfile::tempdir().unwrap();
    std::fs::write(site.path().join("some.file"), "x").unwrap();
    let server = Server::start(site.path(), &[]);
    let plain = server.client().get("/", "").text();
    assert!(plain.contains("<pre>") && plain.contains("some.file"), "{plain}");
    let root = publish(site.path(), "disk");
    let page = server.client().get("/", "").text();
    assert!(page.contains("Published images") && page.contains(&root), "{page}");
    let files = server.client().get("/?files", "").text();
    assert!(files.contains("<pre>") && files.contains("disk.vmp") && !files.contains(".vmstream"), "{files}");
    let head = server.client().ask("HEAD", "/", "");
    assert_eq!(head.header("content-length").unwrap(), server.client().get("/", "").body.len().to_string());
    // A file of that name is the file.
    std::fs::write(site.path().join("metrics"), "mine").unwrap();
    assert_eq!(server.client().get("/metrics", "").text(), "mine");
}
