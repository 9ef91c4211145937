//! Web servers to measure against: nginx with a configuration of its own, and `vmstream serve`.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmstream::source::pattern;

/// How long a server may take to answer its first connection.
const START_MAX: Duration = Duration::from_secs(10);

/// A directory in memory, gone when dropped: what lies there is cached by nature.
pub fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory in /dev/shm")
}

/// A directory on the disk that caches usually lie on, gone when dropped.
pub fn disk() -> tempfile::TempDir {
    let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::tempdir_in(parent).expect("a directory on the disk")
}

/// Writes an image of incompressible bytes called `image` into `directory`.
pub fn image(directory: &Path, bytes: u64) -> PathBuf {
    let path = directory.join("image");
    let mut file = BufWriter::new(File::create(&path).expect("the image can be made"));
    let mut piece = vec![0; 1 << 20];
    for offset in (0..bytes).step_by(piece.len()) {
        let length = piece.len().min((bytes - offset) as usize);
        pattern::fill(0, offset, &mut piece[..length]);
        file.write_all(&piece[..length]).expect("the image can be written");
    }
    file.flush().expect("the image can be written");
    path
}

/// A server process, ended when dropped.
pub struct Origin {
    child: Child,
    /// What stands before the name of a file.
    pub url: String,
    _scratch: tempfile::TempDir,
}

impl Origin {
    /// Starts nginx on the files of `directory`; `None` when it is not installed.
    pub fn nginx(directory: &Path) -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists())?;
        let scratch = memory();
        let port = free_port();
        let at = scratch.path().display();
        let configuration = format!(
            "daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error;
             user root;
             events {{ worker_connections 1024; }}
             http {{
                 access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 600;
                 client_body_temp_path {at}/a; proxy_temp_path {at}/b; fastcgi_temp_path {at}/c;
                 uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;
                 server {{ listen 127.0.0.1:{port}; root {}; }}
             }}",
            directory.display()
        );
        let file = scratch.path().join("nginx.conf");
        fs::write(&file, configuration).expect("nginx.conf can be written");
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).arg("-p").arg(scratch.path()).stderr(Stdio::null());
        Some(Self::begin(command, scratch, |_| Some(port)))
    }

    /// Starts `vmstream serve` on the files of `directory`, with more arguments such as a rate.
    pub fn serve(directory: &Path, arguments: &[&str]) -> Self {
        let scratch = memory();
        let port_file = scratch.path().join("port");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmstream"));
        command.arg("serve").arg(directory).args(["--listen", "127.0.0.1:0", "--port-file"]).arg(&port_file);
        command.args(arguments).stderr(Stdio::null());
        Self::begin(command, scratch, move |_| fs::read_to_string(&port_file).ok()?.trim().parse().ok())
    }

    fn begin(mut command: Command, scratch: tempfile::TempDir, port: impl Fn(&mut Child) -> Option<u16>) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the server starts");
        let until = Instant::now() + START_MAX;
        loop {
            if let Some(port) = port(&mut child)
                && TcpStream::connect(("127.0.0.1", port)).is_ok()
            {
                return Self { child, url: format!("http://127.0.0.1:{port}/"), _scratch: scratch };
            }
            assert!(Instant::now() < until, "the server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // SIGTERM, or nginx leaves its workers behind.
        if let Some(id) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its number").port()
}

/// The least that a keep-alive client has to do: one agent, one GET, the body read into a buffer.
pub struct BareClient {
    agent: ureq::Agent,
    url: String,
    body: Vec<u8>,
}

impl BareClient {
    /// A client for one URL.
    pub fn new(url: String) -> Self {
        Self { agent: ureq::Agent::new_with_defaults(), url, body: Vec::new() }
    }

    /// Gets one range; answers its bytes.
    pub fn get(&mut self, offset: u64, length: u64) -> &[u8] {
        let range = format!("bytes={offset}-{}", offset + length - 1);
        let mut response = self.agent.get(&self.url).header("Range", range).call().expect("an answer");
        self.body.clear();
        response.body_mut().as_reader().read_to_end(&mut self.body).expect("a body");
        assert_eq!(self.body.len() as u64, length);
        &self.body
    }
}
