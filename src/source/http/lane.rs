//! Lanes: one warm connection for each worker.
//!
//! Each worker of the engine has a lane of its own, what a source fetches for itself goes over spare ones, and each lane an agent of its own whose pool holds one idle
//! connection for each host. So a worker always finds the connection it used last, no lock is contended, and a
//! failed connection is the only one of its lane: the next attempt is certain to be made on a new one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use ureq::http::{Request, Response};
use ureq::tls::TlsConfig;
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, AsSendBody, Body};

use super::dialer::{Dialer, NoLookup};
use super::failure::Failure;
use super::proxy::Route;
use crate::config::CONNECTIONS_MAX;
use crate::source::LANES_SPARE;

/// Bytes of a body that are read and handed on at once: large enough that a system call for each is cheap,
/// small enough to stay in a core's cache and to hand the first bytes on early.
const PIECE_BYTES: usize = 128 << 10;

/// Room for a request's head: ours are below 1 KiB, but users add headers and signed URLs are long.
const HEAD_BYTES: usize = 32 << 10;

/// A connection idle for longer is not used again: some routers forget a flow after two minutes, and a request
/// on a forgotten flow is only noticed by its stall.
const IDLE_MAX: Duration = Duration::from_secs(90);

/// A connection used more recently than this is taken for ready: the shortest common limit of servers is the
/// five seconds of Apache.
const READY_MAX: Duration = Duration::from_secs(4);

/// What all lanes of a source share.
#[derive(Debug)]
pub(super) struct Wiring {
    connector: Arc<DefaultConnector>,
    tls: TlsConfig,
    pub connect_timeout: Duration,
    pub stall_timeout: Duration,
    /// Requests sent by all lanes.
    pub requests: AtomicU64,
    /// The agents of all lanes, to be shut down from outside; `None` once that was done.
    agents: Mutex<Option<Vec<Agent>>>,
}

impl Wiring {
    pub fn new(tls: TlsConfig, connect_timeout: Duration, stall_timeout: Duration) -> Self {
        let connector = Arc::new(DefaultConnector::new());
        let agents = Mutex::new(Some(Vec::new()));
        Self { connector, tls, connect_timeout, stall_timeout, requests: AtomicU64::new(0), agents }
    }

    /// Breaks off what all lanes do, and lets what they begin later fail at once. Only a look-up or connection attempt
    /// that is under way takes its time, up to `connect_timeout`.
    pub fn abort(&self) {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner).take();
        agents.into_iter().flatten().for_each(Agent::shutdown);
    }

    /// Keeps an agent for [`Wiring::abort`]; one that comes too late is shut down.
    fn register(&self, agent: &Agent) {
        match &mut *self.agents.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(agents) => agents.push(agent.clone()),
            None => agent.clone().shutdown(),
        }
    }

    fn agent(&self, route: &Route, connections: Arc<AtomicU64>) -> Agent {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed by us: each hop decides anew what headers it gets.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(route.tunnel.clone())
            .tls_config(self.tls.clone())
            .timeout_connect(Some(self.connect_timeout))
            // A limit for each read, never for the whole: a slow link must be able to finish.
            .timeout_per_read(Some(self.stall_timeout))
            .timeout_per_write(Some(self.stall_timeout))
            .max_idle_connections(2)
            .max_idle_connections_per_host(1)
            .max_idle_age(IDLE_MAX)
            .input_buffer_size(PIECE_BYTES)
            .output_buffer_size(HEAD_BYTES)
            .build();
        let forward = route.forward.as_ref().map(|(uri, _)| uri.clone());
        let agent = Agent::with_parts(config, Dialer::new(self.connector.clone(), forward, connections), NoLookup);
        self.register(&agent);
        agent
    }
}

/// The connection and the buffer of one worker.
pub(super) struct Lane {
    /// Agents for direct and for proxied targets, made when first needed: a redirect may cross over.
    agents: Vec<(RouteKind, Agent)>,
    connections: Arc<AtomicU64>,
    /// Where bodies are read into; kept, so that a request allocates nothing of size.
    pub buffer: Vec<u8>,
    /// When a body was last read to its end, after which the connection went back to the pool.
    last_good: Option<Instant>,
}

/// What tells the agents of a lane apart: whether the target is TLS and whether a proxy leads there.
pub(super) type RouteKind = (bool, bool);

impl Lane {
    fn new() -> Self {
        Self { agents: Vec::new(), connections: Arc::default(), buffer: Vec::new(), last_good: None }
    }

    /// Sends a request and waits for the head of its answer. A connection that turns out to have been dropped
    /// while it was idle is replaced and the request repeated, once and unseen.
    pub fn send<B: AsSendBody>(
        &mut self,
        wiring: &Wiring,
        https: bool,
        route: &Route,
        request: impl Fn() -> Request<B>,
        reached: bool,
    ) -> Result<Response<Body>, Failure> {
        let kind = (https, route.tunnel.is_some() || route.forward.is_some());
        let at = match self.agents.iter().position(|(k, _)| *k == kind) {
            Some(at) => at,
            None => {
                self.agents.push((kind, wiring.agent(route, self.connections.clone())));
                self.agents.len() - 1
            }
        };
        let agent = &self.agents[at].1;
        self.last_good = None;
        let mut repeated = false;
        loop {
            let before = self.connections.load(Ordering::Relaxed);
            wiring.requests.fetch_add(1, Ordering::Relaxed);
            let failure = match agent.run(request()) {
                Ok(response) => return Ok(response),
                Err(error) => Failure::of(&error, reached, wiring.stall_timeout),
            };
            let reused = self.connections.load(Ordering::Relaxed) == before;
            if repeated || !reused || !failure.closed {
                return Err(failure);
            }
            repeated = true;
        }
    }

    /// Gives up the connections that it has: the next request makes a new one.
    pub fn renew(&mut self) {
        self.agents.clear();
        self.last_good = None;
    }

    /// The buffer for bodies, full-sized.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(PIECE_BYTES, 0);
        buffer
    }

    /// Notes that a body was read to its end, so that the connection can be used again.
    pub fn good(&mut self) {
        self.last_good = Some(Instant::now());
    }

    /// True when the connection was used so recently that it surely still stands.
    pub fn is_ready(&self) -> bool {
        self.last_good.is_some_and(|at| at.elapsed() < READY_MAX)
    }
}

/// The lanes of a source, by the number of the worker.
pub(super) struct Lanes(Vec<Mutex<Lane>>);

impl Lanes {
    pub fn new() -> Self {
        Self((0..CONNECTIONS_MAX + LANES_SPARE).map(|_| Mutex::new(Lane::new())).collect())
    }

    /// The lane of worker `number`. A lane serves one caller at a time; a second one waits.
    pub fn lock(&self, number: usize) -> MutexGuard<'_, Lane> {
        // A panic elsewhere leaves nothing half-done here that the next request would not replace.
        self.0[number % self.0.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane of worker `number` if nobody uses it right now.
    pub fn try_lock(&self, number: usize) -> Option<MutexGuard<'_, Lane>> {
        match self.0[number % self.0.len()].try_lock() {
            Ok(lane) => Some(lane),
            Err(TryLockError::Poisoned(lane)) => Some(lane.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
