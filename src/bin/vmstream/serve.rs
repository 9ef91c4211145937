//! `vmstream serve`: an embedded origin, with an optional shaped link in front of it.
//!
//! | file | what |
//! |---|---|
//! | [`tree`] | names become files below one directory |
//! | [`range`], [`conditions`] | what RFC 9110 says of Range, If-Range and their kin; pure |
//! | [`answer`] | a request becomes a response |
//! | [`content`] | bodies: files read in pieces |
//! | [`exchange`], [`access`], [`stats`] | what is logged and counted |
//! | [`link`] | the pacing model; pure |
//! | [`shaped`], [`alarm`] | a connection on the shaped link, and exact timers |
//!
//! This file has the arguments, accepts connections and ends them. It is an origin for demonstrations, tests and
//! small groups: HTTP/1.1 without TLS, no limits by client. What it serves works from any web server as well.

mod access;
mod alarm;
mod answer;
mod conditions;
mod content;
mod exchange;
pub mod link;
pub mod range;
pub mod shaped;
mod stats;
mod tree;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use vmstream::config::{parse_duration, parse_rate, parse_size};
use vmstream::error::{Error, Result};

use crate::signals::{self, Event};
use crate::{Outcome, parse_with};
use access::AccessLog;
use answer::Site;
use link::Shape;
use shaped::{Shaped, SharedLink};
use stats::Stats;
use tree::Tree;

/// Most connections at once; more wait in the queue of the socket. Each needs two file descriptors while a
/// file is sent, and 1024 is the usual limit of a process.
const CONNECTIONS_MAX: usize = 480;
/// How long a connection may stay without a request: longer than clients keep one ready for its next use, short
/// enough that those of dead clients do not pile up.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// How long responses under way may take to end after the first signal.
const GRACE: Duration = Duration::from_secs(10);
/// Pause after a failed accept: with no descriptor left, trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Least window: one piece on a slow link.
const WINDOW_BYTES_MIN: u64 = 4 << 10;
/// Largest window: bounds what one connection can hold in memory.
const WINDOW_BYTES_MAX: u64 = 64 << 20;

/// Serve the files of a directory over HTTP, for images to be streamed from
///
/// Answers GET and HEAD with ranges and conditions. Files and directories whose names begin with a dot are not
/// served, nor is anything outside DIR that a symbolic link leads to. With --rate, --rtt or --down all connections
/// share one shaped link, so that on one machine things go as they would over a slow line.
///
/// SIGINT or SIGTERM lets responses under way end, for ten seconds at most; a second signal ends at once. SIGUSR1
/// writes the statistics.
#[derive(Args)]
pub struct ServeArgs {
    /// Directory to serve
    pub dir: PathBuf,

    /// Address and port to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub listen: String,

    /// Write the port to this file when ready, instead of printing the URL
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,

    /// Rate of the link towards the clients, such as 25mbit
    #[arg(long, value_parser = |s: &str| parse_with(s, parse_rate))]
    pub rate: Option<u64>,

    /// Round-trip time of the link, such as 50ms
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = |s: &str| parse_with(s, parse_duration))]
    pub rtt: Duration,

    /// Most bytes of one connection in the queue of the link
    #[arg(long, value_name = "SIZE", default_value = "256K", value_parser = window)]
    pub window: usize,

    /// Cut the link from one time after the start to another, such as 10s..40s; repeatable
    #[arg(long, value_name = "FROM..TO", value_parser = cut)]
    pub down: Vec<Range<Duration>>,

    /// Write statistics to this file at the end and on SIGUSR1, as JSON
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// Log each answer to this file, with times in microseconds
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
}

fn window(text: &str) -> std::result::Result<usize, String> {
    let bytes = parse_with(text, parse_size)?;
    let allowed = WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX;
    let in_range = usize::try_from(bytes).ok().filter(|_| allowed.contains(&bytes));
    in_range.ok_or_else(|| format!("must be from {WINDOW_BYTES_MIN} to {WINDOW_BYTES_MAX} bytes"))
}

fn cut(text: &str) -> std::result::Result<Range<Duration>, String> {
    let (from, to) = text.split_once("..").ok_or("must be two times, such as 10s..40s")?;
    let cut = parse_with(from, parse_duration)?..parse_with(to, parse_duration)?;
    if cut.is_empty() {
        return Err("must end after it begins".to_owned());
    }
    Ok(cut)
}

impl ServeArgs {
    fn shape(&self) -> Shape {
        let mut cuts = self.down.clone();
        cuts.sort_by_key(|cut| cut.start);
        Shape { rate_bytes_s: self.rate, round_trip: self.rtt, window_bytes: self.window, cuts }
    }
}

/// What the signal thread tells the server.
#[derive(Clone, Copy, Default)]
struct Orders {
    stop: bool,
    reports: u64,
}

/// Serves until a signal comes.
pub fn run(args: &ServeArgs) -> Result<Outcome> {
    let tree = Tree::open(&args.dir)?;
    let (orders, ordered) = watch::channel(Orders::default());
    // Before the runtime starts its threads and before anybody can know the address.
    signals::handle(move |event| {
        orders.send_modify(|orders| match event {
            Event::Stop(_) => orders.stop = true,
            Event::Report => orders.reports += 1,
        });
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("cannot start the server's threads", e))?;
    let result = runtime.block_on(Server::start(args, tree, ordered));
    // A disk that hangs in a read must not keep the process.
    runtime.shutdown_background();
    result.map(|()| Outcome::Done)
}

struct Server<'a> {
    args: &'a ServeArgs,
    site: Arc<Site>,
    stats: Arc<Stats>,
    link: Option<Arc<SharedLink>>,
}

impl Server<'_> {
    async fn start(args: &ServeArgs, tree: Tree, ordered: watch::Receiver<Orders>) -> Result<()> {
        let listener = TcpListener::bind(&args.listen).await.map_err(|e| {
            Error::io(format_args!("cannot listen on {} (give another ADDR:PORT with --listen)", args.listen), e)
        })?;
        let address = listener.local_addr().map_err(|e| Error::io("cannot read the address listened on", e))?;
        let access = args.access_log.as_deref().map(AccessLog::create).transpose()?.map(Arc::new);
        let stats = Arc::new(Stats::default());
        let shape = args.shape();
        let link = if shape.is_plain() {
            None
        } else {
            Some(Arc::new(SharedLink::new(shape).map_err(|e| Error::io("cannot start the link's thread", e))?))
        };
        let server = Server { args, site: Arc::new(Site::new(tree, stats.clone(), access)), stats, link };
        server.announce(address)?;
        server.accept(listener, ordered).await;
        server.report()
    }

    fn announce(&self, address: SocketAddr) -> Result<()> {
        log::info!("serving {} on http://{address}/", self.args.dir.display());
        match &self.args.port_file {
            Some(path) => crate::files::replace(path, format!("{}\n", address.port())),
            None => {
                use io::Write;
                // Whoever closed standard output does not want to know.
                let _ = writeln!(io::stdout(), "http://{address}/");
                Ok(())
            }
        }
    }

    /// Accepts connections until the order to stop, then lets them end.
    async fn accept(&self, listener: TcpListener, mut ordered: watch::Receiver<Orders>) {
        let mut connections = JoinSet::new();
        let mut reports = 0;
        while !ordered.borrow().stop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((socket, peer)) => self.begin(&mut connections, socket, peer, &ordered),
                    Err(error) => {
                        log::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                changed = ordered.changed() => {
                    let orders = *ordered.borrow_and_update();
                    if changed.is_err() {
                        // The signal thread never ends before the process does.
                        break;
                    }
                    if orders.reports != reports {
                        reports = orders.reports;
                        self.report().unwrap_or_else(|error| log::error!("{error}"));
                    }
                }
            }
        }
        drop(listener);
        let ended = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            log::warn!("{} connections cut: their responses did not end in {GRACE:?}", connections.len());
        }
    }

    fn begin(
        &self,
        connections: &mut JoinSet<()>,
        socket: TcpStream,
        peer: SocketAddr,
        ordered: &watch::Receiver<Orders>,
    ) {
        self.stats.connection();
        // Headers and the last bytes of a body must not wait for an acknowledgement.
        if let Err(error) = socket.set_nodelay(true) {
            log::debug!("{peer}: {error}");
        }
        let (site, ordered) = (self.site.clone(), ordered.clone());
        match &self.link {
            None => _ = connections.spawn(converse(socket, peer, site, ordered)),
            Some(link) => _ = connections.spawn(converse(Shaped::new(socket, link.clone()), peer, site, ordered)),
        }
    }

    fn report(&self) -> Result<()> {
        log::info!("{}", self.stats.summary());
        let link_bytes = self.link.as_ref().map(|link| link.committed_bytes());
        self.args.stats.as_ref().map_or(Ok(()), |path| self.stats.write(path, link_bytes))
    }
}

/// Speaks HTTP on one connection until it ends, or until the response under way ends once the order to stop is
/// there.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    site: Arc<Site>,
    mut ordered: watch::Receiver<Orders>,
) {
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(peer, request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop_ordered(&mut ordered) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // Clients come and go; the exchange has logged what was sent.
        log::debug!("{peer}: {error}");
    }
}

/// Waits for the order to stop.
async fn stop_ordered(ordered: &mut watch::Receiver<Orders>) {
    // An error means that the signal thread is gone, which it never is before the process.
    let _ = ordered.wait_for(|orders| orders.stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_and_windows_are_checked() {
        assert_eq!(cut("10s..40s"), Ok(Duration::from_secs(10)..Duration::from_secs(40)));
        assert_eq!(cut("0..500ms"), Ok(Duration::ZERO..Duration::from_millis(500)));
        for bad in ["10s", "40s..10s", "1s..1s", "a..b", "..", "1s.."] {
            assert!(cut(bad).is_err(), "{bad}");
        }
        assert_eq!(window("64K"), Ok(65536));
        assert!(window("1K").is_err() && window("1G").is_err() && window("x").is_err());
    }
}
