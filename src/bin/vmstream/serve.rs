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
//! | [`images`] | what is published in the directory |
//! | [`collect`], [`token`], [`clients`], [`history`] | sessions that are sent: who may, what is kept of them, and where |
//! | [`schedule`], [`retrain`], [`lesson`], [`teaching`] | when they are learnt, on which thread, how, and which |
//! | [`portal`], [`curve`], [`metrics`] | pages for people, the learning curve, counters for Prometheus |
//! | [`args`], [`limits`] | the arguments, and how many connections there may be |
//!
//! This file accepts connections and ends them. It is an origin for demonstrations, tests and small groups: HTTP/1.1
//! without TLS. What it serves works from any web server as well; only collecting sessions needs it.

mod access;
mod alarm;
mod answer;
mod args;
mod clients;
mod collect;
mod conditions;
mod content;
mod curve;
mod exchange;
mod history;
mod images;
mod lesson;
mod limits;
pub mod link;
mod metrics;
mod portal;
pub mod range;
mod retrain;
mod schedule;
pub mod shaped;
mod stats;
mod teaching;
mod token;
mod tree;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use vmstream::error::{Error, Result};

use crate::Outcome;
use crate::publish::learn::republish_at;
use crate::publish::site;
use crate::publish::stop::Stop;
use crate::signals::{self, Event};
use access::AccessLog;
use answer::Site;
pub use args::ServeArgs;
use clients::Address;
use collect::{Collector, Rules};
use images::Images;
use metrics::Tally;
use portal::Portal;
use schedule::Schedule;
use shaped::{Shaped, SharedLink};
use stats::Stats;
use token::Tokens;
use tree::Tree;

/// How long a connection may stay without a request: longer than clients keep one ready for its next use, short
/// enough that those of dead clients do not pile up.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// How long responses under way may take to end after the first signal.
const GRACE: Duration = Duration::from_secs(10);
/// Pause after a failed accept: with no descriptor left, trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    connections_max: usize,
}

/// Takes sessions and learns from them, if that is wanted. `None`: it is not.
fn collector(args: &ServeArgs, images: &Images, tally: &Arc<Tally>) -> Result<Option<Arc<Collector>>> {
    let how = &args.collecting;
    if !how.collect {
        return Ok(None);
    }
    let rules = Rules {
        tokens: how.token.as_deref().map(Tokens::load).transpose()?,
        per_minute: how.session_rate,
        history_bytes: how.history,
        trust_proxy: args.trust_proxy,
    };
    let schedule = Arc::new(Schedule::new(how.retrain_after, how.retrain_every));
    let collector = Arc::new(Collector::new(images.clone(), rules, schedule.clone())?);
    let publish = |dir: &Path, name: &str, model: &[u8], still: &dyn Fn() -> Result<()>| {
        let desk = site::Site::open(dir)?.desk(name)?;
        still()?;
        republish_at(&desk, model, &Stop::default()).map(drop)
    };
    retrain::start(collector.clone(), schedule, tally.clone(), publish)?;
    Ok(Some(collector))
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
        let (images, tally) = (Images::new(&args.dir), Arc::new(Tally::default()));
        let collector = collector(args, &images, &tally)?;
        let portal = Portal::new(images, stats.clone(), collector.is_some());
        let site = Arc::new(Site::new(tree, stats.clone(), access, portal, collector, tally, args.trust_proxy));
        let server = Server { args, site, stats, link, connections_max: limits::connections_max() };
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
                accepted = listener.accept(), if connections.len() < self.connections_max => match accepted {
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
        // Headers and the last bytes of a body must not wait for an acknowledgement.
        if let Err(error) = socket.set_nodelay(true) {
            log::debug!("{peer}: {error}");
        }
        let (site, ordered) = (self.site.clone(), ordered.clone());
        let guest = Guest::new(self.stats.clone(), peer);
        match &self.link {
            None => _ = connections.spawn(converse(socket, guest, site, ordered)),
            Some(link) => _ = connections.spawn(converse(Shaped::new(socket, link.clone()), guest, site, ordered)),
        }
    }

    fn report(&self) -> Result<()> {
        log::info!("{}", self.stats.summary());
        let link_bytes = self.link.as_ref().map(|link| link.committed_bytes());
        self.args.stats.as_ref().map_or(Ok(()), |path| self.stats.write(path, link_bytes))
    }
}

/// A connection, counted for as long as it lasts.
struct Guest {
    stats: Arc<Stats>,
    peer: SocketAddr,
}

impl Guest {
    fn new(stats: Arc<Stats>, peer: SocketAddr) -> Self {
        stats.connection();
        stats.recent.came(Address::from(peer.ip()), Instant::now());
        Self { stats, peer }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stats.disconnection();
        self.stats.recent.went(Address::from(self.peer.ip()), Instant::now());
    }
}

/// Speaks HTTP on one connection until it ends, or until the response under way ends once the order to stop is
/// there.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    guest: Guest,
    site: Arc<Site>,
    mut ordered: watch::Receiver<Orders>,
) {
    let peer = guest.peer;
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
