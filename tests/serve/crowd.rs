//! Five hundred clients at once: each gets its bytes.

use crate::harness::{Client, Server, sample};

/// As many as the server promises to serve at once.
const CLIENTS: usize = 500;
/// Clients that one thread looks after.
const EACH: usize = 50;
/// Requests of each client, one after the other.
const ROUNDS: usize = 3;
/// Bytes of a request.
const BYTES: usize = 64 << 10;

#[test]
fn five_hundred_clients_stream_at_once_and_none_is_starved() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample(4 << 20);
    std::fs::write(dir.path().join("disk.img"), &image).unwrap();
    let server = Server::start(dir.path(), &[]);
    // All are connected before the first asks, and stay so until the last has its answer.
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(server.address)).collect();
    let place = |client: usize, round: usize| (client * 7919 + round * 104_729) % (image.len() - BYTES);
    std::thread::scope(|scope| {
        for (group, members) in clients.chunks_mut(EACH).enumerate() {
            let image = &image;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let at = |n: usize| place(group * EACH + n, round);
                    for (n, client) in members.iter_mut().enumerate() {
                        let range = format!("bytes={}-{}", at(n), at(n) + BYTES - 1);
                        client.send(&format!("GET /disk.img HTTP/1.1\r\nHost: here\r\nRange: {range}\r\n\r\n"));
                    }
                    for (n, client) in members.iter_mut().enumerate() {
                        let mut answer = client.head();
                        client.body(&mut answer);
                        assert_eq!(answer.status, 206);
                        assert!(answer.body == image[at(n)..at(n) + BYTES], "client {n} of group {group}");
                    }
                }
            });
        }
    });
    let text = server.client().get("/metrics", "").text();
    assert!(text.contains(&format!("vmstream_connections_open {}\n", CLIENTS + 1)), "{text}");
    assert!(text.contains(&format!("vmstream_requests_total{{code=\"2xx\"}} {}\n", CLIENTS * ROUNDS)), "{text}");
    // One address, so one client.
    assert!(text.contains("vmstream_clients_recent 1\n"), "{text}");
}
